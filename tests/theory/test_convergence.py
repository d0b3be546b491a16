"""Closed forms of convergence against runs of the engine, and against plain descent."""

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from frames import words

import fedlora_lab as fl
from fedlora_lab import theory
from fedlora_lab.plots.style import WRONG
from fedlora_lab.tasks.regression import teachers

SCRIPT = Path(__file__).parents[2] / "scripts" / "convergence_figures.py"
checks: Any = SimpleNamespace(**runpy.run_path(str(SCRIPT)))
SCALING, LR = 2.0, 0.5


def descents(
    problem: Any, A: Any, words: Any, lr: float, scaling: float, std: float = 0.0, runs: int = 1
) -> Any:
    """Losses after every round of so many noised descents from B = 0, and the last products.

    A run of the engine without clip is this: test_least_squares_is_the_loss_of_a_run and
    test_the_noise_of_a_run_is_that_of_the_closed_forms.
    """
    (S, M, start), draw = problem, np.random.default_rng(0)
    A, B = np.repeat(A[None], runs, 0), np.zeros((runs, len(M), len(A)))
    D, losses = scaling * B @ A, [np.full(runs, start)]
    with np.errstate(all="ignore"):  # some diverge
        for word in words:
            R = (D @ S - M) * 2 * scaling / len(M)
            of_B, of_A = R @ A.mT, B.mT @ R
            if "B" in word:
                B = B - lr * of_B + std * draw.standard_normal(B.shape)
            if "A" in word:
                A = A - lr * of_A + std * draw.standard_normal(A.shape)
            D = scaling * B @ A
            losses.append(start + ((D @ S - 2 * M) * D).sum((1, 2)) / len(M))
    table = np.array(losses).T
    return np.where(table < theory.DIVERGED * start, table, np.inf), D


@pytest.fixture(scope="module")
def plain() -> Any:
    """A task whose inputs are not white and whose outputs have noise; its loss, and a start."""
    sizes: dict[str, Any] = {"clients": 3, "examples": 40, "d_in": 10, "d_out": 6, "rank": 3}
    task = fl.tasks.regression(**sizes, heterogeneity=0.2, noise=0.1, dtype="float64")
    return task, checks.problem_of(task), checks.drawn_start(task, 2, seed=4)


def test_least_squares_is_the_loss_of_a_run(plain):
    """Weights, covariance and cross moment of the clients' data, at the weights of a real run."""
    task, problem, A = plain
    last = checks.records(task, A, ("AB",) * 3, 0.2, 0.0, SCALING)[-1]
    ((a, b),) = last.adapter.values()
    change = SCALING * (b @ a).numpy()
    losses = [task.loss(fl.predict(task, last, x), y).mean().item() for x, y in task.clients]
    assert problem.loss(change) == pytest.approx(np.mean(losses), rel=1e-9)
    by_hand = descents(problem, A, ("AB",) * 3, 0.2, SCALING)
    assert change == pytest.approx(by_hand[1][0], abs=1e-12)
    assert by_hand[0][0, -1] == pytest.approx(problem.loss(change))
    task = checks.toy()
    given = task, checks.drawn_start(task, 2), ("AB",) * 3, 0.2, 0.0, SCALING, (0,)
    assert checks.final_losses(*given) == pytest.approx(ends(*given))


def test_frozen_floor(plain):
    """Descent of B ends there; a random A leaves (1 - r / d_in) of the signal."""
    _, problem, A = plain
    end = descents(problem, A, ("B",) * 4000, LR, SCALING)[0][0, -1]
    assert theory.frozen_floor(problem, A) == pytest.approx(end, rel=1e-9)
    task = checks.toy(12)
    white, starts = (
        checks.problem_of(task),
        [checks.drawn_start(task, 2, seed=k) for k in range(300)],
    )
    signal = np.square(white.cross).sum() / 8
    left = [theory.frozen_floor(white, a) - (white.start - signal) for a in starts]
    assert (1 - 2 / 12) * signal in theory.mean_band(np.array(left))
    aimed = checks.drawn_start(task, 2, share=1.0)
    assert theory.frozen_floor(white, aimed) == pytest.approx(theory.best_rank_loss(white, 2))


