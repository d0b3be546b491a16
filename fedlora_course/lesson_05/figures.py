"""Tools of notebook 05: the project in one file, and one layer whose weight changes."""

import importlib.util
from collections.abc import Sequence
from types import ModuleType

import numpy as np
from jaxtyping import Float

from fedlora_course.lesson_04.figures import accuracy_of, drawn_gradients
from fedlora_course.lesson_05.theory import row_space_share
from fedlora_lab.federated.run import run
from fedlora_lab.methods.plan import Lora, Plan
from fedlora_lab.plots import style
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


@style.paper()
def kept_shares(
    ranks: Sequence[int], drawn: Sequence[Sequence[float]], values: Float[np.ndarray, " r"]
) -> style.Picture:
    """Draws what frozen random A keep of a change, on average, beside r / 64.

    Args:
        ranks: that were tried.
        drawn: for each of them the share of the energy that each A keeps.
        values: singular values of the change.
    """
    figure, (ax,) = style.subplots(7.4, 4.3)
    ax.set(xlabel="rank r (of 64)", ylabel="share of the energy", xticks=ranks)
    ax.set_title("On average a frozen random A keeps r/64 of a wanted change")
    mean, low, high = zip(*(row_space_share(r, 64, values) for r in ranks), strict=True)
    frozen = style.named_line(ax, ranks, mean, "r / 64", style.INK, low, high)
    style.draw_dots(ax, ranks, [np.mean(shares) for shares in drawn], style.INK, 7)
    style.label_ends(ax, [frozen])
    count = len(drawn[0])
    style.footer(figure, f"dots: mean of {count} random A; grey: where 95 % of single A lie")
    return figure
