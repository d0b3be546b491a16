"""Right and wrong functions of notebook 12: a threshold audit, a p-value, a sensitivity trial."""

from functools import partial

import numpy as np
from numpy.linalg import norm
from scipy.stats import beta, binom

from fedlora_lab.audit.bounds import one_run_p_value, threshold_lower_bound
from fedlora_lab.course.exercises import Calls, vary

# ---- 12.1: a threshold audit


def _scores(rng):
    n, shift = int(rng.integers(200, 600)), rng.uniform(1, 2)
    inside, outside = shift + rng.standard_normal(n), rng.standard_normal(2 * n)
    return inside, outside, shift / 2 + rng.uniform(-0.2, 0.4), 0.01, 0.05


_EVEN = np.arange(100.0)
_FEW_MISSED = np.arange(100.0) + 55, np.arange(200.0) % 100, 60.5, 0.01, 0.05
_NOTHING_SEEN = _EVEN, _EVEN, 49.5, 0.01, 0.05


def _errors(inside, outside, t):
    return int((outside > t).sum()), len(outside), int((inside <= t).sum()), len(inside)


def _upper(k, n, significance):
    return beta.ppf(1 - significance / 2, k + 1, n - k)


def _audit(inside, outside, t, delta, significance, *, end=_upper, least=0.0):
    """`threshold_audit` with another end of an error's interval, or below zero as well."""
    fp, outs, fn, ins = _errors(inside, outside, t)
    fpr, fnr = end(fp, outs, significance), end(fn, ins, significance)
    return max(least, np.log((1 - delta - fnr) / fpr), np.log((1 - delta - fpr) / fnr))


def threshold_audit(inside, outside, threshold, delta, significance):
    from scipy.stats import beta

    def upper_end(errors, runs):
        return beta.ppf(1 - significance / 2, errors + 1, runs - errors)

    fpr = upper_end((outside > threshold).sum(), len(outside))
    fnr = upper_end((inside <= threshold).sum(), len(inside))
    return max(0, np.log((1 - delta - fnr) / fpr), np.log((1 - delta - fpr) / fnr))


def by_the_library(inside, outside, t, delta, significance):
    return threshold_lower_bound(*_errors(inside, outside, t), delta, significance)


def one_direction(inside, outside, t, delta, significance):
    fp, outs, fn, ins = _errors(inside, outside, t)
    fpr, fnr = _upper(fp, outs, significance), _upper(fn, ins, significance)
    return max(0.0, np.log((1 - delta - fnr) / fpr))


def rates_exchanged(inside, outside, t, delta, significance):
    return threshold_audit(outside, inside, t, delta, significance)


rates_as_measured = partial(_audit, end=lambda k, n, significance: k / n)
whole_significance = vary(threshold_audit, significance=lambda alpha: 2 * alpha)
lower_ends = partial(_audit, end=lambda k, n, alpha: beta.ppf(alpha / 2, k, n - k + 1))
below_zero = partial(_audit, least=-np.inf)
without_delta = vary(threshold_audit, delta=0.0)


# ---- 12.2: the p-value of a one-run audit


def _guesses(rng):
    m, epsilon = int(rng.integers(200, 1000)), rng.uniform(0.3, 1.5)
    r = int(m * rng.uniform(0.2, 0.6))
    v = int(binom.ppf(rng.uniform(0.8, 0.97), r, 1 / (1 + np.exp(-epsilon))))
    return m, r, v, epsilon, rng.uniform(0.5, 1) * 0.1 / m


def p_value(m, g, v, epsilon, delta):
    from scipy.stats import binom

    right = 1 / (1 + np.exp(-epsilon))
    tail = binom.sf(v - 1, g, right)
    i = np.arange(1, v + 1)
    gain = (binom.sf(v - i - 1, g, right) - tail) / i
    return min(1, tail + 2 * m * delta * gain.max())


def in_a_loop(m, r, v, epsilon, delta):
    chances = binom.pmf(np.arange(r + 1), r, 1 / (1 + np.exp(-epsilon)))
    gains = [chances[v - i : v].sum() / i for i in range(1, v + 1)]
    return min(1.0, chances[v:].sum() + 2 * m * delta * max(gains))


def undivided(m, r, v, epsilon, delta):
    tail = without_the_term(m, r, v, epsilon, delta)
    return tail + 2 * m * delta * (1 - tail)


without_the_term = vary(p_value, delta=0.0)
strictly_more = vary(p_value, v=lambda v: v + 1)
fair_coin = vary(p_value, epsilon=0.0)
delta_of_the_guesses = lambda m, r, v, epsilon, delta: p_value(m, r, v, epsilon, delta * r / m)
delta_once = vary(p_value, delta=lambda delta: delta / 2)


# ---- 12.4: how far one row moves a release


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


def _rows(rng, hole=False):
    rows = rng.standard_normal((int(rng.integers(5, 9)), 4)) * rng.uniform(0.1, 9, 4)
    rows[0] *= 0.05
    if hole:
        rows[2, 1] = np.nan
    return rows


_FIXED = np.random.default_rng(12)


def _setups(rng):
    return _at_the_median, _rows(rng), rng.uniform(0.5, 2)


def largest_move(release, rows, C):
    whole, moves = release(rows), []
    for i in range(len(rows)):
        part = release(np.delete(rows, i, axis=0))
        distance = np.linalg.norm(whole - part)
        moves.append(distance if np.isfinite(distance) else np.inf)
    return max(moves) / C


def _moves(release, rows):
    whole, rest = release(rows), (np.arange(len(rows)) != i for i in range(len(rows)))
    return np.array([norm(whole - release(rows[others])) for others in rest])


def each_row_alone(release, rows, C):
    return np.nan_to_num([norm(release(row[None])) for row in rows], nan=np.inf).max() / C


def skips_what_is_no_number(release, rows, C):
    moves = _moves(release, rows)
    return moves[np.isfinite(moves)].max(initial=0) / C


in_one_line = lambda release, rows, C: np.nan_to_num(_moves(release, rows), nan=np.inf).max() / C
first_row_only = lambda release, rows, C: np.nan_to_num(_moves(release, rows)[0], nan=np.inf) / C
mean_move = lambda release, rows, C: np.nan_to_num(_moves(release, rows), nan=np.inf).mean() / C
not_in_units = vary(largest_move, C=1.0)
squared = vary(largest_move, then=np.square)

assert one_run_p_value  # an equal answer to 12.2, by name

CALLS = {
    "12.1": Calls(
        "inside, outside, threshold, delta and significance",
        _FEW_MISSED,
        _NOTHING_SEEN,
        draw=_scores,
    ),
    "12.2": Calls("m, g, v, epsilon and delta", draw=_guesses),
    "12.4": Calls(
        "release, rows and C",
        (_sound, _rows(_FIXED), 0.5),
        (_with_a_hole, _rows(_FIXED, hole=True), 0.5),
        draw=_setups,
    ),
}
