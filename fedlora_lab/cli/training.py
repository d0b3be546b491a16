"""What run, compare and finetune do when their options have been read."""

import shlex
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

import fedlora_lab as fl
from fedlora_lab._utils.options import RunSettings
from fedlora_lab._utils.validation import check
from fedlora_lab.cli import options as read
from fedlora_lab.cli import status
from fedlora_lab.experiments.tuned_rates import load_searches, suggestion
from fedlora_lab.federated.compare import BAR, Cell, Progress
from fedlora_lab.federated.records import Round, Tick
from fedlora_lab.methods.optimizers import SGD, optimizer_of
from fedlora_lab.report.page import report
from fedlora_lab.report.promise import folder_statements
from fedlora_lab.report.run_folder import Folder, run_cell, run_settings
from fedlora_lab.report.summary_table import (
    collapse_text,
    format_deviation,
    format_number,
    observer_phrase,
    summary_lines,
)

PLAN_FIELDS = (
    "rounds", "local_steps", "batch", "participation", "optimizer", "server_optimizer", "server_lr",
)  # fmt: skip
LORA_FIELDS = {"rank": "rank", "lora_alpha": "alpha"}
"""Option -> field of `Lora`."""
RatesByMethod = dict[str, float | Mapping[str, float]]


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
    stop_at = asked.get("stop_at")
    if stop_at is not None:
        check(privacy is not None, "stop_at", stop_at, "not given with --epsilon none")
    rates = learning_rates(asked, task.name, slugs, plan)
    cells = [
        Cell.from_name(slug, task, privacy, plan.replace(lr=rates[slug]), lora, seed)
        for slug in slugs
        for seed in seeds
    ]
    with Folder(out or Path("runs") / task_name) as folder:
        if fresh:
            folder.clear()
        command = shlex.join(["fedlora-lab", *click.get_current_context().obj])
        settings = folder.claim(run_settings(folder, task, privacy, cells, command))
        # Run with the noise that stands in the folder, to the last bit.
        stored = {slug: one and fl.Privacy(**one) for slug, one in settings["privacies"].items()}
        cells = [replace(cell, privacy=stored[cell.slug]) for cell in cells]
        waiting = [cell for cell in cells if not folder.is_complete(cell)]
        if kept := len(cells) - len(waiting):
            status.say(f"{kept} of {len(cells)} runs are finished in {folder.path} and kept")
        with tqdm(total=sum(cell.plan.rounds for cell in waiting), disable=None, **BAR) as bar:
            status.end()
            for number, cell in enumerate(waiting, 1):
                events = run_cell(folder, cell, stop_at)
                show_cell(folder, cell, events, bar, f"[{number}/{len(waiting)}]", every_round)
        status.begin("writing the report")
        trust = None if privacy is None else privacy.trust
        frame = folder.gather()
        page = report(folder.path)
        parts = ["\n".join(summary_lines(frame, trust)), *folder_statements(folder)]
        status.say("\n" + "\n\n".join([*parts, f"report: {page}"]))


def finetune(data: Path, asked: dict[str, Any], out: Path, fresh: bool, seed: int | None) -> None:
    """Calls `fl.finetune` with the options of the command.

    Args: data: CSV file or folder of images. asked: what was given. out, fresh, seed: as there.
    """
    settings = {name: value for name, value in asked.items() if name not in LORA_FIELDS}
    if settings.get("batch", 1) is None:
        settings["batch"] = "all"
    if adapter := lora_fields(asked):
        settings["lora"] = fl.Lora(**adapter)
    model = settings.pop("model")
    fl.finetune(model, data, out=out, fresh=fresh, seed=seed, say=status.say, **settings)


# ---- from options to a run's parts


