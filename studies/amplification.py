"""Fill what is measured on studies/logbook.md from the main comparisons under results/.

    python -m studies.amplification

Nothing is trained.
"""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

import fedlora_lab as fl
from fedlora_lab._utils.files import write_atomically
from fedlora_lab._utils.markdown import fill_blocks, markdown_table
from fedlora_lab._utils.validation import check
from fedlora_lab.measures.runs import SAME_EPSILON
from fedlora_lab.plots import grammar, style
from fedlora_lab.plots.style import name
from fedlora_lab.report import paired_difference
from studies import RESULTS, ROOT, runner
from studies.declared import SUGGESTED_FILE

PAGE = ROOT / "studies" / "logbook.md"
FIGURE = ROOT / "docs" / "figures" / "amplification-pairs.png"
LEADS_FIGURE = FIGURE.with_stem("amplification-leads")
FRAME = RESULTS / "amplification-pairs.csv"
TRIES = RESULTS / "amplification-tries.csv"
LEVELS = (0, 1, 3, 10, 30, 1e6)
MAIN = ("digits-client", "digits-example", "mnist-client", "mnist-example", "sentiment-example")
PAIRED = (*MAIN, "at-home", "rates", "rates-elsewhere", "rates-768")
LEADS = (
    ("fedlora", "ffa-lora"),
    ("balanced-lora", "fedlora"),
    ("balanced-lora", "ffa-lora"),
)
"""Pairs of methods that the number speaks of."""


def lead_table(frames: Any) -> pd.DataFrame:
    """Measures the leads that the number speaks of: a row a pair of methods and setting.

    Args: frames: study -> rows.
    Returns: pair, setting, data; mean, low and high of the lead in points, whose intervals hold
        together for a pair.
    """
    # Without privacy there is no noise to amplify: groupby leaves these rows out.
    places = [(key, *group) for key in MAIN for group in frames[key].groupby("epsilon")]
    rows = []
    for one, other in LEADS:
        for key, epsilon, here in places:
            gap = paired_difference(here, one, other, comparisons=len(places))
            setting = f"{key.replace('-', ', ')}, ε = {epsilon:g}"
            pair = f"{name(one)} − {name(other)}"
            rows.append([pair, setting, key.split("-")[0], *(100 * x for x in gap[:3])])
    return pd.DataFrame(rows, columns=["pair", "setting", "data", "mean", "low", "high"])


def draw_leads(table: pd.DataFrame) -> Any:
    """Draws the leads of `lead_table`, a panel a pair of methods."""
    start = table[table["pair"].str.endswith(name("fedlora"))]
    ahead = f"ahead of FedLoRA in {sum(start['low'] > 0)} of {len(start)} settings"
    return grammar.intervals(
        table,
        by="setting",
        hue="data",
        panel="pair",
        title=f"A larger start of A: {ahead}, behind in {sum(start['high'] < 0)}",
        xlabel="lead in accuracy, points",
        reference=0.0,
        comparisons=table["setting"].nunique(),
    )


def noisy_tries(key: str) -> pd.DataFrame:
    """Tabulates what the first tuning seed saw with noise and one rate for A and B."""
    table = runner.select_rows(runner.first_tries(key, RESULTS), ratio=1)
    return table[table["epsilon"].notna()].assign(study=key)


def best_by_clip() -> Any:
    """Finds the first tuning seed's best score at each clip norm, digits with clients protected.

    There the noise, and so ρ, goes with the clip norm and not with the rate.
    """
    keys = ["study", "epsilon", "clip", "method"]
    best: Any = noisy_tries("digits-client").groupby(keys)["accuracy"].max()
    # Of FedLoRA and FFA-LoRA, where both were tried.
    return best.unstack()[list(LEADS[0])].dropna().stack().rename("score")


def too_careful(key: str) -> Iterator[bool]:
    """Tells of each suggestion whether it has less noise than the best that the first tuning seed
    tried."""
    settings = json.loads(SUGGESTED_FILE.read_text(encoding="utf-8"))
    tried = noisy_tries(key)
    for place in tried.groupby(["method", "epsilon"])["accuracy"].idxmax():
        best = tried.loc[place]
        case = best["job"].case
        if case.key in settings:
            lr, clip = settings[case.key]
            # The noise of a whole client's update does not depend on the rate.
            of_rate = case.privacy.get("unit") != "client"
            yield clip * lr**of_rate < best["clip"] * best["lr"] ** of_rate


