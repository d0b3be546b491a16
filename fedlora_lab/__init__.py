"""Federated LoRA under differential privacy: a method is a row of data, privacy is a plan, a run is an iterator.

Nothing heavy is imported until a name is used, so ``import fedlora_lab`` is quick and does not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same names for editors and type checkers; tests/test_packaging.py keeps the two lists equal
    from fedlora_lab import (
        attacks,
        audit,
        claims,
        doctor,
        edges,
        exercises,
        experiments,
        flower,
        masks,
        measures,
        methods,
        partition,
        plots,
        presets,
        privacy,
        report,
        study,
        tasks,
        theory,
        widgets,
    )
    from fedlora_lab.comparison import compare
    from fedlora_lab.ledger import Ledger
    from fedlora_lab.loop import predict, run, ticks
    from fedlora_lab.method import Cycle, Method
    from fedlora_lab.methods import show
    from fedlora_lab.plan import Lora, Plan
    from fedlora_lab.privacy import Privacy
    from fedlora_lab.record import save_adapter, to_frame
    from fedlora_lab.tuning import tuned

__version__ = "0.1.0"
__all__ = [
    "Cycle",
    "Ledger",
    "Lora",
    "Method",
    "Plan",
    "Privacy",
    "attacks",
    "audit",
    "claims",
    "compare",
    "doctor",
    "edges",
    "exercises",
    "experiments",
    "flower",
    "masks",
    "measures",
    "methods",
    "partition",
    "plots",
    "predict",
    "presets",
    "privacy",
    "report",
    "run",
    "save_adapter",
    "show",
    "study",
    "tasks",
    "theory",
    "ticks",
    "to_frame",
    "tuned",
    "widgets",
]

# name -> (module, attribute); the attribute None means the module itself.
_HOMES: dict[str, tuple[str, str | None]] = {
    "Plan": ("plan", "Plan"),
    "Lora": ("plan", "Lora"),
    "Privacy": ("privacy", "Privacy"),
    "Ledger": ("ledger", "Ledger"),
    "Cycle": ("method", "Cycle"),
    "Method": ("method", "Method"),
    "show": ("methods", "show"),
    "run": ("loop", "run"),
    "predict": ("loop", "predict"),
    "ticks": ("loop", "ticks"),
    "compare": ("comparison", "compare"),
    "to_frame": ("record", "to_frame"),
    "save_adapter": ("record", "save_adapter"),
    "tuned": ("tuning", "tuned"),
    "attacks": ("attacks", None),
    "audit": ("audit", None),
    "claims": ("claims", None),
    "tasks": ("tasks", None),
    "methods": ("methods", None),
    "partition": ("partition", None),
    "presets": ("presets", None),
    "privacy": ("privacy", None),
    "masks": ("masks", None),
    "measures": ("measures", None),
    "theory": ("theory", None),
    "plots": ("plots", None),
    "widgets": ("widgets", None),
    "edges": ("edges", None),
    "exercises": ("exercises", None),
    "experiments": ("experiments", None),
    "flower": ("flower", None),
    "report": ("report", None),
    "study": ("study", None),
    "doctor": ("doctor", None),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fedlora_lab' has no attribute {name!r}; it has: {', '.join(sorted(_HOMES))}")
    home, attribute = _HOMES[name]
    module = import_module(f"fedlora_lab.{home}")
    value = module if attribute is None else getattr(module, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*_HOMES, "__version__"})
