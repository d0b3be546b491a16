"""How far one example moves what leaves a step: what is tried, and how it is judged."""

import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np
from scipy import stats

from fedlora_lab.review.claims import Finding, Verdict
from fedlora_lab.review.neighbours import (
    LOUD,
    OVERFLOWS,
    TRIED,
    Batch,
    Example,
    Neighbours,
    holds_floats,
    scale,
    single_changes,
)
from fedlora_lab.review.noise_size import judge_ratio
from fedlora_lab.review.outputs import StepFailed
from fedlora_lab.review.trials import SLACK, Shift, Trials

LONGEST_WAY = 64
BESIDE = 8
"""Examples of which each is put among copies of each other one."""
HUGE = 1e3
"""A sum that is so many times as large as its noise may lose the noise in rounding."""


def extreme_examples(trials: Trials) -> tuple[Example, Example, Example]:
    """A strong example, one that moves the outputs as far from it as any, and the weakest.

    They are chosen by batches of copies, which add up: what happens to all of them shows.
    """
    pool = [trials.changed(i) for i in range(len(trials.batch[:8]))]
    # Examples without floating-point numbers, such as tokens, can be chosen but not scaled.
    if holds_floats(pool[0]):
        factors = (1 / LOUD, -1.0, 1.0, -LOUD, LOUD)
        pool = [trials.changed(i, f) for f in factors for i in range(len(pool[:3]))]
    numbers = [trials.out.places[name].start + x for name, x in trials.columns.items()]

    def means() -> np.ndarray:
        # An example on which the step fails stays at zero.
        rows = np.zeros((len(pool), sum(map(len, numbers))))
        for row, example in zip(rows, pool):
            draws = [0] if trials.exact else [next(trials.fresh) for _ in range(TRIED)]
            with trials.noting_failures("copies of one example, as it is or scaled"):
                calls = [trials.out([example] * len(trials.batch), draw) for draw in draws]
                row[:] = np.mean(calls, axis=0)[np.concatenate(numbers)] * trials.per_clip
        return np.nan_to_num(rows, nan=0.0, posinf=0.0, neginf=0.0)

    first = means()
    # With noise, two means whose errors are independent: their products are not biased.
    products = first @ (first if trials.exact else means()).T
    lengths = np.diag(products)
    squares = lengths[:, None] + lengths - products - products.T
    apart = np.sqrt(np.maximum(squares, 0.0)).round(2)
    # Of those that move equally far from a weak one, the loudest; against it, the least loud.
    strong = len(pool) - 1 - int(np.argmax(apart[0][::-1]))
    return pool[strong], pool[int(np.argmax(apart[strong]))], pool[int(np.argmin(lengths))]


def beside_copies(trials: Trials, words: str, example: Example, other: Example) -> Neighbours:
    """An example among copies of another one, against the copies alone.

    Args: trials: of the step. words: say what was done. example, other: the two.
    """
    copies = [other] * (len(trials.batch) - 1)
    return Neighbours(words, copies, [example], [other] if trials.replaced else [])


def farthest_beside_copies(trials: Trials) -> list[Neighbours]:
    """Pairs of an example and copies of another one in which it moves all that leaves farthest.

    What a step computes from its batch before the clip, such as a weight for each class, shifts
    all copies together when one other example comes. Where noise does not cancel, such a search
    would take too many calls.
    """
    examples = trials.data[:BESIDE]
    every = list(itertools.product(enumerate(examples), enumerate(examples)))
    tried = trials.rng.permutation(len(every))[: trials.draws]
    pairs = [(*every[n][0], *every[n][1], len(trials.batch) - 1) for n in tried]
    scaled = [*enumerate(examples)]
    if holds_floats(examples[0]):
        factors = (-1.0, LOUD, -LOUD)
        scaled += [(i, trials.changed(i, f)) for f in factors for i in range(len(examples))]
    # Also a few copies of examples that hardly move, which a rule of the batch may wake.
    for a, b in trials.rng.integers(len(scaled), size=(len(pairs), 2)):
        copies = len(trials.batch) - 1 if trials.replaced else int(trials.rng.integers(1, 6))
        pairs.append((*scaled[a], *scaled[b], copies))
    found: list[tuple[float, Neighbours]] = []
    for k, example, i, other, copies in pairs if trials.exact else []:
        words = f"example {k} (or scaled) among {copies} copies of example {i} (or scaled)"
        beside = [other] if trials.replaced else []
        trial = Neighbours(words, [other] * copies, [example], beside)
        with trials.noting_failures(words):
            one, without = trial.batches()
            gap = trials.in_clips(trials.out(one, 0) - trials.out(without, 0))
            found.append((float(np.nan_to_num(np.linalg.norm(gap), nan=np.inf)), trial))
    found.sort(key=lambda pair: -pair[0])
    return [trial for _, trial in found[:TRIED]]


