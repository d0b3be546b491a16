"""The commands of a federation between sites: new-app writes its Flower app, site prepares and
watches it, export hands its adapter on."""

import json
import re
import shutil
import sys
import tempfile
import time
from importlib.metadata import packages_distributions
from keyword import iskeyword
from pathlib import Path
from typing import Any

import click
import jinja2

import fedlora_lab as fl
from fedlora_lab._utils.files import write_atomically
from fedlora_lab._utils.validation import check, check_number, check_whole
from fedlora_lab.cli import status

TEMPLATE = Path(fl.__file__).parent / "flower" / "template"
BUILT_IN = {"digits": {"rounds": 10, "lr": 0.5}}
"""Models that come with their examples, and the plan that the app suggests for them."""
TEXT = {"rounds": 10, "lr": 0.3}
MODEL_HELP = "digits (8 x 8 pixels, built in), or a text model: a folder or name of Hugging Face."
LABELS_HELP = "Classes of a text model, joined by commas.  [negative,positive]"
LENGTH_HELP = "Tokens kept of a text.  [32]"
SEPARATOR_NAMES = {"comma": ",", "semicolon": ";", "tab": "\t", "bar": "|"}
MANY: dict[str, Any] = {"multiple": True, "metavar": "COLUMN"}


def _ask(question: str, given: Any, usual: Any) -> Any:
    """What was given, else what a person at a terminal answers, else the usual."""
    if given is not None:
        return given
    return click.prompt(question, default=usual) if sys.stdin.isatty() else usual


@click.command("new-app")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--name", metavar="NAME", help="Name of the app.  [the folder's]")
@click.option("--sites", type=int, metavar="N", help="Number of sites.  [3]")
@click.option("--model", metavar="MODEL", help=f"{MODEL_HELP}  [digits]")
@click.option("--labels", default="negative,positive", metavar="A,B", help=LABELS_HELP)
@click.option("--length", default=32, metavar="N", help=LENGTH_HELP)
@click.option(
    "--publisher", default="consortium", metavar="NAME", help="Who publishes the app.  [consortium]"
)
def new_app_command(
    folder: Path,
    name: str | None,
    sites: int | None,
    model: str | None,
    labels: str,
    length: int,
    publisher: str,
) -> None:
    """Write a Flower app into DIR, for a rehearsal in a simulation and for a run between sites,
    both by `flwr run .`.

    On a terminal, missing options are asked for; elsewhere the values in brackets are taken.
    """
    status.end()  # questions are asked now
    check_new(folder)
    name = check_app_name(_ask("Name of the app", name, folder.resolve().name))
    count, source = _ask("Number of sites", sites, 3), _ask(f"Model: {MODEL_HELP}", model, "digits")
    check_whole("sites", count, 2)
    named = re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", source) is not None
    here = Path(source).expanduser()
    there = (named and not here.is_file()) or here.is_dir()
    check(there, "model", source, "digits, a folder that exists, or a name of Hugging Face")
    check_whole("length", length, 2)
    plain = re.fullmatch(r"[A-Za-z0-9]+(-[A-Za-z0-9]+)*", publisher) is not None
    check(plain, "publisher", publisher, "letters, digits and hyphens")
    classes = [word.strip() for word in labels.split(",")]
    some = len(set(classes)) == len(classes) > 1 and all(classes)
    check(some, "labels", labels, "two or more different classes, joined by commas")
    write_app(folder, name, count, source, classes, length, publisher)
    status.say(f"{folder}: a Flower app for {count} sites. Its README goes on from here:")
    options = f"--federation-config 'num-supernodes={count} client-resources-num-cpus=1'"
    status.say(f"  cd {folder} && flwr run . local --stream {options}")


def check_new(folder: Path) -> None:
    """Refuses a file, and a folder that holds something."""
    empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    check(empty, "DIR", str(folder), "a new folder, or an empty one")


def check_app_name(name: str) -> str:
    """Returns an app's name. Raises ``ValueError`` for one that Flower or Python would not take."""
    plain = re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) is not None
    check(plain, "name", name, "small letters, digits and single hyphens, a letter first")
    package = name.replace("-", "_")
    free = package not in {*sys.stdlib_module_names, *packages_distributions()}
    check(free and not iskeyword(package), "name", name, "one that no installed package has")
    return name


