"""The command that tries to break what a run folder states."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedlora_lab.checks import check, check_number, check_whole
from fedlora_lab.cli.options import TASKS
from fedlora_lab.cli.runs import row_of
from fedlora_lab.files import private, write_atomically
from fedlora_lab.folder import Folder, to_json
from fedlora_lab.plan import Lora, Plan

if TYPE_CHECKING:
    from fedlora_lab.audit import Audit, SelfCheck
    from fedlora_lab.comparison import Cell
    from fedlora_lab.tasks import Task


@click.command(short_help="Audit the runs of a folder: what can be proved against what is stated.")
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--canaries", type=int, metavar="N", help="How many.  [as many as cost a fifth of the run]")
@click.option("--confidence", type=float, default=0.99, metavar="P", help="Of every lower bound.  [0.99]")
@click.option("--rounds", type=int, metavar="N", help="Rounds of the audited runs.  [the run's]")
@click.option("--seed", type=int, default=0, metavar="N", help="Of the audited runs and their coins.  [0]")
@click.option("--check/--no-check", "checked", default=True, help="The self-check of each set-up as well.  [check]")
def audit(folder: Path, canaries: int | None, confidence: float, rounds: int | None, seed: int, checked: bool) -> None:
    """Run every method of the run folder RUN once more with canaries inside, and write RUN/private/audit.json.

    Each line states the epsilon that is proved and the one that the ledger states. Leaves with status 1 where the
    first exceeds the second, where an audit is invalid because a release is not finite, or where the self-check finds
    a fault.
    """
    check_number("confidence", confidence, 0, 1 - 1e-9, open_low=True)
    check_whole("seed", seed)
    if canaries is not None:
        check_whole("canaries", canaries, 2)
    if rounds is not None:
        check_whole("rounds", rounds, 1)
    if not folder_holds(folder, canaries, confidence, rounds, seed, checked):
        raise SystemExit(1)


def folder_holds(
    folder: Path,
    canaries: int | None,
    confidence: float,
    rounds: int | None,
    seed: int,
    checked: bool,
    bug: "Callable[..., Any] | None" = None,
) -> bool:
    """Audit every method of a run folder, say and write what was found; whether all of it holds.

    Args: as the command; bug: as of `audit.audit`, for tests.
    """
    from fedlora_lab.audit import audit as one_audit
    from fedlora_lab.audit import self_check

    results, sound = [], True
    for cell in cells(folder, rounds, seed):
        parts = (cell.task, cell.method, cell.privacy, cell.plan)
        found = one_audit(*parts, canaries=canaries, confidence=confidence, lora=cell.lora, seed=seed, bug=bug)
        tried = checked and cell.privacy is not None
        verdict = self_check(*parts, lora=cell.lora, seed=seed, bug=bug) if tried else None  # type: ignore[arg-type]
        sound = sound and found.holds and (verdict is None or verdict.ok)
        click.echo(line(cell.slug, found))
        if verdict is not None:
            click.echo("  self-check: " + ("ok" if verdict.ok else "FAILED\n" + str(verdict)))
        results.append(written(cell.slug, found, verdict))
    path = private(folder) / "audit.json"  # a function of the data under a known seed: with it guesses can be tested
    write_atomically(path, to_json({"format": 1, "audits": results}))
    (folder / "audit.json").unlink(missing_ok=True)  # where earlier versions wrote it
    click.echo(f"written: {path}")
    return sound


def cells(folder: Path, rounds: int | None, seed: int) -> "list[Cell]":
    """The cells of a run folder, rebuilt from its settings.

    Raises: ``ValueError`` where the folder is none, or its task or methods are no longer what they were.
    """
    from dataclasses import replace

    from fedlora_lab.comparison import Cell
    from fedlora_lab.privacy import Privacy

    settings = Folder(folder).settings
    try:
        task, lora = _task(settings["task"], Folder(folder)), Lora(**settings["lora"])
        found = []
        for slug, row in settings["methods"].items():
            plan = Plan(**settings["plans"][slug])
            fields = settings["privacies"][slug]
            cell = Cell.named(slug, task, None, plan, lora, seed)
            now = row_of(cell)
            same = all(now.get(name) == value for name, value in row.items())
            check(same, f"methods.{slug}", row, "the row of the table as it is now")
            plan = plan if rounds is None else plan.replace(rounds=rounds)
            found.append(replace(cell, plan=plan, privacy=None if fields is None else Privacy(**fields)))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / 'settings.json'}: expected the settings of a run ({error})") from error
    check(bool(found), "folder", str(folder), "a run folder with a method")
    return found


def _task(kept: Mapping[str, Any], folder: Folder) -> "Task":
    """The task that the settings name, with the same data and weights."""
    from fedlora_lab import tasks

    name = kept["info"].get("task")
    check(name in TASKS, "task", name, "one that can be built again: " + ", ".join(TASKS))
    task = getattr(tasks, name)(**kept["info"]["arguments"])
    found, expected = folder.keyed(task.fingerprint), "that of the run; data, weights or packages have changed"
    check(found == kept["fingerprint"], "fingerprint", found[:12], expected)
    return task


def line(slug: str, found: "Audit") -> str:
    """One audit in words."""
    from fedlora_lab.audit.canary_audit import FINDING

    stated = f"{found.epsilon_upper:.3g}" if math.isfinite(found.epsilon_upper) else "∞ (none is certified)"
    who = f"{slug}, {found.unit}, seed {found.seed}"
    if found.invalid is not None:
        return f"{who}: invalid: {found.invalid} ({FINDING}; ε stated {stated} at δ = {found.delta:g})"
    words = f"ε proved {found.epsilon_lower:.3g} {'≤' if found.holds else '>'} ε stated {stated}"
    if found.bug is not None:
        words += f", nominal {found.epsilon_nominal:.3g} ({found.bug})"
    return (
        f"{who}: {words} at δ = {found.delta:g} "
        f"(confidence {found.confidence:g}; {found.canaries} canaries could prove {found.ceiling:.3g})"
    )


def written(slug: str, found: "Audit", verdict: "SelfCheck | None") -> dict[str, Any]:
    """An audit as JSON values; an epsilon that is infinite or not a number is null."""

    def finite(value: float) -> float | None:
        return value if math.isfinite(value) else None

    def failed(verdict: "SelfCheck") -> list[list[Any]]:
        return [[one.trial, one.what, finite(one.value), one.limit] for one in verdict.failed]

    plain = (
        "method",
        "unit",
        "seed",
        "delta",
        "confidence",
        "canaries",
        "lower",
        "ceiling",
        "seconds",
        "rounds",
        "bug",
        "invalid",
    )
    return {
        "slug": slug,
        **{name: getattr(found, name) for name in plain},
        **{name: finite(getattr(found, name)) for name in ("epsilon_lower", "epsilon_upper", "epsilon_nominal")},
        "holds": found.holds,
        "guesses": [list(guess) for guess in found.guesses],
        "included": [bool(one) for one in found.included],
        "scores": {view: [float(one) for one in values] for view, values in found.scores.items()},
        "self_check": None if verdict is None else {"ok": verdict.ok, "failed": failed(verdict)},
    }
