"""Notebook 02: the deviation as points, its noise in closed form, and figures that count."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

import fedlora_lab as fl
from fedlora_lab import theory
from fedlora_lab.course.lesson_02.figures import cloud
from fedlora_lab.plots.style import WRONG


@pytest.mark.parametrize("weights", [None, np.array([0.1, 0.2, 0.3, 0.4])])
def test_noisy_deviation(weights):
    """Monte Carlo with a std for every client; the three parts each where it stands alone."""
    rng = np.random.default_rng(0)
    B, A = rng.standard_normal((4, 6, 2)), rng.standard_normal((4, 2, 5))
    u, v = np.array([0.1, 0.5, 0.3, 0.2]), np.array([0.4, 0.1, 0.2, 0.6])

    def squares(b, a):
        found = []
        for _ in range(4000):
            noise = (
                std[:, None, None] * rng.standard_normal(x.shape) for std, x in ((u, b), (v, a))
            )
            one, other = (x + xi for x, xi in zip((b, a), noise, strict=True))
            found.append(np.sum(theory.deviation(one, other, weights) ** 2))
        return np.array(found)

    form = theory.noisy_deviation(B, A, u, v, weights)
    assert form.total in theory.mean_band(squares(B, A))
    assert form.quadratic in theory.mean_band(squares(0 * B, 0 * A))
    assert form.data == pytest.approx(np.sum(theory.deviation(B, A, weights) ** 2))
    assert theory.noisy_deviation(B, A, 0.0, 0.0, weights).total == pytest.approx(form.data)


def test_noisy_deviation_of_equal_clients():
    """Equal weights, one std: d_out d_in r std^4 (K - 1) / K^2, and nothing else."""
    B, A = np.ones((5, 6, 2)), np.ones((5, 2, 7))
    form = theory.noisy_deviation(B, A, 0.3, 0.3)
    assert (form.data, form.linear) == pytest.approx((0, 0))
    assert form.quadratic == pytest.approx(6 * 7 * 2 * 0.3**4 * 4 / 25)


@pytest.mark.parametrize("spreads", [(0.7, 0.4), (1.0, 1.0), (0.0, 0.5)])
@pytest.mark.parametrize("together", [-1.0, 0.0, 0.3])
def test_a_cloud_has_the_spread_and_correlation_asked_for(spreads, together):
    seen = cloud(spreads[0], spreads[1], together, clients=9)
    assert (np.std(seen.b), np.std(seen.a)) == pytest.approx(spreads, abs=1e-12)
    assert (seen.b.mean(), seen.a.mean()) == pytest.approx((1, 1))
    assert seen.deviation == pytest.approx(-together * spreads[0] * spreads[1], abs=1e-12)
    assert seen.deviation == pytest.approx(seen.server - seen.wanted, abs=1e-12)


def test_the_square_has_no_deviation_and_no_common_factor():
    seen = cloud(0.6, 0.4, 0.9, pattern="four sign pairs")
    assert len(seen.b) == 4 and np.ptp(seen.b) > 0 < np.ptp(seen.a)
    assert seen.deviation == pytest.approx(0, abs=1e-12)


def test_the_cloud_refuses():
    for fields, message in (
        ({"together": 1.5}, r"^together=1\.5: expected"),
        ({"clients": 2}, r"^clients=2: expected"),
        ({"pattern": "ring"}, r"^pattern='ring': expected"),
        ({"spread_A": -1}, r"^spread_A=-1: expected"),
    ):
        with pytest.raises(ValueError, match=message):
            cloud(**{"spread_B": 0.5, "spread_A": 0.5, "together": 0.0, **fields})


def table(missing=0):
    """Ten measurements of y = x, of which some miss the closed form."""
    x = np.arange(1, 11.0)
    mean = np.where(np.arange(10) < missing, 2 * x, x)
    return pd.DataFrame({"x": x, "mean": mean, "low": 0.9 * mean, "high": 1.1 * mean, "closed": x})


def words(figure: Any) -> str:
    return " ".join(text.get_text() for text in figure.texts)


@pytest.mark.parametrize("missing", [0, 3])
def test_the_figure_counts_what_lies_inside(missing):
    figure: Any = fl.plots.theory_check(table(missing), x="x", y="y", title="t")
    assert fl.plots.share_inside(table(missing)) == 1 - missing / 10
    assert f"inside: {10 - missing}0% of 10" in words(figure)
    red = sum(len(line.get_xdata()) for line in figure.axes[0].lines if line.get_color() == WRONG)
    assert red == missing


def test_the_figure_draws_the_closed_form_and_its_parts():
    frame = table().assign(half=lambda t: t["closed"] / 2)
    figure: Any = fl.plots.theory_check(frame, x="x", y="y", title="t", parts={"half": "one half"})
    drawn = [list(line.get_ydata()) for line in figure.axes[0].lines]
    assert list(frame["closed"]) in drawn and list(frame["half"]) in drawn
    assert {"one half", "closed form"} <= {text.get_text() for text in figure.axes[0].texts}
    with pytest.raises(ValueError, match=r"^table\.columns=.*expected also closed"):
        fl.plots.theory_check(frame.drop(columns="closed"), x="x", y="y", title="t")
