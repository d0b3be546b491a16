"""Lesson 10: ties with the best of a table, and curves that fall at the predicted rate."""

import numpy as np
import pandas as pd
import pytest

from fedlora_course.lesson_10 import figures


def scores(means, seed):
    """Accuracies of ten seeds, with noise that a seed shares and noise of each run's own."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(0, 0.1, 10)
    columns = {slug: mean + shared + rng.normal(0, 0.01, 10) for slug, mean in means.items()}
    wide = pd.DataFrame(columns).rename_axis(index="seed", columns="method")
    return wide.melt(value_name="accuracy", ignore_index=False).reset_index()


def test_ties_are_rarely_broken_by_chance():
    """Of equal methods at most one table in twenty shows a difference; a real lead is seen."""
    equal = dict.fromkeys(("fedlora", "ffa-lora", "rolora", "deer"), 0.7)
    broken = [not figures.rank(scores(equal, seed))["tied"].all() for seed in range(60)]
    assert np.mean(broken) <= 0.15
    table = figures.rank(scores(equal | {"deer": 0.8}, seed=0))
    assert table.index[0] == "deer" and table["tied"].tolist() == [True, False, False, False]


def test_a_range_ends_where_a_curve_is_so_many_points_behind_its_best():
    """Before the best it may be as far behind; from 0.8 it falls by 20 points in an octave."""
    curve = {"lr": [0.5, 1.0, 2.0, 4.0], "accuracy": [0.6, 0.8, 0.6, 0.2]}
    means = pd.DataFrame({"unit": "example", "epsilon": 8, "method": "fedlora", **curve})
    assert figures.range_ends(means).tolist() == pytest.approx([2**0.15])
    assert figures.range_ends(means, points=40).tolist() == pytest.approx([2**1.5])


def test_an_end_is_predicted_at_the_rate_where_v_reaches_it():
    """On the grid v is 0.35 at the rate 2 of one curve, and half-way to 4 of the other."""
    rates = [1.0, 2.0, 4.0]
    curves = [("fedlora", rate, 0.35 * (rate / 2) ** 4) for rate in rates]
    curves += [("ffa-lora", rate, 0.35 * rate**2 / 8) for rate in rates]
    means = pd.DataFrame(curves, columns=["method", "lr", "v"]).assign(unit="example", epsilon=8)
    assert figures.predicted_ends(means).tolist() == pytest.approx([2, 8**0.5])
