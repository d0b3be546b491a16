"""The commands that train into a run folder (run, compare, flower), and methods, guide, report."""

import json
import platform
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import pandas as pd
from tqdm import tqdm

import fedlora_lab as fl
from fedlora_lab._utils.files import write_atomically
from fedlora_lab._utils.validation import check, check_number
from fedlora_lab.cli import options as read
from fedlora_lab.federated import checkpoint
from fedlora_lab.federated.comparison import BASELINES, Cell
from fedlora_lab.federated.records import Round
from fedlora_lab.report import html_page
from fedlora_lab.report import summary_table as shown
from fedlora_lab.report.run_folder import Folder, read_frame, read_json, with_ledger_epsilon

PACKAGES = "torch peft opacus dp-accounting numpy scipy pandas transformers"
RunCell = Callable[..., Iterator[Round]]


def _finished_rows(folder: Path, rows: Path) -> Any:
    """Rows of the rounds that are done, and a checkpoint that goes on right after the last of them;
    else ``None``.

    The loop writes its state before it yields a round, and the rows are written after. A run that
    was killed in between has one round too many in the checkpoint: it is taken back and run
    again. Without a seed that is a new release, and the ledger, left as it is, counts both.
    """
    frame: Any = read_frame(rows) if rows.exists() else None
    for index in checkpoint.rounds_in(folder):
        if frame is None or index > frame["round"].max():
            checkpoint.remove(folder, index)
    found = checkpoint.read_latest_or_none(folder)
    return None if found is None or frame is None else frame[frame["round"] <= found[0].round]


def run_rounds(
    start: RunCell, state: Path, rows: Path, to_frame: Callable[..., pd.DataFrame] = fl.to_frame
) -> Iterator[Round]:
    """Runs the rounds that are left of a run; writes each one's rows, then yields it.

    Args:
        start: begins or resumes the run, with ``checkpoint`` and ``resume`` as of `fl.run`.
        state: folder of its checkpoints and ledger.
        rows: CSV file of all its rounds. Beside ``state``, rounds without rows are another run's.
        to_frame: records -> tidy frame.
    """
    spent, earlier = (state / "ledger.json").exists(), None
    if ours := rows.exists() or rows.parent == state:
        earlier = _finished_rows(state, rows)
    if earlier is not None and not spent and not earlier["round"].max():
        earlier = None  # nothing was done or spent yet: the start is run again
    parts = [] if earlier is None else [earlier]
    for part in parts:  # rows without a checkpoint are taken back
        write_atomically(rows, part.to_csv(index=False))
    where = {"resume": state} if parts or (ours and spent) else {}
    for record in start(checkpoint=state, **where):
        # Begun anew, rows of an earlier start are of another run.
        parts = [*(parts if record.index else []), to_frame([record])]
        frame = pd.concat(parts, ignore_index=True)
        write_atomically(rows, frame.to_csv(index=False))
        yield record


def run_cell(
    folder: Folder, cell: Cell, stop_at: float | None = None, engine: RunCell | None = None
) -> Iterator[Round]:
    """Runs a cell to its end, or from where it was left; keeps its frame and ledger in the folder.

    Args:
        folder, cell: where, and what is run.
        stop_at: as of `fl.run`.
        engine: runs the cell, with options as of `fl.run`; default: the cell's own loop.

    Guarantees: killed at any moment and started again, the cell's frame is that of an undisturbed
        run, but for the seconds (test_killed_runs.py::test_kills_of_a_run_lose_nothing);
        the ledger holds every release of every start (test_attack_spending.py).
    """
    state, name, ledger = folder.checkpoint(cell.slug, cell.seed), (cell.slug, cell.seed), None
    limit = {} if cell.privacy is None else {"stop_at": stop_at}
    start = partial(engine or cell.run, **limit)
    for record in run_rounds(start, state, state / "rounds.csv", cell.frame):
        ledger = record.ledger
        yield record
    if ledger is None and cell.privacy is not None:
        # No round was left to run, or none that may be spent.
        ledger = fl.Ledger.load(state / "ledger.json")
    frame: Any = read_frame(state / "rounds.csv")
    if folder.is_done(*name) and folder.last_round(*name) > frame["round"].max():
        frame = folder.read(*name)  # stopped, begun anew and stopped again, earlier
    text = None if ledger is None else json.loads(ledger.to_json())
    folder.save(*name, with_ledger_epsilon(frame, ledger), text)


