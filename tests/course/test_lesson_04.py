"""Notebook 04: the draws, figures and widget behind its cells."""

from typing import Any

import numpy as np
import pytest
from frames import limits

import fedlora_lab as fl
from fedlora_lab import theory
from fedlora_lab.course.lesson_04 import figures


@pytest.fixture(scope="module")
def layer() -> Any:
    """B (10, 3) and A (3, 14)."""
    rng = np.random.default_rng(0)
    return 0.3 * rng.standard_normal((10, 3)), rng.uniform(-1, 1, (3, 14)) / 14**0.5


def test_draws_follow_the_closed_form(layer):
    B, A = layer
    draws = figures.noise_draws(B, A, [0.05, 0.4], seeds=1000, scaling=2.0)
    for std, part in draws.groupby("std"):
        wide = part.pivot(index="seed", columns="term", values="value")
        terms = theory.noise_terms(B, A, std, std, 2.0)
        spread = theory.noise_terms_std(B, A, std, std, 2.0)
        for term, expected, deviation in zip(figures.WORDS, terms, spread, strict=True):
            assert expected in theory.mean_band(wide[term].to_numpy())
            assert wide[term].std() == pytest.approx(deviation, rel=0.12)
    assert draws["value"].nunique() == len(draws)


def test_start_draws_begin_at_the_start():
    """B is zero, so noise on A does nothing; A is as PEFT draws it."""
    draws = figures.start_draws([20], [2], [0.1], 400)
    wide = draws.pivot(index="seed", columns="term", values="value")
    assert (wide["noise_A"] == 0).all()
    assert 0.1**2 * 64 * 2 / 3 in theory.mean_band(wide["noise_B"].to_numpy())
    assert 0.1**4 * 64 * 20 * 2 in theory.mean_band(wide["noise_BA"].to_numpy())


def test_the_amplifier_draws_the_theory():
    """Its star is the crossover, and its axes stand still."""
    figure, words = figures.noise_amplification(std=0.1, rank=2, alpha=4.0, width=64, size_B=0.5)
    A = np.full((2, 64), 192**-0.5)  # of norm r / 3, as Kaiming draws it
    low, here = (theory.noise_terms(0.5 * A.T, A, std, std, 2.0) for std in (1e-3, 0.1))
    lines: Any = figure.axes[0].get_lines()
    assert [line.get_ydata()[0] for line in lines[:3]] == pytest.approx(list(low))
    bars: Any = figure.axes[1].patches
    assert [bar.get_width() for bar in bars] == pytest.approx([term / here.total for term in here])
    assert f"by {here.total**0.5:.3g} (root mean square norm)" in words
    assert f"carries {here.quadratic / here.total:.0%}" in words
    for width in (64, 4096):
        other, words = figures.noise_amplification(width=width, rank=8, alpha=1.0)
        assert f"takes over at std {theory.crossover(width):.3g}." in words
        assert limits(other) == limits(figure)


@pytest.mark.slow
@pytest.mark.parametrize("off", [1.0, 1.15])
def test_the_checks_judge(layer, off):
    """Right dots lie inside their bands nearly always; dots that are 15 % off nearly never."""
    B, A = layer
    draws = figures.noise_draws(B, A, [0.02, 0.05, 0.1, 0.3], seeds=400)
    ranks = figures.start_draws([32], [1, 2, 4, 8, 16], [0.05], 400)
    widths = figures.start_draws([32, 200], [3], [0.02, 0.05, 0.1], 400)
    draws["value"] *= off
    ranks["value"] *= off
    widths.loc[widths["term"] == "noise_BA", "value"] *= off
    made = figures.energy_check(draws, B, A), figures.rank_check(ranks)
    shares = [table["inside"].mean() for _, table in (*made, figures.share_check(widths))]
    assert min(shares) >= 0.8 if off == 1.0 else max(shares) <= 0.4


@pytest.mark.slow
def test_the_first_step_of_a_run_has_the_closed_form():
    """The loop's own noise, ten seeds and eight layers, within 4 standard errors."""
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
    table = figures.run_check(frame, expected)[1]
    assert len(table) == 16
    assert table["inside"].mean() >= 0.8
    doubled = {term: 2 * value for term, value in expected.items()}
    assert not figures.run_check(frame, doubled)[1]["inside"].any()
