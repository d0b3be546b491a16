"""What notebook 14 rests on: the picture of growth."""

from typing import Any

import numpy as np
import pytest
from toy_tasks import play, tokens

import fedlora_lab as fl

PLAN = fl.Plan(rounds=3, local_steps=1, batch=2, participation=0.7)


def test_growth_shows_the_frames():
    """Points of the figure against the frame, by hand."""
    runs = {
        len(sizes): fl.to_frame(play(tokens(sizes=sizes), "fedlora", None, PLAN))
        for sizes in ((5, 8, 3), (4,) * 6)
    }
    lines: Any = fl.plots.client_scaling(runs).axes[0].lines
    everyone, part = (line.get_ydata() for line in lines[:2])
    for i, (clients, frame) in enumerate(runs.items()):
        sent = frame[(frame["measure"] == "bytes_up") & (frame["layer"] == "all")]["value"]
        assert np.isclose(part[i] * 2**20, sent.sum() / 3)
        took = frame[frame["measure"] == "participants"]["value"].sum()
        assert np.isclose(everyone[i] * 2**20, sent.sum() / took * clients)
    with pytest.raises(ValueError, match="frames=1: expected runs with at least two"):
        fl.plots.client_scaling({3: runs[3]})