def _on_flower(cell: Cell) -> RunCell:
    """What runs the cell on Flower's simulation."""
    from fedlora_lab.flower.simulators import simulate  # loads Flower

    parts = (cell.task, cell.method, cell.privacy, cell.plan)
    return partial(simulate, *parts, lora=cell.lora, seed=cell.seed)


COMPARED = "fedlora,ffa-lora,rolora,deer,la-lora,fedlpp"
METHODS_HELP = "Methods, or the baselines local, central, non-private, joined by commas."
METHOD_HELP = "A method that `fedlora-lab methods` lists."
SEEDS_HELP = "How many, or a list such as 0,1,2.  [3]"


@click.command("compare")
@click.argument("task")
@click.option("--methods", default=COMPARED, metavar="A,B", show_default=True, help=METHODS_HELP)
@click.option("--seeds", default="3", metavar="N", help=SEEDS_HELP)
@read.run_options
def compare_command(task: str, methods: str, seeds: str, **options: Any) -> None:
    """Train several methods on TASK (digits, mnist, regression, sentiment) and write a run folder
    with a report."""
    _run_cells(task, read.parse_names("methods", methods), [*read.parse_seeds(seeds)], options)


@click.command("run")
@click.argument("task")
@click.argument("method")
@read.seed_option
@read.run_options
def run_command(task: str, method: str, seed: str, **options: Any) -> None:
    """Train one METHOD on TASK with a line for every round; a killed run goes on with the same
    command."""
    options["out"] = options["out"] or f"runs/{task}-{method}"
    _run_cells(task, [method], [read.parse_seed(seed)], options, every_round=True)


@click.command("flower")
@click.argument("task")
@click.option("--method", default="fedlora", metavar="A", show_default=True, help=METHOD_HELP)
@read.seed_option
@read.run_options
def flower_command(task: str, method: str, seed: str, **options: Any) -> None:
    """Train on TASK with every client a node of Flower's simulation: the same run, over Flower's
    messages.

    Clients clip and noise for themselves: in the client unit --trust is local or secagg. A run that
    was killed goes on with the same command. If clients keep state of their own, it is lost with
    their processes and training starts again. The ledger counts earlier releases either way.
    Telemetry is off unless FLWR_TELEMETRY_ENABLED=1.
    """
    options["out"] = options["out"] or f"runs/flower-{task}-{method}"
    seeds = [read.parse_seed(seed)]
    _run_cells(task, [method], seeds, options, every_round=True, engine=_on_flower)


@click.command("guide")
@click.argument("task")
@read.situation_options
def guide_command(task: str, **options: Any) -> None:
    """Say in one sentence which family leads on a task like TASK, by the nearest measured cells of
    the regime map, or that they cannot tell; nothing is trained."""
    click.echo(str(fl.guide(*read.build_situation(task, options))))


@click.command("report")
@click.argument("folder", type=click.Path(path_type=Path))
def report_command(folder: Path) -> None:
    """Write FOLDER/report.html again from what is in the run folder."""
    page = html_page.report(folder)
    ledgers = read_json(folder / "ledger.json")
    spent = html_page.attack_bounds(ledgers) + html_page.folder_spending(folder, ledgers)
    click.echo("\n".join([*spent, f"report: {page}"]))


