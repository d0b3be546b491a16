"""How long the studies take: what every run took by the clock is kept with its results.

    python -m benchmarks.studies           seconds; writes results/studies.csv and .md
    python -m benchmarks.studies --pace    minutes; trains some runs again (see `benchmarks.pace`)

Most runs shared their cores with other work, so beside the hours they took
stand those of an undisturbed machine: every run of a case at the pace of its quickest tenth. A run
still to come counts as the median run, at that pace, of its study on the same task, else of any
study on it.
"""

from pathlib import Path

import click
import pandas as pd

from benchmarks.pace import SAMPLE, pace_table, retime
from fedlora_lab._utils.files import write_atomically
from fedlora_lab.experiments.runner import count_runs, known_jobs, load_results
from fedlora_lab.experiments.studies import EARLIER, STUDIES
from fedlora_lab.report.summary_table import markdown_table

HERE = Path(__file__).parent
RUNS = HERE.parent / "results" / "runs"
WORKERS = 2


def timed_runs() -> pd.DataFrame:
    """Study, case, task, key and seconds of every run that is done, and seconds undisturbed."""
    rows = []
    for study in STUDIES.values():
        done = load_results(RUNS / f"{study.name}.jsonl")
        for i, case in enumerate(study.cases):
            keys = [job.key for job in known_jobs(study, case, done) if job.key in done]
            seconds = {key: done[key]["values"].get("seconds") for key in keys}
            rows += [(study.name, i, case.task[0], k, s) for k, s in seconds.items() if s]
    timed = pd.DataFrame(rows, columns=["study", "case", "task", "key", "seconds"])
    timed["undisturbed"] = timed.groupby(["study", "case"]).seconds.transform("quantile", q=0.1)
    return timed


def cost_table(timed: pd.DataFrame) -> pd.DataFrame:
    """One row a study: runs, how many are done, hours they took, undisturbed, and left."""
    anywhere, here = (
        timed.groupby(by).undisturbed.median().to_dict() for by in ("task", ["study", "task"])
    )
    rows = []
    for study in STUDIES.values():
        done, runs = count_runs(study, RUNS / f"{study.name}.jsonl")
        tasks = [case.task[0] for case in study.cases]
        typical = [here.get((study.name, task), anywhere.get(task)) for task in tasks]
        known = [seconds for seconds in typical if seconds is not None]
        took, undisturbed = timed.loc[timed.study == study.name, ["seconds", "undisturbed"]].sum()
        left = (runs - done) * sum(known) / len(known) if known else float("nan")
        hours = (seconds / 3600 / WORKERS for seconds in (took, undisturbed, left))
        rows.append((study.name, runs, done, *hours))
    columns = ["study", "runs", "done", "hours", "hours_undisturbed", "hours_left"]
    return pd.DataFrame(rows, columns=columns)


def page(table: pd.DataFrame, pace: pd.DataFrame | None = None, compared: bool = False) -> str:
    """The costs in words and one table.

    Args:
        table: from `cost_table`.
        pace: from `pace_table`; ``None`` where nothing was trained again.
        compared: whether the code that made the runs was timed beside today's.
    """
    lines = [["study", "runs", "done", "h they took", "h undisturbed", "h left, about", "h today"]]
    today = {} if pace is None else pace.set_index("study").to_dict("index")
    earlier = table["study"].isin(EARLIER)
    for name, part in (("these together", table[~earlier]), ("the first edition", table[earlier])):
        total = {"study": f"**{name}**", **part.sum(numeric_only=True)}
        for row in (*part.to_dict("records"), total):
            left = f"{row['hours_left']:.1f}" if row["done"] < row["runs"] else ""
            again = today.get("all" if row["study"] == "**these together**" else row["study"])
            share = 3600 * WORKERS
            now = f"{again['seconds'] / share:.1f} ± {again['half'] / share:.2f}" if again else ""
            hours = (f"{row['hours']:.1f}", f"{row['hours_undisturbed']:.1f}", left, now)
            lines.append([row["study"], f"{row['runs']:,.0f}", f"{row['done']:,.0f}", *hours])
    words = ""
    if pace is not None:
        beside = (
            "with today's code and, in turns with it, with the code of the time"
            if compared
            else "with today's code, in processor seconds of one thread"
        )
        words = f"""
Today: {today["all"]["again"]:.0f} runs, at most {pace["again"].iloc[:-1].max():.0f} of each study,
drawn at random among all of it, were trained again for their first rounds, {beside}
(`python -m benchmarks.studies --pace`, [pace.csv](pace.csv)). Today's code takes
{today["all"]["ratio"]:.3f} times as long. The hours are a study's undisturbed ones times its own
such ratio, with a 95 % interval of that estimate.
"""
    return f"""# How long the studies take

For readers who want to repeat the studies. Rebuilt by `python -m benchmarks.studies` from the
seconds kept with every run: hours by the clock of {WORKERS} processes with one thread each. Most
runs shared their two cores with other work. *Undisturbed* counts every run at the pace of the
quickest tenth of its case; hours left are counted so too. `make results` continues where a study
stopped. The studies of the first edition tuned a rate at one clip norm; they are kept for the rows
and questions that no later study has.
{words}
{markdown_table(lines)}
"""


@click.command()
@click.option("--pace", is_flag=True, help="Train some runs of each study again, and time them.")
@click.option("--count", default=SAMPLE, type=click.IntRange(2), help=f"Of each study.  [{SAMPLE}]")
@click.option("--then", type=click.Path(path_type=Path, exists=True), help="The package as it was.")
@click.option("--out", type=click.Path(path_type=Path), default=HERE / "results", help="Folder.")
def main(pace: bool, count: int, then: Path | None, out: Path) -> None:
    """Add up what the runs of every study took; write studies.csv and studies.md."""
    timed, path = timed_runs(), out / "pace.csv"
    if pace:
        retime(timed[~timed["study"].isin(EARLIER)], count, path, then)
    again = pd.read_csv(path) if path.is_file() else None
    table = cost_table(timed)
    found = None if again is None else pace_table(timed, again)
    text = page(table, found, again is not None and "then" in again)
    click.echo(text)
    numbers = table.to_csv(index=False, float_format="%.3g")
    write_atomically(out / "studies.csv", numbers, shared=True)
    write_atomically(out / "studies.md", text, shared=True)


if __name__ == "__main__":
    main()
