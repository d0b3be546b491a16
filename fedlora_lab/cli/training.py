"""What run, compare and finetune do when their options have been read."""

import runpy
import shlex
from collections.abc import Iterable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from fedlora_lab import methods, tasks
from fedlora_lab._utils.files import write_atomically
from fedlora_lab._utils.run_settings import RunSettings
from fedlora_lab._utils.validation import check, few, in_one_line
from fedlora_lab.cli import options as read
from fedlora_lab.federated.compare import BAR, announcement, checked_cells, grid_points
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.plan import Lora, Plan
from fedlora_lab.privacy.plan import Privacy
from fedlora_lab.recipes import finetune as tuning
from fedlora_lab.recipes.protocol import QUICK, SEEDS, card_lines, run_protocol
from fedlora_lab.recipes.tuned_rates import load_rates, nearest_tuned_rate
from fedlora_lab.report.cells import run_in_folder, without_folders
from fedlora_lab.report.page import read_runs, report
from fedlora_lab.report.run_folder import to_json
from fedlora_lab.report.summary_table import summary_lines
from fedlora_lab.tasks.task import Task

PLAN_FIELDS = ("rounds", "local_steps", "batch", "participation", "optimizer")
PRIVACY_FIELDS = ("unit", "delta", "trust", "clip_norm", "accountant")
SPLIT_OPTIONS = ("clients", "dirichlet")
"""Arguments of the task's builder."""
LORA_FIELDS = {"rank": "rank", "lora_alpha": "alpha"}
"""Option -> field of `Lora`."""


def train(
    task_name: str,
    names: list[str],
    seeds: list[Any],
    *,
    out: Path | None,
    fresh: bool,
    jobs: int | None = None,
    every_round: bool = False,
    **options: Any,
) -> None:
    """Trains every run that is not finished, then shows the table and writes the report.

    Args:
        task_name: an embedded task.
        names: methods and baselines, and rows of files of the reader's own.
        seeds: each method runs with each of them.
        out: run folder; ``None``: runs/TASK.
        fresh: clear it before.
        jobs: runs at once.
        every_round: print a line for every round.
        options: settings by name; those that were not typed are chosen.
    """
    asked = read.typed_options(options)
    rows = [load_row(name) if read.OF_FILE in name else name for name in names]
    task, privacy, plan, lora = build_setup(task_name, asked)
    plans: Any = plan
    if "lr" not in asked:
        rates = learning_rates(asked, task.name, rows)
        plans = {slug: plan.replace(lr=rate) for slug, rate in rates.items()}
    points = grid_points(None, asked.get("lr"))
    stop = {"max_epsilon": asked["max_epsilon"]} if "max_epsilon" in asked else {}
    cells = checked_cells(task, rows, privacy, plans, seeds, lora, points, stop)
    out = out or Path("runs") / task_name
    command = shlex.join(["fedlora-lab", *map(without_folders, click.get_current_context().obj)])
    if len(cells) > 1:
        click.echo(announcement(cells, jobs, out))
    with tqdm(total=sum(cell.plan.rounds for cell in cells), disable=None, **BAR) as bar:
        frame = run_in_folder(
            out, task, cells, command, jobs, bar, fresh, every_round, bar.write, **stop
        )
    table = "\n".join(summary_lines(frame, None if privacy is None else privacy.trust))
    page = report(out)
    click.echo("\n" + "\n\n".join([table, *read_runs(out).sentences, f"report: {page}"]))


def load_row(text: str, argument: str = "--methods") -> Method:
    """Runs a file of the reader's own and takes a row of it.

    Args: text: ``FILE.py:NAME``. argument: that it was given as.
    """
    path, _, name = text.rpartition(":")
    with in_one_line(f"{argument}={text!r}: expected a file that runs, but"):
        content = runpy.run_path(path)
    rows = [key for key, value in content.items() if isinstance(value, Method)]
    check(name in rows, argument, text, "a row of the file: " + (few(rows, 8) or "it has none"))
    return content[name]


def submit(name: str, out: Path, jobs: int, quick: bool) -> None:
    """Trains a row by the protocol of the open table; writes its card and shows it.

    Args:
        name: of the table, or of a file of the reader's own.
        out: folder. jobs: runs at once. quick: only try the row.
    """
    row = load_row(name, "row") if read.OF_FILE in name else methods.get(name)
    path = out / f"{row.slug}.json"
    check(quick or not path.exists(), "--out", path, "a folder without a card of this row")
    with tqdm(disable=None, **BAR) as bar:
        if quick:
            card = run_protocol(row, jobs=jobs, settings=QUICK, seeds=SEEDS[:1], bar=bar)
        else:
            store = out / f"{row.slug}.runs.jsonl"
            card = run_protocol(row, jobs=jobs, store=store, bar=bar)
            write_atomically(path, to_json(card), shared=True)
    click.echo("\n".join(card_lines(card)))
    if not quick:
        place = f"results/table/{path.name}"
        click.echo(f"card: {path}; to publish it, send it with the row as {place}")


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
    split = _pick(asked, SPLIT_OPTIONS)
    for option, value in split.items():
        check(option in takes, f"--{option}", value, f"not given, since {name} has none")
    task = tasks.build(name, **split)
    tuned: dict[str, Any] = load_rates().get(task.name, {}).get("setting", {})
    plan = Plan(**{**tuned.get("plan", {}), **_pick(asked, PLAN_FIELDS)})
    lora = Lora(**{**tuned.get("lora", {}), **lora_fields(asked)})
    epsilon = asked.get("epsilon", RunSettings.epsilon)
    if epsilon is None:
        ignored = _pick(asked, (*PRIVACY_FIELDS, "max_epsilon"))
        check(not ignored, "epsilon", None, f"a number where {few(ignored)} is given")
        return task, None, plan, lora
    # What was tuned for single examples says nothing about larger units.
    usual = tuned.get("privacy", {}) if asked.get("unit", "example") == "example" else {}
    privacy = Privacy(**{**usual, **_pick(asked, PRIVACY_FIELDS)})
    return task, privacy.calibrate(epsilon=epsilon, task=task, plan=plan), plan, lora


def learning_rates(
    asked: Mapping[str, Any], task: str, rows: Sequence[Method | str]
) -> dict[str, float]:
    """Finds each method's learning rate by what was tuned, and says what it was tuned for.

    Args: asked: settings by name. task, rows: of the runs.
    """
    plain = asked.get("optimizer", "sgd") == "sgd"
    check(plain, "lr", None, "a number with --optimizer adamw: what is suggested is for sgd")
    epsilon = asked.get("epsilon", RunSettings.epsilon)
    unit = asked.get("unit", RunSettings.unit)
    tuned: dict[str, Any] = load_rates().get(task, {}).get("setting", {})
    adapter = Lora(**{**tuned.get("lora", {}), **lora_fields(asked)})
    rates = {}
    for row in rows:
        slug = row if isinstance(row, str) else row.slug
        suggested = nearest_tuned_rate(task, row, epsilon, unit, adapter)
        rates[slug] = suggested.lr
        click.echo(f"{slug}: learning rate {suggested.lr:g}, {suggested.origin}")
    # What was not asked for is as it was tuned.
    work = {**tuned.get("plan", {}), **tuned.get("privacy", {})}
    other = [
        f"{name}={asked[name]}, not {work[name]}"
        for name in work
        if asked.get(name, work[name]) != work[name]
    ]
    if other and unit == "example":
        click.echo(f"these rates were tuned for other work ({'; '.join(other)}): --lr tries others")
    return rates
