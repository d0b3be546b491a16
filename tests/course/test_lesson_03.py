"""Notebook 03: single gradients, before any clip."""

from typing import Any

import numpy as np
import pytest

import fedlora_course as course
import fedlora_lab as fl
from fedlora_lab.tasks.task import concatenate


@pytest.mark.further
@pytest.mark.slow
def test_single_gradients_average_to_that_of_the_mean_loss():
    """By autograd, for one layer."""
    task = fl.tasks.digits(clients=3, seed=5)
    plan = fl.Plan(rounds=2, local_steps=2, batch=8)
    last: Any = [*fl.run(task, "fedlora", None, plan, seed=0)][-1]
    tensors = last.source[2].tensors
    ends = np.cumsum([x.numel() for x in tensors.values()])
    mean = course.lesson(3).example_gradients(last).mean(0)
    expected = fl.measures.gradients(task, last, "blocks.0.query", concatenate(task.clients))
    for key, part in zip(tensors, np.split(mean, ends[:-1]), strict=True):
        if key.layer == "blocks.0.query":
            np.testing.assert_allclose(part, getattr(expected, key.name).flatten(), atol=1e-6)
