"""Wrong steps that look sound on ordinary batches are found, sound steps that look like them not.

Every example is a gradient of 20 numbers. A step is made of a signal, a noise and a denominator, of
which one is wrong; the catalogue of mistakes has the common ones.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

import fedlora_lab as fl
from fedlora_lab.review.mistakes import model

NUMBERS = 20
SIGMA = 1.1
MEAN = 8.0
DATA = [(x, 0) for x in np.random.default_rng(0).normal(size=(12, NUMBERS))]
CLAIMS = fl.review.Claims(clip_norm=1.0, noise_multiplier=SIGMA, denominator=MEAN)
REPLACED = replace(CLAIMS, relation="replace", denominator=12.0)
NOT_FINITE = replace(CLAIMS, finite=False)
SAMPLED = replace(CLAIMS, sampling="poisson", sample_rate=0.02, dataset_size=400)
Rows = np.ndarray
"""Gradients, (examples, numbers)."""


def normal(seed, size=NUMBERS):
    return SIGMA * np.random.default_rng(seed).normal(size=size)


def finite(rows):
    return np.nan_to_num(rows, nan=0.0, posinf=0.0, neginf=0.0)


def clipped(rows):
    """Each row at a norm of at most 1; zero where it, or its norm, is not finite."""
    return model.clip({"gradient": rows})["gradient"]


def total(rows, weights=1.0):
    """The sum of clipped rows."""
    return (weights * clipped(rows).T).sum(1)


def stack(examples):
    return np.array([x for x, _ in examples], float).reshape(-1, NUMBERS)


def split(vector):
    """A vector as three tensors."""
    return {"weight": vector[:12].reshape(4, 3), "bias": vector[12:15], "head": vector[15:]}


def step_of(signal=total, noise=normal, denominator=MEAN):
    """A step that sums as ``signal`` does, with this noise."""

    def step(examples, seed):
        sums = signal(stack(examples)) if len(examples) else np.zeros(NUMBERS)
        return {"gradient": (sums + noise(seed)) / denominator}

    return step


sound = step_of()


def in_tensors(examples, seed):
    """A sound step of three tensors."""
    return split(sound(examples, seed)["gradient"])


def unseeded(step):
    """The same step, whose noise is new in every call."""
    calls = iter(range(10**9))
    return lambda examples, seed: step(examples, 10**6 + next(calls))


@dataclass
class Wrong:
    """A step, the checks of which one must call it broken, its claims and options of the review."""

    step: Callable
    checks: set[str]
    claims: fl.review.Claims = CLAIMS
    options: dict = field(default_factory=lambda: {"draws": 16})
    data: list = field(default_factory=lambda: DATA)


# ---- noise


def mirrored(seed):
    noise = normal(seed // 2)
    return noise[::-1] if seed % 2 else noise


def random_signs(seed):
    return np.abs(normal(seed // 2)) * np.random.default_rng(seed + 10**9).choice([-1, 1], NUMBERS)


def half_shared(seed):
    """Ten numbers of which each shares half of its variance with one of ten others."""
    one, other = normal(seed, (2, 10))
    return np.concatenate([one, (one + other) / 2**0.5])


def centred(seed):
    """Noise whose sum is zero: the sum of what leaves is bare."""
    return normal(seed) - normal(seed).mean()


def laplace(seed):
    return SIGMA / 2**0.5 * np.random.default_rng(seed).laplace(size=NUMBERS)


def of_each_tensor(noise):
    """Noise that is drawn tensor by tensor: of a number, a shape and a seed."""

    def step(examples, seed):
        sums = split(total(stack(examples)))
        noised = enumerate(sums.items())
        return {name: (x + noise(i, x.shape, seed)) / MEAN for i, (name, x) in noised}

    return step


MANY = {"draws": 32}
TIED = {
    "mirrored": mirrored,
    "random signs": random_signs,
    "one draw and its negative": lambda seed: np.concatenate([normal(seed, 10), -normal(seed, 10)]),
}
WORKERS = {
    "of another seed": lambda seed: -normal(seed + 5),
    "none": lambda seed: np.full(NUMBERS, np.nan),
}
INDEPENDENCE = {"noise independence"}
NOISE = {
    **{
        name: Wrong(step_of(noise=noise), INDEPENDENCE, options=MANY)
        for name, noise in TIED.items()
    },
    **{
        f"worker {name}": Wrong(
            sound, INDEPENDENCE, options=MANY | {"others": {"b": step_of(noise=noise)}}
        )
        for name, noise in WORKERS.items()
    },
    "tensor and seed added up": Wrong(
        of_each_tensor(lambda i, shape, seed: normal(seed + i, shape)), INDEPENDENCE, options=MANY
    ),
    "centred": Wrong(step_of(noise=centred), INDEPENDENCE, options={"draws": 64}),
    "half of it shared": Wrong(step_of(noise=half_shared), INDEPENDENCE, options={"draws": 64}),
    "Laplace": Wrong(step_of(noise=laplace), {"noise law"}, options={"draws": 64}),
}

# ---- noise or others that are left out beside an example


def skips(test):
    """A step that leaves noise and signal out where a test fails."""

    def step(examples, seed):
        if len(examples) == 0 or test(stack(examples)):
            return sound(examples, seed)
        return {"gradient": np.zeros(NUMBERS)}

    return step


def fits_scaled(rows):
    """Whether gradients stay finite, scaled as a loss scaler does."""
    with np.errstate(all="ignore"):
        return bool(np.isfinite((rows * 2.0**16).astype(np.float32)).all())


def zeroed_sum(rows):
    with np.errstate(all="ignore"):
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        return finite((rows / np.maximum(norms, 1.0)).sum(0))


def overflow_dropped(rows):
    rows = rows[np.isfinite(rows).all(1)]
    return total(rows) if (np.abs(rows) < 1e30).all() else np.zeros(NUMBERS)


def turns_to_nan(rows):
    return rows.T @ (1 / np.maximum(1, np.linalg.norm(rows, axis=1)))


SKIPPED = {"non-finite", "noise size"}
SCALER = skips(fits_scaled)


def bare_beside_nan(examples, seed):
    finite_only = [x for x in examples if np.isfinite(x[0]).all()]
    bare = step_of(noise=lambda seed: 0 * normal(seed))
    return (sound if len(finite_only) == len(examples) else bare)(finite_only, seed)


BESIDE = {
    "a scaler": Wrong(SCALER, SKIPPED),
    "skips small gradients": Wrong(
        skips(lambda rows: bool(np.linalg.norm(total(rows)) > 0.1)), {"noise size"}
    ),
    "skips what is right": Wrong(
        skips(lambda rows: bool((rows[:, 0] > 0).any())), {"noise size"}, REPLACED
    ),
    "the sum is cleaned": Wrong(step_of(zeroed_sum), {"non-finite"}),
    "an overflow drops all": Wrong(step_of(overflow_dropped), {"non-finite"}),
    "no noise beside NaN": Wrong(bare_beside_nan, {"noise size"}),
    "turns to NaN": Wrong(step_of(turns_to_nan), {"non-finite"}, NOT_FINITE),
}

# ---- examples that count or not, as the batch decides


def by_norm(rule):
    def signal(rows):
        with np.errstate(all="ignore"):
            norms = np.linalg.norm(finite(rows), axis=1)
        return total(rows, rule(np.minimum(norms, 1e100)))

    return signal


def clipped_at_the_median(rows):
    limit = min(1.0, np.median(np.linalg.norm(rows, axis=1)))
    return limit * total(rows / limit)


near_median = by_norm(lambda norms: norms <= 1.01 * np.median(norms))
below_median = by_norm(lambda norms: norms <= 3 * np.median(norms))
RULES = {
    "four at least": by_norm(lambda norms: len(norms) >= 4),
    "clipped at the median": clipped_at_the_median,
    "the first counts twice": lambda rows: total(rows) + total(rows[:1]),
    "centred by the batch": lambda rows: total(rows - finite(rows).mean(0)),
}
TOKENS = [[*range(i, i + 2 + 6 * (i % 2))] for i in range(12)]
"""Examples that cannot be scaled."""


def near_median_of_tokens(examples, seed):
    rows = np.random.default_rng(3).normal(size=(30, NUMBERS))
    return step_of(near_median)([(rows[tokens].sum(0), 0) for tokens in examples], seed)


SENSITIVITY = {"sensitivity"}
DECIDED = {
    **{name: Wrong(step_of(rule), SENSITIVITY) for name, rule in RULES.items()},
    "near the median, tokens": Wrong(near_median_of_tokens, SENSITIVITY, data=TOKENS),
    "below the median, replaced": Wrong(
        step_of(below_median, denominator=12.0), SENSITIVITY, REPLACED
    ),
}

# ---- what leaves bare, other denominators, no seed


def divides_by_its_batch(examples, seed):
    return {"gradient": sound(examples, seed)["gradient"] * MEAN / max(1, len(examples))}


def mean_of_its_batch(examples, seed):
    return {"gradient": total(stack(examples)) / max(1, len(examples)) + normal(seed) / MEAN}


def share_clipped(examples, seed):  # the same in every batch of loud examples
    loud = [np.linalg.norm(x) > 1 for x, _ in examples]
    return sound(examples, seed) | {"clipped": np.mean(loud) if loud else 0.0}


def noise_where_there_is_signal(examples, seed):  # as of the rows of an embedding
    rows = np.maximum(stack(examples), 0.0)
    return {"gradient": (total(rows) + normal(seed) * (rows.sum(0) > 0)) / MEAN}


def with_dropout(examples, seed):
    rng = np.random.default_rng(seed)
    rows = stack(examples) * (rng.random((len(examples), NUMBERS)) < 0.5)
    return {"gradient": (total(rows) + SIGMA * rng.normal(size=NUMBERS)) / MEAN}


UNSEEDED = replace(CLAIMS, seeded=False)
OTHERS = {
    "a share of the clipped": Wrong(share_clipped, {"un-noised output"}),
    "a number each": Wrong(
        lambda e, s: sound(e, s) | {"losses": np.zeros(len(e))}, {"un-noised output"}
    ),
    "noise where there is signal": Wrong(noise_where_there_is_signal, {"noise size"}),
    "no empty batches": Wrong(
        lambda e, s: sound(e, 0 * (1 // len(e)) + s), {"empty batch"}, SAMPLED
    ),
    "mean, unseeded": Wrong(unseeded(mean_of_its_batch), SENSITIVITY, UNSEEDED, MANY),
    "skips, unseeded": Wrong(unseeded(SCALER), {"non-finite"}, UNSEEDED, MANY),
}
WRONG = NOISE | BESIDE | DECIDED | OTHERS


@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG)
def test_every_wrong_step_is_found(name):
    """Fault: a check that sees a mistake on ordinary batches only, or in one form of it."""
    wrong = WRONG[name]
    found = fl.review.step(wrong.step, wrong.data, wrong.claims, **wrong.options)
    assert found.broken & wrong.checks, found


# ---- sound steps that look like them


def scaled_one_by_one(rows):
    """A loss scaler as it should be: each example by itself, in half precision."""
    with np.errstate(all="ignore"):
        return total((rows * 2.0**6).astype(np.float16).astype(float) / 2.0**6)


def refuses(rows):
    if not np.isfinite(rows).all():
        raise ValueError("an example is not finite")
    return total(rows)


def rounded_to_a_grid(examples, seed):
    return {"gradient": np.round(sound(examples, seed)["gradient"] / 0.04) * 0.04}


def with_momentum(examples, seed):
    sent = in_tensors(examples, seed)
    return sent | {f"momentum of {name}": 0.9 * x for name, x in sent.items()}


SIGNS = np.random.default_rng(0)
"""Of an augmentation that all examples share: how the batch varies is not its noise."""
FIXED = replace(REPLACED, denominator=MEAN)
ALIKE = {
    "half precision": (step_of(scaled_one_by_one), NOT_FINITE),
    "refuses what is not finite": (step_of(refuses), NOT_FINITE),
    "replaced": (step_of(denominator=12.0), replace(REPLACED, finite=False)),
    "rounded to a grid": (rounded_to_a_grid, CLAIMS),
    "momentum beside it": (with_momentum, CLAIMS),
    "dropout": (with_dropout, CLAIMS),
    "another draw for another size": (lambda e, s: sound(e, s + 10**6 * len(e)), CLAIMS),
    "unseeded": (unseeded(in_tensors), UNSEEDED),
    "a sign for the batch": (
        unseeded(step_of(lambda rows: SIGNS.choice([-1, 1]) * total(rows))),
        UNSEEDED,
    ),
    "batches of one public size": (divides_by_its_batch, FIXED),
}
OTHER = {"b": step_of(noise=lambda seed: normal(seed + 10**8))}
"""A worker whose noise is its own."""


@pytest.mark.slow
@pytest.mark.parametrize("name", ALIKE)
def test_a_sound_step_that_looks_like_a_wrong_one_is_not_blamed(name):
    """Fault: rounding, chance of a forward pass or a second copy taken for a mistake."""
    step, claims = ALIKE[name]
    found = fl.review.step(step, DATA, claims, others=OTHER, draws=32)
    assert found.sound, found
    if not claims.finite:
        assert found["non-finite"].verdict == "sound"
