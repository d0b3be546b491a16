"""Published claims are judged by the frames: made-up ones, whose verdicts are known."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from places import ROOT
from scipy.stats import t

from studies import claims_page
from studies.claims import (
    CLAIMS,
    FOREIGN,
    FULL,
    HOLDS,
    OPEN,
    OPPOSITE,
    SAME,
    Claim,
    Comparison,
    Effect,
    claim_frames,
    decide,
    judge_claims,
)
from studies.declared import STUDIES

SIDES: dict[str, Any] = {"one": {"method": "one"}, "other": {"method": "other"}}
TASK = "digits-example"
"""A study of the task digits, as which the made-up frame is judged."""


def lead(gap, **labels):
    """A frame in which one method is ahead of the other by exactly this much; another row reaches
    0.2 + 1, so that a share of the attainable gain is the gap. Seeds have noise in common."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.01, (2, 10))
    noise -= noise.mean(1, keepdims=True)
    common = rng.normal(0, 0.1, 10)
    scores = {"one": 0.5 + gap + common + noise[0], "other": 0.5 + common + noise[1], "best": 1.2}
    parts = [
        pd.DataFrame({"method": method, **labels, "lr": 0.3, "seed": range(10), "accuracy": score})
        for method, score in scores.items()
    ]
    return pd.concat(parts, ignore_index=True).assign(before_accuracy=0.2)


def claim(where=(), slug="slug", numbers=(), **fields):
    judge = Comparison(TASK, dict(where), **{**SIDES, **fields})
    return Claim(slug, "", "arXiv:1", "primary", "", judge, numbers=dict(numbers))


def judged(claims, frame):
    return judge_claims(claims, {TASK: frame}, Path("nowhere"))


@pytest.mark.parametrize(
    ("low", "high", "asked", "fields", "verdict"),
    [
        (0.01, 0.9, 0.0, {}, HOLDS),
        (0.01, 0.14, 0.15, {}, SAME),
        (-0.9, -0.01, 0.15, {}, OPPOSITE),
        (-0.09, 0.09, 0.0, {}, SAME),
        (-0.09, 0.11, 0.0, {}, OPEN),
        (-0.9, -0.01, 0.15, {"spare": 0.14}, FULL),
        (-0.9, 0.14, 0.15, {"gained": 0.14}, FULL),
        (-0.09, 0.09, 0.0, {"within": 0.1}, HOLDS),
        (-0.09, 0.11, 0.0, {"within": 0.1}, OPEN),
        (0.11, 0.9, 0.0, {"within": 0.1}, OPPOSITE),
        (-0.01, 0.01, 0.0, {"within": 0.1, "gained": 0.09}, FULL),
        (np.nan, np.nan, 0.0, {}, OPEN),
    ],
)
def test_an_interval_gives_one_verdict(low, high, asked, fields, verdict):
    """A lead, one of a size, an equality; no gain left; a reason for all but holding."""
    # Two values whose interval has these ends.
    half = (high - low) / 2 / t.ppf(0.975, 1)
    values = np.array([(low + high) / 2 - half, (low + high) / 2 + half])
    answer = decide(Effect(values, **fields), asked, 0.95)
    assert answer[0] == verdict and bool(answer[1]) == (verdict != HOLDS)


def test_a_size_is_a_share_of_the_attainable_gain():
    """Of a task that can give 0.5 a lead of 0.1 is a fifth, as 10 points are where 50 can be had;
    it is that of the best row at any budget, whatever is compared."""
    frame = pd.concat([lead(0.1, epsilon=1.0), lead(0.0, epsilon=None)])
    frame.loc[frame["method"] == "best", "accuracy"] = 0.7
    sized = claim({"epsilon": 1.0}, numbers={"one": 80.0, "other": 70.0, "best": 90.0, "start": 40})
    row = judged([sized], frame).iloc[0]
    assert sized.claimed == 2 * sized.asked == pytest.approx(0.2)
    means = frame.groupby(["method", "epsilon"], dropna=False)["accuracy"].mean()
    assert row["mean"] == pytest.approx(0.1 / (means.max() - 0.2), abs=1e-4)
    assert row["verdict"] == HOLDS and row["decidable"] > sized.asked
    assert claim(numbers={"one": 60.0, "other": 80.0}).claimed == 0.25


@pytest.mark.parametrize("sign", [1, -1])
def test_verdicts_hold_together(sign):
    """The level that decides is 1 - 0.05 / (number of comparisons), to seven digits. What is not
    compared takes no share."""
    frame = lead(0.0)
    gaps = frame.pivot_table("accuracy", "seed", "method")
    claims = [claim(slug=f"c{i}") for i in range(4)]
    claims += [Claim("built", "", "arXiv:1", "primary", "", by_construction="a sum")]
    half = t.ppf(1 - 0.05 / (2 * 4), 9) * (gaps["one"] - gaps["other"]).sem()
    decided = HOLDS if sign > 0 else OPPOSITE
    for factor, verdict in ((1 - 1e-7, SAME), (1 + 1e-7, decided)):
        ahead = sign * factor * half * (frame["method"] == "one")
        table = judged(claims, frame.assign(accuracy=frame["accuracy"] + ahead)).set_index("slug")
        assert set(table["verdict"][:4]) == {verdict}
        # What would just have been decided is what was, seen from zero.
        assert table["decidable"]["c0"] == pytest.approx(half, abs=1e-4)


def test_a_knob_is_turned_for_both_sides():
    """The change of a lead from one budget to another, and how far spreads lie apart."""
    frame = pd.concat([lead(0.1, epsilon=None), lead(0.4, epsilon=1.0)])
    turned = judged([claim(turn={"epsilon": (None, 1.0)})], frame)
    assert turned["mean"][0] == pytest.approx(0.3, abs=1e-4)
    narrow = lead(0.1, epsilon=None)
    narrow.loc[narrow["method"] == "one", "accuracy"] /= 4
    steadier = judged([claim({"epsilon": None}, share="spread")], narrow)
    assert steadier["mean"][0] == pytest.approx(0.75, abs=0.05) and steadier["verdict"][0] == HOLDS


def test_a_study_at_another_epsilon_measures_and_decides_nothing():
    """A lead that would hold is told with its interval, beside the reason."""
    row = judged([replace(claim(), foreign="stated: 1")], lead(0.4)).iloc[0]
    assert row["verdict"] == FOREIGN and row["reason"] == "stated: 1" and row["low"] > 0


def test_every_place_is_one_that_a_study_measures():
    """A declared study has the labels, and a case of each method that is compared."""
    for judge in (claim.judge for claim in CLAIMS if claim.judge is not None):
        if judge.study in ("updates", "two-bits"):  # modules of their own, without declared cases
            continue
        for labels in judge.ends:
            for side in (judge.one, judge.other):
                where = {**labels, **side}
                slug = where.pop("method")
                cases = [x for x in STUDIES[judge.study].cases if where.items() <= x.labels.items()]
                assert slug in {x.method.slug for x in cases}, judge


@pytest.mark.slow
def test_the_committed_page_is_that_of_the_committed_frames():
    """Every verdict on the page and in the table is judged anew."""
    table = judge_claims(CLAIMS, claim_frames(ROOT / "results"), ROOT / "results")
    # Nothing lies further below another number than all of it.
    assert (table.query("share in ('ratio', 'spread')")["decidable"] < 1).all()
    assert claims_page.page(table) == (ROOT / "studies" / "logbook.md").read_text("utf-8")
    assert table.to_csv(index=False) == (ROOT / "results" / "claims.csv").read_text("utf-8")
