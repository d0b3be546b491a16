"""Numbers of mistakes that no single step shows: learning, reporting, seeds and sampling.

Each function returns one number of a small mechanism, with the mistake (``broken``) or without it,
and the same number every time. edges.toml names them, and the line between the two.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedlora_course.lesson_02.theory import deviation_matrix
from fedlora_course.lesson_12.bounds import threshold_lower_bound
from fedlora_lab._utils.random_streams import Streams
from fedlora_lab.methods.filters import binomial

DELTA = 1e-5


def best_threshold_bound(
    inside: np.ndarray,
    outside: np.ndarray,
    delta: float,
    significance: float,
    thresholds: Sequence[float],
) -> float:
    """Returns the largest bound over several thresholds, corrected for their number (Bonferroni).

    Args:
        inside, outside: (n,) scores of independent runs with and without the canary.
        delta, significance: see `threshold_lower_bound`.
        thresholds: fixed before these scores were seen.

    Guarantees: test_lesson_12.py::test_a_bound_errs_as_often_as_it_says.
    """
    share = significance / len(thresholds)
    bounds = []
    for t in thresholds:
        alarms = int((outside > t).sum())
        misses = int((inside <= t).sum())
        bounds.append(
            threshold_lower_bound(alarms, len(outside), misses, len(inside), delta, share)
        )
    return max(bounds)


def delta_of_one_over_units(broken: bool) -> float:
    units = 100
    delta = (1 if broken else 0.01) / units
    published = np.random.default_rng(6).binomial(units, delta, 20_000)
    return float((published > 0).mean())


def shuffled_batches(broken: bool) -> float:
    runs, steps, sigma, scores = 20_000, 200, 0.8, []
    rng = np.random.default_rng(14)
    its_step = np.arange(steps) == steps // 2
    chance = its_step.astype(float) if broken else np.full(steps, 1 / steps)
    for present in (1, 0):
        member = np.tile(its_step, (runs, 1)) if broken else rng.random((runs, steps)) < 1 / steps
        seen = present * member + sigma * rng.standard_normal((runs, steps))
        # The likelihood ratio: each step by the chance, known to all, that the example is in it.
        scores.append(np.log1p(chance * np.expm1((2 * seen - 1) / (2 * sigma**2))).sum(1))
    return best_threshold_bound(
        *scores, delta=DELTA, significance=0.05, thresholds=(0.1, 0.3, 1.0, 3.0, 3.5)
    )


def alternation_begins_with_a(broken: bool) -> float:
    rng = np.random.default_rng(16)
    gradient = rng.standard_normal((6, 8))  # of the product BA
    A = rng.standard_normal((2, 8))
    B = np.zeros((6, 2))
    return float(np.linalg.norm(B.T @ gradient if broken else gradient @ A.T))


def smoothed_step_taken_twice(broken: bool) -> float:
    random = torch.Generator().manual_seed(18)
    noised = 1 + torch.randn(32, 2, generator=random, dtype=torch.float64)
    step = binomial(5)(noised, "B") + (noised if broken else 0.0)
    return float(step.mean() / noised.mean())  # the filter keeps the mean


def norm_by_a_bound(broken: bool) -> float:
    rng = np.random.default_rng(19)
    inputs = rng.standard_normal((128, 768))  # of 128 tokens
    errors = rng.standard_normal((128, 768))
    norm = np.linalg.norm(errors.T @ inputs)
    # Cauchy-Schwarz over the tokens.
    bound = np.linalg.norm(inputs) * np.linalg.norm(errors)
    return float((bound if broken else norm) / norm)


def unscaled_residual(broken: bool) -> float:
    rng = np.random.default_rng(20)
    B = rng.standard_normal((5, 8, 2))
    A = rng.standard_normal((5, 2, 8))
    scaling = 4.0
    mean = scaling * (B @ A).mean(0)
    residual = -deviation_matrix(B, A) * (1.0 if broken else scaling)
    server = scaling * B.mean(0) @ A.mean(0) + residual
    return float(np.linalg.norm(server - mean) / np.linalg.norm(mean))


def clients_in_one_model(broken: bool) -> float:
    rng = np.random.default_rng(21)
    x = rng.standard_normal((3, 8, 3))
    y = rng.standard_normal((3, 8, 2))

    def trained(start: np.ndarray, k: int) -> np.ndarray:
        return start - 0.1 * (x[k] @ start.T - y[k]).T @ x[k] / 8

    zero = np.zeros((2, 3))
    # The last client, after one or another first client.
    ends = [trained(trained(zero, first) if broken else zero, 2) for first in (0, 1)]
    return float(np.linalg.norm(ends[0] - ends[1]) / np.linalg.norm(ends[0]))


def best_round(broken: bool) -> float:
    curves = np.random.default_rng(24).binomial(100, 0.8, (1000, 20)) / 100
    reported = curves.max(1) if broken else curves[:, -1]
    return 100 * (float(reported.mean()) - 0.8)


def best_of_twenty(broken: bool) -> float:
    rng = np.random.default_rng(27)
    scores = [mean + rng.standard_normal((20_000, 20)) for mean in (1.0, 0.0)]  # each is 1-GDP
    shown = [x.max(1) if broken else x[:, 0] for x in scores]
    return best_threshold_bound(
        *shown, delta=DELTA, significance=0.05, thresholds=(1.0, 1.5, 3.0, 3.5)
    )


def published_seed(broken: bool) -> float:
    ours, theirs = (Streams(25 if broken else None) for _ in range(2))
    released = 0.5 + ours.normal((100_000,), "noise", 0)
    guess = released - theirs.normal((100_000,), "noise", 0)
    # Rounded, for without a seed no two measurements are equal.
    return round(float((guess - 0.5).square().mean().sqrt()), 1)


def floating_point_noise(broken: bool) -> float:
    def release(value: float, noise: Tensor) -> Tensor:
        noised = torch.tensor(value, dtype=torch.float32) + noise
        # Rounding to a grid closes this hole, and proves nothing about others.
        return noised if broken else torch.round(noised * 1024) / 1024

    seen = release(0.0, Streams(26).normal((100_000,), "noise", 0))
    return float((release(1.0, seen - 1.0) != seen).float().mean())


def one_integer_for_two_purposes(broken: bool) -> float:
    streams = (Streams(0).numpy(purpose) for purpose in ("pretraining", "adapter"))
    generators = [np.random.default_rng(0) for _ in range(2)] if broken else streams
    first, second = (generator.standard_normal(4096) for generator in generators)
    return abs(float(np.corrcoef(first, second)[0, 1]))


def random_factor_as_noise(broken: bool) -> float:
    runs, rank, scores = 20_000, 2, []
    rng = np.random.default_rng(31)
    inputs, errors = rng.standard_normal((2, 6, 8))  # of six examples; products are gradients
    # The direction of the outputs that only the first example's error reaches.
    direction = np.linalg.svd(errors[1:])[2][-1]
    for first in (0, 1):  # with the first example, and without it
        A = rng.standard_normal((runs, rank, 8))  # drawn anew for each step, and kept secret
        projected = inputs[first:] @ A.swapaxes(1, 2)
        norms = np.linalg.norm(errors[first:], axis=1) * np.linalg.norm(projected, axis=2)
        B = errors[first:].T @ (projected / np.maximum(1, norms)[:, :, None])
        noise = 0.0 if broken else rng.standard_normal(B.shape)
        scores.append(np.linalg.norm(direction @ ((B + noise) @ A), axis=1))
    return best_threshold_bound(
        *scores, delta=DELTA, significance=0.05, thresholds=(1e-9, 1.0, 2.0, 4.0)
    )
