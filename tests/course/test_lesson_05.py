"""Notebook 05: what freezing A does, and the figures that show it."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from frames import marked, scores_frame, words

import fedlora_lab as fl
from fedlora_lab import plots
from fedlora_lab.course.lesson_05 import figures
from fedlora_lab.plots import style, tidy
from fedlora_lab.theory.products import Band


def test_a_silent_task_moves_only_by_noise():
    task = fl.tasks.zero_signal(fl.tasks.regression(clients=2, examples=8))
    plan = fl.Plan(rounds=2, local_steps=2, batch=4)
    *_, still = fl.run(task, "fedlora", None, plan)
    assert all(float(b.norm()) == 0 for _, b in still.adapter.values())
    *_, moved = fl.run(task, "fedlora", fl.Privacy(noise_multiplier=1.0, delta=1e-3), plan)
    assert all(float(b.norm()) > 0 for _, b in moved.adapter.values())
    assert still.metrics["loss"] > 0  # the metrics are those of the task itself


def _trials() -> pd.DataFrame:
    """Two knobs with a common centre: FedLoRA best at 0.2, FFA-LoRA at 0.4."""
    rows = [
        (method, knob, value, lr, accuracy - 0.1 * abs(place - best) + 0.01 * value)
        for knob, values in (("α / r", (1, 2)), ("rank r", (2, 4)))
        for value in values
        for method, best in (("fedlora", 1), ("ffa-lora", 2))
        for place, (lr, accuracy) in enumerate([(0.1, 0.6), (0.2, 0.7), (0.4, 0.7)])
    ]
    return pd.DataFrame(rows, columns=["method", "knob", "value", "lr", "accuracy"])


def test_settings_are_lined_up_at_their_best_rate():
    table = figures.from_best_rate(_trials())
    at = table.groupby(["method", "step"])["loss"].agg(["mean", "size"])
    assert at.loc[("fedlora", 1), "mean"] == pytest.approx(-0.1)
    assert at.loc[("ffa-lora", -1), "mean"] == pytest.approx(-0.1)
    assert (at.xs(0, level="step")["mean"] == 0).all()
    assert len(figures.cliff(table).axes) == 1


def test_the_centre_is_counted_once():
    trials = _trials().query("value == 2")
    assert figures.from_best_rate(trials).groupby(["method", "step"]).size().max() == 1


def test_the_maps_mark_the_best_rate():
    figure: Any = figures.rate_maps(_trials())
    dots = [list(line.get_ydata()) for ax in figure.axes[:4] for line in ax.lines]
    assert dots == [[1, 1], [1, 1], [2, 2], [2, 2]]


def test_a_spread_has_its_interval():
    """The interval of a normal sample holds the true spread in 95 % of all samples."""
    rng, hits = np.random.default_rng(0), []
    for i in range(400):
        runs = pd.DataFrame({"accuracy": rng.normal(0.8, 0.02, 20)}).assign(setting="s", method="m")
        row = figures.spreads(runs, ("m",)).iloc[0]
        assert i or row["std"] == pytest.approx(runs["accuracy"].std())
        hits.append(row["low"] <= 0.02 <= row["high"])
    assert 0.92 <= np.mean(hits) <= 0.98
    table = pd.DataFrame(
        [("s", m, 0.02, 0.01, 0.03, 20) for m in figures.PAIR],
        columns=["setting", "method", "std", "low", "high", "seeds"],
    )
    assert "20 seeds each" in words(figures.spread(table, "title"))


def test_the_budgets_are_means_with_intervals():
    rows = [("ffa-lora", e, 0.8 + e / 100 + x) for e in (1, 8) for x in (-0.01, 0.0, 0.01)]
    runs = pd.DataFrame(rows, columns=["method", "epsilon", "accuracy"])
    figure: Any = figures.by_budget({"a": runs, "b": runs}, {"a": "left", "b": "right"})
    ax = figure.axes[0]
    assert ax.lines[0].get_ydata() == pytest.approx([0.81, 0.88])
    segment = ax.collections[0].get_segments()[0]
    assert segment[:, 1] == pytest.approx(tidy.confidence_interval([0.8, 0.81, 0.82]))


def test_the_limit_is_drawn_as_measured():
    rows = [("noise", -1, c, 0.3 / c) for c in (1, 2, 4)]
    figure: Any = figures.limit(pd.DataFrame(rows, columns=["kind", "power", "c", "distance"]))
    slope, line = figure.axes[0].lines
    assert line.get_ydata() == pytest.approx([0.3, 0.15, 0.075])
    assert slope.get_ydata() == pytest.approx(line.get_ydata())  # the slope that it has


def test_clip_trials_have_a_panel_for_each_budget():
    rows = [(e, c, 0.5, 0.6, 0.7) for e in (3, 8, 20) for c in (0.5, 1)]
    names = ["epsilon", "clip_norm", "fedlora", "ffa-lora", "balanced-lora"]
    figure: Any = figures.clip_trials(pd.DataFrame(rows, columns=names))
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["ε = 3", "ε = 8", "ε = 20"]
    colours = [style.look(slug).colour for slug in names[2:]]
    assert [line.get_color() for line in figure.axes[0].lines] == colours


@pytest.mark.parametrize("log", ["", "x", "y", "xy"])
def test_band_check_draws_every_dot(log):
    bands = [Band(1.0, 0.5, 2.0), Band(2.0, 1.5, 3.0)]
    one = plots.Measurements([1, 2], [[0.4, 1.0], [1.6, 2.0, 9.0]], bands)
    assert plots.share_inside({"ffa-lora": one}) == pytest.approx(3 / 5)
    given: Any = {"title": "t", "x": "x", "y": "y", "ghost": ("hope", [1, 2], [3, 3])}
    figure = plots.band_check({"ffa-lora": one}, log=log, **given)
    dots = [value for line in marked(figure.axes[0], "o") for value in line.get_ydata()]
    assert sorted(dots) == [0.4, 1.0, 1.6, 2.0, 9.0]
    for text in ("5 measurements, 60.0% of them inside", "FFA-LoRA", "hope"):
        assert text in words(figure)
    with pytest.raises(ValueError, match=r"^checks=\{\}: expected at least one"):
        plots.share_inside({})


def test_gap_is_the_paired_interval():
    difference = fl.report.final_difference
    frame = scores_frame({"fedlora": [0.60, 0.70, 0.80], "ffa-lora": [0.65, 0.76, 0.84]})
    gap = difference(frame, "ffa-lora", "fedlora")
    half = 4.302652729911275 * np.std([0.05, 0.06, 0.04], ddof=1) / np.sqrt(3)
    assert gap[:3] == pytest.approx((0.05, 0.05 - half, 0.05 + half))
    assert -gap == pytest.approx(difference(frame, "fedlora", "ffa-lora"))
    assert (gap.seeds, gap.holds, (-gap).holds) == (3, "yes", "no")
    equal = scores_frame({"fedlora": [0.5, 0.7], "ffa-lora": [0.6, 0.6]})
    assert difference(equal, "fedlora", "ffa-lora").holds == "cannot tell"
    assert str(gap) == "+0.050 [+0.025, +0.075]"
    with pytest.raises(ValueError, match=r"^seeds=1: expected at least two"):
        difference(frame[frame["seed"] == 0], "fedlora", "ffa-lora")


def test_the_table_shows_every_row():
    table = fl.report.claims_table(("A < B (paper)", "here", "yes"), ("second", "there", "no"))
    for text in (repr(table), table._repr_html_()):
        assert all(word in text for word in ("here", "second", "there", "holds?"))
    assert "A &lt; B (paper)" in table._repr_html_()