def write_app(
    folder: Path,
    name: str,
    sites: int,
    model: str,
    labels: list[str],
    length: int,
    publisher: str,
) -> None:
    """Fills the template in and writes it.

    Args:
        folder: new, or empty.
        name, sites, publisher: of the app, its sites, and who publishes it.
        model: a name in `BUILT_IN`, or a text model's name or folder; a folder's whole path is
            written.
        labels, length: classes of a text model, and the tokens that are kept of a text.
    Guarantees: tests/flower/test_flower_apps.py::test_an_app_stands_whole_or_not_at_all.
    """
    kind = model if model in BUILT_IN else "text"
    here = Path(model).expanduser()
    values = {
        "name": name,
        "package": name.replace("-", "_"),
        "sites": sites,
        "model": json.dumps(str(here.resolve()) if here.is_dir() else model),
        "labels": labels,
        "length": length,
        "publisher": publisher,
        "out": json.dumps(str(folder.resolve() / "out")),
        **BUILT_IN.get(model, TEXT),
    }
    options: Any = {"undefined": jinja2.StrictUndefined, "keep_trailing_newline": True}
    template = jinja2.Environment(**options)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.resolve().parent, prefix=".new-app-") as draft:
        whole = Path(draft) / "whole"
        for source in sorted(path for path in TEMPLATE.rglob("*") if path.is_file()):
            first, *rest = source.relative_to(TEMPLATE).parts
            if first not in ("app", f"app_{kind}") and first.startswith("app_"):
                continue  # another kind's
            parts = (
                (values["package"], *rest) if rest and first.startswith("app") else (first, *rest)
            )
            target = whole.joinpath(*parts)
            target = target.with_name(target.name.removesuffix(".jinja"))
            if target.name == "gitignore":
                target = target.with_name(".gitignore")
            target.parent.mkdir(parents=True, exist_ok=True)
            text = source.read_text(encoding="utf-8")
            if source.suffix == ".jinja":
                text = template.from_string(text).render(values)
            target.write_text(text, encoding="utf-8")
            if text.startswith("#!"):
                target.chmod(target.stat().st_mode | 0o111)
        whole.rename(folder)


# ---- at the sites, and beside a running federation


@click.group("site")
def site_command() -> None:
    """Make a schema, prepare a site's own data with it, or watch a running federation."""


@site_command.command("schema")
@click.argument("sample", required=False, metavar="[PUBLIC_TABLE]", type=click.Path(path_type=Path))
@click.option("--text", **MANY, help="Column of the texts; give it twice for pairs.")
@click.option("--answer", metavar="COLUMN", help="For a decoder: column of the answer to the text.")
@click.option("--feature", "features", **MANY, help="Column of numbers; may be repeated.")
@click.option("--label", metavar="COLUMN", help="Column of the class label.")
@click.option("--labels", metavar="A,B,...", help="Allowed labels in order.  [the table's, sorted]")
@click.option("--person", metavar="COLUMN", help="Column that identifies the person of a row.")
@click.option("--split", metavar="COLUMN", help="Column of the split: training or another.")
@click.option("--splits", metavar="A,B,...", help="Its values; the first is training.")
@click.option("--tokenizer", metavar="FOLDER", help="Folder or name; sites need the folder too.")
@click.option(
    "--max-length", type=int, metavar="N", help="Tokens of a text.  [the table's longest]"
)
@click.option(
    "--too-long", default="cut", metavar="RULE", help="cut or refuse longer texts.  [cut]"
)
@click.option("--separator", default="comma", metavar="S", help="comma, semicolon, tab or bar.")
@click.option("--decimal", default=".", metavar="SIGN", help="Decimal sign.  [.]")
@click.option(
    "--encoding", default="utf-8", metavar="NAME", help="Encoding of the CSV files.  [utf-8]"
)
@click.option(
    "--missing", metavar="A,B,...", help="Cells that count as missing.  [empty, NA, null, ...]"
)
@click.option(
    "--on-missing", default="refuse", metavar="RULE", help="refuse or drop rows with one.  [refuse]"
)
@click.option("--out", default="schema.json", metavar="FILE", help="[schema.json]")
def schema_command(sample: Path | None, out: str, **options: Any) -> None:
    """Write the schema that all parties agree on, from the options and, where they leave something
    open, from a PUBLIC_TABLE.

    The schema contains the table's labels and the length of its longest text: never give a private
    table.
    """
    from fedlora_lab.flower import site

    for name in ("labels", "splits", "missing"):
        if options[name] is not None:
            options[name] = tuple(word.strip() for word in options[name].split(","))
    options["separator"] = SEPARATOR_NAMES.get(options["separator"], options["separator"])
    schema = site.make_schema(sample, **options)
    check(not Path(out).is_dir(), "out", out, "a file, not a folder")
    path = site.write_schema(Path(out).expanduser(), schema)
    status.say(f"columns: {', '.join(schema.columns)}")
    if schema.labels:
        status.say(f"labels, in order: {', '.join(schema.labels)}")
    if schema.text:
        status.say(f"texts: {schema.max_length} tokens of {schema.tokenizer}")
    status.say(f"written: {path}")
    status.say(f"sha256 to compare by another way: {schema.digest}")


