"""How far one example moves what leaves a step: what is tried, and how it is judged."""

import contextlib
import itertools
import math
from collections.abc import Collection, Iterable, Iterator

import numpy as np
from scipy import stats

from dp_review.claims import Finding, Verdict
from dp_review.neighbours import (
    COPIES,
    LOUD,
    MOST_ROWS,
    OVERFLOWS,
    TRIED,
    Batch,
    Example,
    Neighbours,
    holds_floats,
    row_change,
    scale,
)
from dp_review.noise_size import DATA
from dp_review.outputs import StepFailed
from dp_review.trials import SLACK, Shift, Trials

LONGEST_WAY = 64
SIZES = (*(10.0**k for k in range(-6, 0)), *(10.0**k for k in range(1, 7)), -LOUD)
"""Factors of the examples that are tried in many sizes."""
REACHED = 0.9
"""Share of the limit from which on an example counts as clipped, however loud it is made."""
RULE = 0.05
"""Difference of two moves by one example, in units of the limit, that rounding does not explain."""


def extreme_examples(batch: Batch) -> list[Example]:
    """A strong example, and others that move the outputs far from it, or hardly at all.

    Args: batch: of ordinary examples.
    """
    # Examples without floating-point numbers, such as tokens, cannot be scaled.
    if not holds_floats(batch[0]):
        return batch[:TRIED]
    chosen = ((0, LOUD), (0, -LOUD), (1, LOUD), (1, -LOUD), (2, LOUD), (2, -LOUD), (0, 1 / LOUD))
    return [scale(batch[i], factor) for i, factor in chosen]


def turned_sums(trials: Trials) -> list[Neighbours]:
    """A loud example beside a tiny copy of itself: a sum that is brought to one length turns round
    where it was short."""
    if not holds_floats(trials.data[0]):
        return []
    turned = []
    for i, far in itertools.product(range(TRIED), (LOUD, -LOUD)):
        words = f"{trials.name(i)} scaled by {far:g}, beside it scaled by {1 / LOUD:g}"
        loud, tiny = (scale(trials.data[i], factor) for factor in (far, 1 / LOUD))
        turned.append(Neighbours(words, [tiny], [loud]))
    return turned


def factors_of(trials: Trials, i: int) -> Iterator[float]:
    """By what an example is scaled: not at all, and until it moves as far as a clip lets it.

    Args: trials: of the step. i: place of the example.
    """
    yield 1.0
    if not holds_floats(trials.data[i]):
        return
    # A clip may fail in some sizes only, as where squares vanish.
    ladder = SIZES if i < TRIED else ()
    yield from ladder
    for factor in (LOUD, -LOUD, 10.0, -10.0):
        if factor not in ladder and trials.loudest.get(i, 0.0) < REACHED:
            yield factor


def single_changes(trials: Trials) -> Iterator[tuple[int, Neighbours]]:
    """Each example left out, as it is and made loud, with its place."""
    for i, example in enumerate(trials.data[:MOST_ROWS]):
        for factor in factors_of(trials, i):
            words = f"{trials.name(i)} {'left out' if factor == 1 else f'scaled by {factor:g}'}"
            yield i, row_change(trials.batch, i, scale(example, factor), words)


def farthest_single_changes(trials: Trials) -> list[Neighbours]:
    """Of all changes of single examples those that move what leaves farthest, by one pair of calls
    each, under a few seeds in turn."""
    found: list[tuple[float, int, Neighbours]] = []
    for i, trial in single_changes(trials):
        with trials.noting_failures(trial.words):
            gap = trials.in_clips(trials.gap(trial, i % TRIED))
            moved = float(np.nan_to_num(np.linalg.norm(gap), nan=math.inf))
            trials.loudest[i] = max(moved, trials.loudest.get(i, 0.0))
            trials.left_out.add(i)
            found.append((-moved, len(found), trial))
    return [trial for _, _, trial in sorted(found)[:TRIED]]


