"""Published claims are judged by the frames: made-up ones, whose verdicts are known."""

from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t

from studies import claims as published
from studies import claims_page
from studies.claims import (
    FULL,
    HOLDS,
    OPEN,
    OPPOSITE,
    SAME,
    WAITS,
    Claim,
    Effect,
    decide,
    judge,
)
from studies.declared import STUDIES

ROOT = Path(__file__).resolve().parents[2]
LEAD: dict[str, Any] = {"rule": "lead", "one": "one", "other": "other"}
HERE = {"study": "mine"}


def made(means, seeds=10, spread=0.01, **labels):
    """A frame in which each method has exactly this mean over the seeds, noise of its own, and
    noise that all methods of a seed share."""
    rng = np.random.default_rng(0)
    common = rng.normal(0, 0.1, seeds)
    parts = []
    for method, mean in means.items():
        noise = rng.normal(0, spread, seeds)
        part: Any = {"study": "digits", "method": method, **labels, "lr": 0.3, "at_edge": False}
        part |= {"seed": range(seeds), "accuracy": mean + common + noise - noise.mean()}
        part |= {"bytes_up": 150.0, "bytes_down": 150.0, "deviation": 0.1}
        parts.append(pd.DataFrame(part))
    return pd.concat(parts, ignore_index=True)


def lead(gap, spread=0.01, before=0.2, **labels) -> Any:
    """A frame in which one method is ahead of the other by exactly this much, and another row
    reaches 0.2 + 1, so that the room is 1 and a share of it is the gap."""
    frame = made({"one": 0.5 + gap, "other": 0.5}, spread=spread, **labels)
    best = made({"best": 1.2}, spread=0, **labels)
    best["accuracy"] = 1.2
    return pd.concat([frame, best], ignore_index=True).assign(before_accuracy=before)


def claim(rule=None, places=(HERE,), slug="slug", **more):
    places = tuple(places)
    return Claim(slug, "", "arXiv:1", "primary", "", {**LEAD, **(rule or {})}, places, **more)


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
        (-0.9, -0.01, 0.0, {"spare": 0.09}, FULL),
        (-0.9, -0.11, 0.0, {"spare": 0.0}, OPPOSITE),
        (-0.9, 0.14, 0.15, {"gained": 0.14}, FULL),
        (-0.9, -0.11, 0.15, {"gained": 0.09}, OPPOSITE),
        (-0.09, 0.09, 0.0, {"within": 0.1}, HOLDS),
        (-0.09, 0.11, 0.0, {"within": 0.1}, OPEN),
        (0.11, 0.9, 0.0, {"within": 0.1}, OPPOSITE),
        (-0.9, -0.11, 0.0, {"within": 0.1}, OPPOSITE),
        (-0.01, 0.01, 0.0, {"within": 0.1, "gained": 0.09}, FULL),
        (-0.9, -0.11, 0.0, {"within": 0.1, "gained": 0.09}, OPPOSITE),
        (np.nan, np.nan, 0.0, {}, OPEN),
    ],
)
def test_an_interval_gives_one_verdict(low, high, asked, words, verdict):
    """A lead, one of a size, an equality; room that is not there; a reason for all but holding."""
    found = decide(Effect("", lambda _: (low, (low + high) / 2, high), **words), asked, 0.95)
    assert found[0] == verdict and bool(found[1]) == (verdict != HOLDS)


def test_a_size_is_a_share_of_the_room():
    """Of a task that can give 0.5 a lead of 0.1 is a fifth, as 10 points are where 50 can be had;
    the room is that of the best row at any budget, whatever is compared."""
    frame = pd.concat([lead(0.1, epsilon=1.0), lead(0.0, epsilon=None)])
    frame.loc[frame["method"] == "best", "accuracy"] = 0.7
    place = {**HERE, "epsilon": 1.0}
    sized = {"one": 80.0, "other": 70.0, "best": 90.0, "start": 40.0}
    one = claim(places=[place], numbers=sized)
    found = judge(one, place, {"mine": frame})
    assert one.claimed == 2 * one.asked == pytest.approx(0.2)
    assert found.mean == pytest.approx(
        0.1
        / (
            frame["accuracy"].groupby([frame["method"], frame["epsilon"].fillna(0)]).mean().max()
            - 0.2
        )
    )
    assert found.verdict == HOLDS and found.low > one.asked
    assert claim(numbers={"one": 60.0, "other": 80.0}).claimed == 0.25


def test_runs_of_another_model_are_left_out():
    """A study may have taken over runs from before its task was made anew: they start elsewhere."""
    frame = lead(0.1)
    old = frame["method"].eq("one") & frame["seed"].lt(4)
    frame.loc[old, "accuracy"] -= 0.4
    mixed = judge(claim(), HERE, {"mine": frame})
    frame.loc[old, "before_accuracy"] -= 0.05
    found = judge(claim(), HERE, {"mine": frame})
    assert mixed.mean < 0 and found.mean == pytest.approx(0.1, abs=0.01)
    assert "6 seeds; " in found.measured and "; 4 runs of another start left out" in found.measured


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
            table = published.judge_claims(tuple(claims), {"mine": moved})
            part: Any = table[(table["at"] == at) & table["slug"].str.startswith("c")]
            verdict = (HOLDS if sign > 0 else OPPOSITE) if decided else SAME
            assert set(part["verdict"]) == {verdict} and len(part) == count


