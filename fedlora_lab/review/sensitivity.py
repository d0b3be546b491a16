"""How far one example moves what leaves a step: what is tried, and how it is judged."""

import math
from collections.abc import Collection, Iterator, Sequence

import numpy as np
from scipy import stats

from fedlora_lab._utils.validation import error_text
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
from fedlora_lab.review.trials import SLACK, Shift, Trials, judge_ratio

LONGEST_WAY = 64
HUGE = 1e3
"""A sum that is so many times as large as its noise may lose the noise in rounding."""


def extreme_examples(trials: Trials) -> tuple[Example, Example, Example]:
    """A strong example, one that moves the outputs as far from it as any, and the weakest.

    They are chosen by batches of copies, which add up: what happens to all of them shows.
    """
    pool = trials.batch[:8]
    # Examples without floating-point numbers, such as tokens, can be chosen but not scaled.
    if holds_floats(pool[0]):
        factors = (1 / LOUD, -1.0, 1.0, -LOUD, LOUD)
        pool = [scale(example, factor) for factor in factors for example in pool[:3]]
    numbers = [trials.out.places[name].start + x for name, x in trials.columns.items()]

    def means() -> np.ndarray:
        rows = []
        for example in pool:
            draws = [0] if trials.exact else [next(trials.fresh) for _ in range(TRIED)]
            calls = [trials.out([example] * len(trials.batch), draw) for draw in draws]
            rows.append(np.mean(calls, axis=0)[np.concatenate(numbers)] * trials.per_clip)
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
    if trials.exact:
        points = np.array([trials.in_clips(trials.out(batch, 0)) for batch in way])
    else:
        direction = trials.direction(end, start)
        along = [
            trials.in_clips(trials.out(batch, draw)) @ direction
            for batch, draw in zip(way, trials.fresh)
        ]
        points = np.array(along)[:, None]
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


def check_sensitivity(trials: Trials, strong: Example, *ends: Example) -> Iterator[Finding]:
    """How far one example moves everything, and whether any moves anything.

    Args: trials: of the step. strong, ends: see `extreme_examples`.
    """
    changes = single_changes(trials.batch, trials.replaced, 8 if trials.exact else 1)
    singles = [(trial.words, trials.measure(trial)) for trial in changes]
    # Copies add up: a rule of the batch that changes them all shows at once.
    ways = [tipping_point(trials, end, strong) for end in ends]
    shifts = [*singles, *((way.words, trials.measure(way, brief=True)) for way in ways)]
    for words, shift in shifts:
        yield judge_shift(trials, "sensitivity", words, shift, trials.limit)
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
    usual = trials.in_clips(trials.out(copies, 0) - trials.out(copies, 1))
    for kind, example in bad.items():
        words = f"an example of {kind} among copies of another"
        trial = beside_copies(trials, words, example, strong)
        batch, _ = trial.batches()
        try:
            sent = trials.out(batch, 0)
            share = float(np.mean(~np.isfinite(sent)))
        except Exception as error:  # a step that refuses such data is in order
            yield Finding(check, f"the step refuses {kind}: {error_text(error, 80)}", 0.0, words)
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
