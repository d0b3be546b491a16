"""Notebook 02: the deviation as points and over the work, its noise, and figures that count."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from frames import words

import fedlora_lab as fl
from fedlora_lab import theory
from fedlora_lab.plots.style import WRONG


@pytest.mark.slow
@pytest.mark.parametrize("weights", [None, np.array([0.1, 0.2, 0.3, 0.4])])
def test_noisy_deviation_is_the_mean_over_draws(weights):
    """Monte Carlo with a std for every client; the three parts each where it stands alone."""
    rng = np.random.default_rng(0)
    B, A = rng.standard_normal((4, 6, 2)), rng.standard_normal((4, 2, 5))
    u, v = np.array([0.1, 0.5, 0.3, 0.2]), np.array([0.4, 0.1, 0.2, 0.6])

    def squares(b, a):
        found = []
        for _ in range(4000):
            one = b + u[:, None, None] * rng.standard_normal(b.shape)
            other = a + v[:, None, None] * rng.standard_normal(a.shape)
            found.append(np.sum(theory.deviation_matrix(one, other, weights) ** 2))
        return np.array(found)

    form = theory.noisy_deviation(B, A, u, v, weights)
    assert form.total in theory.mean_band(squares(B, A))
    assert form.quadratic in theory.mean_band(squares(0 * B, 0 * A))
    assert form.data == pytest.approx(np.sum(theory.deviation_matrix(B, A, weights) ** 2))
    assert theory.noisy_deviation(B, A, 0.0, 0.0, weights).total == pytest.approx(form.data)


@pytest.mark.parametrize("weights", [None, np.array([0.4, 0.1, 0.1, 0.4])])
@pytest.mark.parametrize(
    ("b", "a", "words"),
    [
        ([2.0, 1, 0, 0.5], [1.0, 2, 0.5, 0], "go together"),
        ([2.0, 1, 0, 0.5], [-1.0, 0, 2, 1.5], "go apart"),
        ([2.0, 1, 0, 0.5], [1.5] * 4, "One factor is common"),
    ],
)
def test_the_bars_of_a_cloud_add_up_to_the_deviation(b, a, words, weights):
    """One bar a client and one for their sum, which the titles state."""
    figure = fl.course.lesson(2).client_cloud(np.array(b), np.array(a), weights)
    ax, right = figure.axes
    *parts, total = [bar.get_height() for bar in right.patches]
    p = np.full(4, 0.25) if weights is None else weights
    D = (p @ b) * (p @ a) - p @ np.multiply(b, a)
    assert [total, sum(parts)] == pytest.approx([D, D], abs=1e-12)
    dots: Any = max((line.get_xydata() for line in ax.lines if line.get_marker() == "o"), key=len)
    assert dots == pytest.approx(np.stack([b, a], 1)) and len(parts) == 4
    assert words in ax.get_title(loc="left")


def test_the_square_of_clients_is_named():
    figure = fl.course.lesson(2).client_cloud(np.array([2, 2, 0, 0]), np.array([2, 0, 2, 0]))
    assert "both factors differ" in figure.axes[0].get_title(loc="left").lower()
    assert figure.axes[1].get_title(loc="left").endswith("= 0")


def test_the_sweeps_draw_means_of_seeds():
    """A mean of zero has no place on a logarithmic axis; a split at random is named."""
    steps = pd.DataFrame({"x": [1, 1, 4, 4], "deviation": [0, 0, 0.1, 0.3], "product": 2.0})
    split = pd.DataFrame({"x": [0.1, 0.1, np.inf, np.inf], "relative": [0.4, 0.6, 0.1, 0.1]})
    figure: Any = fl.course.lesson(2).deviation_sweeps(steps, split)
    left, right = figure.axes
    product, deviation = (line.get_xydata().tolist() for line in left.lines)
    assert product == [[1, 2], [4, 2]] and deviation == [[4, pytest.approx(0.2)]]
    assert right.lines[0].get_ydata() == pytest.approx([0.5, 0.1])
    assert [tick.get_text() for tick in right.get_xticklabels()] == ["0.1", "at random"]
    assert "2 seeds" in words(figure)


@pytest.mark.parametrize("missing", [0, 3])
def test_the_figure_counts_what_lies_inside(missing):
    """Ten measurements of y = x, of which some miss the closed form: those are red."""
    x = np.arange(1, 11.0)
    mean = np.where(np.arange(10) < missing, 2 * x, x)
    columns = {"x": x, "mean": mean, "low": 0.9 * mean, "high": 1.1 * mean}
    table = pd.DataFrame({**columns, "closed": x, "half": x / 2})
    figure: Any = fl.plots.theory_check(table, x="x", y="y", title="t", parts={"half": "one half"})
    assert fl.plots.share_inside(table) == 1 - missing / 10
    assert f"inside: {10 - missing}0% of 10" in words(figure)
    lines = figure.axes[0].lines
    assert sum(len(line.get_xdata()) for line in lines if line.get_color() == WRONG) == missing
    drawn = [list(line.get_ydata()) for line in lines]
    assert list(x) in drawn and list(x / 2) in drawn
    assert {"one half", "closed form"} <= {text.get_text() for text in figure.axes[0].texts}
    with pytest.raises(ValueError, match=r"^table\.columns=.*expected also closed"):
        fl.plots.share_inside(table.drop(columns="closed"))


def test_private_rounds_stand_beside_the_closed_form():
    rounds = pd.DataFrame({"x": [1, 1, 2, 2], "deviation": [0.2, 0.3, 0.2, 0.2], "relative": 0.5})
    figure: Any = fl.course.lesson(2).private_deviation(rounds, 0.21)
    left, right = figure.axes
    closed, dots = left.lines[1], left.lines[0]
    assert list(closed.get_ydata()) == [0.21, 0.21] and list(dots.get_ydata()) == [0.25, 0.2]
    assert list(right.lines[0].get_ydata()) == [0.5, 0.5]
    assert left.get_ylim()[0] == 0 == right.get_ylim()[0]
