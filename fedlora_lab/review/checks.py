"""The checks of a step: each a function from the record of trials to evidence."""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from scipy import stats

from fedlora_lab._utils.validation import error_text
from fedlora_lab.review.claims import Claims, Evidence, Step, Verdict
from fedlora_lab.review.neighbours import (
    COPIES,
    LOUD,
    OVERFLOWS,
    TRIED,
    Batch,
    Example,
    neighbours,
    only_largest,
    same_numbers,
    scale,
)
from fedlora_lab.review.noise import Tie
from fedlora_lab.review.p_values import (
    NOISE_SLACK,
    normality_p_value,
    ratio_p_values,
    variance_p_value,
)
from fedlora_lab.review.trials import SLACK, Shift, Trials, other_workers

NEED_NOISE = ("reach", "non-finite", "denominator", "noise per tensor", "noise law", "signal")
LARGE_TENSOR = 300
"""Numbers of noise from which a tensor's own scale is known well enough to be divided by."""


def step_evidence(trials: Trials, others: Mapping[str, Step]) -> Iterator[Evidence]:
    """All checks of a step. Args: trials: of it. others: further steps, by name."""
    # Without any noise there is no unit in which the other checks could measure.
    if trials.names:
        yield from check_reach(trials)
        yield from check_non_finite(trials)
        yield from check_denominator(trials)
        yield from check_noise_size(trials)
        yield from check_noise_per_tensor(trials)
        yield from check_independence(trials, others)
        yield from check_law(trials)
    else:
        text = "every seed gives the same numbers: there is no noise, or it is always the same"
        yield Evidence("noise size", text, 0.0, verdict="broken")
        yield Evidence("noise independence", text, 1.0, verdict="broken")
        for name in NEED_NOISE:
            yield Evidence(name, "there is no noise to compare with", verdict="cannot tell")
    yield from check_empty(trials)
    yield from check_un_noised(trials)
    yield from check_frozen(trials)


# ---- how far one example reaches


def judge(check: str, words: str, shift: Shift, trials: Trials, limit: float) -> Evidence:
    """Says whether one example may move so far.

    Args: check, words: its name, and what was tried. shift: measured. limit: in clip norms.
    """
    value, error = shift
    text = f"one example moves all that leaves together by {value:.3g} clip norms"
    if trials.replaced:
        text += " (2 are allowed, for a replacement)"
    # Estimated through the noise: chance decides. Else the difference is exact.
    if error:
        p = float(stats.t.sf((value - limit) / error, trials.draws - 2))
        return Evidence(check, f"{text} ± {error:.2g}", value, words, p)
    broken = not value <= limit * (1 + SLACK)
    return Evidence(check, text, value, words, verdict="broken" if broken else "sound")


def reach_evidence(trials: Trials) -> list[Evidence]:
    """Every trial on one finite example, judged."""
    shifts = trials.shifts
    return [judge("reach", tried, shift, trials, trials.limit) for tried, shift in shifts]


def check_reach(trials: Trials) -> Iterator[Evidence]:
    """How far one example moves everything, and whether any moves anything."""
    yield from reach_evidence(trials)
    tried, best = max(trials.singles, key=lambda single: single[1].value)
    # An example that is cut at the clip norm must show; one that hardly does proves nothing.
    uncertain = best.value <= trials.limit / 2 or best.value + 3 * best.error > 1.5 * trials.limit
    if best.error and uncertain:
        text = f"found {best.value:.2g} ± {best.error:.2g}: more draws would tell"
        yield Evidence("reach", text, best.value, tried, verdict="cannot tell")
    text = f"{tried} moves the noised outputs by {best.value:.3g} clip norms"
    verdict: Verdict = "sound"
    if not any(shift.visible for _, shift in trials.shifts):
        text = "no example moves any noised output"
        verdict = "cannot tell" if best.error else "broken"
    yield Evidence("signal", text, best.value, tried, verdict=verdict)


def bad_examples(trials: Trials) -> Iterator[tuple[str, Example, Example]]:
    """Examples that are not finite or overflow: words, example, and what it stands among."""
    example = trials.batch[0]
    strong = trials.extremes[1]
    yield "NaN", scale(example, math.nan), strong
    yield "infinity", scale(example, math.inf), strong
    # In one number only, among examples that move little else.
    yield "one NaN", only_largest(example, spoilt=True), scale(only_largest(example), LOUD)
    for factor in OVERFLOWS if trials.exact else OVERFLOWS[2::2]:
        yield f"numbers {factor:g} times as large", scale(strong, factor), strong


