"""Notebook 08: what the quantiser costs, what it hides, and from whom."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import fedlora_lab as fl
from fedlora_lab import theory, wire
from fedlora_lab.plots.quantising import INKS, VIEWS, numbers


@pytest.mark.parametrize("width", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("block", [2, 16, 64])
def test_quantiser_error(width, block):
    draws = np.random.default_rng(width).standard_normal((400, 64))
    off = (wire.normal_float(width, block)(torch.from_numpy(draws)).numpy() - draws) ** 2
    closed = theory.quantiser_error(wire.normal_levels(width), block)
    assert closed in theory.mean_band(off.reshape(400, -1).mean(1))
    assert theory.quantiser_error(wire.normal_levels(width), 1) == 0


def test_quantiser_error_is_the_published_one():
    for width, error in ((2, 0.57), (3, 0.20), (4, 0.092)):
        assert theory.quantiser_error(wire.normal_levels(width), 64) ** 0.5 == pytest.approx(error, rel=0.02)
    for bad in ((0.0, 1.0), (-1.0, 0.5, 0.2, 1.0), (-1.0,)):
        with pytest.raises(ValueError, match=r"^levels="):
            theory.quantiser_error(bad, 4)


def test_normal_levels():
    """Derived here from quantiles, equal to what is sent."""
    for width in range(2, 9):
        np.testing.assert_allclose(theory.normal_levels(width), wire.normal_levels(width), atol=1e-12)
    with pytest.raises(ValueError, match=r"^reach=1"):
        theory.normal_levels(4, 1)


def test_quantised_runs():
    task = fl.tasks.digits(clients=3, seed=5)
    plan = fl.Plan(rounds=1, local_steps=1, batch=8)
    rows = [fl.experiments.fedlpp(2), fl.experiments.fedlpp(8), "ffa-lora"]
    plans = {"fedlpp-2-bits": plan, "fedlpp-8-bits": plan, "ffa-lora": plan.replace(rounds=2)}
    frame: Any
    frame, held = fl.experiments.quantised_runs(task, rows, None, plans, seeds=(4,))
    assert set(frame["method"]) == set(plans)
    assert frame[frame["method"] == "ffa-lora"]["round"].max() == 2
    assert set(held["row"]) == {"fedlpp-2-bits", "fedlpp-8-bits"}
    far: Any = held[(held["method"] == "received") & (held["measure"] == "distance")].set_index("width")["value"]
    assert float(far[2]) > 10 * float(far[8]) > 0


def test_bits_per_number():
    for width in (2, 4, 8):
        for block in (16, 64):
            assert theory.bits_per_number(width, block) == wire.normal_float(width, block).bits(1024) / 1024


def test_the_closed_form_holds_the_measurements():
    table: Any
    picture, table = fl.plots.quantiser_check((2, 4), (16, 64), seeds=100, size=256)
    assert len(table) == 4
    assert table["inside"].mean() >= 0.9
    assert ((table["measured"] - 1.2 * table["expected"]).abs() > table["half"]).all()
    assert "of 4 dots" in picture.axes[1].get_title(loc="left")
    with pytest.raises(ValueError, match=r"^size=100"):
        fl.plots.quantiser_check((2,), (64,), size=100)


def test_the_levels_figure():
    marks: Any = fl.plots.levels(3).axes[0].lines[0].get_xdata()
    code = np.array(wire.normal_levels(3))
    np.testing.assert_allclose(np.asarray(marks) / np.asarray(marks).max(), code)


def test_the_explorer():
    choices: Any = ((2, 8), (8, 256, "outliers"))
    shown = [fl.plots.quantiser_explorer(*values) for values in choices]
    limits = [[(ax.get_xlim(), ax.get_ylim()) for ax in picture.axes] for picture, _ in shown]
    assert limits[0] == limits[1]
    row = numbers("outliers")
    off = wire.normal_float(8, 256)(torch.from_numpy(row)).numpy() - row
    error = math.sqrt((off**2).sum() / (row**2).sum())
    assert shown[1][0].axes[2].lines[1].get_ydata() == pytest.approx([error])
    assert f"{error:.1%} off" in shown[1][1]
    with pytest.raises(ValueError, match=r"^trained="):
        numbers("a trained factor")


def test_the_widget_says_what_it_shows():
    widget = fl.widgets.quantiser_explorer(np.linspace(-1, 1, 300))
    before, words = widget.picture.value, widget.sentence.value
    assert "3 bits, 8 levels" in words
    widget.knobs["width"].value = 5
    widget.knobs["kind"].value = "a trained factor"
    assert widget.settle()
    assert widget.picture.value != before
    assert "5 bits, 32 levels" in widget.sentence.value
    widget.reset()
    assert widget.settle()
    assert widget.picture.value == before
    assert len(fl.widgets.quantiser_explorer().knobs["kind"].options) == 2
    widget.close()


def test_protection():
    """What each party holds after two rounds, against the run's own metrics and direct sums."""
    task = fl.tasks.digits(clients=3, seed=5)
    method, seen = fl.measures.watch(fl.methods.FedLPP.replace(broadcast=wire.normal_float(2, 64)))
    last: Any
    *_, last = fl.run(task, method, None, fl.Plan(rounds=2, local_steps=2, batch=8, lr=0.1))
    table: Any = fl.measures.protection(last, method, seen, last=2)
    assert len(table) == 8
    table = table.pivot_table("value", "method", "measure")
    assert table.loc["server", "accuracy"] == pytest.approx(last.metrics["accuracy"])
    assert table.loc["received", "accuracy"] == pytest.approx(last.metrics["accuracy_received"])
    assert table.loc["server", "distance"] == 0
    server = last.source[2].tensors
    final = {slot: method.broadcast(x) for slot, x in server.items()}
    off = [((final[slot] + seen[-1].sent.tensors[slot]) / 2 - x).square().sum() for slot, x in server.items()]
    size = sum(float(x.square().sum()) for x in server.values())
    assert table.loc["averaged", "distance"] == pytest.approx((float(sum(off)) / size) ** 0.5, rel=1e-4)
    assert table.loc["trained", "distance"] > 0
    with pytest.raises(ValueError, match=r"^last=9"):
        fl.measures.protection(last, method, seen, last=9)


def test_the_protection_figure():
    rows = [(w, s, who, 0.5 + 0.01 * s + 0.1 / w) for w in (2, 4) for s in (0, 1) for who in VIEWS]
    table = pd.DataFrame(rows, columns=["width", "seed", "method", "value"]).assign(measure="accuracy")
    picture = fl.plots.protection(table, 0.4)
    lines: Any = [line for line in picture.axes[0].lines if line.get_marker() == "o"]
    assert len(lines) == len(INKS)
    for line in lines:
        np.testing.assert_allclose(line.get_ydata(), [0.555, 0.53])
