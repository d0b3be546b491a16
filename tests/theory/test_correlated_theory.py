"""Correlated noise: closed forms against matrices, searches against published numbers."""

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.linalg import toeplitz

from fedlora_lab import theory
from fedlora_lab.privacy import accounting
from fedlora_lab.privacy.config import Correlated

RNG = np.random.default_rng(0)


def matrix(c: np.ndarray, n: int) -> np.ndarray:
    """C, written out."""
    return np.asarray(toeplitz(np.concatenate([c, np.zeros(n)])[:n], np.zeros(n)))


def turns(n: int) -> np.ndarray:
    """B in even steps, A in odd ones."""
    return np.array([[t % 2 == k for t in range(n)] for k in range(2)])


def test_inverse_and_error_are_those_of_the_matrices() -> None:
    """The closed forms of one column would go unnoticed where they are off by a step."""
    c = np.array([1, 0.4, 0.3, 0.1])
    for n in (3, 4, 9):
        whole, sums = np.linalg.inv(matrix(c, n)), np.tril(np.ones((n, n)))
        np.testing.assert_allclose(theory.inverse_coefficients(c, n), whole[:, 0], atol=1e-12)
        rows = np.square(sums @ whole).sum(1)
        np.testing.assert_allclose(theory.prefix_error(c, n), rows, atol=1e-12)
        kept = toeplitz(0.8 ** np.arange(n), np.zeros(n))
        rows = np.square(kept @ whole).sum(1)
        np.testing.assert_allclose(theory.prefix_error(c, n, 0.8), rows, atol=1e-12)
    error = (c @ c) * theory.prefix_error(c, 4)
    assert error.mean() == pytest.approx(1.824006, abs=1e-6)
    assert error.max() == pytest.approx(2.342209, abs=1e-6)


@pytest.mark.parametrize(
    ("n", "largest", "rmse"),
    [(2, 1.25, 1.185854), (10, 1.791344, 1.653181), (64, 2.388848, 2.229676)]
    + [(512, 3.051841, 2.889173), (2048, 3.493229, 3.330517)],
)
def test_the_square_root_has_its_golden_numbers(n, largest, rmse) -> None:
    """Published numbers of another library: a wrong coefficient, or a wrong loss."""
    c = theory.square_root_coefficients(n)
    size, error = c @ c, theory.prefix_error(c, n)
    assert size * 1.0 == pytest.approx(largest, abs=1e-6)
    assert math.sqrt(size * error[-1]) == pytest.approx(largest, abs=1e-6)
    assert math.sqrt(size * error.mean()) == pytest.approx(rmse, abs=1e-6)
    if n <= 64:
        np.testing.assert_allclose(matrix(c, n) @ matrix(c, n), np.tril(np.ones((n, n))))


def test_a_recursion_in_buffers_is_the_inverse() -> None:
    """x = y - s buf, buf <- d buf + x: a recursion that reads its buffers a step late."""
    s, d, n = np.array([0.3, 0.2]), np.array([0.9, 0.5]), 12
    c, y = theory.buffered_coefficients(s, d, n), RNG.normal(size=n)
    buffers, x = np.zeros(2), np.zeros(n)
    for t in range(n):
        x[t] = y[t] - s @ buffers
        buffers = d * buffers + x[t]
    np.testing.assert_allclose(matrix(c, n) @ x, y, atol=1e-12)
    one = theory.buffered_coefficients(np.array([0.7]), np.array([0.7]), n)
    np.testing.assert_allclose(one, 0.7 ** np.arange(n))


@pytest.mark.parametrize("c", [(1, 0.6, 0.4), (1, 0.5, 0.375, 0.3125), (1, 0.2, 0.7, 0.1)])
def test_sensitivity_under_separation_is_the_worst_pattern(c) -> None:
    """Exact where c does not increase, a bound where it does: every pattern is tried."""
    n, falls = 10, list(c) == sorted(c, reverse=True)
    gram = theory.moving_gram(np.array(c), np.ones((1, n), bool))
    for separation in (1, 2, 3, 5, 20):
        for most in (1, 2, 9):
            worst = theory.largest_sensitivity(gram, separation, most)
            stated = theory.separated_sensitivity(np.array(c), separation, most, n)
            assert worst == pytest.approx(stated) if falls else worst <= stated * (1 + 1e-12)
    root = theory.square_root_coefficients(64)
    for separation, value in ((1, 51.26564), (8, 7.08208), (16, 3.96062), (64, 1.54559)):
        assert theory.separated_sensitivity(root, separation, 64) == pytest.approx(value, abs=1e-5)


