"""Runs a study: tunes, trains and reports each case, and goes on after a kill at any point."""

import json
import math
import platform
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache, partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
from scipy.stats import sem
from tqdm import tqdm

from fedlora_lab import tasks
from fedlora_lab._utils.files import append_line, lock_folder, read_lines
from fedlora_lab._utils.validation import check
from fedlora_lab.federated.jobs import run_calls
from fedlora_lab.methods.plan import Lora, Plan
from fedlora_lab.privacy.plan import Privacy
from fedlora_lab.tasks.task import Task
from studies import RESULTS
from studies.declared import EXTENSIONS, STUDIES, Case, Job, Setting, Stage, Study, scale_knob

Done = dict[str, dict[str, Any]]  # key of a job -> what `run_job` gave for it
RECIPES = {"mnist": "mnist", "sentiment": "sentiment", "texts-768": "sentiment"}
"""Task that is made from files of the reader -> the module of this folder that makes it."""
FALL = 0.03
"""Score below that of the chosen setting from which on a larger step counts as over the cliff."""
PACKAGES = ("fedlora-lab", "torch", "peft", "opacus", "dp-accounting", "numpy", "scipy")


def load_results(path: Path) -> Done:
    """Reads key -> result of every whole line of a file of results."""
    return {entry["key"]: entry for entry in read_lines(path)}


# ---- one run


def build_task(name: str, arguments: Mapping[str, Any]) -> Task:
    """Builds a task of the package or of this folder.

    Args: name, arguments: see `Case.task`.
    """
    if name in RECIPES:
        import_module(f"studies.{RECIPES[name]}")  # it gives the task its name
    return tasks.build(name, **arguments)


@cache
def _task(name: str, arguments: str, tune: bool) -> Any:
    task: Any = build_task(name, json.loads(arguments))
    check(not tune or task.validation is not None, "task", name, "one with a validation part")
    # Tuning never sees the examples that reported runs are scored on.
    return replace(task, test=task.validation, validation=None) if tune else task


@cache
def _privacy(name: str, arguments: str, fields: str, plan: str, epsilon: float | None) -> Any:
    privacy = Privacy(**json.loads(fields))
    if epsilon is None:
        return None if privacy.noise_multiplier is None else privacy
    task = _task(name, arguments, False)
    return privacy.calibrate(epsilon=epsilon, task=task, plan=Plan(**json.loads(plan)))


def job_arguments(job: Job) -> tuple[Any, ...]:
    """Returns the arguments of `fl.run` for a job: task, method, privacy, plan and adapter."""
    case, (lr, clip, ratio) = job.case, job.setting
    # A and B have rates of their own only where their ratio was tuned.
    plan = Plan(**case.plan, lr=lr if ratio == 1 else {"A": lr * ratio, "B": lr})
    name, fields = case.task
    arguments = json.dumps(dict(fields), sort_keys=True)
    private = json.dumps(dict(case.privacy), sort_keys=True)
    work = json.dumps(dict(case.plan), sort_keys=True)
    privacy = _privacy(name, arguments, private, work, case.epsilon)
    if privacy is not None:  # the noise multiplier does not depend on the clip
        privacy = replace(privacy, clip_norm=privacy.clip_norm * clip)
    return _task(name, arguments, job.tune), case.method, privacy, plan, Lora(**case.lora)


def run_job(job: Job) -> dict[str, Any]:
    """Trains the job's run; measures before training and after the last round, never the best one.

    Returns: key, lr, seed, and values: measures by name, ``None`` for what is not finite; bytes and
        seconds summed over the run, the last round's noise terms summed over the layers.
    """
    from fedlora_lab.federated.run import run  # loads Transformers

    task, method, privacy, plan, lora = job_arguments(job)
    options: Any = {"lora": lora, "seed": job.seed, "evaluate_every": plan.rounds}
    records = list(run(task, method, privacy, plan, **options | job.case.compute))
    last = records[-1]
    values = {f"before_{name}": x for name, x in records[0].metrics.items()}
    values |= last.metrics
    for _, measure, value in last.rows:
        if measure.startswith("noise_"):
            values[measure] = values.get(measure, 0.0) + value
    values |= {"deviation": last.deviation, "epsilon": last.epsilon, "clipped": last.clipped}
    grown = [value for _, measure, value in last.rows if measure == "amplification"]
    if grown:
        values["amplification"] = fmean(grown)
    for name in ("bytes_up", "bytes_down"):
        values[name] = sum(getattr(record.traffic, name) for record in records)
    values["seconds"] = sum(record.seconds for record in records)
    # JSON has no NaN; a run that diverged keeps its line, or it would be run again.
    finite = {name: float(x) if math.isfinite(x) else None for name, x in values.items()}
    return {"key": job.key, "lr": job.setting.lr, "seed": job.seed, "values": finite}


