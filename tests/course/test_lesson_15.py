"""Notebook 15: how far one example reaches, a move measured without a seed, mistakes by check."""

import pytest

from fedlora_lab.course.lesson_15 import figures
from fedlora_lab.review import mistakes
from fedlora_lab.review.mistakes.steps import sums_into_itself

UNIT = mistakes.CLIP / mistakes.BATCH


def test_a_sound_step_reaches_1():
    """Fault: a sensitivity that forgets a tensor, the denominator, or one of the three changes."""
    batch = mistakes.examples(6)
    found = figures.sensitivity_by_change(mistakes.dp_sgd, batch, UNIT)
    assert found == pytest.approx(dict.fromkeys(figures.CHANGES, 1.0))
    twice = figures.sensitivity_by_change(sums_into_itself, batch, UNIT)
    assert twice == pytest.approx(dict.fromkeys(figures.CHANGES, 2.0))


def test_a_direction_learned_elsewhere_flatters_nobody():
    """Fault: the direction measured on the calls that it was learned on, which overstates."""
    for shift in (0.0, 1.0, 3.0):
        found = figures.holdout(shift, sigma=1.1, numbers=36, calls=16, repeats=20_000)
        assert found.mean() < shift + 0.02
        assert found.std() == pytest.approx(1.1 * (2 / 16) ** 0.5, rel=0.35)
    assert figures.holdout(3.0, 1.1, 36, 4096).mean() == pytest.approx(3, abs=0.02)


def test_more_calls_tell_more():
    """Fault: bands that do not shrink, or that swap the two steps."""
    table = figures.shift_without_seeds(calls=(8, 64, 512))
    broken, sound = (part for _, part in table.groupby("step"))
    for part in (broken, sound):
        assert (part["high"] - part["low"]).is_monotonic_decreasing
    assert broken["low"].iloc[-1] > sound["high"].iloc[-1]
