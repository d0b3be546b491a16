"""Pitfalls of privacy: what is counted, how it is clipped, and what gets past the noise.

Each function returns the number of its pitfall with the mistake (``broken``) or without it. `BUGS`
are mistakes to inject in a run.
"""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedlora_lab import theory
from fedlora_lab._utils.random_streams import Streams
from fedlora_lab.course.sharp_edges.pitfall import UP_TO_1, pitfall, proved_epsilon
from fedlora_lab.methods.filters import factor_space, product_space
from fedlora_lab.methods.plan import Plan
from fedlora_lab.methods.state import ParamKey
from fedlora_lab.privacy import accounting
from fedlora_lab.privacy.config import Privacy
from fedlora_lab.privacy.ledger import Ledger
from fedlora_lab.privacy.mechanism import ClipCounts, clip_sum, gaussian_noise, row_norms

Rows = dict[ParamKey, Tensor]
ONE = ParamKey("B", "layer")
DELTA, CLIP = 1e-5, 1.0

# What is counted


@pitfall(1, 5.42, "at least")
def ledger_of_the_last_round(broken: bool) -> float:
    """Returns the epsilon stated after 100 rounds; the mistake opens a ledger for every round."""
    ledger = Ledger(delta=DELTA, accountant="rdp")
    for t in range(100):
        ledger = Ledger(delta=DELTA, accountant="rdp") if broken else ledger
        ledger.record(t, None, 125, sample_rate=32 / 4000, noise_multiplier=1.0)
    return ledger.epsilon()


@pitfall(2, 6.0)
def noise_for_one_round(broken: bool) -> float:
    """Returns the epsilon spent by sixty rounds, an epoch each, where 6 was meant."""
    q, steps, rounds = 1 / 400, 400, 60
    planned = steps if broken else steps * rounds
    sigma = accounting.noise_multiplier(6.0, DELTA, q, planned, "rdp")
    return accounting.epsilon(((sigma, q, steps * rounds),), DELTA, "rdp")


def _calibrated(privacy: Privacy, epsilon: float, plan: Plan, sizes: tuple[int, ...]) -> float:
    task, privacy = SimpleNamespace(sizes=sizes), privacy.replace(accountant="rdp")
    sigma = privacy.calibrate(epsilon=epsilon, task=task, plan=plan).noise_multiplier
    assert isinstance(sigma, float)
    return sigma


@pitfall(5, 1.0)
def noise_for_examples(broken: bool) -> float:
    """Returns the epsilon of one client after a hundred noised updates, where 1 was meant.

    The mistake takes the noise for draws of 128 of 6,400 examples.
    """
    delta, plan = 1e-3 / 12, Plan(rounds=100, local_steps=50, batch=128)
    if broken:
        sigma = _calibrated(Privacy(unit="example", delta=delta), 1.0, plan, (6400,))
    else:
        privacy = Privacy(unit="client", delta=delta, trust="local")
        sigma = _calibrated(privacy, 1.0, plan, (6400,) * 12)
    return theory.gdp_epsilon(theory.gaussian_mu(sigma, 100), delta)


@pitfall(6, 0.02)
def delta_of_one_over_units(broken: bool) -> float:
    """Returns the chance that somebody is published outright, each with chance delta."""
    units, trials, delta = 100, 20_000, 1 / 100
    if not broken:
        privacy = Privacy(unit="client", delta=0.01 / units, noise_multiplier=1.0)
        delta = privacy.resolve(SimpleNamespace(sizes=(1,) * units), Plan()).delta
    published = np.random.default_rng(6).binomial(units, delta, trials)
    return float((published > 0).mean())


@pitfall(9, 1.0)
def textbook_sigma(broken: bool) -> float:
    """Returns the true delta of one release at epsilon = 12, in units of the delta meant.

    The mistake uses the textbook's formula where it was never proven.
    """
    sigma = math.sqrt(2 * math.log(1.25 / DELTA)) / 12.0
    if not broken:
        sigma = accounting.noise_multiplier(12.0, DELTA, 1.0, 1)
    return theory.gdp_delta(1 / sigma, 12.0) / DELTA


@pitfall(13, 2.0)
def noise_for_the_expected(broken: bool) -> float:
    """Returns the largest epsilon of 100 clients drawn round by round, where 2 was meant.

    The mistake counts the ten rounds that a client has on average, not all forty.
    """
    rounds, share, steps, q = 40, 0.25, 5, 0.1
    if broken:
        sigma = accounting.noise_multiplier(2.0, DELTA, q, int(rounds * share) * steps, "rdp")
    else:
        plan = Plan(rounds=rounds, local_steps=steps, batch=10, participation=share)
        sigma = _calibrated(Privacy(delta=DELTA), 2.0, plan, (100,))
    most = int(np.random.default_rng(13).binomial(rounds, share, 100).max())
    return accounting.epsilon(((sigma, q, most * steps),), DELTA, "rdp")


