"""Notebook 12: what audits show, what they can show at most, and injected bugs."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from small import LORA, PLAN, UNITS, private, tokens

import fedlora_lab as fl
from fedlora_lab import edges, theory
from fedlora_lab.audit import audit, one_run, self_check, threshold
from fedlora_lab.audit import game as games
from fedlora_lab.plots.auditing import audit_dial
from fedlora_lab.widgets.lesson_12 import CANARIES, LEAKS, PROMISES


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 8.0, 40.0])
def test_the_game_states_what_it_spends(epsilon):
    sigma = games.multiplier(epsilon)
    assert theory.gdp_epsilon(1 / sigma, games.DELTA) == pytest.approx(epsilon, rel=1e-6)
    one = games.game(50, epsilon)
    assert one.true == pytest.approx(epsilon, rel=1e-6)
    assert games.game(50, epsilon, leak=2).true == pytest.approx(theory.gdp_epsilon(2 / sigma, games.DELTA))
    assert one.ceiling == one_run.ceiling(50, games.DELTA, 0.05)


def test_the_game_errs_as_seldom_as_it_says():
    played = [games.game(60, 0.3, confidence=0.8, seed=seed) for seed in range(400)]
    wrong = np.mean([one.lower > one.true for one in played])
    assert wrong <= 0.2 + 4 * (0.2 * 0.8 / 400) ** 0.5
    loud = [games.game(500, 1.0, leak=6, seed=seed).caught for seed in range(40)]
    assert np.mean(loud) > 0.8
    assert abs(np.mean([one.included.mean() for one in played]) - 0.5) < 0.02


def test_repeated_audits_stay_below_the_truth():
    found = games.repeated(500, 2.0, repeats=60)
    for values in found.values():
        assert np.mean(values > 2.0) <= 0.05 + 4 * (0.05 * 0.95 / 60) ** 0.5
    assert found["Gaussian noise"].mean() > found["any mechanism"].mean() > 0
    assert np.array_equal(found["any mechanism"], games.repeated(500, 2.0, repeats=60)["any mechanism"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: games.game(1, 1.0), "canaries=1"),
        (lambda: games.game(10, 0.0), "epsilon=0"),
        (lambda: games.game(10, 1.0, leak=0.5), "leak=0.5"),
        (lambda: games.repeated(1, 1.0), "runs=1"),
        (lambda: audit_dial(10_000, 1.0), "canaries=10000"),
        (lambda: fl.plots.audit_results(pd.DataFrame()), "frame="),
        (lambda: fl.plots.repeated_audits({}, 1.0), "found="),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_dial_says_what_it_shows():
    shown = [audit_dial(*values) for values in ((10, 8.0, 1.0), (200, 2.0, 1.0), (200, 2.0, 4.0), (5000, 0.5, 8.0))]
    limits = [[(ax.get_xlim(), ax.get_ylim()) for ax in picture.axes] for picture, _ in shown]
    assert all(limit == limits[0] for limit in limits)
    blind, sound, caught, loud = (words for _, words in shown)
    one = games.game(200, 2.0, leak=4)
    assert one.caught
    assert "no bug of any size can be caught" in blind
    assert "nothing is refuted" in sound
    assert f"proves {one.lower:.2f}" in caught
    assert f"true ε {one.true:.2f}" in caught
    assert caught.endswith("Caught.")
    assert loud.endswith("Caught.")
    assert shown[2][0].axes[1].get_title(loc="left") == "The audit refutes the ledger"
    bar: Any = shown[2][0].axes[1].lines[1]
    assert bar.get_xdata()[1] == pytest.approx(one.lower)


def test_the_widget_answers():
    widget = fl.widgets.audit_dial()
    before, words = widget.picture.value, widget.sentence.value
    assert "200 canaries" in words
    widget.knobs["leak"].value = 4.0
    assert widget.settle()
    assert widget.picture.value != before
    assert "Caught" in widget.sentence.value
    widget.reset()
    assert widget.settle()
    assert (widget.picture.value, widget.sentence.value) == (before, words)
    assert [len(x) for x in (CANARIES, PROMISES, LEAKS)] == [len(widget.knobs[n].options) for n in widget.knobs]
    widget.close()


def test_the_ceilings_are_drawn():
    drawn: Any = fl.plots.audit_ceilings().axes[0].lines
    lines: Any = [line for line in drawn if len(line.get_xdata()) > 2]
    one, many = lines
    for m, value in zip(one.get_xdata()[::9], one.get_ydata()[::9], strict=True):
        assert value == one_run.ceiling(int(m), games.DELTA, 0.05)
    for m, value in zip(many.get_xdata()[::9], many.get_ydata()[::9], strict=True):
        assert value == threshold.ceiling(int(m) // 2, games.DELTA, 0.05)
    assert (np.asarray(one.get_ydata()) >= many.get_ydata()).all()


def test_an_audit_that_refutes_is_labelled_beside_its_bar():
    task = fl.tasks.regression(clients=4, examples=16, d_in=40, d_out=24, rank=4)
    plan = fl.Plan(rounds=6, local_steps=2, batch=8, lr=1e-7)
    privacy = fl.Privacy(noise_multiplier=4.0, delta=1e-5, accountant="rdp")
    found = audit(task, "fedlora", privacy, plan, canaries=64, lora=fl.Lora(8, 8.0), bug=edges.BUGS["clips nothing"])
    assert not found.holds
    assert found.could_fail
    ax = fl.plots.audit({"no clip": found}).axes[1]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["no clip"]
    (words,) = ax.texts
    assert f"{found.epsilon_lower:.2f} >" in words.get_text()
    assert words.xy[0] == pytest.approx(found.epsilon_lower)  # type: ignore[attr-defined]


def test_the_repeated_audits_are_drawn():
    found = {n: {"any mechanism": np.array([0.1, 0.3]), "Gaussian noise": np.array([1.0, n / 100])} for n in (50, 100)}
    lines: Any = [line for line in fl.plots.repeated_audits(found, 2.0).axes[0].lines if line.get_marker() == "o"]
    assert [list(line.get_ydata()) for line in lines] == [pytest.approx([0.2, 0.2]), pytest.approx([0.75, 1.0])]


def test_the_results_are_all_drawn():
    rows = [(m, u, s, k / 10, 2.0, 9.0 if m == "deer" else np.inf)
            for m in ("deer", "local") for u in UNITS for s in (0.5, 2.0)
            for k in range(3)]  # fmt: skip
    columns = ["method", "unit", "noise_multiplier", "epsilon_lower", "ceiling", "epsilon_upper"]
    picture = fl.plots.audit_results(pd.DataFrame(rows, columns=columns))
    assert len(picture.axes) == 2
    for ax in picture.axes:
        lines: Any = list(ax.lines)
        dots = np.concatenate([line.get_xdata() for line in lines if line.get_marker() == "o"])
        assert sorted(dots) == pytest.approx(sorted([0.05, 0.1, 0.2] * 4))
        assert sum(line.get_marker() == "D" for line in lines) == 2, "no diamond where none is certified"
        assert sum(line.get_marker() == "|" for line in lines) == 4


def test_the_verdict_counts_what_could_have_failed():
    rows = [("a", "example", 1.0, lower, ceiling, upper) for lower, ceiling, upper in
            ((0.1, 2.0, 2.5), (0.2, 3.0, 2.5), (2.6, 3.0, 2.5), (np.nan, 2.0, 2.5), (0.1, 2.0, np.inf))]  # fmt: skip
    frame = pd.DataFrame(
        rows, columns=["method", "unit", "noise_multiplier", "epsilon_lower", "ceiling", "epsilon_upper"]
    )
    assert fl.audit.verdict(frame) == (
        "5 audits, 1 above the ledger's epsilon, 1 invalid; in 1 of 1 settings (2 audits) the ceiling lies above the "
        "stated epsilon: only these could have contradicted it"
    )
    assert fl.audit.verdict(frame.head(1)).endswith(
        "in 0 of 1 settings (0 audits) the ceiling lies above the stated epsilon: none of these could have "
        "contradicted it"
    )
    picture = fl.plots.audit_results(frame)
    crosses: Any = [line for line in picture.axes[0].lines if line.get_marker() == "x"]
    assert sum(len(line.get_xdata()) for line in crosses) == 1
    assert any("1 invalid" in text.get_text() for text in picture.texts)


@pytest.mark.parametrize("name", edges.BUGS)
def test_every_bug_is_found(name):
    checked = self_check(tokens("head"), "fedlora", private("example"), PLAN, lora=LORA, bug=edges.BUGS[name])
    assert "sensitivity" in {one.trial for one in checked.failed}


def test_a_bug_that_is_no_function_is_refused():
    with pytest.raises(ValueError, match=r"bug='clips nothing': expected one of fl\.edges\.BUGS"):
        audit(tokens("head"), "fedlora", private("example"), PLAN, lora=LORA, bug="clips nothing")  # type: ignore[arg-type]
