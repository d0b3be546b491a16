"""The cells on which v, dry run and rehearsal are judged: their rule, and what the page says."""

import math

import pandas as pd
import pytest

from fedlora_lab.recipes.tuned_rates import OUTPUT_VARIANCE, noise_taken_up
from studies import rehearsals

COLUMNS = ["setting", "method", "lr", "seed", "noise", "rehearsing", "accuracy"]


def test_the_committed_predictions_of_v_are_those_of_the_library():
    table = pd.read_csv(rehearsals.PREDICTED)
    assert not table.duplicated(["setting", "method"]).any()
    for row in table.to_dict("records")[:8]:
        task, _, privacy, plan, lora = rehearsals.parts_of(row["setting"])
        noise = noise_taken_up(task, row["method"], privacy, plan, lora)
        assert row["v"] == pytest.approx(noise.factor(OUTPUT_VARIANCE), rel=1e-3)


def test_a_grid_goes_on_until_the_score_has_fallen_and_the_best_is_inside():
    def next_rates(scores, steps=0):
        return rehearsals.missing_exponents(pd.Series(scores, [1.0, 2.0, 4.0]), steps)

    assert next_rates([0.6, 0.8, 0.8]) == [3, 4]
    assert next_rates([0.8, 0.8, 0.5]) == [-2, -1]
    assert next_rates([0.7, 0.8, 0.5]) == []
    assert next_rates([0.6, 0.8, 0.8], steps=rehearsals.FURTHER) == []


def test_an_end_is_judged_by_all_public_examples_and_a_cost_by_those_no_rehearsal_read(
    tmp_path, monkeypatch
):
    """Of digits 180 scans rehearse and 360 do not. The end lies between the second and third rate,
    the chosen rate costs four points, and without noise nothing falls."""
    predicted = pd.read_csv(rehearsals.PREDICTED).head(1).assign(chosen=0.25, rehearsal=1.0)
    predicted = predicted.assign(v=2.0, dry=math.inf, open=False)
    labels = predicted[["setting", "method"]].iloc[0].tolist()
    scores = {0.25: (0.9, 0.76), 0.5: (0.5, 0.8), 1.0: (0.5, 0.8), 2.0: (0.38, 0.74)}
    rows = [[*labels, rate, 200, True, *both] for rate, both in scores.items()]
    rows += [[*labels, rate, 200, False, 0.5, 0.8] for rate in (0.5, 1.0, 2.0)]
    monkeypatch.setattr(rehearsals, "PREDICTED", tmp_path / "predicted.csv")
    monkeypatch.setattr(rehearsals, "FRAME", tmp_path / "frame.csv")
    predicted.to_csv(rehearsals.PREDICTED, index=False)
    pd.DataFrame(rows, columns=COLUMNS).to_csv(rehearsals.FRAME, index=False)
    table = rehearsals.judge()
    (row,) = table.to_dict("records")
    # .7 at the best; .62 at twice the rate: three points of eight are lost after 3/8 of an octave.
    assert row["found"] == pytest.approx(2**0.375)
    assert row["cost"] == pytest.approx(0.04) and row["twin"] == math.inf
    off = rehearsals.errors(table)
    assert off.loc["rehearsal", "rms"] == pytest.approx(0.375)
    assert off.loc["v", "latest"] == pytest.approx(1 - 0.375)
    assert off.loc["dry", "cells"] == 0


def test_the_committed_judgement_is_that_of_the_committed_runs():
    judged = rehearsals.judge().drop(columns="warning")
    kept = pd.read_csv(rehearsals.JUDGED).drop(columns="warning")
    pd.testing.assert_frame_equal(judged, kept, rtol=1e-3, check_dtype=False)
