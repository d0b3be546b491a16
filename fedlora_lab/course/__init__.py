"""Holds what only the notebooks need: lessons, widgets, exercises and sharp edges.

>>> import fedlora_lab as fl
>>> four = fl.course.lesson(4)
>>> figure, sentence = four.noise_amplification(std=0.05, rank=4, alpha=8, width=64, size_B=0.0)
>>> widget = four.noise_explorer()  # the same, turned in the browser
"""

from importlib import import_module
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from fedlora_lab._utils.validation import check_whole

if TYPE_CHECKING:
    from fedlora_lab.course import exercises, secagg_demo, widgets

__all__ = ["exercises", "lesson", "secagg_demo", "widgets"]


def lesson(number: int) -> SimpleNamespace:
    """Collects the figures and widgets of one notebook, so that it can call them by name.

    Args: number: of the notebook, 0 to 15.
    Returns: a namespace with the public functions and classes of the lesson's ``figures.py``.
    """
    check_whole("number", number, 0, 15)
    module = import_module(f"fedlora_lab.course.lesson_{number:02}.figures")
    own = {k: v for k, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__}
    return SimpleNamespace(**{k: v for k, v in own.items() if not k.startswith("_")})


def __getattr__(name: str) -> Any:
    if name in __all__:
        return import_module(f"fedlora_lab.course.{name}")
    raise AttributeError(f"module 'fedlora_lab.course' has no attribute {name!r}")
