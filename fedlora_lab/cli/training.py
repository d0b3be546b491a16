"""What run, compare and finetune do when their options have been read."""

import shlex
import time
from collections.abc import Iterable, Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from fedlora_lab import tasks
from fedlora_lab._utils.options import RunSettings
from fedlora_lab._utils.validation import check, few
from fedlora_lab.cli import options as read
from fedlora_lab.experiments import finetune as tuning
from fedlora_lab.experiments.tuned_rates import load_rates, suggestion
from fedlora_lab.federated.compare import BAR, Cell, show_progress
from fedlora_lab.federated.records import Round
from fedlora_lab.methods.plan import Lora, Plan
from fedlora_lab.privacy.plan import Privacy
from fedlora_lab.report.cells import claim_cells, round_line, run_cell, without_folders
from fedlora_lab.report.page import report
from fedlora_lab.report.run_folder import Folder
from fedlora_lab.report.summary_table import summary_lines
from fedlora_lab.tasks.task import Task

PLAN_FIELDS = ("rounds", "local_steps", "batch", "participation", "optimizer")
PRIVACY_FIELDS = ("unit", "delta", "trust", "clip_norm", "accountant")
SPLIT_ARGUMENTS = {"clients": "clients", "dirichlet": "alpha"}
"""Option -> argument of the task's builder."""
LORA_FIELDS = {"rank": "rank", "lora_alpha": "alpha"}
"""Option -> field of `Lora`."""


def train(
    task_name: str,
    slugs: list[str],
    seeds: list[Any],
    *,
    out: Path | None,
    fresh: bool,
    every_round: bool = False,
    **options: Any,
) -> None:
    """Trains every run that is not finished, then shows the table and writes the report.

    Args:
        task_name: an embedded task.
        slugs: methods and baselines.
        seeds: each method runs with each of them.
        out: run folder; ``None``: runs/TASK.
        fresh: clear it before.
        every_round: print a line for every round.
        options: settings by name; those that were not typed are chosen.
    """
    asked = read.typed_options(options)
    task, privacy, plan, lora = build_setup(task_name, asked)
    rates = learning_rates(asked, task.name, slugs)
    cells = [
        Cell.from_name(slug, task, privacy, plan.replace(lr=rates[slug]), lora, seed)
        for slug in slugs
        for seed in seeds
    ]
    with Folder(out or Path("runs") / task_name) as folder:
        command = shlex.join(
            ["fedlora-lab", *map(without_folders, click.get_current_context().obj)]
        )
        cells = claim_cells(folder, task, privacy, cells, command, fresh)
        waiting = [
            cell for cell in cells if folder.last_round(cell.slug, cell.seed) < cell.plan.rounds
        ]
        if finished := len(cells) - len(waiting):
            click.echo(f"{finished} of {len(cells)} runs are finished in {folder.path} and kept")
        with tqdm(total=sum(cell.plan.rounds for cell in waiting), disable=None, **BAR) as bar:
            for cell in waiting:
                train_cell(folder, cell, asked.get("stop_at"), bar, every_round)
        begun = any(folder.last_round(cell.slug, cell.seed) > 0 for cell in cells)
        room = "room for one round of a run, but the first spends more"
        check(begun, "stop_at", asked.get("stop_at"), room)
        frame = folder.gather()
        page = report(folder.path)
        table = "\n".join(summary_lines(frame, None if privacy is None else privacy.trust))
        paragraphs = [table, *folder.statements(frame), f"report: {page}"]
        click.echo("\n" + "\n\n".join(paragraphs))


def train_cell(
    folder: Folder, cell: Cell, stop_at: float | None, bar: "tqdm[Any]", every_round: bool
) -> None:
    """Runs a cell, with a bar on a terminal and plain lines in a log.

    Args:
        folder, cell: of the run.
        stop_at: as of `fl.run`.
        bar: counts the rounds of all runs.
        every_round: print a line for every round.
    """
    begun = time.perf_counter()
    name = f"{cell.slug}, seed {'none' if cell.seed is None else cell.seed}"
    line = "no round was run"
    events = run_cell(folder, cell, stop_at)
    for event in show_progress(bar, cell.plan, name, events, round_line):
        if isinstance(event, Round):
            line = round_line(event)
            if every_round:
                bar.write(f"round {event.index}: {line}")
    # Time may tell of a single example: the log of a release does not hold it.
    took = "" if cell.seed is None else f" ({time.perf_counter() - begun:.1f} s)"
    bar.write(f"{name}: {line}{took}")


