"""Notebook 09: the results of a study looked at from any side."""

import html
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from experiments.test_guide import THREE, made
from frames import limits, marked
from scipy.stats import t

from fedlora_lab.course.lesson_09 import figures
from fedlora_lab.course.lesson_09.figures import View, means_and_gaps, results_explorer

VIEW = View("accuracy", "epsilon", ("fedlora", "ffa-lora"), "ffa-lora", {"alpha": 0.5})


def said(widget) -> str:
    return html.unescape(re.sub("<[^>]*>", "", widget.sentence.value))


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


@pytest.mark.slow
def test_the_explorer_says_what_it_shows(frame):
    clients = made({"deer": 0.5, "fedlora": 0.7}, epsilon=8.0)
    widget = results_explorer({"digits": frame, "digits-clients": clients})
    first = widget.picture.value
    best = frame.query("epsilon == 1 and alpha == 0.5").groupby("method")["accuracy"].mean().max()
    for words in ("At epsilon 1: ", f" {best:.3f} [", "Against FedLoRA: "):
        assert words in said(widget)
    for knob, value, words in (
        ("against", "ffa-lora", "Against FFA-LoRA: FedLoRA -0.1"),
        ("x", "alpha", "At alpha"),
        ("study", "digits-clients", "At epsilon 8: FedLoRA 0.7"),
        ("measure", "deviation", "0.100"),
        ("methods", (), "At epsilon 8"),
    ):
        widget.knobs[knob].value = value
        assert widget.settle()
        assert words in said(widget)
        assert 'role="alert"' not in widget.sentence.value
        if knob == "x":
            assert "ε = 3" in [option for option, _ in widget.knobs["where"].options]
    assert [slug for _, slug in widget.knobs["methods"].options] == ["deer", "fedlora"]
    widget.reset()
    assert widget.settle()
    assert widget.picture.value == first
    widget.close()
