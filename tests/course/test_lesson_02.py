"""Lesson 02: the deviation as points and over the work, its noise, and figures that count."""

import numpy as np
import pytest

import fedlora_lab as fl
from fedlora_course.lesson_02.theory import deviation_matrix, noisy_deviation
from fedlora_lab import theory


@pytest.mark.slow
@pytest.mark.parametrize("weights", [None, np.array([0.1, 0.2, 0.3, 0.4])])
def test_noisy_deviation_is_the_mean_over_draws(weights):
    """Monte Carlo with a std for every client; the three parts each where it stands alone."""
    rng = np.random.default_rng(0)
    B, A = rng.standard_normal((4, 6, 2)), rng.standard_normal((4, 2, 5))
    u, v = np.array([0.1, 0.5, 0.3, 0.2]), np.array([0.4, 0.1, 0.2, 0.6])

    def squares(b, a):
        found = []
        for _ in range(4000):
            one = b + u[:, None, None] * rng.standard_normal(b.shape)
            other = a + v[:, None, None] * rng.standard_normal(a.shape)
            found.append(np.sum(deviation_matrix(one, other, weights) ** 2))
        return np.array(found)

    form = noisy_deviation(B, A, u, v, weights)
    assert form.total in theory.mean_band(squares(B, A))
    assert form.quadratic in theory.mean_band(squares(0 * B, 0 * A))
    assert form.data == pytest.approx(np.sum(deviation_matrix(B, A, weights) ** 2))


def one_round(task, seed, batch):
    """‖D‖ / ‖P‖ after eight local steps, and the accuracy before and after the round."""
    watched, received = fl.measures.record_aggregation(fl.methods.FedLoRA)
    plan = fl.Plan(rounds=1, local_steps=8, batch=batch, lr=0.05)
    start, *_, end = fl.run(task, watched, None, plan, seed=seed)
    layers = [
        fl.measures.server_deviation(received[0], fl.methods.FedLoRA, name) for name in end.adapter
    ]
    deviation, mean = np.linalg.norm([(one.norm, one.mean) for one in layers], axis=0)
    return deviation / mean, start.metrics["accuracy"], end.metrics["accuracy"]


@pytest.mark.further
def test_small_batches_do_at_least_as_much_as_unlike_data():
    """The evidence of the first figure: 4 % of the mean product with all examples in every batch,
    5 to 6 % with clients that are alike."""
    alike = fl.tasks.digits(dirichlet=None)
    by_data = np.mean([one_round(fl.tasks.digits(), seed, None)[0] for seed in range(2)])
    by_batches = np.mean([one_round(alike, seed, 8)[0] for seed in range(4)])
    assert 0.03 < by_data < 0.055 and 0.045 < by_batches < 0.065
