"""Lesson 00: what noise costs and couples."""

import numpy as np
import pytest

import fedlora_course as course
import fedlora_lab as fl


@pytest.mark.parametrize("answer", [-4, -1, 4])
def test_a_wrong_number_does_not_give_the_answer_away(answer):
    """Fault: −4 was told to be twice what is right, and −1 half of it."""
    told = course.exercises.check("00.1", answer).message
    assert "mean" in told and "what is right" not in told


@pytest.mark.further
def test_without_clip_and_noise_the_cost_of_privacy_is_not_told_from_none():
    """And there D is small and fades as the product grows."""
    task = fl.tasks.digits(clients=10, dirichlet=0.5, seed=0)
    plan = fl.Plan(rounds=8, local_steps=3, batch=8)
    protected = fl.Privacy(delta=1e-4).calibrate(epsilon=8, task=task, plan=plan)

    def train(privacy, lr):
        rated = plan.replace(lr=lr)
        seeds = (
            fl.run(task, "fedlora", privacy, rated, seed=s, evaluate_every=8) for s in range(3)
        )
        return [list(records) for records in seeds]

    free, private = train(None, 0.05), train(protected, 0.4)
    ends, others = (
        100 * np.array([run[-1].metrics["accuracy"] for run in runs]) for runs in (free, private)
    )
    cost = fl.theory.mean_band(ends - others, 4.303)
    assert 10.5 < ends.mean() - 100 * free[0][0].metrics["accuracy"] < 14.5
    assert 1.5 < cost.mean < 7.5 and cost.low < 0 < cost.high
    early, late = ([run[t].deviation for run in free] for t in (1, -1))
    assert all(0.02 < x < 0.12 for x in early) and np.mean(early) > 2 * np.mean(late)
