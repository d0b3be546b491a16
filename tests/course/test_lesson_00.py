"""Lesson 00: what a client reaches alone, and what noise costs and couples."""

import dataclasses

import numpy as np
import pytest

import fedlora_course as course
import fedlora_lab as fl


@pytest.mark.parametrize("answer", [-4, -1, 4])
def test_a_wrong_number_does_not_give_the_answer_away(answer):
    """Fault: −4 was told to be twice what is right, and −1 half of it."""
    told = course.exercises.check("00.1", answer).message
    assert "mean" in told and "what is right" not in told


@pytest.fixture(scope="module")
def task():
    return fl.tasks.digits(clients=10, dirichlet=0.5, seed=0)


@pytest.fixture(scope="module")
def train(task):
    """Three seeds of the lesson's plan at a rate: "free", clipped but "quiet", or "private"."""
    plan = fl.Plan(rounds=8, local_steps=3, batch=8)
    private = fl.Privacy(delta=1e-4).calibrate(epsilon=8, task=task, plan=plan)
    kinds = {"free": None, "quiet": private.replace(noise_multiplier=0.0), "private": private}

    def train(kind, lr):
        rated = plan.replace(lr=lr)
        runs = (
            fl.run(task, "fedlora", kinds[kind], rated, seed=s, evaluate_every=8) for s in range(3)
        )
        return [list(run) for run in runs]

    return train


def ends(runs):
    return 100 * np.array([run[-1].metrics["accuracy"] for run in runs])


@pytest.mark.further
@pytest.mark.slow
def test_without_clip_and_noise_the_cost_of_privacy_is_not_told_from_none(train):
    """And there D is small and fades as the product grows."""
    free = train("free", 0.05)
    cost = fl.theory.mean_band(ends(free) - ends(train("private", 0.4)), 4.303)
    assert 10.5 < ends(free).mean() - 100 * free[0][0].metrics["accuracy"] < 14.5
    assert 1.5 < cost.mean < 7.5 and cost.low < 0 < cost.high
    early, late = ([run[t].deviation for run in free] for t in (1, -1))
    assert all(0.02 < x < 0.12 for x in early) and np.mean(early) > 2 * np.mean(late)


@pytest.mark.slow
def test_alone_one_client_gains_a_few_points_and_another_loses_more(task):
    plan = fl.Plan(rounds=8, local_steps=3, batch=8, lr=0.03)
    gains = []
    for k in (4, 5):
        alone = dataclasses.replace(task, clients=(task.clients[k],))
        start, *_, end = fl.run(alone, "fedlora", None, plan, seed=0, evaluate_every=8)
        gains.append(end.metrics["accuracy"] - start.metrics["accuracy"])
    assert gains[0] > 0.03 and gains[1] < -0.05
