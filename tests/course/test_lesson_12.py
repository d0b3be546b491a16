"""Notebook 12: what audits show, what they can show at most, and injected bugs."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from frames import limits, marked, words
from toy_tasks import LORA, PLAN, private, tokens

import fedlora_lab as fl
from fedlora_lab import theory
from fedlora_lab.audit import bounds
from fedlora_lab.audit.canary_audit import canaries as audit
from fedlora_lab.course.lesson_12 import figures
from fedlora_lab.review.mistakes import BUGS

COLUMNS = ["method", "unit", "noise_multiplier", "epsilon_lower", "ceiling", "epsilon_upper"]


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 40.0])
def test_the_game_states_what_it_spends(epsilon):
    sigma = bounds.gaussian_noise_multiplier(epsilon)
    assert theory.gdp_epsilon(1 / sigma, bounds.DELTA) == pytest.approx(epsilon, rel=1e-6)
    one = bounds.simulate_one_run(50, epsilon)
    assert one.true == pytest.approx(epsilon, rel=1e-6)
    loud = theory.gdp_epsilon(2 / sigma, bounds.DELTA)
    assert bounds.simulate_one_run(50, epsilon, leak=2).true == pytest.approx(loud)
    assert one.ceiling == bounds.one_run_ceiling(50, bounds.DELTA, 0.05)


@pytest.mark.slow
def test_the_game_errs_as_seldom_as_it_says():
    played = [bounds.simulate_one_run(60, 0.3, confidence=0.8, seed=seed) for seed in range(400)]
    wrong = np.mean([one.lower > one.true for one in played])
    assert wrong <= 0.2 + 4 * (0.2 * 0.8 / 400) ** 0.5
    loud = [bounds.simulate_one_run(500, 1.0, leak=6, seed=seed).caught for seed in range(40)]
    assert np.mean(loud) > 0.8
    assert abs(np.mean([one.included.mean() for one in played]) - 0.5) < 0.02


def test_repeated_audits_stay_below_the_truth():
    found, again = (bounds.simulate_many_runs(500, 2.0, repeats=60) for _ in range(2))
    for kind, values in found.items():
        assert np.mean(values > 2.0) <= 0.05 + 4 * (0.05 * 0.95 / 60) ** 0.5
        assert np.array_equal(values, again[kind])
    assert found["Gaussian noise"].mean() > found["any mechanism"].mean() > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bounds.simulate_one_run(1, 1.0), "^canaries=1: expected"),
        (lambda: bounds.simulate_one_run(10, 0.0), r"^epsilon=0(\.0)?: expected"),
        (lambda: bounds.simulate_one_run(10, 1.0, leak=0.5), r"^leak=0\.5: expected"),
        (lambda: bounds.simulate_many_runs(1, 1.0), "^runs=1: expected"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_one_run_audit_says_what_it_shows():
    cases = (10, 8.0, 1.0), (200, 2.0, 1.0), (200, 2.0, 4.0)
    pictures: Any = [figures.one_run_audit(*case) for case in cases]
    assert len(set(map(limits, pictures))) == 1
    one = bounds.simulate_one_run(200, 2.0, leak=4)
    assert one.caught
    assert "does not contradict" in pictures[1].axes[1].get_title(loc="left")
    for told in (f"proved {one.lower:.2f}", f"true {one.true:.2f}", "the ledger states 2"):
        assert told in words(pictures[2])
    assert pictures[2].axes[1].get_title(loc="left") == "The audit refutes the ledger"
    assert pictures[2].axes[1].lines[1].get_xdata()[1] == pytest.approx(one.lower)


def test_the_power_of_audits_is_that_of_the_bounds():
    """Ceilings are those of perfect guesses; power is the share that exceeds what is stated."""
    figure, table = figures.power_curves(1.0, leaks=(1.0, 8.0), canaries=(10, 40), repeats=6)
    assert len(figure.axes[0].lines) == 3 and len(table) == 8
    for _, row in table.iterrows():
        gaussian = row["kind"] == "Gaussian noise"
        lower = bounds.gaussian_one_run_lower_bound if gaussian else bounds.one_run_lower_bound
        tried, m = bounds.default_guesses(row["canaries"]), row["canaries"]
        most = max(lower(m, sum(g), sum(g), bounds.DELTA, 0.05 / len(tried)) for g in tried)
        assert row["ceiling"] == most
        assert row["low"] <= row["power"] <= row["high"]
        if most < 1.0 or row["leak"] == 1.0:
            assert row["power"] == 0
    assert table["power"].max() > 0.5


def test_an_audit_that_refutes_is_labelled_beside_its_bar():
    task = fl.tasks.regression(clients=4, examples=16, d_in=40, d_out=24, rank=4)
    plan = fl.Plan(rounds=6, local_steps=2, batch=8, lr=1e-7)
    privacy = fl.Privacy(noise_multiplier=4.0, delta=1e-5, accountant="rdp")
    given: Any = {"canaries": 64, "lora": fl.Lora(8, 8.0), "bug": BUGS["clips nothing"]}
    found = audit(task, "fedlora", privacy, plan, **given)
    assert found.could_fail and not found.holds
    ax = figures.audit_bounds({"no clip": found}).axes[1]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["no clip"]
    texts: Any = ax.texts
    (words,) = texts
    assert f"{found.epsilon_lower:.2f} >" in words.get_text()
    assert words.xy[0] == pytest.approx(found.epsilon_lower)


def test_the_repeated_audits_are_drawn():
    kinds = {"any mechanism": np.array([0.1, 0.3]), "Gaussian noise": np.array([1.0, 0.5])}
    lines = marked(figures.repeated_audits({50: kinds, 100: kinds}, 2.0).axes[0], "o")
    np.testing.assert_allclose([line.get_ydata() for line in lines], [[0.2] * 2, [0.75] * 2])


def test_the_verdict_counts_what_could_have_failed():
    bounds = (0.1, 2, 2.5), (0.2, 3, 2.5), (2.6, 3, 2.5), (np.nan, 2, 2.5), (0.1, 2, np.inf)
    frame = pd.DataFrame([("a", "example", 1.0, *three) for three in bounds], columns=COLUMNS)
    assert fl.audit.summarize_audits(frame) == (
        "5 audits, 1 above the ledger's epsilon, 1 invalid; in 1 of 1 settings (2 audits) the "
        "ceiling lies above the stated epsilon: only these could have contradicted it"
    )
    assert fl.audit.summarize_audits(frame.head(1)).endswith(
        "in 0 of 1 settings (0 audits) the ceiling lies above the stated epsilon: none of these "
        "could have contradicted it"
    )


def test_the_table_of_audits_states_what_was_reached():
    """Of valid audits only; a row that could not fail, or states nothing, is told apart."""
    rows = [(0.5, 3.0, 2.0), (1.0, 3.0, 2.0), (1.5, 3.0, 2.0), (np.nan, 3.0, 2.0)]
    frame = pd.DataFrame([("a", "example", 1.0, *three) for three in rows], columns=COLUMNS)
    low = frame.assign(method="b", ceiling=1.5)
    none = frame.assign(method="c", epsilon_upper=np.inf)
    both = pd.concat([frame, low, none]).assign(gaussian_lower=0.2)
    table: Any = fl.audit.tabulate_audits(both).set_index("method")
    assert table["could_fail"].to_dict() == {"a": True, "b": False, "c": False}
    assert table.loc["a", ["audits", "invalid"]].tolist() == [4, 1]
    found = table.loc["a", ["epsilon_lower", "lowest", "highest", "share", "gaussian_share"]]
    assert found.tolist() == [1.0, 0.5, 1.5, 0.5, 0.1]
    assert table.loc["c", "share"] == 0


def test_the_power_of_audits_grows_with_the_canaries():
    """Where the ceiling lies below the stated epsilon nothing is ever found."""
    table = fl.audit.audit_power(3.0, canaries=(20, 100, 500), repeats=6)
    assert table["could_fail"].tolist() == [False, False, True]
    assert table["power"].iloc[0] == 0 and table["power"].iloc[2] >= 0.5
    assert table["lower"].is_monotonic_increasing and table["ceiling"].is_monotonic_increasing
    assert (table["lower"] < 3).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", BUGS)
def test_every_bug_is_found(name):
    given: Any = {"lora": LORA, "bug": BUGS[name]}
    found = fl.review.engine(tokens("head"), "fedlora", private("example"), PLAN, **given)
    assert "reach" in found.broken


def test_a_bug_that_is_no_function_is_refused():
    given: Any = {"lora": LORA, "bug": "clips nothing"}
    with pytest.raises(ValueError, match=r"bug='clips nothing': expected one of"):
        audit(tokens("head"), "fedlora", private("example"), PLAN, **given)
