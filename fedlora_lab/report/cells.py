"""Runs cells into run folders, from where they were left, and collects the settings of all."""

import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, fields, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from fedlora_lab import methods
from fedlora_lab._utils.environment import __version__
from fedlora_lab._utils.files import JsonObject, write_atomically
from fedlora_lab._utils.validation import check
from fedlora_lab.federated import checkpoint
from fedlora_lab.federated.compare import Cell, show_progress
from fedlora_lab.federated.jobs import run_calls, workers_for
from fedlora_lab.federated.records import LocalStep, Round
from fedlora_lab.federated.spec import rule_identity, without_addresses
from fedlora_lab.methods.method import Method, check_names
from fedlora_lab.privacy.plan import Privacy
from fedlora_lab.report.run_folder import ROWS, Folder, read_frame
from fedlora_lab.report.summary_table import (
    epsilon_text,
    format_deviation,
    format_number,
    observer_phrase,
)
from fedlora_lab.tasks.task import Task

if TYPE_CHECKING:
    from tqdm import tqdm

TASK_RULES = ("forward", "loss", "prepare", "metrics", "targets", "head")
"""What of a task decides numbers beside its data and weights."""
PACKAGES = ("torch", "peft", "dp-accounting", "numpy", "scipy", "pandas", "transformers")


def run_in_folder(
    out: Path,
    task: Task,
    cells: Sequence[Cell],
    command: str,
    jobs: int | None,
    bar: "tqdm[Any]",
    fresh: bool = False,
    every_round: bool = False,
    say: Callable[[str], Any] = bool,
    **options: Any,
) -> pd.DataFrame:
    """Runs what is missing in a run folder, and returns the frame of all.

    The cells of a sweep have a run folder for each setting in this one.

    Args:
        out, task, cells: where, and what is run.
        command: what was called.
        jobs: see `compare`.
        bar: counts the rounds of all runs.
        fresh: clear the folders before.
        every_round: say a line for every round, where runs are not in other processes.
        say: gets a line for every run.
        options: of every run.
    """
    places: dict[str, list[Cell]] = {}
    for cell in cells:
        places.setdefault(cell.place, []).append(cell)
    calls = []
    folders = []
    shown = (bar, every_round) if workers_for(jobs) == 1 else None
    with ExitStack() as stack:
        for place, group in places.items():
            folder = stack.enter_context(Folder(out.expanduser() / place))
            folders.append(folder)
            for cell in claim_cells(folder, task, group[0].shared_privacy, group, command, fresh):
                if folder.last_round(cell.slug, cell.seed) < cell.plan.rounds:
                    # A worker may have been started in another folder.
                    path = folder.path.absolute()
                    calls.append((cell.name, partial(_finish_cell, cell, path, shown, options)))
                else:
                    bar.update(cell.plan.rounds)
        if finished := len(cells) - len(calls):
            say(f"{finished} of {len(cells)} runs are finished in {out} and kept")
        for number, (line, rounds) in run_calls(calls, jobs):
            say(f"{calls[number][0]}: {line}")
            # Runs of this process have moved the bar themselves.
            bar.update(0 if shown else rounds)
        done = any(folder.last_round(*cell) > 0 for folder in folders for cell in folder.begun())
        room = "room for one round of a run, but the first spends more"
        check(done or not cells[0].plan.rounds, "max_epsilon", options.get("max_epsilon"), room)
        frame = pd.concat([folder.gather() for folder in folders], ignore_index=True)
        if len(folders) > 1:
            write_atomically(out.expanduser() / "frame.csv", frame.to_csv(index=False))
        return frame


def _finish_cell(
    cell: Cell,
    path: Path,
    shown: "tuple[tqdm[Any], bool] | None",
    options: Mapping[str, Any],
) -> tuple[str, int]:
    """Runs what is left of a cell; returns a line on its end, and its rounds.

    Args:
        cell, path: the cell, and its run folder.
        shown: the bar, and whether it says a line for every round; ``None`` in a worker.
        options: of the run.
    """
    begun = time.perf_counter()
    line = "no round was run"
    events = run_cell(Folder(path), cell, **options)
    if shown is not None:
        events = show_progress(shown[0], cell.plan, cell.name, events, round_line)
    for event in events:
        if isinstance(event, Round):
            line = round_line(event)
            if shown is not None and shown[1]:
                shown[0].write(f"round {event.index}: {line}")
    # Time may tell of a single example: the log of a release does not hold it.
    took = "" if cell.seed is None else f" ({time.perf_counter() - begun:.1f} s)"
    return line + took, cell.plan.rounds


def run_cell(
    folder: Folder, cell: Cell, max_epsilon: float | None = None, **options: Any
) -> Iterator[Round | LocalStep]:
    """Runs a cell to its end, or from where it was left; keeps its rows and ledger in the folder.

    Args: folder, cell: where, and what is run. max_epsilon, options: see `fl.run`.
    Guarantees: killed at any moment and started again, the cell's frame is that of an undisturbed
        run, but for the seconds (test_killed_runs.py::test_kills_of_a_run_lose_nothing);
        the ledger holds every release of every start (test_attack_spending.py).
    """
    state = folder.cell(cell.slug, cell.seed)
    rows = state / ROWS
    spent = (state / "ledger.json").exists()
    done = _finished_rows(state, rows)
    if done is not None and not spent and not done["round"].max():
        done = None  # nothing was done or spent yet: the start is run again
    if done is not None:  # rows without a checkpoint are taken back
        write_atomically(rows, done.to_csv(index=False))
    if done is not None or spent:
        options["resume"] = state
    if cell.privacy is not None:
        options["max_epsilon"] = max_epsilon
    for event in cell.run_steps(checkpoint=state, **options):
        if not isinstance(event, LocalStep):
            frame = cell.frame([event])
            # A run that begins anew takes no rows of an earlier start.
            if done is not None and event.index:
                frame = pd.concat([cell.label(done), frame], ignore_index=True)
            done = frame
            write_atomically(rows, done.to_csv(index=False))
        yield event