def tipping_point(trials: Trials, start: Example, end: Example) -> Neighbours:
    """Finds neighbours on a way from copies of one example to copies of another.

    Where the batch decides which examples count, a majority tips on this way, and one example moves
    many.

    Args: trials: of the step. start, end: the two examples.
    """
    length = len(trials.batch)
    if trials.replaced:
        windows = [range(i, i + length) for i in range(length + 1)]
    else:
        # Batches grow until they hold all copies, and shrink again.
        length = min(length, LONGEST_WAY)
        windows = [range(i) for i in range(1, 2 * length + 1)]
        windows += [range(i, 2 * length) for i in range(1, length + 1)]
    items = [start] * length + [end] * length
    # Mixed, so that a step which cuts its batch into pieces has both in each.
    order = trials.rng.permutation(2 * length).tolist()

    def batch(kept: Collection[int]) -> Batch:
        return [items[i] for i in order if i in kept]

    way = [batch(window) for window in windows]
    at = farthest_step(trials, way, [start] * length, [end] * length)
    before, after = windows[at : at + 2]
    starts = sum(i < length for i in before)
    return Neighbours(
        f"{starts} copies of one and {len(before) - starts} of another example, one changed",
        shared=batch({*before} & {*after}),
        ones=batch({*after} - {*before}),
        others=batch({*before} - {*after}),
    )


def farthest_step(trials: Trials, way: Sequence[Batch], start: Batch, end: Batch) -> int:
    """Which batch of a way lies farthest from the next one.

    Args: way: batches. start, end: two that show the direction, where one call is but noise.
    """
    direction = np.zeros(0)
    points: list[np.ndarray] = []
    if not trials.exact:
        direction = trials.direction(end, start)
    for batch in way:
        # A batch on which the step fails counts as the one before.
        point = points[-1:] or [np.zeros(int(trials.kept.sum()) if trials.exact else 1)]
        with trials.noting_failures("copies of two examples, one changed"):
            sent = trials.in_clips(trials.out(batch, 0 if trials.exact else next(trials.fresh)))
            point = [sent if trials.exact else np.array([sent @ direction])]
        points += point
    sizes = np.linalg.norm(np.diff(points, axis=0), axis=1)
    return int(np.argmax(np.nan_to_num(sizes, nan=np.inf)))


def judge_shift(trials: Trials, check: str, words: str, shift: Shift, limit: float) -> Finding:
    """Says whether one example may move so far.

    Args: check, words: its name, and what was tried. shift: measured. limit: in clip norms.
    """
    value, error = shift
    text = f"one example moves all that leaves together by {value:.4g} clip norms"
    if trials.replaced:
        text += " (2 are allowed, for a replacement)"
    # Estimated through the noise: chance decides. Else the difference is exact.
    if error:
        p = float(stats.t.sf((value - limit) / error, trials.draws - 2))
        return Finding(check, f"{text} ± {error:.2g}", value, words, p=p)
    verdict: Verdict = "sound" if value <= limit * (1 + SLACK) else "broken"
    return Finding(check, text, value, words, verdict)


def measured(
    trials: Trials, changes: Iterable[Neighbours], *, brief: bool
) -> list[tuple[str, Shift]]:
    """How far each pair of neighbours lies apart, but for those on which the step fails.

    Args: trials: of the step. changes: pairs of neighbours. brief: see `Trials.estimate`.
    """
    shifts = []
    for trial in changes:
        with trials.noting_failures(trial.words):
            shifts.append((trial.words, trials.measure(trial, brief=brief)))
    return shifts


