"""Runs of a study over some processes, one line of JSON for each as soon as it is done."""

import json
import math
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from statistics import fmean
from typing import Any

from fedlora_lab.checks import check, check_whole
from fedlora_lab.files import append_line, held, read_lines
from fedlora_lab.study.declared import Case, Job, Study

Done = dict[str, dict[str, Any]]


def load(path: Path) -> Done:
    """Key -> result of every whole line of a file of results; what is no result is passed over, and run again."""
    return {entry["key"]: entry for entry in read_lines(path) if _whole(entry)}


def _whole(entry: dict[str, Any]) -> bool:
    """Whether an object is what `result` gives."""
    values, numbers = entry.get("values"), (int, float, type(None))
    named = (
        isinstance(entry.get("key"), str) and type(entry.get("seed")) is int and type(entry.get("lr")) in (int, float)
    )
    return named and isinstance(values, dict) and all(type(value) in numbers for value in values.values())


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
    from fedlora_lab import Lora, Plan, run
    from fedlora_lab.measures.curvature import flatness

    case, (name, given) = job.case, job.case.task
    arguments, plan = json.dumps(dict(given), sort_keys=True), Plan(**case.plan, lr=job.lr)
    task = _task(name, arguments, job.tune)
    fixed = json.dumps(dict(case.privacy), sort_keys=True), json.dumps(dict(case.plan), sort_keys=True)
    privacy = _privacy(name, arguments, *fixed, case.epsilon)
    options = {"lora": Lora(**case.lora), "seed": job.seed, "evaluate_every": plan.rounds, **case.compute}
    with _one_thread():
        records = list(run(task, case.method, privacy, plan, **options))
    first, last = records[0], records[-1]
    values = {f"before_{k}": v for k, v in first.metrics.items()} | dict(last.metrics) | _layers(last)
    values |= {"deviation": last.deviation, "epsilon": last.epsilon, "clipped": last.clipped}
    for measure in ("bytes_up", "bytes_down"):
        values[measure] = sum(getattr(record.uploads, measure) for record in records)
    if job.flat:
        with _one_thread():
            values["sharpness"] = flatness(task, last).top
    values["seconds"] = sum(record.seconds for record in records)
    finite = {k: float(v) if math.isfinite(v) else None for k, v in values.items()}
    return {"key": job.key, "lr": job.lr, "seed": job.seed, "values": finite}


@contextmanager
def _one_thread() -> Iterator[None]:
    """Torch works in one thread, as every worker does: sums are rounded alike however many processes there are."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _layers(record: Any) -> dict[str, float]:
    """Sums over the layers, where they are measured: the last round's noise by its three terms, squared norms."""
    found: dict[str, float] = {}
    for _, measure, value in record.rows:
        if measure.startswith("noise_"):
            found[measure] = found.get(measure, 0.0) + value
    return found


def finalists(study: Study, case: Case, done: Done) -> tuple[float, ...] | None:
    """The rates that the first tuning seed ranks best, those that diverged last; ``None`` while runs are missing."""
    scores = _scores(study.screening(case), done)
    return None if scores is None else tuple(sorted(scores, key=lambda lr: -scores[lr])[: study.finalists])


def best_rate(study: Study, case: Case, done: Done) -> float | None:
    """The finalist with the best mean validation score, one that never diverged; ``None`` while runs are missing."""
    rates = finalists(study, case, done)
    scores = None
    if rates is not None:
        first = (job for job in study.screening(case) if job.lr in rates)
        scores = _scores((*first, *study.finals(case, rates)), done)
    return None if scores is None else max(scores, key=lambda lr: scores[lr])