def check_non_finite(trials: Trials) -> Iterator[Evidence]:
    """Puts an example that is not finite, or overflows, among copies of another. These must count
    as without it, and the noise must be that of any other batch."""
    check = "non-finite"
    if same_numbers(scale(trials.batch[0], math.nan), trials.batch[0]):
        yield Evidence(check, "examples hold no floating-point numbers", 0.0)
        return
    for kind, example, copied in bad_examples(trials):
        trial = trials.beside(f"an example of {kind} among copies of another", example, copied)
        try:
            vector = trials.out(trial.one, 0, spoilt=True)
        except Exception as error:  # a step that refuses such data is in order
            text = f"the step refuses {kind}: {error_text(error, 80)}"
            yield Evidence(check, text, 0.0, trial.words)
            continue
        share = float(np.mean(~np.isfinite(vector)))
        if share:  # to be seen by all: no training goes on with it
            text = f"an example of {kind} makes {share:.0%} of all numbers NaN or infinite"
            text += "; epsilon holds only if no such example comes here"
            verdict: Verdict = "cannot tell" if trials.claims.finite else "broken"
            yield Evidence(check, text, math.inf, trial.words, verdict=verdict)
            continue
        # It may count as zero or as another example does, never further.
        shift = trials.exact_shift(trial, spoilt=True)
        if shift is None:
            noise = [*compare_noise(trials, check, trial.one, trial.words)]
            yield from noise
            if any(evidence.verdict == "broken" for evidence in noise):
                continue
            shift = trials.estimate(trial, brief=True)
        yield judge(check, trial.words, shift, trials, trials.farthest)


# ---- the denominator


def quietest(trials: Trials) -> tuple[int, int] | None:
    """The two examples that move least by themselves: a factor that grows with the batch shows
    only below the clip norm."""
    empty = trials.call_empty(1) if trials.exact else None
    if empty is None:
        return None
    alone = [trials.in_clips(trials.out([x], 0) - empty[0]) for x in trials.batch]
    # Above the clip norm the clip would hide a factor that depends on the batch.
    moves = np.nan_to_num([np.linalg.norm(x) for x in alone], nan=math.inf)
    i, j = np.argsort(moves)[:2].tolist()
    return i, j


