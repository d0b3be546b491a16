"""A membership attack by the fall of the loss, and the scores of any other.

Source: arXiv:1709.01604 (loss threshold).
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import rankdata

from fedlora_lab.federated.records import Round, predict
from fedlora_lab.lora.source import require_source


@dataclass(frozen=True)
class Membership:
    """Scores of members and of others, (n,) each, high where an example looks like a member.

    >>> Membership(np.array([3.0, 1.0]), np.array([2.0, 0.0])).auc
    0.75
    """

    members: Float[np.ndarray, " n"]
    others: Float[np.ndarray, " m"]

    @property
    def auc(self) -> float:
        """Chance that a member scores above another, ties by half; 0.5 is guessing."""
        n = len(self.members)
        m = len(self.others)
        ranks = rankdata(np.concatenate([self.members, self.others]))[:n]
        return float((ranks.sum() - n * (n + 1) / 2) / (n * m))

    def curve(self) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
        """Shares of others accused and of members found, (k,) each, from the strictest threshold.

        Guarantees: test_attacks.py::test_membership_scores_are_counted_right.
        """
        steps = np.unique(np.concatenate([self.others, self.members]))[::-1]

        def share_above(scores: np.ndarray) -> np.ndarray:
            return np.append(0.0, 1 - np.searchsorted(np.sort(scores), steps) / len(scores))

        return share_above(self.others), share_above(self.members)

    def tpr(self, fpr: float) -> float:
        """Share of the members found where at most this share of the others is accused."""
        allowed = int(fpr * len(self.others))
        # Strictly above the first other that may not be accused.
        threshold = np.sort(self.others)[::-1][allowed] if allowed < len(self.others) else -np.inf
        return float((self.members > threshold).mean())


def loss_difference(record: Round) -> Membership:
    """Scores examples by the fall of their loss from the base model to the released one.

    Members are all clients' training examples, the others the public test examples.

    Guarantees: test_membership_by_the_fall_of_the_loss.
    """
    task, _, _ = require_source(record)
    with torch.inference_mode():
        falls = [
            task.loss(task.forward(task.model, x), y) - task.loss(predict(task, record, x), y)
            for x, y in [*task.clients, task.test]
        ]
    scores = [fall.double().numpy() for fall in falls]
    return Membership(np.concatenate(scores[:-1]), scores[-1])
