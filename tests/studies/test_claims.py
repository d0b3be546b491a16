"""Published claims are judged by the frames: made-up ones, whose verdicts are known."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t

from studies import claims_page
from studies.claims import (
    CLAIMS,
    FULL,
    HOLDS,
    OPEN,
    OPPOSITE,
    SAME,
    STALE,
    WAITS,
    Claim,
    Effect,
    claim_frames,
    decide,
    judge_claims,
)
from studies.declared import STUDIES

ROOT = Path(__file__).resolve().parents[2]
HERE = {"study": "mine"}


def lead(gap, **labels) -> Any:
    """A frame in which one method is ahead of the other by exactly this much; another row reaches
    0.2 + 1, so that the room is 1 and a share of it is the gap. Seeds have noise in common."""
    rng = np.random.default_rng(0)
    common = rng.normal(0, 0.1, 10)
    parts = []
    for method, mean in {"one": 0.5 + gap, "other": 0.5}.items():
        noise = rng.normal(0, 0.01, 10)
        accuracy = mean + common + noise - noise.mean()
        parts.append(pd.DataFrame({"method": method, "accuracy": accuracy, "seed": range(10)}))
    parts.append(pd.DataFrame({"method": "best", "accuracy": 1.2, "seed": range(10)}))
    frame = pd.concat(parts, ignore_index=True)
    frame = frame.assign(**labels, lr=0.3, before_accuracy=0.2, bytes_up=100.0)
    return frame[["method", *labels, "lr", "seed", "before_accuracy", "accuracy", "bytes_up"]]


def claim(rule=None, places=(HERE,), slug="slug", **more):
    judge: dict[str, Any] = {"rule": "lead", "one": "one", "other": "other", **(rule or {})}
    return Claim(slug, "", "arXiv:1", "primary", "", judge, tuple(places), **more)


@pytest.mark.parametrize(
    ("low", "high", "asked", "words", "verdict"),
    [
        (0.01, 0.9, 0.0, {}, HOLDS),
        (0.01, 0.9, 0.15, {}, OPEN),
        (0.01, 0.14, 0.15, {}, SAME),
        (-0.9, -0.01, 0.15, {}, OPPOSITE),
        (-0.09, 0.09, 0.0, {}, SAME),
        (-0.09, 0.11, 0.0, {}, OPEN),
        (-0.9, -0.01, 0.15, {"spare": 0.14}, FULL),
        (0.01, 0.9, 0.0, {"spare": 0.01}, HOLDS),
        (-0.9, -0.11, 0.0, {"spare": 0.0}, OPPOSITE),
        (-0.9, 0.14, 0.15, {"gained": 0.14}, FULL),
        (-0.09, 0.09, 0.0, {"within": 0.1}, HOLDS),
        (-0.09, 0.11, 0.0, {"within": 0.1}, OPEN),
        (0.11, 0.9, 0.0, {"within": 0.1}, OPPOSITE),
        (-0.01, 0.01, 0.0, {"within": 0.1, "gained": 0.09}, FULL),
        (np.nan, np.nan, 0.0, {}, OPEN),
    ],
)
def test_an_interval_gives_one_verdict(low, high, asked, words, verdict):
    """A lead, one of a size, an equality; room that is not there; a reason for all but holding."""

    class Known(Effect):
        def interval(self, level):
            return low, (low + high) / 2, high

    found = decide(Known("", None, **words), asked, 0.95)
    assert found[0] == verdict and bool(found[1]) == (verdict != HOLDS)


def test_a_size_is_a_share_of_the_room():
    """Of a task that can give 0.5 a lead of 0.1 is a fifth, as 10 points are where 50 can be had;
    the room is that of the best row at any budget, whatever is compared."""
    frame = pd.concat([lead(0.1, epsilon=1.0), lead(0.0, epsilon=None)])
    frame.loc[frame["method"] == "best", "accuracy"] = 0.7
    sized = {"one": 80.0, "other": 70.0, "best": 90.0, "start": 40.0}
    one = claim(places=[{**HERE, "epsilon": 1.0}], numbers=sized)
    found = judge_claims([one], {"mine": frame}).iloc[0]
    assert one.claimed == 2 * one.asked == pytest.approx(0.2)
    means = frame.groupby(["method", "epsilon"], dropna=False)["accuracy"].mean()
    assert found["mean"] == pytest.approx(0.1 / (means.max() - 0.2), abs=1e-4)
    assert found["verdict"] == HOLDS and found["low"] > one.asked
    assert claim(numbers={"one": 60.0, "other": 80.0}).claimed == 0.25


@pytest.mark.parametrize("sign", [1, -1])
def test_verdicts_hold_together(sign):
    """The level that decides is 1 - 0.05 / (number of claims that chance enters and that have
    runs), to seven digits; that of other places counts these. What waits takes no share."""
    frame = lead(0.0)
    gaps = frame.pivot_table("accuracy", "seed", "method")
    spread = (gaps["one"] - gaps["other"]).std(ddof=1) / np.sqrt(10)
    claims = [claim(slug=f"c{i}", places=[HERE, HERE, HERE]) for i in range(4)]
    counted = {"rule": "fewer_bytes", "measures": ["bytes_up"]}
    claims += [claim(slug="waits", places=[{"study": "none"}]), claim(counted, slug="bytes")]
    for at, count in (("home", 4), ("away", 8)):
        half = t.ppf(1 - 0.05 / (2 * count), 9) * spread
        for share, decided in ((1 - 1e-7, False), (1 + 1e-7, True)):
            moved = frame.assign(accuracy=frame["accuracy"])
            moved.loc[moved["method"] == "one", "accuracy"] += sign * share * half
            table = judge_claims(claims, {"mine": moved})
            part: Any = table[(table["at"] == at) & table["slug"].str.startswith("c")]
            verdict = (HOLDS if sign > 0 else OPPOSITE) if decided else SAME
            assert set(part["verdict"]) == {verdict} and len(part) == count


def test_the_nearest_place_that_was_run_decides():
    """Home is the first place; where its study is not there, the next stands in."""
    first, second = {"study": "first", "epsilon": 1.0}, {"study": "second", "epsilon": None}
    behind, ahead = lead(-0.3, epsilon=1.0), lead(0.3, epsilon=None)

    def seen(**frames):
        table = judge_claims([claim(places=[first, second])], frames)
        return list(table[["at", "place", "verdict"]].itertuples(index=False, name=None))

    away = ("away", "second, no privacy", HOLDS)
    assert seen(first=behind, second=ahead) == [("home", "first, ε = 1", OPPOSITE), away]
    gone = ("away", "first, ε = 1", WAITS)
    assert seen(second=ahead) == [gone, ("stand-in", *away[1:])]
    assert seen() == [("home", *gone[1:]), ("away", "second, no privacy", WAITS)]


def test_every_place_is_one_that_a_study_measures():
    """A declared study has the labels, and a case of each method that is compared: what is said to
    be not run yet can be run. No claim reads rows that are to be measured again."""
    for one in CLAIMS:
        for place in one.places:
            asked = one.arguments(place)
            compared = {*one.methods(place)}
            name = place["study"].removesuffix(" screens")
            assert not {(name, method) for method in compared} & {*STALE}
            if name == "updates":  # what `claims --measure` measures
                continue
            labels = {k: v for k, v in place.items() if k != "study" and k not in asked}
            for end in asked.get("ends", [None]):
                named = labels | ({asked["label"]: end} if "ends" in asked else {})
                named = {k: v for k, v in named.items() if v not in ("min", "max")}
                cases = [x for x in STUDIES[name].cases if named.items() <= x.labels.items()]
                assert compared <= {x.method.slug for x in cases}, (one.slug, place)


@pytest.mark.slow
def test_the_committed_page_is_that_of_the_committed_frames():
    """Every verdict on the page and in the table is judged anew, by every rule."""
    frames = claim_frames(ROOT / "results")
    table = judge_claims(CLAIMS, frames)
    page = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
    assert claims_page.page(table, frames) == page
    kept = (ROOT / "results" / "claims.csv").read_text(encoding="utf-8")
    assert table.to_csv(index=False) == kept
