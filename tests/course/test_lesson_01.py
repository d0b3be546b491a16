"""Lesson 01: what rank and alpha decide, in closed form, measured, drawn and on a dial."""

import numpy as np
import pytest
import torch

import fedlora_course as course
from fedlora_course.lesson_01.theory import first_step, reachable_error
from fedlora_lab import theory


@pytest.fixture(scope="module")
def change():
    """A matrix with known singular values 2, 1, 1/2, ... in a random basis."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((n, 8)))[0] for n in (12, 10))
    return left * 2.0 ** (1 - np.arange(8)) @ right.T


def test_reachable_error_is_that_of_the_best_approximation(change):
    left, values, right = np.linalg.svd(change, full_matrices=False)
    errors = reachable_error(values)
    assert errors[0] == 1 and errors[-1] == 0 and len(errors) == len(values) + 1
    for rank in (1, 3, 7):
        missed = change - (left[:, :rank] * values[:rank]) @ right[:rank]
        assert errors[rank] == pytest.approx(np.linalg.norm(missed) / np.linalg.norm(change))


@pytest.mark.parametrize(("rank", "d_in"), [(1, 5), (3, 12), (20, 7)])
def test_the_first_step_has_the_closed_form(rank, d_in):
    rng = np.random.default_rng(rank)
    G = rng.standard_normal((6, d_in))
    A = rng.uniform(-1, 1, (40_000, rank, d_in)) / np.sqrt(d_in)
    moves = G @ A.transpose(0, 2, 1) @ A
    form, size = first_step(rank, d_in), np.sum(G * G)
    assert form.along in theory.mean_band(np.sum(moves * G, axis=(1, 2)) / size)
    assert form.energy in theory.mean_band(np.sum(moves * moves, axis=(1, 2)) / size)
    assert form.cosine == pytest.approx(np.sqrt(rank / (d_in + rank)), rel=0.1)


def test_descent_takes_the_gradients_steps(change):
    """One step against autograd's."""
    rng = np.random.default_rng(0)
    A = torch.tensor(rng.uniform(-1, 1, (2, 10)) / np.sqrt(10), requires_grad=True)
    B, target = torch.zeros(12, 2, dtype=torch.float64, requires_grad=True), torch.tensor(change)
    optimizer = torch.optim.SGD((B, A), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        (0.5 * (3.0 * B @ A - target).square().sum()).backward()
        optimizer.step()
    expected = float((3.0 * B @ A - target).detach().norm()) / np.linalg.norm(change)
    assert course.lesson(1).descent_errors(change, 2, 6.0, steps=3, lr=0.05)[-1] == pytest.approx(
        expected
    )


def test_the_layer_is_described_with_its_own_numbers(capsys):
    """For who does not see it: what is frozen, trained and sent."""
    course.lesson(1).lora_layer(d=128, rank=8, alpha=8)._ipython_display_()
    shown = capsys.readouterr().out  # outside of a notebook the output is printed
    title, *parts = "Picture: A LoRA layer: ", "frozen W₀, 128 × 128", "A, 8 × 128", "B, 128 × 8"
    assert title in shown and all(part in shown for part in parts)
    assert "2048 numbers, 8,192 bytes; all of W: 65,536 bytes" in shown
