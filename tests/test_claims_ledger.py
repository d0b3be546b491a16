"""Published claims are judged by the frames: made-up ones, whose verdicts are known."""

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fedlora_lab import methods, study
from fedlora_lab.study import claims, verdicts
from fedlora_lab.study.published import CLAIMS

ROOT = Path(__file__).resolve().parent.parent


def made(gaps, seeds=10, spread=0.01, **labels):
    """A frame in which each method is so far above 0.7, with some noise that all methods of a seed share."""
    random = np.random.default_rng(0)
    common, rows = random.normal(0, 0.1, seeds), []
    for method, gap in gaps.items():
        own = random.normal(0, spread, seeds)
        own -= own.mean()
        rows += [
            {"method": method, "seed": s, "accuracy": 0.7 + common[s] + gap + own[s], **labels} for s in range(seeds)
        ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("lead", "by", "verdict"),
    [(0.05, 0.0, claims.HOLDS), (-0.05, 0.0, claims.FAILS), (0.0, 0.0, claims.OPEN), (0.05, 0.15, claims.FAILS),
     (0.3, 0.15, claims.HOLDS), (0.15, 0.15, claims.OPEN)],
)  # fmt: skip
def test_ahead(lead, by, verdict):
    """Paired by seed: what a seed does to all methods alike does not widen the interval."""
    frames = {"digits": made({"one": lead, "other": 0.0}, epsilon=1.0)}
    found = claims.ahead("digits", "one", "other", by=by, epsilon=1.0)(frames)
    assert found.verdict == verdict
    assert f"{lead:+.3f}".replace("-", "−") in found.measured
    assert "10 seeds" in found.measured
    assert bool(found.reason) == (verdict != claims.HOLDS)


def test_the_side_is_told():
    """Of what fails: whether the other is ahead, or this one by less than is asked for."""
    for lead, by, reason in ((-0.05, 0.15, "the other is ahead"), (0.05, 0.15, "it is ahead, but by less"),
                             (0.0, 0.15, "the whole interval is below +0.15")):  # fmt: skip
        found = claims.ahead("digits", "one", "other", by=by)({"digits": made({"one": lead, "other": 0.0})})
        assert found.reason == reason
        assert "asked: above +0.15" in found.measured


def test_runs_that_fell_apart_are_counted():
    """An interval hides that one run of ten ended worse than it began."""
    frame: Any = made({"one": 0.1, "other": 0.0}).assign(before_accuracy=0.2)
    judge = claims.ahead("digits", "one", "other")
    assert "below" not in judge({"digits": frame}).measured
    frame.loc[(frame["method"] == "one") & (frame["seed"] == 3), "accuracy"] = 0.1
    assert judge({"digits": frame}).measured.endswith("; 1 of 10 runs of one ended below the start")


def test_the_interval_of_all_claims_decides():
    """A lead that is clear by itself need not be among many; what is shown stays the single interval."""
    made_up = [
        claims.Claim(f"c{i}", "one is ahead", "arXiv:2403.12313", "primary", "", claims.ahead("digits", "one", "other"),
                     "digits", "a note") for i in range(30)
    ]  # fmt: skip
    for lead, single, joint in ((0.012, claims.HOLDS, claims.OPEN), (-0.012, claims.FAILS, claims.OPEN),
                                (0.05, claims.HOLDS, claims.HOLDS), (-0.05, claims.FAILS, claims.FAILS)):  # fmt: skip
        frames = {"digits": made({"one": lead, "other": 0.0})}
        one, many = claims.ledger(tuple(made_up[:1]), frames), claims.ledger(tuple(made_up), frames)
        assert set(one["verdict"]) == {single}
        assert set(many["verdict"]) == {joint}
        assert set(one["measured"]) == set(many["measured"])
        word = "holds" if lead > 0 else "fails"
        assert many["reason"].str.contains(f"it {word} by itself").all() == (joint == claims.OPEN)
        assert many["reason"].str.endswith("a note").all()