def likely_single_changes(trials: Trials) -> list[Neighbours]:
    """The same where noise does not cancel: those whose copies move farthest in two calls each."""
    batch = trials.batch
    found: list[tuple[float, int, Neighbours]] = []
    base = np.zeros((2, int(trials.kept.sum())))
    with trials.noting_failures("an ordinary batch"):
        for _ in range(TRIED):
            for side in (0, 1):
                sent = trials.in_clips(trials.out(batch, next(trials.fresh)))
                base[side] += sent / TRIED
    for i, example in enumerate(trials.data[:MOST_ROWS]):
        for factor in (1.0, LOUD) if holds_floats(example) else (1.0,):
            words = f"{trials.name(i)} {'left out' if factor == 1 else f'scaled by {factor:g}'}"
            row = scale(example, factor)
            with trials.noting_failures(words):
                far = [*batch, *[row] * COPIES]
                one, other = (trials.in_clips(trials.out(far, next(trials.fresh))) for _ in base)
                # The two have noise of their own: their product has none on average.
                square = float(np.nan_to_num((one - base[0]) @ (other - base[1]), nan=math.inf))
                trial = row_change(batch, i, row, words)
                found.append((-square, len(found), trial))
                trials.left_out.add(i)
    return [trial for _, _, trial in sorted(found)[:TRIED]]


def changes_of_two(trials: Trials) -> Iterator[Neighbours]:
    """An example twice, and one that is loud beside a single other one."""
    batch = trials.batch
    yield Neighbours(f"{trials.name(0)} twice", batch, batch[:1])
    words = f"{trials.name(0)} scaled by 1e6, in a batch of two"
    yield Neighbours(words, batch[1:2], [scale(batch[0], LOUD)])


def tipping_point(trials: Trials, start: Example, end: Example) -> Neighbours:
    """Finds the neighbours that lie farthest apart on a way from copies of one example to copies of
    another.

    Where the batch decides which examples count, a majority tips on this way, and one example moves
    many.

    Args: trials: of the step. start, end: the two examples.
    """
    length = min(len(trials.batch), LONGEST_WAY)
    # Batches grow until they hold all copies, and shrink again.
    windows = [range(i) for i in range(1, 2 * length + 1)]
    windows += [range(i, 2 * length) for i in range(1, length + 1)]
    items = [start] * length + [end] * length
    # Mixed, so that a step which cuts its batch into pieces has both in each.
    order = trials.rng.permutation(2 * length).tolist()

    def batch(kept: Collection[int]) -> Batch:
        return [items[i] for i in order if i in kept]

    points: list[np.ndarray] = []
    for window in windows:
        # A batch on which the step fails counts as the one before.
        point = points[-1] if points else np.zeros(int(trials.kept.sum()))
        with trials.noting_failures("copies of two examples, one changed"):
            point = trials.in_clips(trials.out(batch(window), 0))
        points.append(point)
    moved = np.linalg.norm(np.diff(points, axis=0), axis=1)
    at = int(np.argmax(np.nan_to_num(moved, nan=np.inf)))
    before, after = windows[at : at + 2]
    starts = sum(i < length for i in before)
    return Neighbours(
        f"{starts} copies of one and {len(before) - starts} of another example, one changed",
        shared=batch({*before} & {*after}),
        ones=batch({*after} - {*before}),
        others=batch({*before} - {*after}),
    )


def judge_shift(trials: Trials, check: str, words: str, shift: Shift, limit: float) -> Finding:
    """Says whether one example may move so far.

    Args: check, words: its name, and what was tried. shift: measured. limit: in clip norms.
    """
    value, error = shift
    text = f"one example moves all that leaves together by {value:.4g} clip norms"
    # Estimated through the noise: chance decides. Else the difference is exact.
    if error:
        p = float(stats.t.sf((value - limit) / error, trials.draws - 2))
        return Finding(check, f"{text} ± {error:.2g}", value, words, p=p)
    verdict: Verdict = "sound" if value <= limit * (1 + SLACK) else "broken"
    return Finding(check, text, value, words, verdict)


def measured(trials: Trials, changes: Iterable[Neighbours]) -> list[tuple[str, Shift]]:
    """How far each pair of neighbours lies apart, but for those on which the step fails."""
    shifts = []
    for trial in changes:
        with trials.noting_failures(trial.words):
            shifts.append((trial.words, trials.measure(trial)))
    return shifts