def test_the_nearest_place_that_was_run_decides():
    """Home is the first place; where its study is not there, the next stands in."""
    first, second = {"study": "first", "epsilon": 1.0}, {"study": "second", "epsilon": None}
    one = claim(places=[first, second])
    behind, ahead = lead(-0.3, epsilon=1.0), lead(0.3, epsilon=None)

    def seen(**frames):
        table = published.judge_claims((one,), frames)
        return list(table[["at", "place", "verdict"]].itertuples(index=False, name=None))

    away = ("away", "second, no privacy", HOLDS)
    assert seen(first=behind, second=ahead) == [("home", "first, ε = 1", OPPOSITE), away]
    gone = ("away", "first, ε = 1", WAITS)
    assert seen(second=ahead) == [gone, ("stand-in", *away[1:])]
    assert seen(second=behind)[1] == ("away", "second, no privacy", WAITS)
    assert seen() == [("home", *gone[1:]), ("away", "second, no privacy", WAITS)]


def ask(kind, frame, place=HERE, **own):
    return judge(claim({"rule": kind, "method": "one", **own}), place, {"mine": frame})


def turned(**gains):
    """Two methods at both ends of a knob; each gains this much from the first to the second."""
    first, last = lead(0.0, knob=1.0), lead(0.0, knob=9.0)
    for method, gain in gains.items():
        last.loc[last["method"] == method, "accuracy"] += gain
    return pd.concat([first, last])


def test_what_a_knob_does_is_judged():
    """How far one method moves; whether it loses less than another; whether a lead stays."""
    ends = {"label": "knob", "ends": ["min", "max"]}
    for gain, verdict in ((0.0, HOLDS), (-0.3, OPPOSITE)):
        frame = turned(one=gain)
        found = ask("insensitive", frame, **ends, within=0.1)
        assert found.verdict == verdict and found.mean == pytest.approx(gain)
        assert found.measured.startswith("accuracy of one at knob = 9 less that at knob = 1")
    frame = turned(one=-0.1, other=-0.3)
    less = ask("loses_less", frame, **ends)
    assert less.verdict == HOLDS and less.mean == pytest.approx(0.2)
    assert ask("same_lead", frame, **ends, within=0.1).verdict == OPPOSITE
    assert ask("same_lead", turned(one=-0.2, other=-0.2), **ends, within=0.1).verdict == HOLDS


def test_other_measures_are_shares_of_the_other_methods():
    """Bytes, a positive measure, spread, an accuracy of one's own, a bound, a cosine."""
    frame = lead(0.0).assign(bytes_up=100.0, sharp=8.0, own=0.1, cosine=0.2)
    one = frame["method"] == "one"
    frame.loc[one, ["bytes_up", "sharp", "own", "cosine"]] = [25.0, 6.0, 0.4, 0.5]
    assert ask("fewer_bytes", frame, measures=["bytes_up"]).mean == 0.75
    assert ask("less", frame, measure="sharp").mean == pytest.approx(0.25)
    assert ask("more", frame, measure="cosine").mean == pytest.approx(0.3)
    assert ask("at_least", frame, measure="own", by=0.1).mean == pytest.approx(0.3)
    own = ask(
        "own_lead", frame.assign(given=frame["accuracy"] - 0.2), one="accuracy", other="given"
    )
    assert own.mean == pytest.approx(0.2) and own.verdict == HOLDS
    drawn, parts = np.random.default_rng(0).normal(0, 0.01, 10), []
    for epsilon, at in ((1.0, 0.5), (3.0, 0.7)):
        for method, times in (("one", 1), ("other", 2)):
            part = frame[frame["method"] == method].assign(epsilon=epsilon)
            parts.append(part.assign(accuracy=at + times * drawn))
    apart = pd.concat(parts)[["study", "method", "epsilon", "lr", "seed", "accuracy"]]
    steady = ask("steadier", apart)
    assert [steady.low, steady.mean, steady.high] == pytest.approx([0.5] * 3)
    size = 100 * drawn.std(ddof=1)
    assert f"({size:.1f} and {2 * size:.1f} points)" in steady.measured


def test_every_place_is_one_that_a_study_measures():
    """A declared study has the labels, and a case of each method that is compared: what is said to
    be not run yet can be run."""

    def cases(study_name: str, labels: dict[str, Any]) -> set[str]:
        named = {name: value for name, value in labels.items() if value not in ("min", "max")}
        found = STUDIES[study_name.removesuffix(" screens")].cases
        assert all({*labels} <= {*case.labels} for case in found), labels
        return {case.method.slug for case in found if named.items() <= case.labels.items()}

    for one in published.CLAIMS:
        for place in one.places:
            if place["study"] == "updates":  # what `claims --measure` measures
                continue
            asked = {**one.judge, **place}
            compared = {asked[x] for x in ("method", "one", "other") if x in asked}
            compared = {asked["method"]} if "method" in asked else compared
            rule = signature(published.RULES[asked["rule"]]).parameters
            labels = {k: v for k, v in place.items() if k != "study" and k not in rule}
            for end in asked.get("ends", [None]):
                turned = {asked["label"]: end} if "ends" in asked else {}
                assert compared <= cases(place["study"], {**labels, **turned}), (one.slug, place)


@pytest.mark.slow
def test_the_committed_page_is_that_of_the_committed_frames():
    """Every verdict on the page and in the table is judged anew; the page says what waits."""
    frames = published.claim_frames(ROOT / "results")
    table: Any = published.judge_claims(published.CLAIMS, frames)
    page = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
    assert claims_page.page(table, frames) == page
    kept = (ROOT / "results" / "claims.csv").read_text(encoding="utf-8")
    assert table.to_csv(index=False) == kept
    waits = page.split("## Waits for measurement")[1].split("## Holds")[0]
    assert all(one.study in waits and one.why in waits for one in published.STALE)
    missing = table[table["verdict"] == WAITS]["place"].str.split(",").str[0]
    assert all(f"`{name}`" in waits for name in missing)
    for name in claims_page.FIGURES:
        assert (ROOT / "docs" / "figures" / f"{name}.png").stat().st_size < 300_000