@site_command.command("prepare")
@click.argument("table", type=click.Path(path_type=Path))
@click.option(
    "--schema", required=True, metavar="FILE", help="The schema.json that all parties agreed on."
)
@click.option("--out", default="site.safetensors", metavar="FILE", help="[site.safetensors]")
@click.option(
    "--tokenizer", metavar="FOLDER", help="The tokenizer's folder here.  [as in the schema]"
)
@click.option("--problems", "most", default=20, metavar="N", help="Problems to describe.  [20]")
@click.option("--show", is_flag=True, help="Show cells, which are private, in messages.")
@click.option("--replace", is_flag=True, help="Overwrite the files of an earlier call.")
def prepare_command(table: Path, schema: str, out: str, **options: Any) -> None:
    """Turn this site's own TABLE (CSV or Parquet) into the examples that its client reads.

    If rows do not fit the schema, their lines are reported and nothing is written. The printed
    numbers are for this site only; site.json holds those that all parties get.
    """
    from fedlora_lab.flower import site

    try:
        done = site.prepare(table, schema, Path(out).expanduser(), **options)
    except site.InvalidTable as error:
        status.end()
        for line in error.lines:
            click.echo(line, err=True)
        if error.count > len(error.lines):
            click.echo(f"and {error.count - len(error.lines)} more (--problems N)", err=True)
        raise click.ClickException(error.head) from None
    counted = next(name for name in site.COUNTED_UNITS if name in done.counts)
    size, notes = done.counts[counted], []
    status.say(f"{counted}: {size}; the sample rate follows from it, all parties get it")
    if counted == "persons":
        status.say(f"rows: {done.rows} (for this site only)")
    if done.labels:
        found = ", ".join(f"{name} {count}" for name, count in done.labels.items())
        status.say(f"labels: {found} (for this site only)")
    for count, words in (
        (done.dropped, "rows left out for a missing cell"),
        (done.copies, "rows that are copies of another"),
        (done.cut, "texts cut to the schema's length"),
        (done.most_of_one_person or 0, "rows of one person at most"),
    ):
        notes += [f"{count} {words}"] if count else []
    if notes:
        status.say("; ".join(notes) + " (for this site only)")
    for path in done.files:
        status.say(f"written: {path}")
    status.say(f"schema: {done.counts['schema']}")


