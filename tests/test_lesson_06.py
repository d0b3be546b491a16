"""What notebook 06 adds: peers and their noise measured, the regulator drawn, schedules read."""

from typing import Any

import numpy as np
import pytest
import torch

import fedlora_lab as fl
from fedlora_lab import plots, theory
from fedlora_lab.plots import style
from fedlora_lab.rules import factor_space, product_space


def words(figure) -> str:
    return " ".join(text.get_text() for ax in figure.axes for text in ax.texts)


def peer(size: float, seed: int = 0) -> torch.Tensor:
    unit = torch.from_numpy(np.random.default_rng(seed).normal(size=(3, 12)))
    return size * unit / torch.linalg.matrix_norm(unit, 2)


# measured


def test_peer_sizes_follow_the_schedule():
    task = fl.tasks.regression(clients=2, examples=16)
    records = list(fl.run(task, "rolora", None, fl.Plan(rounds=3, local_steps=1, batch=8)))
    sizes = fl.measures.peer_sizes(records, "rolora")
    resting = [records[0].adapter["map"][0], records[1].adapter["map"][1], records[2].adapter["map"][0]]
    assert sizes == pytest.approx([float(torch.linalg.svdvals(factor)[0]) for factor in resting])
    with pytest.raises(ValueError, match=r"^train\(0, 0\)='AB': expected"):
        fl.measures.peer_sizes(records, "fedlora")


@pytest.mark.parametrize("rule", [factor_space, product_space])
def test_no_allowed_change_stands_out_more_than_the_worst(rule):
    A = peer(1.7)
    maps = rule(A @ A.mT)
    worst = fl.measures.worst_change(rule, A, 5)
    assert float((worst @ maps.before).norm()) == pytest.approx(1)
    seen = theory.regulated_mahalanobis(worst.numpy(), A.numpy(), 1.0)
    assert seen == pytest.approx(1.7 if rule is factor_space else 1.0)
    for seed in range(20):
        change = torch.from_numpy(np.random.default_rng(seed).normal(size=(5, 3)))
        change = change / (change @ maps.before).norm()
        assert theory.regulated_mahalanobis(change.numpy(), A.numpy(), 1.0) <= seen + 1e-9


@pytest.mark.parametrize(("rule", "mu"), [(factor_space, 2.0 / 0.8), (product_space, 1 / 0.8)])
def test_separation_follows_the_closed_form(rule, mu):
    band = theory.measured_band(mu, 200)
    found = [fl.measures.separation(rule, peer(2.0), None, 0.8, seed=seed) for seed in range(40)]
    assert np.mean([value in band for value in found]) >= 0.85
    assert np.mean(found) == pytest.approx(mu, rel=0.03)
    change = 0.5 * fl.measures.worst_change(rule, peer(2.0))
    half = fl.measures.separation(rule, peer(2.0), change, 0.8, draws=2000)
    assert half == pytest.approx(mu / 2, rel=0.08)
    huge = fl.measures.separation(rule, peer(2.0), 100 * change, 0.8, draws=2000)
    assert huge == pytest.approx(mu, rel=0.08)  # the clip holds


# drawn


@pytest.mark.parametrize(("clip", "mu"), [("factor", 1.8 / 0.9), ("product", 1 / 0.9)])
def test_the_regulator_shows_the_real_mu(clip, mu):
    given: Any = {"first": 1.8, "second": 0.6, "sigma": 0.9, "clip": clip}
    figure = plots.regulator(**given)
    assert f"real {mu:.2f}" in words(figure)
    assert f"promised {1 / 0.9:.2f}" in words(figure)
    bells: Any = figure.axes[2].lines
    x, y = bells[1].get_data()
    assert x[np.argmax(y)] == pytest.approx(mu, abs=0.05)
    assert f"stands {mu:.2f} deviations out" in plots.regulator_words(**given)
    assert f"ε = {theory.gdp_epsilon(mu, 1e-5):.2f}" in plots.regulator_words(**given)


def test_the_regulators_axes_never_move():
    limits = []
    given: Any = ({}, {"first": 2.6, "sigma": 2.5}, {"second": 0.3, "clip": "product", "angle": 90})
    for values in given:
        figure = plots.regulator(**values)
        limits.append([(ax.get_xlim(), ax.get_ylim(), ax.get_position().bounds) for ax in figure.axes])
    assert limits[0] == limits[1] == limits[2]
    with pytest.raises(ValueError, match=r"^clip='both': expected one of"):
        plots.regulator(clip="both")
    with pytest.raises(ValueError, match=r"^sigma=0: expected"):
        plots.regulator(sigma=0)


def test_literal_draws_what_it_is_given():
    peers, spent = np.array([0.6, 0.2, 1.4, 0.5]), np.array([1.0, 2.0, 5.0, 9.0])
    figure = plots.literal(peers, spent, 8.0)
    left, right = figure.axes
    lines: Any = left.lines
    assert list(lines[0].get_ydata()) == [0.6, 1.4]
    assert list(lines[1].get_ydata()) == [0.2, 0.5]
    line: Any = right.lines[0]
    assert list(line.get_ydata()) == list(spent)
    assert "ε = 9.0" in words(figure)
    assert line.get_color() == style.WRONG
    below: Any = plots.literal(peers, spent / 2, 8.0).axes[1].lines[0]
    assert below.get_color() == style.RIGHT


@pytest.mark.parametrize(
    ("rounds", "exact", "share", "sent"),
    [
        (("B", "A"), "so the mean of the products is exact", "A moves in 50%", "50%"),
        (("AB",), "so the mean of the products is missed", "A moves in 100%", "100%"),
        (("B A",), "so the mean of the products is missed", "A moves in 50%", "100%"),
        (("B", "AB"), "missed in rounds 2, 4, 6,", "A moves in 50%", "75%"),
    ],
)
def test_timeline_words_say_where_the_mean_is_exact(rounds, exact, share, sent):
    text = plots.timeline_words(fl.Method("typed", "", train=fl.Cycle(rounds)))
    assert exact in text
    assert share in text
    assert f"Sent up: {sent}" in text


# the widgets


def test_the_regulator_widget_says_what_it_shows():
    widget = fl.widgets.regulator()
    before = widget.picture.value
    assert "more than the 1.00 promised" in widget.sentence.value
    widget.knobs["clip"].value = "product"
    assert widget.settle()
    assert widget.picture.value != before
    assert "exactly as promised" in widget.sentence.value
    widget.knobs["first"].value, widget.knobs["second"].value, widget.knobs["clip"].value = 0.5, 0.4, "factor"
    assert widget.settle()
    assert "less than the 1.00 promised" in widget.sentence.value
    widget.reset()
    assert widget.settle()
    assert widget.picture.value == before
    widget.close()


def test_the_schedule_widget_reads_what_is_typed():
    widget = fl.widgets.schedule()
    before = widget.picture.value
    assert "B moves in 50% of the steps" in widget.sentence.value
    widget.knobs["known"].value = "AB"
    assert widget.settle()
    assert "missed" in widget.sentence.value
    widget.knobs["own"].value = " B|B A "
    assert widget.settle()
    assert "B moves in 75% of the steps" in widget.sentence.value
    shown = widget.picture.value
    widget.knobs["own"].value = "B | C"
    assert widget.settle()
    assert "word=&#x27;C&#x27;: expected" in widget.sentence.value
    assert 'role="alert"' in widget.sentence.value
    assert widget.picture.value == shown
    widget.reset()
    assert widget.settle()
    assert widget.picture.value == before
    widget.close()
