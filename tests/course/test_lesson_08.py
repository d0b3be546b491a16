"""Notebook 08: what the quantiser costs, what it hides, and from whom."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import fedlora_lab as fl
from fedlora_lab import theory
from fedlora_lab.course.lesson_08 import figures
from fedlora_lab.methods.quantization import normal_float, normal_levels


@pytest.mark.parametrize("width", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("block", [2, 16, 64])
def test_quantiser_error(width, block):
    draws = np.random.default_rng(width).standard_normal((400, 64))
    rule = normal_float(width, block)
    off = (rule(torch.from_numpy(draws)).numpy() - draws) ** 2
    closed = theory.quantiser_error(normal_levels(width), block)
    assert closed in theory.mean_band(off.reshape(400, -1).mean(1))
    assert theory.quantiser_error(normal_levels(width), 1) == 0
    if width > 1:
        assert theory.bits_per_number(width, block) == rule.bits(1024) / 1024


def test_quantiser_error_is_the_published_one():
    for width, error in ((2, 0.57), (3, 0.20), (4, 0.092)):
        found = theory.quantiser_error(normal_levels(width), 64) ** 0.5
        assert found == pytest.approx(error, rel=0.02)
    for bad in ((0.0, 1.0), (-1.0, 0.5, 0.2, 1.0), (-1.0,)):
        with pytest.raises(ValueError, match=r"^levels="):
            theory.quantiser_error(bad, 4)


def test_normal_levels():
    """Derived from quantiles, equal to what is sent; and drawn."""
    for width in range(2, 9):
        np.testing.assert_allclose(theory.normal_levels(width), normal_levels(width), atol=1e-12)
    with pytest.raises(ValueError, match=r"^reach=1"):
        theory.normal_levels(4, 1)


def test_the_levels_figure():
    marks: Any = figures.levels(3).axes[0].lines[0].get_xdata()
    np.testing.assert_allclose(np.asarray(marks) / np.asarray(marks).max(), normal_levels(3))


def test_the_closed_form_holds_the_measurements():
    table: Any
    picture, table = figures.quantiser_check((2, 4), (16, 64), seeds=100, size=256)
    assert len(table) == 4
    assert table["inside"].mean() >= 0.9
    assert ((table["measured"] - 1.2 * table["expected"]).abs() > table["half"]).all()
    assert "of 4 dots" in picture.axes[1].get_title(loc="left")
    with pytest.raises(ValueError, match=r"^size=100: expected a multiple of every block"):
        figures.quantiser_check((2,), (64,), size=100)


def test_the_quantiser():
    choices: Any = ((2, 8), (8, 256, "outliers"))
    shown = [figures.quantiser(*values) for values in choices]
    limits = [[(ax.get_xlim(), ax.get_ylim()) for ax in picture.axes] for picture, _ in shown]
    assert limits[0] == limits[1]
    row = figures.numbers("outliers")
    off = normal_float(8, 256)(torch.from_numpy(row)).numpy() - row
    error = math.sqrt((off**2).sum() / (row**2).sum())
    assert shown[1][0].axes[2].lines[1].get_ydata() == pytest.approx([error])
    assert f"{error:.1%} off" in shown[1][1]
    with pytest.raises(ValueError, match=r"^trained=None: expected the numbers of a factor"):
        figures.numbers("a trained factor")


@pytest.mark.slow
def test_quantised_runs():
    task = fl.tasks.digits(clients=3, seed=5)
    plan = fl.Plan(rounds=1, local_steps=1, batch=8)
    rows = [figures.fedlpp(2), figures.fedlpp(8), "ffa-lora"]
    plans = {"fedlpp-2-bits": plan, "fedlpp-8-bits": plan, "ffa-lora": plan.replace(rounds=2)}
    frame: Any
    frame, held = figures.quantised_runs(task, rows, None, plans, seeds=(4,))
    assert frame.groupby("method")["round"].max().to_dict() == {
        "fedlpp-2-bits": 1,
        "fedlpp-8-bits": 1,
        "ffa-lora": 2,
    }
    assert set(held["row"]) == {"fedlpp-2-bits", "fedlpp-8-bits"}
    far: Any = held[(held["method"] == "received") & (held["measure"] == "distance")]
    far = far.set_index("width")["value"]
    assert float(far[2]) > 10 * float(far[8]) > 0


@pytest.mark.slow
def test_protection():
    """What each party holds after two rounds, against the run's own metrics and direct sums."""
    task = fl.tasks.digits(clients=3, seed=5)
    rule = fl.methods.FedLPP.replace(broadcast=normal_float(2, 64))
    method, seen = fl.measures.record_aggregation(rule)
    last: Any
    *_, last = fl.run(task, method, None, fl.Plan(rounds=2, local_steps=2, batch=8, lr=0.1))
    frame = figures.model_protection(last, method, seen, last=2)
    table: Any = frame.pivot_table("value", "method", "measure")
    assert len(frame) == 8
    assert table.loc["server", "accuracy"] == pytest.approx(last.metrics["accuracy"])
    assert table.loc["received", "accuracy"] == pytest.approx(last.metrics["accuracy_received"])
    assert table.loc["server", "distance"] == 0
    server = last.source[2].tensors
    off = [
        ((method.broadcast(x) + seen[-1].sent.tensors[key]) / 2 - x).square().sum()
        for key, x in server.items()
    ]
    relative = (float(sum(off)) / sum(float(x.square().sum()) for x in server.values())) ** 0.5
    assert table.loc["averaged", "distance"] == pytest.approx(relative, rel=1e-4)
    assert table.loc["trained", "distance"] > 0
    with pytest.raises(ValueError, match=r"^last=9"):
        figures.model_protection(last, method, seen, last=9)


def test_the_protection_figure():
    rows = [
        (w, s, who, "accuracy", 0.5 + 0.01 * s + 0.1 / w)
        for w in (2, 4)
        for s in (0, 1)
        for who in figures.HOLDERS
    ]
    table = pd.DataFrame(rows, columns=["width", "seed", "method", "measure", "value"])
    drawn: Any = figures.protection(table, 0.4).axes[0].lines
    lines = [line.get_ydata() for line in drawn if line.get_marker() == "o"]
    assert len(lines) == len(figures.HOLDERS)
    np.testing.assert_allclose(lines, [[0.555, 0.53]] * len(lines))
