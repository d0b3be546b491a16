"""Tasks: a frozen model, the private examples of the clients, and public examples for scores.

`TASKS` lists those that have a name: the command line and saved runs build them by it. A task of
your own is a function that returns a `Task`; ``TASKS["mine"] = function`` gives it a name.

>>> import fedlora_lab as fl
>>> fl.tasks.regression(clients=2, examples=8).sizes
(8, 8)
"""

from collections.abc import Callable
from typing import Any

from fedlora_lab._utils.validation import check_one_of
from fedlora_lab.tasks.digits import digits
from fedlora_lab.tasks.metrics import OverAll
from fedlora_lab.tasks.regression import regression, zero_signal
from fedlora_lab.tasks.sentences import sentences, shipped
from fedlora_lab.tasks.task import HeldOut, Layers, Task, classification
from fedlora_lab.tasks.trainer import from_trainer

__all__ = [
    "TASKS",
    "HeldOut",
    "Layers",
    "OverAll",
    "Task",
    "build",
    "classification",
    "digits",
    "from_trainer",
    "regression",
    "sentences",
    "shipped",
    "zero_signal",
]
__dir__ = __all__.copy  # completion shows neither imports nor modules

TASKS: dict[str, Callable[..., Task]] = {
    "digits": digits,
    "regression": regression,
    "sentences": sentences,
}
"""Name -> function that builds the task of this name."""


def build(name: str, **arguments: Any) -> Task:
    """Builds a named task, such as ``build("digits", clients=3)``.

    Raises: ValueError for a name that is not in `TASKS`.
    """
    check_one_of("task", name, tuple(TASKS))
    return TASKS[name](**arguments)
