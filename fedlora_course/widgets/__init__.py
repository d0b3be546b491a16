"""Widgets for notebooks: a workbench for runs, and a playground that needs no kernel.

Nothing is trained before Start is pressed.

>>> import fedlora_course as course
>>> import fedlora_lab as fl
>>> bench = course.widgets.live(fl.tasks.regression(clients=2), epsilon=4)
>>> bench.values["method"], bench.values["epsilon"]
('fedlora', '4')
>>> bench.close()
"""

from typing import TYPE_CHECKING

from fedlora_lab._utils.environment import require

require("anywidget", "lab")

from fedlora_course.widgets.bench import live  # noqa: E402

if TYPE_CHECKING:
    from fedlora_course.playground import Playground

__all__ = ["live", "playground"]
__dir__ = __all__.copy  # completion shows neither imports nor modules


def playground() -> "Playground":
    """Returns a page in which two methods train side by side, in the browser alone.

    >>> import fedlora_course as course
    >>> import fedlora_lab as fl
    >>> print(course.widgets.playground())
    Playground: ten clients with real handwritten digits train in the browser.
    """
    from fedlora_course.playground import Playground

    return Playground()
