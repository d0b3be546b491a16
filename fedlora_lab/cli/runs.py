"""The commands that train: run (one method, one seed) and compare (methods by seeds)."""

import math
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import click

from fedlora_lab import __version__
from fedlora_lab.checks import check, check_number
from fedlora_lab.cli import options as read
from fedlora_lab.cli.cells import play
from fedlora_lab.cli.small import aligned
from fedlora_lab.folder import Folder, read_json
from fedlora_lab.plan import Lora
from fedlora_lab.summary import against, distance, number, summary, words

if TYPE_CHECKING:
    from fedlora_lab.comparison import Cell
    from fedlora_lab.privacy import Privacy
    from fedlora_lab.record import Round
    from fedlora_lab.tasks import Task

PACKAGES = ("torch", "peft", "opacus", "dp-accounting", "numpy", "scipy", "pandas", "transformers")


@click.command(short_help="Train several methods and write a report.")
@click.argument("task")
@click.option("--methods", default="fedlora,ffa-lora,rolora,deer,la-lora,fedlpp", metavar="A,B", show_default=True,
              help="Methods and the baselines local, central, non-private.")  # fmt: skip
@click.option("--seeds", default="3", metavar="N", help="How many, or a list such as 0,1,2.  [3]")
@read.shared
def compare(task: str, methods: str, seeds: str, **options: Any) -> None:
    """Train several methods on TASK (digits, regression, sentiment) and write a run folder with a report."""
    work(task, read.names("methods", methods), list(read.seeds(seeds)), options)


@click.command(short_help="Train one method, with a line for every round.")
@click.argument("task")
@click.argument("method")
@click.option("--seed", default="0", metavar="N", help="A whole number, or none: fresh entropy, fit for release.  [0]")
@read.shared
def run(task: str, method: str, seed: str, **options: Any) -> None:
    """Train one METHOD on TASK with a line for every round; a killed run goes on with the same command."""
    number = read.seed(seed)
    options["out"] = options["out"] or f"runs/{task}-{method}"
    work(task, [method], [number], options, every_round=True)


Play = Callable[..., "Iterator[Round]"]


def work(
    task_name: str,
    slugs: list[str],
    seeds: list[int | None],
    options: dict[str, Any],
    every_round: bool = False,
    play: Play = play,
) -> None:
    """Train every cell that is not finished, then show the table and write the report; ``play`` is the engine."""
    from fedlora_lab import report, tuning
    from fedlora_lab.comparison import BASELINES, Cell
    from fedlora_lab.methods import get

    task = read.task_of(task_name, options["clients"], options["alpha"])
    for slug in slugs:
        if slug not in BASELINES:
            get(slug)  # a wrong name is told before anything is looked up for it
    tuned = tuning.table().get(task.name, {}).get("setting", {})
    plan, lora = read.plan_of(options, tuned), read.lora_of(options, tuned)
    privacy = read.privacy_of(options, tuned, task, plan)
    if options["stop_at"] is not None:
        check(privacy is not None, "stop_at", options["stop_at"], "not given with --epsilon none")
        check_number("stop_at", options["stop_at"], 0, open_low=True)
        play = partial(play, stop_at=options["stop_at"])
    unit = "example" if privacy is None else privacy.unit
    rates = read.learning_rates(options["lr"], task.name, slugs, read.budget(options), unit, click.echo)
    cells = [Cell.named(s, task, privacy, plan.replace(lr=rates[s]), lora, seed) for s in slugs for seed in seeds]
    with Folder(options["out"] or f"runs/{task_name}") as folder:
        if options["fresh"]:
            folder.clear()
        kept = folder.claim({**shared_by_all(folder, task, privacy, lora), **of_each(cells)})["privacies"]
        train(folder, [replace(cell, privacy=_privacy(kept[cell.slug])) for cell in cells], every_round, play)
        frame = folder.gather()
        click.echo("\n" + "\n".join(lines(frame, None if privacy is None else privacy.trust)))
        for sentence in report.joint(folder.path, read_json(folder.path / "ledger.json")):
            click.echo(f"\n{sentence}")
        click.echo(f"\nreport: {report.report(folder.path)}")


def _privacy(fields: dict[str, Any] | None) -> "Privacy | None":
    """The privacy plan that a folder's settings hold, to the last bit."""
    from fedlora_lab.privacy import Privacy

    return None if fields is None else Privacy(**fields)


