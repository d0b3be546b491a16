"""The course: lessons, exercises and widgets of the notebooks, which nothing else needs.

>>> import fedlora_course as course
>>> import fedlora_lab as fl
>>> dial = course.lesson(2).deviation_explorer()  # turns in the browser
>>> figure = dial.picture(spread=0.4)  # the same, drawn
"""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from fedlora_lab._utils.validation import check_whole

if TYPE_CHECKING:
    from fedlora_course import exercises, figures, secagg_demo, widgets

__all__ = ["exercises", "figures", "lesson", "secagg_demo", "widgets"]
__dir__ = __all__.copy  # completion shows neither imports nor modules


def lesson(number: int) -> SimpleNamespace:
    """Collects the figures, dials and formulas of one notebook, so that it can call them by name.

    Args: number: of the notebook, from 0.
    Returns: a namespace with the public functions and classes of the lesson's ``figures.py``,
        ``dials.py`` and ``theory.py``, in lesson 11 also of ``scans.py`` and ``attacks.py``, in
        lesson 12 of ``clips.py`` and ``bounds.py``, and ``evidence``, which a lesson calls with
        ``globals()`` in its last cell.
    """
    folders = list(Path(__file__).parent.glob("lesson_*"))
    check_whole("number", number, 0, len(folders) - 1)
    package = f"fedlora_course.lesson_{number:02}"
    from fedlora_course.evidence import Evidence

    public: dict[str, Any] = {"evidence": Evidence(number)}
    for part in ("figures", "dials", "theory", "clips", "scans", "attacks", "bounds"):
        if find_spec(f"{package}.{part}") is None:
            continue
        module = import_module(f"{package}.{part}")
        for name, value in vars(module).items():
            # What a module imports is not the lesson's.
            if not name.startswith("_") and getattr(value, "__module__", "") == module.__name__:
                public[name] = value
    return SimpleNamespace(**public)


def __getattr__(name: str) -> Any:
    if name in __all__:
        return import_module(f"fedlora_course.{name}")
    raise AttributeError(f"module 'fedlora_course' has no attribute {name!r}")
