"""Notebook 09: the results of a study looked at from any side."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from experiments.test_guide import THREE, made
from frames import limits, marked
from scipy.stats import t

from fedlora_lab.course.lesson_09 import figures
from fedlora_lab.course.lesson_09.figures import View, means_and_gaps

VIEW = View("accuracy", "epsilon", ("fedlora", "ffa-lora"), "ffa-lora", {"alpha": 0.5})


@pytest.fixture(scope="module")
def frame():
    parts = (THREE, 1.0, 0.5), ({**THREE, "fedlora": 0.9}, 3.0, 0.5), ({"fedlora": 0.6}, None, 0.5)
    cases = [made(means, epsilon=epsilon, alpha=alpha) for means, epsilon, alpha in parts]
    return pd.concat([*cases, made(THREE, epsilon=3.0, alpha=0.1)], ignore_index=True)


def test_means_and_gaps_by_hand(frame):
    means, gaps = means_and_gaps(frame, VIEW)
    found = set(zip(means["method"], means["place"], strict=True))
    both = {(slug, place) for slug in VIEW.methods for place in (0, 1)}
    assert found == both | {("fedlora", 2)}
    table = frame.query("epsilon == 3 and alpha == 0.5").pivot_table("accuracy", "seed", "method")
    gap = table["fedlora"] - table["ffa-lora"]
    half = t.ppf(0.975, 9) * gap.std(ddof=1) / np.sqrt(10)
    line: Any = gaps[gaps["place"] == 1].iloc[0]
    expected = gap.mean(), gap.mean() - half, gap.mean() + half
    assert (line["mean"], line["low"], line["high"]) == pytest.approx(expected)
    assert set(gaps["method"]) == {"fedlora"}
    with pytest.raises(ValueError, match=r"^methods=\['rolora'\]: expected some that the frame"):
        means_and_gaps(frame, VIEW._replace(methods=("rolora",), against="rolora"))


def test_the_results_figure_stands_still(frame):
    chosen = ("fedlora",), ("ffa-lora", "fedex-lora")
    one, other = (figures.results(frame, VIEW._replace(methods=slugs)) for slugs in chosen)
    assert limits(one) == limits(other)
    ticks = [tick.get_text() for tick in one.axes[0].get_xticklabels()]
    assert ticks == ["1", "3", "none"]
    expected = means_and_gaps(frame, VIEW)[0].query("method == 'fedlora'")["mean"]
    np.testing.assert_allclose(marked(one.axes[0], "o")[0].get_ydata(), expected)


def test_the_explorer_gets_every_case(frame):
    """No privacy is a label like the others; a seed that is missing keeps its place."""
    cells = figures.study_cells(frame.drop(index=frame.index[0]))
    assert [label["name"] for label in cells["labels"]] == ["epsilon", "alpha"]
    assert cells["labels"][0]["ticks"] == ["1", "3", "none"]
    assert cells["labels"][0]["words"] == ["ε = 1", "ε = 3", "no privacy"]
    slug, value = frame["method"][0], [0, cells["labels"][1]["ticks"].index("0.5")]
    assert cells["methods"][0] == [slug, "FedLoRA"]
    (case,) = (case for case in cells["cells"] if case[:2] == [0, value])
    expected = frame.query("method == @slug and epsilon == 1 and alpha == 0.5").sort_values("seed")
    assert case[2][0][0] is None
    np.testing.assert_allclose(case[2][0][1:], expected["accuracy"].iloc[1:], rtol=1e-3)
    with pytest.raises(ValueError, match="expected one of accuracy, loss, deviation"):
        figures.study_cells(frame.drop(columns=["accuracy", "deviation"]))
