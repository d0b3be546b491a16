"""Where a range of rates ends: the committed predictions, a cell's runs, and the judgement."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

import fedlora_lab as fl
from fedlora_lab.recipes.tuned_rates import OUTPUT_VARIANCE, noise_taken_up
from studies import RESULTS, ROOT, ends, rates

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
    monkeypatch.setattr(ends, "STORE", tmp_path / "ends")
    monkeypatch.setattr(ends, "HALF_OCTAVES", np.zeros(1))
    monkeypatch.setattr(ends, "METHODS", ("ffa-lora", "la-lora"))
    first = ends.run_cell("5 clients", case, seeds=[0])
    kept = {path: path.read_bytes() for path in ends.STORE.rglob("rounds.jsonl")}
    assert ends.run_cell("5 clients", case, seeds=[0]).equals(first) and len(kept) == 2
    assert {path: path.read_bytes() for path in ends.STORE.rglob("rounds.jsonl")} == kept
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
    for (_, slug), row in table.iterrows():  # type: ignore
        cells = [_shown(row[name]) for name in ("found", *ends.RULES)]
        assert f"{fl.methods.get(str(slug)).name} | {' | '.join(cells)} |" in page
    errors = ends.judge(runs)["error"]
    cells = " | ".join(f"{errors[rule]:.2f}" for rule in ends.RULES)
    assert f"| root mean square error, octaves | | | {cells} |" in page
    centre = runs["cell"].eq("scaling 2, rank 4") | ~runs["cell"].str.startswith("scaling")
    for rule in ("v", "u"):
        error, low, high = ends.judge(runs[~centre]).loc[rule]
        assert f"{error:.2f}" in page and f"[{low:.2f}, {high:.2f}]" in page
    ratios: Any = table[ends.RULES].div(table["found"], axis=0).dropna()
    off = np.log2(ratios)
    assert f"Of {len(off)} ends {(off['v'].abs() <= 0.5).sum()} lie within" in page
    nearer = (off**2).groupby("cell").mean().pow(0.5)
    assert [*nearer.index[nearer["v"] > nearer["u"]]] == ["epsilon 1"]
    at_one = nearer.loc["epsilon 1"]
    assert f"by {at_one['u']:.2f} to {at_one['v']:.2f} octaves" in page
    assert f"The farthest is {off['v'].abs().max():.2f} octaves away" in page
    late = off["v"].filter(like="scaling 8", axis=0)
    assert (late < 0).sum() == 10 and len(late) == 12 and "at α/r = 8 ten of twelve end" in page
    assert f"of all twelve there is {-late.mean():.2f} octaves after it" in page
    seen = ["scaling 2, rank 4", "epsilon 1", "scaling 0.5, rank 4", "scaling 8, rank 1"]
    new = off.drop(seen, level="cell").pow(2).mean() ** 0.5
    assert f"eight settings v is off by {new['v']:.2f} octaves, and u by {new['u']:.2f}." in page
    error, largest = 2 ** errors["v"], 2 ** off["v"].abs().max()
    assert f"by a factor of {error:.1f} in the root mean square and of {largest:.1f} at" in page
    means = off["v"].groupby("method").mean()
    assert f"RoLoRA ends {means['rolora']:.2f} octaves before" in page
    assert f"LA-LoRA {-means['la-lora']:.2f} octaves after" in page


def test_the_evidence_of_lesson_04_says_at_which_rho_the_range_of_fedlora_ends():
    """ρ goes with the square of the rate. Where v is the bound, 16/576 ρ (1 + ρ) is 0.35."""
    table: Any = ends.with_measured(pd.read_csv(RESULTS / "ends.csv"))
    at_the_bound = math.sqrt(0.25 + OUTPUT_VARIANCE * 576 / 16) - 0.5
    page = (ROOT / "docs" / "evidence" / "04.md").read_text("utf-8")
    for cell, said in (("scaling 2, rank 4", "about 3.3"), ("epsilon 1", "about 1.7")):
        row = table.loc[(cell, "fedlora")]
        rho = at_the_bound * (row["found"] / row["v"]) ** 2
        assert said == f"about {rho:.1f}" and page.count(said) == 1


def test_lesson_05_says_what_a_larger_rank_gains():
    """Each method at the rate that is best by validation; five seeds tell no gain from another."""
    runs = pd.read_csv(RESULTS / "ends.csv")

    def accuracy(method: str, scaling: str, rank: int) -> pd.Series:
        cell = f"scaling {scaling}, rank {rank}"
        here = runs[(runs["cell"] == cell) & (runs["method"] == method)]
        rate = here.groupby("lr")["validation"].mean().idxmax()
        return here[here["lr"] == rate].set_index("seed")["accuracy"]

    page = (ROOT / "docs" / "evidence" / "05.md").read_text("utf-8")
    gains: dict[str, list] = {"ffa-lora": [], "fedlora": []}
    for scaling in ("0.5", "2", "8"):
        for method, several in gains.items():
            several.append(100 * (accuracy(method, scaling, 16) - accuracy(method, scaling, 1)))
        apart = gains["ffa-lora"][-1] - gains["fedlora"][-1]
        assert 0 in fl.theory.mean_band(apart.to_numpy(), 2.776) and len(apart) == len(ends.SEEDS)
    means = {fl.methods.get(slug).name: [one.mean() for one in x] for slug, x in gains.items()}
    (one, first), (two, second) = means.items()
    said = f"gains {one} {min(first):.1f} to {max(first):.1f} points and {two} {min(second):.1f} to"
    assert f"{said} {max(second):.1f}" in page


def test_the_page_says_what_the_texts_found():
    """Of each setting whole seeds are there, the first ones; the page says how many."""
    runs = pd.read_csv(RESULTS / "ends-texts.csv")
    page = " ".join(rates.PAGE.read_text("utf-8").split())
    seeds = runs.groupby("cell")["seed"].nunique()
    assert [*seeds.index] == sorted(cell for cell in CELLS if "text" in cell or "senti" in cell)
    assert (runs.groupby(["cell", "method", "seed"]).size() == len(ends.HALF_OCTAVES)).all()
    assert (runs.groupby("cell")["seed"].max() == seeds - 1).all()
    assert f"{len(runs):,} runs (`results/ends-texts.csv`)" in page
    table = ends.with_measured(runs)
    for (cell, slug), row in table.iterrows():  # type: ignore
        cells = [_shown(row[name]) for name in ("found", *ends.RULES)]
        assert f"{fl.methods.get(str(slug)).name} | {' | '.join(cells)} |" in page
        task, scaling = str(cell).split(", scaling ")
        label = {"sentiment": "short texts", "texts-768": "768 inputs"}[task]
        assert f"| {label}, α/r = {scaling} | {seeds[cell]} | FedLoRA |" in page
    judged: Any = ends.judge(runs)
    intervals = {rule: "{:.2f} octaves [{:.2f}, {:.2f}]".format(*judged.loc[rule]) for rule in "vu"}
    said = f"v is off by {intervals['v']}, u by {intervals['u'].replace(' octaves', '')}, and"
    curvature = "{:.2f} [{:.2f}, {:.2f}]".format(*judged.loc["curvature"])
    assert f"{said} the curvature by {curvature}." in page
    factors = [f"{2**error:.1f}" for error in judged["error"]]
    assert "These are factors of {}, {} and {} in the rate.".format(*factors) in page
    of_task = {task: ends.judge(part)["error"] for task, part in _by_task(runs)}
    found = pd.Series(np.log2(table["found"]))
    around = found - found.groupby("method").transform("mean")
    assert f"is off by {(around**2).mean() ** 0.5:.2f} octaves, where v is off by" in page
    short, wide = of_task["sentiment"], of_task["texts-768"]
    said = "On short texts it is off by {:.2f} octaves (u {:.2f}, the curvature {:.2f})"
    assert said.format(*short) in page
    assert "At 768 inputs it is off by {:.2f} ({:.2f} and {:.2f})".format(*wide) in page
    said = "v is off by {}, the earlier rule by {} and the curvature by {}"
    assert said.format(*factors) in _finding()
    ratios: Any = table[ends.RULES].div(table["found"], axis=0)
    off = np.log2(ratios)
    errors = (off**2).groupby("cell").mean() ** 0.5
    nearer = errors.index[errors["v"] < errors["u"]]
    changed = [cell for cell in nearer if not str(cell).endswith("scaling 2")]
    words = dict(enumerate(("none", "one", "two", "three", "four", "five", "six")))
    said = f"It is in {words[len(changed)]} of these four settings. With all six, v is nearer in"
    assert f"{said} {words[len(nearer)]}." in page
    behind = words[len(errors) - len(nearer)]
    assert f"in {behind} of these six settings the earlier rule is nearer" in _finding()
    assert judged.loc["v", "high"] > judged.loc["u", "low"]  # "overlap"
    largest = errors.filter(like="scaling 8", axis=0)
    assert (largest["u"] < largest["v"]).all() and len(largest) == 2
    singles: Any = [
        np.log2((ends.with_measured(part)["found"] / table["found"]).dropna())
        for _, part in runs.groupby("seed")
    ]
    scatter: Any = (pd.concat(singles) ** 2).mean() ** 0.5
    assert f"The end of a single seed lies {scatter:.2f} octaves from that of all" in page
    too_large = 2 ** off["v"].filter(like="sentiment", axis=0).max()
    too_small = 2 ** -off["v"].filter(like="texts-768", axis=0).min()
    said = f"off by up to {too_large:.1f} times on short texts, mostly too large, by up to"
    assert f"{said} {too_small:.1f} times in layers" in page
    kinds: Any = [off["v"].filter(like=name, axis=0) for name in ("sentiment", "texts-768")]
    short, wide = kinds
    assert (short > 0).mean() > 0.5 > (wide > 0).mean(), "mostly"
    assert short.abs().max() == short.max() and wide.abs().max() == -wide.min()
    farthest = off["v"].abs()
    _, slug = farthest.idxmax()
    said = f"The farthest end is {farthest.max():.2f} octaves away: {fl.methods.get(slug).name}"
    assert said in page


def test_the_page_says_what_the_precision_of_the_frozen_maps_changes():
    """Fault: runs in another precision would be taken for runs of another seed."""
    runs = pd.read_csv(RESULTS / "ends-texts.csv")
    page = " ".join(rates.PAGE.read_text("utf-8").split())
    again = pd.read_csv(ends.BOTH_WAYS)
    columns = ["cell", "method", "seed", "lr"]
    both = runs.merge(again, on=columns, suffixes=("", "_again"))
    assert len(both) == len(again) and (both["precision"] == "float32").all()
    assert (again["precision"] == "bfloat16").all()
    in_full = (runs["precision"] == "float32").sum()
    assert f"{in_full} of the runs, the first of each setting, are in float32" in page
    apart = 100 * (both["validation_again"] - both["validation"]).abs()
    short, wide = apart.groupby(both["cell"].str.split(",").str[0]).mean()
    said = (
        f"Of {len(again)} runs that were made both ways the accuracy differs by {short:.1f} points"
    )
    assert f"{said} on average on short texts and by {wide:.1f} at 768 inputs" in page
    found = [
        ends.with_measured(both.assign(validation=both[name])[[*columns, "validation"]])["found"]
        for name in ("validation", "validation_again")
    ]
    largest = np.abs(np.log2(found[0] / found[1])).max()
    assert f"and their ends by {largest:.2f} octaves at most" in page


def _by_task(runs: pd.DataFrame) -> Any:
    return runs.groupby(runs["cell"].str.split(",").str[0])


def _finding() -> str:
    """The paragraph of studies/logbook.md on the registered test."""
    page = (ROOT / "studies" / "logbook.md").read_text("utf-8")
    (paragraph,) = [part for part in page.split("\n\n") if "[`results/ends.csv`]" in part]
    return " ".join(paragraph.split())


def test_the_page_says_how_simple_rules_would_have_done():
    """Rules that are fitted to the ends have a factor in the rate, for each method or for all."""
    table = ends.with_measured(pd.read_csv(RESULTS / "ends.csv")).dropna()
    lora = pd.DataFrame([fl.Lora(**CELLS[cell].lora).__dict__ for cell, _ in table.index])
    size = ((lora["alpha"] / lora["rank"]) ** 2 * lora["rank"]).to_numpy()
    is_frozen = table.index.get_level_values("method") == "ffa-lora"
    limit = np.where(is_frozen, rates.A_AT_REST, rates.BOTH_NOISED)
    linear = size * limit / table["u"] ** 2 / (9 * ends.INPUTS["digits"])  # at a rate of 1
    table["without rho"] = (OUTPUT_VARIANCE / linear) ** 0.5
    table["one rate"] = 1.0
    off: Any = np.log2(table.drop(columns="found").div(table["found"], axis=0))
    fitted = off - off.groupby("method").transform("mean")
    errors, left = off.pow(2).mean() ** 0.5, fitted.pow(2).mean() ** 0.5
    page = " ".join(rates.PAGE.read_text("utf-8").split())
    assert f"the grids lie, is off by {errors['middle']:.2f} octaves" in page
    assert f"fitted to the ends, is off by {left['one rate']:.2f}." in page
    assert f"bound fitted to each method, v is off by {left['without rho']:.2f}." in page
    assert f"all ends it is off by {off['v'].std(ddof=0):.2f} in place" in page
    assert f"fitted afterwards, leaves {left['curvature']:.2f} octaves" in page
    rho = (OUTPUT_VARIANCE / linear / table["v"] ** 2 - 1) / table["v"] ** 2
    at_ends = linear * table["found"] ** 2 * (1 + rho * table["found"] ** 2)
    shown = f"v is {at_ends.min():.2f} to {at_ends.max():.1f} at the ends"
    assert f"{shown}, {np.exp(np.log(at_ends).mean()):.2f} in the geometric mean" in page


def test_ffa_lora_at_another_scaling_is_nearly_the_same_run():
    """A fourfold alpha / r and a quarter of the rate: the scores are close, and so are the ends."""
    runs = pd.read_csv(RESULTS / "ends.csv")
    found = ends.with_measured(runs)["found"].unstack("method")
    scores = runs.groupby(["method", "cell", "lr"])["validation"].mean()["ffa-lora"]
    ratios, apart = [], []
    for rank in (1, 4, 16):
        for small, large in ((0.5, 2), (2, 8)):
            pair = [f"scaling {scaling:g}, rank {rank}" for scaling in (small, large)]
            ratios.append(found.loc[pair[0]] / found.loc[pair[1]])
            few, many = (scores[cell].sort_index().to_numpy() for cell in pair)
            # The rate times alpha / r starts an octave, two places, higher at the larger one.
            apart.append(100 * np.abs(few[2:] - many[:-2]).mean())
    table = pd.DataFrame(ratios)
    page = " ".join(rates.PAGE.read_text("utf-8").split())
    assert f"differ by {min(apart):.1f} to {max(apart):.1f} points" in page
    own = table.pop("ffa-lora")
    assert f"divides its ends by {own.min():.1f} to {own.max():.1f}:" in page
    assert f"and {table.min().min():.1f} to {table.max().max():.1f} is found" in page


def test_the_page_says_what_runs_without_noise_found():
    runs = pd.read_csv(RESULTS / "ends.csv").query("cell == 'scaling 2, rank 4'")
    control = pd.read_csv(ends.CONTROL).merge(
        runs, on=["method", "seed", "lr"], suffixes=("", "_noised")
    )
    assert len(control) == len(ends.BEYOND) * len(ends.SEEDS)
    found = ends.with_measured(runs)["found"].droplevel("cell")
    page = " ".join(rates.PAGE.read_text("utf-8").split())
    means = control.groupby("method")[["accuracy", "accuracy_noised"]].mean()
    for slug, rate in ends.BEYOND.items():
        assert f"{rate:g}, {np.log2(rate / found[slug]):.1f} octaves behind" in page
        quiet, noised = 100 * means.loc[slug]
        assert f"{quiet:.0f} % of the test scans without noise and {noised:.0f} % with" in page or (
            f"reads {quiet:.0f} % and {noised:.0f} %" in page
        )
    worst = control.loc[control["accuracy"].idxmin()]
    assert worst["method"] == "ffa-lora"
    quiet, noised = 100 * worst["accuracy"], 100 * worst["accuracy_noised"]
    assert f"it reads {quiet:.0f} % without noise, and {noised:.0f} % with it" in page


@pytest.mark.further
@pytest.mark.slow
@pytest.mark.parametrize("slug", ends.BEYOND)
def test_long_clipped_steps_without_noise_do_little_harm(slug):
    """Far beyond the end of the range, where noise ruins the run of the same seed."""
    assert ends.run_control(slug, seed=0)["accuracy"].item() > 0.86


def _shown(rate: float) -> str:
    return "none" if math.isnan(rate) else f"{rate:.3f}" if rate < 1 else f"{rate:.3g}"