def _run_cells(
    task_name: str,
    slugs: list[str],
    seeds: list[int | None],
    options: dict[str, Any],
    every_round: bool = False,
    engine: Callable[[Cell], RunCell] = lambda cell: cell.run,
) -> None:
    """Trains every cell that is not finished, then shows the table and writes the report."""
    for slug in slugs:
        if slug not in BASELINES:
            fl.methods.get(slug)  # a wrong name is told before anything is looked up for it
    task, privacy, plan, lora = read.build_situation(task_name, options)
    stop_at = options["stop_at"]
    if stop_at is not None:
        check(privacy is not None, "stop_at", stop_at, "not given with --epsilon none")
        check_number("stop_at", stop_at, 0, open_low=True)
    epsilon, unit = read.parse_budget(options["epsilon"]), privacy.unit if privacy else "example"
    terms = slugs, epsilon, unit, click.echo, plan.optimizer
    rates = read.learning_rates(options["lr"], task.name, *terms)
    plans = {slug: plan.replace(lr=rates[slug]) for slug in slugs}
    cells = [
        Cell.from_name(s, task, privacy, plans[s], lora, seed) for s in slugs for seed in seeds
    ]
    with Folder(options["out"] or f"runs/{task_name}") as folder:
        if options["fresh"]:
            folder.clear()
        # Run with the noise that stands in the folder, to the last bit.
        fields = folder.claim(_settings(folder, task, privacy, cells))["privacies"]
        privacies = {slug: f and fl.Privacy(**f) for slug, f in fields.items()}
        todo = [replace(c, privacy=privacies[c.slug]) for c in cells if _unfinished(folder, c)]
        if done := len(cells) - len(todo):
            click.echo(f"{done} of {len(cells)} runs are finished in {folder.path} and kept")
        total = sum(cell.plan.rounds for cell in todo)
        with tqdm(total=total, unit="round", dynamic_ncols=True, disable=None) as bar:
            for count, cell in enumerate(todo, 1):
                run = run_cell(folder, cell, stop_at, engine(cell))
                _show(folder, cell, run, bar, f"[{count}/{len(todo)}]", every_round)
        trust = None if privacy is None else privacy.trust
        table = "\n".join(summary_lines(folder.gather(), trust))
        page, ledgers = html_page.report(folder.path), read_json(folder.path / "ledger.json")
        spent = html_page.attack_bounds(ledgers)
        spent += html_page.folder_spending(folder.path, ledgers)
        click.echo("\n" + "\n\n".join([table, *spent, f"report: {page}"]))


def _settings(
    folder: Folder, task: fl.tasks.Task, privacy: fl.Privacy | None, cells: list[Cell]
) -> dict[str, Any]:
    """What all runs of a folder have in common, what they ran with, and plans and rows by name."""
    system = f"{platform.system()} {platform.machine()}"
    ours = {"fedlora-lab": fl.__version__, "Python": platform.python_version(), "system": system}
    return {
        "format": 1,
        "commands": [shlex.join(["fedlora-lab", *click.get_current_context().obj])],
        "begun": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "task": {
            "name": task.name,
            "info": dict(task.info),
            "sizes": list(task.sizes),
            "test": len(task.test[1]),
            "fingerprint": folder.keyed_fingerprint(task.fingerprint),
        },
        "privacy": privacy and asdict(privacy),
        "lora": asdict(cells[0].lora),
        "versions": {**ours, **{name: version(name) for name in PACKAGES.split()}},
        "plans": {cell.slug: asdict(cell.plan) for cell in cells},
        "privacies": {cell.slug: cell.privacy and asdict(cell.privacy) for cell in cells},
        "methods": {cell.slug: row_settings(cell) for cell in cells},
        "seeds": list(dict.fromkeys(cell.seed for cell in cells)),
    }


def row_settings(cell: Cell) -> dict[str, Any]:
    """A cell's row of the table as JSON values; what was not measured of it is null."""
    row = fl.methods.table([cell.method]).drop(columns=["note"]).loc[cell.method.slug].to_dict()
    return {str(name): None if x != x else x for name, x in row.items()}


def _line(record: Round | None) -> str:
    """One round in words."""
    if record is None:
        return "no round was run"
    names = (name for name in ("accuracy", "loss") if name in record.metrics)
    scores = [f"{k} {shown.format_number(record.metrics[k], infinite='∞')}" for k in names]
    seen = shown.observer_phrase(None if record.ledger is None else record.ledger.trust)
    epsilon = f"ε {shown.format_number(record.epsilon, 2)}{seen}"
    deviation = f"deviation {shown.format_deviation(record.deviation)}"
    return ", ".join([*scores[:1], epsilon, deviation])


