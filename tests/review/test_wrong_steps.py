"""Kinds of wrong steps that look sound on ordinary batches, and sound steps that look like them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import fedlora_lab as fl
from fedlora_lab.review.claims import CHECKS, Evidence
from fedlora_lab.review.examples import only_largest, scale
from fedlora_lab.review.noise import Noise, kept_places
from fedlora_lab.review.review import is_doubtful, judge_evidence

Claims: Any = fl.review.Claims
review: Any = fl.review.step

NUMBERS, SIGMA, MEAN = 20, 1.1, 8.0
DATA = [(x, 0) for x in np.random.default_rng(0).normal(size=(12, NUMBERS))]
CLAIMS: dict[str, Any] = {"clip_norm": 1.0, "noise_multiplier": SIGMA, "denominator": MEAN}
REPLACE: dict[str, Any] = {"relation": "replace", "denominator": 12.0}
PATTERN = np.where(np.arange(NUMBERS) % 3, -1.0, 1.0)
Rows = np.ndarray
"""Examples or their gradients, (examples, numbers)."""


def stack(examples) -> Rows:
    return np.array([x for x, _ in examples], float).reshape(len(examples), -1)


def normal(seed, size: Any = NUMBERS):
    return SIGMA * np.random.default_rng(seed).normal(size=size)


def clip_factors(rows: Rows):
    """Zero for a row that is not finite, or whose norm is not."""
    with np.errstate(all="ignore"):
        norms = np.linalg.norm(rows, axis=1)
        return np.where(np.isfinite(norms), 1 / np.maximum(norms, 1.0), 0.0)


def finite(rows: Rows) -> Rows:
    return np.nan_to_num(rows, nan=0.0, posinf=0.0, neginf=0.0)


def total(rows: Rows, kept: Any = 1.0):
    """The sum of clipped rows that are kept."""
    return (clip_factors(rows) * kept) @ finite(rows) if len(rows) else np.zeros(NUMBERS)


def step_of(
    noise: Callable[[int], Any] = normal,
    signal: Callable[[Rows], Any] = total,
    denominator: float = MEAN,
):
    """A step that clips and sums as ``signal`` does, with this noise."""

    def step(examples, seed):
        sums = signal(stack(examples)) if len(examples) else np.zeros(NUMBERS)
        return {"gradient": (sums + noise(seed)) / denominator}

    return step


# ---- noise that is tied to other noise


def antithetic(first: int = 0, apart: int = 1, signs: Any = -1.0):
    """Noise of a seed, and the same with other signs some seeds later; pairs begin at ``first``."""

    def noise(seed):
        turn = (seed + first) // apart % 2
        return normal(10**6 + seed - turn * apart) * (signs if turn else 1.0)

    return noise


def mirrored(seed):
    noise = normal(seed // 2)
    return noise[::-1] if seed % 2 else noise


def sums_to_zero(seed):
    """Four seeds share one draw of noise that sums to zero."""
    draws = normal(seed // 4, (4, NUMBERS))
    return (draws - draws.mean(0))[seed % 4] * np.sqrt(4 / 3)


def random_signs(seed):
    return np.abs(normal(seed // 2)) * np.random.default_rng(seed + 10**9).choice([-1, 1], NUMBERS)


def of_low_rank(seed):
    directions = np.random.default_rng(9).normal(size=(15, NUMBERS))
    return normal(seed, 15) @ (directions / np.linalg.norm(directions, axis=0))


TIED: list[tuple[Callable[[int], Any], dict[str, Any]]] = [
    (antithetic(), {}),
    (antithetic(first=1), {}),
    (antithetic(), {"denominator": None}),
    (antithetic(first=1), {"denominator": None}),
    (antithetic(apart=4), {}),
    (antithetic(signs=PATTERN), {}),
    (antithetic(first=1, signs=PATTERN), {}),
    (mirrored, {}),
    (sums_to_zero, {}),
    (random_signs, {}),
    (of_low_rank, {}),
]


@pytest.mark.parametrize(("noise", "changes"), TIED)
def test_noise_that_is_tied_to_that_of_another_call_is_found(noise, changes):
    """Pairs of calls that cancel, however they are paired: the second look began at odd seeds."""
    found = review(step_of(noise), DATA, Claims(**CLAIMS | changes), draws=32)
    assert "noise independence" in found.broken, found


@pytest.mark.parametrize("numbers", [1, 2])
def test_tied_noise_of_few_numbers_is_found(numbers):
    """A test that looks at single calls has no power where a call has one number."""
    data = [(x[:numbers], 0) for x, _ in DATA]

    def step(examples, seed):
        sums = total(stack(examples)) if len(examples) else np.zeros(numbers)
        return {"gradient": (sums + antithetic(first=1)(seed)[:numbers]) / MEAN}

    assert "noise independence" in review(step, data, Claims(**CLAIMS)).broken


HALF = 5000
WITHIN: list[Callable[[Rows], Rows]] = [
    lambda noise: -noise,
    lambda noise: -noise[::-1],
    lambda noise: noise * np.where(np.arange(HALF) % 3, -1.0, 1.0),
]


@pytest.mark.parametrize("partner", WITHIN)
@pytest.mark.parametrize("split", [False, True])
def test_a_half_whose_noise_is_that_of_the_other_is_found(partner, split):
    """Halves of a tensor too large to be kept whole, or two tensors, that cancel."""
    half = np.random.default_rng(1).normal(size=(16, HALF))
    rows = np.hstack([half, [partner(one) for one in half]])
    ends = [slice(0, HALF), slice(HALF, 2 * HALF)] if split else [slice(0, 2 * HALF)]
    most = 4096 // len(ends)
    places = {str(i): kept_places(part.stop - part.start, most) for i, part in enumerate(ends)}
    chosen = np.concatenate([part.start + x for part, x in zip(ends, places.values())])
    counts = np.cumsum([0, *map(len, places.values())])
    parts = {str(i): slice(counts[i], counts[i + 1]) for i in range(len(ends))}
    shapes = {str(i): (part.stop - part.start,) for i, part in enumerate(ends)}
    ties = Noise(rows[:, chosen], parts, places, shapes).ties()
    assert len(ties) * min(tie.p for tie in ties) < 1e-9


def test_noise_that_is_tied_by_calls_in_place_of_seeds_is_found():
    """A generator in the step, whose every second draw is the last one turned round."""
    draws: list[Any] = []

    def noise(seed):
        draws.append(-draws[-1] if len(draws) % 2 else normal(10**6 + len(draws)))
        return draws[-1]

    found = review(step_of(noise), DATA, Claims(**CLAIMS, seeded=False), draws=16)
    assert "noise independence" in found.broken, found


WORKERS: list[dict[str, Callable[[int], Any]]] = [
    {"b": lambda seed: -normal(seed)},
    {"b": lambda seed: -normal(seed + 5)},
    {"b": lambda seed: PATTERN * normal(seed)},
    {"b": lambda seed: normal(seed)[::-1]},
    {"b": lambda seed: normal(seed + 10**8), "c": lambda seed: -normal(seed + 10**8)},
]


@pytest.mark.parametrize("noises", WORKERS)
def test_noise_that_is_tied_to_another_worker_is_found(noises):
    """Workers that cancel at another seed, by sign, by place, or each other."""
    others = {name: step_of(noise) for name, noise in noises.items()}
    found = review(step_of(), DATA, Claims(**CLAIMS), others=others, draws=32)
    assert found.broken == {"noise independence"}, found


@pytest.mark.slow
def test_independent_noise_shows_no_ties():
    """A p-value that is smaller than chance makes it, of all ties together."""
    rng = np.random.default_rng(0)
    parts = {"a": slice(0, 12), "b": slice(12, 15), "c": slice(15, 20)}
    shapes = {"a": (4, 3), "b": (3,), "c": (5,)}
    places = {name: np.arange(part.stop - part.start) for name, part in parts.items()}
    small = 0
    for _ in range(60):
        one, other = (Noise(rng.normal(2, 1, (16, 20)), parts, places, shapes) for _ in range(2))
        assert not one.exact_tie()
        ties = [*one.ties(), *one.ties_with(other, "")]
        small += len(ties) * min(tie.p for tie in ties) <= 0.1
    assert small <= stats.binom.ppf(0.999, 60, 0.1)


# ---- noise that is left out beside a bad example


def skips(test: Callable[[Rows], bool], share: float = 0.0):
    """A step that keeps only a share of its output, without noise, where a test fails."""

    def step(examples, seed, denominator=MEAN):
        fine = len(examples) == 0 or test(stack(examples))
        sums, noise = total(stack(examples)) if len(examples) else 0.0, normal(seed)
        return {"gradient": (sums + noise if fine else share * noise) / denominator}

    return step


def fits(dtype: Any, factor: float) -> Callable[[Rows], bool]:
    """Whether gradients stay finite, scaled as a loss scaler does."""

    def test(rows):
        with np.errstate(all="ignore"):
            return bool(np.isfinite((rows * factor).astype(dtype)).all())

    return test


def inputs_only(test: Callable[[Rows], bool]) -> Callable[[Rows], bool]:
    """Examples that are not finite are left out before: only an overflow is seen."""
    return lambda rows: test(rows[np.isfinite(rows).all(1)])


SKIPS = [
    skips(lambda rows: bool(np.isfinite(rows).all())),
    skips(lambda rows: not np.isnan(rows).any()),
    skips(fits(np.float16, 2.0**10)),
    skips(fits(np.float32, 2.0**16)),
    skips(inputs_only(fits(np.float32, 1.0))),
    skips(inputs_only(lambda rows: bool(np.isfinite(np.square(rows)).all()))),
    skips(lambda rows: bool(np.isfinite(rows).all()), share=0.5),
]


@pytest.mark.parametrize("step", SKIPS)
@pytest.mark.parametrize("changes", [{}, {"denominator": None}, {"finite": False}])
def test_a_step_that_skips_its_noise_beside_a_bad_example_is_found(step, changes):
    """Loss scalers skip a step whose gradients overflow: what leaves says that one did."""
    found = review(step, DATA, Claims(**CLAIMS | changes), draws=16)
    assert found.broken & {"non-finite", "noise size"}, found


def is_large(rows):
    return np.linalg.norm(total(rows)) > 0.1


def is_wrong(rows):
    return bool((rows[:, 0] > 0).any())


@pytest.mark.parametrize("test", [is_large, is_wrong])
@pytest.mark.parametrize("changes", [{}, REPLACE])
def test_a_step_that_skips_its_noise_where_little_is_left_to_learn_is_found(test, changes):
    """Without noise, the output says that the gradient is small or every example is correct."""
    claims = Claims(**CLAIMS | changes)
    found = review(skips(test), DATA, claims, draws=16)["noise size"]
    assert found.verdict == "broken" and found.number == 0


# ---- examples that a bad one takes along


def zeroed_sum(rows):
    with np.errstate(all="ignore"):
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        return finite((rows / np.maximum(norms, 1.0)).sum(0))


def zeroed_number(rows):
    clipped = clip_factors(finite(rows))[:, None] * finite(rows)
    return finite(np.where(np.isnan(rows), np.nan, clipped).sum(0))


def zeroed_pieces(rows):
    return sum(zeroed_sum(rows[i : i + 4]) for i in range(0, len(rows), 4))


def signal_dropped(rows):
    return total(rows) if np.isfinite(rows).all() else np.zeros(NUMBERS)


def overflow_dropped(rows):
    rows = rows[np.isfinite(rows).all(1)]
    return signal_dropped(np.where(np.abs(rows) < 1e30, rows, np.inf))


TAKEN_ALONG = [zeroed_sum, zeroed_number, zeroed_pieces, signal_dropped, overflow_dropped]


@pytest.mark.parametrize("signal", TAKEN_ALONG)
@pytest.mark.parametrize("changes", [{}, {"denominator": None}, REPLACE])
def test_a_step_that_drops_others_with_a_bad_example_is_found(signal, changes):
    """`nan_to_num` of the sum: the noise is right, and everybody's contribution is gone."""
    claims = Claims(**CLAIMS | changes)
    step = step_of(signal=signal, denominator=claims.denominator or MEAN)
    assert review(step, DATA, claims, draws=16).broken == {"non-finite"}


