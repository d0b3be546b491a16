"""Fill what is measured on docs/amplification.md from the main comparisons under results/.

    python -m studies amplification

Nothing is trained. A study that is not whole yet is left out, and the page says so.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

import fedlora_lab as fl
from fedlora_lab import methods
from fedlora_lab._utils.files import write_atomically
from fedlora_lab._utils.markdown import fill_blocks, markdown_table
from fedlora_lab._utils.statistics import paired_difference
from fedlora_lab.plots.style import name
from studies import runner
from studies.declared import STUDIES

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
PAGE = ROOT / "docs" / "amplification.md"
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


def write_clips(key: str) -> None:
    """Writes results/KEY-clips.csv, which notebooks draw: what one tuning seed saw at each clip
    norm, at the best rate there, and ρ of both factors at it."""
    study = STUDIES[key]
    done = runner.load_results(RESULTS / "runs" / f"{key}.jsonl")
    slugs = ["fedlora", "ffa-lora", "balanced-lora"]
    rows = []
    for case in study.cases:
        tried = runner.screen(study, case, done)[0] if case.method.slug in slugs else []
        for job in study.screening_jobs(case, [x for x in tried if x.ratio == 1]):
            task, _, privacy, plan, lora = runner.job_arguments(job)
            assert privacy is not None
            # In the client unit it follows from the clip norm, whatever the rate.
            rho = fl.amplification(task, methods.FedLoRA, privacy, plan, lora).mean
            score = done[job.key]["values"]["accuracy"] or 0.0
            setting = case.epsilon, float(f"{privacy.clip_norm:.6g}"), float(f"{rho:.6g}")
            rows.append((*setting, case.method.slug, score))
    table = pd.DataFrame(rows, columns=["epsilon", "clip_norm", "rho", "method", "score"])
    keys = ["epsilon", "clip_norm", "rho"]
    best = table.groupby([*keys, "method"])["score"].max().unstack()[slugs].reset_index()
    best.to_csv(RESULTS / f"{key}-clips.csv", index=False, float_format="%.6g")


def write() -> None:
    """Writes the block of the page, and the clip norms that notebooks draw."""
    page = PAGE.read_text(encoding="utf-8")
    text = fill_blocks(page, {"measured": "\n\n".join(parts())})
    write_atomically(PAGE, text, shared=True)
    write_clips("digits-client")
