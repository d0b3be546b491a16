"""Whether the noise has the claimed size: altogether, in every tensor and number, along every move
that data make, and on every batch."""

import contextlib
import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy import stats

from fedlora_lab.review.claims import Finding, Verdict
from fedlora_lab.review.neighbours import LOUD, TRIED, Batch, Neighbours, holds_floats, scale
from fedlora_lab.review.outputs import StepFailed
from fedlora_lab.review.post_processing import after_processing, processing_of
from fedlora_lab.review.trials import Trials
from fedlora_lab.review.whitening import changed_together

CHECK = "noise size"
NOISE_SLACK = 0.01
"""A noise that is wrong by less than this share is not called wrong: epsilon hardly moves."""
SURE = 3.0
"""Standard errors that are added to a size before epsilon is computed from it."""
COPIED = 24
"""Examples of which batches of copies are made."""
SAME_DRAW = 0.999
"""Cosine of two noises from which on they are one draw, up to their size."""
SAME_NUMBER = 0.05
"""Difference of one number of one draw, in claimed deviations, that may be rounding."""


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
        CHECK,
        f"{what} has {ratio:.3g} times the claimed standard deviation",
        sure if rejected == "broken" else ratio,
        where[k],
        p=min(1.0, 2 * len(squares) * float(min(below[k], above[k]))),
        rejected=rejected,
    )


def check_noise_size(trials: Trials) -> Iterator[Finding]:
    """Whether the noise has the claimed size, in every part of it and whatever the data are."""
    noise = trials.noise.deviations
    free = len(noise) - 1
    parts = {"all tensors": slice(None)} | {**trials.noise.parts}
    squares = np.array([np.mean(noise[:, part] ** 2) for part in parts.values()])
    counts = np.array([free * noise[:, part].shape[1] for part in parts.values()])
    names = [*parts]
    found = [
        size_finding(squares[:1], counts[:1], names[:1], "the noise"),
        size_finding(squares[1:], counts[1:], names[1:], "the noise of one tensor"),
    ]
    # A single number with less noise hardly shows in its tensor.
    each = np.mean(noise**2, axis=0)
    owners = [f"number {i} of {name}" for name in trials.columns for i in trials.columns[name]]
    found.append(size_finding(each, np.full(len(each), free), owners, "the noise of one number"))
    yield from (changed_together(trials, one) for one in [*found, *along_moves(trials)])
    yield from compare_batches(trials)