def test_no_claim_holds_by_chance():
    """Thirty-two claims about methods that are equal: in nineteen ledgers of twenty none is taken for true or false."""
    random, wrong = np.random.default_rng(5), 0
    for _ in range(25):
        parts = [
            made({"one": 0.0, "other": 0.0}, case=i).assign(accuracy=random.normal(0.7, 0.02, 20)) for i in range(32)
        ]
        made_up = [claims.Claim(f"c{i}", "", "arXiv:2403.12313", "primary", "",
                                claims.ahead("s", "one", "other", case=i), "s") for i in range(32)]  # fmt: skip
        wrong += set(claims.ledger(tuple(made_up), {"s": pd.concat(parts)})["verdict"]) != {claims.OPEN}
    assert wrong <= 5  # one or two are expected; more than five come once in a thousand


@pytest.mark.parametrize(
    ("lead", "within", "verdict"),
    [(0.0, 0.02, claims.HOLDS), (0.2, 0.02, claims.FAILS), (0.02, 0.02, claims.OPEN), (-0.2, 0.02, claims.FAILS),
     (-0.02, 0.02, claims.OPEN), (0.0, 1e-4, claims.OPEN)],
)  # fmt: skip
def test_equal(lead, within, verdict):
    """Both ends count, on either side; an interval far wider than the claim, around zero, refutes nothing."""
    other = made({"one": 0.5 - lead, "other": 0.0}, epsilon=3.0)
    frames = {"digits": pd.concat([made({"one": lead, "other": 0.0}, epsilon=1.0), other])}
    assert claims.equal("digits", "one", "other", within, epsilon=1.0)(frames).verdict == verdict


def test_both_needs_all():
    good, bad, open_ = ({"digits": made({"one": lead, "other": 0.0})} for lead in (0.1, -0.1, 0.0))
    judge = claims.ahead("digits", "one", "other")
    for part, verdict in ((good, claims.HOLDS), (bad, claims.FAILS), (open_, claims.OPEN)):
        mixed = claims.both(lambda *_: judge(good), lambda *_, part=part: judge(part))
        assert mixed({}).verdict == verdict


def test_the_worst_part_decides():
    """What fails goes before what waits, and that before what is open, in whatever order they stand."""
    said = {word: claims.Verdict(f"seen {word}", word, f"why {word}") for word in verdicts.VERDICTS}
    judges = {word: lambda *_, found=found: found for word, found in said.items()}
    for worst, rest in ((claims.FAILS, (claims.WAITS, claims.OPEN, claims.HOLDS)),
                        (claims.WAITS, (claims.OPEN, claims.HOLDS)), (claims.OPEN, (claims.HOLDS,))):  # fmt: skip
        for order in ((*rest, worst), (worst, *rest)):
            found = claims.both(*(judges[word] for word in order))({})
            assert (found.verdict, found.reason) == (
                worst,
                f"1 of {len(order)} parts hold; part {order.index(worst) + 1}: why {worst}",
            )
            assert all(f"seen {word}" in found.measured for word in order)


def test_labels_choose_the_rows():
    """No privacy is a label like the others, written as nothing."""
    frame = pd.concat([made({"one": 0.1, "other": 0.0}, epsilon=1.0), made({"one": -0.1, "other": 0.0}, epsilon=None)])
    judge = claims.ahead("digits", "one", "other", epsilon=None)
    assert judge({"digits": frame}).verdict == claims.FAILS
    assert judge({"digits": frame}).measured.startswith("accuracy of one above other (no privacy): −0.1")
    assert len(claims.chosen(frame, epsilon=1.0)) == 20


def test_one_method_s_two_measures():
    frame = made({"fedlpp": 0.0}).assign(accuracy_received=lambda rows: rows["accuracy"] - 0.05)
    assert claims.shows("digits", "fedlpp", "accuracy", "accuracy_received")({"digits": frame}).verdict == claims.HOLDS


def knob(values, law, seeds=6):
    """Runs of one method over a knob: noise of the given law, learning rates that differ."""
    random = np.random.default_rng(1)
    return pd.DataFrame(
        [
            {"method": "one", "seed": s, "knob": v, "lr": lr, "noise": law(v * lr) * random.uniform(0.99, 1.01),
             "accuracy": 0.8 + 0.1 * s / seeds}
            for s in range(seeds) for v, lr in zip(values, (0.3, 0.8, 0.6), strict=True)
        ]
    )  # fmt: skip


