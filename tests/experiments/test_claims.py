"""Published claims are judged by the frames: made-up ones, whose verdicts are known."""

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from experiments.test_guide import made
from scipy.stats import t

from fedlora_lab import experiments as study
from fedlora_lab import methods
from fedlora_lab.experiments import paper_claims
from fedlora_lab.experiments.paper_claims import FAILS, HOLDS, OPEN, WAITS, Verdict, judge

ROOT = Path(__file__).resolve().parents[2]
AHEAD: dict[str, Any] = {"rule": "ahead", "study": "digits", "one": "one", "other": "other"}


def lead(gap, spread=0.01, **labels):
    """A frame in which one method is ahead of the other by exactly this much."""
    return made({"one": 0.7 + gap, "other": 0.7}, spread=spread, centred=True, **labels)


def claim(slug, **rule):
    return paper_claims.Claim(slug, "", "arXiv:1", "primary", "", {**AHEAD, **rule}, "digits")


UNDECIDED = "undecided: the interval "


@pytest.mark.parametrize(
    ("gap", "asked", "verdict", "reason"),
    [
        (0.05, {}, HOLDS, ""),
        (0.3, {"by": 0.15}, HOLDS, ""),
        (0.15, {"by": 0.15}, OPEN, UNDECIDED + "holds 0.15"),
        (-0.05, {"by": 0.15}, FAILS, "the other is ahead"),
        (0.05, {"by": 0.15}, FAILS, "it is ahead, but by less"),
        (0.0, {"by": 0.15}, FAILS, "the whole interval is below +0.15"),
        (0.0, {"within": 0.02}, HOLDS, ""),
        (0.2, {"within": 0.02}, FAILS, "they differ by more than 0.02"),
        (-0.2, {"within": 0.02}, FAILS, "they differ by more than 0.02"),
        (0.02, {"within": 0.02}, OPEN, UNDECIDED + "reaches beyond ±0.02"),
        (-0.02, {"within": 0.02}, OPEN, UNDECIDED + "reaches beyond ±0.02"),
        (0.0, {"within": 1e-4}, OPEN, UNDECIDED + "reaches beyond ±0.0001"),
    ],
)
def test_leads_and_equalities_are_judged_on_paired_seeds(gap, asked, verdict, reason):
    """Paired by seed: what a seed does to all methods alike does not widen the interval. Of an
    equality both ends count; an interval far wider than the claim, around zero, refutes nothing."""
    frame = pd.concat([lead(gap, epsilon=1.0), lead(0.5 - gap, epsilon=3.0)])
    kind = "equal" if "within" in asked else "ahead"
    found = judge({**AHEAD, "rule": kind, **asked, "epsilon": 1.0}, {"digits": frame})
    assert (found.verdict, found.reason) == (verdict, reason)
    assert f"other (ε = 1): {gap:+.3f}".replace("-", "−") in found.measured
    words = {"by": "asked: above +0.15", "within": "asked: within ±"}
    assert "10 seeds" in found.measured and all(words[name] in found.measured for name in asked)


def test_runs_that_fell_apart_are_counted():
    """An interval hides that one run of ten ended worse than it began."""
    frame: Any = lead(0.1).assign(before_accuracy=-1.0)
    assert "below" not in judge(AHEAD, {"digits": frame}).measured
    frame.loc[3, "accuracy"] = -2.0
    found = judge(AHEAD, {"digits": frame}).measured
    assert found.endswith("; 1 of 10 runs of one ended below the start")


@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("parts", "decides"), [(0, 1), (2, 2)])
def test_no_claim_holds_by_chance(count, sign, parts, decides):
    """The interval that decides has the level 1 - 0.05 / (number of claims), to seven digits: so of
    many ledgers of equal methods, at most one in twenty takes any claim for true or false. A claim
    of two parts shares its level among them.
    """
    frame = lead(0.0)
    gaps = frame.pivot_table("accuracy", "seed", "method")
    spread = (gaps["one"] - gaps["other"]).std(ddof=1) / np.sqrt(10)
    half = t.ppf(1 - 0.05 / (2 * count * decides), 9) * spread
    rule = {"rule": "all", "parts": [AHEAD] * parts} if parts else AHEAD
    claims = tuple(claim(f"c{i}", **rule) for i in range(count))
    for share, verdict in ((1 - 1e-7, OPEN), (1 + 1e-7, HOLDS if sign > 0 else FAILS)):
        moved: Any = frame.assign(accuracy=frame["accuracy"])
        moved.loc[moved["method"] == "one", "accuracy"] += sign * share * half
        table: Any = study.judge_claims(claims, {"digits": moved})
        assert set(table["verdict"]) == {verdict}
        alone = table["reason"].str.contains(f"it {'holds' if sign > 0 else 'fails'} on its own")
        assert alone.all() == (verdict == OPEN and count * decides > 1)
        assert table["measured"].nunique() == 1, "what is shown stays the single interval"