@pitfall(14, 1.0)
def shuffled_batches(broken: bool) -> float:
    """Returns what 2 x 20,000 runs of 200 noised steps prove about epsilon, 95 % sure.

    The mistake cuts the examples into batches once. The attacker weighs each step by the chance,
    known to him, that the example is in it: the likelihood ratio.
    """
    runs, steps, sigma, rng, scores = 20_000, 200, 0.8, np.random.default_rng(14), []
    own = np.arange(steps) == steps // 2
    for there in (1, 0):
        member = np.tile(own, (runs, 1)) if broken else rng.random((runs, steps)) < 1 / steps
        chance = own.astype(float) if broken else np.full(steps, 1 / steps)
        seen = there * member + sigma * rng.standard_normal((runs, steps))
        scores.append(np.log1p(chance * np.expm1((2 * seen - 1) / (2 * sigma**2))).sum(1))
    return proved_epsilon(scores[0], scores[1], DELTA)


@pitfall(22, 3.77, "at least")
def central_limit(broken: bool) -> float:
    """Returns the epsilon stated for q = 0.1, sigma = 3, 512 steps, delta = 1e-6."""
    q, sigma, steps, delta = 0.1, 3.0, 512, 1e-6
    if broken:
        return theory.gdp_epsilon(theory.clt_mu(q, sigma, steps), delta)
    return accounting.epsilon(((sigma, q, steps),), delta)


# How it is clipped


def _clip(rows: Rows, clip: float = CLIP) -> Rows:
    """Clips every row over all its tensors and adds up, as the library does; key -> (...)."""
    count = len(next(iter(rows.values())))
    sums, _ = clip_sum(rows, clip, torch.zeros(count, dtype=torch.int64), 1)
    return {key: total[0] for key, total in sums.items()}


def _largest_move(release: Callable[[Rows], Rows], rows: Rows) -> float:
    """Returns how far leaving out one row moves what is released at most, in units of C."""
    count, whole, moves = len(next(iter(rows.values()))), release(rows), []
    for i in range(count):
        part = release({key: x[torch.arange(count) != i] for key, x in rows.items()})
        squares = (float((whole[key] - part[key]).square().sum()) for key in whole)
        moves.append(math.sqrt(sum(squares)))
    return max(moves) / CLIP


@pitfall(3, UP_TO_1)
def clip_of_the_mean(broken: bool) -> float:
    """Returns how far one of 16 examples moves the sum: a huge one against fifteen others."""

    def clip_the_mean(rows: Rows) -> Rows:
        mean = {key: x.sum(0, keepdim=True) / 16 for key, x in rows.items()}
        return {key: 16 * x for key, x in _clip(mean).items()}

    rows = torch.zeros(16, 4, dtype=torch.float64)
    rows[:15, 0], rows[15, 0] = 2.0, -1e4
    return _largest_move(clip_the_mean if broken else _clip, {ONE: rows})


@pitfall(4, UP_TO_1)
def threshold_from_the_batch(broken: bool) -> float:
    """Returns how far one of 17 examples moves the sum, in thresholds; broken: the median norm."""
    rows = torch.zeros(17, 2, dtype=torch.float64)
    rows[:8, 0], rows[8:, 0] = 1.0, 100.0

    def release(rows: Tensor) -> tuple[Tensor, float]:
        clip = float(row_norms({ONE: rows}).quantile(0.5)) if broken else CLIP
        return _clip({ONE: rows}, clip)[ONE], clip

    whole, _ = release(rows)
    parts = [release(rows[torch.arange(17) != i]) for i in range(17)]
    return max(float((whole - part).norm()) / clip for part, clip in parts)


@pitfall(7, UP_TO_1)
def clip_of_each_tensor(broken: bool) -> float:
    """Returns how far one example moves the sum over four tensors, in units of C."""

    def clip_each(rows: Rows) -> Rows:
        return {key: _clip({key: x})[key] for key, x in rows.items()}

    random = torch.Generator().manual_seed(7)
    draws = [9 * torch.randn(5, 3, generator=random, dtype=torch.float64) for _ in range(4)]
    rows = {ParamKey("B", f"layer {i}"): x for i, x in enumerate(draws)}
    return _largest_move(clip_each if broken else _clip, rows)


