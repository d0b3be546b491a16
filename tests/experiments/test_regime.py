"""The regime map: made-up cells whose leads are known, the figure of them, and what the guide says
of a situation near them."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from commands import call
from scipy.stats import t

import fedlora_lab as fl
from fedlora_lab import experiments as study
from fedlora_lab.experiments import regime
from fedlora_lab.experiments.studies import FAMILIES, STUDIES

RESULTS = Path(__file__).resolve().parents[2] / "results"
PREDICTION: Any = pd.read_csv(RESULTS / "regime-prediction.csv")
START, ROOM = 0.5, 0.25  # a half and a quarter: shares are exact


def measured(leads, prediction=PREDICTION, spread=0.01) -> Any:
    """Frames as `study_frame` gives them: in each cell the best row gains ROOM, and leads(cell) are
    the shares of it by which fedlora, rolora and balanced-lora differ from ffa-lora."""
    rng, found = np.random.default_rng(0), []
    cases = [x for name in regime.REGIME for x in STUDIES[name].cases if x.method.slug == "fedlora"]
    for cell, case in zip(prediction.to_dict("records"), cases, strict=False):
        gains = dict(zip(("fedlora", "rolora", "balanced-lora"), leads(cell), strict=True))
        gains["ffa-lora"], top = 0.0, max(0.0, *leads(cell))
        for slug in FAMILIES:
            own = rng.normal(0, spread * ROOM, 6)
            end = START + ROOM * (1 + gains[slug] - top) + own - own.mean()
            head = {"study": f"regime-{cell['unit']}", "method": slug, **case.labels, "lr": 0.1}
            head |= {"at_edge": False, "seed": range(6), "before_accuracy": START}
            found.append(pd.DataFrame({**head, "accuracy": end, "spent": cell["epsilon"]}))
    return pd.concat(found, ignore_index=True)


def lead_at(unit, amplification):
    return -0.3 * np.log10(amplification / regime.BOUNDARY[unit])


def by_the_form(cell):
    """Both factors ahead left of the boundary and behind right of it, along a line; turns half as
    far; a balanced start ahead of the better of the two by a tenth."""
    lead = lead_at(cell["unit"], cell["amplification"])
    return lead, lead / 2, max(lead, 0.0) + 0.1


@pytest.fixture(scope="module")
def cells() -> Any:
    """As predicted; the first cell, of one factor, is a miss, and the second undecided."""

    def leads(cell):
        if cell["amplification"] == PREDICTION["amplification"][0]:
            return 0.2, 0.1, 0.3
        return (
            (0.0, 0.0, 0.1) if cell["rounds"] == 5 and cell["epsilon"] == 1 else by_the_form(cell)
        )

    return study.map_cells(measured(leads), PREDICTION)


@pytest.mark.slow
def test_a_lead_is_a_share_of_its_cells_room(cells):
    """Each row's mean and two intervals; the verdicts; where a collapsed run is counted."""
    assert len(cells) == len(PREDICTION) * len(regime.PAIRS) == 64 * 4
    both = cells[cells["pair"] == "both"].reset_index(drop=True)
    assert np.allclose(cells["room"], ROOM) and (cells["collapsed"] == 0).all()
    last = both.iloc[-1]
    assert last["mean"] == pytest.approx(lead_at(last["unit"], last["amplification"]))
    half = (last["high"] - last["low"]) / 2
    ratio = t.ppf(1 - 0.025 / 64, 5) / t.ppf(0.975, 5)
    assert (last["high_together"] - last["low_together"]) / 2 == pytest.approx(ratio * half)
    assert (both["leader"][0], both["verdict"][0]) == ("both factors", "miss")
    assert (both["leader"][1], both["verdict"][1]) == ("cannot tell", "not decided")
    close = both["predicted"] == "too close"
    assert (both["verdict"] == "too close")[close].all() and set(both["verdict"][~close][2:]) == {
        "hit",
        "not decided",
    }
    balanced = cells[cells["pair"] == "balanced"].iloc[-1]
    assert balanced["mean"] == pytest.approx(0.1) and balanced["leader"] == "balanced start"


def test_the_best_of_the_others_is_not_chosen_by_the_numbers_it_is_compared_with():
    """Three equal rows and a fourth: the interval reaches down to the largest of the three leads'
    intervals, each of a third of the error."""
    one = PREDICTION[:1]
    frame = measured(lambda _: (0.0, 0.0, 0.0), one, spread=0.3)
    row: Any = study.map_cells(frame, one).query("pair == 'balanced'").iloc[0]
    table = frame.pivot_table("accuracy", "seed", "method")
    room = (table.mean() - START).max()
    gaps = [(table["balanced-lora"] - table[slug]) / room for slug in FAMILIES[:3]]
    point = t.ppf(1 - 0.025 / 3, 5)
    low = [gap.mean() - point * gap.std() / np.sqrt(6) for gap in gaps]
    high = [gap.mean() + point * gap.std() / np.sqrt(6) for gap in gaps]
    assert (row["low"], row["high"]) == pytest.approx((min(low), min(high)))


