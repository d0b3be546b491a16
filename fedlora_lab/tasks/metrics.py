"""Losses of examples, and the scores of a test set: means over examples, or of all together.

A score of one's own is any function of (outputs, y) for each example, or in an `OverAll` for all
test examples together, as those of scikit-learn are.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from fedlora_lab._utils.validation import refuse

Logits = Float[Tensor, "n tokens words"]
Ids = Int[Tensor, "n length"]
IGNORED = -100
"""In the place of a target token that does not count, as in Transformers."""

# ---- losses and scores of single examples


def cross_entropy(outputs: Tensor, y: Tensor) -> Tensor:
    """Cross entropy of each example: (N, classes), labels (N,) or (N, classes) -> (N,)."""
    # Scores of every token would be read as (N, tokens, classes), and mean something else.
    if outputs.ndim != 2 or y.shape not in (outputs.shape[:1], outputs.shape):
        expected = f"({len(y)}, classes) for labels {tuple(y.shape)}"
        refuse("outputs", tuple(outputs.shape), expected)
    return F.cross_entropy(outputs, y, reduction="none")


def accuracy(outputs: Tensor, y: Tensor) -> Tensor:
    """1 where the largest output is the label, else 0: (N, classes), (N,) -> (N,)."""
    return (outputs.argmax(1) == y).to(outputs.dtype)


def squared_error(outputs: Tensor, y: Tensor) -> Tensor:
    """Squared error of each example, averaged over its outputs: (N, d), (N, d) -> (N,)."""
    # Other shapes would be broadcast, and every example compared with every other's target.
    if outputs.shape != y.shape:
        refuse("outputs", tuple(outputs.shape), f"{tuple(y.shape)}, the shape of y")
    return (outputs - y).square().reshape(len(y), -1).mean(1)


def token_loss(outputs: Logits, y: Ids) -> Float[Tensor, " n"]:
    """Mean cross entropy of each text's labelled tokens; padding and -100 do not count.

    An output of a decoder is of the token after it.

    Guarantees: test_trainer.py::test_a_loss_that_is_not_the_models_own_is_refused,
        test_gradients.py::test_equals_batches_of_one.
    """
    y = y[:, 1 : outputs.shape[1]]
    logits = outputs[:, : y.shape[1]].mT
    losses = F.cross_entropy(logits, y, reduction="none", ignore_index=IGNORED)
    return losses.sum(1) / (y != IGNORED).sum(1).clamp(min=1)


# ---- scores of all examples together


def _as_they_are(outputs: Tensor, y: Tensor) -> Tensor:
    return outputs


@dataclass(frozen=True)
class OverAll:
    """A score of all test examples together, such as AUC, where a mean over them says something
    else.

    Args:
        reduce: (kept (N, ...), y (N, ...)) -> a number, on the CPU and in the order of the
            test set. NaN where it is undefined.
        keep: (outputs, y) of some examples -> (n, ...), what ``reduce`` needs of each; its outputs
            by default. What a batch's longest text makes wider must not be kept as it is.
    Guarantees: however the examples are cut into batches, a score is that of all of them
        (test_metrics.py::test_scores_of_a_whole_test_set_do_not_depend_on_how_it_is_cut).

    >>> import torch, fedlora_lab as fl
    >>> from sklearn.metrics import f1_score
    >>> f1 = fl.tasks.OverAll(lambda outputs, y: f1_score(y, outputs.argmax(1), average="macro"))
    >>> float(f1(torch.eye(3), torch.arange(3)))
    1.0
    """

    reduce: Callable[[Tensor, Tensor], float]
    keep: Callable[[Any, Tensor], Tensor] = _as_they_are

    def __call__(self, outputs: Any, y: Tensor) -> Float[Tensor, ""]:
        """The score where all examples went through the model at once."""
        return torch.tensor(self.reduce(self.keep(outputs, y), y), dtype=torch.float64)


Metric = Callable[[Any, Tensor], Tensor]
"""(outputs, y) -> (N,), each example's score, whose mean is meant; or an `OverAll`."""


def _mean(scores: Tensor, y: Tensor) -> float:
    return float(scores.double().mean())


def over_all(metric: Callable[[Any, Tensor], Tensor]) -> OverAll:
    """The metric as it is; one of single examples as the mean over all of them."""
    return metric if isinstance(metric, OverAll) else OverAll(_mean, metric)


# ---- language


def _token_totals(outputs: Logits, y: Ids) -> Float[Tensor, "n 2"]:
    """The summed loss of each text's own tokens from the second on, and their number."""
    counts = (y[:, 1:] != IGNORED).sum(1).double()
    return torch.stack([token_loss(outputs, y).double() * counts, counts], 1)


def _perplexity(totals: Float[Tensor, "n 2"], y: Ids) -> float:
    loss, tokens = totals.sum(0)
    # A model that diverged has no number as its loss: NaN stands for what was not measured.
    return float((loss / tokens).exp().nan_to_num(math.inf, math.inf))


perplexity = OverAll(_perplexity, _token_totals)
"""exp of the mean loss over all tokens that a decoder learns, of all test examples."""


# ---- the catalogue

METRICS: dict[str, Metric] = {"accuracy": accuracy, "loss": cross_entropy}
"""Name -> metric of classes, where a task names no others."""