def _finished_rows(folder: Path, rows: Path) -> pd.DataFrame | None:
    """Returns the rows of the rounds done and a checkpoint right after them, else ``None``.

    The loop writes its state before it yields a round, and the rows are written after. A run that
    was killed in between has one round too many in the checkpoint: it is taken back and run
    again. Without a seed that is a new release, and the ledger, left as it is, counts both.
    """
    frame = read_frame(rows) if rows.exists() else None
    for index in checkpoint.rounds_in(folder):
        if frame is None or index > frame["round"].max():
            checkpoint.remove(folder, index)
    latest = next(checkpoint.whole_checkpoints(folder), None)
    if latest is None or frame is None:
        return None
    return frame[frame["round"] <= latest[0].server.round]


def run_settings(
    folder: Folder, task: Task, privacy: Privacy | None, cells: Sequence[Cell], command: str
) -> JsonObject:
    """Returns what all runs of a folder share, what they ran with, and plans and rows by name.

    Args:
        folder, task, privacy, cells: of the runs.
        command: what was called.

    Guarantees: test_release.py::test_files_and_lines_of_neighbours_are_equal.
    """
    check_names((cell.slug, cell.method) for cell in cells)
    # The report shows them. How many examples a person has is not public.
    by_person = privacy is not None and privacy.unit == "person"
    return {
        "format": 1,
        "commands": [command],
        "begun": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "task": {
            "name": task.name,
            "info": dict(task.info),
            "sizes": list(task.person_counts if by_person else task.sizes),
            # Of rows that are not scored: made up, or a number of private rows.
            "test": len(task.test[1]) if task.public_test or privacy is None else None,
            "fingerprint": folder.keyed_fingerprint(task.fingerprint),
        },
        "privacy": privacy and privacy.settings(),
        "lora": cells[0].lora.settings(),
        "versions": {
            "fedlora-lab": __version__,
            "Python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
            **{name: version(name) for name in PACKAGES},
        },
        "plans": {cell.slug: asdict(cell.plan) for cell in cells},
        "privacies": {cell.slug: cell.privacy and cell.privacy.settings() for cell in cells},
        "methods": {cell.slug: row_settings(cell) for cell in cells},
        "rules": _rules(folder, task, cells),
        "seeds": list(dict.fromkeys(cell.seed for cell in cells)),
    }


def _rules(folder: Folder, task: Task, cells: Sequence[Cell]) -> JsonObject:
    """Digests of all rules, by the task and by each method: a name says too little of a function.

    Under the folder's key, since a rule may hold private numbers.
    """
    rows = {f"methods.{cell.slug}": cell.method for cell in cells}
    names = [x.name for x in fields(Method)]
    found = {"task": {name: getattr(task, name) for name in TASK_RULES}}
    # Layers without weights, such as an activation, are in no fingerprint of the weights.
    found["task"]["model"] = str(task.model)
    found |= {place: {name: getattr(row, name) for name in names} for place, row in rows.items()}
    return {
        place: {name: folder.keyed_fingerprint(rule_identity(x)) for name, x in rules.items()}
        for place, rules in found.items()
    }


def without_folders(text: str) -> str:
    """A path, or an option with one, without where it lies on this machine.

    >>> [without_folders(text) for text in ("/home/me/data.csv", "--out=/tmp/run", "runs/a")]
    ['data.csv', '--out=run', 'runs/a']
    """
    option, separator, value = text.rpartition("=") if text.startswith("-") else ("", "", text)
    path = Path(value).expanduser()
    return f"{option}{separator}{path.name}" if path.is_absolute() else text


def claim_cells(
    folder: Folder,
    task: Task,
    privacy: Privacy | None,
    cells: Sequence[Cell],
    command: str,
    fresh: bool,
) -> list[Cell]:
    """Takes a folder for cells, which are returned as they have to be run there.

    Args: folder, task, privacy, cells, command: see `run_settings`. fresh: clear it before.
    """
    if fresh:
        for cell in cells:  # what cannot be run must not clear away what was
            cell.spec()
        folder.clear()
    stored = folder.claim(run_settings(folder, task, privacy, cells, command))["privacies"]
    # Run with the noise that stands in the folder, to the last bit.
    plans = {slug: fields and Privacy(**fields) for slug, fields in stored.items()}
    return [replace(cell, privacy=plans[cell.slug]) for cell in cells]


def round_line(record: Round) -> str:
    """Describes one round."""
    measure, value = next(iter(record.metrics.items()))
    score = format_number(value, infinite="∞")
    against = observer_phrase(None if record.ledger is None else record.ledger.trust)
    epsilon = f"ε {epsilon_text(record.epsilon)}{against}"
    return f"{measure} {score}, {epsilon}, deviation {format_deviation(record.deviation)}"


def row_settings(cell: Cell) -> JsonObject:
    """Converts a cell's row of the table to JSON values; what was not measured is null."""
    rows = methods.table([cell.method]).drop(columns=["note"]).to_json(orient="records")
    # A rule that is a plain object lies elsewhere in another process.
    return json.loads(without_addresses(rows))[0]