def test_alternating_factors_have_the_sensitivity_of_their_worst_pattern() -> None:
    """The lemma on cycles, against every sign of contributions: an even cycle shorter than twice
    the bands exceeds sqrt(k) |c|, an odd one as long as the bands does not."""
    c, n = np.array([1, 0.6, 0.4]), 24
    gram, size = theory.moving_gram(c, turns(n)), float(np.linalg.norm(c))
    for cycle, value in ((3, 3.4641), (4, 3.6), (6, 2.4658)):
        found = theory.cyclic_sensitivity(gram, cycle)
        assert found == pytest.approx(value, abs=5e-5)
        assert (found <= math.sqrt(math.ceil(n / cycle)) * size) == (cycle != 4)
    # Of C written out, with C's rows of A and B apart: the worst unit of one number a step.
    for cycle in (2, 3, 4, 5, 6, 7):
        worst = 0.0
        for first in range(cycle):
            at = np.arange(first, n, cycle)
            parts = [at[at % 2 == side] // 2 for side in range(2)]
            columns = [matrix(c, n // 2)[:, own].sum(1) for own in parts]
            worst = max(worst, math.hypot(*(float(np.linalg.norm(x)) for x in columns)))
        assert theory.cyclic_sensitivity(gram, cycle) == pytest.approx(worst)
        limit = math.sqrt(math.ceil(n / cycle)) * size
        sound = (cycle % 2 == 1 and cycle >= 3) or cycle >= 6
        assert not sound or worst <= limit * (1 + 1e-12)
    # Two of any separation: below 2 b - 1 steps they can meet the same factor too soon.
    short = theory.moving_gram(c, turns(12))
    assert theory.largest_sensitivity(short, 3, 12) == pytest.approx(2.6758, abs=5e-5)
    assert theory.largest_sensitivity(short, 5, 12) == pytest.approx(2.0100, abs=5e-5)
    # A head that always moves beside factors in turns, with any share of each contribution.
    both = np.vstack([turns(8), np.ones((1, 8), bool)])
    bound, c = theory.cyclic_sensitivity(theory.moving_gram(c, both), 2), c
    for _ in range(200):
        shares, total = RNG.random(4), 0.0
        steps = np.arange(RNG.integers(2), 8, 2)
        head = np.zeros(8)
        head[steps] = np.sqrt(1 - shares)
        factor = np.zeros(4)
        factor[steps // 2] = np.sqrt(shares)
        total = np.hypot(np.linalg.norm(matrix(c, 8) @ head), np.linalg.norm(matrix(c, 4) @ factor))
        assert total <= bound * (1 + 1e-12)


def test_no_matrix_beats_the_least_final_noise() -> None:
    """Random matrices and optimised ones: the bound is on all, and a wrong one would be passed."""
    n, k = 12, 3
    for _ in range(100):
        whole = np.tril(RNG.normal(size=(n, n))) + np.diag(np.full(n, 3.0))
        units = [
            np.isin(np.arange(n), np.arange(g, n, n // k)).astype(float) for g in range(n // k)
        ]
        reach = max(float(np.linalg.norm(whole @ u)) for u in units)
        final = float(np.linalg.norm(np.linalg.solve(whole.T, np.ones(n))))
        assert reach * final >= theory.least_final_noise(k, n)
    gram = theory.moving_gram(np.ones(1), np.ones((1, n), bool))
    assert theory.cyclic_sensitivity(gram, 1) * math.sqrt(n) == pytest.approx(n)
    assert theory.least_final_noise(n, n) == n  # in every step: independent noise is the best


@pytest.mark.parametrize(
    ("n", "bands", "rmse", "largest"),
    [(16, 2, 2.28291, 3.02511), (16, 4, 1.93753, 2.43658), (64, 2, 4.20176, 5.80705)]
    + [(64, 8, 2.66397, 3.42429), (64, 16, 2.35005, 2.86752), (512, 16, 4.74678, None)],
)
def test_optimised_bands_have_their_golden_numbers(n, bands, rmse, largest) -> None:
    """A wrong derivative ends the search early, with a matrix that looks good."""
    for last, value in ((False, rmse), (True, largest)):
        c = np.array(theory.optimal_bands(n, bands, last))
        error = (c @ c) * theory.prefix_error(c, n)
        found = error.max() if last else error.mean()
        assert value is None or math.sqrt(found) == pytest.approx(value, abs=2e-5)
    if (n, bands) == (64, 2):
        assert theory.optimal_bands(n, bands)[1] == pytest.approx(0.72864, abs=1e-5)


@pytest.mark.parametrize(("n", "decay", "rmse"), [(64, 0.83699, 2.47684), (512, 0.93937, 4.06106)])
def test_the_best_decay_has_its_golden_numbers(n, decay, rmse) -> None:
    """And independent noise is the best where a unit is in every step."""
    found = theory.optimal_decay(n)
    assert found == pytest.approx(decay, abs=1e-5)
    size = (1 - found ** (2 * n)) / (1 - found**2)
    error = 1 + np.arange(n) * (1 - found) ** 2
    np.testing.assert_allclose(error, theory.prefix_error(found ** np.arange(n), n))
    assert math.sqrt(size * error.mean()) == pytest.approx(rmse, abs=1e-5)
    assert theory.optimal_decay(16, 1, 16) < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("retention", [0.6, 0.95])
def test_what_is_optimised_for_training_that_forgets_is_the_best_for_it(retention) -> None:
    """Matrices of all candidates, and the stationary closed form: a search that still minimises
    the plain sum, or whose derivative is that of it."""
    n, grid = 40, np.linspace(0.0, 0.99, 991)
    kept = np.tril(retention ** np.abs(np.subtract.outer(np.arange(n), np.arange(n))))

    def cost(c: np.ndarray) -> float:
        return float(c @ c) * float(np.square(kept @ np.linalg.inv(matrix(c, n))).sum())

    best = grid[np.argmin([cost(np.array([1.0, x])) for x in grid])]
    assert theory.optimal_bands(n, 2, retention=retention)[1] == pytest.approx(best, abs=1e-3)
    best = grid[np.argmin([cost(x ** np.arange(n)) for x in grid])]
    assert theory.optimal_decay(n, retention=retention) == pytest.approx(best, abs=1e-3)
    scales, decays = map(np.array, theory.optimal_buffers(n, 2, retention=retention))
    c = theory.buffered_coefficients(scales, decays, n)
    assert cost(c) <= cost(best ** np.arange(n)) * (1 + 1e-6)
    # Of a long run the best decay solves (1 + d^2) a = 2 d.
    stationary = (1 - math.sqrt(1 - retention**2)) / retention
    assert theory.optimal_decay(2000, retention=retention) == pytest.approx(stationary, abs=2e-3)


def test_buffers_come_close_to_the_square_root() -> None:
    """Two buffers are below the square root of 64 steps, which keeps 63; none does worse than
    independent noise."""

    def rmse(buffers: int) -> float:
        scales, decays = map(np.array, theory.optimal_buffers(64, buffers))
        c = theory.buffered_coefficients(scales, decays, 64)
        return math.sqrt(float(c @ c) * theory.prefix_error(c, 64).mean())

    assert rmse(2) < 2.229676 and rmse(1) < 2.23


@pytest.mark.parametrize(("bands", "epsilon"), [(1, 3.770), (2, 5.600), (4, 8.318), (8, 12.167)])
def test_amplified_bands_spend_their_golden_epsilon(bands, epsilon) -> None:
    """n = 512, 51.2 expected participations, sigma = 3, delta = 1e-6: a chance or a count that is
    off by the number of groups."""
    noise = Correlated(bands=bands, sampling="poisson")
    (rate,) = noise.rates((1000,), 100)
    assert rate == pytest.approx(0.1 * bands)
    spent = accounting.epsilon(((3.0, rate, noise.releases(512)),), 1e-6)
    assert spent == pytest.approx(epsilon, abs=0.011)


@pytest.mark.slow
def test_the_table_of_the_page_is_computed() -> None:
    """The row of 25 groups: a page whose numbers are those of another strategy, or of no run."""
    page = Path(__file__).parents[2] / "docs" / "correlated_noise.md"
    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if "| 25 |" in line]
    for row, noise in zip(
        rows, (Correlated(bands=25), Correlated(bands=4, sampling="poisson")), strict=True
    ):
        stream = noise.stream(("1" * 100,), (4 if noise.sampling == "poisson" else 25,))
        final = theory.prefix_error(np.array([1.0, *stream.scales]), 100)[-1]
        size, (rate,) = stream.sensitivity[0] * math.sqrt(final), noise.rates((100,), 4)
        for told, epsilon in zip(row.split("|")[3:7], (1.0, 3.0, 8.0, 20.0), strict=True):
            spent = epsilon, 1e-4
            alone = accounting.noise_multiplier(*spent, 1 / 25, 100) * 10
            ours = accounting.noise_multiplier(*spent, rate, noise.releases(100)) * size
            assert float(told) == pytest.approx(ours / alone, abs=0.006)


@pytest.mark.slow
def test_the_table_of_forgetting_is_computed() -> None:
    """The page's reason for no gain: a discount that is off by a step, or of the other noise."""
    page = Path(__file__).parents[2] / "docs" / "correlated_noise.md"
    lines = page.read_text(encoding="utf-8").splitlines()
    rows = {line.split("|")[1].strip(): line.split("|")[2:7] for line in lines if "| ε = " in line}
    noise = Correlated(bands=25)
    stream = noise.stream(("1" * 100,), (25,))
    c, kept = np.array([1.0, *stream.scales]), [1 - 1 / m for m in (3, 10, 30, 100)] + [1.0]
    for epsilon in (1, 3, 8, 20):
        alone = accounting.noise_multiplier(epsilon, 1e-4, 1 / 25, 100)
        ours = accounting.noise_multiplier(epsilon, 1e-4, 1.0, 1) * stream.sensitivity[0]
        for told, a in zip(rows[f"ε = {epsilon}"], kept, strict=True):
            errors = [theory.prefix_error(x, 100, a)[-1] for x in (c, np.ones(1))]
            expected = ours / alone * math.sqrt(errors[0] / errors[1])
            assert float(told) == pytest.approx(expected, abs=0.006)
