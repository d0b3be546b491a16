"""Federated LoRA fine-tuning with differential privacy.

A method is a row of data, privacy is a plan, a run is an iterator of rounds.
Nothing heavy is imported until a name is used, so ``import fedlora_lab`` is quick and does not load
torch.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from fedlora_lab._utils.environment import __version__ as __version__

if TYPE_CHECKING:  # never run: editors read here what HOMES says
    from fedlora_lab import (
        attacks as attacks,
        audit as audit,
        course as course,
        flower as flower,
        measures as measures,
        methods as methods,
        plots as plots,
        privacy as privacy,
        recipes as recipes,
        report as report,
        review as review,
        tasks as tasks,
        theory as theory,
    )
    from fedlora_lab.federated.compare import best as best, compare as compare
    from fedlora_lab.federated.make_spec import noise_amplification as noise_amplification
    from fedlora_lab.federated.records import (
        generate as generate,
        predict as predict,
        save_adapter as save_adapter,
        to_frame as to_frame,
    )
    from fedlora_lab.federated.run import run as run, run_steps as run_steps
    from fedlora_lab.methods.method import Cycle as Cycle, Method as Method
    from fedlora_lab.methods.optimizers import SGD as SGD, Adam as Adam, AdamW as AdamW
    from fedlora_lab.methods.plan import Lora as Lora, Plan as Plan
    from fedlora_lab.methods.source_code import show as show
    from fedlora_lab.privacy.ledger import Ledger as Ledger
    from fedlora_lab.privacy.plan import Privacy as Privacy
    from fedlora_lab.recipes.dry_run import dry_run as dry_run
    from fedlora_lab.recipes.finetune import finetune as finetune
    from fedlora_lab.recipes.rehearsal import rehearse as rehearse
    from fedlora_lab.recipes.tuned_rates import (
        suggest_lr as suggest_lr,
        tuned_rate as tuned_rate,
    )
    from fedlora_lab.tasks import partition as partition


PACKAGES = (
    "attacks",
    "audit",
    "course",
    "flower",
    "measures",
    "methods",
    "plots",
    "privacy",
    "recipes",
    "report",
    "review",
    "tasks",
    "theory",
)
NAMES = {
    "federated.compare": ("best", "compare"),
    "federated.records": ("generate", "predict", "save_adapter", "to_frame"),
    "federated.run": ("run", "run_steps"),
    "federated.make_spec": ("noise_amplification",),
    "methods.method": ("Cycle", "Method"),
    "methods.optimizers": ("SGD", "Adam", "AdamW"),
    "methods.plan": ("Lora", "Plan"),
    "methods.source_code": ("show",),
    "privacy.ledger": ("Ledger",),
    "privacy.plan": ("Privacy",),
    "recipes.dry_run": ("dry_run",),
    "recipes.finetune": ("finetune",),
    "recipes.rehearsal": ("rehearse",),
    "recipes.tuned_rates": ("suggest_lr", "tuned_rate"),
}
"""Module under fedlora_lab -> what of it is public here."""
HOMES: dict[str, tuple[str, str | None]] = {
    **{package: (package, None) for package in PACKAGES},
    **{name: (home, name) for home, names in NAMES.items() for name in names},
    "partition": ("tasks.partition", None),
}
"""Name -> (module under fedlora_lab, attribute there; ``None``: the module itself)."""

__all__ = sorted(HOMES)


class _Package(ModuleType):
    """A package of this library, which says what it has where it is called like a function."""

    def __call__(self, *args: object, **options: object) -> None:
        from fedlora_lab._utils.keywords import KeywordError

        name = self.__name__.replace("fedlora_lab.", "fl.").replace("tasks.partition", "partition")
        functions = (x for x in dir(self) if x[0].islower() and callable(getattr(self, x)))
        calls = ", ".join(f"{name}.{function}" for function in functions)
        raise KeywordError(f"{name}(...): expected one of {calls}")

    def __getattr__(self, name: str) -> Any:
        own = vars(self).get("__getattr__")
        if own is not None:
            return own(name)  # it says in words of its own what was meant
        line = f"module {self.__name__!r} has no attribute {name!r}"
        public = [x for x in dir(self) if not x.startswith("_")]
        raise AttributeError(line + ("" if name.startswith("_") else _nearest(name, public)))


class _Library(ModuleType):
    """This module: the import system binds packages to it, whoever imports them first."""

    def __setattr__(self, name: str, value: object) -> None:
        if HOMES.get(name, ("", ""))[1] is None and isinstance(value, ModuleType):
            value.__class__ = _Package
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Library


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        line = f"module 'fedlora_lab' has no attribute {name!r}"
        if not name.startswith("_"):
            line += _meant(name)
        raise AttributeError(line)
    home, attribute = HOMES[name]
    module = import_module(f"fedlora_lab.{home}")
    value = module if attribute is None else getattr(module, attribute)
    setattr(sys.modules[__name__], name, value)
    return value


def _meant(name: str) -> str:
    """Ends the line on a name that is not here: what is nearest, a method, or all that there is."""
    from fedlora_lab.methods import published

    if row := published.find(name):
        return f"; did you mean 'fedlora_lab.methods.{published.name_of(row.slug)}'?"
    return _nearest(name, __all__)


def _nearest(name: str, names: list[str]) -> str:
    from fedlora_lab._utils.validation import did_you_mean

    return did_you_mean(name, names) or f"; it has: {', '.join(names)}"


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
