"""What notebook 14 rests on: the picture of growth, and its exercises by other ways."""

from typing import Any

import numpy as np
import pytest
from small import play, tokens

import fedlora_lab as fl
from fedlora_lab.plots.training_curves import client_scaling_table

PLAN = fl.Plan(rounds=3, local_steps=1, batch=2, participation=0.7)


def frames():
    made = {}
    for sizes in ((5, 8, 3), (4,) * 6):
        task = tokens(sizes=sizes)
        made[len(sizes)] = fl.to_frame(play(task, "fedlora", None, PLAN))
    return made


def test_growth_shows_the_frames():
    """Points of the figure against the frame, by hand."""
    runs = frames()
    figure, means = fl.plots.client_scaling(runs), client_scaling_table(runs)
    lines: Any = figure.axes[0].get_lines()
    everyone, part = lines[:2]
    for i, (clients, frame) in enumerate(runs.items()):
        sent = frame[(frame["measure"] == "bytes_up") & (frame["layer"] == "all")]["value"]
        assert np.isclose(part.get_ydata()[i] * 2**20, sent.sum() / 3)
        took = frame[frame["measure"] == "participants"]["value"].sum()
        assert np.isclose(everyone.get_ydata()[i] * 2**20, sent.sum() / took * clients)
        assert means.loc[clients, "part"] == took / 3
    with pytest.raises(ValueError, match="frames=1: expected runs with at least two"):
        fl.plots.client_scaling({3: runs[3]})


def test_solutions_another_way():
    """Bytes by drawing participants; work by counting blocks one by one."""
    every = fl.exercises.all_exercises()
    draw = np.random.default_rng(0)
    sent = [4 * 4096 * (draw.random(10_000) < 0.01).sum() for _ in range(400)]
    assert abs(np.mean(sent) / every["14.1"].answers[0] - 1) < 0.02
    there, back = [1] * 6, [int(i >= 4) for i in range(6)]
    kept = sum(t for i, t in enumerate(there) if i >= 4) + sum(back)
    assert (sum(there) + sum(back)) / kept == every["14.2"].answers[0]
