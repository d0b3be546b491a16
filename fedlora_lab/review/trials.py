"""A step that is called again and again: the record of trials on which all checks look.

Where equal seeds give equal noise, differences are exact. Where they do not, a direction is learned
on one half of the calls and measured on the other half.
"""

import itertools
import math
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy import stats

from fedlora_lab._utils.validation import check
from fedlora_lab.review.claims import Claims, Finding, Step, Verdict
from fedlora_lab.review.neighbours import COPIES, LOUD, TRIED, Batch, Neighbours, scale
from fedlora_lab.review.noise import Noise, kept_places
from fedlora_lab.review.outputs import Outputs

SLACK = 1e-3
"""Rounding that a move may show, relative to the clip norm."""
HOLDOUT = 4
REPEATS = 9
"""Further draws in which a move beyond the limit must be the same to count as measured exactly:
after rounding to a coarse grid a few of them agree by chance."""
MAX_COLUMNS = 4096
KEPT_COLUMNS = 200_000
NOISE_SLACK = 0.01
"""A noise that is wrong by less than this share is not called wrong: epsilon hardly moves."""


class Shift(NamedTuple):
    """How far two batches lie apart in all noised outputs, in clip norms; ``error``: its standard
    error, 0 where the noise cancelled exactly."""

    value: float
    error: float