# ---- examples that count or not, as the batch decides


def by_norm(rule: Callable[[Rows], Any]):
    def signal(rows):
        with np.errstate(all="ignore"):
            norms = np.linalg.norm(finite(rows), axis=1)
        return total(rows, rule(np.minimum(norms, 1e100)))

    return signal


def ranks(values):
    return np.argsort(np.argsort(values, kind="stable"), kind="stable")


def by_direction(rows):
    clipped = clip_factors(rows)[:, None] * finite(rows)
    return clipped[clipped @ clipped.sum(0) >= 0].sum(0)


def median_of_numbers(rows):
    return np.median(clip_factors(rows)[:, None] * finite(rows), axis=0) * len(rows)


def in_pieces(rows):
    rule = by_norm(lambda norms: norms <= 2 * np.median(norms))
    return sum(rule(rows[i : i + 4]) for i in range(0, len(rows), 4))


def small_sums(rows):
    return total(rows) if np.linalg.norm(total(rows)) < 6 else np.zeros(NUMBERS)


DECIDED: list[Callable[[Rows], Any]] = [
    by_norm(lambda norms: norms <= 1.01 * np.median(norms)),
    by_norm(lambda norms: norms <= 3 * np.median(norms)),
    by_norm(lambda norms: norms <= 2 * np.sort(norms)[(len(norms) - 1) // 2]),
    by_norm(lambda norms: norms >= np.median(norms) / 2),
    by_norm(lambda norms: norms <= norms.mean() + norms.std()),
    by_norm(lambda norms: norms <= norms.mean() + 2 * norms.std()),
    by_norm(lambda norms: norms <= 2 * norms.mean()),
    by_norm(lambda norms: norms <= np.quantile(norms, 0.75)),
    by_norm(lambda norms: norms <= np.quantile(norms, 0.9)),
    by_norm(lambda norms: ranks(norms) < len(norms) - len(norms) // 10),
    by_norm(lambda norms: ranks(-norms) < (len(norms) + 1) // 2),
    by_norm(lambda norms: 1 / np.maximum(1.0, norms.max())),
    by_norm(lambda norms: len(norms) >= 4),
    by_direction,
    median_of_numbers,
    in_pieces,
    small_sums,
]


@pytest.mark.parametrize("signal", DECIDED)
def test_a_step_whose_batch_decides_who_counts_is_found(signal):
    """Outliers of a median or mean are dropped: one more example moves all that it brings back."""
    found = review(step_of(signal=signal), DATA, Claims(**CLAIMS), draws=16)
    assert "reach" in found.broken, found


@pytest.mark.parametrize("changes", [{"denominator": None}, REPLACE])
def test_a_batch_that_decides_is_found_under_other_claims(changes):
    """A way through batches that grow, where batches have one size; or a unit that is not known."""
    claims = Claims(**CLAIMS | changes)
    step = step_of(signal=DECIDED[1], denominator=claims.denominator or MEAN)
    assert "reach" in review(step, DATA, claims, draws=16).broken


def test_a_batch_that_decides_by_what_is_no_number_is_found():
    """Tokens cannot be scaled: the examples at hand differ enough."""
    rows = np.random.default_rng(3).normal(size=(30, NUMBERS))
    data = [[int(t) for t in range(i, i + 2 + 6 * (i % 2))] for i in range(12)]

    def step(examples, seed):
        return step_of(signal=DECIDED[0])([(rows[tokens].sum(0), 0) for tokens in examples], seed)

    assert "reach" in review(step, data, Claims(**CLAIMS), draws=16).broken


@pytest.mark.slow
@pytest.mark.parametrize(
    "step",
    [SKIPS[0], SKIPS[3], step_of(signal=zeroed_sum), step_of(signal=DECIDED[1])],
    ids=["skips", "scaler", "zeroed sum", "median"],
)
def test_the_same_is_found_where_no_seed_cancels_the_noise(step):
    """Without equal noise a direction has to be learned, and the noise compared by its size."""
    calls = iter(range(10**9))
    found = review(
        lambda examples, seed: step(examples, 10**6 + next(calls)),
        DATA,
        Claims(**CLAIMS, seeded=False),
        draws=32,
    )
    assert found.broken & {"reach", "non-finite"}, found


# ---- sound steps that look like them


def counts_as_zero(rows):
    return total(rows)


def each_number_zeroed(rows):
    return total(finite(rows))


def scaled_one_by_one(rows):
    """A loss scaler as it should be: each example by itself, in half precision."""
    with np.errstate(all="ignore"):
        return total((rows * 2.0**6).astype(np.float16).astype(float) / 2.0**6)


def refuses(rows):
    if not np.isfinite(rows).all():
        raise ValueError("an example is not finite")
    return total(rows)


def fits_the_ball(rows):
    """Half of each example's clip, and no rule but the clip."""
    return 0.5 * total(2 * rows)


@pytest.mark.parametrize(
    "signal", [counts_as_zero, each_number_zeroed, scaled_one_by_one, refuses, fits_the_ball]
)
@pytest.mark.parametrize("changes", [{}, REPLACE])
def test_a_step_that_treats_each_example_by_itself_is_not_blamed(signal, changes):
    """NaN that counts as zero, one by one, moves nobody else."""
    claims = Claims(**CLAIMS | changes, finite=False)
    found = review(step_of(signal=signal, denominator=claims.denominator), DATA, claims, draws=16)
    assert found.sound and found["non-finite"].verdict == "sound", found


def test_a_step_that_turns_to_nan_is_broken_only_where_such_examples_may_come():
    """All see that training stopped; the claim says whether such an example was checked for."""
    step = step_of(signal=lambda rows: rows.T @ (1 / np.maximum(1, np.linalg.norm(rows, axis=1))))
    for checked, verdict in ((True, "cannot tell"), (False, "broken")):
        found = review(step, DATA, Claims(**CLAIMS, finite=checked), draws=16)["non-finite"]
        assert found.verdict == verdict and found.number == np.inf


ROUNDED: list[Callable[[Any], Any]] = [
    np.float16,
    np.float32,
    lambda x: torch.tensor(x).to(torch.bfloat16),
]


@pytest.mark.parametrize("rounded", ROUNDED)
@pytest.mark.slow
def test_outputs_of_low_precision_are_not_blamed(rounded):
    """Large sums are rounded by more than a reach may exceed the clip norm."""

    def step(examples, seed):
        return {name: rounded(x) for name, x in step_of()(examples, seed).items()}

    found = review(step, DATA, Claims(**CLAIMS), draws=32)
    assert found.sound, found


def test_a_step_whose_output_is_rounded_to_a_coarse_grid_is_not_blamed():
    """Two draws may round the change of a single number up alike; on average it is no larger."""
    data = [(3.0 * (np.arange(NUMBERS) == i), 0) for i in range(12)]

    def step(examples, seed):
        return {"gradient": np.round(step_of()(examples, seed)["gradient"] / 0.04) * 0.04}

    assert all(review(step, data, Claims(**CLAIMS), draws=32, seed=s).sound for s in range(3))


@pytest.mark.slow
def test_a_large_step_without_seeds_keeps_its_denominator():
    """Two directions that are learned apart through much noise show other shares of a move."""
    size, calls = 4000, iter(range(10**9))
    data = [(x / 20, 0) for x in np.random.default_rng(0).normal(size=(12, size))]

    def step(examples, seed):
        sums = total(stack(examples)) if len(examples) else np.zeros(size)
        return {"gradient": (sums + normal(10**6 + next(calls), size)) / MEAN}

    found = review(step, data, Claims(**CLAIMS, seeded=False), draws=16)
    assert found.sound, found


@pytest.mark.parametrize("worker", [False, True])
def test_a_step_that_gives_no_numbers_is_broken(worker):
    """A review that stops on its way, or takes what cannot be compared for sound."""
    lost = step_of(noise=lambda seed: np.full(NUMBERS, np.nan))
    options: Any = {"others": {"b": lost}} if worker else {}
    found = review(step_of() if worker else lost, DATA, Claims(**CLAIMS), draws=16, **options)
    assert "noise independence" in found.broken


def test_a_sum_that_is_cut_after_the_clip_is_not_blamed():
    """It grows less than its batch, and no example moves it more: no denominator is at fault."""

    def cut(rows):
        sums = total(rows)
        return sums / max(1.0, np.linalg.norm(sums) / 4)

    found = review(step_of(signal=cut), DATA, Claims(**CLAIMS), draws=16)
    assert found.sound and found["denominator"].verdict == "cannot tell", found


# ---- examples that are changed


def test_a_finite_example_stays_finite_when_it_is_scaled():
    """Half precision overflows at 65,504: data of NaN would blame a step that is sound."""
    half = torch.tensor([1.0, -3.0], dtype=torch.float16)
    single = np.array([1, 2], np.float32)
    for example in (half, half.numpy(), single, 2.0, [half, {"x": 1e200}]):
        for factor in (1e6, 1e300):
            assert "inf" not in str(scale(example, factor)).lower()
    assert torch.equal(scale(half, 2.0), 2 * half) and np.isinf(scale(2.0, np.inf))


def test_one_number_of_an_example_is_kept_or_spoilt():
    """A NaN elsewhere than where it was meant, or none."""
    for x in (np.array([[1.0, 5.0], [2.0, -9.0]]), torch.tensor([[1.0, 5.0], [2.0, -9.0]])):
        kept, label = only_largest((x, 3))
        assert np.asarray(kept).tolist() == [[0, 5], [0, 0]] and label == 3
        spoilt = np.asarray(only_largest(x, spoilt=True))
        assert np.isnan(spoilt).tolist() == [[False, True], [False, False]]
        assert spoilt[1].tolist() == [2, -9]


# ---- two looks


def look(**p_values) -> list[Evidence]:
    """Evidence of all checks, sound or with a p-value."""
    given = {name.replace("_", " "): p for name, p in p_values.items()}
    return [Evidence(name, "", p=given.get(name)) for name in CHECKS]


def broken(*looks) -> set[str]:
    return {one.check for one in judge_evidence(looks, 0.01) if one.verdict == "broken"}


def test_what_one_look_shows_beyond_chance_the_other_does_not_take_back():
    """The second look replaced the first: noise that cancels in pairs was seen in one of them."""
    plain = [Evidence("reach", "", verdict="broken"), *look()]
    strong, weak = look(noise_independence=1e-9), look(noise_independence=5e-3)
    nothing = look(noise_independence=0.7)
    assert broken(strong) == broken(strong, nothing) == {"noise independence"}
    assert broken(nothing, strong) == {"noise independence"} and not is_doubtful(strong, 0.01)
    assert broken(plain, nothing) == broken(nothing, plain) == {"reach"}
    # What chance may well have shown is looked at again, and stays only if it is seen again.
    assert is_doubtful(weak, 0.01) and not broken(weak) and not broken(weak, nothing)
    assert broken(weak, weak) == {"noise independence"}


def test_two_looks_raise_no_more_false_alarms_than_stated():
    """A second look for what the first one found, and alarms from either."""
    rng, names = np.random.default_rng(0), [*CHECKS][:8]
    alarms = 0
    for _ in range(1000):
        looks = [[Evidence(name, "", p=p) for name, p in zip(names, rng.random(8))]]
        looks[0] += [Evidence(name, "") for name in CHECKS]
        if is_doubtful(looks[0], 0.2):
            looks.append([Evidence(name, "", p=p) for name, p in zip(names, rng.random(8))])
        alarms += any(one.verdict == "broken" for one in judge_evidence(looks, 0.2))
    assert alarms <= stats.binom.ppf(0.999, 1000, 0.2)