def test_the_worst_part_decides(monkeypatch):
    """What fails goes before what waits, and that before what is open, in whatever order."""
    said = {word: Verdict(f"seen {word}", word, f"why {word}") for word in paper_claims.VERDICTS}
    monkeypatch.setitem(paper_claims.RULES, "said", lambda data, one, other: said[one])
    monkeypatch.setattr(paper_claims, "select_rows", lambda frame: {"method": [*said]})
    assert judge({"rule": "all", "parts": []}, {}).verdict == HOLDS
    for worst, rest in ((FAILS, (WAITS, OPEN, HOLDS)), (WAITS, (OPEN, HOLDS)), (OPEN, (HOLDS,))):
        for order in ((*rest, worst), (worst, *rest)):
            parts = [{**AHEAD, "rule": "said", "one": word, "other": word} for word in order]
            found = judge({"rule": "all", "parts": parts}, {"digits": pd.DataFrame()})
            why = f"part {order.index(worst) + 1}: why {worst}"
            assert found[1:] == (worst, f"1 of {len(order)} parts hold; {why}")
            assert all(f"seen {word}" in found.measured for word in order)


def test_labels_choose_the_rows():
    """No privacy is a label like the others, written as nothing; a setting without runs waits."""
    frame: Any = pd.concat([lead(0.1, epsilon=1.0), lead(-0.1, epsilon=None)])
    found = judge({**AHEAD, "epsilon": None}, {"digits": frame})
    assert found.verdict == FAILS
    assert found.measured.startswith("accuracy of one above other (no privacy): −0.1")
    assert judge({**AHEAD, "epsilon": 1.0}, {"digits": frame}).verdict == HOLDS
    for rule, missing in (({"other": "third"}, "third"), ({"epsilon": 3.0}, "one, other")):
        found = judge({**AHEAD, **rule}, {"digits": frame})
        reason = f"the frame has no runs of {missing} in this setting yet"
        assert found == Verdict("–", WAITS, reason)
    with pytest.raises(ValueError, match=r"^seeds=1: expected at least two that 'one' and 'other'"):
        judge(AHEAD, {"digits": frame[frame["seed"] == 0]})


def test_two_measures_of_one_method_are_compared():
    frame = lead(0.0).assign(accuracy_received=lambda rows: rows["accuracy"] - 0.05)
    pair = {"one": "accuracy", "other": "accuracy_received"}
    rule = {"rule": "measure_ahead", "study": "digits", "method": "one", **pair}
    assert judge(rule, {"digits": frame}).verdict == HOLDS


def knob(noise, powers=(4.0,) * 6, values=(1.0, 2.0, 4.0), **labels):
    """Runs over a knob, with a power of their own in each seed and learning rates that differ."""
    rows = [
        {"seed": s, "knob": v, "lr": lr, "noise": noise * (v * lr) ** power}
        for s, power in enumerate(powers)
        for v, lr in zip(values, (0.3, 0.8, 0.6))
    ]
    frame = pd.DataFrame(rows).assign(method="one", **labels)
    return frame.assign(accuracy=0.8 + 0.1 * frame["seed"])


def asked(kind, frame, **where):
    rule = {"rule": kind, "study": "s", "method": "one", "measure": "noise", "label": "knob"}
    return judge({**rule, **where}, {"s": frame})


@pytest.mark.parametrize(
    ("mean", "half", "power", "verdict"),
    [
        (1.93, 0.01, 2.0, HOLDS),
        (1.92, 0.05, 2.0, OPEN),
        (2.0, 0.2, 2.0, OPEN),
        (2.13, 0.01, 2.0, FAILS),
        (1.5, 0.01, 2.0, FAILS),
        (4.15, 0.02, 4.0, HOLDS),
    ],
)
def test_a_power_law_is_judged_by_its_slope(mean, half, power, verdict):
    """With knob times learning rate: holds with the slope's whole interval within 5 % of the power,
    fails with none of it, of the method and setting that are asked for."""
    apart = half / (t.ppf(0.975, 5) * np.sqrt(6 / 5) / np.sqrt(6))
    frame, steep = knob(7, mean + apart * np.array([-1, 1, -1, 1, -1, 1]), epsilon=1.0), (9.0,) * 6
    others = [knob(7, steep, epsilon=1.0).assign(method="other"), knob(7, steep, epsilon=3.0)]
    found = asked("power_law", pd.concat([frame, *others]), power=power, epsilon=1.0)
    assert found.verdict == verdict
    assert f"power {mean:.2f} ± {half:.2f} of knob × learning rate, 6 seeds" in found.measured