@pytest.mark.parametrize(("heterogeneity", "clients"), [(0.0, 3), (0.4, 3), (1.0, 5)])
def test_common_signal(heterogeneity, clients):
    """The energy of the mean of 300 draws of teachers."""
    sizes = {"clients": clients, "d_in": 6, "d_out": 5, "rank": 2, "heterogeneity": heterogeneity}
    drawn = [teachers(**sizes, seed=seed)[1] for seed in range(300)]
    means = [np.mean([b @ a for b, a in one], axis=0) for one in drawn]
    energies = np.array([np.square(mean).sum() / 5 for mean in means])
    assert theory.common_signal(heterogeneity, clients) in theory.mean_band(energies)


def test_expected_losses_of_one_factor_are_the_closed_form(plain):
    """Two derivations of one curve: eigenvalues, and the full covariance of the factors."""
    _, problem, A = plain
    closed = theory.frozen_losses(problem, A, 30, LR, 0.3, SCALING)
    assert theory.expected_losses(problem, A, ("B",) * 30, LR, 0.3, SCALING) == pytest.approx(
        closed
    )


def test_the_noise_of_a_run_is_that_of_the_closed_forms():
    """What one round of the engine adds to A and to B; five standard errors."""
    task = checks.toy(12, clients=2)
    A = checks.drawn_start(task, 2)
    still, *noisy = (
        checks.records(task, A, ("AB",), LR, std, SCALING, seed)[-1].adapter
        for std, seed in ((0.0, 0), *((0.2, seed) for seed in range(8)))
    )
    for side in (0, 1):
        gaps = [(x[layer][side] - still[layer][side]).numpy() for x in noisy for layer in x]
        assert np.std(gaps) == pytest.approx(0.2, rel=5 / (2 * np.size(gaps)) ** 0.5)


@pytest.mark.slow
def test_frozen_losses_are_the_mean_of_runs():
    """At a noise that triples the excess loss; every fourth of 24 rounds of the engine."""
    task = checks.toy(12, clients=2)
    A, problem = checks.drawn_start(task, 2), checks.problem_of(task)
    closed = theory.frozen_losses(problem, A, 24, LR, 0.2, SCALING)
    runs = checks.measured_losses(task, A, ("B",) * 24, LR, 0.2, SCALING, range(8))
    assert closed[-1] - theory.frozen_floor(problem, A) > 0.1
    for t in range(4, 25, 4):
        assert closed[t] in theory.mean_band(runs[:, t]), t


@pytest.mark.parametrize("family", ["turns", "both factors"])
def test_expected_losses_are_the_mean_of_runs(family):
    """Within four standard errors at small noise; within 15 % where the noise is half the loss."""
    task = checks.toy(12, clients=2, seed=1)
    A, problem = checks.drawn_start(task, 2, share=0.5), checks.problem_of(task)
    order = checks.schedule(family, 24)
    for std, slack in ((0.01, 0.0), (0.08, 0.15)):
        closed = theory.expected_losses(problem, A, order, LR, std, SCALING)
        runs, _ = descents(problem, A, order, LR, SCALING, std, 12)
        for t in range(2, 25, 2):
            _, low, high = theory.mean_band(runs[:, t])
            assert low - slack * closed[t] <= closed[t] <= high + slack * closed[t], (std, t)


def test_turns_losses(plain):
    """Phases solved by least squares in turn; then the rate, and the limit."""
    _, problem, A = plain
    root = np.linalg.cholesky(problem.covariance)
    best, rows, losses = np.linalg.solve(problem.covariance, problem.cross.T).T @ root, A @ root, []
    for _ in range(3):
        B = np.linalg.lstsq(rows.T, best.T)[0].T
        losses.append(problem.loss(B @ rows @ np.linalg.inv(root)))
        rows = np.linalg.lstsq(B, best)[0]
    assert theory.turns_losses(problem, A, 2) == pytest.approx(losses, rel=1e-9)
    gaps = theory.turns_losses(problem, A, 8) - theory.best_rank_loss(problem, 2)
    assert gaps[8] / gaps[7] == pytest.approx(theory.turns_rate(problem, 2), rel=1e-2)
    assert gaps[0] > 0.1 and gaps[8] < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("train", "cycle"), [("B", ("B",)), ("AB", ("AB",)), ("AB", ("B", "A"))])
