"""Membership attacks: by the fall of the loss, or against models trained without each example.

Source: arXiv:1709.01604 (loss threshold); arXiv:2112.03570 (LiRA).
"""

import warnings
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.stats import norm, rankdata

from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.validation import check_whole
from fedlora_lab.audit.instruments import LEFT_OUT, encode_marks, mark_examples, ordinary_marks
from fedlora_lab.federated.records import Round, predict
from fedlora_lab.federated.run import run
from fedlora_lab.lora.source import require_source
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.plan import Lora, Plan
from fedlora_lab.privacy.plan import Privacy
from fedlora_lab.tasks.task import Task


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


def lira(
    task: Task,
    method: "Method | str",
    privacy: Privacy | None,
    plan: Plan,
    *,
    runs: int = 16,
    lora: "Lora | None" = None,
    seed: int = 0,
    **options: Any,
) -> Membership:
    """Trains runs on random halves of every client's examples; attacks each by the others (LiRA).

    Left out means zero weight, so sizes and sample rates are equal in all runs.

    Args:
        task, method, privacy, plan, lora, options: as of `fl.run`.
        runs: >= 4; each is the target once and a shadow of the others.
        seed: of the first run, and of who is left out.

    Guarantees: test_lira_finds_members.
    """
    check_whole("runs", runs, 4)
    # Fair coins of its own: who is left out does not depend on what the runs draw.
    included = Streams(seed).numpy("lira coins").random((runs, sum(task.sizes))) < 0.5
    confidences = []
    for i, coins in enumerate(included):
        marks = ordinary_marks(task)
        for mark, part in zip(marks, np.split(coins, np.cumsum(task.sizes)[:-1])):
            mark[~torch.from_numpy(part)] = LEFT_OUT
        marked = mark_examples(task, marks)
        events = run(marked, method, privacy, plan, lora=lora, seed=seed + i, **options)
        (last,) = deque(events, maxlen=1)
        confidences.append(_confidences(task, marked, last))
    members = []
    outsiders = []
    # Every run is attacked once, with all others as shadows.
    for target in range(runs):
        shadows = np.arange(runs) != target
        of_shadows = np.stack(confidences)[shadows]
        scores = likelihood_ratio(confidences[target], of_shadows, included[shadows])
        usable = ~np.isnan(scores)
        members.append(scores[usable & included[target]])
        outsiders.append(scores[usable & ~included[target]])
    return Membership(np.concatenate(members), np.concatenate(outsiders))


def _confidences(task: Task, marked: Task, record: Round) -> np.ndarray:
    """log(p / (1 - p)) of each true answer, p = exp(-loss): large where the model is sure."""
    losses = [marked.loss(predict(marked, record, x), encode_marks(y)) for x, y in task.clients]
    # At a loss of zero the logit would be infinite.
    clamped = torch.cat(losses).double().clamp(1e-12, 700)
    return (-clamped - torch.log(-torch.expm1(-clamped))).numpy()


def likelihood_ratio(
    target: Float[np.ndarray, " n"],
    shadows: Float[np.ndarray, "runs n"],
    there: Bool[np.ndarray, "runs n"],
) -> Float[np.ndarray, " n"]:
    """Scores each example by log N(target; in) - log N(target; out); NaN without a shadow.

    The laws have the median of the shadows that held the example, or did not, and one spread each.

    Args:
        target: the attacked run's confidence in each example.
        shadows: those of the other runs.
        there: whether each of them held the example.
    """
    logs = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # an example that no shadow, or all, had
        for mask in (there, ~there):
            side = np.where(mask, shadows, np.nan)
            # One spread for all examples: of a few shadows each has too few for its own.
            spread = np.sqrt(np.nanmean(np.nanvar(side, 0))) + 1e-9
            logs.append(norm.logpdf(target, np.nanmedian(side, 0), spread))
    return logs[0] - logs[1]
