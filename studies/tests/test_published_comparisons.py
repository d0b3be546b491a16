"""Published comparisons: their numbers are computed anew, and the page says what came out."""

from typing import Any

import pandas as pd
import pytest

from fedlora_lab._utils.markdown import fill_blocks
from fedlora_lab.recipes.tuned_rates import OUTPUT_VARIANCE
from studies import ROOT, published, table

RUNS: Any = pd.read_csv(published.FRAME)
WITH_NOISE = RUNS.query("mover == 'both' and epsilon > 0")


def decided(runs: Any) -> Any:
    """Those in which rho takes a side and the published numbers have a winner."""
    return runs.query("by_rho != 'open' and ahead in ('moved', 'frozen')")


@pytest.mark.every(3)
@pytest.mark.parametrize("place", [0, 13, 18, 23, 31, 36, 40])
def test_the_frame_is_that_of_the_settings(place):
    """Calibrated and published noise multipliers, a grid, AdamW, turns, and no privacy; the frame
    and the study's own numbers against the formula of the page."""
    one, row = published.comparisons()[place], RUNS.iloc[place]
    assert (one.source, one.data, one.epsilon) == (row["source"], row["data"], row["epsilon"])
    times = one.releases if one.mover == "both" else one.releases // 2
    for (end, pick), computed in zip((("low", min), ("high", max)), one.numbers(), strict=True):
        sigma = row["noise_multiplier"]
        tau = (
            pick(one.rate)
            * (1 if one.unit == "adam" else sigma * pick(one.clip) / one.batch)
            / one.averaged**0.5
        )
        rho = 3 * one.d_in * times * tau**2
        v = one.scaling**2 * one.rank / 3 * times * tau**2 * (1 + rho)
        expected = (rho, v) if one.epsilon else (0, 0)
        assert (row[f"rho_{end}"], row[f"v_{end}"]) == pytest.approx(expected, rel=5e-3)
        assert computed == pytest.approx(expected, rel=5e-3)
    if one.epsilon and one.unit != "adam":
        assert one.sigma == pytest.approx(row["noise_multiplier"], rel=1e-3)


def test_what_a_number_says_of_a_grid_and_who_led():
    """Intervals decide where there are any, and single numbers a point apart are level."""
    assert published.side((0.1, 0.3), 0.35, 0.35) == "moved"
    assert published.side((0.1, 0.4), 0.35, 0.35) == "open"
    assert published.side((2.5, 3.5), published.MOVE, published.REST) == "open"
    assert published.side((4.1, 90), published.MOVE, published.REST) == "frozen"
    words = {"source": "", "tag": "", "setting": "", "data": ""}

    def outcome(moved: list[float], frozen: list[float]) -> str:
        return published.Comparison(**words, moved=moved, frozen=frozen).outcome()

    assert outcome([50.0], [51.0]) == "level" and outcome([50.0], [51.1]) == "frozen"
    assert outcome([60.0, 3.0], [56.0, 4.0]) == "open"
    assert outcome([62.0, 3.0], [56.0, 4.0]) == "moved"


def test_the_page_says_what_the_frame_says():
    page = published.PAGE.read_text("utf-8")
    assert fill_blocks(page, {"published": published.table(RUNS)}) == page
    words = " ".join(page.split())
    sgd = decided(WITH_NOISE.query("unit != 'adam'"))
    named = [(sgd[rule] == sgd["ahead"]).sum() for rule in ("by_rho", "by_v")]
    frozen = (sgd["ahead"] == "frozen").sum()
    said = "of {} published comparisons with SGD that have a winner, ρ names it in {}, v in {}, and"
    assert said.format(len(sgd), *named) + f" *always freeze A* in {frozen}." in words
    wider = sgd["v_high"].le(0.5).map({True: "moved", False: "frozen"})
    assert f"the {named[1]} of v with SGD would be {(wider == sgd['ahead']).sum()}." in words
    own = RUNS[RUNS["source"].str.contains("2602.19926")]
    assert f"v is at most {own['v_high'].max():.3f}, at the largest rate" in words
    assert own.query("mover == 'both'")["v_high"].le(0.004).sum() == 3
    rest = sgd[~sgd["source"].isin(own["source"])]
    right = (rest["by_v"] == rest["ahead"]).sum()
    assert f"Without these three v names {right} of {len(rest)} winners with SGD" in words
    fedsvd = sgd[sgd["source"].str.contains("2505.12805")]
    span = f"v = {fedsvd['v_low'].min():.2f} to {fedsvd['v_high'].max():.2f}"
    assert len(fedsvd) == 5 and f"five comparisons with a winner lie at {span}" in words
    assert fedsvd["ahead"].eq("frozen").all()
    assert f"{len(RUNS)} published comparisons" in words and RUNS["epsilon"].eq(0).sum() == 9
    mnli = RUNS[RUNS["source"].str.contains("2403.12313")].iloc[0]
    assert f"v runs from {mnli['v_low']:.3f} to {mnli['v_high']:.0f} on MNLI" in words
    assert OUTPUT_VARIANCE == 0.35


def test_the_ends_of_the_open_table_lie_where_the_page_says():
    words = " ".join(published.PAGE.read_text("utf-8").split())
    at_ends = {
        (card["method"], name): found["output_variance"]
        for card in table.load_cards()
        for name, found in card["settings"].items()
        if name.startswith("digits") and found["output_variance"] is not None
    }
    found = pd.Series(at_ends).sort_values()
    said = f"on digits between {found.min():.2f} and {found.max():.1f}."
    assert said in words and found.index[0][0] == "fedrpca"
    assert f"FedRPCA's at {found.min():.3f}, and five more are below 0.042" in words
    assert [found.lt(limit).sum() for limit in (0.033, 0.042)] == [1, 6]
    evidence = (ROOT / "docs" / "evidence" / "04.md").read_text("utf-8")
    on_digits = f"all rows of the open table on digits {found.min():.2f} to {found.max():.1f}"
    assert on_digits in evidence and found.min() / 0.35 > 1 / 12 and found.max() / 0.35 < 12
    on_sentences = [
        settings["sentences, example, epsilon 8"]["output_variance"]
        for settings in (card["settings"] for card in table.load_cards())
        if settings["sentences, example, epsilon 8"]["output_variance"] is not None
    ]
    assert f"on sentences {min(on_sentences):.2f} to {max(on_sentences):.0f}" in evidence
