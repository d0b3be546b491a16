"""The closed forms of scripts/convergence.py against runs of the engine, and plain descent."""

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import fedlora_lab as fl
from fedlora_lab import theory

SCRIPT = Path(__file__).parents[2] / "scripts" / "convergence.py"
forms: Any = SimpleNamespace(**runpy.run_path(str(SCRIPT)))
SCALING, LR = 2.0, 0.5


def descents(problem, A, words, lr, scaling, std=0.0, runs=1):
    """Losses after every round of so many noised descents from B = 0, and the last products."""
    covariance, cross, start = problem
    draw = np.random.default_rng(0)
    A = np.repeat(A[None], runs, 0)
    B = np.zeros((runs, len(cross), A.shape[1]))
    change = scaling * B @ A
    losses = [np.full(runs, start)]
    with np.errstate(all="ignore"):  # some diverge
        for word in words:
            residual = (change @ covariance - cross) * 2 * scaling / len(cross)
            of_B = residual @ A.mT
            of_A = B.mT @ residual
            if "B" in word:
                B = B - lr * of_B + std * draw.standard_normal(B.shape)
            if "A" in word:
                A = A - lr * of_A + std * draw.standard_normal(A.shape)
            change = scaling * B @ A
            energy = ((change @ covariance - 2 * cross) * change).sum((1, 2))
            losses.append(start + energy / len(cross))
    table = np.array(losses).T
    return np.where(table < forms.DIVERGED * start, table, np.inf), change


@pytest.fixture(scope="module")
def uneven():
    """A task whose inputs are not white and whose outputs have noise; its loss, and a start."""
    sizes: dict[str, Any] = {"clients": 3, "examples": 40, "d_in": 10, "d_out": 6, "rank": 3}
    task = fl.tasks.regression(**sizes, heterogeneity=0.2, noise=0.1, dtype="float64")
    return task, forms.problem_of(task), forms.drawn_start(task, 2, seed=4)


def test_least_squares_is_the_loss_of_a_run(uneven):
    """Covariance and cross moment of the clients' data, at the weights of a real run."""
    task, problem, A = uneven
    last = forms.records(task, A, ("AB",) * 3, 0.2, 0.0, SCALING)[-1]
    ((a, b),) = last.adapter.values()
    change = SCALING * (b @ a).numpy()
    losses = [task.loss(fl.predict(task, last, x), y).mean().item() for x, y in task.clients]
    assert problem.loss(change) == pytest.approx(np.mean(losses), rel=1e-9)
    by_hand, product = descents(problem, A, ("AB",) * 3, 0.2, SCALING)
    assert change == pytest.approx(product[0], abs=1e-12)
    assert by_hand[0, -1] == pytest.approx(problem.loss(change))


def test_one_factor_has_two_derivations_of_one_curve(uneven):
    """Eigenvalues, and the full covariance of the factors; descent of B ends at the floor."""
    _, problem, A = uneven
    closed = forms.frozen_losses(problem, A, 30, LR, 0.3, SCALING)
    moments = forms.expected_losses(problem, A, ("B",) * 30, LR, 0.3, SCALING)
    assert moments == pytest.approx(closed)
    end = descents(problem, A, ("B",) * 4000, LR, SCALING)[0][0, -1]
    assert forms.frozen_floor(problem, A) == pytest.approx(end, rel=1e-9)


@pytest.mark.parametrize("family", ["turns", "both factors"])
def test_expected_losses_are_the_mean_of_descents(family):
    """Within four standard errors at small noise; within 15 % where the noise is half the loss."""
    task = forms.toy(12, clients=2, seed=1)
    A = forms.drawn_start(task, 2, share=0.5)
    problem = forms.problem_of(task)
    order = forms.schedule(family, 24)
    for std, slack in ((0.01, 0.0), (0.08, 0.15)):
        closed = forms.expected_losses(problem, A, order, LR, std, SCALING)
        losses, _ = descents(problem, A, order, LR, SCALING, std, 12)
        for t in range(2, 25, 2):
            _, low, high = theory.mean_band(losses[:, t])
            assert low - slack * closed[t] <= closed[t] <= high + slack * closed[t], (std, t)


def ends(task, A, words, lr, std, scaling, seeds):
    """The last losses of descents, in the place of runs of the engine."""
    losses, _ = descents(forms.problem_of(task), A, words, lr, scaling, std, len(seeds))
    return losses[:, -1]


@pytest.mark.slow
def test_the_boundary_names_the_leader():
    """In 24 settings fixed before any of them was run, three seeds each: the moments named the
    leader in 24, the closed form of many rounds in 22, both misses within 12 % of the boundary."""
    table = forms.leader_draws(final=ends)
    led = table["measured"] > 0
    assert len(table) == 24 and 9 <= led.sum() <= 15
    assert ((table["predicted"] > 0) == led).sum() >= 23
    assert (table["closed"] == led).sum() >= 21


@pytest.mark.parametrize(("std", "share", "d_in"), [(0.2, None, 12), (0.06, 0.8, 16)])
def test_the_best_start_is_predicted(std, share, d_in):
    """Within a factor of 2 of the c with the least mean loss of three seeds."""
    scales = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
    given: Any = {"seeds": range(3), "task": forms.toy(d_in), "share": share, "final": ends}
    table = forms.start_draws(scales, (std,), **given)
    best = [float(table["x"][table[name].idxmin()]) for name in ("closed", "mean")]
    assert max(best) / min(best) <= 2