def suggested_table() -> str:
    """What the earlier suggestion cost against tuning: a row a study."""
    frames = runner.read_studies()
    places = frames["suggested"].groupby(["task", "unit"], sort=False)
    cases = frames["suggested"].groupby(["task", "unit", "method", "epsilon"]).ngroups
    rows = [["study", "cases", "mean", "lowest", "highest", "behind", "less noise"]]
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
        less = sum(too_careful(key))
        counts = f"{len(leads)} | {ends} | {behind} | {less}".replace("-", "−")
        rows.append([f"`{key}`", *counts.split(" | ")])
    return markdown_table(rows)


def pairs() -> pd.DataFrame:
    """Pairs the runs of FedLoRA and FFA-LoRA at the same setting and seed.

    Returns: study, setting and seed, rho of FedLoRA, and lead, by how many points it is ahead.
    """
    table = pd.concat(runner.runs_frame(key, RESULTS).assign(study=key) for key in PAIRED)
    table = table[table["job"].map(lambda job: job.case.epsilon is not None)]
    table = runner.select_rows(table, ratio=1)
    keys = ["study", "epsilon", "lr", "clip", "seed"]
    one, other = (table[table["method"] == slug] for slug in LEADS[0])
    both = one.merge(other[[*keys, "accuracy", "spent"]], on=keys, suffixes=("", "_other"))
    alike = np.isclose(both["spent"], both["spent_other"], rtol=SAME_EPSILON, equal_nan=True)
    check(
        bool(alike.all()),
        "spent",
        both[~alike][keys].to_dict("records")[:1],
        "equal epsilons in pairs",
    )
    early = both["rho"].isna()  # runs that did not keep it yet, all on digits
    both.loc[early, "rho"] = [
        fl.noise_amplification(*runner.job_arguments(job)).mean for job in both.loc[early, "job"]
    ]
    both["task"] = [job.case.task[0].replace("sentiment", "texts") for job in both["job"]]
    lead = 100 * (both["accuracy"] - both["accuracy_other"])
    return both[[*keys, "task", "rho"]].assign(lead=lead)


def explained(lead: Any, level: pd.Series) -> float:
    """Returns R², the share of the leads' variance that lies between levels."""
    rest = lead - lead.groupby(level, observed=True).transform("mean")
    return 1 - rest.var() / lead.var()


@style.paper()
def draw_pairs(table: pd.DataFrame) -> style.Picture:
    """Draws the leads against ρ, and says how much of them ρ and ε explain."""
    picture, (ax,) = style.subplots(7.5, 3.4)
    for colour, (task, part) in zip(style.SPARE_COLOURS, table.groupby("task"), strict=False):
        style.draw_dots(ax, part["rho"], part["lead"], colour, label=task)
    ax.axhline(0, color=style.GREY, lw=1, zorder=0.9)
    ax.set(xscale="log", xlabel="ρ of FedLoRA", ylabel="FedLoRA less FFA-LoRA, points")
    ax.legend(frameon=False)
    of_rho = explained(table["lead"], pd.cut(table["rho"], LEVELS))
    of_epsilon = explained(table["lead"], table["epsilon"])
    style.headline(
        picture,
        "Up to ρ = 3 FedLoRA keeps up with FFA-LoRA; from 10 to 100 it is mostly far behind",
    )
    style.footer(
        picture,
        f"{len(table)} pairs of runs at one setting and seed; "
        f"R² of levels of ρ (1, 3, 10, 30): {of_rho:.2f}, of five of ε: {of_epsilon:.2f}",
    )
    return picture


def write() -> None:
    """Writes the block of the page, the pairs with their figure, and the tries of notebook 04."""
    blocks = {"suggested": suggested_table()}
    text = fill_blocks(PAGE.read_text(encoding="utf-8"), blocks)
    write_atomically(PAGE, text, shared=True)
    table = pairs()
    table.to_csv(FRAME, index=False, float_format="%.5g")
    best_by_clip().to_csv(TRIES, float_format="%.6g")
    write_atomically(
        LEADS_FIGURE, style.png(draw_leads(lead_table(runner.read_studies()))), shared=True
    )
    write_atomically(FIGURE, style.png(draw_pairs(table)), shared=True)


if __name__ == "__main__":
    write()