def test_noise_floor(train, cycle):
    """What small noise holds up after 1,200 rounds at a small rate, in the limit of the moments."""
    task = checks.toy(6, d_out=5, rank=2)
    A, problem = checks.drawn_start(task, 2, share=0.7), checks.problem_of(task)
    lr = 0.05
    noisy, still = (
        theory.expected_losses(problem, A, cycle * (1200 // len(cycle)), lr, std, SCALING)[-1]
        for std in (1e-3, 0.0)
    )
    floor = theory.noise_floor(5, 6, 2, lr, 1e-3, train)
    assert floor < noisy - still < 1.1 * floor


def test_the_gap_to_a_frozen_factor_falls_with_alpha_squared(plain):
    """In runs without privacy: slope -2 of log gap over log c and the predicted constant; and alpha
    c times larger at rate lr / c^2 is A started c times larger at the same rate."""
    task, problem, A = plain

    def product(A, lr, scaling, word="AB"):
        ((a, b),) = checks.records(task, A, (word,) * 12, lr, 0.0, scaling)[-1].adapter.values()
        return scaling * (b @ a).numpy()

    frozen, scales = product(A, LR, SCALING, "B"), np.array([8.0, 32.0])
    assert product(A, LR / 64, 8 * SCALING, "B") == pytest.approx(frozen)
    gaps = [np.linalg.norm(product(A, LR / c**2, c * SCALING) - frozen) for c in scales]
    assert np.diff(np.log(gaps)) / np.diff(np.log(scales)) == pytest.approx(-2, abs=0.05)
    constant = theory.alpha_limit_gap(problem, A, 12, LR, SCALING)
    assert gaps[1] * scales[1] ** 2 == pytest.approx(constant, rel=0.02)
    assert product(8 * A, LR, SCALING / 8) == pytest.approx(product(A, LR / 64, 8 * SCALING))


def ends(task, A, words, lr, std, scaling, seeds):
    """The last losses of descents, in the place of runs of the engine."""
    losses, _ = descents(checks.problem_of(task), A, words, lr, scaling, std, len(seeds))
    return losses[:, -1]


@pytest.mark.slow
def test_the_boundary_names_the_leader():
    """In 24 settings fixed before any of them was run, three seeds each: the moments named the
    leader in 24, the closed form of many rounds in 22, both misses within 12 % of the boundary."""
    table = checks.leader_draws(final=ends)
    led = table["measured"] > 0
    assert len(table) == 24 and 9 <= led.sum() <= 15
    assert ((table["predicted"] > 0) == led).sum() >= 23
    assert (table["closed"] == led).sum() >= 21


@pytest.mark.parametrize(
    ("std", "share", "d_in"), [(0.1, None, 12), (0.2, None, 12), (0.06, 0.8, 16)]
)
def test_the_best_start_is_predicted(std, share, d_in):
    """Within a factor of 2 of the c with the least mean loss of three seeds."""
    scales = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
    given: Any = {"seeds": range(3), "task": checks.toy(d_in), "share": share, "final": ends}
    table = checks.start_draws(scales, (std,), **given)
    best = [float(table["x"][table[name].idxmin()]) for name in ("closed", "mean")]
    assert max(best) / min(best) <= 2


def test_the_leader_figure_counts_its_misses():
    """Four settings: the moments miss one, which is red; the closed form misses two."""
    columns = {"std": [0.1, 0.2, 0.3, 0.4], "boundary": [0.2] * 4, "start": ["random A"] * 4}
    measured, closed = [0.5, -0.1, 0.2, -1.0], [True, True, False, False]
    table = pd.DataFrame({**columns, "measured": measured, "closed": closed})
    figure: Any = checks.leader_check(table.assign(predicted=[0.4, -0.2, -0.1, -0.5]))
    assert "the leader in 3 of 4 settings, the dashed closed form in 2;" in words(figure)
    red = [
        x for line in figure.axes[0].lines if line.get_color() == WRONG for x in line.get_ydata()
    ]
    assert red == [0.2]


def test_divergence_is_dropped_from_the_figure_of_starts():
    """A line through an infinite mean would end the figure's axis; the other means are drawn."""
    columns = {"x": [0.5, 1.0, 2.0], "group": ["noise std 0.1"] * 3, "closed": [2.0, 1.0, 0.5]}
    table = pd.DataFrame({**columns, "mean": [np.inf, 1.1, 0.6]})
    figure: Any = checks.start_check(table.assign(low=table["mean"] / 2, high=table["mean"] * 2))
    assert "inside: 100% of 2" in words(figure)