def _scores(jobs: Iterable[Job], done: Done) -> dict[float, float] | None:
    """Rate -> mean score, minus infinity where a run diverged; ``None`` while a run is missing."""
    found: dict[float, list[float]] = {}
    for job in jobs:
        if job.key not in done:
            return None
        values = done[job.key]["values"]
        sign, measure = (1, "accuracy") if "accuracy" in values else (-1, "loss")
        score = values.get(measure)
        found.setdefault(job.lr, []).append(-math.inf if score is None else sign * score)
    return {lr: fmean(scores) for lr, scores in found.items()}


def needed(study: Study, case: Case, done: Done) -> Iterator[Job]:
    """The runs of a case as far as they are known: each stage decides the next."""
    yield from study.screening(case)
    rates = finalists(study, case, done)
    if rates is not None:
        yield from study.finals(case, rates)
    lr = best_rate(study, case, done)
    if lr is not None:
        yield from study.reported(case, lr)


def progress(study: Study, path: Path) -> tuple[int, int]:
    """Runs done, and runs in all."""
    done = load(path)
    return sum(job.key in done for case in study.cases for job in needed(study, case, done)), study.runs


def play(study: Study, path: Path, *, workers: int = 1, bar: bool = True) -> Done:
    """Run what is missing in the file of results; case by case, each tuned before it is reported.

    Args:
        path: JSON lines; every finished run is on the disk before the next is begun.
        workers: processes, each with one thread; 0: one run after the other in this process.

    Raises: ``ValueError`` when another process is at work on the same file.
    Guarantees: killed at any point and called again, no finished run is lost or done twice, nor one that another
        study in the same folder has done (test_study.py, test_faults_runs.py).
    """
    from tqdm import tqdm

    check_whole("workers", workers)
    with (
        held(path.parent, f".{path.name}.lock"),
        tqdm(total=study.runs, initial=progress(study, path)[0], unit="run", disable=not bar, mininterval=5) as shown,
        _pool(workers) as pool,
    ):
        done, others = load(path), _others(path)
        for batch in _batches(study.cases, max(workers, 1) * 2):
            while todo := [job for case in batch for job in needed(study, case, done) if job.key not in done]:
                known = [others[job.key] for job in todo if _measured(job, others)]
                for entry in known or _run(pool, todo):
                    append_line(path, entry)
                    done[entry["key"]] = entry
                    shown.update()
    return done


def _others(path: Path) -> Done:
    """Results of the other studies in the folder: the same case at the same rate and seed is the same run."""
    found: Done = {}
    for other in sorted(set(path.parent.glob("*.jsonl")) - {path}):
        found |= load(other)
    return found


def _measured(job: Job, others: Done) -> bool:
    """Whether another study has all that is asked of the job."""
    return job.key in others and (not job.flat or "sharpness" in others[job.key]["values"])


@contextmanager
def _pool(workers: int) -> "Iterator[ProcessPoolExecutor | None]":
    """The processes, or ``None`` for no other than this one; after Ctrl-C they end in the middle of their runs."""
    if not workers:
        yield None
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_begin) as pool:
        try:
            yield pool
        except KeyboardInterrupt:  # no future is cancelled: the executor would trip over it when its processes end
            for process in active_children():
                process.terminate()
            raise
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextmanager
def _deaf() -> Iterator[None]:
    """Processes begun inside never hear Ctrl-C: it is this one's to answer, and what comes meanwhile waits for it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin() -> None:
    """A worker is deaf to Ctrl-C. If its parent is killed it ends too, in the middle of its run; else it would wait for
    ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _batches(cases: Iterable[Case], size: int) -> Iterator[list[Case]]:
    """Cases in groups: while the last of a group are tuned, others of it keep the processes busy."""
    cases = list(cases)
    return (cases[i : i + size] for i in range(0, len(cases), size))


def _run(pool: ProcessPoolExecutor | None, jobs: list[Job]) -> Iterator[dict[str, Any]]:
    if pool is None:
        yield from map(result, jobs)
        return
    with _deaf():
        waiting = [pool.submit(result, job) for job in jobs]
    yield from (future.result() for future in as_completed(waiting))
