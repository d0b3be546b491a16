"""Notebook 13: who faces which epsilon, whose noise counts, and what rounding does."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

import fedlora_lab as fl
from fedlora_lab import masks, theory
from fedlora_lab.audit.game import DELTA, multiplier
from fedlora_lab.plots.trusting import EPSILONS, TRUSTS, facing, trust_picker


def test_surviving_multiplier():
    """Against noises that are drawn: what is left of the sum's standard deviation."""
    rng = np.random.default_rng(0)
    for relied, honest in ((10, 10), (10, 4), (4, 10)):
        left = rng.standard_normal((200_000, honest)).sum(1) * 1.5 / math.sqrt(relied)
        assert theory.surviving_multiplier(1.5, relied, honest) == pytest.approx(left.std(), rel=0.01)
    with pytest.raises(ValueError, match="honest=0"):
        theory.surviving_multiplier(1.0, 5, 0)


@pytest.mark.parametrize("std", [0.05, 0.4, 3.0])
def test_rounded_law(std):
    """The law sums to one, has the right mean, and is that of Flower's quantiser."""
    places = np.arange(-60, 61).astype(float)
    law = theory.rounded_law(places, 0.3, std)
    assert law.sum() == pytest.approx(1, abs=1e-12)
    assert law @ places == pytest.approx(0.3, abs=1e-9)
    grid = masks.Grid(reach=60.0, levels=120)
    noised = 0.3 + std * np.random.default_rng(1).standard_normal(100_000)
    drawn = grid.real(grid.whole(noised), 1)
    counts = np.array([(np.abs(drawn - place) < 1e-6).mean() for place in places])
    assert counts.sum() == pytest.approx(1)
    assert np.abs(counts - law).max() < 5 * (0.25 / 100_000) ** 0.5


def test_rounded_epsilon():
    """A fine grid gives the Gaussian's epsilon; one client's lattice law is checked by summing it outright."""
    for sigma in (1.0, 2.0):
        stated = theory.gdp_epsilon(1 / sigma, DELTA)
        assert theory.rounded_epsilon(sigma, 0.003, 10, DELTA) == pytest.approx(stated, rel=1e-3)
    epsilon = theory.rounded_epsilon(0.5, 0.8, 1, 1e-3)
    places, worst = np.arange(-80, 81).astype(float), 0.0
    for offset in (0.0, 0.25, 0.5):
        p, q = (theory.rounded_law(places, offset + shift, 0.5 / 0.8) for shift in (1 / 0.8, 0.0))
        worst = max(worst, *(np.maximum(a - math.exp(epsilon) * b, 0).sum() for a, b in ((p, q), (q, p))))
    assert worst == pytest.approx(1e-3, rel=1e-3)
    assert theory.rounded_epsilon(1e-3, 1.0, 2, 1e-5) == math.inf, "no noise, and rounding that hides nothing"
    for bad in ((0.0, 0.1, 2, 1e-5), (1.0, 0.0, 2, 1e-5), (1.0, 0.1, 0, 1e-5), (1.0, 0.1, 2, 1.0)):
        with pytest.raises(ValueError, match="expected"):
            theory.rounded_epsilon(*bad)


def test_who_faces_what():
    sigma, stated = multiplier(2.0), 2.0
    local, secagg, central = (facing(trust, sigma, 50, 10) for trust in TRUSTS)
    assert central["public"] == secagg["public"] == secagg["server"] == local["server"] == pytest.approx(stated)
    assert central["server"] == central["together"] == math.inf
    assert local["together"] == pytest.approx(stated)
    assert local["public"] == pytest.approx(theory.gdp_epsilon(1 / (sigma * 50**0.5), DELTA))
    assert secagg["together"] == pytest.approx(theory.gdp_epsilon((50 / 40) ** 0.5 / sigma, DELTA))
    assert facing("secagg", sigma, 50, 0)["together"] == pytest.approx(stated)
    alone = theory.trust_level("secagg", sigma, 1.0, 50).alone
    assert facing("secagg", sigma, 50, 49)["together"] == pytest.approx(theory.gdp_epsilon(1 / alone, DELTA))
    for bad in (("nobody", 1.0, 5, 0), ("local", 1.0, 1, 0), ("local", 1.0, 5, 5)):
        with pytest.raises(ValueError, match="expected"):
            facing(*bad)


