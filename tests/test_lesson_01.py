"""Notebook 01: what rank and alpha decide, in closed form, measured, drawn and on a dial."""

import html

import numpy as np
import pytest

import fedlora_lab as fl
from fedlora_lab import theory
from fedlora_lab.plots import reach as drawn
from fedlora_lab.plots.reach import reached, says
from fedlora_lab.plots.style import png


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
    import torch

    G = torch.randn(6, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    seen, form = fl.measures.first_steps(G, 3, draws=20_000), theory.first_step(3, 12)
    assert form.along in theory.mean_band(seen.along)
    assert form.energy in theory.mean_band(seen.energy)
    assert np.all(seen.along <= np.sqrt(seen.energy))  # Cauchy and Schwarz
    again = fl.measures.first_steps(7 * G, 3, draws=5)
    assert np.allclose(again.along, fl.measures.first_steps(G, 3, draws=5).along)


def test_approach(change):
    """It starts at 1, ends at what the rank can reach, scales with alpha, and says when it diverges."""
    floor = theory.reachable_error(np.linalg.svd(change, compute_uv=False))
    slow, fast = (theory.approach(change, 2, alpha, steps=4000, lr=0.02) for alpha in (2, 4))
    assert slow[0] == fast[0] == 1
    assert slow[-1] == pytest.approx(floor[2], abs=2e-3) == fast[-1]
    assert np.argmax(fast < floor[2] + 0.01) < np.argmax(slow < floor[2] + 0.01)
    assert np.all(np.isinf(theory.approach(change, 2, 64, steps=200, lr=0.3)[-100:]))


def test_approach_is_the_gradient(change):
    """One step against autograd's."""
    import torch

    rng = np.random.default_rng(0)
    A = torch.tensor(rng.uniform(-1, 1, (2, 10)) / np.sqrt(10), requires_grad=True)
    B, target = torch.zeros(12, 2, dtype=torch.float64, requires_grad=True), torch.tensor(change)
    for _ in range(3):
        loss = 0.5 * (3.0 * B @ A - target).square().sum()
        steps = torch.autograd.grad(loss, (B, A))
        B, A = ((x - 0.05 * g).detach().requires_grad_() for x, g in zip((B, A), steps, strict=True))
    expected = float((3.0 * B @ A - target).detach().norm()) / np.linalg.norm(change)
    assert theory.approach(change, 2, 6.0, steps=3, lr=0.05)[-1] == pytest.approx(expected)


def limits(figure):
    return [(ax.get_xlim(), ax.get_ylim(), ax.get_position().bounds) for ax in figure.axes]


def test_axes_stand_still(change):
    figures = [drawn(change, rank, alpha) for rank, alpha in ((1, 1), (4, 8), (8, 32))]
    assert limits(figures[0]) == limits(figures[1]) == limits(figures[2])
    assert len({png(figure) for figure in figures}) == 3


def test_a_descent_that_diverges_is_named(change):
    seen = reached(change, 1, 32)
    assert "diverges" in says(seen, 1, 32)
    assert "diverges" in " ".join(text.get_text() for text in drawn(change, 1, 32).axes[2].texts)


def test_the_dial_says_what_it_shows(change):
    dial = fl.widgets.reach(change)
    try:
        assert dial.knobs["rank"].options[-1] == ("8", 8)
        floor = theory.reachable_error(np.linalg.svd(change, compute_uv=False))
        for rank in (2, 8):
            dial.knobs["rank"].value = rank
            assert dial.settle()
            assert f"Rank {rank} can come within {floor[rank]:.0%}" in html.unescape(dial.sentence.value)
        before = dial.picture.value
        dial.knobs["alpha"].value = 1
        assert dial.settle() and dial.picture.value != before
        assert "α = 1 (s = 0.125)" in html.unescape(dial.sentence.value)
    finally:
        dial.close()


def test_the_dial_refuses_what_is_no_matrix():
    with pytest.raises(ValueError, match=r"^change=\(3,\): expected a matrix"):
        fl.widgets.reach(np.ones(3))
