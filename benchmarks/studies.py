"""How long a study takes on this machine: an even sample of its runs, by as many processes as the
study would have.

    python -m benchmarks.studies               ten minutes; writes results/studies.csv and .md
    python -m benchmarks.studies --every 200   every two-hundredth run, written nowhere

The sample is every n-th run in the order of the study, those that tune and those that report, at
the rates that they have in `results/runs`. What each process pays once (loading, calibration) is in
the sample's time, and so counts n times in what is said of the whole.
"""

import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import pandas as pd
from tqdm import tqdm

from fedlora_lab._utils.files import write_atomically
from fedlora_lab.experiments.runner import known_jobs, load_results, run_job
from fedlora_lab.experiments.studies import STUDIES
from fedlora_lab.report.summary_table import markdown_table

HERE = Path(__file__).parent
RUNS = HERE.parent / "results" / "runs"
EVERY = {"digits": 28, "sentiment": 15}


def timed(name: str, every: int, workers: int) -> dict[str, Any]:
    """Every so-manieth run of a study, measured by the clock from the first process's start to the
    last one's end.
    """
    study, done = STUDIES[name], load_results(RUNS / f"{name}.jsonl")
    jobs = [job for case in study.cases for job in known_jobs(study, case, done)]
    if len(jobs) < study.runs:
        raise click.ClickException(
            f"{name}: {len(jobs)} of {study.runs} runs are known; run the study first"
        )
    part, begun = jobs[every // 2 :: every], time.perf_counter()
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for _ in tqdm(pool.map(run_job, part), total=len(part), unit="run", desc=name):
            pass
    seconds = time.perf_counter() - begun
    hours = seconds * len(jobs) / len(part) / 3600
    return {
        "study": name,
        "runs": len(jobs),
        "sampled": len(part),
        "seconds": seconds,
        "hours": hours,
    }


def page(table: pd.DataFrame, workers: int, processor: str) -> str:
    """The results in words and one table."""
    rows = [["study", "runs", "of which timed", "s they took", "h for all"]]
    for row in table.to_dict("records"):
        counts = (
            f"{row['runs']:,}",
            f"{row['sampled']:,}",
            f"{row['seconds']:.0f}",
            f"{row['hours']:.2f}",
        )
        rows.append([row["study"], *counts])
    return f"""# How long the studies take

Rebuilt by `python -m benchmarks.studies`. An even sample of each study's runs, tuning included,
{workers} processes of one thread on {os.cpu_count()} cores ({processor}), by the clock; asked: at
most three hours for either.

{markdown_table(rows)}
"""


@click.command()
@click.option(
    "--workers", type=click.IntRange(1), default=2, help="Processes, each with one thread.  [2]"
)
@click.option(
    "--every", type=click.IntRange(1), help="Another step of the sample; nothing is written."
)
def main(workers: int, every: int | None) -> None:
    """Time an even sample of the studies `digits` and `sentiment`; write studies.csv and
    studies.md.
    """
    from benchmarks.__main__ import processor

    table = pd.DataFrame([timed(name, every or step, workers) for name, step in EVERY.items()])
    text = page(table, workers, processor())
    click.echo(text)
    if every is None:
        write_atomically(
            HERE / "results" / "studies.csv",
            table.to_csv(index=False, float_format="%.4g"),
            shared=True,
        )
        write_atomically(HERE / "results" / "studies.md", text, shared=True)


if __name__ == "__main__":
    main()
