"""The command that trains through Flower's simulation engine."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from fedlora_lab.checks import check
from fedlora_lab.cli import options as read
from fedlora_lab.cli.runs import work
from fedlora_lab.folder import Folder

if TYPE_CHECKING:
    from fedlora_lab.comparison import Cell
    from fedlora_lab.record import Round


@click.command(short_help="Train one method on Flower's simulation engine.")
@click.argument("task")
@click.option("--method", default="fedlora", metavar="A", show_default=True, help="A method of the table.")
@click.option("--seed", default="0", metavar="N", help="A whole number, or none: fresh entropy, fit for release.  [0]")
@read.shared
def flower(task: str, method: str, seed: str, **options: Any) -> None:
    """Train on TASK with every client in a process of Flower's simulation: the same run, over Flower's messages.

    Clients clip and noise for themselves: in the client unit --trust is local or secagg. A run that was killed begins
    anew, since its clients' state went with their processes. Telemetry is off unless FLWR_TELEMETRY_ENABLED=1.
    """
    check(seed == "none" or seed.isdigit(), "seed", seed, "a whole number >= 0, or none")
    options["out"] = options["out"] or f"runs/flower-{task}-{method}"
    work(task, [method], [None if seed == "none" else int(seed)], options, every_round=True, play=play)


def play(folder: Folder, cell: "Cell") -> "Iterator[Round]":
    """Run a cell on Flower; keeps its frame and ledger in the folder."""
    from fedlora_lab.flower import simulate

    records = []
    for record in simulate(cell.task, cell.method, cell.privacy, cell.plan, lora=cell.lora, seed=cell.seed):
        records.append(record)
        yield record
    ledger = records[-1].ledger
    text = None if ledger is None else json.loads(ledger.to_json())
    folder.save(cell.slug, cell.seed, cell.frame(records), text)
