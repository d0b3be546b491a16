"""The closed forms of docs/convergence.md against runs of the engine."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import fedlora_lab as fl
from fedlora_lab import theory
from fedlora_lab.methods.method import Cycle

FAR = 1e6  # a clip norm that no gradient reaches
SCALING = 2.0


class LeastSquares(NamedTuple):
    """Step 1: a loss of the weight's change D, start + (tr D S D^T - 2 tr D M^T) / d_out."""

    covariance: np.ndarray
    cross: np.ndarray
    start: float

    @classmethod
    def of_clients(cls, task: fl.tasks.Task) -> "LeastSquares":
        x = np.concatenate([x.numpy() for x, _ in task.clients])
        y = np.concatenate([y.numpy() for _, y in task.clients])
        base: Any = task.model.get_submodule(task.targets[0]).weight
        gap = y - x @ base.detach().numpy().T
        return cls(x.T @ x / len(x), gap.T @ x / len(x), float(np.square(gap).mean()))

    def loss(self, change: np.ndarray) -> np.ndarray:
        energy = ((change @ self.covariance - 2 * self.cross) * change).sum((-2, -1))
        return self.start + energy / len(self.cross)

    def one_factor(self, A: np.ndarray, steps: int, lr: float, std: float) -> np.ndarray:
        """Steps 2 to 4: the expected loss after 0 ... steps rounds in which B alone moves."""
        d_out = len(self.cross)
        values, vectors = np.linalg.eigh(A @ self.covariance @ A.T)
        shares = np.square(self.cross @ A.T @ vectors).sum(0) / values / d_out
        floor = self.start - shares.sum()
        h2 = np.square(1 - 2 / d_out * lr * SCALING**2 * values)
        powers = h2 ** np.arange(steps + 1)[:, None]
        noise = (SCALING * std) ** 2 * (1 - powers) / (1 - h2) @ values
        return floor + powers @ shares + noise


def engine_losses(task, A, rounds, lr, std, seed):
    """Losses over the clients' examples of a run in which B alone moves, from this A."""

    def given(weight: torch.Tensor, rank: int) -> dict[str, torch.Tensor]:
        return {"A": torch.from_numpy(A).to(weight), "B": weight.new_zeros(len(weight), rank)}

    row = fl.methods.FedLoRA.replace(name="given start", train=Cycle(("B",)), start=given)
    # Noise on the sum of a client's examples; the mean over clients has `std` after the step.
    sigma = std * task.sizes[0] * len(task.sizes) ** 0.5 / (lr * FAR)
    privacy = fl.Privacy(clip_norm=FAR, noise_multiplier=sigma) if std else None
    plan = fl.Plan(rounds=rounds, local_steps=1, batch=None, lr=lr)
    lora = fl.Lora(rank=len(A), alpha=SCALING * len(A))
    problem = LeastSquares.of_clients(task)
    losses = []
    for record in fl.run(task, row, privacy, plan, lora=lora, seed=seed, evaluate_every=rounds):
        ((a, b),) = record.adapter.values()
        losses.append(problem.loss(SCALING * (b @ a).double().numpy()))
    return np.array(losses)


def test_one_factor_learns_along_the_closed_form():
    """Steps 1 to 4 at inputs that are not white: exact without noise, else in the mean."""
    sizes: dict[str, Any] = {"clients": 3, "examples": 40, "d_in": 10, "d_out": 6, "rank": 3}
    task = fl.tasks.regression(**sizes, heterogeneity=0.2, noise=0.1, dtype="float64")
    A = np.random.default_rng(4).uniform(-1, 1, (2, 10)) / 10**0.5
    problem = LeastSquares.of_clients(task)
    still = engine_losses(task, A, 8, 0.5, 0.0, 0)
    assert still == pytest.approx(problem.one_factor(A, 8, 0.5, 0.0))
    noised = np.array([engine_losses(task, A, 8, 0.5, 0.3, seed) for seed in range(8)])
    expected = problem.one_factor(A, 8, 0.5, 0.3)
    for t in (2, 5, 8):
        _, low, high = theory.mean_band(noised[:, t])
        assert low <= expected[t] <= high
