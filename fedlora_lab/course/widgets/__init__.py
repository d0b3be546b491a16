"""Widgets for notebooks: a workbench for runs, and a playground that needs no kernel.

Nothing is trained before Start is pressed.

>>> import fedlora_lab as fl
>>> run = fl.course.widgets.live(fl.tasks.regression(clients=2), method="ffa-lora", epsilon=4)
>>> run.values["method"], run.values["epsilon"]
('ffa-lora', '4')
>>> run.close()
"""

from typing import TYPE_CHECKING

from fedlora_lab._utils.environment import require

require("anywidget", "lab")

from fedlora_lab.course.widgets.live_run import live  # noqa: E402

if TYPE_CHECKING:
    from fedlora_lab.course.playground import Playground

__all__ = ["live", "playground"]
__dir__ = __all__.copy  # completion shows neither imports nor modules


def playground(start: str = "large rate") -> "Playground":
    """Returns a page in which two methods train side by side, in the browser alone.

    Args: start: what it begins with: "large rate" is 1.6 at ε = 8, "small rate" 0.1 at ε = 1.
    Raises: ``ValueError`` for any other start.

    >>> import fedlora_lab as fl
    >>> print(fl.course.widgets.playground())
    Playground: ten clients with real handwritten digits train in the browser.
    """
    from fedlora_lab.course.playground import Playground

    return Playground(start)
