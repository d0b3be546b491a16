"""Learning rates found by scripts/tune.py on validation data, and the setting they were found in.

Tuning looked at the validation part of the embedded tasks, with seeds of its own; it is not part of any ledger. On
private data every such look is a release that has to be counted (arXiv:2110.03620).
"""

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedlora_lab.checks import check_one_of

if TYPE_CHECKING:
    from fedlora_lab.method import Method
    from fedlora_lab.tasks import Task

FILE = Path(__file__).parent / "data" / "tuned.json"


@cache
def table() -> dict[str, Any]:
    """Task name -> {"setting": plan, privacy and adapter of the search, "methods": slug -> {"lr", "grid"}}."""
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}


def setting(task: "Task | str") -> dict[str, Any]:
    """The plan, privacy and adapter in which a task's learning rates were searched.

    Raises: ``ValueError`` when the task was not tuned for.
    """
    name = task if isinstance(task, str) else task.name
    check_one_of("task", name, tuple(table()))
    return table()[name]["setting"]


def tuned(task: "Task | str", method: "Method | str") -> float:
    """The learning rate found for a method on a task, both given by name or as they are.

    Raises: ``ValueError`` when the pair was not tuned.
    Guarantees: the one with the best validation score of its grid (test_tuned_is_the_best_of_its_grid).
    """
    name = task if isinstance(task, str) else task.name
    slug = method if isinstance(method, str) else method.slug
    check_one_of("task", name, tuple(table()))
    check_one_of("method", slug, tuple(table()[name]["methods"]))
    return table()[name]["methods"][slug]["lr"]
