"""Runs of the studies drawn at random and trained again: how many hours a study would take today.

`python -m benchmarks.studies --pace` calls it. With ``--then FOLDER``, which holds the package as
it was (`git archive COMMIT fedlora_lab | tar -x -C FOLDER`), each run is timed with both codes in
turns: the ratio then tells of the code alone, however busy the machine is. Without it today's
seconds are set beside the recorded ones, which only a quiet machine of the same kind allows.
"""

import json
import os
import random
import subprocess
import sys
from itertools import islice
from pathlib import Path
from time import process_time
from typing import Any

import click
import numpy as np
import pandas as pd
from scipy import stats

ROOT = Path(__file__).parent.parent
SEED, SAMPLE, ROUNDS = 0, 4, 4
"""How runs are drawn, how many of each study, and how many of their first rounds are trained."""


def serve() -> None:
    """Reads study and key of a run from each line, trains its first rounds with the package that is
    on the path, and writes the processor seconds of its opening and of all its rounds.

    What it imports stood already where the runs were made.
    """
    import torch

    import fedlora_lab as fl
    from fedlora_lab.experiments import runner
    from fedlora_lab.experiments.studies import STUDIES

    torch.set_num_threads(1)
    for line in sys.stdin:
        asked = json.loads(line)
        study = STUDIES[asked["study"]]
        done = runner.load_results(ROOT / "results" / "runs" / f"{study.name}.jsonl")
        case = next(c for c in study.cases if c.key == asked["key"].split("/")[0])
        job = next(j for j in runner.known_jobs(study, case, done) if j.key == asked["key"])
        arguments: Any = runner.job_arguments(job)
        *given, lora = arguments
        plan = given[3]
        options: dict[str, Any] = {"lora": lora, "seed": job.seed, "evaluate_every": plan.rounds}
        begun = process_time()
        records = fl.run(*given, **options | dict(case.compute))
        next(records)
        opened = process_time()
        count = len(list(islice(records, ROUNDS)))
        # Rounds are alike, but for which factor moves: an even number has as many of either.
        rounds = (process_time() - opened) * plan.rounds / max(count, 1)
        found = {"opening": opened - begun, "rounds": rounds, "package": fl.__file__}
        click.echo(json.dumps(found))
        sys.stdout.flush()


def worker(root: Path) -> "subprocess.Popen[str]":
    """A process that answers as `serve` does, with the package in a folder."""
    env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(Path(__file__).resolve())]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen(command, env=env, cwd=root, text=True, **pipes)


def drawn(timed: pd.DataFrame, count: int) -> pd.DataFrame:
    """At most ``count`` runs of each study, at random among all that are done, in random order.

    Args: timed: study, key and seconds of every run. count: of each study.
    """
    parts = []
    for name, part in timed.groupby("study", sort=False):
        places = random.Random(f"{SEED} {name}").sample(range(len(part)), min(count, len(part)))
        parts.append(part.iloc[places])
    chosen = pd.concat(parts)
    order = random.Random(SEED).sample(range(len(chosen)), len(chosen))
    return chosen.iloc[order]


def retime(timed: pd.DataFrame, count: int, path: Path, then: Path | None) -> None:
    """Trains the drawn runs again; writes each one's seconds as soon as it is done.

    Args:
        timed, count: as of `drawn`.
        path: of the CSV file; runs that it has are kept.
        then: folder of the package as it was.
    """
    roots = {"now": ROOT, **({} if then is None else {"then": then.resolve()})}
    found = pd.read_csv(path).to_dict("records") if path.is_file() else []
    done = {(row["study"], row["key"]) for row in found}
    workers = {name: worker(root) for name, root in roots.items()}
    try:
        for i, row in enumerate(drawn(timed, count).to_dict("records")):
            if (row["study"], row["key"]) in done:
                continue
            seconds: dict[str, float] = {}
            for name in list(workers)[:: 1 if i % 2 else -1]:
                process: Any = workers[name]
                process.stdin.write(json.dumps({x: row[x] for x in ("study", "key")}) + "\n")
                process.stdin.flush()
                said = json.loads(process.stdout.readline())
                assert Path(said["package"]).is_relative_to(roots[name]), said["package"]
                seconds |= {name: said["rounds"], f"opening_{name}": said["opening"]}
            kept = {x: row[x] for x in ("study", "key", "undisturbed")}
            found.append({**kept, **seconds})
            click.echo(found[-1])
            pd.DataFrame(found).to_csv(path, index=False, float_format="%.4g")
    finally:
        for process in workers.values():
            process.kill()
            process.wait()


def pace_table(timed: pd.DataFrame, pace: pd.DataFrame) -> pd.DataFrame:
    """One row a study, and one for all together: seconds today with the half-width of a 95 %
    interval, by the ratio of today's seconds to those of the code that made the runs.

    Args: timed: study and undisturbed seconds of every run. pace: what `retime` wrote.
    """
    before = pace["then"] if "then" in pace else pace["undisturbed"]
    # In recorded seconds: what the two codes take today, on the scale of the undisturbed run.
    today = pace["undisturbed"] * pace["now"] / before
    rows, squares, freedom = [], 0.0, 0
    for name, part in pace.groupby("study", sort=False):
        whole = timed.loc[timed["study"] == name, "undisturbed"]
        now, was, n = today[part.index], part["undisturbed"], len(part)
        ratio = now.sum() / was.sum()
        # The variance of a ratio estimate of a total, in a sample without replacement.
        rest = float((now - ratio * was).var())
        square = len(whole) ** 2 * (1 - n / len(whole)) * rest / n
        squares, freedom = squares + square, freedom + n - 1
        half = stats.t.ppf(0.975, n - 1) * np.sqrt(square)
        rows.append((name, n, ratio, ratio * whole.sum(), half))
    table = pd.DataFrame(rows, columns=["study", "again", "ratio", "seconds", "half"])
    whole = timed[timed["study"].isin(table["study"])]["undisturbed"].sum()
    seconds, half = table["seconds"].sum(), stats.t.ppf(0.975, freedom) * np.sqrt(squares)
    table.loc[len(table)] = ["all", table["again"].sum(), seconds / whole, seconds, half]
    return table


if __name__ == "__main__":
    serve()
