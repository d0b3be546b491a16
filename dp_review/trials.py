"""A step that is called again and again: the record of trials on which all checks look.

Where equal seeds give equal noise, differences are exact. Where they do not, a direction is learned
on one half of the calls and measured on the other half.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import NamedTuple

import numpy as np

from dp_review._validation import check
from dp_review.claims import Claims, Step
from dp_review.neighbours import (
    COPIES,
    LOUD,
    TRIED,
    Batch,
    Neighbours,
    scale,
    spread_order,
)
from dp_review.noise import Noise, kept_places
from dp_review.outputs import Outputs, StepFailed
from dp_review.post_processing import COARSE, functions_of, grid_step

SLACK = 1e-3
"""Rounding that a move may show, relative to the clip norm."""
HOLDOUT = 4
REPEATS = 9
"""Further draws in which a move beyond the limit must be the same to count as measured exactly:
after rounding to a coarse grid a few of them agree by chance."""
MAX_COLUMNS = 16_384
KEPT_COLUMNS = 200_000
SEED_BITS = 16
"""What an output of whole numbers holds at least that may be a seed."""
SAME_DRAW = 0.999
"""Cosine of two noises from which on they are one draw, up to their size."""
RECENT = 8
"""Batches whose outputs are kept."""


class Shift(NamedTuple):
    """How far two batches lie apart in all noised outputs, in clip norms; ``error``: its standard
    error, 0 where the noise cancelled exactly."""

    value: float
    error: float


class Trials:
    """What a step gave in all calls, and how far apart its batches lie.

    Args:
        function, data, claims: see `dp_review.step`.
        batch: how many of the examples make the batch that is varied.
        draws: calls from which the noise is measured, even.
        seed: of the review's own choices, and of the seeds that the step is given.
    """

    def __init__(
        self, function: Step, data: Batch, claims: Claims, *, batch: int, draws: int, seed: int
    ) -> None:
        self.claims = claims
        # In an order of their own: a verdict must not hang on the order of the rows.
        self.given = data
        self.places = spread_order(data)
        self.data = [data[place] for place in self.places]
        self.batch = self.data[:batch]
        self.draws = draws
        self.seed = seed
        self.rng = np.random.default_rng(seed)
        self.fresh = itertools.count(draws)
        self.failures: list[tuple[str, StepFailed]] = []
        # What was done to single examples: how far each moved at most, by place in the data.
        self.left_out: set[int] = set()
        self.loudest: dict[int, float] = {}
        self.coupled = False
        self.processed = ""
        self._recent: dict[int, tuple[Batch, np.ndarray]] = {}
        self.out = Outputs(function, seed, self.batch)
        for field in ("frozen", "public"):
            for name in getattr(claims, field):
                check(name in self.out.places, field, name, f"one of {', '.join(self.out.places)}")
        # Equal examples, other seeds: what differs is noise, or another chance of the step's.
        first = np.stack([self.out(self.batch, draw) for draw in range(TRIED)])
        self.noised = self._varied(self.batch, first)
        others = self._on_other_data()
        self.seeds = self._find_seeds(first, others)
        # What is frozen has to stand still: noise on it is a finding, not noise.
        for name in [*claims.frozen, *self.seeds]:
            self.noised[self.out.places[name]] = False
        noised = [name for name, place in self.out.places.items() if self.noised[place].any()]
        self.copies = self._find_copies(first, others, noised)
        self.exact = claims.seeded and self._noise_cancels(first)
        self.quiet = self.batch
        if not self.exact:
            self._look_at_empty_batch()
        self.names = [
            name
            for name, place in self.out.places.items()
            if name not in self.copies and self.noised[place].any()
        ]
        self.kept = np.zeros(self.out.size, bool)
        for name in self.names:
            self.kept[self.out.places[name]] = self.noised[self.out.places[name]]

    def name(self, i: int) -> str:
        """Names an example by its place in the data as they were given."""
        return f"example {self.places[i]}"

    @contextmanager
    def noting_failures(self, words: str) -> Iterator[None]:
        """Goes on where the step raises, and remembers on what. Args: words: name the batch."""
        try:
            yield
        except StepFailed as failed:
            self.failures.append((words, failed))

    def _varied(self, examples: Batch, first: np.ndarray) -> np.ndarray:
        """Which numbers vary between draws. Args: examples: a batch. first: of its first calls."""
        varied = (first != first[0]).any(0)
        # After rounding to a grid, a few draws agree by chance: where only a part of a tensor
        # varies, all draws decide.
        for draw in range(len(first), self.draws):
            tensors = [varied[place] for place in self.out.places.values()]
            if all(x.all() or not x.any() for x in tensors):
                break
            varied |= self.out(examples, draw) != first[0]
        return varied

    def _noise_cancels(self, first: np.ndarray) -> bool:
        """Whether equal seeds give equal noise, whatever the examples are."""
        noised = self.noised.copy()
        for name in self.copies:
            noised[self.out.places[name]] = False
        # One example is exchanged for another: the move by it is the same under every seed.
        words = f"{self.name(1)} in the place of another"
        swapped = [*self.batch[1:], self.batch[1]]
        try:
            moves = np.stack([self.out(swapped, draw) for draw in (0, 1)]) - first[:2]
            gap = np.abs(moves[1] - moves[0])[noised]
            spread = math.sqrt(first.var(0)[noised].mean()) if noised.any() else 0.0
            alike = gap <= 0.01 * spread + 1e-5 * np.abs(moves[:, noised]).max(initial=0.0)
            if not alike.all():
                return False
            # One is left out: it may rescale the noise, which is told, but draws no other.
            words = f"{self.name(0)} left out"
            drawn = (self.out(self.batch[1:], 0) - self.out(self.batch[1:], 1))[noised]
        except StepFailed as failed:
            self.failures.append((words, failed))
            return False
        base = (first[0] - first[1])[noised]
        length = float(np.linalg.norm(base) * np.linalg.norm(drawn))
        return abs(float(base @ drawn)) >= SAME_DRAW * length

    def _look_at_empty_batch(self) -> None:
        """Measures noise on an empty batch where that works, and finds what is not noised there.

        With dropout, or without a seed, nothing else is left to chance there.
        """
        try:
            empty = np.stack([self.out([], draw) for draw in range(TRIED)])
            varied = self._varied([], empty)
        except StepFailed:  # told by the check of the empty batch
            return
        if np.isfinite(empty[:, self.noised]).all() and varied.any():
            self.quiet = []
            self.noised &= varied

    def _on_other_data(self) -> dict[int, np.ndarray]:
        """Draw -> what leaves for other data, but for those on which the step fails."""
        calls: dict[int, np.ndarray] = {}
        with self.noting_failures("all examples scaled by 1e6"):
            calls[1] = self.out([scale(x, LOUD) for x in self.batch], 1)
        with self.noting_failures(f"{self.name(0)} left out"):
            calls[0] = self.out(self.batch[1:], 0)
        return calls

    def _find_seeds(self, first: np.ndarray, others: Mapping[int, np.ndarray]) -> list[str]:
        """Outputs that tell the seed: no example moves them, and they grow evenly with it, or hold
        so many or so large whole numbers as the state of a generator does.

        Args: first: what left in the first calls. others: for other data, by draw.
        """
        if not self.claims.seeded:
            return []
        unmoved = np.all([sent == first[draw] for draw, sent in others.items()], axis=0)
        steps = first - first[0]
        even = (steps == steps[1] * np.arange(len(first))[:, None]).all(0)
        whole = (first == first.round()).all(0)
        bits = np.log2(1 + np.ptp(first, axis=0))

        def tells(place: slice) -> bool:
            state = whole[place].all() and bits[place].sum() > SEED_BITS
            return bool(others) and bool((unmoved & (even | state))[place].all())

        places = self.out.places.items()
        return [name for name, place in places if self.noised[place].any() and tells(place)]

    def _find_copies(
        self, first: np.ndarray, others: Mapping[int, np.ndarray], noised: Sequence[str]
    ) -> set[str]:
        """Outputs that follow from a noised one in every call, data and noise alike: a multiple of
        it, such as momentum, its squares, its norm, or the place of its largest number.

        Args: first, others: see `_find_seeds`. noised: names of the noised outputs.
        """
        sent = np.stack([*first, *others.values()])
        finite = np.asarray(np.isfinite(sent).all(axis=0))
        # Without a move by the data, two draws of the same noise would look like a copy.
        by_data = np.any([x != first[draw] for draw, x in others.items()], axis=0)
        told = {*self.claims.frozen, *self.claims.public, *self.seeds}
        tensors = {
            name: sent[:, place]
            for name, place in self.out.places.items()
            if name not in told and finite[place].all()
        }
        sources = [n for n in noised if n in tensors and by_data[self.out.places[n]].any()]
        # A copy tells nothing new; counted, it would lengthen every move.
        return functions_of(tensors, sources)

    # -- the noise

    @cached_property
    def columns(self) -> dict[str, np.ndarray]:
        """Tensor -> places in it of the numbers from which noise is measured."""
        most = max(64, min(MAX_COLUMNS, KEPT_COLUMNS // max(1, len(self.names))))
        noised = {name: np.flatnonzero(self.noised[self.out.places[name]]) for name in self.names}
        return {name: x[kept_places(len(x), most)] for name, x in noised.items()}

    @cached_property
    def chosen(self) -> np.ndarray:
        """Places of these numbers in all that leaves."""
        places = [self.out.places[name].start + x for name, x in self.columns.items()]
        return np.concatenate([np.zeros(0, int), *places])

    def noise_of(self, examples: Batch, out: Outputs | None = None) -> Noise:
        """What leaves for these examples in all draws, in claimed standard deviations.

        Args: examples: a batch. out: of another worker, in the tensors that both have.
        """
        out = out or self.out
        both = [name for name in self.names if out.shapes.get(name) == self.out.shapes[name]]
        places = [out.places[name].start + self.columns[name] for name in both]
        chosen = np.concatenate([np.zeros(0, int), *places])
        rows = []
        for draw in range(self.draws):
            sent = out(examples, draw)
            rows.append(sent[chosen] * self.per_deviation)
        ends = np.cumsum([0, *map(len, places)]).tolist()
        parts = {name: slice(*pair) for name, pair in zip(both, itertools.pairwise(ends))}
        sent = np.array(rows)
        return Noise(self._dithered(sent, parts), parts, sent)

    def _dithered(self, sent: np.ndarray, parts: Mapping[str, slice]) -> np.ndarray:
        """Values that were rounded after the noise, spread over the cells of their grid: ties then
        lie anywhere in their share. Args: sent: (calls, numbers). parts: tensor -> its numbers."""
        rows = sent
        for part in parts.values():
            step = grid_step(sent[:, part])
            if 0 < step <= COARSE:
                rows = rows.copy()
                spread = step * (self.rng.random(rows[:, part].shape) - 0.5)
                # The rounding and this spread each have the variance of a uniform number.
                rows[:, part] = (rows[:, part] + spread) / math.sqrt(1 + step**2 / 6)
        return rows

    def pair_of(self, examples: Batch) -> np.ndarray:
        """The noise of two calls on these examples, without the signal, see `Noise.pairs`."""
        sent = self.out(examples, 0)[self.chosen] - self.out(examples, 1)[self.chosen]
        return sent * self.per_deviation / math.sqrt(2)

    @cached_property
    def noise(self) -> Noise:
        """The noise that the others are compared with."""
        return self.noise_of(self.quiet)

    @property
    def per_clip(self) -> float:
        """Clip norms in one unit of what leaves, by the claim."""
        return self.claims.denominator / self.claims.clip_norm

    @property
    def per_deviation(self) -> float:
        """Claimed standard deviations of the noise in one unit of what leaves."""
        return self.per_clip / self.claims.noise_multiplier

    # -- how far two batches lie apart

    def in_clips(self, vector: np.ndarray) -> np.ndarray:
        """Noised outputs in clip norms."""
        return vector[self.kept] * self.per_clip

    def gap(self, trial: Neighbours, draw: int) -> np.ndarray:
        """The difference of all that leaves for two neighbours, under one seed.

        Args: trial: the two. draw: number of the seed.
        """
        one, other = trial.batches()
        return self.once(one, draw) - self.once(other, draw)

    def once(self, batch: Batch, draw: int) -> np.ndarray:
        """What leaves for a batch; of the last few batches nothing is computed twice."""
        recent = self._recent.pop(key := hash((draw, *map(id, batch))), None)
        sent = self.out(batch, draw) if recent is None else recent[1]
        # The batch is kept, so that none of its examples is another one later.
        self._recent[key] = (batch, sent)
        if len(self._recent) > RECENT:
            del self._recent[next(iter(self._recent))]
        return sent

    def exact_shift(self, trial: Neighbours) -> Shift | None:
        """How far two neighbours lie apart, where their noise is the same at equal seeds."""
        first = self.in_clips(self.gap(trial, 0))
        # What is not finite is infinitely far away, whatever the noise is.
        if not np.isfinite(first).all():
            return Shift(math.inf, 0.0)
        if not self.claims.seeded:
            return None
        # Coupled: the noise of equal seeds cancels in the difference, and no statistics are needed.
        value = float(np.linalg.norm(first))
        rounding = 0.0
        # A move within the limit decides nothing.
        for draw in range(REPEATS if value > 1 + SLACK else 1):
            again = self.in_clips(self.gap(trial, draw + 1))
            rounding = max(rounding, float(np.linalg.norm(again - first)))
            if not rounding <= 0.01 + 1e-4 * value:
                return None
        return Shift(max(0.0, value - rounding), 0.0)

    def measure(self, trial: Neighbours) -> Shift:
        """How far two neighbours lie apart."""
        return self.exact_shift(trial) or self.estimate(trial)

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

    def estimate(self, trial: Neighbours) -> Shift:
        """Measures how far two neighbours lie apart along a direction learned on other calls."""
        direction = self.direction(*trial.batches(COPIES))
        if not np.isfinite(direction).all():
            return Shift(math.inf, 0.0)
        size = HOLDOUT * self.draws
        # Calls that the direction was not learned on: they flatter nobody.
        sides = [[self.along(direction, batch) for _ in range(size)] for batch in trial.batches()]
        value = abs(float(np.mean(sides[0]) - np.mean(sides[1])))
        return Shift(value, math.sqrt(np.var(sides, axis=1, ddof=1).sum() / size))

    def along(self, direction: np.ndarray, batch: Batch) -> float:
        """What leaves in a further call, along a direction, in clip norms."""
        return float(self.in_clips(self.out(batch, next(self.fresh))) @ direction)
