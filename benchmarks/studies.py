"""How long the studies take: what every run took by the clock is kept with its results.

    python -m benchmarks.studies    seconds; writes results/studies.csv and .md

Nothing is trained. Most runs shared their cores with other work, so beside the hours they took
stand those of an undisturbed machine: every run of a case at the pace of its quickest tenth. A run
still to come counts as the median run, at that pace, of its study on the same task, else of any
study on it.
"""

from pathlib import Path

import click
import pandas as pd

from fedlora_lab._utils.files import write_atomically
from fedlora_lab.experiments.runner import known_jobs, load_results, progress
from fedlora_lab.experiments.studies import EARLIER, STUDIES
from fedlora_lab.report.summary_table import markdown_table

HERE = Path(__file__).parent
RUNS = HERE.parent / "results" / "runs"
WORKERS = 2


def timed_runs() -> pd.DataFrame:
    """Study, task, seconds of every run that is done, and seconds undisturbed."""
    rows = []
    for study in STUDIES.values():
        done = load_results(RUNS / f"{study.name}.jsonl")
        for i, case in enumerate(study.cases):
            entries = [done[job.key] for job in known_jobs(study, case, done) if job.key in done]
            seconds = [entry["values"].get("seconds") for entry in entries]
            rows += [(study.name, i, case.task[0], s) for s in seconds if s is not None]
    timed = pd.DataFrame(rows, columns=["study", "case", "task", "seconds"])
    timed["undisturbed"] = timed.groupby(["study", "case"]).seconds.transform("quantile", q=0.1)
    return timed


def cost_table(timed: pd.DataFrame) -> pd.DataFrame:
    """One row a study: runs, how many are done, hours they took, undisturbed, and left."""
    anywhere, here = (
        timed.groupby(by).undisturbed.median().to_dict() for by in ("task", ["study", "task"])
    )
    rows = []
    for study in STUDIES.values():
        done, runs = progress(study, RUNS / f"{study.name}.jsonl")
        tasks = [case.task[0] for case in study.cases]
        typical = [here.get((study.name, task), anywhere.get(task)) for task in tasks]
        known = [seconds for seconds in typical if seconds is not None]
        took, undisturbed = timed.loc[timed.study == study.name, ["seconds", "undisturbed"]].sum()
        left = (runs - done) * sum(known) / len(known) if known else float("nan")
        hours = (seconds / 3600 / WORKERS for seconds in (took, undisturbed, left))
        rows.append((study.name, runs, done, *hours))
    columns = ["study", "runs", "done", "hours", "hours_undisturbed", "hours_left"]
    return pd.DataFrame(rows, columns=columns)


def page(table: pd.DataFrame) -> str:
    """The costs in words and one table."""
    lines = [["study", "runs", "done", "h they took", "h undisturbed", "h left, about"]]
    earlier = table["study"].isin(EARLIER)
    for name, part in (("these together", table[~earlier]), ("the first edition", table[earlier])):
        total = {"study": f"**{name}**", **part.sum(numeric_only=True)}
        for row in (*part.to_dict("records"), total):
            left = f"{row['hours_left']:.1f}" if row["done"] < row["runs"] else ""
            hours = (f"{row['hours']:.1f}", f"{row['hours_undisturbed']:.1f}", left)
            lines.append([row["study"], f"{row['runs']:,.0f}", f"{row['done']:,.0f}", *hours])
    return f"""# How long the studies take

Rebuilt by `python -m benchmarks.studies` from the seconds kept with every run: hours by the clock
of {WORKERS} processes with one thread each. Most runs shared their two cores with other work.
Undisturbed: every run at the pace of the quickest tenth of its case. Hours left are of that kind.
`make results` goes on where a study stopped. The studies of the first edition tuned a rate at one
clip norm; they are kept for the rows and questions that no later one has.

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
