"""Notebook 10: the server that a reader builds."""

import pytest
import torch

import fedlora_lab as fl
from fedlora_lab.course.lesson_10 import exercises, figures


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