# ---- which runs


def score(job: Job, done: Done) -> float:
    """Returns the validation score of a run, minus infinity where it diverged."""
    values = done[job.key]["values"]
    sign, measure = (1, "accuracy") if "accuracy" in values else (-1, "loss")
    value = values.get(measure)
    return -math.inf if value is None else sign * value


def _screening_scores(
    study: Study, case: Case, tried: Iterable[Setting], done: Done
) -> dict[Setting, float]:
    """Returns the mean score of each setting over the screening seeds, the best first."""
    means = {x: fmean(score(job, done) for job in study.screening_jobs(case, [x])) for x in tried}
    return dict(sorted(means.items(), key=lambda pair: pair[1], reverse=True))


def screen(study: Study, case: Case, done: Done) -> tuple[list[Setting], bool]:
    """Lists the settings that screening tries, as far as known, and whether all ran.

    Each stage follows from the one before.

    Args: as for `finalists`.
    """
    tried: list[Setting] = []

    def known(settings: Iterable[Setting]) -> bool:
        tried.extend(x for x in dict.fromkeys(settings) if x not in tried)
        return all(job.key in done for job in study.screening_jobs(case, tried))

    first = Stage("lr", study.rates)
    for stage in (first, *study.stages):
        knob, factors = stage.line(case)
        scores = _screening_scores(study, case, tried, done)
        # Before the first stage nothing was tried.
        ranked = [*scores] or [Setting(1.0)]
        lines = [[scale_knob(x, knob, f) for f in factors] for x in ranked[: stage.keep]]
        if not known(x for line in lines for x in line):
            return tried, False
        # Without a second point of its line there is no step to go on by.
        for _ in range(EXTENSIONS if study.extends and len(factors) > 1 else 0):
            best = next(iter(_screening_scores(study, case, tried, done)))
            steps = {line[0]: factors[0] / factors[1] for line in lines}
            steps |= {line[-1]: factors[-1] / factors[-2] for line in lines}
            if best not in steps:
                break
            new = scale_knob(best, knob, steps[best])
            for line in lines:
                if line[0] == best:
                    line.insert(0, new)
                elif line[-1] == best:
                    line.append(new)
            if not known([new]):
                return tried, False
    return tried, True


def finalists(study: Study, case: Case, done: Done) -> list[Setting] | None:
    """Selects the settings that screening ranks best; ``None`` if runs are missing.

    Those that diverged come last.

    Args: study, case: what is tuned. done: its results so far, see `load_results`.
    """
    tried, all_ran = screen(study, case, done)
    if not all_ran:
        return None
    ranked = [*_screening_scores(study, case, tried, done)]
    if study.is_careful(case):
        ranked = [setting for setting in ranked if not at_edge(setting, tried)]
    return ranked[: study.finalists_of(case)]


def at_edge(setting: Setting, tried: Iterable[Setting]) -> bool:
    """Tells whether the rate or the clip is the least or largest that was tried."""
    for value, values in zip(setting[:2], (*zip(*tried, strict=True),)[:2], strict=True):
        ends = min(values), max(values)
        # A knob that was never turned has no edge.
        if ends[0] < ends[1] and value in ends:
            return True
    return False


def cliff(
    study: Study, case: Case, setting: Setting, tried: Iterable[Setting], done: Done
) -> float:
    """Finds the least factor on rate times clip, which bound a step, at which the screening runs
    scored worse by more than `FALL`; NaN where they did at no larger step.

    Args: study, case, done: as for `finalists`. setting: chosen among those tried.
    """
    scores = _screening_scores(study, case, tried, done)
    # Rates are rounded: an equal step may look larger by as much.
    fallen = (x for x in scores if scores[x] < scores[setting] - FALL)
    factors = (x.lr * x.clip / setting.lr / setting.clip for x in fallen)
    return min((factor for factor in factors if factor > 1.01), default=math.nan)


