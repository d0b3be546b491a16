"""The closed forms of studies/logbook.md against runs of the engine."""

from dataclasses import replace

import numpy as np
import pytest

import fedlora_lab as fl
from fedlora_lab import theory
from fedlora_lab.tasks.task import HeldOut, concatenate

FAR = 1e6  # a clip norm that no gradient reaches
SCALING = 2.0
STEPS = 8
LR = 0.5
EXAMPLES = 40


def least_squares(d_in, d_out, rank):
    """A task tested on all clients' examples, and L_0, S and M of step 1."""
    task = fl.tasks.regression(
        clients=3, examples=EXAMPLES, d_in=d_in, d_out=d_out, rank=rank, dtype="float64"
    )
    x, y = concatenate(task.clients)
    # Not to the last bit: as public rows the clients' own are refused under privacy.
    task = replace(task, held_out=HeldOut((x + 1e-14, y)))
    x, y = (part.numpy() for part in task.test)
    gap = y - task.model(task.test[0]).detach().numpy()
    return task, np.square(gap).mean(), x.T @ x / len(x), gap.T @ x / len(x)


def run(task, method, std, plan, seed):
    """The records of a rank of 2 where a release puts noise of `std` on the mean of a factor."""
    sigma = std * EXAMPLES * 3**0.5 / (plan.lr * FAR)
    privacy = fl.Privacy(clip_norm=FAR, noise_multiplier=sigma)
    return list(fl.run(task, method, privacy, plan, seed=seed, lora=fl.Lora(2, SCALING * 2)))


def test_one_factor_learns_along_the_closed_form():
    """Steps 1 to 4 at inputs that are not white: exact without noise, else in the mean."""
    task, start, S, M = least_squares(10, 6, 3)
    plan = fl.Plan(rounds=STEPS, local_steps=1, batch=None, lr=LR)

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
        records = run(task, "ffa-lora", std, plan, seed)
        losses = np.array([record.metrics["loss"] for record in records])
        return losses - closed_form(records[0].adapter["map"][0].numpy(), std)

    assert excess(0.0, 0) == pytest.approx(0, abs=1e-9)
    noised = np.array([excess(0.3, seed) for seed in range(8)])
    for t in (2, 5, 8):
        assert 0 in theory.mean_band(noised[:, t])
