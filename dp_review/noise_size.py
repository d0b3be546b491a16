"""Whether the noise has the claimed size, altogether and in every tensor and number; and whether it
is the same on every batch, whatever the data are."""

import contextlib
import itertools
import math
from collections.abc import Iterator

import numpy as np
from scipy import stats

from dp_review.claims import Finding, Verdict
from dp_review.neighbours import LOUD, TRIED, Batch, holds_floats, scale
from dp_review.noise import kept_places
from dp_review.outputs import StepFailed
from dp_review.trials import SAME_DRAW, SLACK, Trials

SIZE = "noise size"
DATA = "noise and data"
NOISE_SLACK = 0.01
"""A noise that is wrong by less than this share is not called wrong: epsilon hardly moves."""
SURE = 3.0
"""Standard errors that are added to a size before epsilon is computed from it."""
COPIED = 24
"""Examples of which batches of copies are made."""
ENOUGH = 0.8
"""Share of the claimed variance from which on an empty batch has all of its noise."""
SAME_NUMBER = 0.05
"""Difference of one number of one draw, in claimed deviations, that may be rounding."""
CHOICE_COLUMNS = 256
"""Numbers in which it is asked whether the data choose the noise."""
LEAST_AGREEING = 6
"""Draws in which two moves agree up to a hundredth of the noise: fewer may do so by chance."""


# ---- on one batch


def ratio_tails(
    ratio: float | np.ndarray, above: int | np.ndarray, below: int = 10**9
) -> tuple[np.ndarray, np.ndarray]:
    """Tests that two noises have one variance, up to `NOISE_SLACK`: chances of less, and of more.

    Args:
        ratio: of the mean squares of so many independent normal numbers.
        above, below: counts; of a variance that is known, as the claimed one is, endless many.
    """
    lower_tail = stats.f.cdf(ratio / (1 - NOISE_SLACK) ** 2, above, below)
    upper_tail = stats.f.sf(ratio / (1 + NOISE_SLACK) ** 2, above, below)
    return lower_tail, upper_tail


def size_finding(squares: np.ndarray, free: np.ndarray, where: list[str], what: str) -> Finding:
    """Of several mean squares of noise, in claimed variances, the one that is least likely.

    Args: squares, free: mean squares and their degrees of freedom. where: names them. what: they
    are, in words.
    """
    below, above = ratio_tails(squares, free)
    k = int(np.argmin(np.minimum(below, above)))
    ratio = math.sqrt(squares[k])
    # More noise than claimed hides more: it is not what is claimed, and no leak.
    rejected: Verdict = "broken" if below[k] <= above[k] else "not as claimed"
    # The smallest of many is too small by chance; epsilon is to be no larger than what is sure.
    sure = min(1.0, ratio * (1 + SURE / math.sqrt(2 * free[k])))
    return Finding(
        SIZE,
        f"{what} has {ratio:.3g} times the claimed standard deviation",
        sure if rejected == "broken" else ratio,
        where[k],
        p=min(1.0, 2 * len(squares) * float(min(below[k], above[k]))),
        rejected=rejected,
    )


def check_noise_size(trials: Trials) -> Iterator[Finding]:
    """Whether the noise has the claimed size, in every part of it."""
    noise = trials.noise.deviations
    free = len(noise) - 1
    parts = {"all tensors": slice(None)} | {**trials.noise.parts}
    squares = np.array([np.mean(noise[:, part] ** 2) for part in parts.values()])
    counts = np.array([free * noise[:, part].shape[1] for part in parts.values()])
    names = [*parts]
    yield size_finding(squares[:1], counts[:1], names[:1], "the noise")
    yield size_finding(squares[1:], counts[1:], names[1:], "the noise of one tensor")
    # A single number with less noise hardly shows in its tensor.
    each = np.mean(noise**2, axis=0)
    owners = [f"number {i} of {name}" for name in trials.columns for i in trials.columns[name]]
    yield size_finding(each, np.full(len(each), free), owners, "the noise of one number")


# ---- beside other data


def check_noise_and_data(trials: Trials) -> Iterator[Finding]:
    """Whether the noise is the same whatever the data are."""
    yield from compare_batches(trials)
    yield from check_choice(trials)


