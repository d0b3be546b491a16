"""Notebook 05: a task without a signal, figures that state their share, a comparison of methods."""

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from patience import WAIT, until

import fedlora_lab as fl
from fedlora_lab import plots
from fedlora_lab.plots import frames as tidy
from fedlora_lab.plots import style
from fedlora_lab.theory.low_rank import Band

PRIVACY = fl.Privacy(delta=1e-4)


def frame_of(scores: dict[str, list[float]], rounds: int = 2) -> Any:
    """A tidy frame in which each seed of each method starts at 0.5 and ends at its score."""
    rows = [
        ("digits", slug, seed, t, "all", "accuracy", 0.5 + (value - 0.5) * t / rounds)
        for slug, values in scores.items()
        for seed, value in enumerate(values)
        for t in range(rounds + 1)
    ]
    return pd.DataFrame(rows, columns=list(tidy.COLUMNS))


def words(figure) -> str:
    return " ".join(text.get_text() for ax in figure.axes for text in ax.texts)


def test_a_silent_task_moves_only_by_noise():
    task = fl.tasks.zero_signal(fl.tasks.regression(clients=2, examples=8))
    plan = fl.Plan(rounds=2, local_steps=2, batch=4)
    *_, still = fl.run(task, "fedlora", None, plan)
    assert all(float(b.norm()) == 0 for _, b in still.adapter.values())
    *_, moved = fl.run(task, "fedlora", fl.Privacy(noise_multiplier=1.0, delta=1e-3), plan)
    assert all(float(b.norm()) > 0 for _, b in moved.adapter.values())
    assert still.metrics["loss"] > 0  # the metrics are those of the task itself


def test_alpha_is_a_step_size():
    task = fl.tasks.regression(clients=2, examples=16)
    privacy = fl.Privacy(noise_multiplier=1.0, delta=1e-3)
    plan = fl.Plan(rounds=2, local_steps=2, batch=8, lr=0.3)
    *_, one = fl.run(task, "ffa-lora", privacy, plan, lora=fl.Lora(alpha=8))
    scaled = privacy.replace(clip_norm=3.0), plan.replace(lr=0.3 / 9)
    *_, other = fl.run(task, "ffa-lora", *scaled, lora=fl.Lora(alpha=24))
    (_, b), (_, c) = one.adapter["map"], other.adapter["map"]
    np.testing.assert_allclose(2.0 * b.numpy(), 6.0 * c.numpy(), rtol=1e-4, atol=1e-6)
    *_, alone = fl.run(task, "ffa-lora", privacy, plan, lora=fl.Lora(alpha=24))
    assert not np.allclose(2.0 * b.numpy(), 6.0 * alone.adapter["map"][1].numpy(), rtol=0.1)


@pytest.mark.parametrize("log", ["", "x", "y", "xy"])
def test_band_check_draws_every_dot(log):
    bands = [Band(1.0, 0.5, 2.0), Band(2.0, 1.5, 3.0)]
    one = plots.Measurements([1, 2], [[0.4, 1.0], [1.6, 2.0, 9.0]], bands)
    assert plots.share_inside({"ffa-lora": one}) == pytest.approx(3 / 5)
    given: Any = {"title": "t", "x": "x", "y": "y", "ghost": ("hope", [1, 2], [3, 3])}
    figure = plots.band_check({"ffa-lora": one}, log=log, **given)
    ax: Any = figure.axes[0]
    dots = [value for line in ax.lines if line.get_marker() == "o" for value in line.get_ydata()]
    assert sorted(dots) == [0.4, 1.0, 1.6, 2.0, 9.0]
    for text in ("5 measurements, 60.0% of them inside", "FFA-LoRA", "hope"):
        assert text in words(figure)
    with pytest.raises(ValueError, match=r"^checks=\{\}: expected at least one"):
        plots.share_inside({})


def test_budgets_draw_the_mean():
    some = frame_of({"fedlora": [0.6, 0.8], "ffa-lora": [0.9]})
    frames: Any = {8: some, None: frame_of({"fedlora": [0.95]})}
    ax: Any = plots.budgets(frames).axes[0]
    colour = style.look("fedlora").colour
    drawn = [line.get_ydata() for line in ax.lines if line.get_color() == colour]
    assert [0.7, 0.95] in [[round(v, 9) for v in line] for line in drawn]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["8", "none"]


def test_budgets_stand_still():
    """But a run that falls far below its start is drawn, not cut off."""
    axis: Any = {"axis": [1, 8, None], "start": 0.6}
    cases: Any = {}, *({8: frame_of({"fedlora": [low, 0.99]})} for low in (0.4, 0.05))
    empty, full, fallen = (plots.budgets(frames, **axis) for frames in cases)
    for one, other in zip(empty.axes, full.axes, strict=True):
        assert (one.get_xlim(), one.get_ylim()) == (other.get_xlim(), other.get_ylim())
    assert style.png(empty) != style.png(full)
    assert fallen.axes[0].get_ylim()[0] < 0.05
    with pytest.raises(ValueError, match=r"^axis=None: expected at least one"):
        plots.budgets({})


def test_step_size_has_equal_axes():
    frames: Any = {2: frame_of({"ffa-lora": [0.6]}), 8: frame_of({"ffa-lora": [0.9]})}
    left, right = plots.step_size(frames, {8: frames[8]}).axes
    assert left.get_ylim() == right.get_ylim()
    assert "α = 2" in words(plots.step_size(frames, frames))


