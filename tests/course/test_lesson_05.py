"""Notebook 05: a task without a signal, and the interval of a paired difference."""

import numpy as np
import pandas as pd
import pytest

import fedlora_lab as fl
from fedlora_course.lesson_05.theory import row_space_share
from fedlora_lab.theory import mean_band


def test_gap_is_the_paired_interval():
    difference = fl.report.paired_difference

    def scores(fedlora, ffa):
        wide = pd.DataFrame({"seed": range(len(ffa)), "fedlora": fedlora, "ffa-lora": ffa})
        return wide.melt("seed", var_name="method", value_name="accuracy")

    frame = scores([0.60, 0.70, 0.80], [0.65, 0.76, 0.84])
    gap = difference(frame, "ffa-lora", "fedlora")
    half = 4.302652729911275 * np.std([0.05, 0.06, 0.04], ddof=1) / np.sqrt(3)
    assert gap[:3] == pytest.approx((0.05, 0.05 - half, 0.05 + half))
    turned = difference(frame, "fedlora", "ffa-lora")
    assert (gap.seeds, gap.holds, turned.holds) == (3, "yes", "no")
    assert difference(scores([0.5, 0.7], [0.6, 0.6]), "fedlora", "ffa-lora").holds == "cannot tell"
    with pytest.raises(ValueError, match=r"^seeds=1: expected at least two"):
        difference(frame[frame["seed"] == 0], "fedlora", "ffa-lora")


def test_row_space_share():
    """Against projections of several directions on random ones."""
    rng = np.random.default_rng(33)
    d_in = 24
    r = 5
    spectrum = np.array([3.0, 2.0, 1.0, 0.5])
    spaces = np.linalg.qr(rng.normal(size=(2000, d_in, r)))[0]
    # Four directions along the first axes.
    shares = np.average(np.square(spaces[:, :4]).sum(2), 1, spectrum**2)
    band = row_space_share(r, d_in, spectrum)
    assert band.mean == r / d_in and r / d_in in mean_band(shares)
    assert np.mean([x in band for x in shares]) == pytest.approx(0.95, abs=0.025)