def best_setting(study: Study, case: Case, done: Done) -> Setting | None:
    """Chooses the finalist with the best mean validation score over the tuning seeds, of a careful
    case less one standard error; ``None`` if runs are missing.

    Args: as for `finalists`.
    """
    settings = finalists(study, case, done)
    if settings is None:
        return None
    jobs = [*study.screening_jobs(case, settings), *study.final_jobs(case, settings)]
    if any(job.key not in done for job in jobs):
        return None

    def worth(setting: Setting) -> float:
        scores = [score(job, done) for job in jobs if job.setting == setting]
        return fmean(scores) - (sem(scores) if study.is_careful(case) else 0.0)

    # In order: of equal scores the smaller rate is taken.
    return max(sorted(settings), key=worth)


def reported_settings(study: Study, case: Case, done: Done) -> tuple[Setting, ...]:
    """Lists the settings that a case is reported at; none as long as tuning is not finished.

    Args: as for `finalists`.
    """
    if study.settings is not None:
        return study.settings[case.key]
    setting = best_setting(study, case, done)
    return () if setting is None else (setting,)


def known_jobs(study: Study, case: Case, done: Done) -> Iterator[Job]:
    """Lists the runs of a case as far as they are known: each stage decides the next.

    Args: study, case, done: as for `finalists`.
    """
    # A study without a search has its setting before any result.
    if study.settings is None:
        tried, _ = screen(study, case, done)
        yield from study.screening_jobs(case, tried)
        yield from study.final_jobs(case, finalists(study, case, done) or [])
    for setting in reported_settings(study, case, done):
        yield from study.report_jobs(case, setting)


def count_runs(study: Study, path: Path) -> tuple[int, int]:
    """Counts the runs done, and all that are known so far: each stage decides the next."""
    done = load_results(path)
    jobs = [job for case in study.cases for job in known_jobs(study, case, done)]
    return sum(job.key in done for job in jobs), len(jobs)


# ---- all runs


def run_study(study: Study, path: Path, *, jobs: int = 1, bar: bool = True) -> Done:
    """Runs what is missing in the file of results; each case is tuned before it is reported.

    Args:
        study: what to run.
        path: JSON lines; every finished run is on the disk before the next is begun.
        jobs: runs at once, see `fl.compare`, each with one thread.
        bar: show the progress.

    Raises: ``ValueError`` when another process is at work on the same file.
    Guarantees: killed at any point and called again, no finished run is lost or done twice
        (test_runner.py::test_a_study_goes_on_after_a_kill).
    """
    options: Any = {"unit": "run", "disable": not bar, "mininterval": 5}
    with (
        lock_folder(path.parent, f".{path.name}.lock"),
        tqdm(initial=count_runs(study, path)[0], **options) as shown,
    ):
        done = load_results(path)
        # While the last of a group of cases are tuned, others of it keep the processes busy.
        size = abs(jobs) * 4
        for start in range(0, len(study.cases), size):
            group = study.cases[start : start + size]
            while missing := _missing_jobs(study, group, done):
                shown.total = shown.n + len(missing)
                calls = [(job.key, partial(run_job, job)) for job in missing]
                for _, entry in run_calls(calls, jobs):
                    # On the disk before the next run is asked for: a kill loses none that ended.
                    append_line(path, entry)
                    done[entry["key"]] = entry
                    shown.update()
    return done


def _missing_jobs(study: Study, cases: Iterable[Case], done: Done) -> list[Job]:
    """Lists the known jobs of some cases that are not done."""
    jobs = (job for case in cases for job in known_jobs(study, case, done))
    return [job for job in jobs if job.key not in done]


# ---- frames


