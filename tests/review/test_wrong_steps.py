"""Wrong steps that look sound on ordinary batches are found, sound steps that look like them not.

Every example is a gradient of 20 numbers. A step is made of a signal, a noise and a denominator, of
which one is wrong; the catalogue of mistakes has the common ones.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from gradient_steps import (
    CLAIMS,
    DATA,
    MEAN,
    NOT_FINITE,
    NUMBERS,
    REPLACED,
    SAMPLED,
    SIGMA,
    UNSEEDED,
    finite,
    in_tensors,
    normal,
    sound,
    split,
    stack,
    step_of,
    total,
    unseeded,
)

import dp_review


@dataclass
class Wrong:
    """A step, the checks of which one must call it broken, its claims and options of the review."""

    step: Callable
    checks: set[str]
    claims: dp_review.Claims = CLAIMS
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
}

# ---- noise that is drawn again, of another law, or smaller in one place


def from_a_pool(seed):
    return normal(np.random.default_rng(seed).integers(200))


def truncated(seed):
    """Normal numbers up to two standard deviations, of the claimed variance."""
    drawn = np.random.default_rng(seed).normal(size=8 * NUMBERS)
    return SIGMA / 0.8796 * drawn[np.abs(drawn) < 2][:NUMBERS]


def one_factor(seed):
    return normal(seed) * np.exp(0.3 * np.random.default_rng(seed + 10**9).normal())


def two_sizes(seed):
    """Noise of the claimed variance, now larger and now smaller by a fair coin for each call."""
    return normal(seed) * np.random.default_rng(seed + 10**9).choice([0.6, 1.28])


def third_of_one(seed):
    return normal(seed) * np.where(np.arange(NUMBERS) == 7, 1 / 3, 1.0)


def a_little_shared(i, shape, seed):
    """Tensors that share a tenth of their variance."""
    own = normal((seed, i), shape)
    return 0.9**0.5 * own + 0.1**0.5 * normal((seed, 9), 12)[: own.size].reshape(shape)


def of_the_data(change):
    """A step whose noise is changed by what is in the batch."""

    def step(examples, seed):
        rows = finite(stack(examples))
        return {"gradient": (total(rows) + change(rows, normal(seed))) / MEAN}

    return step


def orthogonal(rows, noise):
    """Noise that has no part along the sum that it should hide."""
    away = total(rows)
    return noise - away * (away @ noise) / max(1e-12, away @ away)


def off_the_first(rows, noise):
    return orthogonal(rows[:1], noise) if len(rows) else noise


def halves_where_one_kind_is_absent(rows, noise):
    return noise * (0.5 if len(rows) and (rows[:, 0] > 0).all() else 1.0)


def halves_in_one_number(rows, noise):
    quiet = np.arange(NUMBERS) == 3
    return np.where(quiet & bool(len(rows) and (rows[:, 1] < 0).all()), noise / 2, noise)


LONG = {"draws": 64}
NOISE_SIZE = {"noise size"}
NOISE_AND_DATA = {"noise and data"}
AGAIN = {
    "from a pool": Wrong(step_of(noise=from_a_pool), INDEPENDENCE, options=LONG),
    "truncated": Wrong(step_of(noise=truncated), {"noise law"}, options=LONG),
    "one factor a call": Wrong(step_of(noise=one_factor), {"noise law"}, options=LONG),
    "two sizes": Wrong(step_of(noise=two_sizes), {"noise law"}),
    "a third of one number's": Wrong(step_of(noise=third_of_one), NOISE_SIZE, options=LONG),
    "shared a little": Wrong(of_each_tensor(a_little_shared), INDEPENDENCE, options={"draws": 400}),
    "orthogonal to the sum": Wrong(of_the_data(orthogonal), NOISE_AND_DATA, options=MANY),
    "orthogonal to the first": Wrong(of_the_data(off_the_first), NOISE_AND_DATA, options=MANY),
    "halves where a kind is absent": Wrong(
        of_the_data(halves_where_one_kind_is_absent), NOISE_AND_DATA
    ),
    "halves in one number": Wrong(of_the_data(halves_in_one_number), NOISE_AND_DATA),
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


SKIPPED = {"non-finite", "noise and data"}
SCALER = skips(fits_scaled)


def bare_beside_nan(examples, seed):
    finite_only = [x for x in examples if np.isfinite(x[0]).all()]
    bare = step_of(noise=lambda seed: 0 * normal(seed))
    return (sound if len(finite_only) == len(examples) else bare)(finite_only, seed)


BESIDE = {
    "a scaler": Wrong(SCALER, SKIPPED),
    "skips small gradients": Wrong(
        skips(lambda rows: bool(np.linalg.norm(total(rows)) > 0.1)), NOISE_AND_DATA
    ),
    "skips what is right": Wrong(
        skips(lambda rows: bool((rows[:, 0] > 0).any())), NOISE_AND_DATA, REPLACED
    ),
    "the sum is cleaned": Wrong(step_of(zeroed_sum), {"non-finite"}),
    "an overflow drops all": Wrong(step_of(overflow_dropped), {"non-finite"}),
    "no noise beside NaN": Wrong(bare_beside_nan, NOISE_AND_DATA),
    "turns to NaN": Wrong(step_of(turns_to_nan), {"non-finite"}, NOT_FINITE),
}

# ---- examples that count or not, as the batch decides


def by_norm(rule):
    def signal(rows):
        with np.errstate(all="ignore"):
            norms = np.linalg.norm(finite(rows), axis=1)
        return total(rows, rule(np.minimum(norms, 1e100)))

    return signal


def over_the_largest(rows):
    """A statistic of the batch that is taken before the clip."""
    with np.errstate(all="ignore"):
        norms = np.linalg.norm(finite(rows), axis=1)
    return total(2 * finite(rows) / np.clip(norms.max(initial=1.0), 1.0, 1e100))


def kinds_in_balance(rows):
    """Weights before the clip by how often a kind of example is in the batch."""
    kind = rows[:, 0] > 0
    share = np.where(kind, np.mean(kind), np.mean(~kind))
    return total(0.1 * rows / np.maximum(share, 1e-9)[:, None])


near_median = by_norm(lambda norms: norms <= 1.01 * np.median(norms))
below_median = by_norm(lambda norms: norms <= 3 * np.median(norms))
RULES = {
    "four at least": by_norm(lambda norms: len(norms) >= 4),
    "the first counts twice": lambda rows: total(rows) + total(rows[:1]),
    "over the largest of the batch": over_the_largest,
    "kinds in balance": kinds_in_balance,
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


OTHERS = {
    "a share of the clipped": Wrong(share_clipped, {"un-noised output"}),
    "the seed, scaled": Wrong(lambda e, s: sound(e, s) | {"id": s / 2**31}, INDEPENDENCE),
    "a generator's state": Wrong(
        lambda e, s: sound(e, s) | {"state": np.random.MT19937(s).state["state"]["key"]},
        INDEPENDENCE,
    ),
    "a number each": Wrong(
        lambda e, s: sound(e, s) | {"losses": np.zeros(len(e))}, {"un-noised output"}
    ),
    "noise where there is signal": Wrong(noise_where_there_is_signal, NOISE_AND_DATA),
    "no empty batches": Wrong(
        lambda e, s: sound(e, 0 * (1 // len(e)) + s), {"empty batch"}, SAMPLED
    ),
    "mean, unseeded": Wrong(unseeded(mean_of_its_batch), SENSITIVITY, UNSEEDED, MANY),
    "skips, unseeded": Wrong(unseeded(SCALER), {"non-finite"}, UNSEEDED, MANY),
}
WRONG = NOISE | AGAIN | BESIDE | DECIDED | OTHERS
HIDES_NOTHING = INDEPENDENCE | NOISE_AND_DATA | {"noise law", "un-noised output", "non-finite"}
"""Checks of which each, broken, leaves no finite epsilon."""


@pytest.mark.every(2)
@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG)
def test_every_wrong_step_is_found(name):
    """Fault: a check that sees a mistake on ordinary batches only, or in one form of it; a finite
    epsilon of noise that follows the data, or that somebody can draw again."""
    wrong = WRONG[name]
    claims = replace(wrong.claims, steps=1, delta=1e-5)
    found = dp_review.step(wrong.step, wrong.data, claims, **wrong.options)
    assert found.broken & wrong.checks, found
    assert not wrong.checks & HIDES_NOTHING or found.epsilon == np.inf, found


# ---- sound steps that look like them


def scaled_one_by_one(rows):
    """A loss scaler as it should be: each example by itself, in half precision."""
    with np.errstate(all="ignore"):
        return total((rows * 2.0**6).astype(np.float16).astype(float) / 2.0**6)


def refuses(rows):
    if not np.isfinite(rows).all():
        raise ValueError("an example is not finite")
    return total(rows)


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


@pytest.mark.every(2)
@pytest.mark.slow
@pytest.mark.parametrize("name", ALIKE)
def test_a_sound_step_that_looks_like_a_wrong_one_is_not_blamed(name):
    """Fault: rounding, chance of a forward pass or a second copy taken for a mistake."""
    step, claims = ALIKE[name]
    found = dp_review.step(step, DATA, claims, others=OTHER, draws=32)
    assert found.sound, found
    if not claims.finite:
        assert found["non-finite"].verdict == "sound"


# ---- what is changed after the noise, or has more of it


def after(change):
    """A sound step whose noised sum is changed."""
    return lambda examples, seed: {"gradient": change(sound(examples, seed)["gradient"])}


def quieter(claims, step):
    """A step of three tensors of which each has a rate of its own after the noise."""
    rates = {"weight": 1.0, "bias": 0.5, "head": 0.3}
    return lambda e, s: {name: rates[name] * x for name, x in step(e, s).items()}, claims


def anticorrelated(seed):
    return normal(seed) - 0.4 * normal(seed - 1)


DEVIATION = SIGMA / MEAN
MAY_BE_SOUND = {
    "signs": (after(np.sign), CLAIMS),
    "cut at a deviation": (after(lambda x: np.clip(x, -DEVIATION, DEVIATION)), CLAIMS),
    "the largest only": (after(lambda x: x * (np.abs(x) >= np.sort(np.abs(x))[-6])), CLAIMS),
    "of length 1": (after(lambda x: x / np.linalg.norm(x)), CLAIMS),
    "on a coarse grid": (after(lambda x: np.round(x / (2 * DEVIATION)) * 2 * DEVIATION), CLAIMS),
    "a rate for each tensor": quieter(CLAIMS, in_tensors),
    "anticorrelated": (step_of(noise=anticorrelated), CLAIMS),
    "half as much noise again": (step_of(noise=lambda s: 1.5 * normal(s)), CLAIMS),
}


@pytest.mark.every(2)
@pytest.mark.slow
@pytest.mark.parametrize("name", MAY_BE_SOUND)
def test_what_may_be_sound_is_told_apart_from_what_is_broken(name):
    """Fault: post-processing, or more noise than claimed, that is blamed without a word."""
    step, claims = MAY_BE_SOUND[name]
    found = dp_review.step(step, DATA, replace(claims, steps=1, delta=1e-5))
    assert found.sound and found.not_as_claimed, found
    assert "may be sound" in found.summary and "of what was looked at" not in found.summary


@pytest.mark.every(2)
@pytest.mark.slow
@pytest.mark.parametrize("deviations", [0.07, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("draws", [16, 64])
def test_a_sound_step_that_is_rounded_after_the_noise_is_not_blamed(deviations, draws):
    """Fault: values that agree by chance, on a grid, are taken for values without noise."""
    grid = deviations * DEVIATION
    rounded = after(lambda x: np.round(x / grid) * grid)
    blamed = [dp_review.step(rounded, DATA, CLAIMS, seed=s, draws=draws).broken for s in range(4)]
    assert not any(blamed), blamed


# ---- steps that fail


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError


def fails_on(test, error):
    """A sound step that raises on some batches."""

    def step(examples, seed):
        if test(examples):
            raise error
        return sound(examples, seed)

    return step


def holds(number):
    return lambda examples: any(x is DATA[number][0] for x, _ in examples)


FAILING = {
    "an example": (holds(3), ZeroDivisionError("float division by zero"), "example 3 alone"),
    "an example of no batch": (holds(11), StopIteration(), "example 11 alone"),
    "a batch of one": (lambda e: len(e) == 1, SystemExit(2), "alone is enough"),
    "copies": (lambda e: len(e) > 3 and len({id(x) for x, _ in e}) == 1, Unprintable(), "example"),
    "large numbers": (
        lambda e: any(np.abs(x).max() > 1e5 for x, _ in e),
        OverflowError("too large"),
        "scaled by 1e6",
    ),
    "every batch": (lambda e: True, KeyError("weight"), "example 0 alone"),
}


@pytest.mark.slow
@pytest.mark.parametrize("seeded", [True, False])
@pytest.mark.parametrize("name", FAILING)
def test_a_step_that_fails_is_a_finding_that_names_the_example(name, seeded):
    """Fault: an error of the step that ends the review."""
    test, error, words = FAILING[name]
    claims = replace(CLAIMS, seeded=seeded, steps=1, delta=1e-5)
    found = dp_review.step(fails_on(test, error), DATA, claims, batch=8, draws=16)
    assert found.broken == {"failure"} and found.epsilon == np.inf, found
    assert words in found["failure"].words and type(error).__name__ in found["failure"].words


def test_an_empty_batch_that_is_refused_is_judged_by_its_own_check():
    """Fault: a step that is never given an empty batch, blamed for failing on one."""
    step = fails_on(lambda examples: not examples, ValueError("nothing here"))
    assert dp_review.step(step, DATA, CLAIMS, draws=16).sound
    assert dp_review.step(step, DATA, SAMPLED, draws=16).broken == {"empty batch"}


# ---- what was not looked at


def test_a_review_says_what_it_did_not_look_at():
    """Fault: "really given" is said of what so few calls cannot show."""
    claims = replace(CLAIMS, steps=1, delta=1e-5)
    few, many = (dp_review.step(sound, DATA, claims, draws=draws) for draws in (16, 200))
    assert "ε of what was looked at" in few.summary and "Not looked at" in str(few)
    assert "failure" in few.looked_at and "frozen" not in few.looked_at
    assert few["frozen"].verdict == "cannot tell"
    assert "repeats after 16 calls" in str(few) and "repeats after 200 calls" in str(many)
    assert few.limitations != many.limitations


# ---- noise that the data choose


def number_by_number(rows, noise):
    """In each number the one of two draws that lies on the other side than the sum."""
    away = total(rows) if len(rows) else np.zeros(NUMBERS)
    other = np.roll(noise, 1)
    return np.where(noise * away <= other * away, noise, other)


def drawn_again(rows, noise):
    """A draw that hides much is replaced by another one."""
    away = total(rows) if len(rows) else np.zeros(NUMBERS)
    return np.roll(noise, 3) if noise @ away > 1.5 * np.linalg.norm(away) else noise


CHOSEN = [number_by_number, drawn_again]


@pytest.mark.slow
@pytest.mark.parametrize("choose", CHOSEN)
def test_noise_that_the_data_choose_is_found(choose):
    """Fault: two draws of the right law, of which the data take one. As a whole, and turned round:
    test_a_wrong_step_of_another_hand_is_found."""
    found = dp_review.step(of_the_data(choose), DATA, CLAIMS)
    assert "noise and data" in found.broken, found


def test_noise_of_each_batch_is_named_where_the_choice_cannot_be_seen():
    """Fault: a step called sound whose noise may be chosen by the data, without that word."""
    for step, named in ((ALIKE["another draw for another size"][0], True), (sound, False)):
        found = dp_review.step(step, DATA, CLAIMS, draws=16)
        assert found.sound and ("Noise that the data choose" in str(found)) == named, found
