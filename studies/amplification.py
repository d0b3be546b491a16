"""Fill what is measured on docs/amplification.md from the main comparisons under results/.

    python -m studies amplification

Nothing is trained. A study that is not whole yet is left out, and the page says so.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from fedlora_lab import methods
from fedlora_lab._utils.files import write_atomically
from fedlora_lab._utils.markdown import markdown_table, require_visible
from fedlora_lab.federated.amplification import forecast_of
from fedlora_lab.federated.make_spec import make_run_spec
from fedlora_lab.measures.statistics import paired_difference
from fedlora_lab.methods.plan import Lora, Plan
from fedlora_lab.plots.style import name
from fedlora_lab.privacy.plan import Privacy
from studies import runner
from studies.declared import STUDIES, Case

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "results", ROOT / "docs" / "amplification.md"
MAIN = ("digits-client", "digits-example", "mnist-client", "mnist-example", "sentiment-example")
PAIRS = (("fedlora", "ffa-lora"), ("balanced-lora", "fedlora"), ("balanced-lora", "ffa-lora"))
INTRO = """Every row is tuned over the rate and, except on texts, over the clip norm and the
rates of A and B apart, with seeds of their own. The numbers are leads in accuracy after the last
round, over 20 seeds, with Student's 95 % interval of one difference by itself. The best other row
is the one with the highest mean there, chosen by the same numbers."""

SUGGESTED = """The lead of the settings of `fl.suggest_lr`, which come from public numbers
alone, over the tuned ones, in points of accuracy over ten seeds; a case is a row at a budget. The
limits behind them were fitted on digits. In the client unit the rate is the plan's default, and the
clip norm follows."""


def budget(epsilon: float) -> str:
    """A budget as the head of a column."""
    return "no privacy" if epsilon != epsilon else f"ε = {epsilon:g}"


def best_other(here: Any) -> str:
    """The row with the highest mean among those that start as drawn."""
    others = here[~here["method"].str.startswith("balanced")]
    return str(others.groupby("method")["accuracy"].mean().idxmax())


def over_all(frames: Any) -> str:
    """How often the balanced start is ahead, level or behind, over all places with privacy."""
    places = [part for frame in frames for _, part in frame.groupby("epsilon")]
    rows = [["Balanced LoRA against", "ahead", "level", "behind"]]
    for words, other in (
        ("FedLoRA", "fedlora"),
        ("FFA-LoRA", "ffa-lora"),
        ("the best other row", None),
    ):
        found = [paired_difference(x, "balanced-lora", other or best_other(x)) for x in places]
        ahead, behind = sum(x.low > 0 for x in found), sum(x.high < 0 for x in found)
        rows.append([words, *map(str, (ahead, len(found) - ahead - behind, behind))])
    intro = f"Over all {len(places)} places with privacy, by the intervals above:"
    return f"{intro}\n\n{markdown_table(rows)}"


def leads(frame: Any) -> str:
    """The differences that the number speaks of, paired by seed."""
    budgets = list(frame["epsilon"].drop_duplicates())
    rows = [["lead", *map(budget, budgets)]]
    for one, other in PAIRS:
        cells = []
        for e in budgets:
            here: Any = frame[frame["epsilon"].isna() if e != e else frame["epsilon"] == e]
            cells.append(str(paired_difference(here, one, other)))
        rows.append([f"{name(one)} over {name(other)}", *cells])
    best = ["Balanced LoRA over the best other row"]
    for e in budgets:
        here = frame[frame["epsilon"].isna() if e != e else frame["epsilon"] == e]
        other = best_other(here)
        best.append(f"{paired_difference(here, 'balanced-lora', other)}, {name(other)}")
    return markdown_table([*rows, best])


def unit_path_amplification(case: Case) -> float:
    """The amplification number of both factors for steps that together could move A by one.

    A release of the client unit moves a factor by at most C: the path of T releases is T C, and at
    a path L the number is L^2 times this one, whatever clip norm makes it up.
    """
    task, plan = runner.build_task(*case.task), Plan(**case.plan)
    assert case.epsilon is not None
    privacy = Privacy(**case.privacy).calibrate(epsilon=case.epsilon, task=task, plan=plan)
    privacy = privacy.replace(clip_norm=1 / plan.rounds)
    plan = plan.replace(lr=1.0, lr_decay=1.0)
    spec = make_run_spec(task, methods.FedLoRA, privacy, plan, lora=Lora(**case.lora), seed=0)
    return forecast_of(spec).mean(plan.rounds)


def write_clips(key: str) -> None:
    """Writes what one tuning seed saw at each clip norm, at the best rate there, and rho at it, to
    results/KEY-clips.csv, which notebook 04 draws."""
    one, path = STUDIES[key], RESULTS / "runs" / f"{key}.jsonl"
    done, found, steps = runner.load_results(path), {}, {}
    for case in one.cases:
        if case.method.slug not in ("fedlora", "ffa-lora", "balanced-lora"):
            continue
        if case.epsilon not in steps:
            steps[case.epsilon] = unit_path_amplification(case)
        path_length = case.plan["rounds"] * case.privacy["clip_norm"]
        for job in one.screening_jobs(case, runner.screen(one, case, done)[0]):
            if job.key not in done or job.setting.ratio != 1:
                continue
            rho = steps[case.epsilon] * (path_length * job.setting.clip) ** 2
            place = case.epsilon, job.setting.clip * case.privacy["clip_norm"], rho
            best = found.setdefault(place, {})
            score = done[job.key]["values"]["accuracy"] or 0.0
            best[case.method.slug] = max(best.get(case.method.slug, 0.0), score)
    slugs = ("fedlora", "ffa-lora", "balanced-lora")
    columns = ["epsilon", "clip_norm", "rho", *slugs]
    lines = [[*place, *map(best.get, slugs)] for place, best in sorted(found.items())]
    table = pd.DataFrame(lines, columns=columns)
    table.to_csv(RESULTS / f"{key}-clips.csv", index=False, float_format="%.6g")


def suggested(part: Any, tuned: Any) -> list[str]:
    """By how much the settings of `fl.suggest_lr` are behind the tuned ones, paired by seed, over
    all methods and budgets of a place."""
    losses = []
    for place, own in part.groupby(["method", "epsilon"]):
        best = tuned[(tuned["method"] == place[0]) & (tuned["epsilon"] == place[1])]
        if not best.empty:
            both = pd.concat([own.assign(method="suggested"), best.assign(method="tuned")])
            losses.append(paired_difference(both, "suggested", "tuned"))
    points = [100 * loss.mean for loss in losses]
    numbers = [f"{x:+.1f}" for x in (sum(points) / len(points), min(points), max(points))]
    below = sum(loss.high < 0 for loss in losses)
    return [str(len(losses)), *(x.replace("-", "−") for x in numbers), str(below)]


def parts() -> Iterator[str]:
    """The paragraphs of the block."""
    frames = runner.read_studies(RESULTS)
    there = [key for key in MAIN if key in frames]
    yield INTRO
    for key in there:
        frame: pd.DataFrame = frames[key]
        rows = frame.groupby("epsilon", dropna=False)["method"].transform("nunique")
        frame = frame[rows == rows.max()]  # budgets at which every row is there
        one = STUDIES[key]
        note, tries = one.note, frame.get("tries", pd.Series([one.tries]))
        span = " to ".join(f"{n}" for n in sorted({tries.min(), tries.max()}))
        command = f"`python -m studies {key}`, {span} tries a row"
        yield f"**{note[0].upper()}{note[1:]}** ({command})."
        yield leads(frame)
    yield over_all([frames[key] for key in there])
    if "suggested" in frames:
        yield SUGGESTED
        rows = [["study", "cases", "mean", "lowest", "highest", "intervals below zero"]]
        for (task, unit), part in frames["suggested"].groupby(["task", "unit"], sort=False):
            if (key := f"{task}-{unit}") in there:
                rows.append([f"`{key}`", *suggested(part, frames[key])])
        yield markdown_table(rows)
    open_ones = [(key, STUDIES[key], RESULTS / "runs" / f"{key}.jsonl") for key in MAIN]
    counts = {key: runner.count_runs(one, path) for key, one, path in open_ones}
    if left := [f"`{key}` ({d} of {n} runs)" for key, (d, n) in counts.items() if d < n]:
        yield f"Not whole yet: {', '.join(left)}."


def write() -> None:
    """Writes the block of the page, and the clip norms that notebooks draw."""
    before, _, after = PAGE.read_text(encoding="utf-8").partition("<!-- measured -->\n")
    after = after.partition("<!-- /measured -->")[2]
    for key in MAIN:
        if key.endswith("-client") and (RESULTS / "runs" / f"{key}.jsonl").exists():
            write_clips(key)
    block = "\n\n".join(parts())
    text = f"{before}<!-- measured -->\n{block}\n<!-- /measured -->{after}"
    write_atomically(PAGE, require_visible(text), shared=True)