def test_cells_without_room_or_a_row_decide_nothing():
    """Nobody learned in one cell, a row is missing in the other; a run that fell is counted."""
    two: Any = PREDICTION[:2]
    frame = measured(by_the_form, two)
    flat = frame["rounds"] == 20
    frame.loc[flat, "accuracy"] = START + 0.01 * (frame.loc[flat, "seed"] - 2.5)
    found: Any = study.map_cells(frame, two)
    first = found[found["rounds"] == 20]
    assert first["mean"].isna().all() and set(first["leader"]) == {"nobody learned"}
    assert set(first.loc[first["pair"] == "both", "verdict"]) == {"not decided"}
    frame.loc[
        (frame["rounds"] == 5) & (frame["method"] == "rolora") & (frame["seed"] == 3), "accuracy"
    ] = START - 0.1
    fell: Any = study.map_cells(frame, two).query("rounds == 5").set_index("pair")["collapsed"]
    assert dict(fell) == {"both": 0, "turns": 1, "turns, both": 1, "balanced": 1}
    gone = frame[(frame["rounds"] == 5) | (frame["method"] != "rolora")]
    assert set(study.map_cells(gone, two)["rounds"]) == {5}


@pytest.mark.slow
def test_the_map_of_the_package_is_that_of_the_results():
    """Else scripts/regime_map.py has to be run again."""
    ours, theirs = study.measured_cells(), regime.read_map(RESULTS)
    assert list(ours.columns)[-14:] == list(theirs.columns)[-14:]
    assert list(ours["leader"]) == list(theirs["leader"])
    for name in ("mean", "low_together", "high_together"):
        one, other = (np.asarray(x[name], float) for x in (ours, theirs))
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def situation(noise, **plan):
    task = fl.tasks.digits(clients=100)
    privacy = fl.Privacy(unit="client", noise_multiplier=noise, delta=1e-3)
    return task, privacy, fl.Plan(rounds=40, participation=0.2, **plan)


def test_the_guide_is_asked_about_a_run_that_trains():
    """A plan without rounds ended in a division by zero."""
    with pytest.raises(ValueError, match=r"^rounds=0: expected at least 1"):
        fl.guide(*situation(0.5)[:2], fl.Plan(rounds=0))


def test_the_guide_answers_by_the_cells_near(cells):
    """By the line through the cells of its unit, at its own amplification, with the nearest of them
    named; outside of them by the closed form."""
    little, much = fl.guide(*situation(0.5), cells=cells), fl.guide(*situation(2.5), cells=cells)
    assert (little.take, much.take) == ("balanced-lora", "balanced-lora")
    for found, told in ((little, "both factors lead one by"), (much, "one factor leads both by")):
        lead = 100 * abs(lead_at("client", found.amplification))
        assert f"{told} {lead:+.0f} % of the room" in str(found) and "\n" not in str(found)
        assert "a balanced start adds +10 % of the room" in str(found)
        own = cells.query("unit == 'client' and pair == 'both' and task == 'digits'")
        away = np.abs(np.log(own["amplification"] / found.amplification))
        assert set(found.cells.index) == set(away.nsmallest(5, keep="first").index)
    plain = cells.copy()
    plain.loc[plain["pair"] == "balanced", ["mean", "low", "high"]] -= 0.2
    found = fl.guide(*situation(2.5), cells=plain)
    assert found.take == "ffa-lora" and str(found).endswith(
        "by +10 % of the room (95 % interval +10 to +10): take FFA-LoRA."
    )
    far = fl.guide(*situation(300.0), cells=cells)
    assert far.take is None and far.sentence.startswith("Outside what was measured: 0 of 23 cells")
    none = fl.guide(*situation(0.5), cells=cells[:0])
    assert none.sentence.startswith("No cell of the client unit has been measured yet; by the clos")
    assert none.sentence.endswith("both factors should lead one.")


def test_the_guide_says_that_it_cannot_tell(cells):
    """Where the cells near disagree; where the noise is not known; where there is none."""
    mixed = cells.copy()
    mixed["mean"] *= np.where(np.arange(len(mixed)) // 4 % 2, 1, -1)
    found = fl.guide(*situation(0.5), cells=mixed)
    assert found.take is None and found.sentence.startswith("Cannot tell: by the line")
    task, privacy, plan = situation(0.5, server_optimizer=fl.Adam())
    unknown = fl.guide(task, privacy, plan, cells=cells)
    assert unknown.predicted == "cannot tell" and unknown.sentence.startswith("Cannot tell: the no")
    free = fl.guide(task, None, plan, cells=cells)
    assert free.amplification == 0 and free.sentence.startswith(
        "Outside what was measured: every c"
    )


@pytest.mark.slow
def test_the_command_answers_as_the_function_does(capsys):
    """With the task's clients, the adapter's rank and the noise that the options say."""
    given = "--clients=100 --rank=16 --rounds=40 --participation=0.2 --unit=client --epsilon=20"
    assert call("guide", "digits", *given.split(), "--delta=1e-3", "--accountant=rdp") == 0
    task, _, plan = situation(0.5, local_steps=5, batch=16)
    privacy = fl.Privacy(unit="client", delta=1e-3, accountant="rdp")
    privacy = privacy.calibrate(epsilon=20, task=task, plan=plan)
    wanted = fl.guide(task, privacy, plan, fl.Lora(rank=16))
    assert capsys.readouterr().out.strip() == str(wanted)
