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


@pytest.mark.further
def test_in_a_long_run_turns_save_no_noise():
    """At the minimum of least squares: half of the energy of both moving at first, then all."""
    rng = np.random.default_rng(0)
    best_B, best_A = (np.linalg.qr(rng.standard_normal((n, 3)))[0] for n in (20, 30))
    goal = best_B @ best_A.T

    def energy(words):
        """The squared error of the product after every round, the mean of 24 runs."""
        factors = {"B": np.tile(best_B, (24, 1, 1)), "A": np.tile(best_A.T, (24, 1, 1))}
        errors = []
        for word in words:
            B, A = factors["B"], factors["A"]
            error = B @ A - goal
            slopes = {"B": error @ A.mT, "A": B.mT @ error}
            for side in word:
                noise = rng.standard_normal(slopes[side].shape)
                factors[side] = factors[side] - 0.05 * slopes[side] + 0.01 * noise
            errors.append(np.square(factors["B"] @ factors["A"] - goal).sum((1, 2)).mean())
        return np.array(errors)

    saving = energy(["B", "A"] * 200) / energy(["BA"] * 400)
    assert saving[1] == pytest.approx(0.5, abs=0.06) and saving[19] == pytest.approx(0.75, abs=0.12)
    assert 0.75 < saving[49] < 1.15 and 0.8 < saving[99] < 1.2
    assert saving[200:].mean() == pytest.approx(1, abs=0.06)