def check_sensitivity(trials: Trials, strong: Example, *ends: Example) -> Iterator[Finding]:
    """How far one example moves everything, and whether any moves anything.

    Args: trials: of the step. strong, ends: see `extreme_examples`.
    """
    chosen = (farthest_single_changes if trials.exact else likely_single_changes)(trials)
    singles = measured(trials, [*chosen, *changes_of_two(trials)])
    shifts = [*singles]
    # Such searches take too many calls where noise does not cancel.
    if trials.exact:
        # Copies add up: a rule of the batch that changes them all shows at once.
        ways = [tipping_point(trials, end, strong) for end in ends]
        shifts += measured(trials, [*ways, *turned_sums(trials)])
        yield from check_rule_of_batch(trials)
    for words, shift in shifts:
        yield judge_shift(trials, "sensitivity", words, shift, 1.0)
    if not singles:
        yield Finding("sensitivity", "the step fails on every changed batch", verdict="cannot tell")
        return
    words, best = max(singles, key=lambda single: single[1].value)
    # An example that is cut at the clip norm must show; one that hardly does proves nothing.
    uncertain = best.value <= 0.5 or best.value + 3 * best.error > 1.5
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


def check_rule_of_batch(trials: Trials) -> Iterator[Finding]:
    """Whether an example moves what leaves alike beside other examples, as in a sum it does.

    Where it does not, the batch has a rule, and the worst batch for it may not have been tried.
    """
    size = len(trials.batch)
    others = [trials.data[-1]] * (size - 1)
    for i, example in enumerate(trials.batch[:TRIED]):
        loud = scale(example, LOUD) if holds_floats(example) else example
        beside = [trials.batch[:i] + trials.batch[i + 1 :], others, []]
        beside += [trials.batch[size - 1 :], trials.batch[: i // 2]]
        for row in (example, loud):
            moves = []
            for shared in beside:
                # A batch on which the step fails is told where that is looked at.
                with contextlib.suppress(StepFailed):
                    gap = trials.gap(Neighbours("", shared, [row], place=0), 0)
                    moves.append(trials.in_clips(gap))
            apart = max((float(np.linalg.norm(x - moves[0])) for x in moves), default=0.0)
            if apart > RULE:
                text = (
                    "one example moves what leaves otherwise beside other examples, by "
                    f"{apart:.2g} clip norms: no sum of clipped examples, but a rule of the batch, "
                    "for which the worst batch need not have been tried"
                )
                yield Finding("sensitivity", text, apart, trials.name(i), "not as claimed")
                return


def check_non_finite(trials: Trials, strong: Example, limit: float) -> Iterator[Finding]:
    """Puts an example that is not finite, or overflows, among copies of another. These must count
    as without it, and there must be noise as on any other batch.

    Args: trials: of the step. strong: example that is copied. limit: of what it may move.
    """
    check = "non-finite"
    if not holds_floats(strong):
        yield Finding(check, "examples hold no floating-point numbers", 0.0)
        return
    bad = {"NaN": scale(strong, math.nan), "infinity": scale(strong, math.inf)}
    for factor in OVERFLOWS if trials.exact else OVERFLOWS[2::2]:
        bad[f"numbers {factor:g} times as large"] = scale(strong, factor)
    for kind, example in bad.items():
        words = f"an example of {kind} among copies of another"
        trial = Neighbours(words, [strong] * (len(trials.batch) - 1), [example])
        batch, without = trial.batches()
        with trials.noting_failures("copies of one example"):
            trials.out(without, 0)
            try:
                sent = np.stack([trials.in_clips(trials.out(batch, draw)) for draw in (0, 1)])
            except StepFailed as failed:  # a step that refuses such data is in order
                yield Finding(check, f"the step refuses {kind}: {failed}", 0.0, words)
                continue
            share = float(np.mean(~np.isfinite(sent)))
            if share:  # to be seen by all: no training goes on with it
                text = f"an example of {kind} makes {share:.0%} of all numbers NaN or infinite"
                text += "; epsilon holds only if no such example comes here"
                verdict: Verdict = "cannot tell" if trials.claims.finite else "broken"
                yield Finding(check, text, math.inf, words, verdict)
                continue
            # It may count as zero or as another example does, never further.
            moved = judge_shift(trials, check, words, trials.measure(trial), limit)
            yield moved
            # A step may leave out its noise, not its sum, where it meets such numbers. In a sum
            # that is far too large rounding swallows it: what is broken there is the clip.
            if moved.number <= 1 + SLACK and (sent[0] == sent[1]).all():
                yield Finding(DATA, f"{words}: there is no noise", 0.0, words, "broken")
