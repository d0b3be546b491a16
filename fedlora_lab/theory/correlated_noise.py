"""Toeplitz matrix factorisation mechanisms: sensitivity, error and optimised coefficients.

The prefix-sum matrix is factorised as A = B C, with C lower triangular and Toeplitz, of first
column c with c_0 = 1. Step t adds (C^-1 z)_t, z iid with standard deviation sigma times the
sensitivity of C. So C times the released steps is a Gaussian mechanism, and the sum of the first t
steps has the noise (B z)_t. Banded matrices, the square root, DP-lambda-CGD and BLT are choices of
c. Sensitivities are for participation patterns: a minimal separation, or one step in every cycle.
"""

import itertools
import math
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float
from scipy.linalg import toeplitz
from scipy.optimize import minimize, minimize_scalar, nnls
from scipy.signal import lfilter

from fedlora_lab._utils.validation import check_number, check_whole


def inverse_coefficients(c: Float[np.ndarray, " n"], steps: int) -> Float[np.ndarray, " steps"]:
    """Computes the first column of C^-1: the weights of one draw of z in its own and later steps.

    Args:
        c: first column of C, c[0] > 0; zeros follow it.
        steps: how many numbers, >= 1.

    Guarantees: test_inverse_and_error_are_those_of_the_matrices.
    Source: arXiv:2202.08312, section 3 (A = B C); a Toeplitz matrix's inverse is Toeplitz.
    """
    check_whole("steps", steps, 1)
    check_number("c[0]", c[0], 0, open_low=True)
    return np.asarray(lfilter([1.0], c, np.eye(1, steps)[0]))


def prefix_error(
    c: Float[np.ndarray, " n"], steps: int, retention: float = 1.0
) -> Float[np.ndarray, " steps"]:
    """Computes the variance of the noise in each prefix sum, t = 1 ... steps, for z of variance 1.

    Multiplied by the squared sensitivity it compares mechanisms of equal privacy; for independent
    noise the variance is t.

    Args:
        c, steps: as of `inverse_coefficients`.
        retention: what a step leaves of the sum so far, in (0, 1]. Gradient descent at rate eta on
            a loss of curvature h has 1 - eta h: training forgets earlier noise.

    Guarantees: test_inverse_and_error_are_those_of_the_matrices.
    Source: arXiv:2202.08312, section 3; the squared norms of the rows of B.
    """
    check_number("retention", retention, 0, 1, open_low=True)
    weights = lfilter([1.0], [1.0, -retention], inverse_coefficients(c, steps))
    return np.cumsum(np.square(weights))


def square_root_coefficients(steps: int) -> Float[np.ndarray, " steps"]:
    """Computes the coefficients of the square-root factorisation B = C = A^(1/2).

    c_0 = 1, c_k = c_{k-1} (2k - 1) / (2k); there is no parameter.

    Guarantees: test_the_square_root_has_its_golden_numbers.
    Source: arXiv:2202.11205, section 3.
    """
    check_whole("steps", steps, 1)
    k = np.arange(1, steps)
    return np.cumprod(np.concatenate([[1.0], (2 * k - 1) / (2 * k)]))


def buffered_coefficients(
    scales: Float[np.ndarray, " m"], decays: Float[np.ndarray, " m"], steps: int
) -> Float[np.ndarray, " steps"]:
    """Computes the coefficients of a buffered linear Toeplitz matrix (BLT).

    c_0 = 1, c_i = sum_j scale_j decay_j^(i-1). One buffer with scale = decay = lambda is
    DP-lambda-CGD, c_i = lambda^i: each step subtracts lambda times the last step's draw.

    Args: scales, decays: >= 0, of m buffers; steps: >= 1.
    Guarantees: test_a_recursion_in_buffers_is_the_inverse.
    Source: arXiv:2404.16706, section 3 (BLT); arXiv:2601.22334 (DP-lambda-CGD).
    """
    check_whole("steps", steps, 1)
    powers = np.asarray(decays)[None] ** np.arange(steps - 1)[:, None]
    return np.concatenate([[1.0], powers @ np.asarray(scales)])


