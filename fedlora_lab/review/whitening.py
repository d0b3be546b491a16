"""Moves by the data in units of the noise that hides them, whatever linear map both went through.

Only their ratio counts: a filter, a rate for each tensor or a projection after the noise changes
both alike, and no epsilon.
"""

import math

import numpy as np

from fedlora_lab.review.claims import Finding
from fedlora_lab.review.post_processing import after_processing
from fedlora_lab.review.trials import SLACK, Trials

MOST_NUMBERS = 128
"""Numbers of which a covariance is estimated; more would take too many calls."""
CALLS = 20
"""Calls for each of these numbers."""
SINGULAR = 1e-9
"""Share of the largest variance below which there is none but for rounding."""
SUSPECT = 0.01
"""A p-value from which on it is asked whether a linear map explains it."""
LEAST_CHANGE = 0.01
"""Difference of a move from the limit, in clip norms, that a map after the clip leaves."""
SURE = 3.0
"""Standard errors by which a move has to exceed its limit."""
WORDS = "moves by the data shrink with the noise, as by a filter or a rate after it"


def changed_together(trials: Trials, finding: Finding) -> Finding:
    """A finding that a linear map after the noise may explain.

    Args: trials: of the step. finding: of the size or the independence of noise within a call.
    """
    decided = finding.verdict == "broken" or (finding.p is not None and finding.p < SUSPECT)
    if not decided or finding.rejected != "broken" or not moves_shrink_too(trials):
        return finding
    return after_processing(finding, WORDS)


def moves_shrink_too(trials: Trials) -> bool:
    """Whether no move that was measured exceeds the limit in units of the noise along it."""
    if trials.shrinks is None:
        # A clipped move that leaves at its full length went through no map.
        longest = max((np.linalg.norm(x) for x in trials.moves.values()), default=0.0)
        mapped = abs(float(longest) * trials.per_clip - trials.limit) > LEAST_CHANGE
        trials.shrinks = bool(trials.exact and trials.moves and mapped) and (
            within_limit(trials, *rate_for_each_tensor(trials))
            or within_limit(trials, *white_moves(trials))
        )
    return trials.shrinks


def within_limit(trials: Trials, length: float, free: int) -> bool:
    """Whether a length from a variance with so many degrees of freedom may be that of the limit."""
    return length <= trials.limit * (1 + SLACK + SURE / math.sqrt(2 * free))


def rate_for_each_tensor(trials: Trials) -> tuple[float, int]:
    """The longest move, in clip norms, where each tensor's noise has the claimed size, and the
    degrees of freedom of that size in all tensors together."""
    moves = np.array([*trials.moves.values()]) * trials.per_clip
    noise = trials.noise.deviations
    squares = sum(
        (moves[:, part] ** 2).sum(1) / max(float(np.mean(noise[:, part] ** 2)), 1e-300)
        for part in trials.noise.parts.values()
    )
    return float(np.sqrt(np.max(squares))), (len(noise) - 1) * noise.shape[1]


def white_moves(trials: Trials) -> tuple[float, int]:
    """The longest move, in clip norms, in units of all the noise along it, by its covariance."""
    numbers = len(trials.chosen)
    if numbers > MOST_NUMBERS or numbers < trials.kept.sum():
        return math.inf, 1
    calls = CALLS * numbers
    rows = [trials.out(trials.quiet, next(trials.fresh))[trials.chosen] for _ in range(calls)]
    covariance = np.cov(np.array(rows).T * trials.per_deviation).reshape(numbers, numbers)
    variances, axes = np.linalg.eigh(covariance)
    along = np.array([*trials.moves.values()]) * trials.per_clip @ axes
    noised = variances > SINGULAR * variances.max()
    # What no noise hides must not move at all.
    if np.abs(along[:, ~noised]).max(initial=0.0) > SLACK:
        return math.inf, 1
    squares = (along[:, noised] ** 2 / variances[noised]).sum(1)
    # Hotelling: of so many estimated variances the smallest are too small.
    free = calls - int(noised.sum())
    return math.sqrt(float(squares.max()) * free / (calls - 1)), free
