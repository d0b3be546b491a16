"""Where a range of rates ends: the committed predictions, a cell's runs, and the judgement."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

import fedlora_lab as fl
from fedlora_lab.recipes.tuned_rates import OUTPUT_VARIANCE, noise_taken_up
from studies import RESULTS, ends, rates

CELLS = ends.cells()


def test_the_committed_ends_are_those_of_the_rules():
    """At the end by v its variance is the bound, also at two rates for the two factors; the middle
    lies between the rivals. Every cell and method is there."""
    table: Any = pd.read_csv(ends.PREDICTED).set_index(["cell", "method"])
    assert {*table.index} == {(cell, slug) for cell in CELLS for slug in ends.METHODS}
    case = CELLS["scaling 8, rank 1"]
    task, privacy, plan = ends.setting(case, seed=0)
    for slug in ("ffa-lora", "la-lora"):
        row = table.loc[("scaling 8, rank 1", slug)]
        at_end = plan.replace(lr=ends.rates_of(slug, row["v"]))
        noise = noise_taken_up(task, slug, privacy, at_end, fl.Lora(**case.lora))
        assert noise.value == pytest.approx(OUTPUT_VARIANCE, rel=2e-3)
        assert row["middle"] == pytest.approx((row["v"] * row["u"]) ** 0.5, rel=2e-3)
    known = table[["v", "u"]].notna().all(axis=1)
    assert {cell for cell, _ in table.index[~known]} == {"no privacy"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:local_steps=1")
def test_a_cell_goes_on_where_it_was_left_and_scores_two_parts(tmp_path, monkeypatch):
    """Of 180 and of 360 scans."""
    case = replace(CELLS["5 clients"], plan={"rounds": 1, "local_steps": 1, "batch": 8})
    monkeypatch.setattr(ends, "STORE", tmp_path / "ends.jsonl")
    monkeypatch.setattr(ends, "HALF_OCTAVES", np.zeros(1))
    monkeypatch.setattr(ends, "METHODS", ("ffa-lora", "la-lora"))
    first = ends.run_cell("5 clients", case, seeds=[0])
    lines = ends.STORE.read_text("utf-8")
    assert ends.run_cell("5 clients", case, seeds=[0]).equals(first)
    assert ends.STORE.read_text("utf-8") == lines and lines.count("\n") == 2
    right = first[["validation", "accuracy"]].to_numpy() * [180, 360]
    assert right == pytest.approx(right.round())


def test_a_rule_that_is_right_has_no_error():
    """Scores that fall three points at the predicted end of v: half an octave behind the last rate
    that is as good as the best."""
    table: Any = pd.read_csv(ends.PREDICTED)
    few = table[table["cell"].isin(["epsilon 1", "scaling 8, rank 4"])]
    rows = [
        {"cell": row.cell, "method": row.method, "lr": row.v * 2**step, "validation": score}
        for row in few.itertuples()
        for step, score in ((-1.5, 0.8), (-0.5, 0.8), (0.5, 0.74), (1.5, 0.3))
    ]
    found: Any = ends.judge(pd.DataFrame(rows), draws=100)
    assert found.loc["v", ["error", "low", "high"]].tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    assert found.loc["u", "low"] > 0.1


def test_the_page_says_what_the_settings_that_were_run_found():
    runs = pd.read_csv(RESULTS / "ends.csv")
    page = " ".join(rates.PAGE.read_text("utf-8").split())
    whole = runs.groupby(["cell", "method"]).size()
    assert (whole == len(ends.SEEDS) * len(ends.HALF_OCTAVES)).all()
    table = ends.with_measured(runs)
    for place, row in table.iterrows():
        cells = [_shown(row[name]) for name in ("found", *ends.RULES)]
        assert f"{fl.methods.get(place[1]).name} | {' | '.join(cells)} |" in page
    errors = ends.judge(runs)["error"]
    cells = " | ".join(f"{errors[rule]:.2f}" for rule in ends.RULES)
    assert f"| root mean square error, octaves | | | {cells} |" in page
    centre = runs["cell"].eq("scaling 2, rank 4") | ~runs["cell"].str.startswith("scaling")
    for rule in ("v", "u"):
        error, low, high = ends.judge(runs[~centre]).loc[rule]
        assert f"{error:.2f}" in page and f"[{low:.2f}, {high:.2f}]" in page
    off = np.log2(table[ends.RULES].div(table["found"], axis=0)).dropna()
    assert f"Of {len(off)} ends {(off['v'].abs() <= 0.5).sum()} lie within" in page
    nearer = (off**2).groupby("cell").mean().pow(0.5)
    assert [*nearer.index[nearer["v"] > nearer["u"]]] == ["epsilon 1"]
    at_one = nearer.loc["epsilon 1"]
    assert f"by {at_one['u']:.2f} to {at_one['v']:.2f} octaves" in page
    assert f"The farthest is {off['v'].abs().max():.2f} octaves away" in page
    means = off["v"].groupby("method").mean()
    assert f"RoLoRA ends {means['rolora']:.2f} octaves before" in page
    assert f"LA-LoRA {-means['la-lora']:.2f} octaves after" in page


def _shown(rate: float) -> str:
    return "none" if math.isnan(rate) else f"{rate:.3f}" if rate < 1 else f"{rate:.3g}"
