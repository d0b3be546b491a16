"""How long the studies take: what every run took by the clock is kept with its results.

    python -m benchmarks.studies    seconds; writes results/studies.csv and .md

Nothing is trained. A run that is still to come counts as the median run of its study on the same
task, else of any study on it.
"""

from pathlib import Path

import click
import pandas as pd

from fedlora_lab._utils.files import write_atomically
from fedlora_lab.experiments.runner import known_jobs, load_results, progress
from fedlora_lab.experiments.studies import STUDIES
from fedlora_lab.report.summary_table import markdown_table

HERE = Path(__file__).parent
RUNS = HERE.parent / "results" / "runs"
WORKERS = 2


def timed_runs() -> pd.DataFrame:
    """Study, task and seconds of every run that is done."""
    rows = []
    for study in STUDIES.values():
        done = load_results(RUNS / f"{study.name}.jsonl")
        for case in study.cases:
            entries = [done[job.key] for job in known_jobs(study, case, done) if job.key in done]
            seconds = [entry["values"].get("seconds") for entry in entries]
            rows += [(study.name, case.task[0], s) for s in seconds if s is not None]
    return pd.DataFrame(rows, columns=["study", "task", "seconds"])


def cost_table(timed: pd.DataFrame) -> pd.DataFrame:
    """One row a study: runs, how many are done, hours that they took, and hours that are left."""
    anywhere, here = (
        timed.groupby(by).seconds.median().to_dict() for by in ("task", ["study", "task"])
    )
    rows = []
    for study in STUDIES.values():
        done, runs = progress(study, RUNS / f"{study.name}.jsonl")
        tasks = [case.task[0] for case in study.cases]
        typical = [here.get((study.name, task), anywhere.get(task)) for task in tasks]
        known = [seconds for seconds in typical if seconds is not None]
        took = timed.loc[timed.study == study.name, "seconds"].sum()
        left = (runs - done) * sum(known) / len(known) if known else float("nan")
        hours = (seconds / 3600 / WORKERS for seconds in (took, left))
        rows.append((study.name, runs, done, *hours))
    return pd.DataFrame(rows, columns=["study", "runs", "done", "hours", "hours_left"])


def page(table: pd.DataFrame) -> str:
    """The costs in words and one table."""
    lines = [["study", "runs", "done", "h they took", "h left, about"]]
    for row in table.to_dict("records"):
        left = f"{row['hours_left']:.1f}" if row["done"] < row["runs"] else ""
        counts = (f"{row['runs']:,}", f"{row['done']:,}", f"{row['hours']:.1f}", left)
        lines.append([row["study"], *counts])
    total = table.sum(numeric_only=True)
    lines.append(["all", f"{total.runs:,.0f}", f"{total.done:,.0f}"])
    lines[-1] += [f"{total.hours:.1f}", f"{total.hours_left:.1f}"]
    return f"""# How long the studies take

Rebuilt by `python -m benchmarks.studies` from the seconds kept with every run: hours by the clock
of {WORKERS} processes with one thread each. Most runs shared their two cores with other work, so an
idle machine takes less. `make results` goes on where a study stopped.

{markdown_table(lines)}
"""


@click.command()
def main() -> None:
    """Add up what the runs of every study took; write studies.csv and studies.md."""
    table = cost_table(timed_runs())
    text = page(table)
    click.echo(text)
    numbers = table.to_csv(index=False, float_format="%.3g")
    write_atomically(HERE / "results" / "studies.csv", numbers, shared=True)
    write_atomically(HERE / "results" / "studies.md", text, shared=True)


if __name__ == "__main__":
    main()
