"""Fill what is measured on docs/amplification.md from the main comparisons under results/.

    python -m studies amplification

Nothing is trained.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import fedlora_lab as fl
from fedlora_lab._utils.files import write_atomically
from fedlora_lab._utils.markdown import fill_blocks, markdown_table
from fedlora_lab._utils.statistics import paired_difference
from fedlora_lab.experiments.tuned_rates import NOISE_LIMITS, noise_taken_up
from fedlora_lab.plots import grammar, style
from fedlora_lab.plots.style import name
from studies import runner
from studies.declared import STUDIES, SUGGESTED_FILE, Job

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
PAGE = ROOT / "docs" / "amplification.md"
FIGURE = ROOT / "docs" / "figures" / "amplification-pairs.png"
LEADS_FIGURE = FIGURE.with_stem("amplification-leads")
FRAME = RESULTS / "amplification-pairs.csv"
LEVELS = (0, 1, 3, 10, 30, 1e6)
TITLE = "Up to ρ = 3 FedLoRA keeps up with FFA-LoRA; beyond 10 it is far behind"
MAIN = ("digits-client", "digits-example", "mnist-client", "mnist-example", "sentiment-example")
LEADS = (
    ("fedlora", "ffa-lora"),
    ("balanced-lora", "fedlora"),
    ("balanced-lora", "ffa-lora"),
)
"""Pairs of methods that the number speaks of."""
ON_DIGITS = """*On digits*, where they were fitted, they hold: in the {} settings of
[six methods at eight rates](rates.md), with other seeds and test data, the suggestion is within 3
points of the best rate in {}, {:.1f} points below it on average and {:.1f} at most. *Elsewhere*
they are too careful: the suggested noise is below the best tried in 42 of 44 cases."""
SUGGESTED = """Settings of `fl.suggest_lr` less tuned ones, in points over ten seeds. A case is a
row at a budget; it is *behind* if its interval, of all {} together, is below zero, and *near the
best* if the first tuning seed loses at most 3 points there to the best rate or clip norm that it
tried."""


def draw_leads(frames: Any) -> Any:
    """Draws the leads that the number speaks of, a panel a pair of methods; a panel's intervals
    hold together."""
    # Without privacy there is no noise to amplify: groupby leaves these rows out.
    places = [(key, *group) for key in MAIN for group in frames[key].groupby("epsilon")]
    rows = []
    for one, other in LEADS:
        for key, epsilon, here in places:
            gap = paired_difference(here, one, other, comparisons=len(places))
            setting = f"{key.replace('-', ', ')}, ε = {epsilon:g}"
            pair = f"{name(one)} − {name(other)}"
            rows.append([pair, setting, key.split("-")[0], *(100 * x for x in gap[:3])])
    return grammar.intervals(
        pd.DataFrame(rows, columns=["pair", "setting", "data", "mean", "low", "high"]),
        by="setting",
        hue="data",
        panel="pair",
        title="A larger start of A: ahead of FedLoRA in six settings of twelve, behind in one",
        xlabel="lead in accuracy, points",
        reference=0.0,
        comparisons=len(places),
    )


def lost_at(size: float, scores: Any) -> float:
    """By how many points a setting is below the best score, which are known at some sizes.

    Between two of them the score is a straight line over the logarithm.
    """
    return 100 * float(scores.max() - np.interp(np.log(size), np.log(scores.index), scores))


def lost_to_best_tried(key: str) -> Iterator[float]:
    """Yields by how many points each suggestion is below the best that the first tuning seed tried,
    over what scales the noise."""
    settings = json.loads(SUGGESTED_FILE.read_text(encoding="utf-8"))
    for _, part in first_tries(key).groupby(["method", "epsilon"]):
        case = part["job"].iloc[0].case
        if case.key in settings:
            # The noise of a whole client's update does not depend on the rate.
            of_rate = float(case.privacy.get("unit") != "client")
            lr, clip = settings[case.key]
            sizes = part["clip"] * part["lr"] ** of_rate
            yield lost_at(clip * lr**of_rate, part["accuracy"].groupby(sizes).max())


def lost_on_digits() -> Iterator[float]:
    """Yields by how many points each suggestion is below the best rate of the study `rates`."""
    study: Any = STUDIES["rates"]
    frame = runner.read_study("rates", RESULTS)
    for case in study.cases:
        setting = study.settings[case.key][0]
        arguments: Any = runner.job_arguments(Job(case, setting, study.seeds[0], tune=False))
        noise = noise_taken_up(*arguments)
        # In both units of this study the noise goes with the square of the rate.
        rate = setting.lr * (NOISE_LIMITS[noise.kind] / noise.value) ** 0.5
        rows = runner.select_rows(frame, method=case.method.slug, **case.labels)
        yield lost_at(rate, rows.groupby("lr")["accuracy"].mean())


def parts() -> Iterator[str]:
    """The paragraphs of the block."""
    frames = runner.read_studies(RESULTS)
    lost = np.array(list(lost_on_digits()))
    yield ON_DIGITS.format(len(lost), (lost <= 3).sum(), lost.mean(), lost.max())
    places = frames["suggested"].groupby(["task", "unit"], sort=False)
    cases = frames["suggested"].groupby(["task", "unit", "method", "epsilon"]).ngroups
    yield SUGGESTED.format(cases)
    rows = [["study", "cases", "mean", "lowest", "highest", "behind", "near the best"]]
    for (task, unit), part in places:
        key = f"{task}-{unit}"
        tuned = frames[key].assign(method=frames[key]["method"] + " tuned")
        leads = [
            paired_difference(
                pd.concat([here, runner.select_rows(tuned, epsilon=epsilon)]),
                slug,
                f"{slug} tuned",
                comparisons=cases,
            )
            for (slug, epsilon), here in part.groupby(["method", "epsilon"])
        ]
        points = [100 * lead.mean for lead in leads]
        ends = f"{np.mean(points):+.1f} | {min(points):+.1f} | {max(points):+.1f}"
        behind = sum(lead.high < 0 for lead in leads)
        near = sum(lost <= 3 for lost in lost_to_best_tried(key))
        counts = f"{len(leads)} | {ends} | {behind} | {near}".replace("-", "−")
        rows.append([f"`{key}`", *counts.split(" | ")])
    yield markdown_table(rows)


def first_tries(key: str) -> pd.DataFrame:
    """Tabulates what the first tuning seed saw with noise and one rate for A and B."""
    table = runner.screen_frame(key, RESULTS / "runs" / f"{key}.jsonl", every=True)
    return table[(table["ratio"] == 1) & table["epsilon"].notna()].assign(study=key)


def amplification_of(run: Any) -> float:
    """Returns ρ as the run recorded it; the first runs on digits did not."""
    if pd.isna(run.rho):
        return fl.amplification(*runner.job_arguments(run.job)).mean
    return run.rho


def pairs() -> pd.DataFrame:
    """Pairs the tuning runs of FedLoRA and FFA-LoRA at the same setting.

    Returns: study, labels and setting, rho of FedLoRA, and lead, by how many points it is ahead.
    """
    table = pd.concat(first_tries(key) for key in (*MAIN, "digits", "digits-clients"))
    keys = ["study", "alpha", "epsilon", "lr", "clip"]
    one, other = (table[table["method"] == slug] for slug in LEADS[0])
    both = one.merge(other[[*keys, "accuracy"]], on=keys, suffixes=("", "_other"))
    both["rho"] = [amplification_of(run) for run in both.itertuples()]
    return both[[*keys, "rho"]].assign(lead=100 * (both["accuracy"] - both["accuracy_other"]))


@style.paper()
def draw_pairs(table: pd.DataFrame) -> style.Picture:
    """Draws the leads against ρ, and says how much of them ρ and ε explain."""
    picture, (ax,) = style.subplots(7.5, 3.4)
    for colour, (task, part) in zip(
        style.SPARE_COLOURS, table.groupby(table["study"].str.split("-").str[0]), strict=False
    ):
        style.draw_dots(ax, part["rho"], part["lead"], colour, label=task)
    ax.axhline(0, color=style.GREY, lw=1, zorder=0.9)
    ax.set(xscale="log", xlabel="ρ of FedLoRA", ylabel="FedLoRA less FFA-LoRA, points")
    ax.legend(frameon=False)
    lead: Any = table["lead"]
    words = f"{len(lead)} pairs of tuning runs; R² of"
    for label, level in (
        ("five levels of ρ", pd.cut(table["rho"], LEVELS)),
        ("and of four of ε", table["epsilon"]),
    ):
        rest = lead - lead.groupby(level, observed=True).transform("mean")
        words += f" {label}: {1 - rest.var() / lead.var():.2f}"
    style.headline(picture, TITLE)
    style.footer(picture, words)
    return picture


def write() -> None:
    """Writes the block of the page, and the pairs with their figure."""
    page = PAGE.read_text(encoding="utf-8")
    text = fill_blocks(page, {"measured": "\n\n".join(parts())})
    write_atomically(PAGE, text, shared=True)
    table = pairs()
    table.to_csv(FRAME, index=False, float_format="%.5g")
    leads = draw_leads(runner.read_studies(RESULTS))
    write_atomically(LEADS_FIGURE, style.png(leads), shared=True)
    write_atomically(FIGURE, style.png(draw_pairs(table)), shared=True)