def separated_sensitivity(
    c: Float[np.ndarray, " n"], separation: int, participations: int, steps: int | None = None
) -> float:
    """Computes the sensitivity of C under min-separation participation.

    Exact for non-negative, non-increasing c; otherwise an upper bound, from the smallest such
    sequence above |c|. Each contribution of a unit has norm at most 1.

    Args:
        c: first column of C.
        separation: least distance between two steps of one unit, >= 1.
        participations: most steps of one unit, >= 1.
        steps: n; default: the length of c.

    Guarantees: test_sensitivity_under_separation_is_the_worst_pattern.
    Source: arXiv:2405.13763, theorem 2 (non-increasing c); the bound is derived: |C u| <= |C'| |u|
        entry by entry.
    """
    check_whole("separation", separation, 1)
    check_whole("participations", participations, 1)
    n = len(c) if steps is None else steps
    column = np.zeros(n)
    column[: min(n, len(c))] = np.abs(c[:n])
    column = np.maximum.accumulate(column[::-1])[::-1]
    total = np.zeros(n)
    for i in range(min(participations, math.ceil(n / separation))):
        total[i * separation :] += column[: n - i * separation]
    return float(np.linalg.norm(total))


def moving_gram(
    c: Float[np.ndarray, " n"], moves: Bool[np.ndarray, "keys steps"]
) -> Float[np.ndarray, "steps steps"]:
    """Bounds the inner products <C u_s, C u_t> of two contributions where several factors move.

    Each key (A, B, a head) has independent noise, correlated over the steps in which it moves; a
    step's contribution has norm at most 1 over all keys together. The bound is attained if c >= 0
    and any two keys move always together or never together.

    Args:
        c: first column of C, indexed by the steps in which a key moves.
        moves: whether a key moves in a step.

    Guarantees: test_alternating_factors_have_the_sensitivity_of_their_worst_pattern.
    Source: derived, docs/correlated_noise.md, lemma 1.
    """
    steps = moves.shape[1]
    gram = np.zeros((steps, steps))
    for own in np.unique(moves, axis=0):
        at = np.flatnonzero(own)
        if len(at):
            column = np.zeros(len(at))
            column[: min(len(at), len(c))] = c[: len(at)]
            matrix = np.abs(toeplitz(column, np.zeros(len(at))))
            gram[np.ix_(at, at)] = np.maximum(gram[np.ix_(at, at)], matrix.T @ matrix)
    return gram


def cyclic_sensitivity(gram: Float[np.ndarray, "steps steps"], cycle: int) -> float:
    """Computes the sensitivity under cyclic participation: one step in every ``cycle``.

    It is the largest over the positions within a cycle.

    Args:
        gram: of `moving_gram`.
        cycle: >= 1; 1 is a unit that takes part in every step.

    Guarantees: test_alternating_factors_have_the_sensitivity_of_their_worst_pattern.
    Source: derived, docs/correlated_noise.md, lemma 1.
    """
    check_whole("cycle", cycle, 1)
    return math.sqrt(max(gram[g::cycle, g::cycle].sum() for g in range(min(cycle, len(gram)))))


def largest_sensitivity(
    gram: Float[np.ndarray, "steps steps"], separation: int, participations: int
) -> float:
    """Computes the sensitivity under min-separation by enumerating every participation pattern.

    Args:
        gram: of `moving_gram`, of at most 24 steps.
        separation, participations: >= 1, as of `separated_sensitivity`.

    Guarantees: test_sensitivity_under_separation_is_the_worst_pattern.
    Source: the definition.
    """
    steps, best = len(gram), 0.0
    check_whole("steps", steps, 1, 24)
    most = min(participations, math.ceil(steps / separation))
    for count in range(1, most + 1):
        room = steps - (count - 1) * (separation - 1)
        for chosen in itertools.combinations(range(room), count):
            at = [t + i * (separation - 1) for i, t in enumerate(chosen)]
            best = max(best, float(gram[np.ix_(at, at)].sum()))
    return math.sqrt(best)


def least_final_noise(participations: int, steps: int) -> float:
    """Bounds the noise in the sum of all steps from below, over all factorisations.

    A standard deviation in units of sigma times the clip norm, under cyclic participation with
    cycle steps / participations. Independent noise has sqrt(participations steps), larger by the
    root of the cycle.

    Args: participations, steps: >= 1.
    Guarantees: test_no_matrix_beats_the_least_final_noise.
    Source: derived, docs/correlated_noise.md, lemma 3.
    """
    check_whole("participations", participations, 1)
    check_whole("steps", steps, participations)
    return float(participations)


