"""Checks of a private training step from outside: what one example moves, and what hides it.

A step is called again and again from the same state, with other examples and other seeds, and
everything that leaves it is compared. Where equal seeds give equal noise, differences are exact.
Where they do not, a direction is learned on one half of the calls and measured on the other half.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from scipy import stats

from fedlora_lab._utils.validation import (
    check,
    check_number,
    check_one_of,
    check_whole,
    error_text,
)
from fedlora_lab.audit.self_check import (
    binomial_p_value,
    correlation_p_value,
    normality_p_value,
    total_p_value,
    variance_p_value,
)

Step = Callable[[list[Any], int], Mapping[str, Any]]
Loader = Callable[[int], Sequence[Sequence[int]]]
Verdict = Literal["sound", "broken", "cannot tell"]
Sampling = Literal["poisson", "fixed", "shuffle"]

SLACK = 1e-3
"""Rounding that a reach may show, relative to the clip norm."""
NOISE_SLACK = 0.01
"""A noise that is wrong by less than this share is not called wrong: epsilon hardly moves."""
LOUD, COPIES, TRIED, HOLDOUT = 1e6, 16, 4, 4
KEPT_COLUMNS, COMPARED_COLUMNS = 200_000, 2048
LEAST_BATCHES = 300


class Check(NamedTuple):
    """One question of a review: what is measured, where it is explained, what mends it."""

    asks: str
    docs: str
    remedy: str


def _edge(place: str) -> str:
    return f"docs/sharp_edges.md#{place}"


CHECKS: dict[str, Check] = {
    "reach": Check(
        "how far one example moves all noised outputs together, in clip norms",
        _edge("7-a-clip-for-each-tensor-one-release-counted-serious"),
        "Clip each example's gradient, over all trained tensors together, before the sum.",
    ),
    "non-finite": Check(
        "share of the outputs that one example of NaN or infinity makes NaN or infinite",
        "docs/review.md#examples-that-are-not-finite",
        "Refuse such examples before the step, or count their gradient as zero.",
    ),
    "denominator": Check(
        "how a contribution grows when the batch is doubled: 2 where the denominator is fixed",
        _edge("3-clipping-the-mean-gradient-of-a-batch-fatal"),
        "Divide by the expected size of a batch, a constant, after clipping and summing.",
    ),
    "noise size": Check(
        "standard deviation of the noise, in units of the claimed one",
        _edge("4-a-threshold-taken-from-the-batch-fatal"),
        "Add noise of noise_multiplier × clip_norm to the sum, then divide; never from the data.",
    ),
    "noise per tensor": Check(
        "noise of the tensor that differs most, in units of the others' noise",
        _edge("7-a-clip-for-each-tensor-one-release-counted-serious"),
        "Add noise of the same size to every tensor that is clipped jointly.",
    ),
    "noise independence": Check(
        "correlation of noise that should be independent",
        _edge("25-noise-from-a-seed-that-others-know-fatal"),
        "Draw the noise of each tensor, step and worker from a stream of its own.",
    ),
    "noise law": Check(
        "excess kurtosis of the noise: 0 where it is normal",
        _edge("26-floating-point-numbers-taken-for-real-ones-note"),
        "Draw from a normal distribution, or account for the law that is drawn from.",
    ),
    "un-noised output": Check(
        "largest change of a number that leaves without noise, when an example changes",
        _edge("15-a-score-computed-from-raw-gradients-and-uploaded-fatal"),
        "Add noise to it and count it, or do not release it.",
    ),
    "frozen": Check(
        "largest change of what is claimed frozen",
        _edge("17-a-frozen-factor-in-the-norm-or-in-the-noise-utility"),
        "Leave frozen tensors out of the optimiser, the norm and the noise.",
    ),
    "sampling": Check(
        "share of the data in a batch, in units of the claimed rate",
        _edge("14-shuffled-batches-under-poisson-accounting-empty-batches-skipped-serious"),
        "Draw every example for every batch independently, or account without amplification.",
    ),
    "empty batch": Check(
        "noise of an empty batch, in units of that of a full one",
        _edge("14-shuffled-batches-under-poisson-accounting-empty-batches-skipped-serious"),
        "Release noise for an empty batch as for any other.",
    ),
    "accounting": Check(
        "epsilon of the claimed noise, sampling and steps, by dp-accounting",
        _edge("1-a-new-accountant-for-every-round-or-message-fatal"),
        "State the epsilon of all steps together, from an accountant that gives an upper bound.",
    ),
    "signal": Check(
        "largest move of the noised outputs by one example, in clip norms",
        _edge("23-adapters-on-another-device-or-not-trained-at-all-bug"),
        "Look whether the trained parameters are in the model's forward pass and the optimiser.",
    ),
    "preparation": Check(
        "other prepared examples that change when one raw example is left out",
        _edge("28-private-statistics-used-as-if-public-serious"),
        "Prepare each example by constants, or by statistics of public data.",
    ),
}
"""Name -> check, in the order of the table."""


@dataclass(frozen=True, kw_only=True)
class Claims:
    """What the author of a step says of it. The first two are needed; each other one switches on
    the check that needs it.

    Args:
        clip_norm: C, norm to which one unit's contribution is clipped, over all tensors jointly.
        noise_multiplier: sigma > 0; the noise on the sum has standard deviation sigma C.
        denominator: what the noised sum is divided by; 1: the sum itself leaves; ``None``: by a
            factor that is not known, such as a learning rate: then only ratios are judged.
        sampling: "poisson", "fixed" (a fresh draw without replacement for each batch), "shuffle"
            (every epoch a permutation, cut into batches); ``None``: no claim, no amplification.
        sample_rate: share of the data in a batch, in (0, 1].
        dataset_size: number of units in the whole data set.
        steps: how many releases are made in all.
        epsilon, delta: what is promised.
        unit: what is protected, "example" or "client"; what `data` holds.
        relation: of neighbouring data sets, "add/remove" or "replace" (batches of one size).
        seeded: the step obeys its seed.
        frozen: outputs that nothing may move.
        public: outputs that may depend on the data, such as a number of examples.
        noise_std: standard deviation of the noise of outputs where it is not sigma C / denominator.
        finite: no example holds NaN or infinity: it was checked before.

    >>> Claims(clip_norm=1.0, noise_multiplier=1.1, denominator=64).unit
    'example'
    """

    clip_norm: float
    noise_multiplier: float
    denominator: float | None = 1.0
    sampling: Sampling | None = None
    sample_rate: float | None = None
    dataset_size: int | None = None
    steps: int | None = None
    epsilon: float | None = None
    delta: float | None = None
    unit: Literal["example", "client"] = "example"
    relation: Literal["add/remove", "replace"] = "add/remove"
    seeded: bool = True
    frozen: tuple[str, ...] = ()
    public: tuple[str, ...] = ()
    noise_std: Mapping[str, float] = field(default_factory=dict)
    finite: bool = True

    def __post_init__(self) -> None:
        for name in ("clip_norm", "noise_multiplier", "denominator", "sample_rate", "delta"):
            value, most = getattr(self, name), 1 if name in ("sample_rate", "delta") else math.inf
            if value is not None or name in ("clip_norm", "noise_multiplier"):
                check_number(name, value, 0, most, open_low=True)
                check(value < math.inf, name, value, "a finite number")
        for name in ("dataset_size", "steps"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), 1)
        if self.epsilon is not None:
            check_number("epsilon", self.epsilon, 0)
        check_one_of("sampling", self.sampling, (None, *get_args(Sampling)))
        check_one_of("unit", self.unit, ("example", "client"))
        check_one_of("relation", self.relation, ("add/remove", "replace"))
        for name in ("frozen", "public"):
            value = getattr(self, name)
            names = not isinstance(value, str) and all(isinstance(one, str) for one in value)
            check(names, name, value, "a tuple of names of outputs")
        for name, value in self.noise_std.items():
            check_number(f"noise_std[{name!r}]", value, 0, open_low=True)


class Evidence(NamedTuple):
    """One result of a check: judged by chance (``p``), or as it stands (``verdict``)."""

    check: str
    words: str
    number: float = math.nan
    example: str = ""
    p: float | None = None
    verdict: Verdict = "sound"


class Shift(NamedTuple):
    """How far two batches lie apart in all noised outputs, in clip norms; ``error``: its standard
    error, 0 where the noise cancelled exactly."""

    value: float
    error: float


# ---- examples, and what leaves


def scale(example: Any, factor: float) -> Any:
    """Multiplies every floating-point number and array of an example; all else stays.

    Args: example: arrays, tensors and numbers, in tuples, lists and mappings of any depth.

    >>> scale(([1.5], 3), 2)
    ([3.0], 3)
    """
    if isinstance(example, Mapping):
        kind: Any = type(example)
        return kind({name: scale(value, factor) for name, value in example.items()})
    if isinstance(example, (tuple, list)):
        parts = [scale(value, factor) for value in example]
        named = hasattr(example, "_fields")
        return type(example)(*parts) if named else type(example)(parts)
    kind = str(getattr(example, "dtype", type(example).__name__))
    return example * factor if "float" in kind else example


def _same(one: Any, other: Any) -> bool:
    """Whether two examples hold the same numbers, NaN included."""
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(_same, one, other))
    try:
        a, b = to_array(one), to_array(other)
    except (TypeError, ValueError):
        return bool(one == other)
    return a.shape == b.shape and bool(np.allclose(a, b, 1e-6, 1e-12, equal_nan=True))


def to_array(value: Any) -> np.ndarray:
    """An array of float64 from an array or tensor of any library, or a number."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.double().numpy() if hasattr(value, "double") else value
    if value is None:  # NumPy would read it as NaN
        raise TypeError("None is no number")
    return np.asarray(value, dtype=np.float64)


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
        self.limit = 2.0 if claims.relation == "replace" else 1.0
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
        self.columns: dict[str, np.ndarray] = {}
        most = max(64, min(4096, KEPT_COLUMNS // max(1, len(self.names))))
        for name in self.names:
            place = self.out.place[name]
            self.kept[place] = self.noised[place]
            self.columns[name] = place.start + np.flatnonzero(self.noised[place])[:most]
        chosen = [self.columns[name] for name in self.names]
        self.chosen = np.concatenate(chosen) if chosen else np.zeros(0, int)
        ends = np.cumsum([len(x) for x in chosen]).tolist()
        self.part = {n: slice(a, b) for n, a, b in zip(self.names, [0, *ends[:-1]], ends)}
        # The scale is the claimed one; where none is claimed, that of the noise which is found.
        self.rows = self._noise_rows(self.quiet, range(draws))
        self.pairs = _pairs(self.rows)
        self.scale = 1.0
        if claims.denominator is None and self.pairs.size:
            self.scale = float(np.sqrt(np.mean(self.pairs**2))) or 1.0

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

    def _noise_rows(self, examples: Sequence[Any], draws: Sequence[int]) -> np.ndarray:
        """What leaves in each of these draws, the columns that are kept, in claimed units."""
        rows = [self.out(examples, draw)[self.chosen] for draw in draws]
        return np.stack(rows) / self.unit[self.chosen] if rows else np.zeros((0, 0))

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

    def _shift(
        self, rest: list[Any], ones: list[Any], others: list[Any], words: str, far: int = COPIES
    ) -> Shift:
        """How far ``rest + ones`` lies from ``rest + others``."""
        one, other = rest + ones, rest + others
        a, b = self.out(one, 0), self.out(other, 0)
        self._note(a, b, words)
        gap = self._in_clips(a - b)
        if not np.isfinite(gap).all():
            return Shift(math.inf, 0.0)
        value = float(np.linalg.norm(gap))
        if self.claims.seeded:
            again = self._in_clips(self.out(one, 1) - self.out(other, 1))
            if float(np.linalg.norm(again - gap)) <= 0.01 + 1e-4 * value:
                for name in self.names:
                    inside = np.zeros(self.out.size, bool)
                    inside[self.out.place[name]] = True
                    part = float(np.linalg.norm(gap[inside[self.kept]]))
                    self.signal[name] = max(self.signal[name], part)
                return Shift(value, 0.0)
        return self._estimate(one, other, rest + ones * far, rest + others * far)

    def _estimate(self, one: Any, other: Any, far: Any, away: Any) -> Shift:
        """Learns a direction from copies of what differs, and measures along it on other calls."""
        learned = np.zeros(self.out.size)
        for _ in range(self.draws // 2):
            learned += self.out(far, next(self.fresh)) - self.out(away, next(self.fresh))
        direction = self._in_clips(learned)
        length = float(np.linalg.norm(direction))
        if not math.isfinite(length) or length == 0:
            return Shift(math.inf if length else 0.0, 0.0)
        direction /= length
        here, there, value, error = [], [], 0.0, 0.0
        for size in (self.draws, HOLDOUT * self.draws):  # what is plain to see needs no more calls
            for seen, batch in ((here, one), (there, other)):
                calls = range(size - len(seen))
                seen += [
                    self._in_clips(self.out(batch, next(self.fresh))) @ direction for _ in calls
                ]
            value = abs(float(np.mean(here) - np.mean(there)))
            error = math.sqrt((np.var(here, ddof=1) + np.var(there, ddof=1)) / size)
            if value - 8 * error > self.limit:
                break
        return Shift(value, error)

    # -- the checks

    def _trials(self) -> Iterator[tuple[str, tuple[list[Any], list[Any], list[Any]]]]:
        """What is done to one example: words; the batch without it, the example, its stand-in."""
        batch, n = self.batch, len(self.batch)
        replaced = self.claims.relation == "replace"
        for i in range(min(n, 8 if self.exact else 1)):
            rest, own = batch[:i] + batch[i + 1 :], [batch[i]]
            loud, stand = [scale(batch[i], LOUD)], [batch[(i + 1) % n]] if replaced else []
            yield f"example {i} {'replaced' if replaced else 'left out'}", (rest, own, stand)
            if i < TRIED and not _same(loud[0], own[0]):
                yield f"example {i} scaled by 1e6", (rest, loud, stand)
                if replaced:
                    turned = [scale(batch[i], -LOUD)]
                    yield f"example {i} scaled by 1e6 and turned", (rest, loud, turned)
        if not replaced:
            loud = [scale(batch[0], LOUD)]
            yield "example 0 twice", (batch, [batch[0]], [])
            yield "example 0 scaled by 1e6, in a batch of two", ([batch[1]], loud, [])
        alike = [scale(example, LOUD) for example in batch]
        if not _same(alike[0], batch[0]):
            words = "example 0 among examples scaled by 1e6"
            yield words, (alike[1:], alike[:1], [batch[0]] if replaced else [])

    def _reach(self) -> Iterator[Evidence]:
        limit = self.limit
        found = [(words, self._shift(*parts, words)) for words, parts in self._trials()]
        best_words, best = max(found, key=lambda one: one[1].value)
        unit = "clip norms" if limit == 1 else "clip norms (2 are allowed, for a replacement)"
        for words, (value, error) in found:
            said = f"one example moves all that leaves together by {value:.3g} {unit}"
            if error:
                said += f" ± {error:.2g}"
                p = float(stats.t.sf((value - limit) / error, 2 * self.draws - 2))
                yield Evidence("reach", said, value, words, p)
            elif self.claims.denominator is None and math.isfinite(value):
                count = self.pairs.size
                p = float(stats.chi2.cdf(count * (limit / max(value, 1e-30)) ** 2, count))
                yield Evidence("reach", said, value, words, p)
            else:
                broken = not value <= limit * (1 + SLACK)
                yield Evidence("reach", said, value, words, verdict="broken" if broken else "sound")
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
        worst, words = 0.0, ""
        for name, factor in (("NaN", math.nan), ("infinity", math.inf)):
            bad = scale(self.batch[0], factor)
            if _same(bad, self.batch[0]):
                break
            try:
                got = self.out([bad, *self.batch[1:]], 0)
            except Exception as error:  # a step that refuses such data is in order
                words = words or f"the step refuses {name}: {error_text(error, 80)}"
                continue
            share = float(np.mean(~np.isfinite(got)))
            if share > worst:
                worst, words = share, f"an example of {name} makes {share:.0%} of all numbers so"
        else:
            verdict: Verdict = "sound"
            if worst:
                verdict = "cannot tell" if self.claims.finite else "broken"
                words += "; epsilon holds only if no such example comes here"
            words = words or "what leaves stays finite"
            yield Evidence("non-finite", words, worst, "example 0", verdict=verdict)
            return
        words = "examples hold no floating-point numbers"
        yield Evidence("non-finite", words, 0.0, verdict="sound")

    def _denominator(self) -> Iterator[Evidence]:
        if self.claims.relation == "replace" and self.claims.sampling != "poisson":
            words = "under replacement batches have one size, so a moving denominator stays fixed"
            yield Evidence("denominator", words, 2.0)
            return
        told, last = False, min(TRIED, len(self.batch) - 1)
        for i, j, few in [*((i, i + 1, 4) for i in range(last)), *self._quietest()]:
            if told and few > 1:
                continue
            x, y = self.batch[i], self.batch[j]
            words = f"{2 * few} copies of example {i} against as many of example {j}"
            one = self._shift([], [x] * few, [y] * few, words, COPIES // few)
            if not (one.value > max(1e-6, 6 * one.error)) or one.value == math.inf:
                continue
            two = self._shift([], [x] * 2 * few, [y] * 2 * few, words, COPIES // few)
            ratio, told = two.value / one.value, True
            said = f"twice the examples move {ratio:.3g} times as far"
            if one.error or two.error:
                error = math.hypot(two.error, 2 * one.error)
                gap = abs(two.value - 2 * one.value) / error
                p = float(2 * stats.t.sf(gap, 2 * self.draws - 2))
                yield Evidence("denominator", said, ratio, words, p)
            else:
                right = abs(ratio - 2) <= 0.02
                verdict: Verdict = "sound" if right else "broken"
                yield Evidence("denominator", said, ratio, words, verdict=verdict)
        if not told:
            words = "the examples that were tried pull alike, or their pull drowns in the noise"
            yield Evidence("denominator", words, verdict="cannot tell")
        double = [*self.batch, *self.batch]
        yield from self._compare_noise("denominator", double, "twice the batch")

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
        """Compares the noise of another batch with that of the first one."""
        half = self.draws // 2 * 2
        other = _pairs(self._noise_rows(examples, range(half)))
        yield from self._same_noise(name, self.pairs, other, where)

    def _same_noise(
        self, name: str, base: np.ndarray, other: np.ndarray, where: str
    ) -> Iterator[Evidence]:
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
        f = ratio**2
        less = stats.f.cdf(f / (1 - NOISE_SLACK) ** 2, other.size, base.size)
        more = stats.f.sf(f / (1 + NOISE_SLACK) ** 2, other.size, base.size)
        # Where a batch has a chance of its own, it may well vary more than its noise.
        p = min(1.0, 2 * float(min(less, more))) if self.quiet else float(less)
        yield Evidence(name, said, ratio, where, p)

    def _noise_size(self) -> Iterator[Evidence]:
        rms = float(np.sqrt(np.mean(self.pairs**2)))
        if self.claims.denominator is None:
            words = "no denominator is claimed, so the noise is compared with the reach only"
            yield Evidence("noise size", words, verdict="cannot tell")
        else:
            p = _size_p_value(self.pairs)
            size = f"{rms:.3g} times the claimed standard deviation"
            yield Evidence("noise size", f"the noise has {size}", rms, "all tensors", p)
        if not self.quiet:
            yield from self._compare_noise("noise size", self.batch, "a full batch")
        loud = [scale(example, 1e3) for example in self.batch]
        if not _same(loud[0], self.batch[0]):
            yield from self._compare_noise("noise size", loud, "a batch scaled by 1e3")
        if self.exact or not self.quiet:
            # Noise may be added only where a gradient is not zero, such as rows of an embedding.
            copies = [self.batch[0]] * len(self.batch)
            yield from self._compare_noise("noise size", copies, "a batch of copies of one example")

    def _noise_per_tensor(self) -> Iterator[Evidence]:
        squares = {name: self.pairs[:, part] ** 2 for name, part in self.part.items()}
        total, count = float(sum(x.sum() for x in squares.values())), self.pairs.size
        if len(squares) == 1:
            yield Evidence("noise per tensor", "one tensor only", 1.0, self.names[0])
            return
        found = []
        for name, own in squares.items():
            others = (total - own.sum()) / (count - own.size)
            f = float(own.mean() / others) if others else math.inf
            less = stats.f.cdf(f / (1 - NOISE_SLACK) ** 2, own.size, count - own.size)
            more = stats.f.sf(f / (1 + NOISE_SLACK) ** 2, own.size, count - own.size)
            found.append((2 * float(min(less, more)), math.sqrt(f), name))
        p, ratio, name = min(found)
        words = f"{name} has {ratio:.3g} times the noise of the others"
        yield Evidence("noise per tensor", words, ratio, name, min(1.0, p * len(found)))

    def _independence(self) -> Iterator[Evidence]:
        check_, z, rows = "noise independence", self.pairs, self.rows
        distinct = len(np.unique(rows, axis=0))
        if distinct < len(rows):
            words = f"{len(rows)} seeds give {distinct} draws of noise"
            yield Evidence(check_, words, 1.0, "seeds", verdict="broken")
        parts = {name: z[:, part] for name, part in self.part.items()}
        centred = rows - rows.mean(0)
        raw = {name: centred[:, part] for name, part in self.part.items()}
        names, many = self.names, len(self.names) > 20
        pairs = [*itertools.combinations(names, 2)]
        if many:  # neighbours, and tensors of one shape beside each other
            alike = sorted(names, key=lambda name: self.out.shapes[name])
            pairs = sorted({*itertools.pairwise(names), *itertools.pairwise(alike)})
        found = [_correlation(parts[a], parts[b], f"{a} and {b}") for a, b in pairs]
        found += [
            _correlation(raw[x][:-1], raw[y][1:], f"{x} and {y} of the next seed")
            for a, b in pairs
            for x, y in ((a, b), (b, a))
        ]
        for name, x in parts.items():
            found.append(_correlation(x[:-1], x[1:], f"{name}, one seed and the next"))
            last = self.out.shapes[name][-1] if self.out.shapes[name] else 1
            for lag in {1, last}:
                if x.shape[1] > lag:
                    found.append(_correlation(x[:, :-lag], x[:, lag:], f"numbers of {name}"))
            if x.shape[1] > 1:
                size = float(np.sqrt(np.mean(x**2)))
                sums = x.sum(1) / (math.sqrt(x.shape[1]) * size)
                shared = (float(np.mean(sums**2)) - 1) / (x.shape[1] - 1)
                found.append((variance_p_value(sums), shared, f"all numbers of {name}"))
        p, r, where = min(found, default=(1.0, 0.0, ""))
        words = f"the noise correlates by {r:.2g}: {where}"
        yield Evidence(check_, words, r, where, min(1.0, p * max(1, len(found))))
        yield self._noise_used_again()
        for name, step in self.others.items():
            yield from self._other_worker(name, step)

    def _noise_used_again(self) -> Evidence:
        """Looks for two numbers, wherever they stand, that get the same noise or its negative."""
        most = max(2, COMPARED_COLUMNS // len(self.names))
        columns = {name: range(part.start, part.stop)[:most] for name, part in self.part.items()}
        owners = [name for name, own in columns.items() for _ in own]
        z = self.pairs[:, np.concatenate([*columns.values()])]
        sizes = np.maximum(np.linalg.norm(z, axis=0), 1e-300)
        cosines = np.triu(z.T @ z / np.outer(sizes, sizes), 1)
        i, j = np.unravel_index(np.argmax(np.abs(cosines)), cosines.shape)
        r, free = float(cosines[i, j]), len(z) - 1
        p = 2 * float(stats.t.sf(abs(r) * math.sqrt(free / max(1 - r * r, 1e-12)), free))
        one, other = owners[i], owners[j]
        where = f"two numbers of {one}" if one == other else f"a number of {one}, one of {other}"
        words = f"the noise correlates by {r:.2g}: {where}"
        p = min(1.0, p * max(1.0, len(owners) * (len(owners) - 1) / 2))
        return Evidence("noise independence", words, r, where, p)

    def _other_worker(self, name: str, step: Step) -> Iterator[Evidence]:
        out = Outputs(step, (), self.seed, self.batch)
        rows = np.stack([out(self.batch, draw) for draw in range(self.draws)])
        mine, theirs = [], []
        z = _pairs(rows)
        for tensor, part in self.part.items():
            if tensor in out.place:
                own, other = self.pairs[:, part], z[:, out.place[tensor]]
                width = min(own.shape[1], other.shape[1])
                mine.append(own[:, :width])
                theirs.append(other[:, :width])
        if not mine:
            words = f"{name} returns none of the outputs of the first one"
            yield Evidence("noise independence", words, example=name, verdict="cannot tell")
            return
        p, r, where = _correlation(np.hstack(mine), np.hstack(theirs), f"the step and {name}")
        yield Evidence(
            "noise independence", f"the noise correlates by {r:.2g}: {where}", r, name, p
        )

    def _law(self) -> Iterator[Evidence]:
        noise = self.rows - self.rows.mean(0)
        large = [x for part in self.part.values() if (x := noise[:, part]).size >= 300]
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
            rows = self._noise_rows([], range(self.draws // 2 * 2))
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
        for one in self._same_noise(check_, self.pairs, _pairs(rows), "an empty batch"):
            if never and (one.number < 1 or claims.sampling is not None):
                one = Evidence(check_, f"{one.words}; {reason}", one.number, one.example)
                one = one._replace(verdict=verdict)
            yield one
        if not np.isfinite(rows).all():
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


def _pairs(rows: np.ndarray) -> np.ndarray:
    """Differences of one draw and the next, over the root of 2: the noise without the signal."""
    even = len(rows) // 2 * 2
    return (rows[0:even:2] - rows[1:even:2]) / math.sqrt(2)


def _listed(names: Any) -> str:
    names = [*names]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _size_p_value(values: np.ndarray) -> float:
    """Tests that independent normal numbers have variance 1, up to `NOISE_SLACK`."""
    total = float(np.square(values).sum())
    less = stats.chi2.cdf(total / (1 - NOISE_SLACK) ** 2, values.size)
    more = stats.chi2.sf(total / (1 + NOISE_SLACK) ** 2, values.size)
    return min(1.0, 2 * float(min(less, more)))


def _correlation(a: np.ndarray, b: np.ndarray, where: str) -> tuple[float, float, str]:
    """p-value and correlation of as many columns as the narrower array has."""
    width = min(a.shape[1], b.shape[1])
    a, b = a[:, :width].ravel(), b[:, :width].ravel()
    spread = float(a.std() * b.std()) if len(a) else 0.0
    r = float(np.mean((a - a.mean()) * (b - b.mean()))) / spread if spread else 0.0
    return correlation_p_value(a, b), r, where


# ---- the loader


def sampling_evidence(loader: Loader | None, claims: Claims, seed: int) -> Iterator[Evidence]:
    """Compares the batches that a loader draws with the claimed law.

    Args:
        loader: seed -> batches, each of indices into the data set.
        claims: with sampling, sample_rate and dataset_size.
        seed: of the seeds that the loader is given.
    """
    check_, q, n = "sampling", claims.sample_rate, claims.dataset_size
    if loader is None or claims.sampling is None or q is None or n is None:
        words = "needs a loader, and sampling, sample_rate and dataset_size among the claims"
        yield Evidence(check_, words, verdict="cannot tell")
        return
    epochs: list[list[list[int]]] = []
    while sum(map(len, epochs)) < LEAST_BATCHES and len(epochs) < LEAST_BATCHES:
        drawn = loader(seed * 1_000_003 + len(epochs))
        words = "to return batches, lists of indices"
        check(hasattr(drawn, "__iter__"), "loader", type(drawn).__name__, words)
        epochs.append([[int(i) for i in batch] for batch in drawn])
    batches = [batch for epoch in epochs for batch in epoch]
    check(len(batches) > 1, "loader", len(batches), "more than one batch")
    inside = all(0 <= i < n for batch in batches for i in batch)
    check(inside, "loader", "an index outside", f"indices from 0 to {n - 1}")
    here = np.zeros((len(batches), n), bool)
    for row, batch in zip(here, batches):
        row[batch] = True
    sizes = here.sum(1)
    rate = float(here.mean()) / q
    told = f"{len(batches)} batches of {sizes.min()} to {sizes.max()} examples"
    if sum(map(len, batches)) != int(sizes.sum()):
        words = "a batch holds the same example twice"
        yield Evidence(check_, words, rate, told, verdict="broken")
    if len(epochs) > 1 and all(epoch == epochs[0] for epoch in epochs) and q < 1:
        words = "every seed draws the same batches"
        yield Evidence(check_, words, rate, told, verdict="broken")
        return
    often = here[: len(epochs[0])].sum(0)
    pattern = ""
    if len(epochs[0]) > 1 and (often <= 1).all() and often.mean() > 0.5:
        pattern = ": an epoch holds no example twice, as if shuffled and cut"
    if claims.sampling == "shuffle":
        twice = any(
            max(np.bincount([i for batch in epoch for i in batch], minlength=n)) > 1
            for epoch in epochs
        )
        words = "an epoch holds an example twice" if twice else "an epoch holds no example twice"
        yield Evidence(check_, words, rate, told, verdict="broken" if twice else "sound")
        p = float(abs(sizes.mean() - q * n) > 0.02 * q * n + 1)
        words = f"batches hold {rate:.3g} times the claimed share of the data"
        yield Evidence(check_, words, rate, told, verdict="broken" if p else "sound")
        return
    rng, count = np.random.default_rng(seed), len(batches)
    together = int((here[0 : count // 2 * 2 : 2] & here[1 : count // 2 * 2 : 2]).sum())
    trials = count // 2 * n
    if claims.sampling == "fixed":
        size = round(q * n)
        right: Verdict = "sound" if (sizes == size).all() else "broken"
        words = f"batches of {sizes.min()} to {sizes.max()} examples, claimed {size}"
        yield Evidence(check_, words, rate, told, verdict=right)
        # Of one batch and the next: the variance of a hypergeometric number.
        variance = size * size / n * (1 - size / n) ** 2 * n / max(1, n - 1)
        spread = math.sqrt(count // 2 * variance) or math.inf
        gap = abs(together - count // 2 * size * size / n) / spread
        words = f"{together} examples stand in a batch and in the next one{pattern}"
        yield Evidence(check_, words, rate, told, float(2 * stats.norm.sf(gap)))
    elif q < 1:
        words = f"examples are drawn at {rate:.4g} times the claimed rate"
        yield Evidence(check_, words, rate, told, total_p_value(int(here.sum()), here.size, q))
        words = f"sizes from {sizes.min()} to {sizes.max()} do not vary as those of Poisson batches"
        p = binomial_p_value(sizes, n, q, rng)
        yield Evidence(check_, words + pattern, rate, told, p)
        words = f"{together} examples stand in a batch and in the next one"
        words += f", expected {trials * q * q:.0f}{pattern}"
        yield Evidence(check_, words, rate, told, total_p_value(together, trials, q * q))
    mean = claims.sample_rate or 1.0
    each = here.sum(0)
    variance = count * mean * (1 - mean)
    if variance > 0:
        # Squares of a binomial number: mean 1, variance as for a normal one and a little more.
        total = float(np.sum((each - count * mean) ** 2) / variance)
        spread = n * (2 + (1 - 6 * mean * (1 - mean)) / variance)
        law = stats.gamma(n * n / spread, scale=spread / n)
        p = min(1.0, 2 * float(min(law.cdf(total), law.sf(total))))
        words = f"an example is drawn {each.min()} to {each.max()} times in {count} batches"
        yield Evidence(check_, words + pattern, rate, told, p)


def most_participations(loader: Loader, steps: int, n: int, seed: int) -> int:
    """How many of so many steps the example that a loader draws most often takes part in.

    Args: loader, n, seed: see `sampling_evidence`. steps: of the whole training.
    """
    often, seen = np.zeros(n), 0
    for epoch in range(LEAST_BATCHES):
        batches = loader(seed * 1_000_003 + epoch)
        for batch in batches:
            often[np.unique(np.asarray(batch, dtype=int))] += 1
        seen += len(batches)
        if seen >= min(steps, LEAST_BATCHES):
            break
    return math.ceil(float(often.max()) * steps / max(seen, 1) - 1e-9)


def preparation_evidence(prepare: Any, data: Sequence[Any]) -> Iterator[Evidence]:
    """Checks that leaving out a raw example changes no other prepared one.

    Args: prepare: raw examples -> examples. data: raw examples.
    """
    check_ = "preparation"
    if prepare is None:
        yield Evidence(check_, "no prepare function was given", verdict="cannot tell")
        return
    whole, most, where = [*prepare([*data])], 0, ""
    for i in sorted({0, len(data) // 2, len(data) - 1}):
        for words, raw in (("left out", None), ("scaled by 1e6", scale(data[i], LOUD))):
            changed = [*data[:i], *([] if raw is None else [raw]), *data[i + 1 :]]
            others, after = whole[:i] + whole[i + 1 :], [*prepare(changed)]
            after = after if raw is None else after[:i] + after[i + 1 :]
            moved = abs(len(after) - len(others)) + sum(
                not _same(a, b) for a, b in zip(others, after)
            )
            if moved > most:
                most, where = moved, f"raw example {i} {words}"
    words = "every example is prepared alone"
    words = f"{most} of {len(whole) - 1} other examples change with {where}" if most else words
    yield Evidence(check_, words, float(most), where, verdict="broken" if most else "sound")
