"""The scores of a membership attack."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata


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