def check_choice(trials: Trials) -> Iterator[Finding]:
    """Whether the data choose among draws of noise: of two draws the one that hides less, say.

    Under each seed the noise of a single example is held against that of none, and of another one.
    Where data have no say these differ by one move under all seeds or, where each batch has a draw
    of its own, under none alike.
    """
    if not trials.claims.seeded:
        return
    first, second = (scale(x, LOUD) if holds_floats(x) else x for x in trials.data[:2])
    few: list[Batch] = [[], [first], [second]]
    rest = trials.batch[1:]
    many: list[Batch] = [rest, [first, *rest], [second, *rest]]
    places = trials.chosen[kept_places(len(trials.chosen), CHOICE_COLUMNS)]
    sent = np.full(1, np.nan)
    # Among few examples each has the most to say; not every step takes so small a batch.
    for batches in (few, many):
        with contextlib.suppress(StepFailed):  # told by the check of such batches
            draws = range(trials.draws)
            sent = np.array([[trials.out(x, draw)[places] for draw in draws] for x in batches])
            break
    if not np.isfinite(sent).all():
        return
    trials.coupled = True
    for (one, a), (other, b) in itertools.combinations(enumerate(sent * trials.per_deviation), 2):
        gaps = a - b
        # In each number: the largest group of draws that agree.
        ordered = np.sort(gaps, axis=0)
        least = max(LEAST_AGREEING, trials.draws // 8)
        spans = ordered[least - 1 :] - ordered[: trials.draws - least + 1]
        at = np.argmin(spans, axis=0)
        usual = np.take_along_axis(ordered, at[None], axis=0)
        agree = np.abs(gaps - usual) <= SAME_NUMBER / 10
        groups = agree.sum(0)
        trials.coupled &= bool((groups == trials.draws).all())
        # Two examples that dropout leaves or not move at most two clip norms, whatever it draws.
        most = 1 if 0 in (one, other) else 2
        off = np.linalg.norm(np.where(agree, 0.0, gaps - usual), axis=1)
        far = off * trials.claims.noise_multiplier > 2 * most * (1 + SLACK)
        chosen = (groups >= least) & (groups < trials.draws)
        if chosen.any() and far.any() and trials.noise.sent is trials.noise.rows:
            share = 1 - float(agree[:, chosen].mean())
            text = (
                f"under {share:.0%} of the seeds one example has other noise than none, or another "
                "one, and under the rest the same: the data choose"
            )
            yield Finding(DATA, text, 0.0, "an example alone", "broken")
            return


def other_batches(trials: Trials) -> Iterator[tuple[str, Batch]]:
    """Batches whose noise must be that of the first one, whatever is in them."""
    batch = trials.batch
    size = len(batch)
    yield "twice the batch", [*batch, *batch]
    yield "four times the batch", [*batch] * 4
    yield "half of the batch", batch[: size // 2]
    yield "a batch of two", batch[:2]
    yield "the batch and all other examples", trials.data[: 4 * size]
    for i, example in enumerate(batch[:TRIED]):
        yield f"{trials.name(i)} alone", [example]
    factors = (1 / LOUD, -1.0, 10.0, LOUD, -LOUD) if holds_floats(batch[0]) else ()
    # Noise that follows the data, as that of a threshold from the batch, shrinks with them.
    for factor in factors:
        yield f"a batch scaled by {factor:g}", [scale(example, factor) for example in batch]
    # Of copies all that a batch may ask is true at once: one class, no loss, all correct.
    for i in range(len(trials.data[:COPIED])):
        yield f"copies of {trials.name(i)}", [trials.data[i]] * size
        for factor in factors:
            words = f"copies of {trials.name(i)} scaled by {factor:g}"
            yield words, [scale(trials.data[i], factor)] * size


def compare_batches(trials: Trials) -> Iterator[Finding]:
    """Compares the noise of other batches with that of the first: exactly where the draws are the
    same, by all draws where a pair of calls makes the batch suspect."""
    base = trials.pair_of(trials.quiet)
    on_a_grid = trials.noise.sent is not trials.noise.rows
    suspects: list[tuple[str, Batch, np.ndarray]] = []
    same = 0
    for where, examples in other_batches(trials):
        with trials.noting_failures(where):
            pair = trials.pair_of(examples)
            if not np.isfinite(pair).all():
                continue
            if np.abs(pair - base).max() <= SAME_NUMBER:
                same += 1
            # On a grid one draw may be rounded up beside other data, and down beside these.
            # Beside a chance of the batch's own, such as dropout, no difference is exact.
            elif on_a_grid or not trials.exact or not same_draw(base, pair):
                suspects.append((where, examples, pair))
            else:
                yield different_size(where, base, pair)
    yield Finding(DATA, f"on {same} other batches the noise is the same", 1.0)
    # The quietest are looked at closely, and one that is louder.
    suspects.sort(key=lambda suspect: ((suspect[2] == 0).mean() < 0.01, np.mean(suspect[2] ** 2)))
    for where, examples, _ in [*suspects[:TRIED], *suspects[TRIED:][-1:]]:
        with trials.noting_failures(where):
            found = compare_noise(trials, DATA, examples, where)
            # Each of the suspects could have been the quietest.
            if found is not None:
                p = None if found.p is None else min(1.0, found.p * len(suspects))
                yield found._replace(p=p)


def same_draw(base: np.ndarray, pair: np.ndarray) -> bool:
    """Whether two noises come from one draw, up to their size, in all or in most numbers."""
    equal = np.abs(pair - base) <= SAME_NUMBER / 10
    return bool(equal.mean() > 0.5) or cosine_where_noised(base, pair) >= SAME_DRAW


def cosine_where_noised(base: np.ndarray, pair: np.ndarray) -> float:
    """The cosine of two noises in the numbers in which the second has any."""
    noised = base[pair != 0]
    length = math.sqrt(float((noised**2).sum() * (pair**2).sum()))
    return float((base * pair).sum()) / length if length else 0.0


def different_size(where: str, base: np.ndarray, pair: np.ndarray) -> Finding:
    """What is said of a batch that gets the same draw of noise in another size.

    Args: where: the batch, in words. base, pair: noise of an ordinary batch and of it, (numbers,).
    """
    changed = int(np.argmax(np.abs(pair - base)))
    ratio = abs(float(pair[changed] / base[changed])) if base[changed] else math.inf
    whole = math.sqrt(float(np.mean(pair**2) / np.mean(base**2)))
    text = f"{where}: the same noise in another size, {whole:.3g} times altogether"
    if abs(ratio - whole) > NOISE_SLACK:
        text += f", {ratio:.3g} times in one number"
    return Finding(DATA, text, min(ratio, whole), where, "broken")


def compare_noise(trials: Trials, check: str, examples: Batch, where: str) -> Finding | None:
    """Compares the noise of another batch with that of the first one; nothing if it is not finite.

    Args: trials: of the step. check: its name. examples: the other batch. where: names it.
    """
    base = trials.noise.pairs
    compared = trials.noise_of(examples).pairs
    if not np.isfinite(compared).all():
        return None
    ratio = math.sqrt(float(np.mean(compared**2) / np.mean(base**2)))
    found = Finding(check, f"{where} gets {ratio:.3g} times the noise", ratio, where)
    # Noise that is exactly zero where there was some is skipped, and needs no statistics.
    silent = (base != 0).any(0) & (compared == 0).all(0)
    if silent.any():
        text = f"{where} gets no noise in {silent.mean():.0%} of the numbers"
        found = Finding(check, text, 0.0, where, "broken")
    # Where the draws are the same no chance is left.
    elif cosine_where_noised(base, compared) > SAME_DRAW:
        found = found._replace(verdict="sound" if abs(ratio - 1) <= NOISE_SLACK else "broken")
    else:
        below, above = ratio_tails(ratio**2, compared.size, base.size)
        # A batch with a chance of its own may vary more than an empty one that has all its noise.
        own_chance = not trials.quiet and np.mean(base**2) > ENOUGH
        p = float(below) if own_chance else min(1.0, 2 * float(min(below, above)))
        found = found._replace(p=p)
    return found