def finetune(data: Path, asked: dict[str, Any], out: Path, fresh: bool, seed: int | None) -> None:
    """Calls `fl.finetune` with the options of the command, and writes the report.

    Args: data: CSV file or folder of images. asked: what was given. out, fresh, seed: as there.
    """
    settings = {name: value for name, value in asked.items() if name not in LORA_FIELDS}
    if adapter := lora_fields(asked):
        settings["lora"] = Lora(**adapter)
    model = settings.pop("model")
    tuned = tuning.finetune(
        model, data, out=out, fresh=fresh, seed=seed, say=click.echo, **settings
    )
    click.echo(f"report: {report(tuned.folder)}")


# ---- from options to a run's parts


def lora_fields(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `Lora` that were asked for."""
    return {LORA_FIELDS[name]: value for name, value in _pick(asked, LORA_FIELDS).items()}


def _pick(asked: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Those of some settings that were asked for."""
    return {name: asked[name] for name in names if name in asked}


def build_setup(name: str, asked: Mapping[str, Any]) -> tuple[Task, Privacy | None, Plan, Lora]:
    """Builds task, privacy, plan and adapter: of what was asked for, else of the setting that the
    task's learning rates were tuned in, else of the defaults.

    Args: name: of the task. asked: settings by name.
    """
    takes = signature(tasks.TASKS[name]).parameters
    split = {}
    for option, argument in SPLIT_ARGUMENTS.items():
        if option in asked:
            value = asked[option]
            check(argument in takes, f"--{option}", value, f"not given, since {name} has none")
            split[argument] = value
    task = tasks.build(name, **split)
    tuned: dict[str, Any] = load_rates().get(task.name, {}).get("setting", {})
    plan = Plan(**{**tuned.get("plan", {}), **_pick(asked, PLAN_FIELDS)})
    lora = Lora(**{**tuned.get("lora", {}), **lora_fields(asked)})
    epsilon = asked.get("epsilon", RunSettings.epsilon)
    if epsilon is None:
        ignored = _pick(asked, (*PRIVACY_FIELDS, "stop_at"))
        check(not ignored, "epsilon", None, f"a number where {few(ignored)} is given")
        return task, None, plan, lora
    # What was tuned for single examples says nothing about larger units.
    usual = tuned.get("privacy", {}) if asked.get("unit", "example") == "example" else {}
    privacy = Privacy(**{**usual, **_pick(asked, PRIVACY_FIELDS)})
    return task, privacy.calibrate(epsilon=epsilon, task=task, plan=plan), plan, lora


def learning_rates(asked: Mapping[str, Any], task: str, slugs: list[str]) -> dict[str, float]:
    """Finds each method's learning rate: the one that was asked for, else what is suggested, with a
    line for each suggestion that was tuned for something else.

    Args: asked: settings by name. task, slugs: of the runs.
    """
    if "lr" in asked:
        return dict.fromkeys(slugs, asked["lr"])
    plain = asked.get("optimizer", "sgd") == "sgd"
    check(plain, "lr", None, "a number with --optimizer adamw: what is suggested is for sgd")
    epsilon = asked.get("epsilon", RunSettings.epsilon)
    unit = asked.get("unit", RunSettings.unit)
    tuned: dict[str, Any] = load_rates().get(task, {}).get("setting", {})
    adapter = Lora(**{**tuned.get("lora", {}), **lora_fields(asked)})
    rates = {}
    for slug in slugs:
        suggested = suggestion(task, slug, epsilon, unit, adapter)
        rates[slug] = suggested.lr
        if not suggested.exact:
            click.echo(f"{slug}: learning rate {suggested.lr:g}, {suggested.origin}")
    return rates
