"""Runs of a study over some processes, one line of JSON for each as soon as it is done."""

import json
import math
import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import cache
from multiprocessing import get_context, parent_process
from pathlib import Path
from statistics import fmean
from typing import Any

from fedlora_lab.checks import check, check_whole
from fedlora_lab.files import append_line, read_lines
from fedlora_lab.study.declared import Case, Job, Study

Done = dict[str, dict[str, Any]]


def load(path: Path) -> Done:
    """Key -> result of every whole line of a file of results."""
    return {str(entry["key"]): entry for entry in read_lines(path) if "key" in entry}


@cache
def _task(name: str, arguments: str, tune: bool) -> Any:
    from fedlora_lab import tasks

    task = getattr(tasks, name)(**json.loads(arguments))
    check(not tune or task.validation is not None, "task", name, "one with a validation part")
    return replace(task, test=task.validation, validation=None) if tune else task


@cache
def _privacy(name: str, arguments: str, fields: str, plan: str, epsilon: float | None) -> Any:
    from fedlora_lab import Plan, Privacy

    privacy = Privacy(**json.loads(fields))
    if privacy.noise_multiplier is not None:
        return privacy
    if epsilon is None:
        return None
    return privacy.calibrate(epsilon=epsilon, task=_task(name, arguments, False), plan=Plan(**json.loads(plan)))


def result(job: Job) -> dict[str, Any]:
    """Train the job's run; its measures before training and after the last round. Never the best round.

    Returns: key, and measures by name, ``None`` for what is not finite; bytes and seconds summed over the run.
    """
    import torch

    from fedlora_lab import Lora, Plan, run
    from fedlora_lab.measures.curvature import flatness

    torch.set_num_threads(1)
    case, (name, given) = job.case, job.case.task
    arguments, plan = json.dumps(dict(given), sort_keys=True), Plan(**case.plan, lr=job.lr)
    task = _task(name, arguments, job.tune)
    fixed = json.dumps(dict(case.privacy), sort_keys=True), json.dumps(dict(case.plan), sort_keys=True)
    privacy = _privacy(name, arguments, *fixed, case.epsilon)
    options = {"lora": Lora(**case.lora), "seed": job.seed, "evaluate_every": plan.rounds}
    records = list(run(task, case.method, privacy, plan, **options))
    first, last = records[0], records[-1]
    values = {f"before_{k}": v for k, v in first.metrics.items()} | dict(last.metrics) | _layers(last)
    values |= {"deviation": last.deviation, "epsilon": last.epsilon, "clipped": last.clipped}
    for measure in ("bytes_up", "bytes_down"):
        values[measure] = sum(getattr(record.uploads, measure) for record in records)
    if job.flat:
        values["sharpness"] = flatness(task, last).top
    values["seconds"] = sum(record.seconds for record in records)
    finite = {k: float(v) if math.isfinite(v) else None for k, v in values.items()}
    return {"key": job.key, "lr": job.lr, "seed": job.seed, "values": finite}


def _layers(record: Any) -> dict[str, float]:
    """Sums over the layers, where they are measured: the last round's noise by its three terms, squared norms."""
    found: dict[str, float] = {}
    for _, measure, value in record.rows:
        if measure.startswith("noise_"):
            found[measure] = found.get(measure, 0.0) + value
    return found


def best_rate(study: Study, case: Case, done: Done) -> float | None:
    """The rate with the best mean validation score among those that never diverged; ``None`` while runs are missing."""
    scores = {}
    for lr in study.rates:
        entries = [done.get(job.key) for job in study.tuning(case) if job.lr == lr]
        if any(entry is None for entry in entries):
            return None
        found = [entry["values"] for entry in entries if entry is not None]
        sign, measure = (1, "accuracy") if "accuracy" in found[0] else (-1, "loss")
        values = [value[measure] for value in found]
        if None not in values:
            scores[lr] = sign * fmean(values)
    return max(scores, key=lambda lr: scores[lr]) if scores else study.rates[0]


def _jobs(study: Study, done: Done) -> Iterator[Job]:
    """What can be run now: tuning first, then the reported runs of every case whose rate is known."""
    for case in study.cases:
        lr = best_rate(study, case, done)
        yield from study.tuning(case) if lr is None else study.reported(case, lr)


def progress(study: Study, path: Path) -> tuple[int, int]:
    """Runs done, and runs in all."""
    done, count = load(path), 0
    for case in study.cases:
        lr = best_rate(study, case, done)
        jobs = [*study.tuning(case), *(study.reported(case, lr) if lr is not None else ())]
        count += sum(job.key in done for job in jobs)
    return count, study.runs


def play(study: Study, path: Path, *, workers: int = 1, bar: bool = True) -> Done:
    """Run what is missing in the file of results; case by case, each tuned before it is reported.

    Args:
        path: JSON lines; every finished run is on the disk before the next is begun.
        workers: processes, each with one thread.

    Guarantees: killed at any point and called again, no finished run is lost or done twice (test_study.py).
    """
    from tqdm import tqdm

    check_whole("workers", workers, 1)
    done = load(path)
    with (
        tqdm(total=study.runs, initial=progress(study, path)[0], unit="run", disable=not bar, mininterval=5) as shown,
        ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_end_with_parent) as pool,
    ):
        for batch in _batches(study.cases, max(workers, 1) * 2):
            while todo := [job for job in _jobs(replace(study, cases=tuple(batch)), done) if job.key not in done]:
                for entry in _run(pool, todo):
                    append_line(path, entry)
                    done[entry["key"]] = entry
                    shown.update()
    return done


def _end_with_parent() -> None:
    """A worker whose parent was killed ends too, in the middle of its run; else it would wait for ever."""
    parent = parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _batches(cases: Iterable[Case], size: int) -> Iterator[list[Case]]:
    """Cases in groups: while the last of a group are tuned, others of it keep the processes busy."""
    cases = list(cases)
    return (cases[i : i + size] for i in range(0, len(cases), size))


def _run(pool: ProcessPoolExecutor, jobs: list[Job]) -> Iterator[dict[str, Any]]:
    waiting = [pool.submit(result, job) for job in jobs]
    try:
        for future in as_completed(waiting):
            yield future.result()
    finally:
        for future in waiting:
            future.cancel()
