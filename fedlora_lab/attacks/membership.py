"""Who was in the training data: by the fall of the loss, or against models trained with and without each example.

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

from fedlora_lab.audit.marks import OUT, coded, given, marked
from fedlora_lab.checks import check_whole
from fedlora_lab.loop import predict, run
from fedlora_lab.method import Method
from fedlora_lab.plan import Lora, Plan
from fedlora_lab.privacy import Privacy
from fedlora_lab.record import Round, origin
from fedlora_lab.streams import Streams
from fedlora_lab.tasks.task import Task


@dataclass(frozen=True)
class Membership:
    """Scores of members and of others, (n,) each, high where an example looks like a member."""

    members: Float[np.ndarray, " n"]
    others: Float[np.ndarray, " m"]

    @property
    def auc(self) -> float:
        """Chance that a member scores above another, ties by half; 0.5 is guessing."""
        ranks = rankdata(np.concatenate([self.members, self.others]))[: len(self.members)]
        return float((ranks.sum() - len(ranks) * (len(ranks) + 1) / 2) / (len(ranks) * len(self.others)))

    def curve(self) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
        """Shares of others accused and of members found, at every threshold from the strictest to none, (k,) each.

        Guarantees: test_lesson_11.py::test_the_curve_of_an_attack.
        """
        steps = np.unique(np.concatenate([self.members, self.others]))[::-1]
        accused, found = (1 - np.searchsorted(np.sort(part), steps) / len(part) for part in (self.others, self.members))
        return np.append(0.0, accused), np.append(0.0, found)

    def tpr(self, fpr: float) -> float:
        """Share of the members found where at most this share of the others is accused."""
        allowed = int(fpr * len(self.others))
        threshold = np.sort(self.others)[::-1][allowed] if allowed < len(self.others) else -np.inf
        return float((self.members > threshold).mean())


def loss_difference(record: Round) -> Membership:
    """Fall of the loss from the base model to the released one: the base is a free reference.

    Members are all clients' training examples, the others the public test examples.

    Guarantees: test_membership_by_the_fall_of_the_loss.
    """
    task, _, _ = origin(record)
    pairs = [*task.clients, task.test]
    with torch.inference_mode():
        falls = [
            (task.loss(task.forward(task.model, x), y) - task.loss(predict(task, record, x), y)).double().numpy()
            for x, y in pairs
        ]
    return Membership(np.concatenate(falls[:-1]), falls[-1])


def confidence(losses: torch.Tensor) -> np.ndarray:
    """log(p / (1 - p)) of the true answer, p = exp(-loss); large where the model is sure and right."""
    losses = losses.double().clamp(1e-12, 700)
    return (-losses - torch.log(-torch.expm1(-losses))).numpy()


def lira(
    task: Task,
    method: "Method | str",
    privacy: Privacy | None,
    plan: Plan,
    *,
    runs: int = 16,
    lora: Lora | None = None,
    seed: int = 0,
    offline: bool = False,
    **options: Any,
) -> Membership:
    """Train several runs, each with a random half of every client's examples, and attack each by all the others.

    Left out means zero weight, so sizes and sample rates are equal in all runs.

    Args:
        runs: >= 4; each is the target once and a shadow of the others.
        offline: only shadows without the example are used: the attacker need not train on it.

    Guarantees: test_lira_finds_members_and_noise_hides_them.
    """
    check_whole("runs", runs, 4)
    there = Streams(seed).numpy("lira coins").random((runs, sum(task.sizes))) < 0.5
    found = np.stack(
        [_confidences(task, method, privacy, plan, there[i], lora, seed + i, options) for i in range(runs)]
    )
    inside, outside = [], []
    for target in range(runs):
        shadows = np.arange(runs) != target
        scores = likelihood_ratio(found[target], found[shadows], there[shadows], offline)
        usable = ~np.isnan(scores)
        inside.append(scores[usable & there[target]])
        outside.append(scores[usable & ~there[target]])
    return Membership(np.concatenate(inside), np.concatenate(outside))


def _confidences(
    task: Task, method: Any, privacy: Any, plan: Plan, there: np.ndarray, lora: Lora | None, seed: int, options: Any
) -> Float[np.ndarray, " n"]:
    marks, begin = given(task), 0
    for mark in marks:
        mark[~torch.from_numpy(there[begin : begin + len(mark)])] = OUT
        begin += len(mark)
    weighted = marked(task, marks)
    (last,) = deque(run(weighted, method, privacy, plan, lora=lora, seed=seed, **options), maxlen=1)
    plain = [(x, coded(y, torch.zeros(len(y), dtype=torch.int64))) for x, y in task.clients]
    return np.concatenate([confidence(weighted.loss(predict(weighted, last, x), y)) for x, y in plain])


def likelihood_ratio(
    target: Float[np.ndarray, " n"],
    shadows: Float[np.ndarray, "runs n"],
    there: Bool[np.ndarray, "runs n"],
    offline: bool = False,
) -> Float[np.ndarray, " n"]:
    """log N(target; in) - log N(target; out) with medians, and one standard deviation for all examples on each side.

    Offline: how far the target lies above the shadows without the example. NaN where a side has no shadow.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # an example that no shadow had, or that all had
        inside, outside = (np.where(mask, shadows, np.nan) for mask in (there, ~there))
        centre_in, centre_out = np.nanmedian(inside, 0), np.nanmedian(outside, 0)
        spread_in, spread_out = (np.sqrt(np.nanmean(np.nanvar(part, 0))) + 1e-9 for part in (inside, outside))
    if offline:
        return norm.logcdf((target - centre_out) / spread_out)
    return norm.logpdf(target, centre_in, spread_in) - norm.logpdf(target, centre_out, spread_out)