@pitfall(8, UP_TO_1)
def clip_of_the_weights(broken: bool) -> float:
    """Returns how far a client that trained a little moves a model of norm 3 C, in units of C."""
    start = torch.tensor([3.0, 0.0], dtype=torch.float64) * CLIP
    trained = start + torch.tensor([0.0, 0.1], dtype=torch.float64) * CLIP
    if broken:
        move = _clip({ONE: trained[None]})[ONE] - start
    else:
        move = _clip({ONE: trained[None] - start})[ONE]
    return float(move.norm()) / CLIP


@pitfall(10, UP_TO_1)
def weights_by_size(broken: bool) -> float:
    """Returns how far one of eight clients moves the mean, in the noise's units of C / K."""
    sizes = torch.tensor([400.0, 100, 80, 60, 40, 40, 20, 10], dtype=torch.float64)
    each, everyone = torch.eye(8, dtype=torch.float64), torch.ones(8, dtype=torch.float64)

    def mean(there: Tensor) -> Tensor:
        weights = sizes / sizes.sum() * there if broken else there / 8
        return weights @ (CLIP * each)

    moves = [float((mean(everyone) - mean(everyone - each[k])).norm()) for k in range(8)]
    return max(moves) / (CLIP / 8)


# What gets past the noise


@pitfall(11, 0.93)
def share_of_the_noise(broken: bool) -> float:
    """Returns the epsilon of one of a hundred uploads for whoever looks at it; sigma = 4.

    The mistake adds what is enough for a sum that nobody takes apart.
    """
    trust = "secagg" if broken else "local"
    privacy = Privacy(unit="client", trust=trust, noise_multiplier=4.0, delta=1e-3)
    each = privacy.noise_levels(100, Plan()).each
    assert isinstance(each, float)
    return theory.gdp_epsilon(CLIP / each, 1e-5)


@pitfall(12, UP_TO_1)
def noise_shaped_by_a_pseudo_inverse(broken: bool) -> float:
    """Returns by how many noise deviations the worst allowed change stands out; peer norm 3."""
    peer = torch.diag(torch.tensor([3.0, 1.0, 0.5], dtype=torch.float64))
    shape = (factor_space if broken else product_space)(peer @ peer.mT)
    return float(torch.linalg.matrix_norm(torch.linalg.pinv(shape.noise) @ shape.after, ord=2))


@pitfall(15, 0.0)
def raw_score(broken: bool) -> float:
    """Returns how many released numbers depend on the data although C = 0 lets nothing through.

    Beside the noised sum goes the norm of the raw gradients (broken), or that of the sum.
    """

    def release(rows: Tensor) -> Tensor:
        xi = gaussian_noise({ONE: rows.shape[1:]}, [1.0], Streams(15), [(0, 0, 0)])[ONE][0]
        sent = _clip({ONE: rows}, 0.0)[ONE] + xi
        return torch.cat([sent, (rows if broken else sent).norm().reshape(1)])

    data = (torch.tensor(np.random.default_rng(seed).standard_normal((6, 5))) for seed in (0, 1))
    one, other = map(release, data)
    return float((one != other).sum())


# Bugs in the place of the library's clip, for tests and lesson 12 only. Each has the signature of
# `mechanism.clip_sum`; the ledger of a run with one is uncertified.


def _clips_nothing(rows: Any, clip: float, owner: Any, owners: int, *rest: Any) -> Any:
    """Adds up the rows as they are."""
    return clip_sum(rows, math.inf, owner, owners)


def _clips_the_mean(rows: Any, clip: float, owner: Any, owners: int, *rest: Any) -> Any:
    """Adds up first and clips each owner's sum, as if its mean were one row (pitfall 3)."""
    sums, counts = clip_sum(rows, math.inf, owner, owners)
    scaled = clip * max(1, len(owner)) / owners
    return clip_sum(sums, scaled, torch.arange(owners), owners)[0], counts


def _clips_each_tensor(rows: Any, clip: float, owner: Any, owners: int, *rest: Any) -> Any:
    """Clips every tensor to C and counts one release (pitfall 7)."""
    parts = [clip_sum({key: x}, clip, owner, owners) for key, x in rows.items()]
    sums = {key: x for part, _ in parts for key, x in part.items()}
    return sums, sum((n for _, n in parts), ClipCounts())


def _clips_at_the_median(rows: Any, clip: float, owner: Any, owners: int, *rest: Any) -> Any:
    """Takes the threshold from the batch (pitfall 4)."""
    norms = row_norms(rows)
    norms = norms[norms.isfinite()]
    return clip_sum(rows, float(norms.median()) if len(norms) else clip, owner, owners)


BUGS: dict[str, Callable[..., Any]] = {
    bug.__name__.strip("_").replace("_", " "): bug
    for bug in (_clips_nothing, _clips_the_mean, _clips_each_tensor, _clips_at_the_median)
}
"""Name -> bug. The self-check finds every one (test_lesson_12.py::test_every_bug_is_found)."""