class Trials:
    """What a step gave in all calls, and how far apart its batches lie.

    Args:
        function, data, claims: see `fedlora_lab.review.step`.
        batch: how many of the examples make the batch that is varied.
        draws: calls from which the noise is measured, even.
        seed: of the review's own choices, and of the seeds that the step is given.
    """

    def __init__(
        self, function: Step, data: Batch, claims: Claims, *, batch: int, draws: int, seed: int
    ) -> None:
        self.claims = claims
        self.batch = data[:batch]
        self.draws = draws
        self.seed = seed
        self.replaced = claims.relation == "replace"
        self.limit = 2.0 if self.replaced else 1.0
        self.rng = np.random.default_rng(seed)
        self.fresh = itertools.count(draws)
        self.out = Outputs(function, seed, self.batch, self.replaced)
        for field in ("frozen", "public"):
            for name in getattr(claims, field):
                check(name in self.out.places, field, name, f"one of {', '.join(self.out.places)}")
        # Equal examples, other seeds: what differs is noise, or another chance of the step's.
        first = np.stack([self.out(self.batch, draw) for draw in range(TRIED)])
        self.noised = (first != first[0]).any(0)
        # What is frozen has to stand still: noise on it is a finding, not noise.
        for name in claims.frozen:
            self.noised[self.out.places[name]] = False
        self.exact = claims.seeded and self._noise_cancels(first)
        self.farthest = self.limit * (1 + SLACK)  # of the moves that are certain
        self.quiet = self.batch
        if not self.exact:
            self._look_at_empty_batch()
        noised = [name for name, place in self.out.places.items() if self.noised[place].any()]
        self.copies = self._find_copies(first, noised)
        self.names = [name for name in noised if name not in self.copies]
        self.kept = np.zeros(self.out.size, bool)
        for name in self.names:
            self.kept[self.out.places[name]] = self.noised[self.out.places[name]]

    def _noise_cancels(self, first: np.ndarray) -> bool:
        """Whether equal seeds give equal noise, whatever the examples are."""
        # One example is exchanged for another: the move by it is the same under every seed.
        swapped = [*self.batch[1:], self.batch[1]]
        moves = np.stack([self.out(swapped, draw) for draw in (0, 1)]) - first[:2]
        gap = np.abs(moves[1] - moves[0])[self.noised]
        spread = math.sqrt(first.var(0)[self.noised].mean()) if self.noised.any() else 0.0
        return bool((gap <= 0.01 * spread + 1e-5 * np.abs(moves).max()).all())

    def _look_at_empty_batch(self) -> None:
        """Measures noise on an empty batch where that works, and finds what is not noised there.

        With dropout, or without a seed, nothing else is left to chance there.
        """
        try:
            empty = np.stack([self.out([], draw) for draw in range(TRIED)])
        except Exception:  # told by the check of the empty batch
            return
        varied = (empty != empty[0]).any(0)
        if np.isfinite(empty[:, self.noised]).all() and varied.any():
            self.quiet = []
            self.noised &= varied

    def _find_copies(self, first: np.ndarray, names: Sequence[str]) -> set[str]:
        """Outputs that are a multiple of another one in every call, data and noise alike.

        Args: first: what left in the first calls. names: of the noised outputs.
        """
        loud = [scale(example, LOUD) for example in self.batch]
        variants = [self.out(loud, 1), self.out(self.batch[1:], 0)]
        moves = np.stack([*first[1:], *variants]) - first[0]
        # A copy, such as momentum, tells nothing new; counted, it would lengthen every move.
        copies = set()
        for name, later in itertools.combinations(names, 2):
            a = moves[:, self.out.places[name]]
            b = moves[:, self.out.places[later]]
            # Without a move by the data, two draws of the same noise would look like a copy.
            if a.shape == b.shape and a[-1].any() and b[-1].any():
                factor = float((a * b).sum() / (a * a).sum())
                if np.abs(b - factor * a).max() <= 1e-4 * np.abs(b).max():
                    copies.add(later)
        return copies

    # -- the noise

    @cached_property
    def columns(self) -> dict[str, np.ndarray]:
        """Tensor -> places in it of the numbers from which noise is measured."""
        most = max(64, min(MAX_COLUMNS, KEPT_COLUMNS // max(1, len(self.names))))
        noised = {name: np.flatnonzero(self.noised[self.out.places[name]]) for name in self.names}
        return {name: x[kept_places(len(x), most)] for name, x in noised.items()}

    def noise_of(self, examples: Batch, out: Outputs | None = None) -> Noise:
        """What leaves for these examples in all draws, in claimed standard deviations.

        Args: examples: a batch. out: of another worker, in the tensors that both have.
        """
        out = out or self.out
        both = [name for name in self.names if out.shapes.get(name) == self.out.shapes[name]]
        places = [out.places[name].start + self.columns[name] for name in both]
        chosen = np.concatenate([np.zeros(0, int), *places])
        rows = [out(examples, draw)[chosen] for draw in range(self.draws)]
        ends = np.cumsum([0, *map(len, places)]).tolist()
        parts = {name: slice(*pair) for name, pair in zip(both, itertools.pairwise(ends))}
        return Noise(np.array(rows) * self.per_clip / self.claims.noise_multiplier, parts)

    @cached_property
    def noise(self) -> Noise:
        """The noise that the others are compared with."""
        return self.noise_of(self.quiet)

    @property
    def per_clip(self) -> float:
        """Clip norms in one unit of what leaves, by the claim."""
        return self.claims.denominator / self.claims.clip_norm

    # -- how far two batches lie apart

    def in_clips(self, vector: np.ndarray) -> np.ndarray:
        """Noised outputs in clip norms."""
        return vector[self.kept] * self.per_clip

    def exact_shift(self, trial: Neighbours) -> Shift | None:
        """How far two neighbours lie apart, where their noise is the same at equal seeds."""
        one, other = trial.batches()

        def gap(draw: int) -> np.ndarray:
            return self.in_clips(self.out(one, draw) - self.out(other, draw))

        first = gap(0)
        # What is not finite is infinitely far away, whatever the noise is.
        if not np.isfinite(first).all():
            return Shift(math.inf, 0.0)
        if not self.claims.seeded:
            return None
        # Coupled: the noise of equal seeds cancels in the difference, and no statistics are needed.
        value = float(np.linalg.norm(first))
        rounding = 0.0
        # A move within the limit, or no longer than one that is certain, decides nothing.
        for draw in range(REPEATS if value > self.farthest else 1):
            rounding = max(rounding, float(np.linalg.norm(gap(draw + 1) - first)))
            if not rounding <= 0.01 + 1e-4 * value:
                return None
        moved = max(0.0, value - rounding)
        self.farthest = max(self.farthest, moved)
        return Shift(moved, 0.0)

    def measure(self, trial: Neighbours, *, brief: bool = False) -> Shift:
        """How far two neighbours lie apart. Args: trial: the two. brief: see `estimate`."""
        return self.exact_shift(trial) or self.estimate(trial, brief=brief)

    def direction(self, far: Batch, away: Batch) -> np.ndarray:
        """The direction from one batch to another, of length 1, as it shows through the noise.

        Args: far, away: batches that lie far apart. Returns: zeros where they do not at all.
        """
        learned = np.zeros(self.out.size)
        for _ in range(self.draws // 2):
            learned += self.out(far, next(self.fresh))
            learned -= self.out(away, next(self.fresh))
        # The direction of the largest difference maximises the shift that one number can show.
        direction = self.in_clips(learned)
        length = float(np.linalg.norm(direction))
        return direction / length if length else direction

    def estimate(self, trial: Neighbours, *, brief: bool = False) -> Shift:
        """Measures along a direction that was learned on other calls.

        Args: trial: two neighbours. brief: only what is plain is looked for.
        """
        direction = self.direction(*trial.batches(COPIES))
        if not np.isfinite(direction).all():
            return Shift(math.inf, 0.0)
        sides: tuple[list[float], list[float]] = ([], [])
        shift = Shift(0.0, 0.0)
        sizes = (self.draws // 2,) if brief else (self.draws, HOLDOUT * self.draws)
        for size in sizes if direction.any() else ():
            # Calls that the direction was not learned on: they flatter nobody.
            for seen, batch in zip(sides, trial.batches()):
                draws = itertools.islice(self.fresh, size - len(seen))
                seen += [float(self.in_clips(self.out(batch, draw)) @ direction) for draw in draws]
            value = abs(float(np.mean(sides[0]) - np.mean(sides[1])))
            shift = Shift(value, math.sqrt(np.var(sides, axis=1, ddof=1).sum() / size))
            if value - 8 * shift.error > self.limit:  # what is plain to see needs no more calls
                break
        return shift


def ratio_tails(ratio: float, above: int, below: int = 10**9) -> tuple[float, float]:
    """Tests that two noises have one variance, up to `NOISE_SLACK`: chances of less, and of more.

    Args:
        ratio: of the mean squares of so many independent normal numbers.
        above, below: counts; of a variance that is known, as the claimed one is, endless many.
    """
    lower_tail = stats.f.cdf(ratio / (1 - NOISE_SLACK) ** 2, above, below)
    upper_tail = stats.f.sf(ratio / (1 + NOISE_SLACK) ** 2, above, below)
    return float(lower_tail), float(upper_tail)


def compare_noise(trials: Trials, check: str, examples: Batch, where: str) -> Finding | None:
    """Compares the noise of another batch with that of the first one; nothing if it is not finite.

    Args: trials: of the step. check: its name. examples: the other batch. where: names it.
    """
    base = trials.noise.pairs
    compared = trials.noise_of(examples).pairs
    if not np.isfinite(compared).all():
        return None
    # Noise that is exactly zero where there was some is skipped, and needs no statistics.
    silent = (base != 0).any(0) & (compared == 0).all(0)
    if silent.any():
        share = "" if silent.all() else f" in {silent.mean():.0%} of the numbers"
        return Finding(check, f"{where} gets no noise{share}", 0.0, where, "broken")
    return judge_ratio(trials, check, base, compared, where)


def judge_ratio(
    trials: Trials, check: str, base: np.ndarray, compared: np.ndarray, where: str
) -> Finding:
    """Says whether two noises have one size.

    Args: trials, check, where: as of `compare_noise`. base, compared: draws at equal seeds.
    """
    ratio = float(np.sqrt(np.mean(compared**2) / np.mean(base**2)))
    text = f"{where} gets {ratio:.3g} times the noise"
    # Where numbers are silent the others tell whether the draws are the same.
    noised = base[compared != 0]
    cosine = float((base * compared).sum() / math.sqrt((noised**2).sum() * (compared**2).sum()))
    if cosine > 0.999:  # they are: no chance is left
        verdict: Verdict = "sound" if abs(ratio - 1) <= NOISE_SLACK else "broken"
        return Finding(check, text, ratio, where, verdict)
    below, above = ratio_tails(ratio**2, compared.size, base.size)
    # Where a batch has a chance of its own, it may well vary more than its noise.
    p = min(1.0, 2 * min(below, above)) if trials.quiet else below
    return Finding(check, text, ratio, where, p=p)
