"""Notebook 14: what the quantiser costs, what it hides, and from whom."""

import numpy as np
import pytest
import torch

from fedlora_course.lesson_11 import figures as lesson_11
from fedlora_course.lesson_14 import figures
from fedlora_course.lesson_14.theory import quantiser_error
from fedlora_lab import theory
from fedlora_lab.methods.quantization import normal_float, normal_levels


@pytest.mark.parametrize(("width", "block"), [(1, 64), (2, 2), (4, 64), (8, 2)])
def test_the_quantiser_error_is_the_mean_over_draws(width, block):
    draws = np.random.default_rng(width).standard_normal((400, 64))
    off = (normal_float(width, block)(torch.from_numpy(draws)).numpy() - draws) ** 2
    closed = quantiser_error(normal_levels(width), block)
    assert closed in theory.mean_band(off.reshape(400, -1).mean(1))


@pytest.mark.parametrize("width", [2, 4])
def test_a_number_settles_at_an_edge_and_its_copies_at_the_goal(width):
    """Wherever the best value is: held is the middle of the two levels around it."""
    levels = np.array(normal_levels(width))
    above = np.searchsorted(levels, figures.GOALS)
    held, sent = (x[figures.LATE :].mean(0) for x in figures.held_and_sent(width))
    np.testing.assert_allclose(held, (levels[above] + levels[above - 1]) / 2, atol=0.06)
    np.testing.assert_allclose(sent, figures.GOALS, atol=0.01)


def test_an_answer_is_right_word_for_word():
    """Not one that misses its last token, nor one that is right a token too late."""
    y = torch.tensor([[7, -100, 1, 2], [7, -100, 1, 2], [7, -100, 1, 2], [7, -100, 1, -100]])
    written = torch.tensor([[0, 1, 2, 0], [0, 1, 3, 0], [0, 0, 1, 2], [3, 1, 0, 0]])
    outputs = torch.nn.functional.one_hot(written, 8).float()
    assert lesson_11.word_for_word(outputs, y).tolist() == [1, 0, 0, 1]