def along_moves(trials: Trials) -> Iterator[Finding]:
    """Whether there is noise in the directions in which data move what leaves: there it counts."""
    what = "along a move that data make, the noise"
    if trials.exact:
        moves = {**trials.moves}
        whole = Neighbours("the whole batch", [], trials.batch)
        with contextlib.suppress(StepFailed):  # told by the check of the empty batch
            # Remembered among the moves only where noise cancels, and no move of one example.
            if not trials.replaced and trials.exact_shift(whole):
                moves[whole.words] = trials.moves.pop(whole.words, np.zeros(len(trials.chosen)))
        lengths = {words: float(np.linalg.norm(x)) for words, x in moves.items()}
        moves = {words: moves[words] / length for words, length in lengths.items() if length}
        if moves:
            along = trials.noise.deviations @ np.stack([*moves.values()]).T
            free = np.full(len(moves), len(along) - 1)
            yield size_finding(np.mean(along**2, axis=0), free, [*moves], what)
        return
    copies = [trials.batch[0]] * len(trials.batch)
    for words, batch in {"the whole batch": trials.batch, "copies of example 0": copies}.items():
        with trials.noting_failures(words):
            # Away from an empty batch, or from half of this one where none can be empty.
            away = batch[: len(batch) // 2] if trials.quiet else []
            direction = trials.direction(batch, away)
            # Draws that the direction was not learned on.
            draws = itertools.islice(trials.fresh, trials.draws)
            seen = [trials.in_clips(trials.out(batch, draw)) @ direction for draw in draws]
            square = float(np.var(seen, ddof=1)) / trials.claims.noise_multiplier**2
            if direction.any() and math.isfinite(square):
                found = size_finding(np.array([square]), np.array([len(seen) - 1]), [words], what)
                # A batch with a chance of its own varies more than its noise.
                yield found if found.rejected == "broken" else found._replace(p=1.0)


# ---- on other batches


class Look(NamedTuple):
    """A batch whose noise is compared: its name, its examples, and a pair of calls."""

    where: str
    examples: Batch
    pair: np.ndarray


def other_batches(trials: Trials) -> Iterator[tuple[str, Batch]]:
    """Batches whose noise must be that of the first one, whatever is in them."""
    batch = trials.batch
    size = len(batch)
    if not trials.replaced:
        yield "twice the batch", [*batch, *batch]
        yield "four times the batch", [*batch] * 4
        yield "half of the batch", batch[: size // 2]
        yield "a batch of two", batch[:2]
        yield "the batch and all other examples", trials.data[: 4 * size]
        for i, example in enumerate(batch[:TRIED]):
            yield f"example {i} alone", [example]
    factors = (1 / LOUD, -1.0, 10.0, LOUD, -LOUD) if holds_floats(batch[0]) else ()
    # Noise that follows the data, as that of a threshold from the batch, shrinks with them.
    for factor in factors:
        yield f"a batch scaled by {factor:g}", [scale(example, factor) for example in batch]
    # Of copies all that a batch may ask is true at once: one class, no loss, all correct.
    for i in range(len(trials.data[:COPIED])):
        yield f"copies of example {i}", [trials.changed(i)] * size
        for factor in factors:
            words = f"copies of example {i} scaled by {factor:g}"
            yield words, [trials.changed(i, factor)] * size


def compare_batches(trials: Trials) -> Iterator[Finding]:
    """Compares the noise of other batches with that of the first: exactly where the draws are the
    same, by all draws where a pair of calls makes the batch suspect."""
    base = trials.pair_of(trials.quiet)
    on_a_grid = trials.noise.sent is not trials.noise.rows
    suspects: list[Look] = []
    same = 0
    for where, examples in other_batches(trials):
        with trials.noting_failures(where):
            look = Look(where, examples, trials.pair_of(examples))
            if not np.isfinite(look.pair).all():
                continue
            if np.abs(look.pair - base).max() <= SAME_NUMBER:
                same += 1
            # On a grid one draw may be rounded up beside other data, and down beside these.
            elif on_a_grid or not same_draw(base, look.pair):
                suspects.append(look)
            else:
                yield different_size(base, look)
    if same:
        yield Finding(CHECK, f"on {same} other batches the noise is the same", 1.0)
    # The quietest are looked at closely, and one that is louder.
    suspects.sort(key=lambda look: ((look.pair == 0).mean() < 0.01, float(np.mean(look.pair**2))))
    for look in [*suspects[:TRIED], *suspects[TRIED:][-1:]]:
        with trials.noting_failures(look.where):
            found = compare_noise(trials, CHECK, look.examples, look.where)
            # Each of the suspects could have been the quietest.
            if found is not None and found.p is not None:
                found = found._replace(p=min(1.0, found.p * len(suspects)))
            if found is not None:
                yield found


def same_draw(base: np.ndarray, pair: np.ndarray) -> bool:
    """Whether two noises come from one draw, up to their size, in all or in most numbers."""
    equal = np.abs(pair - base) <= SAME_NUMBER / 10
    return bool(equal.mean() > 0.5) or cosine_where_noised(base, pair) >= SAME_DRAW


def cosine_where_noised(base: np.ndarray, pair: np.ndarray) -> float:
    """The cosine of two noises in the numbers in which the second has any."""
    noised = base[pair != 0]
    length = math.sqrt(float((noised**2).sum() * (pair**2).sum()))
    return float((base * pair).sum()) / length if length else 0.0


def different_size(base: np.ndarray, look: Look) -> Finding:
    """What is said of a batch that gets the same draw of noise in another size."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(np.abs(base) > SAME_NUMBER, look.pair / base, 1.0)
    ratio = float(ratios[np.argmax(np.abs(ratios - 1))])
    whole = math.sqrt(float(np.mean(look.pair**2) / np.mean(base**2)))
    text = f"{look.where}: the same noise in another size, {whole:.3g} times altogether"
    if abs(ratio - whole) > NOISE_SLACK:
        text += f", {ratio:.3g} times in one number"
    return Finding(CHECK, text, min(abs(ratio), whole), look.where, "broken")


def compare_noise(trials: Trials, check: str, examples: Batch, where: str) -> Finding | None:
    """Compares the noise of another batch with that of the first one; nothing if it is not finite.

    Args: trials: of the step. check: its name. examples: the other batch. where: names it.
    """
    base = trials.noise.pairs
    noise = trials.noise_of(examples)
    compared = noise.pairs
    if not np.isfinite(compared).all():
        return None
    # Noise that is exactly zero where there was some is skipped, and needs no statistics.
    silent = (base != 0).any(0) & (compared == 0).all(0)
    if silent.any():
        share = "" if silent.all() else f" in {silent.mean():.0%} of the numbers"
        found = Finding(check, f"{where} gets no noise{share}", 0.0, where, "broken")
    else:
        found = judge_ratio(trials, check, base, compared, where)
    words, _ = processing_of(noise)
    # What follows the noise may make it smaller, by the data too: no leak.
    return after_processing(found, words) if words and not silent.all() else found


def judge_ratio(
    trials: Trials, check: str, base: np.ndarray, compared: np.ndarray, where: str
) -> Finding:
    """Says whether two noises have one size.

    Args: trials, check, where: as of `compare_noise`. base, compared: draws at equal seeds.
    """
    ratio = float(np.sqrt(np.mean(compared**2) / np.mean(base**2)))
    text = f"{where} gets {ratio:.3g} times the noise"
    # Where numbers are silent the others tell whether the draws are the same.
    if cosine_where_noised(base, compared) > SAME_DRAW:  # they are: no chance is left
        verdict: Verdict = "sound" if abs(ratio - 1) <= NOISE_SLACK else "broken"
        return Finding(check, text, ratio, where, verdict)
    below, above = ratio_tails(ratio**2, compared.size, base.size)
    # Where a batch has a chance of its own, it may well vary more than its noise.
    p = min(1.0, 2 * float(min(below, above))) if trials.quiet else float(below)
    return Finding(check, text, ratio, where, p=p)