def test_a_power_law_without_a_slope_fails_or_stays_open():
    """A zero energy refutes a power; too little, or what was not measured, tells nothing."""
    whole: Any = knob(1)
    assert asked("power_law", knob(0), power=4.0).verdict == FAILS
    for part in (whole[whole["knob"] == 2], whole[whole["seed"] == 0], whole.assign(noise=np.nan)):
        found = asked("power_law", part, power=4.0)
        reason = "noise of one needs two seeds and two values of knob"
        assert (found.verdict, found.reason) == (OPEN, reason)


@pytest.mark.parametrize(("value", "verdict"), [(0.0, HOLDS), (1e-12, FAILS), (np.nan, OPEN)])
def test_one_run_that_is_not_zero_is_enough(value, verdict):
    """Of the method and the setting that are asked for, and of no other."""
    frame: Any = knob(0, epsilon=1.0)
    frame.loc[len(frame) - 1, "noise"] = value
    others = [knob(1, epsilon=1.0).assign(method="other"), knob(1, epsilon=3.0)]
    rule = {"rule": "always_zero", "study": "s", "method": "one", "measure": "noise"}
    found = judge({**rule, "epsilon": 1.0}, {"s": pd.concat([frame, *others])})
    assert found.verdict == verdict


@pytest.mark.parametrize(("lift", "verdict"), [(0.0, HOLDS), (0.2, FAILS)])
def test_insensitivity_to_a_knob_is_judged(lift, verdict):
    frame = knob(1)
    frame["accuracy"] += lift * (frame["knob"] == 4.0)
    other = frame.assign(method="other", accuracy=frame["knob"])
    rule = {"rule": "insensitive", "study": "s", "method": "one", "label": "knob"}
    found = judge({**rule, "ends": [1.0, 4.0], "within": 0.03}, {"s": pd.concat([frame, other])})
    assert found.verdict == verdict
    assert f"at knob 4 above 1: {lift:+.3f}" in found.measured


def test_every_published_claim_has_a_source_and_a_study():
    """At least 25, each of a source of the table, each judged by a study that has its cases."""
    assert len({claim.slug for claim in study.CLAIMS}) == len(study.CLAIMS) >= 25
    known = " ".join(row.source for row in methods.ALL.values())
    assert all(claim.source in known for claim in study.CLAIMS)
    empty: Any = study.judge_claims(study.CLAIMS, {})
    run = empty["command"] != ""
    assert set(empty["verdict"][run]) == {WAITS} and set(empty["verdict"][~run]) == {OPEN}
    rng, frames = np.random.default_rng(0), {}
    measures = ("accuracy", "accuracy_received", "sharpness", "noise_B", "noise_BA")
    for name in {claim.study for claim in study.CLAIMS if claim.study}:
        cases = study.STUDIES[name].cases * 3
        rows = [{"method": case.method.slug, **case.labels, "lr": 0.3} for case in cases]
        numbers = pd.DataFrame(rng.random((len(rows), len(measures))), columns=list(measures))
        seeds = np.repeat(range(3), len(cases) // 3)
        frames[name] = pd.DataFrame(rows).join(numbers).assign(seed=seeds)
    judged: Any = study.judge_claims(study.CLAIMS, frames)
    assert WAITS not in set(judged["verdict"]) and (judged["measured"][run] != "–").all()


def test_the_committed_page_is_that_of_the_committed_frames():
    """Every verdict on the page and in the table is judged anew; the page says what waits."""
    script = runpy.run_path(str(ROOT / "scripts" / "claims.py"))
    frames = study.read_studies(ROOT / "results")
    table: Any = study.judge_claims(study.CLAIMS, frames)
    page = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
    assert script["page"](table, frames) == page
    kept = (ROOT / "results" / "claims.csv").read_text(encoding="utf-8")
    assert table.to_csv(index=False) == kept
    judged = table[table["command"] == "fedlora-lab study digits"]
    assert (judged["measured"] != "–").sum() >= 10
    waits = page.split("## Waits for new measurement")[1].split("## Holds")[0]
    for words in ("`digits-clients`, all rows of `la-lora`", "its filter acted twice", "streams"):
        assert words in waits


def test_claims_that_read_stale_rows_are_found():
    """A claim reads a method's rows when it cannot be judged without them."""
    frames = {"digits": made({"la-lora": 0.8, "rolora": 0.7, "fedlora": 0.7})}
    pairs = {"reads": ("la-lora", "rolora"), "does-not": ("rolora", "fedlora")}
    claims = tuple(claim(slug, one=one, other=other) for slug, (one, other) in pairs.items())
    stale = paper_claims.Stale("digits", "la-lora", "measured wrong")
    found = paper_claims.claims_using(stale, claims, frames)
    assert [claim.slug for claim in found] == ["reads"]
    elsewhere = paper_claims.Stale("sentiment", "la-lora", "")
    assert paper_claims.claims_using(elsewhere, claims, frames) == []
