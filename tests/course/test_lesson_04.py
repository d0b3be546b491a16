"""Notebook 04: the draws and figures behind its cells."""

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from frames import limits, words

import fedlora_lab as fl
from fedlora_lab import theory
from fedlora_lab.course.lesson_04 import figures

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "decision_film.py"))


@pytest.fixture(scope="module")
def gathered() -> Any:
    """Two seeds of three noisy rounds, and the amplification at their end."""
    task = fl.tasks.digits(clients=3, seed=1)
    plan = fl.Plan(rounds=3, local_steps=2, batch=8, lr=0.4)
    privacy = fl.Privacy(noise_multiplier=(1.0, 2.0, 3.0), clip_norm=0.7, delta=1e-4)
    table = figures.gathered_noise(task, privacy, plan, seeds=(3, 4))
    return table, fl.amplification(task, "fedlora", privacy, plan).mean


@pytest.mark.slow
def test_the_noise_drawn_again_is_that_of_the_run(gathered):
    """In the first round all noise is that round's: the records have the same energies."""
    first = gathered[0].query("round == 1 and term in ['noise_B', 'noise_A', 'noise_BA']")
    wide = first.pivot_table("value", ["seed", "term"], "kind")
    assert len(wide) == 6
    assert wide["gathered"].to_numpy() == pytest.approx(wide["round"].to_numpy(), rel=1e-4)


@pytest.mark.slow
def test_the_rounds_are_drawn_as_they_are(gathered):
    table, rho = gathered
    shares = figures.quadratic_shares(table)
    last = shares.query("round == 3").groupby("kind")["share"].mean()
    assert last["gathered"] > last["round"] > 0
    figure: Any = figures.noise_by_round(table, rho)
    means = table.query("kind == 'gathered' and round == 3").groupby("term")["value"].mean()
    ends = [line.get_ydata()[-1] for line in figure.axes[0].lines[:4]]
    assert ends == pytest.approx([means[x] for x in ("signal", *figures.WORDS)])
    drawn = [line.get_ydata()[-1] for line in figure.axes[1].lines]
    assert drawn == pytest.approx([last["gathered"], last["round"], rho / (1 + rho)])


def test_the_ratio_is_the_amplification():
    """The mean over draws of each energy has its closed form."""
    draws = figures.ratio_draws([20, 60], [1, 4], [0.1], seeds=300)
    for (setting, rho), part in draws.groupby(["setting", "rho"]):
        d_in = int(str(setting).split()[-1])
        linear = rho / (3 * d_in) * 64 * 4 / 3
        assert linear in theory.mean_band(part["linear"].to_numpy())
        assert rho * linear in theory.mean_band(part["quadratic"].to_numpy())
    assert draws["quadratic"].nunique() == len(draws)


@pytest.mark.slow
@pytest.mark.parametrize("off", [1.0, 1.15])
def test_the_check_judges(off):
    """Right dots lie inside their bands nearly always; dots that are 15 % off nearly never."""
    draws = figures.ratio_draws([64, 256], [1, 4], [0.01, 0.05], seeds=400)
    draws["quadratic"] *= off
    inside = figures.ratio_check(draws)[1]["inside"].mean()
    assert inside >= 0.75 if off == 1.0 else inside <= 0.3


def test_rounds_of_a_run_stand_at_their_own_amplification(gathered):
    table, rho = gathered
    found = figures.run_ratios(table, rho, [1, 3])
    assert sorted(found["rho"].unique()) == pytest.approx([rho / 3, rho])
    one = table.query("kind == 'gathered' and seed == 3 and round == 1 and term == 'noise_BA'")
    assert found.query("seed == 3")["quadratic"].iloc[0] == one["value"].item()


def test_the_trials_are_drawn_where_they_belong():
    rows = [(3.0, 11.7, 0.6, 0.8), (3.0, 0.7, 0.8, 0.7)]
    trials = pd.DataFrame(rows, columns=["epsilon", "rho", "fedlora", "ffa-lora"])
    figure: Any = figures.clip_trials(trials)
    line = figure.axes[0].lines[1]
    assert line.get_xdata() == pytest.approx([0.7, 11.7])
    assert line.get_ydata() == pytest.approx([0.1, -0.2])
    assert "ε = 3" in words(figure)


def test_the_amplifier_draws_the_theory():
    """Its star is the crossover, and its axes stand still."""
    figure, text = figures.noise_amplification(std=0.1, rank=2, alpha=4.0, width=64, size_B=0.5)
    A = np.full((2, 64), 192**-0.5)  # of norm r / 3, as Kaiming draws it
    low, here = (theory.noise_terms(0.5 * A.T, A, std, std, 2.0) for std in (1e-3, 0.1))
    lines: Any = figure.axes[0].get_lines()
    assert [line.get_ydata()[0] for line in lines[:3]] == pytest.approx(list(low))
    bars: Any = figure.axes[1].patches
    assert [bar.get_width() for bar in bars] == pytest.approx([term / here.total for term in here])
    assert f"by {here.total**0.5:.3g} (root mean square norm)" in text
    assert f"carries {here.quadratic / here.total:.0%}" in text
    for width in (64, 4096):
        other, text = figures.noise_amplification(width=width, rank=8, alpha=1.0)
        assert f"takes over at τ = {theory.crossover(width):.3g}." in text
        assert limits(other) == limits(figure)


@pytest.mark.slow
def test_the_decisions_are_those_of_the_run():
    """With the noise they score as the run's records do; before training there is none."""
    task = fl.tasks.digits(clients=3, seed=1)
    plan = fl.Plan(rounds=2, local_steps=2, batch=8, lr=0.4)
    privacy = fl.Privacy(noise_multiplier=2.0, clip_norm=0.7, delta=1e-4)
    found = SCRIPT["decisions"](task, privacy, plan, seed=3)
    right = found.argmax(-1) == np.asarray(task.test[1])
    records = [*fl.run(task, "fedlora", privacy, plan, seed=3)]
    assert right[:, 0].mean(1) == pytest.approx([r.metrics["accuracy"] for r in records], abs=1e-6)
    assert (found[0, 0] == found[0, 1]).all() and (found[1, 0] != found[1, 1]).any()


@pytest.mark.slow
def test_the_film_is_of_the_run():
    """Its first two rounds are trained again."""
    task, privacy, plan = SCRIPT["setting"]()
    found = SCRIPT["decisions"](task, privacy, plan.replace(rounds=2), seed=0)
    made, kept = SCRIPT["film"](found, task, SCRIPT["SCANS"]), figures.decisions_film()
    assert [len(one["noisy"]) for one in kept["scans"]] == [plan.rounds + 1] * len(made["scans"])
    for name in ("changed", "right"):
        both = (np.array(x[name])[..., :3] for x in (made, kept))
        assert next(both) == pytest.approx(next(both), abs=0.01)
    for one, other in zip(made["scans"], kept["scans"], strict=True):
        assert {k: one[k] for k in ("number", "truth", "pixels")}.items() <= other.items()
        for name in ("noisy", "clean"):
            assert np.array(one[name]) == pytest.approx(np.array(other[name][:3]), abs=0.01)


def test_the_strip_is_drawn_from_the_film():
    film = figures.decisions_film()
    one = film["scans"][1]
    figure: Any = figures.decision_strip(film, 1, (0, 20))
    for ax, t in zip(figure.axes[1:], (0, 20), strict=True):
        heights = [bar.get_height() for bar in ax.patches]
        assert heights == pytest.approx([*one["noisy"][t], *one["clean"][t]])
        assert ax.get_title(loc="left").endswith(f"says {int(np.argmax(one['noisy'][t]))}")
