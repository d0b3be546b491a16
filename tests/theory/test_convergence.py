"""The closed forms of docs/convergence.md against runs of the engine."""

from dataclasses import replace

import numpy as np
import pytest

import fedlora_lab as fl
from fedlora_lab import theory
from fedlora_lab.tasks.task import concatenate

FAR = 1e6  # a clip norm that no gradient reaches
SCALING = 2.0
STEPS = 8
LR = 0.5
EXAMPLES = 40


def test_one_factor_learns_along_the_closed_form():
    """Steps 1 to 4 at inputs that are not white: exact without noise, else in the mean."""
    task = fl.tasks.regression(
        clients=3, examples=EXAMPLES, d_in=10, d_out=6, rank=3, noise=0.1, dtype="float64"
    )
    task = replace(task, test=concatenate(task.clients))
    plan = fl.Plan(rounds=STEPS, local_steps=1, batch=None, lr=LR)
    # Step 1: the loss of the weight's change D is start + (tr D S D^T - 2 tr D M^T) / d_out.
    x, y = (part.numpy() for part in task.test)
    gap = y - task.model(task.test[0]).detach().numpy()
    S = x.T @ x / len(x)
    M = gap.T @ x / len(x)
    start = np.square(gap).mean()

    def closed_form(A, std):
        """Steps 2 to 4: the expected loss after 0 ... steps rounds in which B alone moves."""
        values, vectors = np.linalg.eigh(A @ S @ A.T)
        shares = np.square(M @ A.T @ vectors).sum(0) / values / 6
        h2 = np.square(1 - 2 / 6 * LR * SCALING**2 * values)
        powers = h2 ** np.arange(STEPS + 1)[:, None]
        noise = (SCALING * std) ** 2 * (1 - powers) / (1 - h2) @ values
        return start - shares.sum() + powers @ shares + noise

    def excess(std, seed):
        """Losses of a run less those of the closed form from its own A."""
        # Noise on the sum of a client's examples; the mean over clients has `std` after the step.
        sigma = std * EXAMPLES * 3**0.5 / (LR * FAR)
        privacy = fl.Privacy(clip_norm=FAR, noise_multiplier=sigma)
        lora = fl.Lora(2, SCALING * 2)
        records = list(fl.run(task, "ffa-lora", privacy, plan, seed=seed, lora=lora))
        losses = np.array([record.metrics["loss"] for record in records])
        return losses - closed_form(records[0].adapter["map"][0].numpy(), std)

    assert excess(0.0, 0) == pytest.approx(0, abs=1e-9)
    noised = np.array([excess(0.3, seed) for seed in range(8)])
    for t in (2, 5, 8):
        assert 0 in theory.mean_band(noised[:, t])
