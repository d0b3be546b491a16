"""A decoder's loss of each text by itself: the mean over its own tokens, whatever else is in the batch."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from fedlora_lab.tasks.encode import IGNORED

Logits = Float[Tensor, "n tokens words"]
Ids = Int[Tensor, "n length"]


def _pairs(outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Predictions and the tokens that follow, (n, tokens - 1), and which of them count."""
    # The batch may be cut to its longest text; what is cut off holds padding only.
    after = y[:, 1 : outputs.shape[1]]
    counts = after != IGNORED
    return outputs[:, :-1], after.clamp(min=0), counts


def _mean(values: Tensor, counts: Tensor) -> Tensor:
    return (values * counts).sum(1) / counts.sum(1).clamp(min=1)


def next_token_loss(outputs: Logits, y: Ids) -> Float[Tensor, " n"]:
    """Mean cross entropy of each text's own tokens from the second on; padding does not count.

    Guarantees: tests/test_hub_causal.py::test_loss_is_each_text_s_own.
    """
    logits, after, counts = _pairs(outputs, y)
    each = F.cross_entropy(logits.transpose(1, 2), after, reduction="none")
    return _mean(each, counts.to(each.dtype))


def next_token_accuracy(outputs: Logits, y: Ids) -> Float[Tensor, " n"]:
    """Share of each text's own tokens, from the second on, that are the model's first choice."""
    logits, after, counts = _pairs(outputs, y)
    return _mean((logits.argmax(-1) == after).to(outputs.dtype), counts.to(outputs.dtype))


CAUSAL = {"accuracy": next_token_accuracy, "loss": next_token_loss}
