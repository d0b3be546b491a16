"""What the command audit does: it tries to break what a run folder states."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import click
import pandas as pd

from fedlora_lab import tasks
from fedlora_lab._utils.files import JsonObject, private_folder, write_atomically
from fedlora_lab._utils.validation import check
from fedlora_lab.audit.canary_audit import Audit, run_audit
from fedlora_lab.federated.compare import Cell
from fedlora_lab.methods.plan import Lora, Plan
from fedlora_lab.privacy.plan import Privacy
from fedlora_lab.report.cells import row_settings
from fedlora_lab.report.run_folder import Folder, run_folders, to_json
from fedlora_lab.tasks.task import Task

CONFIDENCE = 0.99
"""Of every lower bound: one command bounds the epsilon of several methods."""


def audit_folder(folder: Path, canaries: int | None, rounds: int | None, seed: int) -> bool:
    """Audits every method of a run folder, prints and writes the results; whether all of it holds.

    Of a sweep every setting is audited, and its results are written into its own folder.

    Args:
        folder: of the runs.
        canaries: as of `fl.audit.run_audit`.
        rounds: instead of the plan's, if given.
        seed: of the new runs.
    """
    sound = True
    places = run_folders(folder)
    if places != [folder]:
        for place in places:
            click.echo(f"{place.name}:")
            sound = audit_folder(place, canaries, rounds, seed) and sound
        return sound
    results = []
    for cell in rebuild_cells(folder, rounds, seed):
        audit = run_audit(
            cell.task,
            cell.method,
            cell.privacy,
            cell.plan,
            lora=cell.lora,
            seed=seed,
            canaries=canaries,
            confidence=CONFIDENCE,
        )
        click.echo(f"{cell.slug}: {audit}")
        sound = sound and audit.holds
        results.append({"slug": cell.slug, **audit_to_json(audit)})
    # A function of the data under a known seed: with it guesses about the data can be tested.
    private = private_folder(folder)
    expected = "a folder of its own, and no link to another place"
    check(not private.is_symlink(), "private", str(private), expected)
    path = private / "audit.json"
    write_atomically(path, to_json({"format": 1, "audits": results}), through_links=False)
    click.echo(f"written: {path}")
    return sound


def rebuild_cells(path: Path, rounds: int | None, seed: int) -> list[Cell]:
    """Rebuilds the cells of a run folder from its settings.

    Args: path: of the folder. rounds: instead of the plan's, if given. seed: of the new runs.
    Raises: ``ValueError`` where the folder is none, or its task or methods are no longer what they
        were.
    """
    folder = Folder(path)
    settings = folder.settings
    cells = []
    try:
        task = _rebuild_task(settings["task"], folder)
        lora = Lora(**settings["lora"])
        for slug, row in settings["methods"].items():
            plan = Plan(**settings["plans"][slug])
            terms = settings["privacies"][slug]
            cell = Cell.from_name(slug, task, None, plan, lora, seed)
            now = row_settings(cell)
            unchanged = all(now.get(name) == value for name, value in row.items())
            check(unchanged, f"methods.{slug}", row, "the row of the table as it is now")
            plan = plan if rounds is None else plan.replace(rounds=rounds)
            cells.append(replace(cell, plan=plan, privacy=terms and Privacy(**terms)))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path / 'settings.json'}: expected the settings of a run ({error})"
        ) from error
    check(bool(cells), "folder", str(path), "a run folder with a method")
    return cells


def _rebuild_task(settings: JsonObject, folder: Folder) -> Task:
    """The task that the settings name, with the same data and weights."""
    name = settings["info"].get("task")
    expected = "one that can be built again: " + ", ".join(tasks.TASKS)
    check(name in tasks.TASKS, "task", name, expected)
    task = tasks.build(name, **settings["info"]["arguments"])
    digest = folder.keyed_fingerprint(task.fingerprint)
    expected = "that of the run; data, weights or packages have changed"
    check(digest == settings["fingerprint"], "fingerprint", digest[:12], expected)
    return task


def audit_to_json(audit: Audit) -> JsonObject:
    """Converts an audit to JSON values; a number that is not finite is null."""
    fields = asdict(audit) | {"holds": audit.holds}
    del fields["bug"]  # of a run folder's runs none has one
    return json.loads(pd.Series(fields, dtype=object).to_json(double_precision=15))