def test_the_picker_says_what_it_shows():
    shown = {trust: trust_picker(trust, 20, 1.0, 5) for trust in TRUSTS}
    limits = [[(ax.get_xlim(), ax.get_ylim()) for ax in picture.axes] for picture, _ in shown.values()]
    assert limits[0] == limits[1] == limits[2]
    sigma = multiplier(1.0)
    for trust, (picture, words) in shown.items():
        level, faced = theory.trust_level(trust, sigma, 1.0, 20), facing(trust, sigma, 20, 5)
        assert f"{level.mean:.2g} C" in words
        bars: Any = picture.axes[1].patches
        ends = [bar.get_x() + bar.get_width() for bar in bars]
        assert [end - EPSILONS[0] for end in ends] == pytest.approx([min(v, EPSILONS[1]) for v in faced.values()])
    assert f"faces {facing('secagg', sigma, 20, 5)['together']:.2f}" in shown["secagg"][1]
    assert "as it is" in shown["central"][1]
    assert trust_picker("secagg", 5, 1.0, 49)[1].startswith("ε = 1 for 5 clients")


def test_the_widget_answers():
    widget = fl.widgets.trust_picker()
    before, words = widget.picture.value, widget.sentence.value
    assert "trust in the masks" in words
    widget.knobs["trust"].value = "central"
    assert widget.settle()
    assert widget.picture.value != before
    assert "as it is" in widget.sentence.value
    widget.reset()
    assert widget.settle()
    assert (widget.picture.value, widget.sentence.value) == (before, words)
    widget.close()


def test_the_collusion_lines():
    drawn: Any = fl.plots.collusion(20, 1.0, (20, 10)).axes[0].lines
    lines: Any = [line for line in drawn if len(line.get_xdata()) == 20]
    sigma = multiplier(1.0)
    for line, relied in zip(lines, (20, 10), strict=True):
        for c in (0, 7, 19):
            left = sigma * math.sqrt((20 - c) / relied)
            assert line.get_ydata()[c] == pytest.approx(theory.gdp_epsilon(1 / left, DELTA))
    assert lines[1].get_ydata()[10] == pytest.approx(1.0)


def test_the_masked_figure():
    updates = 0.1 * np.random.default_rng(0).standard_normal((4, 50))
    opened = masks.aggregate(updates, masks.Grid(reach=1.0), threshold=2, dropped=(0,))
    left, right = fl.plots.masked(updates, opened).axes
    dots: Any = left.lines[0]
    assert np.array_equal(dots.get_xdata(), updates[1])
    assert np.array_equal(dots.get_ydata(), opened.uploads[0] / opened.grid.modulus)
    dots = right.lines[0]
    assert np.array_equal(dots.get_ydata(), opened.total)
    assert np.allclose(dots.get_xdata(), updates[1:].sum(0))


def test_the_rounding_figure():
    lines: Any = [line for line in fl.plots.rounding(2.0, 5, (0.1, 1.0)).axes[0].lines if line.get_marker() == "o"]
    assert list(lines[0].get_ydata()) == [theory.rounded_epsilon(2.0, step, 5, DELTA) for step in (0.1, 1.0)]


def test_the_accuracies_are_drawn():
    rows = [(trust, seed, 3, "accuracy", 0.5 + 0.1 * seed + (trust == "local")) for trust in TRUSTS for seed in (0, 1)]
    frame = pd.DataFrame(rows, columns=["trust", "seed", "round", "measure", "value"])
    lines: Any = [line for line in fl.plots.trusts(frame, 0.4).axes[0].lines if line.get_marker() == "D"]
    assert [line.get_xdata()[0] for line in lines] == pytest.approx([1.55, 0.55, 0.55])
    with pytest.raises(ValueError, match="frame="):
        fl.plots.trusts(frame.head(0))