def test_gap_is_the_paired_interval():
    difference = fl.report.final_difference
    frame = frame_of({"fedlora": [0.60, 0.70, 0.80], "ffa-lora": [0.65, 0.76, 0.84]})
    gap = difference(frame, "ffa-lora", "fedlora")
    half = 4.302652729911275 * np.std([0.05, 0.06, 0.04], ddof=1) / np.sqrt(3)
    assert gap[:3] == pytest.approx((0.05, 0.05 - half, 0.05 + half))
    assert -gap == pytest.approx(difference(frame, "fedlora", "ffa-lora"))
    assert (gap.seeds, gap.holds, (-gap).holds) == (3, "yes", "no")
    equal = frame_of({"fedlora": [0.5, 0.7], "ffa-lora": [0.6, 0.6]})
    assert difference(equal, "fedlora", "ffa-lora").holds == "cannot tell"
    assert str(gap) == "+0.050 [+0.025, +0.075]"
    with pytest.raises(ValueError, match=r"^seeds=1: expected at least two"):
        difference(frame_of({"fedlora": [0.5], "ffa-lora": [0.6]}), "fedlora", "ffa-lora")


def test_the_table_shows_every_row():
    table = fl.report.claims_table(("A < B (paper)", "here", "yes"), ("second", "there", "no"))
    for text in (repr(table), table._repr_html_()):
        assert all(word in text for word in ("here", "second", "there", "holds?"))
    assert "A &lt; B (paper)" in table._repr_html_()
    with pytest.raises(ValueError, match="expected at least one"):
        fl.report.claims_table()


@pytest.fixture
def task():
    return fl.tasks.digits(clients=3, seed=1)


@pytest.fixture
def made(task) -> Any:
    rates: Any = {8: {"fedlora": 0.3, "ffa-lora": 0.3}, None: {"ffa-lora": 0.1}}
    plan = fl.Plan(rounds=2, local_steps=2, batch=8)
    widget: Any = fl.widgets.method_comparison(task, rates, plan=plan, privacy=PRIVACY)
    yield widget
    widget.close()


@pytest.mark.slow
def test_a_comparison_fills_the_figure(made):
    before, said = made.picture.value, made.sentence.value
    assert not made.frames
    assert "Press Start" in said
    made.seeds.value = 1
    made.start()
    assert made.rounds.disabled
    made.worker._thread.join(60)
    assert made.settle()
    assert made.worker.state == "finished"
    assert made.picture.value != before
    assert set(made.frames) == {8, None}
    assert set(made.frames[8]["method"]) == {"fedlora", "ffa-lora"}
    assert made.frames[8]["round"].max() == 2
    assert made.progress.value == made.progress.max == 3 * 4
    assert "after 3 runs" in made.sentence.value
    assert not made.rounds.disabled
    made.reset()
    assert made.settle()
    assert made.picture.value == before
    assert made.sentence.value == said


@pytest.mark.slow
def test_a_comparison_keeps_what_it_was(made):
    made.buttons["start"].click()
    until(lambda: not made.worker.alive)
    assert made.settle(WAIT)
    shown = made.sweep, made.picture.value, made.sentence.value
    made.rounds.value = 5
    assert made.settle(WAIT)
    assert "controls have changed since: press Start" in made.status.value
    assert (made.sweep, made.picture.value, made.sentence.value) == shown
    assert "runs of 2 rounds" in made.sentence.value
    made.reset()
    assert made.sweep.plan.rounds == 2


def test_a_comparison_takes_suggested_rates(task):
    asked: Any = {1: ("fedlora",), None: ("ffa-lora",)}
    widget: Any = fl.widgets.method_comparison(task, asked, privacy=PRIVACY)
    assert widget.sweep.rates[1] == {"fedlora": fl.tuned("digits", "fedlora", 1)}
    assert widget.sweep.rates[None] == {"ffa-lora": fl.tuned("digits", "ffa-lora", None)}
    widget.close()


@pytest.mark.slow
def test_a_comparison_stops_within_a_step(made):
    made.rounds.value, made.seeds.value = 30, 5
    made.start()
    until(lambda: made.progress.value > 0)
    assert made.stop(wait=20)
    assert 0 < made.progress.value < made.progress.max
    assert made.worker.state == "stopped"
    assert not [thread for thread in threading.enumerate() if thread.name == "method comparison"]


@pytest.mark.slow
def test_a_comparison_shows_an_error(task):
    def loss(outputs, y):
        raise RuntimeError("planted failure")

    rates: Any = {None: {"ffa-lora": 0.1}}
    broken, plan = replace(task, loss=loss), fl.Plan(rounds=1)
    widget: Any = fl.widgets.method_comparison(broken, rates, plan=plan)
    widget.start()
    widget.worker._thread.join(60)
    assert "RuntimeError: planted failure" in widget.status.value
    assert 'role="alert"' in widget.status.value
    widget.close()


@pytest.mark.slow
def test_a_new_comparison_ends_the_old(made, task):
    made.rounds.value = 30
    made.start()
    other = fl.widgets.method_comparison(task, {None: {"ffa-lora": 0.1}})
    assert not made.worker.alive
    other.close()
    with pytest.raises(ValueError, match=r"^rates="):
        fl.widgets.method_comparison(task, {})
    with pytest.raises(ValueError, match=r"^task="):
        fl.widgets.method_comparison(fl.tasks.regression(clients=2), {None: {"ffa-lora": 0.1}})
