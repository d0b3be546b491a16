"""The commands that train into a run folder (run, compare, flower), and methods, report."""

import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

import fedlora_lab as fl
from fedlora_lab._utils.validation import check, check_number
from fedlora_lab.cli import options as read
from fedlora_lab.cli import status
from fedlora_lab.federated.compare import BAR, BASELINES, Cell, Progress
from fedlora_lab.federated.records import Round, Tick
from fedlora_lab.report import html_page
from fedlora_lab.report import summary_table as shown
from fedlora_lab.report.run_folder import Folder, RunCell, read_json, run_cell, run_settings


def _on_flower(cell: Cell) -> RunCell:
    """What runs the cell on Flower's simulation."""
    from fedlora_lab.flower.simulators import simulate  # loads Flower

    parts = (cell.task, cell.method, cell.privacy, cell.plan)
    return partial(simulate, *parts, lora=cell.lora, seed=cell.seed)


DEFAULT_METHODS = "fedlora,ffa-lora,rolora,deer,la-lora,fedlpp"
METHODS_HELP = "Methods and the baselines local, central, non-private, joined by commas."
METHOD_HELP = "A method that `fedlora-lab methods` lists."
SEEDS_HELP = "Number of seeds, or a list such as 0,1,2.  [3]"


@click.command("compare")
@click.argument("task")
@click.option(
    "--methods", default=DEFAULT_METHODS, metavar="A,B", show_default=True, help=METHODS_HELP
)
@click.option("--seeds", default="3", metavar="N", help=SEEDS_HELP)
@read.run_options
def compare_command(task: str, methods: str, seeds: str, **options: Any) -> None:
    """Train several methods on TASK (digits, regression) and write a run folder
    with a report."""
    _run_cells(task, read.parse_names("methods", methods), [*read.parse_seeds(seeds)], options)


@click.command("run")
@click.argument("task")
@click.argument("method")
@read.seed_option
@read.run_options
def run_command(task: str, method: str, seed: str, **options: Any) -> None:
    """Train one METHOD on TASK and print a line for every round.

    TASK is digits or regression; `fedlora-lab methods` lists the methods. The
    same command continues a run that was killed.
    """
    options["out"] = options["out"] or f"runs/{task}-{method}"
    _run_cells(task, [method], [read.parse_seed(seed)], options, every_round=True)


@click.command("flower")
@click.argument("task")
@click.option("--method", default="fedlora", metavar="A", show_default=True, help=METHOD_HELP)
@read.seed_option
@read.run_options
def flower_command(task: str, method: str, seed: str, **options: Any) -> None:
    """Train one method on TASK in Flower's simulation, where every client is a node.

    TASK is digits or regression. Each client clips and adds noise itself, so in
    the client unit --trust is local or secagg. The same command continues a run that was killed;
    where clients keep state of their own, that state is lost with their processes and training
    starts again. The ledger counts earlier releases either way. Telemetry is off unless
    FLWR_TELEMETRY_ENABLED=1.
    """
    options["out"] = options["out"] or f"runs/flower-{task}-{method}"
    seeds = [read.parse_seed(seed)]
    _run_cells(task, [method], seeds, options, every_round=True, engine=_on_flower)


MODEL = ("--model", str, "DIR", "A Hugging Face name, or a folder.  [required]")
OWN_OPTIONS: list[tuple[str, type, str, str]] = [
    MODEL,
    ("--text", str, "COLUMN", "Column of the texts, or two for pairs: question,passage."),
    ("--label", str, "COLUMN", "Column of the classes; without it a decoder learns the texts."),
    ("--labels", str, "A,B", "The classes in order.  [read from the private rows]"),
    ("--by", str, "COLUMN", "Column of the owner; each value is a client.  [dealt at random]"),
    ("--image", str, "COLUMN", "Column of image files, in place of --text."),
    ("--test", str, "CSV", "Public rows to score on, or a share to hold out.  [none]"),
    ("--method", str, "A", "A method that `fedlora-lab methods` lists.  [turns: rolora]"),
    ("--max-length", int, "N", "Tokens kept of a text.  [what the model takes, at most 128]"),
    ("--person", str, "COLUMN", "Column of persons: protect all rows of each.  [each row alone]"),
    ("--device", str, "D", "Such as cpu or cuda.  [cpu]"),
]
_CHOSEN = (
    "epsilon delta unit clip rounds local-steps batch clients rank lora-alpha lr participation"
)
CHOSEN = [f"--{x}" for x in f"{_CHOSEN} optimizer trust accountant stop-at out".split()]
"""Options of a run that `finetune` takes too, where what is not given is chosen and printed."""


