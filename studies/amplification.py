"""Fill what is measured on docs/amplification.md from the main comparisons under results/.

    python -m studies amplification

Nothing is trained. A study that is not whole yet is left out, and the page says so.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

import fedlora_lab as fl
from fedlora_lab._utils.files import write_atomically
from fedlora_lab._utils.markdown import fill_blocks, markdown_table
from fedlora_lab._utils.statistics import paired_difference
from fedlora_lab.plots import style
from fedlora_lab.plots.style import name
from studies import runner
from studies.declared import STUDIES

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
PAGE = ROOT / "docs" / "amplification.md"
FIGURE = ROOT / "docs" / "figures" / "amplification-pairs.png"
FRAME = RESULTS / "amplification-pairs.csv"
LEVELS = (0, 1, 3, 10, 30, 1e6)
TITLE = "Up to ρ = 3 FedLoRA keeps up with FFA-LoRA; beyond 10 it is far behind"
MAIN = ("digits-client", "digits-example", "mnist-client", "mnist-example", "sentiment-example")
BEST = "the best other row"
LEADS = (
    ("fedlora", "ffa-lora"),
    ("balanced-lora", "fedlora"),
    ("balanced-lora", "ffa-lora"),
    ("balanced-lora", BEST),
)
"""Pairs of methods that the number speaks of."""
INTRO = """Leads in accuracy after the last round, over 20 seeds, with Student's 95 % interval of
one difference by itself. Every row is tuned, with seeds of its own, over the rate and, except on
texts, over the clip norm and the rates of A and B apart. The best other row has the highest mean
there, by the same numbers."""

SUGGESTED = """The lead of the settings of `fl.suggest_lr`, from public numbers alone, over the
tuned ones, in points of accuracy over ten seeds; a case is a row at a budget."""


def budget(epsilon: float) -> str:
    """A budget as the head of a column."""
    return "no privacy" if epsilon != epsilon else f"ε = {epsilon:g}"


def best_other(here: Any) -> str:
    """The row with the highest mean among those that start as drawn."""
    as_drawn = here[~here["method"].str.startswith("balanced")]
    return str(as_drawn.groupby("method")["accuracy"].mean().idxmax())


def lead(here: Any, one: str, other: str) -> Any:
    """The difference of two methods at one budget, paired by seed."""
    return paired_difference(here, one, best_other(here) if other == BEST else other)


def leads(key: str, frame: Any) -> Iterator[list[str]]:
    """The differences that the number speaks of, a row for each budget of a study."""
    for epsilon, here in frame.groupby("epsilon", sort=False, dropna=False):
        cells = [str(lead(here, one, other)) for one, other in LEADS]
        yield [f"`{key}`", budget(epsilon), *cells, name(best_other(here))]


def over_all(frames: Any) -> str:
    """How often the balanced start is ahead, level or behind, over all places with privacy."""
    # Without privacy there is no noise to amplify: groupby leaves these rows out.
    places = [part for frame in frames for _, part in frame.groupby("epsilon")]
    rows = [["Balanced LoRA against", "ahead", "level", "behind"]]
    for one, other in LEADS[1:]:
        gaps = [lead(here, one, other) for here in places]
        ahead = sum(x.low > 0 for x in gaps)
        behind = sum(x.high < 0 for x in gaps)
        counts = (ahead, len(gaps) - ahead - behind, behind)
        rows.append([BEST if other == BEST else name(other), *map(str, counts)])
    intro = f"Over all {len(places)} places with privacy, by the intervals above:"
    return f"{intro}\n\n{markdown_table(rows)}"


def suggested(part: Any, tuned: Any) -> list[str]:
    """By how much the settings of `fl.suggest_lr` are behind the tuned ones, paired by seed, over
    all methods and budgets of a place."""
    losses = []
    for (method, epsilon), rows in part.groupby(["method", "epsilon"]):
        best = runner.select_rows(tuned, method=method, epsilon=epsilon)
        if not best.empty:
            both = pd.concat([rows.assign(method="suggested"), best.assign(method="tuned")])
            losses.append(paired_difference(both, "suggested", "tuned"))
    points = [100 * loss.mean for loss in losses]
    numbers = [f"{x:+.1f}" for x in (sum(points) / len(points), min(points), max(points))]
    below = sum(loss.high < 0 for loss in losses)
    return [str(len(losses)), *(x.replace("-", "−") for x in numbers), str(below)]


def parts() -> Iterator[str]:
    """The paragraphs of the block."""
    frames = runner.read_studies(RESULTS)
    keys = [key for key in MAIN if key in frames]
    yield INTRO
    heads = [f"{name(one)} over {BEST if other == BEST else name(other)}" for one, other in LEADS]
    table = [["study", "budget", *heads, "which"]]
    places = []
    for key in keys:
        frame: pd.DataFrame = frames[key]
        rows = frame.groupby("epsilon", dropna=False)["method"].transform("nunique")
        table += leads(key, frame[rows == rows.max()])  # budgets at which every row is there
        tries = frame.get("tries", pd.Series([STUDIES[key].tries]))
        span = " to ".join(f"{n}" for n in sorted({tries.min(), tries.max()}))
        places.append(f"- `{key}`: {STUDIES[key].note}; {span} tries a row.")
    yield "\n".join(places)
    yield markdown_table(table)
    yield over_all([frames[key] for key in keys])
    if "suggested" in frames:
        yield SUGGESTED
        table = [["study", "cases", "mean", "lowest", "highest", "intervals below zero"]]
        for (task, unit), part in frames["suggested"].groupby(["task", "unit"], sort=False):
            if (key := f"{task}-{unit}") in keys:
                table.append([f"`{key}`", *suggested(part, frames[key])])
        yield markdown_table(table)


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
    lead = table["lead"]
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
    write_atomically(FIGURE, style.png(draw_pairs(table)), shared=True)
