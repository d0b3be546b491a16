"""Labels from the gradient of a trained classifier: only the true class is pushed up.

Source: arXiv:2001.02610 (iDLG).
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import nnls
from torch import Tensor

from fedlora_lab.attacks.victim import Upload
from fedlora_lab.checks import check


def _scores(upload: Upload) -> Float[Tensor, " classes"]:
    """How far each class is pushed down: the gradient of its bias, or the sum of its row of weights."""
    head = [slot for slot in upload if slot.side == "head"]
    check(bool(head), "upload", [str(slot) for slot in upload], "one with a trained head")
    bias = [slot for slot in head if slot.layer.endswith("bias")]
    return upload[bias[-1]].double() if bias else upload[head[-1]].double().flatten(1).sum(1)


def label(upload: Upload) -> int:
    """The label of a single example: the class whose gradient is the lowest.

    Guarantees: test_labels_are_read_and_noise_hides_them.
    """
    return int(_scores(upload).argmin())


def counts(upload: Upload, examples: int, predictions: Float[Tensor, "classes classes"]) -> Int[Tensor, " classes"]:
    """How many examples of each class a batch held.

    The gradient of the bias is sum_c n_c (p_c - e_c), p_c the mean prediction for examples of class c; least squares
    with n_c >= 0 and sum n_c = examples, rounded.

    Args:
        examples: how many there were in all.
        predictions: row c is p_c, from public examples; they stand for those of the batch.

    Returns: (classes,), whole numbers that sum to ``examples``.
    Guarantees: test_counts_of_labels_are_read.
    """
    classes = len(predictions)
    pull = (predictions.double() - torch.eye(classes, dtype=torch.float64)).T
    left = np.vstack([pull.numpy(), np.full((1, classes), 10.0)])
    right = np.append(_scores(upload).numpy(), 10.0 * examples)
    guess = torch.from_numpy(nnls(left, right)[0])
    guess = guess * examples / guess.sum().clamp(min=1e-12)
    found = guess.floor().long()
    rest = torch.argsort(guess - found, descending=True)[: examples - int(found.sum())]
    return found.index_add_(0, rest, torch.ones_like(rest))
