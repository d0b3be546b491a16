"""Right and wrong answers to the exercises of notebook 12: audits, and a trial of sensitivity."""

import numpy as np
from numpy.linalg import norm

from fedlora_lab.course.exercises import Calls, vary


def _scores(rng):
    n = int(rng.integers(200, 600))
    shift = rng.uniform(1, 2)
    inside = shift + rng.standard_normal(n)
    outside = rng.standard_normal(2 * n)
    return inside, outside, shift / 2 + rng.uniform(-0.2, 0.4), 0.01, 0.05


def _guesses(rng):
    """Counts at which ε is refuted or nearly so, for instance 90 of 120."""
    from scipy.stats import binom

    m = int(rng.integers(200, 1000))
    epsilon = rng.uniform(0.3, 1.5)
    g = int(m * rng.uniform(0.2, 0.6))
    v = int(binom.ppf(rng.uniform(0.8, 0.97), g, 1 / (1 + np.exp(-epsilon))))
    return m, g, v, epsilon, rng.uniform(0.5, 1) * 0.1 / m


def _clipped(rows, limit):
    size = norm(rows, axis=1, keepdims=True)
    return rows * np.minimum(1, limit / np.maximum(size, 1e-300))


def _sound(rows):
    return _clipped(rows, 0.5).sum(0)


def _at_the_median(rows):
    return _clipped(rows, np.median(norm(rows, axis=1))).sum(0)


def _with_a_hole(rows):
    clipped = _clipped(np.nan_to_num(rows), 0.5)
    return np.where(np.isnan(rows), np.nan, clipped).sum(0)


def _standardised(rows):
    return _sound(rows / rows.std(0))


def _rows(rng, hole=False):
    rows = rng.standard_normal((int(rng.integers(5, 9)), 4)) * rng.uniform(0.1, 9, 4)
    rows[0] *= 0.05
    if hole:
        rows[2, 1] = np.nan
    return rows


# More false alarms than misses, and a threshold at which nothing is seen: asked at every check.
FEW_MISSED = np.arange(100.0) + 55, np.arange(200.0) % 100, 60.5, 0.01, 0.05
NOTHING_SEEN = np.arange(100.0), np.arange(100.0), 49.5, 0.01, 0.05
FIXED = np.random.default_rng(12)
# Without the third row a column has no spread: one move alone is not a number.
ONE_OF_A_KIND = np.array([[0.1, 0.0], [1.3, 0.0], [0.7, 2.0], [-0.9, 0.0], [0.4, 0.0]])
CALLS = {
    "12.1": Calls(
        "inside, outside, threshold, delta and significance",
        FEW_MISSED,
        NOTHING_SEEN,
        draw=_scores,
    ),
    "12.2": Calls("m, g, v, epsilon and delta", draw=_guesses),
    "12.3": Calls(
        "release, rows and C",
        (_sound, _rows(FIXED), 0.5),
        (_with_a_hole, _rows(FIXED, hole=True), 0.5),
        (_standardised, ONE_OF_A_KIND, 0.5),
        draw=lambda rng: (_at_the_median, _rows(rng), rng.uniform(0.5, 2)),
    ),
}


# ---- 12.1: a threshold audit


def threshold_audit(inside, outside, threshold, delta, significance):
    from scipy.stats import beta

    def upper_end(errors, runs):
        return beta.ppf(1 - significance / 2, errors + 1, runs - errors)

    fpr = upper_end((outside > threshold).sum(), len(outside))
    fnr = upper_end((inside <= threshold).sum(), len(inside))
    return max(0, np.log((1 - delta - fnr) / fpr), np.log((1 - delta - fpr) / fnr))


# Rates of few runs are luck: a bound takes their upper ends.
def rates_as_measured(inside, outside, threshold, delta, significance):
    fpr = (outside > threshold).mean()
    fnr = (inside <= threshold).mean()
    return max(0, np.log((1 - delta - fnr) / fpr), np.log((1 - delta - fpr) / fnr))


# A mechanism may leak by what it does not show.
def one_direction(inside, outside, threshold, delta, significance):
    from scipy.stats import beta

    errors = outside > threshold, inside <= threshold
    fpr, fnr = (beta.ppf(1 - significance / 2, sum(x) + 1, sum(~x)) for x in errors)
    return max(0, np.log((1 - delta - fnr) / fpr))


# Two rates are bounded, and each may fail.
whole_significance = vary(threshold_audit, significance=lambda alpha: 2 * alpha)


# ---- 12.2: the p-value of a one-run audit


def p_value(m, g, v, epsilon, delta):
    from scipy.stats import binom

    right = 1 / (1 + np.exp(-epsilon))
    tail = binom.sf(v - 1, g, right)
    i = np.arange(1, v + 1)
    gain = (binom.sf(v - i - 1, g, right) - tail) / i
    return min(1, tail + 2 * m * delta * gain.max())


# With probability δ anything may happen.
without_the_term = vary(p_value, delta=0.0)
# At least v right guesses: v itself counts.
strictly_more = vary(p_value, v=lambda v: v + 1)
# Both worlds may fail.
delta_once = vary(p_value, delta=lambda delta: delta / 2)


# ---- 12.3: how far one row moves a release


def largest_move(release, rows, C):
    full = release(rows)
    moves = []
    for i in range(len(rows)):
        part = release(np.delete(rows, i, axis=0))
        distance = np.linalg.norm(full - part)
        moves.append(distance if np.isfinite(distance) else np.inf)
    return max(moves) / C


def _moves(release, rows):
    sums = [release(np.delete(rows, i, axis=0)) for i in range(len(rows))]
    return norm(release(rows) - sums, axis=1)


# A row may move the sum only in company.
def each_row_alone(release, rows, C):
    return np.nan_to_num([norm(release(row[None])) for row in rows], nan=np.inf).max() / C


# A release that becomes NaN tells that the row was there.
def skips_what_is_no_number(release, rows, C):
    moves = _moves(release, rows)
    return moves[np.isfinite(moves)].max(initial=0) / C


# NaN compares as false, so that any number before it stays the largest.
def plain_maximum(release, rows, C):
    return max(_moves(release, rows).tolist()) / C


# The one move that can be compared with nothing is reported as no number.
def maximum_is_no_number(release, rows, C):
    return _moves(release, rows).max() / C


# The promise is made to the row that moves most.
def mean_move(release, rows, C):
    return np.nan_to_num(_moves(release, rows), nan=np.inf).mean() / C
