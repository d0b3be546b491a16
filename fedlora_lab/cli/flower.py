"""The command that trains through Flower's simulation engine."""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from fedlora_lab.cli import cells
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
    """Train on TASK with every client a node of Flower's simulation: the same run, over Flower's messages.

    Clients clip and noise for themselves: in the client unit --trust is local or secagg. A run that was killed goes on
    with the same command; where clients keep something, which went with their processes, training begins anew. Either
    way the ledger counts what was released before. Telemetry is off unless FLWR_TELEMETRY_ENABLED=1.
    """
    number = read.seed(seed)
    options["out"] = options["out"] or f"runs/flower-{task}-{method}"
    work(task, [method], [number], options, every_round=True, play=play)


def play(folder: Folder, cell: "Cell", stop_at: float | None = None) -> "Iterator[Round]":
    """Run a cell on Flower; keeps its state, its frame and its ledger in the folder as `cells.play` does."""
    from fedlora_lab.flower import simulate

    parts = (cell.task, cell.method, cell.privacy, cell.plan)
    return cells.play(folder, cell, stop_at, partial(simulate, *parts, lora=cell.lora, seed=cell.seed))
