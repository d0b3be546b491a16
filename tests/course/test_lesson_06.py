"""Lesson 06: a reader's turns beside the library's, and the noise that turns save."""

import numpy as np
import pytest

import fedlora_course as course
import fedlora_lab as fl
from fedlora_course.lesson_06.exercises import take_turns

LAYER = "blocks.1.value"


@pytest.mark.further
@pytest.mark.trains
def test_two_rounds_of_the_readers_turns_are_the_librarys():
    """Without noise, with the tools of the lesson, up to the clip in single precision."""
    task = fl.tasks.digits(clients=60, targets=(LAYER,))
    plan = fl.Plan(rounds=2, local_steps=1, batch=None, lr=1.2)
    exact = fl.Privacy(unit="client", clip_norm=0.3, noise_multiplier=0.0, delta=1e-3)
    gradient, _ = course.lesson(6).real_network(task)

    def plain_release(changes, frozen):
        lengths = np.linalg.norm(changes, axis=(1, 2), keepdims=True)
        return (changes * np.minimum(1, 0.3 / lengths)).mean(0)

    first, *_, last = fl.run(task, "rolora", exact, plan, seed=0)
    (A, B), (end_A, end_B) = (
        [factor.double().numpy() for factor in record.adapter[LAYER]] for record in (first, last)
    )
    own_B, own_A = take_turns(B, A, gradient, plain_release, 1.2, 2.0, 1, 2)
    missed = np.linalg.norm(own_B @ own_A - end_B @ end_A)
    assert missed < 1e-3 * np.linalg.norm(end_B @ end_A)
