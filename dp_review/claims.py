"""What a review asks, what an author claims of a step, and what is found."""

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

from dp_review._validation import check, check_number, check_whole

Step: TypeAlias = Callable[[list[Any], int], Mapping[str, Any]]
Loader = Callable[[int], Iterable[Iterable[int]]]
Verdict = Literal["sound", "broken", "not as claimed", "cannot tell"]
"""*Not as claimed* may be sound all the same: processed after the noise, or noised more."""


class Check(NamedTuple):
    """One question of a review.

    Args:
        asks: what is measured, and in which unit.
        docs: where it is explained, a place in the documentation.
        remedy: what mends a step that fails it.
    """

    asks: str
    docs: str
    remedy: str


def _edge(place: str) -> str:
    return f"docs/evidence/edges.md#{place}"


CHECKS: dict[str, Check] = {
    "sensitivity": Check(
        "how far one example moves all noised outputs together, in clip norms",
        _edge("3-clipping-the-mean-gradient-of-a-batch-fatal"),
        "Clip each example's gradient over all tensors together, sum, divide by a constant.",
    ),
    "non-finite": Check(
        "how far an example of NaN, infinity or huge numbers moves all outputs, in clip norms",
        "docs/evidence/review.md#examples-that-are-not-finite",
        "Refuse such examples before the step, or count their gradients as zero, one by one.",
    ),
    "noise size": Check(
        "standard deviation of the noise, altogether or in one place, in units of the claimed one",
        _edge("reported-elsewhere"),
        "Add noise of noise_multiplier × clip_norm to the sum, then divide by a constant. Where "
        "moves are off by the same factor, check denominator and clip_norm: epsilon is as claimed.",
    ),
    "noise and data": Check(
        "noise beside other data, in units of what it should be",
        _edge("reported-elsewhere"),
        "Draw the noise without a look at the batch: its size and directions have to be public.",
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
        "Add noise to it and count it, or do not release it. What may depend on the data by "
        "design, such as a number of examples, stands by its name in Claims(public=[...]).",
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
        "State the epsilon of all steps together, from an accountant that gives an upper bound, "
        "at a delta far below 1 / dataset_size.",
    ),
    "failure": Check(
        "number of batches on which the step raised an error",
        "docs/evidence/review.md#steps-that-fail",
        "Whoever sees that a step failed learns what was in its batch: let every batch give noise, "
        "and refuse bad examples before training begins.",
    ),
    "post-processing": Check(
        "share of the calls or numbers that were plainly changed after the noise was added",
        "docs/evidence/review.md#values-that-are-changed-after-the-noise",
        "Review the step before it, where it returns the noised sum itself.",
    ),
    "signal": Check(
        "largest move of the noised outputs by one example, in clip norms",
        _edge("23-adapters-on-another-device-or-not-trained-at-all-bug"),
        "Look whether the trained parameters are in the model's forward pass and the optimiser.",
    ),
}
"""Name -> check, in the order of the table."""


@dataclass(frozen=True, kw_only=True)
class Claims:
    """What the author of a step says of it. The first two are needed; each other one switches on
    the check that needs it. Two data sets are neighbours where one lacks an example of the other.

    Args:
        clip_norm: C, norm to which one unit's contribution is clipped, over all tensors jointly.
        noise_multiplier: sigma > 0; the noise on the sum has standard deviation sigma C.
        denominator: what the noised sum is divided by; 1: the sum itself leaves.
        sampling: "poisson"; ``None``: no claim, and no amplification, as for shuffled batches.
        sample_rate: share of the data in a batch, in (0, 1].
        dataset_size: number of units in the whole data set.
        steps: how many releases are made in all.
        epsilon, delta: what is promised.
        seeded: the step obeys its seed.
        frozen: outputs that nothing may move.
        public: outputs that may depend on the data, such as a number of examples.
        finite: no example, and no example's gradient, is NaN or infinite: it was checked before. A
            step that turns to NaN where one is, is then not called broken; one that goes on without
            its noise, or without the other examples, is.

    >>> Claims(clip_norm=1.0, noise_multiplier=1.1).denominator
    1.0
    """

    clip_norm: float
    noise_multiplier: float
    denominator: float = 1.0
    sampling: Literal["poisson"] | None = None
    sample_rate: float | None = None
    dataset_size: int | None = None
    steps: int | None = None
    epsilon: float | None = None
    delta: float | None = None
    seeded: bool = True
    frozen: Sequence[str] = ()
    public: Sequence[str] = ()
    finite: bool = True

    def __post_init__(self) -> None:
        for name in ("clip_norm", "noise_multiplier", "denominator"):
            check_number(name, getattr(self, name), 0, sys.float_info.max)
        for name in ("sample_rate", "delta"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), 0, 1)
        for name in ("dataset_size", "steps"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), 1)
        if self.epsilon is not None:
            check(self.epsilon >= 0, "epsilon", self.epsilon, "a number >= 0")
        check(self.sampling in (None, "poisson"), "sampling", self.sampling, "poisson or None")
        for name in ("frozen", "public"):
            value = getattr(self, name)
            check(not isinstance(value, str), name, value, "names of outputs, in a tuple or list")


class Finding(NamedTuple):
    """What a check found.

    Args:
        check: a name in `CHECKS`.
        words: what was found, in a sentence.
        number: what was measured, as ``CHECKS[check].asks`` says.
        example: the example or tensor that shows it.
        verdict: "sound", "broken", "not as claimed" or "cannot tell".
        p: where chance decides, how likely a sound step shows this or worse.
        rejected: the verdict where this p-value is too small.
    """

    check: str
    words: str
    number: float = math.nan
    example: str = ""
    verdict: Verdict = "sound"
    p: float | None = None
    rejected: Verdict = "broken"