@pytest.mark.parametrize(("power", "verdict"), [(4.0, claims.HOLDS), (2.0, claims.FAILS)])
def test_how_an_energy_grows(power, verdict):
    """The learning rate that goes with a setting is part of what scales the noise."""
    frames = {"s": knob((1.0, 2.0, 4.0), lambda x: 3 * x**4)}
    found = claims.grows("s", "one", "noise", "knob", power)(frames)
    assert found.verdict == verdict
    assert "power 4.0" in found.measured
    assert (
        claims.grows("s", "one", "noise", "knob", power)({"s": knob((1, 2, 4), lambda x: 0.0)}).verdict == claims.FAILS
    )


def test_one_value_or_one_seed_has_no_slope():
    """It is not told from too little; nor is what was not measured taken for something, or for nothing."""
    judge = claims.grows("s", "one", "noise", "knob", 4.0)
    whole: Any = knob((1, 2, 4), lambda x: x**4)
    for part in (whole[whole["knob"] == 2], whole[whole["seed"] == 0], whole.assign(noise=np.nan)):
        found = judge({"s": part})
        assert (found.verdict, found.reason) == (claims.OPEN, "noise of one needs two seeds and two values of knob")
    missed = knob((1, 2, 4), lambda x: 0.0)
    missed.loc[0, "noise"] = np.nan
    assert claims.none("s", "one", "noise")({"s": missed}).verdict == claims.OPEN


def powers(powers, method="one"):
    """Runs of one method whose noise grows with a power of its own in each seed."""
    return pd.DataFrame(
        [{"method": method, "seed": s, "knob": v, "lr": lr, "noise": 7 * (v * lr) ** power, "epsilon": 1.0}
         for s, power in enumerate(powers) for v, lr in ((1.0, 0.3), (2.0, 0.8), (4.0, 0.6), (0.0, 0.1))]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("mean", "half", "power", "verdict"),
    [(2.0, 0.01, 2.0, claims.HOLDS), (2.0, 0.09, 2.0, claims.HOLDS), (1.93, 0.01, 2.0, claims.HOLDS),
     (2.07, 0.01, 2.0, claims.HOLDS), (2.08, 0.05, 2.0, claims.OPEN), (1.92, 0.05, 2.0, claims.OPEN),
     (2.0, 0.2, 2.0, claims.OPEN), (2.13, 0.01, 2.0, claims.FAILS), (1.5, 0.01, 2.0, claims.FAILS),
     (4.15, 0.02, 4.0, claims.HOLDS)],
)  # fmt: skip
def test_the_slope_s_interval_decides(mean, half, power, verdict):
    """Holds with the whole interval within 5 % of the claimed power, fails with none of it, on either side."""
    apart = half / (2.5706 * np.sqrt(6 / 5) / np.sqrt(6))  # Student's t with five degrees of freedom
    frame = powers(mean + apart * np.array([-1, 1, -1, 1, -1, 1]))
    frame = pd.concat([frame, powers([9.0] * 6, "other"), powers([9.0] * 6).assign(epsilon=3.0)])
    found = claims.grows("s", "one", "noise", "knob", power, epsilon=1.0)({"s": frame})
    assert found.verdict == verdict
    assert f"power {mean:.2f} ± {half:.2f} of knob × learning rate, 6 seeds" in found.measured


def test_what_is_zero():
    assert claims.none("s", "one", "noise")({"s": knob((1, 2, 4), lambda x: 0.0)}).verdict == claims.HOLDS
    assert claims.none("s", "one", "noise")({"s": knob((1, 2, 4), lambda x: 1e-9)}).verdict == claims.FAILS


def test_one_run_that_is_not_zero_is_enough():
    """Of the method and the setting that are asked for, and of no other; a number below zero is none either."""
    frame = knob((1, 2, 4), lambda x: 0.0).assign(epsilon=1.0)
    others = [knob((1, 2, 4), lambda x: 1.0).assign(epsilon=1.0, method="other"),
              knob((1, 2, 4), lambda x: 1.0).assign(epsilon=3.0)]  # fmt: skip
    judge = claims.none("s", "one", "noise", epsilon=1.0)
    assert judge({"s": pd.concat([frame, *others])}).verdict == claims.HOLDS
    for value in (1e-12, -1e-12):
        spoiled = frame.assign(noise=[0.0] * (len(frame) - 1) + [value])
        assert judge({"s": spoiled}).verdict == claims.FAILS


