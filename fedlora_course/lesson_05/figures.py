"""Tools of notebook 05: the project in one file, and one layer whose weight changes."""

import importlib.util
from types import ModuleType

import numpy as np
from jaxtyping import Float

from fedlora_course.lesson_04.figures import accuracy_of, drawn_gradients
from fedlora_lab.federated.run import run
from fedlora_lab.methods.plan import Lora, Plan
from fedlora_lab.tasks.task import Task


def one_file() -> ModuleType:
    """Loads ``examples/one_file.py`` anew, from the folder in which the notebooks stand.

    Returns: its module, whose names can be changed before it trains.
    """
    spec = importlib.util.spec_from_file_location("one_file", "../examples/one_file.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Layer:
    """The one adapted layer of a task, 64 × 64, whose weight may change by any matrix.

    Args: task: one that adapts a single layer.
    """

    def __init__(self, task: Task) -> None:
        # With A = I the change is B itself, and so is its gradient.
        full = Lora(rank=64, alpha=64)
        self._start = next(run(task, "fedlora", None, Plan(), lora=full, seed=0))

    def drawn_gradients(
        self, change: Float[np.ndarray, "64 64"], batch: int, rng: np.random.Generator
    ) -> list[Float[np.ndarray, "n 64 64"]]:
        """Draws a batch of every client and computes its examples' gradients of the weight.

        Args: change: of the weight. batch: its expected size. rng: for the draws.
        """
        return drawn_gradients(self._start, change, np.eye(64), batch, rng)[0]

    def accuracy(self, change: Float[np.ndarray, "64 64"]) -> float:
        """Computes the test accuracy of the model with this change of the weight."""
        return accuracy_of(self._start, change, np.eye(64))
