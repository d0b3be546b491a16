"""Notebook 05: a task without a signal, and figures that state their share."""

from typing import Any

import numpy as np
import pytest
from frames import limits, marked, scores_frame, words

import fedlora_lab as fl
from fedlora_lab import plots
from fedlora_lab.plots import style
from fedlora_lab.theory.low_rank import Band

PRIVACY = fl.Privacy(delta=1e-4)


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

    def product(alpha, privacy, plan):
        *_, last = fl.run(task, "ffa-lora", privacy, plan, lora=fl.Lora(alpha=alpha))
        return alpha / 4 * last.adapter["map"][1].numpy()

    one = product(8, privacy, plan)
    other = product(24, privacy.replace(clip_norm=3.0), plan.replace(lr=0.3 / 9))
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    assert not np.allclose(one, product(24, privacy, plan), rtol=0.1)


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


def test_budgets_draw_the_mean():
    some = scores_frame({"fedlora": [0.6, 0.8], "ffa-lora": [0.9]})
    frames: Any = {8: some, None: scores_frame({"fedlora": [0.95]})}
    ax: Any = plots.budgets(frames).axes[0]
    colour = style.look("fedlora").colour
    drawn = [line.get_ydata() for line in ax.lines if line.get_color() == colour]
    assert [0.7, 0.95] in [[round(v, 9) for v in line] for line in drawn]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["8", "none"]


def test_budgets_stand_still():
    """But a run that falls far below its start is drawn, not cut off."""
    cases: Any = {}, *({8: scores_frame({"fedlora": [low, 0.99]})} for low in (0.4, 0.05))
    empty, full, fallen = (plots.budgets(one, axis=[1, 8, None], start=0.6) for one in cases)
    assert limits(empty) == limits(full)
    assert fallen.axes[0].get_ylim()[0] < 0.05


def test_step_size_has_equal_axes():
    frames: Any = {2: scores_frame({"ffa-lora": [0.6]}), 8: scores_frame({"ffa-lora": [0.9]})}
    left, right = plots.step_size(frames, {8: frames[8]}).axes
    assert left.get_ylim() == right.get_ylim()
    assert "α = 2" in words(plots.step_size(frames, frames))


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