def check_sensitivity(trials: Trials, strong: Example, *ends: Example) -> Iterator[Finding]:
    """How far one example moves everything, and whether any moves anything.

    Args: trials: of the step. strong, ends: see `extreme_examples`.
    """
    changes = single_changes(trials.batch, trials.replaced, 8 if trials.exact else 1)
    singles = measured(trials, changes, brief=False)
    # Copies add up: a rule of the batch that changes them all shows at once.
    ways = []
    for end in ends:
        with trials.noting_failures("copies of two examples"):
            ways.append(tipping_point(trials, end, strong))
    shifts = singles + measured(trials, [*ways, *farthest_beside_copies(trials)], brief=True)
    for words, shift in shifts:
        yield judge_shift(trials, "sensitivity", words, shift, trials.limit)
    if not singles:
        yield Finding("sensitivity", "the step fails on every changed batch", verdict="cannot tell")
        return
    words, best = max(singles, key=lambda single: single[1].value)
    # An example that is cut at the clip norm must show; one that hardly does proves nothing.
    uncertain = best.value <= trials.limit / 2 or best.value + 3 * best.error > 1.5 * trials.limit
    if best.error and uncertain:
        text = f"found {best.value:.2g} ± {best.error:.2g}: more draws would tell"
        yield Finding("sensitivity", text, best.value, words, "cannot tell")
    text = f"{words} moves the noised outputs by {best.value:.3g} clip norms"
    verdict: Verdict = "sound"
    # A move that is visible is more than rounding, and more than noise.
    if not any(shift.value > max(1e-6, 5 * shift.error) for _, shift in shifts):
        text = "no example moves any noised output"
        verdict = "cannot tell" if best.error else "broken"
    yield Finding("signal", text, best.value, words, verdict)


def check_non_finite(trials: Trials, strong: Example, limit: float) -> Iterator[Finding]:
    """Puts an example that is not finite, or overflows, among copies of another. These must count
    as without it, and the noise must be that of any other batch.

    Args: trials: of the step. strong: example that is copied. limit: of what it may move.
    """
    check = "non-finite"
    if not holds_floats(strong):
        yield Finding(check, "examples hold no floating-point numbers", 0.0)
        return
    bad = {"NaN": scale(strong, math.nan), "infinity": scale(strong, math.inf)}
    for factor in OVERFLOWS if trials.exact else OVERFLOWS[2::2]:
        bad[f"numbers {factor:g} times as large"] = scale(strong, factor)
    copies = beside_copies(trials, "", strong, strong).batches()[1]
    try:
        usual = trials.in_clips(trials.out(copies, 0) - trials.out(copies, 1))
    except StepFailed as failed:
        yield Finding(
            check, f"the step fails on copies of one example: {failed}", verdict="cannot tell"
        )
        return
    for kind, example in bad.items():
        words = f"an example of {kind} among copies of another"
        trial = beside_copies(trials, words, example, strong)
        batch, _ = trial.batches()
        try:
            sent = trials.out(batch, 0)
            share = float(np.mean(~np.isfinite(sent)))
        except StepFailed as failed:  # a step that refuses such data is in order
            yield Finding(check, f"the step refuses {kind}: {failed}", 0.0, words)
            continue
        if share:  # to be seen by all: no training goes on with it
            text = f"an example of {kind} makes {share:.0%} of all numbers NaN or infinite"
            text += "; epsilon holds only if no such example comes here"
            verdict: Verdict = "cannot tell" if trials.claims.finite else "broken"
            yield Finding(check, text, math.inf, words, verdict)
            continue
        # A step may leave out its noise, not its sum, where it meets such numbers. In a sum that
        # is far too large rounding swallows it: what is broken there is the clip.
        noise = trials.in_clips(sent - trials.out(batch, 1))
        # Where equal seeds do not give equal noise, the batch may have a chance of its own.
        if (trials.exact or not noise.any()) and (
            np.linalg.norm(trials.in_clips(sent)) < HUGE * np.linalg.norm(usual)
        ):
            yield judge_ratio(trials, "noise size", usual, noise, words)
        # It may count as zero or as another example does, never further.
        yield judge_shift(trials, check, words, trials.measure(trial, brief=True), limit)
