"""Notebook 01: what rank and alpha decide, in closed form, measured, drawn and on a dial."""

import numpy as np
import pytest
import torch

import fedlora_lab as fl
from fedlora_lab import theory
from fedlora_lab.course.lesson_01 import figures
from fedlora_lab.course.lesson_01.widget import low_rank_explorer


@pytest.fixture(scope="module")
def change():
    """A matrix with known singular values 2, 1, 1/2, ... in a random basis."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((n, 8)))[0] for n in (12, 10))
    return left * 2.0 ** (1 - np.arange(8)) @ right.T


def test_reachable_error(change):
    """Against the best approximations themselves, and no random one of that rank is better."""
    left, values, right = np.linalg.svd(change, full_matrices=False)
    errors, size = theory.reachable_error(values), np.linalg.norm(change)
    assert errors[0] == 1 and errors[-1] == 0 and len(errors) == len(values) + 1
    rng = np.random.default_rng(1)
    for rank in (1, 3, 7):
        best = (left[:, :rank] * values[:rank]) @ right[:rank]
        assert errors[rank] == pytest.approx(np.linalg.norm(change - best) / size)
        A = rng.standard_normal((rank, 10))
        fitted = change @ np.linalg.pinv(A) @ A
        assert np.linalg.norm(change - fitted) / size > errors[rank]
    assert theory.reachable_error(values[::-1].copy()) == pytest.approx(errors)
    with pytest.raises(ValueError, match=r"^singular_values=.*: expected some of them > 0"):
        theory.reachable_error(np.zeros(3))


@pytest.mark.parametrize(("rank", "d_in"), [(1, 5), (3, 12), (20, 7)])
def test_first_step(rank, d_in):
    rng = np.random.default_rng(rank)
    G = rng.standard_normal((6, d_in))
    A = rng.uniform(-1, 1, (40_000, rank, d_in)) / np.sqrt(d_in)
    moves = G @ A.transpose(0, 2, 1) @ A
    form, size = theory.first_step(rank, d_in), np.sum(G * G)
    assert form.along in theory.mean_band(np.sum(moves * G, axis=(1, 2)) / size)
    assert form.energy in theory.mean_band(np.sum(moves * moves, axis=(1, 2)) / size)
    assert form.cosine == pytest.approx(np.sqrt(rank / (d_in + rank)), rel=0.1)


def test_first_steps():
    """The measure is the move itself, and its mean is the closed form's."""
    G = torch.randn(6, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    seen, form = fl.measures.first_steps(G, 3, draws=20_000), theory.first_step(3, 12)
    assert form.along in theory.mean_band(seen.along)
    assert form.energy in theory.mean_band(seen.energy)
    assert np.all(seen.along <= np.sqrt(seen.energy))  # Cauchy and Schwarz
    again = fl.measures.first_steps(7 * G, 3, draws=5)
    assert np.allclose(again.along, fl.measures.first_steps(G, 3, draws=5).along)


def test_descent_errors(change):
    """It starts at 1, ends at what the rank reaches, scales with alpha; a diverging one is inf."""
    floor = theory.reachable_error(np.linalg.svd(change, compute_uv=False))
    slow, fast = (theory.descent_errors(change, 2, alpha, steps=4000, lr=0.02) for alpha in (2, 4))
    assert slow[0] == fast[0] == 1
    assert slow[-1] == pytest.approx(floor[2], abs=2e-3) == fast[-1]
    assert np.argmax(fast < floor[2] + 0.01) < np.argmax(slow < floor[2] + 0.01)
    assert np.all(np.isinf(theory.descent_errors(change, 2, 64, steps=200, lr=0.3)[-100:]))


def test_approach_is_the_gradient(change):
    """One step against autograd's."""
    rng = np.random.default_rng(0)
    A = torch.tensor(rng.uniform(-1, 1, (2, 10)) / np.sqrt(10), requires_grad=True)
    B, target = torch.zeros(12, 2, dtype=torch.float64, requires_grad=True), torch.tensor(change)
    for _ in range(3):
        loss = 0.5 * (3.0 * B @ A - target).square().sum()
        steps = torch.autograd.grad(loss, (B, A))
        B, A = (x.sub(g, alpha=0.05).detach().requires_grad_() for x, g in zip((B, A), steps))
    expected = float((3.0 * B @ A - target).detach().norm()) / np.linalg.norm(change)
    assert theory.descent_errors(change, 2, 6.0, steps=3, lr=0.05)[-1] == pytest.approx(expected)


def test_the_figure_names_a_descent_that_diverges_and_refuses_what_is_no_matrix(change):
    figure, words = figures.low_rank_fit(change, 1, 32)
    assert "diverges" in words
    assert "diverges" in " ".join(text.get_text() for text in figure.axes[2].texts)
    with pytest.raises(ValueError, match=r"^change=\(3,\): expected a matrix"):
        low_rank_explorer(np.ones(3))
