"""Notebook 06: peers and their noise measured, the regulator drawn, schedules read."""

from typing import Any

import numpy as np
import pytest
import torch
from frames import words

import fedlora_lab as fl
from fedlora_lab import theory
from fedlora_lab.course.lesson_06 import figures
from fedlora_lab.methods.filters import factor_space, product_space
from fedlora_lab.plots import style


def peer(size: float) -> torch.Tensor:
    unit = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 12)))
    return size * unit / torch.linalg.matrix_norm(unit, 2)


def test_peer_sizes_follow_the_schedule():
    task = fl.tasks.regression(clients=2, examples=16)
    records = list(fl.run(task, "rolora", None, fl.Plan(rounds=3, local_steps=1, batch=8)))
    sizes = fl.measures.peer_sizes(records, "rolora")
    resting = [record.adapter["map"][i % 2] for i, record in enumerate(records[:3])]
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
    for change in torch.from_numpy(np.random.default_rng(1).normal(size=(20, 5, 3))):
        change = change / (change @ maps.before).norm()
        assert theory.regulated_mahalanobis(change.numpy(), A.numpy(), 1.0) <= seen + 1e-9


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "mu"), [(factor_space, 2.0 / 0.8), (product_space, 1 / 0.8)])
def test_separation_follows_the_closed_form(rule, mu):
    """The clip holds: a change that is too large stands out no more than the worst."""
    band = theory.measured_band(mu, 200)
    found = [fl.measures.separation(rule, peer(2.0), None, 0.8, seed=seed) for seed in range(40)]
    assert np.mean([value in band for value in found]) >= 0.85
    assert np.mean(found) == pytest.approx(mu, rel=0.03)
    worst = fl.measures.worst_change(rule, peer(2.0))
    for size, expected in ((0.5, mu / 2), (50, mu)):
        far = fl.measures.separation(rule, peer(2.0), size * worst, 0.8, draws=2000)
        assert far == pytest.approx(expected, rel=0.08)


@pytest.mark.parametrize(("clip", "mu"), [("factor", 1.8 / 0.9), ("product", 1 / 0.9)])
def test_the_regulator_shows_the_real_mu(clip, mu):
    drawn: Any = figures.regulator(first=1.8, second=0.6, sigma=0.9, clip=clip)
    figure, text = drawn
    assert f"real {mu:.2f}" in words(figure)
    assert f"promised {1 / 0.9:.2f}" in words(figure)
    x, y = figure.axes[2].lines[1].get_data()
    assert x[np.argmax(y)] == pytest.approx(mu, abs=0.05)
    assert f"stands {mu:.2f} deviations out" in text
    assert f"ε = {theory.gdp_epsilon(mu, 1e-5):.2f}" in text


def test_the_published_regulator_is_drawn_as_given():
    peers, spent = [0.6, 0.2, 1.4, 0.5], np.array([1.0, 2.0, 5.0, 9.0])
    for share, colour in ((1, style.WRONG), (0.5, style.RIGHT)):
        figure: Any = figures.published_regulator(peers, share * spent, 8.0)
        left, right = figure.axes
        assert [list(line.get_ydata()) for line in left.lines[:2]] == [[0.6, 1.4], [0.2, 0.5]]
        assert list(right.lines[0].get_ydata()) == list(share * spent)
        assert right.lines[0].get_color() == colour


@pytest.mark.parametrize(
    ("rounds", "exact", "sent"),
    [
        (("B", "A"), "so the mean of the products is exact", "50%"),
        (("B A",), "so the mean of the products is missed", "100%"),
        (("B", "AB"), "missed in rounds 2, 4, 6,", "75%"),
    ],
)
def test_timeline_words_say_where_the_mean_is_exact(rounds, exact, sent):
    text = figures.timeline_words(fl.Method("typed", "", train=fl.Cycle(rounds)))
    for part in ("A moves in 50%", exact, f"Sent up: {sent}"):
        assert part in text