def _show(
    folder: Folder, cell: Cell, run: Iterator[Round], bar: tqdm, count: str, every_round: bool
) -> None:
    """Runs a cell, with a bar on a terminal and plain lines in a log."""
    begun, last, name = time.perf_counter(), None, f"{cell.slug}, seed "
    name += "none" if cell.seed is None else str(cell.seed)
    for last in run:
        bar.set_postfix_str(f"{name}: {_line(last)}")
        bar.update(1 if last.index else 0)
        if every_round:
            bar.write(f"round {last.index}: {_line(last)}")
    frame: Any = folder.read(cell.slug, cell.seed)
    text = ", ".join(filter(None, (_line(last), shown.collapse_text(frame))))
    if (ended := frame["round"].max()) < cell.plan.rounds:
        text += f"; stopped after round {ended} of {cell.plan.rounds}"
        text += ", the next could spend more than --stop-at"
    bar.write(f"{count} {name}: {text} ({time.perf_counter() - begun:.1f} s)")


def _unfinished(folder: Folder, cell: Cell) -> bool:
    """Whether a cell was not begun, or can go on: it was stopped and has its checkpoint."""
    if not folder.is_done(cell.slug, cell.seed):
        return True
    there = (folder.checkpoint(cell.slug, cell.seed) / "rounds.csv").exists()
    return there and folder.last_round(cell.slug, cell.seed) < cell.plan.rounds


def summary_lines(frame: Any, trust: str | None = None) -> list[str]:
    """The table at the end, as in the report; ``trust`` names against whom ε holds."""
    table = shown.summary(frame)
    measure, rows = table.attrs["measure"], shown.display_rows(table)
    heads = {"method": "method", "seeds": "seeds", "before": f"{measure} before"}
    heads |= {"score": f"{measure} after", "deviation": "deviation", "epsilon": "ε"}
    heads |= {"up": "sent up", "down": "sent down", "seconds": "seconds"}
    cells = [[*heads.values()], *([row[key] for key in heads] for row in rows)]
    lines = align_columns(cells, right=tuple(range(1, len(heads))))
    observer = [f"ε:{shown.observer_phrase(trust)}"] if trust else []
    low = [f"{row['method']}: {row['collapsed']}" for row in rows if row["collapsed"]]
    return [*lines, *observer, *low]


# ---- the table of methods

RULES = "start clip_groups clip_reference precondition filter penalty aggregate broadcast"
MOVES = {"AB": "A and B", "BA": "A and B", "R": "the core R", "*": "A or B, chosen layer by layer"}


def align_columns(rows: list[list[str]], right: tuple[int, ...] = ()) -> list[str]:
    """Rows of text as lines with columns of equal width; those in ``right`` are set flush right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    sides = [">" if i in right else "<" for i in range(len(widths))]
    return [
        "  ".join(f"{cell:{side}{w}}" for cell, side, w in zip(row, sides, widths)).rstrip()
        for row in rows
    ]


def own_rules(row: Any) -> str:
    """The rules in which a row differs from FedLoRA, the plain one."""
    plain = fl.methods.table().loc["fedlora"]
    return ", ".join(str(row[f]) for f in RULES.split() if row[f] != plain[f]) or "–"


def describe_schedule(row: Any) -> str:
    """Who moves when, in words: "A and B", "B, then A, round by round", "…, step by step"."""
    rounds = [[MOVES.get(w, w) for w in part.split()] for part in str(row["train"]).split("|")]
    if len(rounds) == 1:
        return ", then ".join(rounds[0]) + (", step by step" if len(rounds[0]) > 1 else "")
    return ", then ".join(" and then ".join(words) for words in rounds) + ", round by round"


@click.command("methods")
def methods_command() -> None:
    """List the methods: what moves, what is sent, what is claimed, where it was published."""
    table: Any = fl.methods.table()
    lines = [["name", "moves", "sends", "own rules", "exact", "source"]]
    for slug, row in table.iterrows():
        exact = "yes" if row["exact"] else "no"
        lines.append([slug, row["train"], row["share"], own_rules(row), exact, row["source"]])
    head, *body = align_columns(lines)
    click.echo(head)
    for line, note in zip(body, table["note"]):
        click.echo(f"{line}\n    {note}")