@pytest.mark.parametrize(("lift", "verdict"), [(0.0, claims.HOLDS), (0.2, claims.FAILS)])
def test_a_knob_that_moves_nothing(lift, verdict):
    frame = knob((1.0, 2.0, 4.0), lambda x: x)
    frame["accuracy"] += lift * (frame["knob"] == 4.0)
    other = frame.assign(method="other", accuracy=frame["knob"])
    found = claims.unmoved("s", "one", "knob", (1.0, 4.0), 0.03)({"s": pd.concat([frame, other])})
    assert found.verdict == verdict
    assert f"at knob 4 above 1: {lift:+.3f}" in found.measured


def test_a_frame_that_is_not_finished_says_so():
    """A method without runs in the setting is named, and nothing is judged."""
    frames = {"digits": made({"one": 0.1, "other": 0.0}, epsilon=1.0)}
    found = claims.ahead("digits", "one", "third", epsilon=1.0)(frames)
    assert (found.verdict, "third" in found.reason, "one" in found.reason) == (claims.WAITS, True, False)
    assert claims.ahead("digits", "one", "other", epsilon=3.0)(frames).reason.count("one, other") == 1


def test_too_few_seeds_are_refused():
    with pytest.raises(ValueError, match="seeds"):
        claims.ahead("digits", "one", "other")({"digits": made({"one": 0.1, "other": 0.0}, seeds=1)})


def test_the_published_claims():
    """At least 25, each with a source of the table's or its own, each measured by a study that has its cases."""
    assert len(CLAIMS) >= 25
    assert len({claim.slug for claim in CLAIMS}) == len(CLAIMS)
    empty = claims.ledger(CLAIMS, {})
    assert set(empty["verdict"]) == {claims.OPEN, claims.WAITS}
    assert all("was not run" in reason for reason, name in zip(empty["reason"], empty["command"], strict=True) if name)
    rng = np.random.default_rng(0)
    frames = {}
    for name in {claim.study for claim in CLAIMS if claim.study}:
        rows = [
            {"method": case.method.slug, "seed": seed, **case.labels, "accuracy": rng.random(),
             "accuracy_received": rng.random(), "sharpness": rng.random(), "noise_B": rng.random(),
             "noise_BA": rng.random(), "lr": 0.3}
            for case in study.STUDIES[name].cases for seed in range(3)
        ]  # fmt: skip
        frames[name] = pd.DataFrame(rows)
    judged = claims.ledger(CLAIMS, frames)
    assert not judged["reason"].str.contains("was not run").any()
    assert not judged["reason"].str.contains("yet").any()
    assert all(text != "–" for text, name in zip(judged["measured"], judged["command"], strict=True) if name)
    known = " ".join(row.source for row in methods.ALL.values())
    assert all(claim.source in known for claim in CLAIMS)


def test_the_committed_page_is_that_of_the_committed_frames():
    """Every verdict on the page and in the table is judged anew."""
    script = runpy.run_path(str(ROOT / "scripts" / "claims.py"))
    frames = study.frames(ROOT / "results")
    table: Any = claims.ledger(CLAIMS, frames)
    assert script["page"](table, frames) == (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
    assert table.to_csv(index=False) == (ROOT / "results" / "claims.csv").read_text(encoding="utf-8")
    judged = table[table["command"] == "fedlora-lab study digits"]
    assert (judged["measured"] != "–").sum() >= 10


def test_claims_that_read_stale_rows_are_found():
    """By the judges themselves: a claim reads a method's rows when it cannot be judged without them."""
    frames = {"digits": made({"la-lora": 0.1, "rolora": 0.0, "fedlora": 0.0}, epsilon=1.0)}
    told = [
        claims.Claim(slug, slug, "arXiv:1", "primary", "", claims.ahead("digits", *pair, epsilon=1.0), "digits")
        for slug, pair in (("reads", ("la-lora", "rolora")), ("does-not", ("rolora", "fedlora")))
    ]
    stale = claims.Stale("digits", "la-lora", "measured wrong")
    assert [claim.slug for claim in claims.readers(stale, tuple(told), frames)] == ["reads"]
    assert claims.readers(claims.Stale("sentiment", "la-lora", ""), tuple(told), frames) == []


def test_the_claims_page_says_what_waits():
    page = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
    waits = page.split("## Waits for new measurement")[1].split("## Holds")[0]
    assert "`digits-clients`, all rows of `la-lora`" in waits
    assert "its filter acted twice" in waits
    assert "random streams" in waits