def shared_by_all(folder: Folder, task: "Task", privacy: "Privacy | None", lora: Lora) -> dict[str, Any]:
    """What all runs of a folder have in common, and what they ran with."""
    return {
        "format": 1,
        "commands": [shlex.join(["fedlora-lab", *click.get_current_context().obj])],
        "begun": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "task": {
            "name": task.name,
            "info": dict(task.info),
            "sizes": list(task.sizes),
            "test": len(task.test[1]),
            "fingerprint": folder.keyed(task.fingerprint),
        },
        "privacy": None if privacy is None else asdict(privacy),
        "lora": asdict(lora),
        "versions": {
            "fedlora-lab": __version__,
            "Python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
            **{name: version(name) for name in PACKAGES},
        },
    }


def row_of(cell: "Cell") -> dict[str, Any]:
    """A cell's row of the table as JSON values; what was not measured of it is null."""
    from fedlora_lab.methods import table

    row = table([cell.method]).drop(columns=["note"]).loc[cell.method.slug].to_dict()
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}


def of_each(cells: "list[Cell]") -> dict[str, Any]:
    """Plans and rows by name, and the seeds."""
    return {
        "plans": {cell.slug: asdict(cell.plan) for cell in cells},
        "privacies": {cell.slug: None if cell.privacy is None else asdict(cell.privacy) for cell in cells},
        "methods": {cell.slug: row_of(cell) for cell in cells},
        "seeds": list(dict.fromkeys(cell.seed for cell in cells)),
    }


class _Plain:
    """What stands where a progress bar would: nothing moves in a log."""

    def update(self, count: int = 1) -> None:
        """Count nothing."""

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        """Show nothing."""


def _bar(total: int) -> Any:
    """A progress bar on a terminal; in a log nothing that moves."""
    if not sys.stderr.isatty():
        return nullcontext(_Plain())
    from tqdm import tqdm

    return tqdm(total=total, unit="round", dynamic_ncols=True)


def _line(record: "Round") -> str:
    """One round in words."""
    name = next((name for name in ("accuracy", "loss") if name in record.metrics), None)
    score = "" if name is None else f"{name} {number(record.metrics[name], infinite='∞')}"
    seen = against(None if record.ledger is None else record.ledger.trust)
    return f"{score}, ε {number(record.epsilon, 2)}{seen}, deviation {distance(record.deviation)}"


def train(folder: Folder, cells: "list[Cell]", every_round: bool, play: Play = play) -> None:
    """Play the cells that are not finished, with a bar on a terminal and plain lines in a log.

    One that was stopped goes on from its checkpoint; where that is gone it stays as it is.
    """
    todo = [cell for cell in cells if _unfinished(folder, cell)]
    if len(todo) < len(cells):
        click.echo(f"{len(cells) - len(todo)} of {len(cells)} runs are finished in {folder.path} and kept")
    with _bar(sum(cell.plan.rounds for cell in todo)) as bar:
        write = getattr(bar, "write", click.echo)
        for count, cell in enumerate(todo, 1):
            begun, name = time.perf_counter(), f"{cell.slug}, seed {'none' if cell.seed is None else cell.seed}"
            last = None
            for last in play(folder, cell):
                bar.set_postfix_str(f"{name}: {_line(last)}")
                bar.update(1 if last.index else 0)
                if every_round:
                    write(f"round {last.index}: {_line(last)}")
            told = _line(last) if last is not None else "no round was played"
            if fell := words(summary(folder.read(cell.slug, cell.seed)))[0]["fell"]:
                told += f", {fell}"
            if (ended := folder.ended(cell.slug, cell.seed)) < cell.plan.rounds:
                told += f"; stopped after round {ended} of {cell.plan.rounds}, the next could spend more than --stop-at"
            write(f"[{count}/{len(todo)}] {name}: {told} ({time.perf_counter() - begun:.1f} s)")


def _unfinished(folder: Folder, cell: "Cell") -> bool:
    if not folder.done(cell.slug, cell.seed):
        return True
    there = (folder.checkpoint(cell.slug, cell.seed) / "rounds.csv").exists()
    return there and folder.ended(cell.slug, cell.seed) < cell.plan.rounds


def lines(frame: Any, trust: str | None = None) -> list[str]:
    """The table at the end, as it stands in the report too; ``trust`` tells against whom ε holds."""
    table = summary(frame)
    measure = table.attrs["measure"]
    head = [
        "method",
        "seeds",
        f"{measure} before",
        f"{measure} after",
        "deviation",
        "ε",
        "sent up",
        "sent down",
        "seconds",
    ]
    keys = ("method", "seeds", "before", "score", "deviation", "epsilon", "up", "down", "seconds")
    told = words(table)
    rows = [[row[key] for key in keys] for row in told]
    fallen = [f"{row['method']}: {row['fell']}" for row in told if row["fell"]]
    observer = [f"ε:{against(trust)}"] if trust else []
    return [*aligned([head, *rows], right=tuple(range(1, len(head)))), *observer, *fallen]