@click.command("finetune")
@click.argument("data", type=click.Path(path_type=Path))
@read.own_options(OWN_OPTIONS, CHOSEN)
@click.option(
    "--seed",
    default="none",
    metavar="N",
    help="none for a release; a number for study only.  [none]",
)
@click.option("--fresh", is_flag=True, help="Start anew in a folder that holds another run.")
def finetune_command(data: Path, seed: str, **options: Any) -> None:
    """Fine-tune your own model on DATA, a CSV file or a folder of images, under differential
    privacy.

    Settings that are not given are chosen from public numbers and printed with the reason. The same
    command continues a run that was killed.
    """
    given = {name: value for name, value in options.items() if value is not None}
    check("model" in given, "--model", None, "a Hugging Face name, or a folder")
    check(data.exists(), "data", str(data), "a CSV file, or a folder of images, that exists")
    if "," in given.get("text", ""):
        given["text"] = given["text"].split(",")
    if "labels" in given:
        given["labels"] = read.parse_names("labels", given["labels"])
    test, batch, lr = (given.get(name) for name in ("test", "batch", "lr"))
    if test is not None:
        share = test.replace(".", "", 1).isdecimal()
        given["test"] = float(test) if share else Path(test)
    if batch is not None:
        given["batch"] = batch if batch == "all" else read.parse_whole("batch", batch)
    if lr is not None:
        given["lr"] = read.parse_pairs("lr", lr) if "=" in lr else read.parse_number("lr", lr)
    if "optimizer" in given:
        given["optimizer"] = read.parse_optimizer("optimizer", given["optimizer"])
    if "rank" in given or "lora_alpha" in given:
        words = {"rank": given.pop("rank", None), "alpha": given.pop("lora_alpha", None)}
        given["lora"] = fl.Lora(**{k: v for k, v in words.items() if v is not None})
    if "clip" in given:
        given["clip_norm"] = given.pop("clip")
    given["epsilon"] = read.parse_budget(given.get("epsilon", "8"))
    given.setdefault("out", f"runs/finetune-{data.stem}")

    given |= {"seed": read.parse_seed(seed), "say": status.say}
    fl.finetune(given.pop("model"), data, **given)


@click.command("report")
@click.argument("folder", type=click.Path(path_type=Path))
def report_command(folder: Path) -> None:
    """Rewrite FOLDER/report.html from the contents of the run folder."""
    page = html_page.report(folder)
    ledgers = read_json(folder / "ledger.json")
    spent = html_page.attack_bounds(ledgers)
    spent += html_page.folder_spending(folder, ledgers)
    status.say("\n".join([*spent, f"report: {page}"]))


