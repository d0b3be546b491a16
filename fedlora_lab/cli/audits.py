"""The command audit, which tries to break what a run folder states."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import fedlora_lab as fl
from fedlora_lab._utils.files import private_folder, write_atomically
from fedlora_lab._utils.validation import check, check_number, check_whole
from fedlora_lab.cli import status

if TYPE_CHECKING:  # loaded by the command that needs them
    from fedlora_lab.audit.canary_audit import Audit
    from fedlora_lab.federated.compare import Cell
    from fedlora_lab.report.run_folder import Folder
    from fedlora_lab.review import Review

AUDIT_FIELDS = (
    "method unit seed delta confidence canaries lower ceiling seconds rounds bug invalid holds"
)
EPSILONS = "epsilon_lower epsilon_upper epsilon_nominal"
CANARIES_HELP = "Number of canaries.  [a fifth of the run's cost]"
CONFIDENCE_HELP = "Confidence of every lower bound.  [0.99]"
AUDIT_SEED_HELP = "Seed of the audited runs and of the choice of canaries.  [0]"


@click.command("audit")
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--canaries", type=int, metavar="N", help=CANARIES_HELP)
@click.option("--confidence", default=0.99, metavar="P", help=CONFIDENCE_HELP)
@click.option("--rounds", type=int, metavar="N", help="Rounds of the audited runs.  [the run's]")
@click.option("--seed", default=0, metavar="N", help=AUDIT_SEED_HELP)
@click.option(
    "--check/--no-check", "checked", default=True, help="Also review the engine's step.  [check]"
)
def audit_command(folder: Path, checked: bool, **options: Any) -> None:
    """Run every method of the run folder RUN once more with canaries inside, and write
    RUN/private/audit.json.

    Canaries are examples planted to measure what a release reveals. Each line states the epsilon
    that is proved and the one that the ledger states. The exit status is 1 if the first exceeds the
    second, if an audit is invalid because a release is not finite, or if the review finds a
    fault.
    """
    check_number("confidence", options["confidence"], 0, 1 - 1e-9, open_low=True)
    check_whole("seed", options["seed"])
    for name, low in (("canaries", 2), ("rounds", 1)):
        if options[name] is not None:
            check_whole(name, options[name], low)
    if not audit_folder(folder, checked=checked, **options):
        raise SystemExit(1)


def audit_folder(
    folder: Path,
    canaries: int | None,
    confidence: float,
    rounds: int | None,
    seed: int,
    checked: bool,
    bug: Callable[..., Any] | None = None,
) -> bool:
    """Audits every method of a run folder, prints and writes the results; whether all of it holds.

    Args: as the command; bug: as of `audit.canaries`, for tests.
    """
    from fedlora_lab.audit.canary_audit import canaries as run_audit
    from fedlora_lab.report.run_folder import to_json
    from fedlora_lab.review.engine import engine

    results, sound = [], True
    for cell in rebuild_cells(folder, rounds, seed):
        options: Any = {"task": cell.task, "method": cell.method, "privacy": cell.privacy}
        options |= {"plan": cell.plan, "lora": cell.lora, "seed": seed, "bug": bug}
        found, verdict = run_audit(canaries=canaries, confidence=confidence, **options), None
        status.say(audit_line(cell.slug, found))
        if checked and cell.privacy is not None:
            verdict = engine(**options)
            status.say("  review: " + ("sound" if verdict.sound else f"BROKEN\n{verdict}"))
        sound = sound and found.holds and (verdict is None or verdict.sound)
        results.append(audit_to_json(cell.slug, found, verdict))
    # A function of the data under a known seed: with it guesses about the data can be tested.
    path = private_folder(folder) / "audit.json"
    write_atomically(path, to_json({"format": 1, "audits": results}))
    status.say(f"written: {path}")
    return sound


def rebuild_cells(folder: Path, rounds: int | None, seed: int) -> "list[Cell]":
    """The cells of a run folder, rebuilt from its settings.

    Args: folder: the run's. rounds: instead of the plan's, if given. seed: of the new runs.
    Raises: ``ValueError`` where the folder is none, or its task or methods are no longer what they
        were.
    """
    from fedlora_lab.federated.compare import Cell
    from fedlora_lab.report.run_folder import Folder, row_settings

    settings, cells = Folder(folder).settings, []
    try:
        task, lora = _task(settings["task"], Folder(folder)), fl.Lora(**settings["lora"])
        for slug, row in settings["methods"].items():
            plan, fields = fl.Plan(**settings["plans"][slug]), settings["privacies"][slug]
            cell = Cell.from_name(slug, task, None, plan, lora, seed)
            now = row_settings(cell)
            same = all(now.get(name) == value for name, value in row.items())
            check(same, f"methods.{slug}", row, "the row of the table as it is now")
            plan = plan if rounds is None else plan.replace(rounds=rounds)
            cells.append(replace(cell, plan=plan, privacy=fields and fl.Privacy(**fields)))
    except (KeyError, TypeError, AttributeError) as error:
        path = folder / "settings.json"
        raise ValueError(f"{path}: expected the settings of a run ({error})") from error
    check(bool(cells), "folder", str(folder), "a run folder with a method")
    return cells


def _task(settings: Any, folder: "Folder") -> fl.tasks.Task:
    """The task that the settings name, with the same data and weights."""
    name = settings["info"].get("task")
    expected = "one that can be built again: " + ", ".join(fl.tasks.TASKS)
    check(name in fl.tasks.TASKS, "task", name, expected)
    task = fl.tasks.build(name, **settings["info"]["arguments"])
    found = folder.keyed_fingerprint(task.fingerprint)
    expected = "that of the run; data, weights or packages have changed"
    check(found == settings["fingerprint"], "fingerprint", found[:12], expected)
    return task


def audit_line(slug: str, found: "Audit") -> str:
    """One audit in words."""
    from fedlora_lab.audit.canary_audit import INVALID_NOTE

    stated, delta = "∞ (none is certified)", f"at δ = {found.delta:g}"
    if math.isfinite(found.epsilon_upper):
        stated = f"{found.epsilon_upper:.3g}"
    who = f"{slug}, {found.unit}, seed {found.seed}"
    if found.invalid is not None:
        return f"{who}: invalid: {found.invalid} ({INVALID_NOTE}; ε stated {stated} {delta})"
    words = f"ε proved {found.epsilon_lower:.3g} {'≤' if found.holds else '>'} ε stated {stated}"
    if found.bug is not None:
        words += f", nominal {found.epsilon_nominal:.3g} ({found.bug})"
    power = f"{found.canaries} canaries could prove {found.ceiling:.3g}"
    return f"{who}: {words} {delta} (confidence {found.confidence:g}; {power})"


def audit_to_json(slug: str, found: "Audit", verdict: "Review | None") -> dict[str, Any]:
    """An audit as JSON values; an epsilon that is infinite or not a number is null.

    Args: slug: of the cell. found: its audit. verdict: its review, if there was one.
    """

    def finite(value: float) -> float | None:
        return value if math.isfinite(value) else None

    broken = None if verdict is None else sorted(verdict.broken)
    return {
        "slug": slug,
        **{name: getattr(found, name) for name in AUDIT_FIELDS.split()},
        **{name: finite(getattr(found, name)) for name in EPSILONS.split()},
        "guesses": [list(guess) for guess in found.guesses],
        "included": found.included.tolist(),
        "scores": {view: values.tolist() for view, values in found.scores.items()},
        "broken": broken,
    }