@site_command.command("status")
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--html", metavar="FILE", help="Also write a page that reloads itself.")
@click.option("--watch", is_flag=True, help="Continue until the run is finished.")
@click.option("--every", default=10.0, metavar="SECONDS", help="Seconds between two looks.  [10]")
def status_command(out: Path, html: str | None, watch: bool, every: float) -> None:
    """Show the progress of the federation whose coordinator writes to OUT: rounds, sites by number,
    epsilon so far.

    It reads the ledger and the released states, nothing private; the page may be handed on.
    """
    from fedlora_lab.flower import site

    check_number("every", every, 1)
    told = None
    while True:
        now = site.read_status(out)
        if html is not None:
            page = site.status_page(now, round(every) if watch else 0)
            write_atomically(Path(html).expanduser(), page, shared=True)
        if not watch:
            for name, value in now.lines(time.time()):
                status.say(f"{name}: {value}")
            return
        if now != told:
            rows = [row for row in now.lines(time.time()) if row[0] != "last update"]
            status.say(", ".join(f"{name} {value}" for name, value in rows))
        if now.finished:
            return
        told = now
        time.sleep(every)


# ---- what is handed on at the end


@click.command("export")
@click.argument("folder", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--to", "target", default="adapter", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--run", metavar="NAME", help="One of several runs in OUT, such as rolora-release.")
def export_command(folder: Path, target: Path, run: str | None) -> None:
    """Write the adapter of OUT, a coordinator's folder or a run folder, as a PEFT folder DIR with
    its ledger. DIR is `adapter` by default.

    `peft.PeftModel.from_pretrained(base, DIR)` reads it. A run without privacy has no ledger.
    """
    from fedlora_lab.federated.checkpoint import LEDGER

    folder = folder.expanduser()
    check(folder.is_dir(), "OUT", str(folder), "a folder that exists")
    check_new(target)
    parent = target.expanduser().resolve().parent
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix=".export-") as draft:
        whole = Path(draft) / "whole"
        state = write_adapter(folder, whole, run)
        if (ledger := state / LEDGER).exists():
            write_atomically(whole / ledger.name, ledger.read_bytes(), shared=True)
        if target.exists():
            target.rmdir()
        whole.rename(target)
    spent = "no ledger: trained without privacy"
    if (ledger := target / LEDGER).exists():
        book = fl.Ledger.load(ledger)
        spent = f"ε {book.epsilon_or_inf():.4g} in its ledger"
        spent += "; its noise has a seed: not for release" if book.reproducible else ""
    status.say(f"{target}: {spent}")


def write_adapter(folder: Path, target: Path, run: str | None) -> Path:
    """Writes the adapter of a coordinator's folder or of a run; returns the folder of its state.

    Args: folder: of the runs. target: new. run: which of several.
    Raises: ``ValueError`` where there is none, or more than one and none is named.
    """
    from fedlora_lab.federated import checkpoint
    from fedlora_lab.lora import peft
    from fedlora_lab.report.run_folder import Folder

    adapter = folder / checkpoint.ADAPTER
    if not (folder / "settings.json").exists():
        check(run is None, "run", run, "none with a coordinator's folder, which holds one")
        begun = checkpoint.rounds_in(folder)
        check(bool(begun), "OUT", str(folder), "a coordinator's folder or a run folder, begun")
        expected = (
            "an adapter in it: here sites keep a part of theirs, or the run is of another kind"
        )
        check(adapter.is_dir(), "OUT", str(folder), expected)
        shutil.copytree(adapter, target)
        return folder
    about = Folder(folder).settings["task"]["info"]
    states = {
        p.name: p for p in sorted((folder / "checkpoints").iterdir()) if any(p.glob("round-*"))
    }
    names = ", ".join(states)
    check(bool(states), "OUT", str(folder), "a run folder with a run that was begun")
    name = run or (next(iter(states)) if len(states) == 1 else None)
    check(name in states, "run", run, f"one of {names}; give one by --run")
    known = about.get("task") in fl.tasks.TASKS and "arguments" in about
    words = "a built-in task; `fl.save_adapter` writes of others"
    if adapter.is_dir():  # `fl.finetune` wrote it
        words = f"a built-in task; the adapter is in {adapter}"
    check(known, "task", about.get("task"), words)
    task = fl.tasks.build(about["task"], **about["arguments"])
    state, settings = checkpoint.read_released(
        states[str(name)], checkpoint.rounds_in(states[str(name)])[-1]
    )
    lora = fl.Lora(**settings["lora"])
    peft.save(task.model, task.targets, task.head, lora, state.tensors, target)
    return states[str(name)]
