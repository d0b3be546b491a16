"""Checks of a private training step from outside: what one example moves, and what hides it.

A step is called again and again from the same state, with other examples and other seeds, and
everything that leaves it is compared. Where equal seeds give equal noise, differences are exact.
Where they do not, a direction is learned on one half of the calls and measured on the other half.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from fedlora_lab._utils.validation import check, error_text
from fedlora_lab.review.claims import Claims, Evidence, Step, Verdict
from fedlora_lab.review.examples import (
    COPIES,
    LOUD,
    OVERFLOWS,
    Neighbours,
    neighbours,
    only_largest,
    same_numbers,
    scale,
    to_array,
)
from fedlora_lab.review.noise import Noise, Tie, kept_places
from fedlora_lab.review.p_values import (
    NOISE_SLACK,
    normality_p_value,
    ratio_p_values,
    variance_p_value,
)

SLACK = 1e-3
"""Rounding that a reach may show, relative to the clip norm."""
TRIED, HOLDOUT = 4, 4
REPEATS = 9
"""Further draws in which a reach beyond the limit must be the same to count as measured exactly:
after rounding to a coarse grid a few of them agree by chance."""
KEPT_COLUMNS = 200_000
LONGEST_WAY = 64


class Shift(NamedTuple):
    """How far two batches lie apart in all noised outputs, in clip norms; ``error``: its standard
    error, 0 where the noise cancelled exactly."""

    value: float
    error: float


class Outputs:
    """Calls a step and lays all that leaves it into one vector, in the order of its names.

    Args:
        step: see `fedlora_lab.review`.
        frozen: names whose changes are noted.
        seed: of the seeds that the step is given.
        first: examples of the first call, which decides names and shapes.
    """

    def __init__(self, step: Step, frozen: Sequence[str], seed: int, first: list[Any]) -> None:
        self.step, self.base = step, seed * 1_000_003
        given = self._read(first, 0)
        self.shapes = {name: x.shape for name, x in given.items()}
        ends = np.cumsum([x.size for x in given.values()]).tolist()
        starts = [0, *ends[:-1]]
        self.place = {name: slice(*ab) for name, ab in zip(given, zip(starts, ends))}
        self.size = ends[-1]
        self.unlike: dict[str, str] = {}
        for name in frozen:
            check(name in given, "frozen", name, f"one of {', '.join(given)}")
        self.frozen = {name: given[name] for name in frozen}
        self.frozen_change = dict.fromkeys(frozen, 0.0)

    def _read(self, examples: Sequence[Any], draw: int) -> dict[str, np.ndarray]:
        given: Any = self.step(list(examples), self.base + draw)
        right = isinstance(given, Mapping) and len(given) > 0
        check(right, "step", type(given).__name__, "to return a mapping, name -> array")
        found: dict[str, np.ndarray] = {}
        for name, value in given.items():
            try:
                found[str(name)] = to_array(value)
            except (TypeError, ValueError):
                check(False, f"step[{name!r}]", type(value).__name__, "an array or a number")
        return found

    def __call__(self, examples: Sequence[Any], draw: int) -> np.ndarray:
        """What leaves for these examples and this draw of noise, (numbers,)."""
        given, vector = self._read(examples, draw), np.zeros(self.size)
        for name in {*given} | {*self.shapes}:
            shape, right = given[name].shape if name in given else None, self.shapes.get(name)
            if shape == right and shape is not None:
                vector[self.place[name]] = given[name].ravel()
            else:
                words = f"its shape is {right} or {shape}, with the batch"
                self.unlike.setdefault(name, words)
        for name, x in self.frozen.items():
            here = given.get(name, x)
            gap = float(np.abs(here - x).max(initial=0.0)) if here.shape == x.shape else math.inf
            self.frozen_change[name] = max(
                self.frozen_change[name], math.inf if math.isnan(gap) else gap
            )
        return vector


# ---- the step


class StepChecks:
    """All checks of a step; `__iter__` gives their evidence.

    Args:
        step, data, claims, others: see `fedlora_lab.review`.
        batch: how many of the examples make the batch that is varied.
        draws: calls from which the noise is measured, even.
        seed: of the review's own choices, and of the seeds that the step is given.
    """

    def __init__(
        self,
        step: Step,
        data: Sequence[Any],
        claims: Claims,
        *,
        others: Mapping[str, Step],
        batch: int,
        draws: int,
        seed: int,
    ) -> None:
        self.claims, self.data, self.batch, self.draws = claims, data, [*data[:batch]], draws
        self.others, self.seed = others, seed
        self.replaced = claims.relation == "replace"
        self.limit = self.farthest = 2.0 if self.replaced else 1.0
        self.suspects: list[Neighbours] = []
        self.reaches_far = False
        self.rng = np.random.default_rng(seed)
        self.out = Outputs(step, claims.frozen, seed, self.batch)
        self.fresh = itertools.count(draws)
        for field_, names in (("public", claims.public), ("noise_std", claims.noise_std)):
            for name in names:
                check(name in self.out.place, field_, name, f"one of {', '.join(self.out.place)}")
        std = claims.noise_multiplier * claims.clip_norm / (claims.denominator or 1.0)
        self.unit = np.ones(self.out.size)
        for name, place in self.out.place.items():
            self.unit[place] = claims.noise_std.get(name, std)
        first = np.stack([self.out(self.batch, draw) for draw in range(TRIED)])
        self.noised = (first != first[0]).any(0)
        for name in claims.frozen:
            self.noised[self.out.place[name]] = False
        # Equal seeds must give equal noise, whatever the examples are. Else, because of dropout or
        # since the step has no seed, noise is measured where nothing else is left to chance.
        swapped = [*self.batch[1:], self.batch[1]]
        moves = np.stack([self.out(swapped, draw) for draw in (0, 1)]) - first[:2]
        gap = np.abs(moves[1] - moves[0])[self.noised]
        spread = math.sqrt(first.var(0)[self.noised].mean()) if self.noised.any() else 0.0
        self.exact = claims.seeded and bool(
            (gap <= 0.01 * spread + 1e-5 * np.abs(moves).max()).all()
        )
        self.quiet: list[Any] = self.batch
        if not self.exact:
            self._look_at_empty_batch()
        self.moves: dict[str, tuple[float, str]] = {}
        self.signal = dict.fromkeys(self.out.place, 0.0)
        self.names = [name for name, place in self.out.place.items() if self.noised[place].any()]
        self.copies = self._find_copies(first)
        self.names = [name for name in self.names if name not in self.copies]
        self.kept = np.zeros(self.out.size, bool)
        for name in self.names:
            place = self.out.place[name]
            self.kept[place] = self.noised[place]
        most = max(64, min(4096, KEPT_COLUMNS // max(1, len(self.names))))
        places = {name: np.flatnonzero(self.noised[self.out.place[name]]) for name in self.names}
        self.places = {name: x[kept_places(len(x), most)] for name, x in places.items()}
        # The scale is the claimed one; where none is claimed, that of the noise which is found.
        self.noise = self._noise(self.quiet)
        self.scale = 1.0
        if claims.denominator is None and self.noise.pairs.size:
            self.scale = float(np.sqrt(np.mean(self.noise.pairs**2))) or 1.0

    def _look_at_empty_batch(self) -> None:
        """Measures noise on an empty batch where that works, and finds what is not noised there."""
        try:
            empty = np.stack([self.out([], draw) for draw in range(TRIED)])
        except Exception:  # told by the check of the empty batch
            return
        if np.isfinite(empty[:, self.noised]).all() and (empty != empty[0]).any():
            self.quiet = []
            self.noised &= (empty != empty[0]).any(0)

    def _find_copies(self, first: np.ndarray) -> dict[str, str]:
        """Outputs that are a multiple of another one in every call, data and noise alike."""
        loud = [scale(example, LOUD) for example in self.batch]
        variants = [self.out(self.batch[1:], 0), self.out(loud, 1)]
        moves = np.stack([*first[1:], *variants]) - first[0]
        copies: dict[str, str] = {}
        for name, other in itertools.combinations(self.names, 2):
            a, b = moves[:, self.out.place[name]], moves[:, self.out.place[other]]
            if a.shape != b.shape or other in copies or not np.isfinite([a.sum(), b.sum()]).all():
                continue
            # Without a move by the data, two draws of the same noise would look like a copy.
            if not (a[-2] != 0).any() or not (b[-2] != 0).any():
                continue
            factor = float((a * b).sum() / (a * a).sum())
            if np.abs(b - factor * a).max() <= 1e-4 * np.abs(b).max():
                copies[other] = name
        return copies

    def _noise(self, examples: Sequence[Any], out: Outputs | None = None) -> Noise:
        """What leaves for these examples in all draws, in claimed units.

        Args: examples: a batch. out: of another worker, in the tensors and places that both have.
        """
        out = out or self.out
        places = {
            name: x[x < math.prod(out.shapes[name])]
            for name, x in self.places.items()
            if name in out.shapes
        }
        ends = np.cumsum([len(x) for x in places.values()]).tolist()
        parts = {name: slice(*ab) for name, ab in zip(places, zip([0, *ends[:-1]], ends))}
        chosen, mine = (_flat(places, of.place) for of in (out, self.out))
        calls = range(self.draws if len(chosen) else 0)
        rows = [out(examples, draw)[chosen] / self.unit[mine] for draw in calls]
        return Noise(np.reshape(rows, (len(rows), len(chosen))), parts, places, self.out.shapes)

    def __iter__(self) -> Iterator[Evidence]:
        if not self.names:
            yield from self._without_noise()
        else:
            yield from self._reach()
            yield from self._non_finite()
            yield from self._denominator()
            yield from self._noise_size()
            yield from self._noise_per_tensor()
            yield from self._independence()
            yield from self._law()
        yield from self._empty()
        yield from self._un_noised()
        yield from self._frozen()

    def _without_noise(self) -> Iterator[Evidence]:
        words = "every seed gives the same numbers: there is no noise, or it is always the same"
        for check_ in ("noise size", "noise independence"):
            yield Evidence(check_, words, 0.0 if check_ == "noise size" else 1.0, verdict="broken")
        needing = ("reach", "non-finite", "denominator", "noise per tensor", "noise law", "signal")
        for check_ in needing:
            yield Evidence(check_, "there is no noise to compare with", verdict="cannot tell")
        self._note(self.out(self.batch, 0), self.out(self.batch[1:], 0), "example 0 left out")

    # -- how far two batches lie apart

    def _note(self, one: np.ndarray, other: np.ndarray, words: str) -> None:
        """Notes what moved without noise."""
        with np.errstate(invalid="ignore"):
            gap = np.where(np.isnan(one) & np.isnan(other), 0.0, np.abs(one - other))
            same = gap <= 1e-5 * np.maximum(np.abs(one), np.abs(other))
        gap = np.where(same | self.noised, 0.0, np.nan_to_num(gap, nan=math.inf))
        for name, place in self.out.place.items():
            most = float(gap[place].max(initial=0.0))
            if most > self.moves.get(name, (0.0, ""))[0]:
                self.moves[name] = (most, words)

    def _in_clips(self, vector: np.ndarray) -> np.ndarray:
        """Noised outputs in clip norms."""
        sigma = self.claims.noise_multiplier
        return vector[self.kept] * (sigma / self.scale) / self.unit[self.kept]

    def _sample(self, batch: Sequence[Any], draw: int) -> np.ndarray:
        """Some numbers of one call, in clip norms: those from which noise is measured."""
        chosen = _flat(self.places, self.out.place)
        sigma = self.claims.noise_multiplier
        return self.out(batch, draw)[chosen] * (sigma / self.scale) / self.unit[chosen]

    def _exact_shift(self, trial: Neighbours) -> Shift | None:
        """How far they lie apart, where their noise is the same at equal seeds."""
        a, b = self.out(trial.one, 0), self.out(trial.other, 0)
        self._note(a, b, trial.words)
        gap = self._in_clips(a - b)
        if not np.isfinite(gap).all():
            return Shift(math.inf, 0.0)
        if not self.claims.seeded:
            return None
        value = float(np.linalg.norm(gap))
        rounding = 0.0
        repeats = REPEATS if value > self.limit * (1 + SLACK) else 1
        for draw in range(1, repeats + 1):
            again = self._in_clips(self.out(trial.one, draw) - self.out(trial.other, draw))
            rounding = max(rounding, float(np.linalg.norm(again - gap)))
            if not rounding <= 0.01 + 1e-4 * value:
                return None
        for name in self.names:
            inside = np.zeros(self.out.size, bool)
            inside[self.out.place[name]] = True
            part = float(np.linalg.norm(gap[inside[self.kept]]))
            self.signal[name] = max(self.signal[name], part)
        return Shift(max(0.0, value - rounding), 0.0)

    def _measure(self, trial: Neighbours, *, brief: bool) -> Shift:
        """How far two neighbours lie apart. Args: trial: the two. brief: see `_estimate`."""
        shift = self._exact_shift(trial)
        if shift is None and self.exact:  # equal seeds give another noise here
            self.suspects.append(trial)
        return shift or self._estimate(trial, brief=brief)

    def _direction(self, far: list[Any], away: list[Any]) -> np.ndarray:
        """The direction from one batch to another, of length 1, as it shows through the noise.

        Args: far, away: batches that lie far apart. Returns: zeros where they do not at all.
        """
        learned = np.zeros(self.out.size)
        for _ in range(self.draws // 2):
            learned += self.out(far, next(self.fresh))
            learned -= self.out(away, next(self.fresh))
        direction = self._in_clips(learned)
        length = float(np.linalg.norm(direction))
        return direction / length if length else direction

    def _estimate(
        self, trial: Neighbours, direction: np.ndarray | None = None, *, brief: bool = False
    ) -> Shift:
        """Measures along a direction that was learned on other calls.

        Args: trial: two neighbours. direction: if known. brief: only what is plain is looked for.
        """
        direction = self._direction(trial.far, trial.away) if direction is None else direction
        if not np.isfinite(direction).all():
            return Shift(math.inf, 0.0)
        if not direction.any():
            return Shift(0.0, 0.0)
        here, there, value, error = [], [], 0.0, 0.0
        for size in (self.draws // 2,) if brief else (self.draws, HOLDOUT * self.draws):
            for seen, batch in ((here, trial.one), (there, trial.other)):
                calls = range(size - len(seen))
                seen += [
                    self._in_clips(self.out(batch, next(self.fresh))) @ direction for _ in calls
                ]
            value = abs(float(np.mean(here) - np.mean(there)))
            error = math.sqrt((np.var(here, ddof=1) + np.var(there, ddof=1)) / size)
            if value - 8 * error > self.limit:  # what is plain to see needs no more calls
                break
        return Shift(value, error)

    def _judge(self, name: str, words: str, shift: Shift, limit: float) -> Evidence:
        """Whether one example may move so far.

        Args: name: of the check. words: what was tried. shift: measured. limit: in clip norms.
        """
        value, error = shift
        unit = "clip norms (2 are allowed, for a replacement)" if self.replaced else "clip norms"
        said = f"one example moves all that leaves together by {value:.3g} {unit}"
        if error:
            p = float(stats.t.sf((value - limit) / error, self.draws - 2))
            return Evidence(name, f"{said} ± {error:.2g}", value, words, p)
        if self.claims.denominator is None and math.isfinite(value):
            # The unit is the noise that was found, which is known as well as its numbers allow.
            count = self.noise.pairs.size
            p = float(stats.chi2.cdf(count * (limit / max(value, 1e-30)) ** 2, count))
            return Evidence(name, said, value, words, p)
        broken = not value <= limit * (1 + SLACK)
        return Evidence(name, said, value, words, verdict="broken" if broken else "sound")

    # -- what is tried

    def _trials(self) -> Iterator[Neighbours]:
        """What is done to one example of the batch."""
        batch, n = self.batch, len(self.batch)
        for i in range(min(n, 8 if self.exact else 1)):
            rest, own = batch[:i] + batch[i + 1 :], [batch[i]]
            loud, stand = [scale(batch[i], LOUD)], [batch[(i + 1) % n]] if self.replaced else []
            said = "replaced" if self.replaced else "left out"
            yield neighbours(f"example {i} {said}", rest, own, stand)
            if i < TRIED and not same_numbers(loud[0], own[0]):
                yield neighbours(f"example {i} scaled by 1e6", rest, loud, stand)
                if self.replaced:
                    words = f"example {i} scaled by 1e6 and turned"
                    yield neighbours(words, rest, loud, [scale(batch[i], -LOUD)])
        alike = [scale(example, LOUD) for example in batch]
        if not self.replaced:
            yield neighbours("example 0 twice", batch, [batch[0]])
            words = "example 0 scaled by 1e6, in a batch of two"
            yield neighbours(words, [batch[1]], alike[:1])
        if not same_numbers(alike[0], batch[0]):
            words = "example 0 among examples scaled by 1e6"
            yield neighbours(words, alike[1:], alike[:1], [batch[0]] if self.replaced else [])

    @cached_property
    def _extremes(self) -> tuple[Any, Any, Any]:
        """Three examples: a weak one, one that moves the outputs far from there, and one that moves
        them far from both. Copies add up, so that what happens to all of them shows."""
        plain, factors = self.batch[:8], (1.0,)
        if not same_numbers(scale(self.batch[0], LOUD), self.batch[0]):
            plain, factors = self.batch[:3], (1 / LOUD, -1.0, 1.0, -LOUD, LOUD)
        pool = [scale(example, factor) for factor in factors for example in plain]
        means = []
        for _ in range(1 if self.exact else 2):  # with noise, means whose errors are independent
            calls = [0] if self.exact else [next(self.fresh) for _ in range(TRIED)]
            rows = [
                np.mean([self._sample([one] * len(self.batch), draw) for draw in calls], axis=0)
                for one in pool
            ]
            means.append(np.nan_to_num(rows, nan=0.0, posinf=0.0, neginf=0.0))
        products = means[0] @ means[-1].T
        own = np.diag(products)
        squares = own[:, None] + own[None] - products - products.T
        apart = np.sqrt(np.maximum(squares, 0.0)).round(2)
        # Of those that move equally far: the loudest one, and the least loud one against it.
        strong = len(pool) - 1 - int(np.argmax(apart[0][::-1]))
        return pool[0], pool[strong], pool[int(np.argmax(apart[strong]))]

    def _among_copies(self) -> Iterator[Neighbours]:
        """What is done to batches of copies, whose contributions add up: a rule of the batch that
        changes them all shows at once."""
        weak, strong, opposite = self._extremes
        rest, stand = [strong] * (len(self.batch) - 1), [strong] if self.replaced else []
        loud = [scale(self.batch[0], LOUD)]
        yield neighbours("example 0 scaled by 1e6 among copies of another", rest, loud, stand)
        yield self._tipping_point(weak, strong)
        yield self._tipping_point(opposite, strong)

    def _tipping_point(self, start: Any, end: Any) -> Neighbours:
        """The neighbours that lie farthest apart on a way from copies of one example to copies of
        another, one example at a time. Where the batch decides which examples count, a majority
        tips on this way, and one example moves many."""
        n = len(self.batch) if self.replaced else min(len(self.batch), LONGEST_WAY)
        items = [start] * n + [end] * n
        order = self.rng.permutation(2 * n).tolist()  # so that pieces of a batch hold both

        def batch(window: range) -> list[Any]:
            return [items[i] for i in order if i in window]

        if self.replaced:  # batches of one size
            windows = [range(i, i + n) for i in range(n + 1)]
        else:  # they grow until they hold all copies of both, and shrink to those of the other
            windows = [range(i) for i in range(1, 2 * n + 1)]
            windows += [range(i, 2 * n) for i in range(1, n + 1)]
        at = self._farthest_step([batch(window) for window in windows], [start] * n, [end] * n)
        before, after = windows[at], windows[at + 1]
        lost = [items[i] for i in before if i not in after]
        new = [items[i] for i in after if i not in before]
        counts = [sum(i < n for i in before), sum(i >= n for i in before)]
        kinds = [f"{count} copies of {x}" for count, x in zip(counts, ("one", "another")) if count]
        change = "one replaced" if lost and new else "one less" if lost else "one more"
        words = f"a batch of {' and '.join(kinds)} example, with {change}"
        other, one = batch(before), batch(after)
        return Neighbours(words, one, other, one + new * COPIES, other + lost * COPIES)

    def _farthest_step(self, way: list[list[Any]], start: list[Any], end: list[Any]) -> int:
        """Which batch of a way lies farthest from the next one.

        Args: way: batches. start, end: two that show the direction, where one call is but noise.
        """
        direction = None if self.exact else self._direction(end, start)
        sizes = []
        last = self._in_clips(self.out(way[0], 0))
        for batch in way[1:]:
            here = self._in_clips(self.out(batch, 0 if self.exact else next(self.fresh)))
            gap = here - last
            size = float(np.linalg.norm(gap) if direction is None else abs(gap @ direction))
            sizes.append(math.inf if math.isnan(size) else size)
            last = here
        return int(np.argmax(sizes))

    def _bad_examples(self) -> Iterator[tuple[str, Any, Any]]:
        """Examples that are not finite or overflow: words, example, and what it stands among."""
        example, strong = self.batch[0], self._extremes[1]
        yield "NaN", scale(example, math.nan), strong
        yield "infinity", scale(example, math.inf), strong
        # In one number only, among examples that move little else.
        yield "one NaN", only_largest(example, spoilt=True), scale(only_largest(example), LOUD)
        for factor in OVERFLOWS if self.exact else OVERFLOWS[2::2]:
            yield f"numbers {factor:g} times as large", scale(strong, factor), strong

    # -- the checks

    def _reach(self) -> Iterator[Evidence]:
        limit = self.limit
        single = [(trial.words, self._measure(trial, brief=False)) for trial in self._trials()]
        copied = [(trial.words, self._measure(trial, brief=True)) for trial in self._among_copies()]
        found = single + copied
        judged = [self._judge("reach", words, shift, limit) for words, shift in found]
        yield from judged
        self.reaches_far = any(
            one.verdict == "broken" or (one.p is not None and one.p < 1e-3) for one in judged
        )
        most = max(shift.value for _, shift in found)
        # Where that is far beyond the limit, what is not finite adds nothing to it.
        self.farthest = max(limit, most) if most <= 2 * limit else math.inf
        best_words, best = max(single, key=lambda one: one[1].value)
        if best.error:
            seen = best.value > limit / 2
            if not seen or best.value + 3 * best.error > 1.5 * limit:
                words = f"found {best.value:.2g} ± {best.error:.2g}: more draws would tell"
                yield Evidence("reach", words, best.value, best_words, verdict="cannot tell")
        signal = any(value > max(1e-6, 5 * error) for _, (value, error) in found)
        words = f"{best_words} moves the noised outputs by {best.value:.3g} clip norms"
        silent = [name for name in self.names if signal and self.exact and not self.signal[name]]
        if silent:
            words += f"; noise, and no signal from any example, in {_listed(silent)}"
        if not signal:
            unsure, words = bool(best.error), "no example moves any noised output"
            verdict: Verdict = "cannot tell" if unsure else "broken"
            yield Evidence("signal", words, best.value, best_words, verdict=verdict)
        else:
            yield Evidence("signal", words, best.value, best_words)

    def _non_finite(self) -> Iterator[Evidence]:
        """Puts an example that is not finite, or overflows, among copies of another. These must
        count as without it, and the noise must be that of any other batch."""
        check_ = "non-finite"
        if same_numbers(scale(self.batch[0], math.nan), self.batch[0]):
            words = "examples hold no floating-point numbers"
            yield Evidence(check_, words, 0.0, verdict="sound")
            return
        for bad, example, among in self._bad_examples():
            rest, stand = [among] * (len(self.batch) - 1), [among] if self.replaced else []
            trial = neighbours(
                f"an example of {bad} among copies of another", rest, [example], stand
            )
            try:
                got = self.out(trial.one, 0)
            except Exception as error:  # a step that refuses such data is in order
                words = f"the step refuses {bad}: {error_text(error, 80)}"
                yield Evidence(check_, words, 0.0, trial.words)
                continue
            share = float(np.mean(~np.isfinite(got)))
            if share:  # to be seen by all: no training goes on with it
                words = f"an example of {bad} makes {share:.0%} of all numbers NaN or infinite"
                words += "; epsilon holds only if no such example comes here"
                verdict: Verdict = "cannot tell" if self.claims.finite else "broken"
                yield Evidence(check_, words, math.inf, trial.words, verdict=verdict)
                continue
            shift = self._exact_shift(trial)
            if shift is None:
                noise = [*self._compare_noise(check_, trial.one, trial.words)]
                yield from noise
                if any(one.verdict == "broken" for one in noise):
                    continue
                shift = self._estimate(trial, brief=True)
            yield self._judge(check_, trial.words, shift, self.farthest)

    def _denominator(self) -> Iterator[Evidence]:
        if self.replaced and self.claims.sampling != "poisson":
            words = "under replacement batches have one size, so a moving denominator stays fixed"
            yield Evidence("denominator", words, 2.0)
            return
        told, last = False, min(TRIED, len(self.batch) - 1)
        for i, j, few in [*((i, i + 1, 4) for i in range(last)), *self._quietest()]:
            if told and few > 1:
                continue
            x, y = self.batch[i], self.batch[j]
            words = f"{2 * few} copies of example {i} against as many of example {j}"
            single = neighbours(words, [], [x] * few, [y] * few)
            double = neighbours(words, [], [x] * 2 * few, [y] * 2 * few, COPIES // few)
            one, two = self._exact_shift(single), self._exact_shift(double)
            if one is None or two is None:
                # Along one direction: two that were learned apart would not show the same share.
                direction = self._direction(double.far, double.away)
                one, two = (self._estimate(trial, direction) for trial in (single, double))
            if not (one.value > max(1e-6, 6 * one.error)) or one.value == math.inf:
                continue
            ratio, told = two.value / one.value, True
            said = f"twice the examples move {ratio:.3g} times as far"
            p, plain = None, one.error == two.error == 0
            if plain:
                differs = abs(ratio - 2) > 0.02
            else:
                error = math.hypot(two.error, 2 * one.error)
                gap = abs(two.value - 2 * one.value) / error
                p = float(2 * stats.t.sf(gap, 2 * self.draws - 2))
                differs = p < 0.01
            if ratio < 2 and not self.reaches_far:
                # So does a sum that is cut after the clip, which hides each example as well.
                said += ", and none moves more than it may" if differs else ""
                verdict: Verdict = "cannot tell" if differs else "sound"
                yield Evidence("denominator", said, ratio, words, verdict=verdict)
            else:
                verdict = "broken" if plain and differs else "sound"
                yield Evidence("denominator", said, ratio, words, p, verdict)
        if not told:
            words = "the examples that were tried pull alike, or their pull drowns in the noise"
            yield Evidence("denominator", words, verdict="cannot tell")
        yield from self._compare_noise("denominator", [*self.batch, *self.batch], "twice the batch")

    def _quietest(self) -> list[tuple[int, int, int]]:
        """The two examples that move least by themselves: a factor that grows with the batch shows
        only below the clip norm."""
        try:
            none = self.out([], 0) if self.exact else None
        except Exception:  # told by the check of the empty batch
            none = None
        if none is None:
            return []
        moves = [np.linalg.norm(self._in_clips(self.out([x], 0) - none)) for x in self.batch]
        i, j = np.argsort(np.nan_to_num(moves, nan=math.inf))[:2].tolist()
        return [(i, j, 1)]

    def _compare_noise(self, name: str, examples: list[Any], where: str) -> Iterator[Evidence]:
        """Compares the noise of another batch with that of the first one.

        Args: name: of the check. examples: the other batch. where: names it.
        """
        base, other = self.noise.pairs, self._noise(examples).pairs
        if not np.isfinite(other).all():
            return
        silent = (base != 0).any(0) & (other == 0).all(0)
        if silent.any():
            share = "" if silent.all() else f" in {silent.mean():.0%} of the numbers"
            said = f"{where} gets no noise{share}"
            yield Evidence(name, said, 0.0, where, verdict="broken")
            return
        ratio = float(np.sqrt(np.mean(other**2) / np.mean(base**2)))
        said = f"{where} gets {ratio:.3g} times the noise"
        cosine = float((base * other).sum() / math.sqrt((base**2).sum() * (other**2).sum()))
        if cosine > 0.999:
            verdict: Verdict = "sound" if abs(ratio - 1) <= NOISE_SLACK else "broken"
            yield Evidence(name, said, ratio, where, verdict=verdict)
            return
        less, more = ratio_p_values(ratio**2, other.size, base.size)
        # Where a batch has a chance of its own, it may well vary more than its noise.
        p = min(1.0, 2 * min(less, more)) if self.quiet else less
        yield Evidence(name, said, ratio, where, p)

    def _noise_size(self) -> Iterator[Evidence]:
        rms = float(np.sqrt(np.mean(self.noise.pairs**2)))
        if self.claims.denominator is None:
            words = "no denominator is claimed, so the noise is compared with the reach only"
            yield Evidence("noise size", words, verdict="cannot tell")
        else:
            p = variance_p_value(self.noise.pairs, NOISE_SLACK)
            size = f"{rms:.3g} times the claimed standard deviation"
            yield Evidence("noise size", f"the noise has {size}", rms, "all tensors", p)
        if not self.quiet:
            yield from self._compare_noise("noise size", self.batch, "a full batch")
        loud = [scale(example, 1e3) for example in self.batch]
        if not same_numbers(loud[0], self.batch[0]):
            yield from self._compare_noise("noise size", loud, "a batch scaled by 1e3")
        if self.exact or not self.quiet:
            # Noise may be added only where a gradient is not zero, such as rows of an embedding.
            copies = [self.batch[0]] * len(self.batch)
            yield from self._compare_noise("noise size", copies, "a batch of copies of one example")
        for trial in self.suspects[:TRIED]:
            yield from self._compare_noise("noise size", trial.one, trial.words)
        for where, examples in itertools.islice(self._silent_batches(), TRIED):
            yield from self._compare_noise("noise size", examples, where)

    def _silent_batches(self) -> Iterator[tuple[str, list[Any]]]:
        """Batches of one kind of example in which two draws give equal numbers: a step may skip its
        noise where the gradient is small, or where every example is classified correctly."""
        tried = [("tiny examples", [scale(example, 1 / LOUD) for example in self.batch])]
        for i, example in enumerate(self.batch):
            tried.append((f"copies of example {i}", [example] * len(self.batch)))
            if not self.replaced:  # under replacement batches have one size
                tried.append((f"example {i} alone", [example]))
        for where, examples in tried:
            one, other = (self._in_clips(self.out(examples, draw)) for draw in (0, 1))
            if (one == other).any():
                yield where, examples

    def _noise_per_tensor(self) -> Iterator[Evidence]:
        pairs = self.noise.pairs
        squares = {name: pairs[:, part] ** 2 for name, part in self.noise.parts.items()}
        total, count = float(sum(x.sum() for x in squares.values())), pairs.size
        if len(squares) == 1:
            yield Evidence("noise per tensor", "one tensor only", 1.0, self.names[0])
            return
        found = []
        for name, own in squares.items():
            others = (total - own.sum()) / (count - own.size)
            f = float(own.mean() / others) if others else math.inf
            p = 2 * min(ratio_p_values(f, own.size, count - own.size))
            found.append((p, math.sqrt(f), name))
        p, ratio, name = min(found)
        words = f"{name} has {ratio:.3g} times the noise of the others"
        yield Evidence("noise per tensor", words, ratio, name, min(1.0, p * len(found)))

    def _independence(self) -> Iterator[Evidence]:
        check_, rows = "noise independence", self.noise.rows
        if not np.isfinite(rows).all():
            words = "what leaves is NaN or infinite for ordinary examples"
            yield Evidence(check_, words, example="all noise", verdict="broken")
            return
        distinct = len(np.unique(rows, axis=0))
        if distinct < len(rows):
            words = f"{len(rows)} seeds give {distinct} draws of noise"
            yield Evidence(check_, words, 1.0, "seeds", verdict="broken")
        if words := self.noise.exact_tie():
            yield Evidence(check_, words, 1.0, "exact ties", verdict="broken")
        yield _strongest(self.noise.ties(), "all noise")
        workers = {"the step": self.noise}
        for name, step in self.others.items():
            out = Outputs(step, (), self.seed, self.batch)
            noise = self._noise(self.quiet, out)
            if np.isfinite(noise.rows).all():
                workers[name] = noise
            else:
                words = f"{name} returns NaN or infinity for ordinary examples"
                yield Evidence(check_, words, example=name, verdict="broken")
        for (one, mine), (other, theirs) in itertools.combinations(workers.items(), 2):
            ties = mine.ties_with(theirs, f"{one} and {other}")
            if ties:
                yield _strongest(ties, other)
            else:
                words = f"{other} returns none of the outputs of {one}"
                yield Evidence(check_, words, example=other, verdict="cannot tell")

    def _law(self) -> Iterator[Evidence]:
        noise = self.noise.centred
        parts = self.noise.parts.values()
        large = [x for part in parts if (x := noise[:, part]).size >= 300]
        values = [(x / np.sqrt(np.mean(x**2))).ravel() for x in large or [noise] if x.any()]
        z = np.concatenate(values)
        kurtosis = float(np.mean(z**4) / np.mean(z**2) ** 2 - 3)
        where = f"{len(z):,} numbers of noise"
        words = f"excess kurtosis {kurtosis:.2g} over {where}"
        # A scale that was estimated makes this test miss more, never alarm more.
        yield Evidence("noise law", words, kurtosis, where, normality_p_value(z, self.rng))
        if len(z) >= 300:
            p = float(stats.kurtosistest(z).pvalue)
            yield Evidence("noise law", words, kurtosis, where, p)

    def _empty(self) -> Iterator[Evidence]:
        claims, check_ = self.claims, "empty batch"
        chance = 1.0
        if claims.sample_rate and claims.dataset_size:
            chance = (1 - claims.sample_rate) ** claims.dataset_size * (claims.steps or 1)
        never = claims.sampling != "poisson" or chance < (claims.delta or 1e-5) / 1000
        reason = "the claimed sampling never gives one"
        if claims.sampling == "poisson":
            reason = f"all steps together have a chance of {chance:.1g} of one"
        verdict: Verdict = "cannot tell" if claims.sampling is None else "sound"
        verdict = verdict if never else "broken"
        try:
            finite = bool(np.isfinite(self.out([], 0)).all())
        except Exception as error:
            words = f"an empty batch is refused: {error_text(error, 100)}"
            words += f"; {reason}" if never else ""
            yield Evidence(check_, words, 0.0, "no example", verdict=verdict)
            return
        if not self.names:
            words = "there is no noise to compare with"
            yield Evidence(check_, words, verdict="cannot tell")
            return
        if not self.quiet:
            words = "an empty batch gets noise; all of the noise was measured there"
            yield Evidence(check_, words, 1.0, "no example")
            return
        for one in self._compare_noise(check_, [], "an empty batch"):
            if never and (one.number < 1 or claims.sampling is not None):
                one = Evidence(check_, f"{one.words}; {reason}", one.number, one.example)
                one = one._replace(verdict=verdict)
            yield one
        if not finite:
            words = "an empty batch makes what leaves NaN or infinite"
            yield Evidence(check_, words, math.nan, "no example", verdict=verdict)

    def _un_noised(self) -> Iterator[Evidence]:
        quiet = [scale(example, 1 / LOUD) for example in self.batch]
        others = {"example 0 left out": self.batch[1:], "tiny examples": quiet, "no example": []}
        if self.claims.relation == "replace":  # sizes of batches are public
            del others["no example"]
        whole = self.out(self.batch, 0)
        for words, other in others.items():
            try:
                self._note(whole, self.out(other, 0), words)
            except Exception:  # told by the check of the empty batch
                continue
        skipped = {*self.claims.public, *self.claims.frozen}
        moved = {name: x for name, x in self.moves.items() if name not in skipped}
        bare = [name for name in self.out.place if name not in {*self.names, *self.copies}]
        for name, words in self.out.unlike.items():
            if name not in skipped:
                said = f"{name} leaves without noise: {words}"
                yield Evidence("un-noised output", said, math.inf, name, verdict="broken")
        if moved:
            name, (most, words) = max(moved.items(), key=lambda one: one[1][0])
            leave, move = ("leave", "move") if len(moved) > 1 else ("leaves", "moves")
            said = f"{_listed(moved)} {leave} without noise and {move} with the data: {name} by"
            said += f" {most:.3g}, with {words}"
            yield Evidence("un-noised output", said, most, f"{name}, {words}", verdict="broken")
        else:
            words = "no number leaves without noise"
            if bare := [name for name in bare if name not in skipped]:
                words = f"{_listed(bare)}: without noise, and the same for all data that were tried"
            yield Evidence("un-noised output", words, 0.0)

    def _frozen(self) -> Iterator[Evidence]:
        if not self.claims.frozen:
            yield Evidence("frozen", "nothing is claimed frozen", verdict="cannot tell")
            return
        name, most = max(self.out.frozen_change.items(), key=lambda one: one[1])
        words = f"{_listed(self.claims.frozen)}: the same in every call"
        words = f"{name} changes by {most:.3g}" if most else words
        yield Evidence("frozen", words, most, name, verdict="broken" if most else "sound")


def _flat(places: Mapping[str, np.ndarray], tensors: Mapping[str, slice]) -> np.ndarray:
    """Where these numbers of these tensors stand in all that leaves."""
    columns = [tensors[name].start + x for name, x in places.items()]
    return np.concatenate([np.zeros(0, int), *columns])


def _strongest(ties: Sequence[Tie], example: str) -> Evidence:
    """The least likely of all correlations, with a p-value for all of them together."""
    p, r, where = min(ties)
    words = f"the noise correlates by {r:.2g}: {where}"
    return Evidence("noise independence", words, r, example, min(1.0, p * len(ties)))


def _listed(names: Any) -> str:
    names = [*names]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
