"""Notebook 04: the draws, figures and widget behind its cells."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

import fedlora_lab as fl
from fedlora_lab import theory
from fedlora_lab.plots.amplifier import factors


@pytest.fixture(scope="module")
def layer() -> Any:
    """B (10, 3) and A (3, 14)."""
    rng = np.random.default_rng(0)
    return 0.3 * rng.standard_normal((10, 3)), rng.uniform(-1, 1, (3, 14)) / 14**0.5


def test_draws_follow_the_closed_form(layer):
    B, A = layer
    draws = fl.experiments.noise_draws(B, A, [0.05, 0.4], seeds=1000, scaling=2.0)
    for std, part in draws.groupby("std"):
        wide = part.pivot(index="seed", columns="term", values="value")
        terms, spread = (f(B, A, std, std, 2.0) for f in (theory.noise_terms, theory.noise_spread))
        for term, expected, deviation in zip(("noise_B", "noise_A", "noise_BA"), terms, spread, strict=True):
            assert expected in theory.mean_band(wide[term].to_numpy())
            assert wide[term].std() == pytest.approx(deviation, rel=0.12)
    assert draws["value"].nunique() == len(draws)


def test_start_draws_begin_at_the_start():
    """B is zero, so noise on A does nothing; A is as PEFT draws it, or orthonormal."""
    kaiming = fl.experiments.start_draws([20], [2], [0.1], seeds=400, d_out=8)
    wide = kaiming.pivot(index="seed", columns="term", values="value")
    assert (wide["noise_A"] == 0).all()
    assert 0.1**2 * 8 * 2 / 3 in theory.mean_band(wide["noise_B"].to_numpy())
    assert 0.1**4 * 8 * 20 * 2 in theory.mean_band(wide["noise_BA"].to_numpy())
    straight = fl.experiments.start_draws([20], [2], [0.1], seeds=400, start="orthonormal", d_out=8)
    assert 0.1**2 * 8 * 2 in theory.mean_band(straight[straight["term"] == "noise_B"]["value"].to_numpy())
    with pytest.raises(ValueError, match=r"^start='zeros': expected one of"):
        fl.experiments.start_draws([20], [2], [0.1], seeds=2, start="zeros")


def test_the_amplifier_draws_the_theory():
    figure, words = fl.plots.amplifier(std=0.1, rank=2, alpha=4.0, width=64, size_B=0.5)
    B, A = factors(2, 64, 0.5)
    assert np.linalg.norm(A) ** 2 == pytest.approx(2 / 3)
    assert np.linalg.norm(B) == pytest.approx(0.5 * np.linalg.norm(A))
    low = theory.noise_terms(B, A, 1e-3, 1e-3, 2.0)
    assert [np.asarray(line.get_ydata())[0] for line in figure.axes[0].get_lines()[:3]] == pytest.approx(list(low))
    here = theory.noise_terms(B, A, 0.1, 0.1, 2.0)
    bars: Any = figure.axes[1].patches
    assert [bar.get_width() for bar in bars] == pytest.approx([term / here.total for term in here])
    assert f"by {here.total**0.5:.3g} (root mean square norm)" in words
    assert f"carries {here.quadratic / here.total:.0%}" in words


def test_the_amplifiers_star_is_the_crossover_and_its_axes_stand_still():
    seen = []
    for width in (64, 768, 4096):
        figure, words = fl.plots.amplifier(width=width, rank=8, alpha=1.0)
        assert f"takes over at std {theory.crossover(width):.3g}." in words
        seen.append([ax.get_xlim() + ax.get_ylim() for ax in figure.axes])
    assert seen[0] == seen[1] == seen[2]


@pytest.mark.parametrize("off", [1.0, 1.15])
def test_the_checks_judge(layer, off):
    """Right dots lie inside their bands nearly always; dots that are 15 % off nearly never."""
    B, A = layer

    def share(table):
        return table["inside"].mean()

    draws = fl.experiments.noise_draws(B, A, [0.02, 0.05, 0.1, 0.3], seeds=400)
    draws["value"] *= off
    shares = [share(fl.plots.energy_check(draws, B, A)[1])]
    ranks = fl.experiments.start_draws([32], [1, 2, 4, 8, 16], [0.05], seeds=400)
    ranks["value"] *= off
    shares.append(share(fl.plots.rank_check(ranks)[1]))
    widths = fl.experiments.start_draws([32, 200], [3], [0.02, 0.05, 0.1], seeds=400)
    widths.loc[widths["term"] == "noise_BA", "value"] *= off
    shares.append(share(fl.plots.share_check(widths)[1]))
    assert min(shares) >= 0.8 if off == 1.0 else max(shares) <= 0.4


def test_the_first_step_of_a_run_has_the_closed_form():
    """The loop's own noise, ten seeds and eight layers together, within 4 standard errors of noise_terms."""
    task = fl.tasks.digits(clients=3, seed=1)
    plan = fl.Plan(rounds=1, local_steps=1, batch=8, lr=0.5)
    privacy = fl.Privacy(noise_multiplier=2.0, clip_norm=0.5, delta=1e-4)
    frame: Any = fl.compare(task, ["fedlora"], privacy, plan, range(10), progress=False)
    std = 0.5 * 2.0 * 0.5 / 8 / 3**0.5
    linear = theory.linear_noise_norm(4, 8.0, std, 64, "kaiming") ** 2
    expected = {"noise_B": linear, "noise_BA": linear * theory.quadratic_share(std, 64)}
    for term, value in expected.items():
        part = frame[(frame["measure"] == term) & (frame["round"] == 1)]
        assert value in theory.mean_band(part["value"].to_numpy(float))
    _, table = fl.plots.run_check(frame, expected)
    assert len(table) == 16
    assert table["inside"].mean() >= 0.8
    doubled = {term: 2 * value for term, value in expected.items()}
    assert not fl.plots.run_check(frame, doubled)[1]["inside"].any()


def test_the_widget_follows_its_controls():
    dial = fl.widgets.noise_amplifier()
    image, sentence = dial.picture.value, dial.sentence.value
    dial.knobs["width"].value = 4096
    assert dial.settle(30)
    assert "4096 × 4096" in dial.sentence.value
    assert dial.picture.value != image
    dial.reset()
    assert dial.settle(30)
    assert (dial.picture.value, dial.sentence.value) == (image, sentence)
    dial.close()


def test_a_frame_without_noise_measures_is_refused():
    columns = ["task", "method", "seed", "round", "layer", "measure", "value"]
    frame = pd.DataFrame([("digits", "fedlora", 0, 1, "all", "accuracy", 0.5)], columns=columns)
    with pytest.raises(ValueError, match=r"^measure='noise_B': expected"):
        fl.plots.run_check(frame, {"noise_B": 1.0})