def doubled(trials: Trials, x: Example, y: Example, few: int) -> tuple[Shift, Shift]:
    """How far copies of x lie from as many of y, and twice as many.

    Args: trials: of the step. x, y: examples. few: half as many as there are copies at first.
    """
    once = neighbours("", [], [x] * few, [y] * few)
    twice = neighbours("", [], [x] * 2 * few, [y] * 2 * few, COPIES // few)
    single = trials.exact_shift(once)
    double = trials.exact_shift(twice)
    if single is None or double is None:
        # Along one direction: two that were learned apart would not show the same share.
        direction = trials.direction(twice.far, twice.away)
        single = trials.estimate(once, direction)
        double = trials.estimate(twice, direction)
    return single, double


def check_denominator(trials: Trials) -> Iterator[Evidence]:
    """Whether a contribution stays what it is when the batch is doubled."""
    check = "denominator"
    if trials.replaced and trials.claims.sampling != "poisson":
        text = "under replacement batches have one size, so a moving denominator stays fixed"
        yield Evidence(check, text, 2.0)
        return
    visible = False
    pairs = [(i, i + 1, 4) for i in range(min(TRIED, len(trials.batch) - 1))]
    least = quietest(trials)
    for i, j, few in pairs if least is None else [*pairs, (*least, 1)]:
        if visible and few > 1:
            continue
        single, double = doubled(trials, trials.batch[i], trials.batch[j], few)
        if not single.value > max(1e-6, 6 * single.error) or single.value == math.inf:
            continue
        visible = True
        text = f"{2 * few} copies of example {i} against as many of example {j}"
        yield judge_doubling(trials, single, double, text)
    if not visible:
        text = "the examples that were tried pull alike, or their pull drowns in the noise"
        yield Evidence(check, text, verdict="cannot tell")
    yield from compare_noise(trials, check, [*trials.batch, *trials.batch], "twice the batch")


def judge_doubling(trials: Trials, single: Shift, double: Shift, words: str) -> Evidence:
    """Judges how far twice the examples move.

    Args: trials: of the step. single, double: see `doubled`. words: say what was tried.
    """
    check = "denominator"
    ratio = double.value / single.value
    text = f"twice the examples move {ratio:.3g} times as far"
    plain = single.error == double.error == 0
    p = None
    if not plain:
        error = math.hypot(double.error, 2 * single.error)
        gap = abs(double.value - 2 * single.value) / error
        p = float(2 * stats.t.sf(gap, 2 * trials.draws - 2))
    differs = abs(ratio - 2) > 0.02 if p is None else p < 0.01
    reaches_far = any(
        reach.verdict == "broken" or (reach.p is not None and reach.p < 1e-3)
        for reach in reach_evidence(trials)
    )
    if ratio < 2 and not reaches_far:
        # So does a sum that is cut after the clip, which hides each example as well.
        text += ", and none moves more than it may" if differs else ""
        return Evidence(check, text, ratio, words, verdict="cannot tell" if differs else "sound")
    return Evidence(check, text, ratio, words, p, "broken" if plain and differs else "sound")


# ---- the noise


def compare_noise(trials: Trials, check: str, examples: Batch, where: str) -> Iterator[Evidence]:
    """Compares the noise of another batch with that of the first one.

    Args: check: its name. examples: the other batch. where: names it.
    """
    base = trials.noise.pairs
    compared = trials.noise_of(examples).pairs
    if not np.isfinite(compared).all():
        return
    # Noise that is exactly zero where there was some is skipped, and needs no statistics.
    silent = (base != 0).any(0) & (compared == 0).all(0)
    if silent.any():
        share = "" if silent.all() else f" in {silent.mean():.0%} of the numbers"
        yield Evidence(check, f"{where} gets no noise{share}", 0.0, where, verdict="broken")
        return
    ratio = float(np.sqrt(np.mean(compared**2) / np.mean(base**2)))
    text = f"{where} gets {ratio:.3g} times the noise"
    cosine = float((base * compared).sum() / math.sqrt((base**2).sum() * (compared**2).sum()))
    if cosine > 0.999:  # the same draws: no chance is left
        verdict: Verdict = "sound" if abs(ratio - 1) <= NOISE_SLACK else "broken"
        yield Evidence(check, text, ratio, where, verdict=verdict)
        return
    below, above = ratio_p_values(ratio**2, compared.size, base.size)
    # Where a batch has a chance of its own, it may well vary more than its noise.
    p = min(1.0, 2 * min(below, above)) if trials.quiet else below
    yield Evidence(check, text, ratio, where, p)


def check_noise_size(trials: Trials) -> Iterator[Evidence]:
    """Whether the noise has the claimed size, whatever the data are."""
    check = "noise size"
    rms = float(np.sqrt(np.mean(trials.noise.pairs**2)))
    p = variance_p_value(trials.noise.pairs, NOISE_SLACK)
    text = f"the noise has {rms:.3g} times the claimed standard deviation"
    yield Evidence(check, text, rms, "all tensors", p)
    for where, examples in noise_batches(trials):
        yield from compare_noise(trials, check, examples, where)


def noise_batches(trials: Trials) -> Iterator[tuple[str, Batch]]:
    """Batches whose noise must be that of the first one."""
    batch = trials.batch
    if not trials.quiet:
        yield "a full batch", batch
    # Noise that follows the data, as that of a threshold from the batch, grows with them.
    loud = [scale(example, 1e3) for example in batch]
    if not same_numbers(loud[0], batch[0]):
        yield "a batch scaled by 1e3", loud
    if trials.exact or not trials.quiet:
        # Noise may be added only where a gradient is not zero, such as rows of an embedding.
        yield "a batch of copies of one example", [batch[0]] * len(batch)
    for trial in trials.uncoupled[:TRIED]:
        yield trial.words, trial.one
    yield from itertools.islice(silent_batches(trials), TRIED)


def silent_batches(trials: Trials) -> Iterator[tuple[str, Batch]]:
    """Batches of one kind of example in which two draws give equal numbers: a step may skip its
    noise where the gradient is small, or where every example is classified correctly."""
    tried = [("tiny examples", [scale(example, 1 / LOUD) for example in trials.batch])]
    for i, example in enumerate(trials.batch):
        tried.append((f"copies of example {i}", [example] * len(trials.batch)))
        if not trials.replaced:  # under replacement batches have one size
            tried.append((f"example {i} alone", [example]))
    for where, examples in tried:
        first = trials.in_clips(trials.out(examples, 0))
        if (first == trials.in_clips(trials.out(examples, 1))).any():
            yield where, examples


def check_noise_per_tensor(trials: Trials) -> Iterator[Evidence]:
    """Whether all tensors have the same noise."""
    check = "noise per tensor"
    noise = trials.noise
    squares = {name: noise.pairs[:, part] ** 2 for name, part in noise.parts.items()}
    if len(squares) == 1:
        yield Evidence(check, "one tensor only", 1.0, trials.names[0])
        return
    total = float(sum(x.sum() for x in squares.values()))
    looks = []
    for name, values in squares.items():
        # Each tensor against all others: a single one without noise stands out most.
        remaining = noise.pairs.size - values.size
        usual = (total - float(values.sum())) / remaining
        ratio = float(values.mean() / usual) if usual else math.inf
        looks.append(
            (2 * min(ratio_p_values(ratio, values.size, remaining)), math.sqrt(ratio), name)
        )
    p, ratio, name = min(looks)
    text = f"{name} has {ratio:.3g} times the noise of the others"
    yield Evidence(check, text, ratio, name, min(1.0, p * len(looks)))


def strongest(ties: Sequence[Tie], example: str) -> Evidence:
    """The least likely of all correlations, with a p-value for all of them together."""
    p, r, where = min(ties)
    text = f"the noise correlates by {r:.2g}: {where}"
    return Evidence("noise independence", text, r, example, min(1.0, p * len(ties)))


def check_independence(trials: Trials, others: Mapping[str, Step]) -> Iterator[Evidence]:
    """Whether tensors, numbers, calls and workers have noise of their own."""
    check = "noise independence"
    noise = trials.noise
    if not noise.finite:
        text = "what leaves is NaN or infinite for ordinary examples"
        yield Evidence(check, text, example="all noise", verdict="broken")
        return
    # Seeds that come again give equal calls, which no correlation of different calls shows.
    distinct = len(np.unique(noise.rows, axis=0))
    if distinct < len(noise.rows):
        text = f"{len(noise.rows)} seeds give {distinct} draws of noise"
        yield Evidence(check, text, 1.0, "seeds", verdict="broken")
    if text := noise.exact_tie():
        yield Evidence(check, text, 1.0, "exact ties", verdict="broken")
    yield strongest(noise.ties(), "all noise")
    # Workers with one generator each from one seed: their noise cancels in a difference.
    workers = other_workers(trials, others)
    for name in [name for name, of in workers.items() if not of.finite]:
        text = f"{name} returns NaN or infinity for ordinary examples"
        yield Evidence(check, text, example=name, verdict="broken")
        del workers[name]
    for first, second in itertools.combinations(workers, 2):
        ties = workers[first].ties_with(workers[second], f"{first} and {second}")
        if ties:
            yield strongest(ties, second)
        else:
            text = f"{second} returns none of the outputs of {first}"
            yield Evidence(check, text, example=second, verdict="cannot tell")


def check_law(trials: Trials) -> Iterator[Evidence]:
    """Whether the noise is normal."""
    noise = trials.noise.centred
    tensors = [noise[:, part] for part in trials.noise.parts.values()]
    large = [x for x in tensors if x.size >= LARGE_TENSOR]
    # A scale that was estimated makes this test miss more, never alarm more.
    scaled = [(x / np.sqrt(np.mean(x**2))).ravel() for x in large or [noise] if x.any()]
    z = np.concatenate(scaled)
    kurtosis = float(np.mean(z**4) / np.mean(z**2) ** 2 - 3)
    where = f"{len(z):,} numbers of noise"
    text = f"excess kurtosis {kurtosis:.2g} over {where}"
    yield Evidence("noise law", text, kurtosis, where, normality_p_value(z, trials.rng))
    if len(z) >= LARGE_TENSOR:
        p = float(stats.kurtosistest(z).pvalue)
        yield Evidence("noise law", text, kurtosis, where, p)


# ---- empty batches, and what leaves without noise


def empty_verdict(claims: Claims) -> tuple[Verdict, str]:
    """How an empty batch without noise is judged, and why if it hardly ever comes."""
    if claims.sampling is None:
        return "cannot tell", "; the claimed sampling never gives one"
    if claims.sampling != "poisson":
        return "sound", "; the claimed sampling never gives one"
    chance = 1.0
    if claims.sample_rate and claims.dataset_size:
        chance = (1 - claims.sample_rate) ** claims.dataset_size * (claims.steps or 1)
    if chance < (claims.delta or 1e-5) / 1000:
        return "sound", f"; all steps together have a chance of {chance:.1g} of one"
    return "broken", ""


def check_empty(trials: Trials) -> Iterator[Evidence]:
    """Whether an empty batch gets the noise of any other."""
    check = "empty batch"
    verdict, reason = empty_verdict(trials.claims)
    try:
        vector = trials.out([], 0)
    except Exception as error:
        text = f"an empty batch is refused: {error_text(error, 100)}{reason}"
        yield Evidence(check, text, 0.0, "no example", verdict=verdict)
        return
    if not trials.names:
        yield Evidence(check, "there is no noise to compare with", verdict="cannot tell")
        return
    if not trials.quiet:
        text = "an empty batch gets noise; all of the noise was measured there"
        yield Evidence(check, text, 1.0, "no example")
        return
    for evidence in compare_noise(trials, check, [], "an empty batch"):
        if reason and (evidence.number < 1 or trials.claims.sampling is not None):
            evidence = evidence._replace(words=evidence.words + reason, p=None, verdict=verdict)
        yield evidence
    if not np.isfinite(vector).all():
        text = "an empty batch makes what leaves NaN or infinite"
        yield Evidence(check, text, math.nan, "no example", verdict=verdict)


def check_un_noised(trials: Trials) -> Iterator[Evidence]:
    """Whether a number that leaves without noise was the same in all calls."""
    check = "un-noised output"
    tiny = [scale(example, 1 / LOUD) for example in trials.batch]
    for examples in (trials.batch[1:], tiny):
        trials.out(examples, 0)
    trials.call_empty(1)
    # What the author calls public may depend on the data; what is frozen has a check of its own.
    exempt = {*trials.claims.public, *trials.claims.frozen}
    for name in trials.out.resized - exempt:
        text = f"{name} leaves without noise: its shape changes with the batch"
        yield Evidence(check, text, math.inf, name, verdict="broken")
    changes = np.where(trials.noised, 0.0, trials.out.changes())
    moved = {
        name: float(changes[place].max(initial=0.0)) for name, place in trials.out.places.items()
    }
    moved = {name: most for name, most in moved.items() if most and name not in exempt}
    if moved:
        name = max(moved, key=lambda name: moved[name])
        text = f"{listed(moved)}: without noise, and other with other data; {name}"
        text += f" by {moved[name]:.3g}"
        yield Evidence(check, text, moved[name], name, verdict="broken")
        return
    bare = {*trials.out.places} - {*trials.names} - trials.copies - exempt
    text = f"{listed(sorted(bare))}: without noise, and the same for all data that were tried"
    yield Evidence(check, text if bare else "no number leaves without noise", 0.0)


def check_frozen(trials: Trials) -> Iterator[Evidence]:
    """Whether what is claimed frozen was the same in all calls."""
    names = trials.claims.frozen
    if not names:
        yield Evidence("frozen", "nothing is claimed frozen", verdict="cannot tell")
        return
    changes = trials.out.changes()
    moved = {name: float(changes[trials.out.places[name]].max(initial=0.0)) for name in names}
    name = max(moved, key=lambda name: moved[name])
    text = f"{listed(names)}: the same in every call"
    if moved[name]:
        text = f"{name} changes by {moved[name]:.3g}"
    verdict: Verdict = "broken" if moved[name] else "sound"
    yield Evidence("frozen", text, moved[name], name, verdict=verdict)


def listed(names: Iterable[str]) -> str:
    """The first names of many."""
    names = [*names]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
