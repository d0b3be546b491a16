"""Notebook 14: what the quantiser costs, what it hides, and from whom."""

from typing import Any

import numpy as np
import pytest
import torch

import fedlora_course as course
import fedlora_lab as fl
from fedlora_course.lesson_11 import figures as lesson_11
from fedlora_course.lesson_14 import dials, figures
from fedlora_lab import theory
from fedlora_lab.methods.quantization import normal_float, normal_levels
from fedlora_lab.tasks.task import concatenate


@pytest.mark.parametrize(("width", "block"), [(1, 64), (2, 2), (4, 64), (8, 2)])
def test_the_quantiser_error_is_the_mean_over_draws(width, block):
    draws = np.random.default_rng(width).standard_normal((400, 64))
    off = (normal_float(width, block)(torch.from_numpy(draws)).numpy() - draws) ** 2
    closed = theory.quantiser_error(normal_levels(width), block)
    assert closed in theory.mean_band(off.reshape(400, -1).mean(1))


@pytest.mark.further
@pytest.mark.slow
def test_the_gradient_at_rounded_factors():
    """By autograd for one layer, which lesson 3's gradients of single examples average to; a rule
    is applied to every factor before.
    """
    task = fl.tasks.digits(clients=3, seed=5)
    plan = fl.Plan(rounds=2, local_steps=2, batch=8)
    last: Any = [*fl.run(task, "fedlora", None, plan, seed=0)][-1]
    state = last.source[2]
    ends = np.cumsum([x.numel() for x in state.tensors.values()])
    fourth = [(x[::4], y[::4]) for x, y in task.clients]
    single = course.lesson(3).example_gradients(last)
    pairs = (figures.gradient_at(last, lambda x: x), fourth), (single.mean(0), task.clients)
    for gradient, data in pairs:
        expected = fl.measures.gradients(task, last, "blocks.0.query", concatenate(data))
        for key, part in zip(state.tensors, np.split(gradient, ends[:-1]), strict=True):
            if key.layer == "blocks.0.query":
                np.testing.assert_allclose(part, getattr(expected, key.name).flatten(), atol=1e-6)
    assert not figures.gradient_at(last, torch.zeros_like).any(), "none without A and B"


@pytest.mark.slow
def test_the_server_scores_what_its_record_says():
    """And the last copy, by a quantiser of the reader's own."""
    row = figures.rounded_by(course.exercises.show("14.2").answers[0], 2)
    plan = fl.Plan(rounds=2, local_steps=10, batch=30, lr=0.02, optimizer="adamw")
    task = figures.messages()
    *_, last = fl.run(task, row, None, plan, seed=0)
    for rule, metric in ((lambda x: x, ""), (row.broadcast, "_received")):
        (numbers,) = figures.held_after_rounds([last], rule)
        assert figures.score(last, numbers) == last.metrics["exact_match" + metric]


@pytest.mark.parametrize("width", [1, 2, 4])
def test_a_number_settles_at_an_edge_and_its_copies_at_the_goal(width):
    """Wherever the best value is: held is the middle of the two levels around it."""
    levels = np.array(normal_levels(width))
    above = np.searchsorted(levels, dials.GOALS)
    held, sent = (x[dials.LATE :].mean(0) for x in dials.held_and_sent(width))
    np.testing.assert_allclose(held, (levels[above] + levels[above - 1]) / 2, atol=0.06)
    np.testing.assert_allclose(sent, dials.GOALS, atol=0.01)


def test_an_answer_is_right_word_for_word():
    """Not one that misses its last token, nor one that is right a token too late."""
    y = torch.tensor([[7, -100, 1, 2], [7, -100, 1, 2], [7, -100, 1, 2], [7, -100, 1, -100]])
    written = torch.tensor([[0, 1, 2, 0], [0, 1, 3, 0], [0, 0, 1, 2], [3, 1, 0, 0]])
    outputs = torch.nn.functional.one_hot(written, 8).float()
    assert lesson_11.word_for_word(outputs, y).tolist() == [1, 0, 0, 1]