@lru_cache(maxsize=64)
def optimal_bands(
    steps: int, bands: int, last: bool = False, retention: float = 1.0
) -> tuple[float, ...]:
    """Optimises a banded Toeplitz matrix for the mean squared error of the prefix sums.

    For one participation, or several that are at least ``bands`` steps apart, where the squared
    sensitivity is a multiple of |c|^2.

    Args:
        steps, bands: >= 1.
        last: minimise the error of the last prefix sum, the largest, instead of the mean.
        retention: as of `prefix_error`.

    Guarantees: test_optimised_bands_have_their_golden_numbers.
    Source: arXiv:2306.08153, section 4; L-BFGS from the square root's numbers.
    """
    check_whole("steps", steps, 1)
    check_whole("bands", bands, 1)
    start = square_root_coefficients(min(bands, steps))
    weights = np.ones(steps) if last else np.arange(steps, 0, -1) / steps
    kept = retention ** np.arange(steps)  # of a sum after so many further steps

    def loss(free: np.ndarray) -> tuple[float, np.ndarray]:
        c = np.concatenate([[1.0], free])
        sums = np.asarray(lfilter([1.0], c, kept))  # cumulated first column of C^-1
        error, size = float(weights @ sums**2), float(c @ c)
        later = np.asarray(lfilter([1.0], c, sums))  # minus its derivative by c_k, k steps later
        slope = [-2 * float((weights * sums)[k:] @ later[: steps - k]) for k in range(1, len(c))]
        return size * error, 2 * free * error + size * np.array(slope)

    if len(start) == 1:
        return (1.0,)
    options = {"maxiter": 2000, "ftol": 1e-14, "gtol": 1e-10}
    found = minimize(loss, start[1:], jac=True, method="L-BFGS-B", options=options)
    return (1.0, *map(float, found.x))


def _cost(
    c: np.ndarray, steps: int, separation: int, participations: int, retention: float
) -> float:
    """Squared sensitivity times mean squared error of the prefix sums."""
    size = separated_sensitivity(c, separation, participations, steps)
    return size**2 * float(prefix_error(c, steps, retention).mean())


@lru_cache(maxsize=64)
def optimal_decay(
    steps: int, separation: int = 1, participations: int = 1, retention: float = 1.0
) -> float:
    """Optimises the decay of DP-lambda-CGD, c_i = lambda^i, for the error of the prefix sums.

    Args:
        steps, separation, participations: as of `separated_sensitivity`.
        retention: as of `prefix_error`.

    Guarantees: test_the_best_decay_has_its_golden_numbers.
    Source: arXiv:2601.22334; the search is SciPy's.
    """

    def cost(decay: float) -> float:
        return _cost(decay ** np.arange(steps), steps, separation, participations, retention)

    # The best may be 0, independent noise: nothing is gained if a unit takes part in every step.
    found = minimize_scalar(cost, bounds=(0.0, 1 - 1e-6), method="bounded", options={"xatol": 1e-9})
    return float(found.x) if found.fun < cost(0.0) else 0.0


@lru_cache(maxsize=64)
def optimal_buffers(
    steps: int,
    buffers: int,
    separation: int = 1,
    participations: int = 1,
    retention: float = 1.0,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Optimises the scales and decays of a BLT for the mean squared error of the prefix sums.

    Args:
        steps, separation, participations: as of `separated_sensitivity`.
        retention: as of `prefix_error`.
        buffers: m, >= 1, at most 8.

    Guarantees: test_buffers_come_close_to_the_square_root.
    Source: arXiv:2404.16706; L-BFGS from decays of 1 to ``steps`` steps fitted to the square root.
    """
    check_whole("buffers", buffers, 1, 8)
    memory = np.geomspace(1.0, max(steps, 2), buffers) if buffers > 1 else np.array([4.0])
    decays = np.exp(-1 / memory)
    wide = buffered_coefficients(np.zeros(1), np.zeros(1), steps)
    powers = decays[None] ** np.arange(max(steps - 1, 1))[:, None]
    scales = nnls(powers, square_root_coefficients(max(steps, 2))[1 : len(powers) + 1])[0] + 1e-3
    start = np.concatenate([np.log(scales), np.log(decays / (1 - decays))])

    def parts(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.exp(np.minimum(x[:buffers], 20)), 1 / (1 + np.exp(-np.clip(x[buffers:], -30, 30)))

    def cost(x: np.ndarray) -> float:
        c = buffered_coefficients(*parts(x), steps)
        return math.log(_cost(c, steps, separation, participations, retention))

    found = minimize(cost, start, method="L-BFGS-B", options={"maxiter": 500})
    if _cost(wide, steps, separation, participations, retention) <= math.exp(found.fun):
        return (0.0,) * buffers, (0.0,) * buffers
    scales, decays = parts(found.x)
    return tuple(map(float, scales)), tuple(map(float, decays))