def lora_fields(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `Lora` that were asked for."""
    return {LORA_FIELDS[name]: value for name, value in asked.items() if name in LORA_FIELDS}


def build_setup(
    name: str, asked: Mapping[str, Any]
) -> tuple[fl.tasks.Task, fl.Privacy | None, fl.Plan, fl.Lora]:
    """Builds task, privacy, plan and adapter: of what was asked for, else of the setting that the
    task's learning rates were tuned in, else of the defaults.

    Args: name: of the task. asked: settings by name.
    """
    takes = signature(fl.tasks.TASKS[name]).parameters
    split = {key: asked[key] for key in ("clients", "alpha") if key in asked}
    for key, value in split.items():
        check(key in takes, f"--{key}", value, f"not given, since {name} has none")
    task = fl.tasks.build(name, **split)
    tuned: dict[str, Any] = load_searches().get(task.name, {}).get("setting", {})
    work = {key: asked[key] for key in PLAN_FIELDS if key in asked}
    plan = fl.Plan(**{**tuned.get("plan", {}), **work})
    lora = fl.Lora(**{**tuned.get("lora", {}), **lora_fields(asked)})
    epsilon = asked.get("epsilon", RunSettings.epsilon)
    if epsilon is None:
        return task, None, plan, lora
    unit = asked.get("unit", RunSettings.unit)
    terms = {
        key: asked[key] for key in ("delta", "trust", "clip_norm", "accountant") if key in asked
    }
    # What was tuned for single examples says nothing about larger units.
    usual = tuned.get("privacy", {}) if unit == "example" else {}
    privacy = fl.Privacy(unit=unit, **{**usual, **terms})
    return task, privacy.calibrate(epsilon=epsilon, task=task, plan=plan), plan, lora


def learning_rates(
    asked: Mapping[str, Any], task: str, slugs: list[str], plan: fl.Plan
) -> RatesByMethod:
    """Finds each method's learning rate: one for all, one for each factor, one for each method,
    else what is suggested, with a line for each suggestion that was tuned for something else.

    Args:
        asked: settings by name; ``lr`` is a number, or a mapping from factors or methods.
        task, slugs: of the runs.
        plan: its optimizer; suggestions were tuned for SGD, others need a rate of their own.
    """
    lr = asked.get("lr", {})
    if not isinstance(lr, Mapping) or (lr and set(lr) <= {"A", "B", "head"}):
        return dict.fromkeys(slugs, lr)
    words = f"names among {', '.join(slugs)}, or A, B, head"
    check(set(lr) <= set(slugs), "lr", dict(lr), words)
    rule = optimizer_of(plan.optimizer)
    rates: RatesByMethod = dict(lr)
    for slug in (slug for slug in slugs if slug not in lr):
        why = f"a number with --optimizer {rule}: what is suggested was tuned for sgd"
        check(rule.linear, "lr", None, why)
        epsilon = asked.get("epsilon", RunSettings.epsilon)
        found = suggestion(task, slug, epsilon, asked.get("unit", RunSettings.unit))
        rates[slug] = found.lr
        plain = rule == SGD()
        if not (found.exact and plain):
            without = "" if plain else f", without {rule}"
            status.say(f"{slug}: learning rate {found.lr:g}, {found.words}{without}")
    return rates


# ---- what is shown


def round_line(record: Round | None) -> str:
    """Describes one round."""
    if record is None:
        return "no round was run"
    names = [name for name in ("accuracy", "loss") if name in record.metrics]
    scores = [f"{name} {format_number(record.metrics[name], infinite='∞')}" for name in names[:1]]
    against = observer_phrase(None if record.ledger is None else record.ledger.trust)
    epsilon = f"ε {format_number(record.epsilon, 2)}{against}"
    return ", ".join([*scores, epsilon, f"deviation {format_deviation(record.deviation)}"])


def show_cell(
    folder: Folder,
    cell: Cell,
    events: Iterator[Round | Tick],
    bar: "tqdm[Any]",
    count: str,
    every_round: bool,
) -> None:
    """Runs a cell, with a bar on a terminal and plain lines in a log.

    Args:
        folder, cell: of the run.
        events: the run.
        bar: counts the rounds of all runs.
        count: which of all runs this is, in words.
        every_round: print a line for every round.
    """
    begun = time.perf_counter()
    name = f"{cell.slug}, seed {'none' if cell.seed is None else cell.seed}"
    progress = Progress(bar, cell.plan, name)
    last = None
    for event in events:
        line = ""
        if isinstance(event, Round):
            last = event
            line = round_line(event)
        progress.show(event, line)
        if line and every_round:
            bar.write(f"round {last.index if last else 0}: {line}")
    progress.end()
    frame = folder.read(cell.slug, cell.seed)
    text = ", ".join(filter(None, (round_line(last), collapse_text(frame))))
    ended = int(frame["round"].max())
    if ended < cell.plan.rounds:
        text += f"; stopped after round {ended} of {cell.plan.rounds}"
        text += ", the next could spend more than --stop-at allows"
    # Time may tell of a single example: the log of a release does not hold it.
    took = "" if cell.seed is None else f" ({time.perf_counter() - begun:.1f} s)"
    bar.write(f"{count} {name}: {text}{took}")
