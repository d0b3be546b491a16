"""Federated LoRA fine-tuning with differential privacy.

A method is a row of data, privacy is a plan, a run is an iterator of rounds.
Nothing heavy is imported until a name is used, so ``import fedlora_lab`` is quick and does not load
torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fedlora_lab._utils.environment import __version__ as __version__

if TYPE_CHECKING:  # never run: editors read here what HOMES says
    from fedlora_lab import attacks as attacks
    from fedlora_lab import audit as audit
    from fedlora_lab import course as course
    from fedlora_lab import experiments as experiments
    from fedlora_lab import flower as flower
    from fedlora_lab import measures as measures
    from fedlora_lab import methods as methods
    from fedlora_lab import plots as plots
    from fedlora_lab import privacy as privacy
    from fedlora_lab import report as report
    from fedlora_lab import review as review
    from fedlora_lab import tasks as tasks
    from fedlora_lab import theory as theory
    from fedlora_lab.experiments.finetune import finetune as finetune
    from fedlora_lab.experiments.tuned_rates import suggest_lr as suggest_lr
    from fedlora_lab.experiments.tuned_rates import tuned_rate as tuned_rate
    from fedlora_lab.federated.compare import compare as compare
    from fedlora_lab.federated.make_spec import amplification as amplification
    from fedlora_lab.federated.records import generate as generate
    from fedlora_lab.federated.records import predict as predict
    from fedlora_lab.federated.records import save_adapter as save_adapter
    from fedlora_lab.federated.records import to_frame as to_frame
    from fedlora_lab.federated.run import run as run
    from fedlora_lab.federated.run import ticks as ticks
    from fedlora_lab.methods.method import Cycle as Cycle
    from fedlora_lab.methods.method import Method as Method
    from fedlora_lab.methods.optimizers import SGD as SGD
    from fedlora_lab.methods.optimizers import Adam as Adam
    from fedlora_lab.methods.optimizers import AdamW as AdamW
    from fedlora_lab.methods.plan import Lora as Lora
    from fedlora_lab.methods.plan import Plan as Plan
    from fedlora_lab.methods.source_code import show as show
    from fedlora_lab.privacy.ledger import Ledger as Ledger
    from fedlora_lab.privacy.plan import Privacy as Privacy
    from fedlora_lab.tasks import partition as partition


HOMES: dict[str, tuple[str, str | None]] = {
    "attacks": ("attacks", None),
    "audit": ("audit", None),
    "course": ("course", None),
    "experiments": ("experiments", None),
    "flower": ("flower", None),
    "measures": ("measures", None),
    "methods": ("methods", None),
    "plots": ("plots", None),
    "privacy": ("privacy", None),
    "report": ("report", None),
    "review": ("review", None),
    "tasks": ("tasks", None),
    "theory": ("theory", None),
    "finetune": ("experiments.finetune", "finetune"),
    "suggest_lr": ("experiments.tuned_rates", "suggest_lr"),
    "tuned_rate": ("experiments.tuned_rates", "tuned_rate"),
    "compare": ("federated.compare", "compare"),
    "generate": ("federated.records", "generate"),
    "predict": ("federated.records", "predict"),
    "save_adapter": ("federated.records", "save_adapter"),
    "to_frame": ("federated.records", "to_frame"),
    "run": ("federated.run", "run"),
    "ticks": ("federated.run", "ticks"),
    "amplification": ("federated.make_spec", "amplification"),
    "Cycle": ("methods.method", "Cycle"),
    "Method": ("methods.method", "Method"),
    "SGD": ("methods.optimizers", "SGD"),
    "Adam": ("methods.optimizers", "Adam"),
    "AdamW": ("methods.optimizers", "AdamW"),
    "Lora": ("methods.plan", "Lora"),
    "Plan": ("methods.plan", "Plan"),
    "show": ("methods.source_code", "show"),
    "Ledger": ("privacy.ledger", "Ledger"),
    "Privacy": ("privacy.plan", "Privacy"),
    "partition": ("tasks.partition", None),
}
"""Name -> (module under fedlora_lab, attribute there; ``None``: the module itself)."""

__all__ = sorted(HOMES)


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        names = ", ".join(__all__)
        raise AttributeError(f"module 'fedlora_lab' has no attribute {name!r}; it has: {names}")
    home, attribute = HOMES[name]
    module = import_module(f"fedlora_lab.{home}")
    globals()[name] = module if attribute is None else getattr(module, attribute)
    return globals()[name]


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
