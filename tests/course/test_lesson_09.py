"""Notebook 09: the server that a reader builds and FedSVD's rows."""

import numpy as np
import pytest
import torch

import fedlora_lab as fl
from fedlora_course.lesson_09 import exercises, figures
from fedlora_course.lesson_09.theory import factor_average_terms, product_average_terms
from fedlora_lab.theory import mean_band


@pytest.mark.slow
def test_the_readers_server_trains_as_the_library_s():
    """Fault: a residual that is not kept from round to round, or goes to another layer."""
    task = fl.tasks.digits(clients=4, seed=3)
    plan = fl.Plan(rounds=2, local_steps=2, batch=8, lr=0.1)
    mine = figures.served_by(exercises.serve)
    ended = [[*fl.run(task, row, None, plan, seed=0)][-1] for row in (mine, fl.methods.FedExLoRA)]
    left, right = (record.adapter for record in ended)
    torch.testing.assert_close(left, right, rtol=1e-7, atol=1e-6)
    assert ended[0].traffic == ended[1].traffic, "the residual goes down as well"


def test_product_average_terms():
    """Six noised copies of an adapter: means of factors, and means of products."""
    rng = np.random.default_rng(7)
    B = 0.3 * rng.normal(size=(5, 4))
    A = rng.uniform(-1, 1, size=(4, 6)) / 6**0.5
    noised_B = B + rng.normal(0, 0.5, (3000, 6, *B.shape))
    noised_A = A + rng.normal(0, 0.4, (3000, 6, *A.shape))
    factors = factor_average_terms(B, A, 0.5, 0.4, 6)
    products = product_average_terms(B, A, 0.5, 0.4, 6)
    for terms, made in (
        (factors, noised_B.mean(1) @ noised_A.mean(1)),
        (products, (noised_B @ noised_A).mean(1)),
    ):
        assert terms.total in mean_band(np.square(made - B @ A).sum((1, 2)))
