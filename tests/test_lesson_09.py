"""Notebook 09: the results of a study looked at from any side."""

import html
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t
from test_guide import THREE, made

import fedlora_lab as fl
from fedlora_lab.plots.results import View, measured


def said(widget) -> str:
    return html.unescape(re.sub("<[^>]*>", "", widget.sentence.value))


@pytest.fixture(scope="module")
def frame():
    parts = [made(THREE, epsilon=1.0, alpha=0.5), made({**THREE, "fedlora": 0.9}, epsilon=3.0, alpha=0.5),
             made({"fedlora": 0.6}, epsilon=None, alpha=0.5), made(THREE, epsilon=3.0, alpha=0.1)]  # fmt: skip
    return pd.concat(parts, ignore_index=True)


VIEW = View("accuracy", "epsilon", ("fedlora", "ffa-lora"), "ffa-lora", {"alpha": 0.5})


def test_measured_by_hand(frame):
    means, gaps = measured(frame, VIEW)
    assert sorted(zip(means["method"], means["place"], strict=True)) == [
        ("fedlora", 0), ("fedlora", 1), ("fedlora", 2), ("ffa-lora", 0), ("ffa-lora", 1)]  # fmt: skip
    table = frame.query("epsilon == 3 and alpha == 0.5").pivot_table("accuracy", "seed", "method")
    gap = table["fedlora"] - table["ffa-lora"]
    half = t.ppf(0.975, 9) * gap.std(ddof=1) / np.sqrt(10)
    line: Any = gaps[gaps["place"] == 1].iloc[0]
    assert (line["mean"], line["low"], line["high"]) == pytest.approx(
        (gap.mean(), gap.mean() - half, gap.mean() + half)
    )
    assert set(gaps["method"]) == {"fedlora"}
    with pytest.raises(ValueError, match=r"^column='speed'"):
        measured(frame, VIEW._replace(measure="speed"))
    with pytest.raises(ValueError, match=r"^methods=\['rolora'\]"):
        measured(frame, VIEW._replace(methods=("rolora",), against="rolora"))


def test_the_results_figure_stands_still(frame):
    one, other = (fl.plots.results(frame, VIEW._replace(methods=m)) for m in (("fedlora",), ("ffa-lora", "fedex-lora")))
    for a, b in zip(one.axes, other.axes, strict=True):
        assert (a.get_xlim(), a.get_ylim()) == (b.get_xlim(), b.get_ylim())
    ticks = [tick.get_text() for tick in one.axes[0].get_xticklabels()]
    assert ticks == ["1", "3", "none"]
    assert one.axes[1].get_title(loc="left") == "Above FFA-LoRA"
    dots: Any = [line for line in one.axes[0].lines if line.get_marker() == "o"]
    np.testing.assert_allclose(dots[0].get_ydata(), measured(frame, VIEW)[0].query("method == 'fedlora'")["mean"])


def test_the_explorer_says_what_it_shows(frame):
    clients = made({"deer": 0.5, "fedlora": 0.7}, epsilon=8.0)
    widget = fl.widgets.results_explorer({"digits": frame, "digits-clients": clients})
    first = widget.picture.value
    best = frame.query("epsilon == 1 and alpha == 0.5").groupby("method")["accuracy"].mean().max()
    assert "At epsilon 1: " in said(widget)
    assert f" {best:.3f} [" in said(widget)
    assert "Against FedLoRA: " in said(widget)
    widget.knobs["against"].value = "ffa-lora"
    assert widget.settle()
    assert "Against FFA-LoRA: FedLoRA −0.1" in said(widget).replace("-0.1", "−0.1")
    widget.knobs["x"].value = "alpha"
    assert widget.settle()
    assert "ε = 3" in [words for words, _ in widget.knobs["where"].options]
    widget.knobs["study"].value = "digits-clients"
    assert widget.settle()
    assert [slug for _, slug in widget.knobs["methods"].options] == ["deer", "fedlora"]
    assert "At epsilon 8: FedLoRA 0.7" in said(widget)
    widget.knobs["measure"].value = "deviation"
    assert widget.settle()
    assert "0.100" in said(widget)
    widget.reset()
    assert widget.settle()
    assert widget.picture.value == first
    widget.close()


def test_the_explorer_takes_one_frame_and_refuses_none(frame):
    widget = fl.widgets.results_explorer(frame)
    assert "At epsilon" in said(widget)
    widget.knobs["methods"].value = ()
    assert widget.settle()
    assert 'role="alert"' not in widget.sentence.value
    widget.close()
    with pytest.raises(ValueError, match=r"^frames=\[\]: expected at least one study's frame"):
        fl.widgets.results_explorer({})
