"""Wrong steps that look sound on ordinary batches are found, sound steps that look like them not.

Every example is a gradient of 20 numbers. A step is made of a signal, a noise and a denominator, of
which one is wrong; the catalogue of mistakes has the common ones.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import NamedTuple

import numpy as np
import pytest
import torch
from gradient_steps import (
    CLAIMS,
    DATA,
    MEAN,
    NOT_FINITE,
    NUMBERS,
    SAMPLED,
    SIGMA,
    UNSEEDED,
    clipped,
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


class Wrong(NamedTuple):
    """A step, the checks of which one must call it broken, its claims, data, and options."""

    step: Callable
    checks: set[str]
    claims: dp_review.Claims
    data: list
    options: dict


WRONG: dict[str, Wrong] = {}
SENSITIVITY = "sensitivity"
SIZE = "noise size"
FOLLOWS = "noise and data"
TIED = "noise independence"
LAW = "noise law"
NOT_FINITE_DATA = "non-finite"


def wrong(*checks, claims=CLAIMS, data=DATA, **options):
    """Adds a step to those of which each must be found."""

    def add(step):
        name = step.__name__.replace("_", " ")
        WRONG[name] = Wrong(step, {*checks}, claims, data, {"draws": 16} | options)
        return step

    return add


def noised(noise):
    """The sound step with this noise, of a seed."""
    return wraps(noise)(step_of(noise=noise))


def summed(signal):
    """The sound step of which this is the sum, of rows."""
    return wraps(signal)(step_of(signal))


# ---- noise


@wrong(TIED, draws=32)
@noised
def mirrored(seed):
    noise = normal(seed // 2)
    return noise[::-1] if seed % 2 else noise


@wrong(TIED, draws=32)
@noised
def random_signs(seed):
    return np.abs(normal(seed // 2)) * np.random.default_rng(seed + 10**9).choice([-1, 1], NUMBERS)


@wrong(TIED, draws=64)
@noised
def half_shared(seed):
    """Ten numbers of which each shares half of its variance with one of ten others."""
    one, other = normal(seed, (2, 10))
    return np.concatenate([one, (one + other) / 2**0.5])


@wrong(TIED, draws=64)
@noised
def centred(seed):
    """Noise whose sum is zero: the sum of what leaves is bare."""
    return normal(seed) - normal(seed).mean()


def beside_worker(noise):
    """Options by which the step is held against a worker with this noise."""
    return {"draws": 32, "others": {"b": step_of(noise=noise)}}


@wrong(TIED, **beside_worker(lambda seed: -normal(seed + 5)))
def worker_of_another_seed(examples, seed):
    return sound(examples, seed)


@wrong(TIED, **beside_worker(lambda seed: np.full(NUMBERS, np.nan)))
def worker_without_a_number(examples, seed):
    return sound(examples, seed)


def of_each_tensor(noise):
    """Noise that is drawn tensor by tensor: of a number, a shape and a seed."""

    @wraps(noise)
    def step(examples, seed):
        sums = enumerate(split(total(stack(examples))).items())
        return {name: (x + noise(i, x.shape, seed)) / MEAN for i, (name, x) in sums}

    return step


# ---- noise that is drawn again, of another law, or smaller in one place


@wrong(TIED, draws=64)
@noised
def from_a_pool(seed):
    return normal(np.random.default_rng(seed).integers(200))


@wrong(LAW, draws=64)
@noised
def truncated(seed):
    """Normal numbers up to two standard deviations, of the claimed variance."""
    drawn = np.random.default_rng(seed).normal(size=8 * NUMBERS)
    return SIGMA / 0.8796 * drawn[np.abs(drawn) < 2][:NUMBERS]


@wrong(LAW, draws=64)
@noised
def one_factor_a_call(seed):
    return normal(seed) * np.exp(0.3 * np.random.default_rng(seed + 10**9).normal())


@wrong(SIZE, draws=64)
@noised
def a_third_of_one_number(seed):
    return normal(seed) * np.where(np.arange(NUMBERS) == 7, 1 / 3, 1.0)


@wrong(TIED, draws=400)
@of_each_tensor
def shared_a_little(i, shape, seed):
    """Tensors that share a tenth of their variance."""
    own = normal((seed, i), shape)
    return 0.9**0.5 * own + 0.1**0.5 * normal((seed, 9), 12)[: own.size].reshape(shape)


def of_the_data(change):
    """A step whose noise is changed by what is in the batch."""

    @wraps(change)
    def step(examples, seed):
        rows = finite(stack(examples))
        return {"gradient": (total(rows) + change(rows, normal(seed))) / MEAN}

    return step


def without_part(noise, away):
    return noise - away * (away @ noise) / max(1e-12, away @ away)


@wrong(FOLLOWS, draws=32)
@of_the_data
def orthogonal_to_the_sum(rows, noise):
    """Noise that has no part along the sum that it should hide."""
    return without_part(noise, total(rows))


@wrong(FOLLOWS)
@of_the_data
def halves_in_one_number(rows, noise):
    quiet = np.arange(NUMBERS) == 3
    return np.where(quiet & bool(len(rows) and (rows[:, 1] < 0).all()), noise / 2, noise)


@wrong(FOLLOWS, draws=64)
@of_the_data
def drawn_again(rows, noise):
    """A draw that hides much is replaced by another one."""
    away = total(rows)
    return np.roll(noise, 3) if noise @ away > 1.5 * np.linalg.norm(away) else noise


@wrong(FOLLOWS)
@of_the_data
def in_the_span_of_the_rows(rows, noise):
    _, sizes, directions = np.linalg.svd(clipped(rows), full_matrices=False)
    directions = directions[sizes > 1e-9]
    return directions.T @ (directions @ noise) if len(rows) else noise


# ---- noise or others that are left out beside an example


def skips(test):
    """A step that leaves noise and signal out where a test fails."""

    @wraps(test)
    def step(examples, seed):
        if len(examples) == 0 or test(stack(examples)):
            return sound(examples, seed)
        return {"gradient": np.zeros(NUMBERS)}

    return step


@wrong(NOT_FINITE_DATA, FOLLOWS)
@skips
def a_scaler(rows):
    """Whether gradients stay finite, scaled as a loss scaler does."""
    with np.errstate(all="ignore"):
        return bool(np.isfinite((rows * 2.0**16).astype(np.float32)).all())


@wrong(FOLLOWS)
@skips
def skips_small_gradients(rows):
    return bool(np.linalg.norm(total(rows)) > 0.1)


@wrong(NOT_FINITE_DATA)
@summed
def the_sum_is_cleaned(rows):
    with np.errstate(all="ignore"):
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        return finite((rows / np.maximum(norms, 1.0)).sum(0))


@wrong(NOT_FINITE_DATA)
@summed
def an_overflow_drops_all(rows):
    rows = rows[np.isfinite(rows).all(1)]
    return total(rows) if (np.abs(rows) < 1e30).all() else np.zeros(NUMBERS)


@wrong(FOLLOWS)
def no_noise_beside_nan(examples, seed):
    finite_only = [x for x in examples if np.isfinite(x[0]).all()]
    bare = step_of(noise=lambda seed: 0 * normal(seed))
    return (sound if len(finite_only) == len(examples) else bare)(finite_only, seed)


@wrong(NOT_FINITE_DATA, claims=NOT_FINITE)
@summed
def turns_to_nan(rows):
    return rows.T @ (1 / np.maximum(1, np.linalg.norm(rows, axis=1)))


# ---- examples that count or not, as the batch decides


def by_norm(rule):
    """The sum of rows whose weights this rule makes of all norms."""

    @wraps(rule)
    def signal(rows):
        with np.errstate(all="ignore"):
            norms = np.linalg.norm(finite(rows), axis=1)
        return total(rows, rule(np.minimum(norms, 1e100)))

    return signal


@wrong(SENSITIVITY)
@summed
@by_norm
def four_at_least(norms):
    return len(norms) >= 4


@wrong(SENSITIVITY)
@summed
def the_first_counts_twice(rows):
    return total(rows) + total(rows[:1])


@wrong(SENSITIVITY)
@summed
def kinds_in_balance(rows):
    """Weights before the clip by how often a kind of example is in the batch."""
    kind = rows[:, 0] > 0
    share = np.where(kind, np.mean(kind), np.mean(~kind))
    return total(0.1 * rows / np.maximum(share, 1e-9)[:, None])


@wrong(SENSITIVITY)
@summed
def scaled_to_the_clip_norm(rows):
    return total(rows) / max(1e-12, np.linalg.norm(total(rows)))


@wrong(SENSITIVITY)
def unclipped_in_one_call_of_five(examples, seed):
    rows = finite(stack(examples))
    kept = rows if np.random.default_rng(seed + 10**9).random() < 0.2 else clipped(rows)
    return {"gradient": (kept.sum(0) + normal(seed)) / MEAN}


@wrong(SENSITIVITY, claims=replace(CLAIMS, clip_norm=1e-4))
def norms_in_half_precision(examples, seed):  # squares below 6e-8 are zero
    rows = finite(stack(examples))
    with np.errstate(all="ignore"):
        squares = np.square(rows.astype(np.float16)).sum(1, dtype=np.float32)
    factors = np.minimum(1.0, 1e-4 / np.maximum(np.sqrt(squares), 1e-12))
    return {"gradient": (factors @ rows + 1e-4 * normal(seed)) / MEAN}


TOKENS = [[*range(i, i + 2 + 6 * (i % 2))] for i in range(12)]
"""Examples that cannot be scaled."""


@wrong(SENSITIVITY, data=TOKENS)
def near_the_median_of_tokens(examples, seed):
    rows = np.random.default_rng(3).normal(size=(30, NUMBERS))
    near = by_norm(lambda norms: norms <= 1.01 * np.median(norms))
    return step_of(near)([(rows[tokens].sum(0), 0) for tokens in examples], seed)


# ---- what leaves bare, other denominators, no seed


@wrong("un-noised output")
def a_share_of_the_clipped(examples, seed):  # the same in every batch of loud examples
    loud = [np.linalg.norm(x) > 1 for x, _ in examples]
    return sound(examples, seed) | {"clipped": np.mean(loud) if loud else 0.0}


@wrong(TIED)
def the_seed_scaled(examples, seed):
    return sound(examples, seed) | {"id": seed / 2**31}


@wrong(TIED)
def a_state_of_a_generator(examples, seed):
    return sound(examples, seed) | {"state": np.random.MT19937(seed).state["state"]["key"]}


@wrong("un-noised output")
def a_number_each(examples, seed):
    return sound(examples, seed) | {"losses": np.zeros(len(examples))}


@wrong("empty batch", claims=SAMPLED)
def no_empty_batches(examples, seed):
    return sound(examples, 0 * (1 // len(examples)) + seed)


@wrong(SENSITIVITY, claims=UNSEEDED, draws=32)
@unseeded
def mean_unseeded(examples, seed):
    return {"gradient": total(stack(examples)) / max(1, len(examples)) + normal(seed) / MEAN}


@wrong(NOT_FINITE_DATA, claims=UNSEEDED, draws=32)
@unseeded
def scaler_unseeded(examples, seed):
    return a_scaler(examples, seed)


def with_dropout(examples, seed):
    rng = np.random.default_rng(seed)
    rows = stack(examples) * (rng.random((len(examples), NUMBERS)) < 0.5)
    return {"gradient": (total(rows) + SIGMA * rng.normal(size=NUMBERS)) / MEAN}


HIDES_NOTHING = {TIED, FOLLOWS, LAW, "un-noised output", NOT_FINITE_DATA}
"""Checks of which each, broken, leaves no finite epsilon."""


@pytest.mark.every(2)
@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG)
def test_every_wrong_step_is_found(name):
    """Fault: a check that sees a mistake on ordinary batches only, or in one form of it; a finite
    epsilon of noise that follows the data, or that somebody can draw again."""
    planted = WRONG[name]
    claims = replace(planted.claims, steps=1, delta=1e-5)
    found = dp_review.step(planted.step, planted.data, claims, **planted.options)
    assert found.broken & planted.checks, found
    assert not planted.checks & HIDES_NOTHING or found.epsilon == np.inf, found


# ---- sound steps that look like them


def scaled_one_by_one(rows):
    """A loss scaler as it should be: each example by itself, in half precision."""
    with np.errstate(all="ignore"):
        return total((rows * 2.0**6).astype(np.float16).astype(float) / 2.0**6)


def refuses(rows):
    if not np.isfinite(rows).all():
        raise ValueError("an example is not finite")
    return total(rows)


def brought_to_one_length(rows):
    return total(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-3))


def long_ones_dropped(rows):
    with np.errstate(all="ignore"):
        return total(rows, np.linalg.norm(finite(rows), axis=1) < 5)


def in_pytorch(examples, seed):
    drawn = torch.randn(NUMBERS, generator=torch.Generator().manual_seed(seed))
    return {"gradient": (torch.from_numpy(total(stack(examples))) + SIGMA * drawn) / MEAN}


def with_what_follows(examples, seed):
    """And numbers that are computed from the noised ones."""
    sent = sound(examples, seed)
    noised = sent["gradient"]
    return sent | {"norm": np.linalg.norm(noised), "place": np.argmax(noised), "top": noised.max()}


def with_momentum(examples, seed):
    sent = in_tensors(examples, seed)
    return sent | {f"momentum of {name}": 0.9 * x for name, x in sent.items()}


SIGNS = np.random.default_rng(0)
"""Of an augmentation that all examples share: how the batch varies is not its noise."""
ALIKE = {
    "half precision": (step_of(scaled_one_by_one), NOT_FINITE),
    "refuses what is not finite": (step_of(refuses), NOT_FINITE),
    "every row at one length": (step_of(brought_to_one_length), CLAIMS),
    "long rows dropped": (step_of(long_ones_dropped), CLAIMS),
    "tensors of PyTorch": (in_pytorch, CLAIMS),
    "what follows from the noised": (with_what_follows, CLAIMS),
    "momentum beside it": (with_momentum, CLAIMS),
    "dropout": (with_dropout, CLAIMS),
    "another draw for another size": (lambda e, s: sound(e, s + 10**6 * len(e)), CLAIMS),
    "unseeded": (unseeded(in_tensors), UNSEEDED),
    "a sign for the batch": (
        unseeded(step_of(lambda rows: SIGNS.choice([-1, 1]) * total(rows))),
        UNSEEDED,
    ),
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


DEVIATION = SIGMA / MEAN
MAY_BE_SOUND = {
    "signs": (after(np.sign), CLAIMS),
    "the largest only": (after(lambda x: x * (np.abs(x) >= np.sort(np.abs(x))[-6])), CLAIMS),
    "on a coarse grid": (after(lambda x: np.round(x / (2 * DEVIATION)) * 2 * DEVIATION), CLAIMS),
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
    assert found.exit_status == 2 * ("post-processing" in found.not_as_claimed)


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


def test_a_sum_that_is_trimmed_is_said_to_need_more():
    """Fault: a rule of the batch, whose worst batch no search finds, that is passed in silence."""

    def trimmed(rows):
        ordered = np.sort(clipped(rows), axis=0)
        cut = len(rows) // 5
        return ordered[cut : len(rows) - cut].sum(0)

    found = dp_review.step(step_of(trimmed), DATA, CLAIMS, draws=16)
    assert "rule of the batch" in found["sensitivity"].words and found.not_as_claimed, found


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
    """Fault: a step that is hardly ever given an empty batch, blamed for failing on one."""
    step = fails_on(lambda examples: not examples, ValueError("nothing here"))
    assert dp_review.step(step, DATA, CLAIMS, draws=16).sound
    assert dp_review.step(step, DATA, SAMPLED, draws=16).broken == {"empty batch"}
    hardly_ever = replace(SAMPLED, sample_rate=0.5)
    assert dp_review.step(step, DATA, hardly_ever, draws=16).sound


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


def test_noise_of_each_batch_is_named_where_the_choice_cannot_be_seen():
    """Fault: a step called sound whose noise may be chosen by the data, without that word."""
    for step, named in ((ALIKE["another draw for another size"][0], True), (sound, False)):
        found = dp_review.step(step, DATA, CLAIMS, draws=16)
        assert found.sound and ("Noise that the data choose" in str(found)) == named, found