def study_frame(study: Study, path: Path) -> pd.DataFrame:
    """Tabulates each reported run: study, method, its labels, learning rate, seed, measures.

    ``at_edge`` says that the chosen rate or clip is the least or largest that was tried; the
    factor ``cliff`` on it leads to a fall, see `cliff`;
    ``clip_norm`` and ``ratio`` (of A's rate to B's) are tuned with it, with ``tries`` runs;
    ``spent`` is the ε of the ledger, where ``epsilon`` is the budget that labels the case.
    Unfinished cases are left out.

    Guarantees: a label is the declared one, whatever is measured
        (test_runner.py::test_a_study_goes_on_after_a_kill).
    """
    done = load_results(path)
    rows = []
    # A setting is reported whole or not at all: fewer seeds would look like more certainty.
    for case in study.cases:
        for setting in reported_settings(study, case, done):
            jobs = list(study.report_jobs(case, setting))
            if not all(job.key in done for job in jobs):
                continue
            about = _describe_setting(study, case, setting, done)
            for job in jobs:
                values = done[job.key]["values"]
                measures = {"spent" if name == "epsilon" else name: x for name, x in values.items()}
                rows.append({**about, "seed": job.seed, **measures})
    return pd.DataFrame(rows)


def _describe_setting(study: Study, case: Case, setting: Setting, done: Done) -> dict[str, Any]:
    """Returns the columns that name a case and the setting that it is reported at."""
    row = {"study": study.name, "method": case.method.slug, **case.labels, "lr": setting.lr}
    tried, _ = screen(study, case, done) if study.settings is None else ([], True)
    if tried:
        row["at_edge"] = at_edge(setting, tried)
        row["cliff"] = cliff(study, case, setting, tried, done)
    if study.stages or study.settings is not None:
        clip = case.privacy.get("clip_norm", Privacy.clip_norm) if case.is_private else math.nan
        row |= {"clip_norm": setting.clip * clip, "ratio": setting.ratio}
    if study.stages:
        # Every try of a case but its reported runs.
        finals = study.final_jobs(case, tried[: study.finalists_of(case)])
        row["tries"] = len(study.screening_jobs(case, tried)) + len(list(finals))
    return row


def select_rows(frame: pd.DataFrame, **where: Any) -> pd.DataFrame:
    """Selects the rows with these labels; ``epsilon=None`` is no privacy."""
    rows: Any = frame
    for name, value in where.items():
        column = rows[name]
        rows = rows[column.isna() if value is None else column == value]
    return rows


def runs_frame(name: str, folder: Path) -> pd.DataFrame:
    """Tabulates every run of a study that is done, also those that tuned.

    Returns: method, labels, lr, clip, ratio, seed, job, rho (where the run kept it), spent (its ε)
        and accuracy.
    """
    study = STUDIES[name]
    done = load_results(folder / "runs" / f"{name}.jsonl")
    rows = []
    for case in study.cases:
        for job in known_jobs(study, case, done):
            if job.key in done:
                values = done[job.key]["values"]
                row = {"method": case.method.slug, **case.labels, **job.setting._asdict()}
                row |= {"seed": job.seed, "job": job, "rho": values.get("amplification")}
                row |= {"spent": values.get("epsilon")}
                # A run that diverged has no score.
                rows.append(row | {"accuracy": values.get("accuracy") or 0.0})
    return pd.DataFrame(rows)


def first_tries(name: str, folder: Path) -> pd.DataFrame:
    """Selects of `runs_frame` the runs of the first tuning seed."""
    return select_rows(runs_frame(name, folder), seed=STUDIES[name].tune_seeds[0])


def describe_study(study: Study, path: Path) -> dict[str, Any]:
    """Returns what a study asks, how many of its runs are done, and the versions that ran it.

    Args: study: declared. path: its file of results.
    """
    done, total = count_runs(study, path)
    return {
        "study": study.name,
        "note": study.note,
        "runs": total,
        "done": done,
        "versions": {name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
    }


def read_study(name: str, folder: Path = RESULTS) -> pd.DataFrame:
    """Reads the committed frame of a study, which `python -m studies NAME` makes."""
    return pd.read_csv(folder / f"{name}.csv")


def read_studies(folder: Path = RESULTS) -> dict[str, pd.DataFrame]:
    """Reads the committed frames of the declared studies, by name."""
    return {name: read_study(name, folder) for name in STUDIES}