def _run_cells(
    task_name: str,
    slugs: list[str],
    seeds: list[int | None],
    options: dict[str, Any],
    every_round: bool = False,
    engine: Callable[[Cell], RunCell] = lambda cell: cell.ticks,
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
    terms = slugs, epsilon, unit, status.say, plan.optimizer
    rates = read.learning_rates(options["lr"], task.name, *terms)
    plans = {slug: plan.replace(lr=rates[slug]) for slug in slugs}
    cells = [
        Cell.from_name(s, task, privacy, plans[s], lora, seed) for s in slugs for seed in seeds
    ]
    with Folder(options["out"] or f"runs/{task_name}") as folder:
        if options["fresh"]:
            folder.clear()
        # Run with the noise that stands in the folder, to the last bit.
        command = shlex.join(["fedlora-lab", *click.get_current_context().obj])
        fields = folder.claim(run_settings(folder, task, privacy, cells, command))["privacies"]
        privacies = {slug: f and fl.Privacy(**f) for slug, f in fields.items()}
        todo = [replace(c, privacy=privacies[c.slug]) for c in cells if _unfinished(folder, c)]
        if done := len(cells) - len(todo):
            status.say(f"{done} of {len(cells)} runs are finished in {folder.path} and kept")
        total = sum(cell.plan.rounds for cell in todo)
        with tqdm(total=total, disable=None, **BAR) as bar:
            status.follow(bar)
            for count, cell in enumerate(todo, 1):
                run = run_cell(folder, cell, stop_at, engine(cell))
                _show(folder, cell, run, bar, f"[{count}/{len(todo)}]", every_round)
        status.begin("writing the report")
        trust = None if privacy is None else privacy.trust
        table = "\n".join(summary_lines(folder.gather(), trust))
        page, ledgers = html_page.report(folder.path), read_json(folder.path / "ledger.json")
        spent = html_page.attack_bounds(ledgers)
        spent += html_page.folder_spending(folder.path, ledgers)
        status.say("\n" + "\n\n".join([table, *spent, f"report: {page}"]))


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
    folder: Folder,
    cell: Cell,
    run: Iterator[Round | Tick],
    bar: tqdm,
    count: str,
    every_round: bool,
) -> None:
    """Runs a cell, with a bar on a terminal and plain lines in a log."""
    begun, last, name = time.perf_counter(), None, f"{cell.slug}, seed "
    name += "none" if cell.seed is None else str(cell.seed)
    progress = Progress(bar, cell.plan, name)
    for event in run:
        last = event if isinstance(event, Round) else last
        words = _line(event) if isinstance(event, Round) else ""
        progress.show(event, words)
        if words and every_round:
            bar.write(f"round {event.index}: {words}")
    progress.end()
    frame: Any = folder.read(cell.slug, cell.seed)
    text = ", ".join(filter(None, (_line(last), shown.collapse_text(frame))))
    if (ended := frame["round"].max()) < cell.plan.rounds:
        text += f"; stopped after round {ended} of {cell.plan.rounds}"
        text += ", the next could spend more than --stop-at allows"
    # Time may tell of a single example: the log of a release does not hold it.
    took = "" if cell.seed is None else f" ({time.perf_counter() - begun:.1f} s)"
    bar.write(f"{count} {name}: {text}{took}")


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

RULE_FIELDS = "start clip_groups clip_reference precondition filter penalty aggregate broadcast"
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
    return ", ".join(str(row[f]) for f in RULE_FIELDS.split() if row[f] != plain[f])


def describe_schedule(row: Any) -> str:
    """Who moves when, in words: "A and B", "B, then A, round by round", "…, step by step"."""
    rounds = [[MOVES.get(w, w) for w in part.split()] for part in str(row["train"]).split("|")]
    if len(rounds) == 1:
        return ", then ".join(rounds[0]) + (", step by step" if len(rounds[0]) > 1 else "")
    return ", then ".join(" and then ".join(words) for words in rounds) + ", round by round"


@click.command("methods")
def methods_command() -> None:
    """List the methods: what each trains and sends, what it claims, where it was published."""
    table: Any = fl.methods.table()
    lines, notes = [["name", "moves", "sends", "exact", "source"]], []
    for slug, row in table.iterrows():
        exact = "yes" if row["exact"] else "no"
        lines.append([slug, row["train"], row["share"], exact, row["source"]])
        notes += [f"{row['note']}. Rules: {own_rules(row)}" if own_rules(row) else row["note"]]
    head, *body = align_columns(lines)
    status.say(head)
    for line, note in zip(body, notes, strict=True):
        status.say(f"{line}\n{click.wrap_text(note, 100, '    ', '    ')}")
