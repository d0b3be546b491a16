"""The cells on which v, dry run and rehearsal are judged: their rule, and what the page says."""

import math

import pandas as pd
import pytest

from studies import rehearsals

COLUMNS = ["setting", "method", "lr", "seed", "noise", "rehearsing", "accuracy"]


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
