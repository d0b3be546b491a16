"""The commands and their options. What a command does is loaded when its options have been read."""

import sys
from pathlib import Path
from typing import Any

import click

from fedlora_lab._utils.environment import __version__
from fedlora_lab._utils.validation import check, check_one_of
from fedlora_lab.cli import options as read

DEFAULT_METHODS = "fedlora,ffa-lora,rolora,deer,la-lora,fedlpp"
PATH = click.Path(path_type=Path)


class Commands(click.Group):
    """The group, which lists its commands in the order of their use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if not args[0].startswith("-"):
            check_one_of("command", args[0], tuple(self.commands))
        return super().resolve_command(ctx, args)


CONTEXT_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(cls=Commands, context_settings=CONTEXT_SETTINGS)
@click.version_option(__version__, prog_name="fedlora-lab")
def commands() -> None:
    """Federated LoRA under differential privacy: train, compare, report, audit, review."""


# ---- training


OPTIMIZER = click.option(
    "--optimizer", type=click.Choice(["sgd", "adamw"]), help="Of clients.  [sgd]"
)
FRESH = click.option("--fresh", is_flag=True, help="Start anew in a folder that holds another run.")


def training_options(command: read.Command) -> read.Command:
    """Puts on a command what `run` and `compare` share."""
    for option in (
        FRESH,
        click.option("--out", type=PATH, metavar="DIR", help="Run folder.  [runs/TASK]"),
        OPTIMIZER,
        click.option(
            "--lr",
            type=read.RATES,
            metavar="X,Y",
            help="Learning rates to try.  [as tuned]",
        ),
        click.option("--alpha", hidden=True, expose_value=False, callback=read.refuse_alpha),
        read.setting_options(read.SITUATION),
    ):
        command = option(command)
    return command


TASK = read.Text("task", read.read_task)
METHOD = read.Text("method", read.read_method)
SEEDS = read.count(1, 1000)
SEED = read.setting("seed")


@commands.command("compare")
@click.argument("task", type=TASK)
@click.option(
    "--methods",
    default=DEFAULT_METHODS,
    type=read.Text("methods", read.read_methods),
    metavar="A,B",
    help="Methods, the baselines non-private, central, local, and rows FILE.py:NAME of your own, "
    "joined by commas.",
)
@click.option("--seeds", default=3, type=SEEDS, metavar="N", help="How many, from 0 on.  [3]")
@click.option(
    "--jobs",
    type=click.IntRange(-1),
    metavar="N",
    help="Runs at once, each in a process; -1: one a core.  [1]",
)
@training_options
def compare_command(task: str, methods: list[str], seeds: int, **options: Any) -> None:
    """Train several methods on TASK, and write a run folder with a report.

    TASK is digits, sentences or regression.

    The same command continues where it was stopped; finished runs are kept.
    """
    from fedlora_lab.cli.training import train

    train(task, methods, list(range(seeds)), **options)


@commands.command("run")
@click.argument("task", type=TASK)
@click.argument("method", type=METHOD)
@click.option(
    "--seed",
    default="0",
    type=SEED,
    metavar="N",
    help="A number repeats a run; none draws fresh noise, for a release.  [0]",
)
@training_options
def run_command(task: str, method: str, seed: int | None, **options: Any) -> None:
    """Train one METHOD on TASK (digits, sentences, regression), a line for every round.

    The same command continues a run that was stopped.
    """
    from fedlora_lab.cli.training import train

    options["out"] = options["out"] or Path("runs") / f"{task}-{method}"
    train(task, [method], [seed], every_round=True, **options)


ROW = read.Text("method", read.read_row)
NAMES = read.Text("names", read.read_names)


@commands.command("finetune")
@click.argument("data", type=PATH)
@click.option("--model", metavar="DIR", help="A Hugging Face name, or a folder.  [required]")
@click.option("--text", metavar="COLUMN", help="Of the texts, which are classified.")
@click.option(
    "--image", metavar="COLUMN", help="Of image files, in place of --text.  [of a folder: image]"
)
@click.option("--prompt", metavar="COLUMN", help="Or a template, for a decoder.")
@click.option("--answer", metavar="COLUMN", help="Or a template: what it learns to answer.")
@click.option("--label", metavar="COLUMN", help="Of the classes.  [of a folder: label]")
@click.option("--labels", type=NAMES, metavar="A,B", help="Classes in order.  [from the rows]")
@click.option("--by", metavar="COLUMN", help="Of the owner, a client.  [dealt at random]")
@click.option(
    "--test",
    type=read.Text("test", read.read_test),
    metavar="FILE",
    help="Public rows to score on, a split, or a share.  [none]",
)
@click.option("--metrics", type=NAMES, metavar="A,B", help="Scores of the test rows.")
@click.option("--targets", type=NAMES, metavar="A,B", help="Linear maps with adapters.  [chosen]")
@click.option("--head", metavar="NAME", help="Trained in full.  [the model's classifier]")
@click.option("--method", type=ROW, metavar="A", help=f"A method.  [{read.CHOSEN}]")
@click.option("--person", metavar="COLUMN", help="Of persons: protect all rows of each.")
@click.option("--max-length", type=read.count(1), help="Tokens kept of a text.  [all]")
@click.option("--max-new-tokens", type=read.count(1), help="Of an answer.  [64]")
@click.option("--evaluate-every", type=read.count(1), help="Rounds.  [1]")
@click.option("--device", metavar="D", help="Such as cpu or cuda.  [cpu]")
@click.option("--lr", type=read.RATE, metavar="X", help=f"Learning rate.  [{read.CHOSEN}]")
@OPTIMIZER
@read.setting_options(("epsilon",))
@read.setting_options(read.FINETUNE, default=read.CHOSEN)
@click.option("--seed", default="none", type=SEED, metavar="N", help="none for a release.  [none]")
@click.option("--out", type=PATH, metavar="DIR", help="Run folder.  [runs/finetune-DATA]")
@FRESH
def finetune_command(
    data: Path, out: Path | None, fresh: bool, seed: int | None, **options: Any
) -> None:
    """Fine-tune your own model on DATA under differential privacy: a CSV, JSONL or Parquet file, or
    a folder with a folder of images for each class.

    Settings that are not given are chosen from public numbers and printed with the reason. The same
    command continues a run that was stopped.
    """
    asked = read.typed_options(options)
    check("model" in asked, "--model", None, "a Hugging Face name, or a folder")
    if data.is_dir():  # whose rows have these columns
        asked = {"image": "image", "label": "label"} | asked
    check(data.exists(), "data", str(data), "a file, or a folder of images, that exists")
    from fedlora_lab.cli.training import finetune

    out = out or Path("runs") / f"finetune-{data.stem}"
    finetune(data, asked, out=out, fresh=fresh, seed=seed)


# ---- about runs that were made


@commands.command("predict")
@click.argument("folder", metavar="RUN", type=PATH)
@click.argument("data", type=PATH)
@click.option("--out", type=PATH, metavar="CSV", help="Where they are written.  [standard output]")
@click.option(
    "--probabilities", is_flag=True, help='Of a classifier: a column "p(class)" for each.'
)
@click.option("--max-length", type=read.count(1), help="Tokens kept of a text.  [the run's]")
def predict_command(folder: Path, data: Path, out: Path | None, **options: Any) -> None:
    """Predict the rows of DATA with the adapter of RUN, a folder that `finetune` wrote.

    DATA is a file or folder as `finetune` takes it, or a folder of images without classes. The rows
    get a column "predicted". A row that cannot be read has none, and the reason in a column
    "refused"; the exit status is then 1.
    """
    from fedlora_lab._utils.files import write_atomically
    from fedlora_lab.recipes.predictions import REFUSED, predict_rows
    from fedlora_lab.tasks.tables import SEPARATOR_KEY

    is_free = out is None or (out.parent.is_dir() and not out.exists())
    check(is_free, "--out", str(out), "a new file in a folder that exists; no file is replaced")
    rows = predict_rows(folder, data, **options)
    text = rows.to_csv(sep=rows.attrs[SEPARATOR_KEY], index=False, lineterminator="\n")
    if out is None:
        click.echo(text, nl=False)
        encoding = sys.stdout.encoding
        if text.encode(encoding, "ignore").decode(encoding) != text:
            event = f"standard output is {encoding}, and letters that it lacks became escapes"
            click.echo(f"warning: {event}; --out writes UTF-8", err=True)
    else:
        write_atomically(
            out, text.encode("utf-8", "surrogateescape"), shared=True, through_links=False
        )
    if REFUSED in rows:
        count = int((rows[REFUSED] != "").sum())
        event = f"{count} of {len(rows)} rows were refused"
        click.echo(f"fedlora-lab: {event}: the column {REFUSED} says why", err=True)
        raise SystemExit(1)


@commands.command("report")
@click.argument("folder", type=PATH)
def report_command(folder: Path) -> None:
    """Write FOLDER/report.html from the contents of the run folder."""
    from fedlora_lab.report.page import report

    click.echo(f"report: {report(folder)}")


@commands.command("audit")
@click.argument("folder", metavar="RUN", type=PATH)
@click.option("--canaries", type=read.count(2), help="How many.  [a fifth of the run's cost]")
@click.option("--rounds", type=read.count(1), help="Rounds of the audited runs.  [the run's]")
@click.option("--seed", default=0, type=read.count(0), help="Of runs and canaries.  [0]")
def audit_command(folder: Path, canaries: int | None, rounds: int | None, seed: int) -> None:
    """Run every method of the run folder RUN once more with canaries inside, and write
    RUN/private/audit.json.

    Canaries are examples planted to measure what a release reveals. Each line states the epsilon
    that is proved and the one that the ledger states. The exit status is 1 if the first exceeds the
    second, or if a release is not finite.
    """
    from fedlora_lab.cli.audits import audit_folder

    if not audit_folder(folder, canaries, rounds, seed):
        raise SystemExit(1)


# ---- anybody's training


@commands.command("review")
@click.argument("target")
@click.option("--html", "page", type=PATH, metavar="FILE", help="Write one HTML page, too.  [none]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON in place of the table.")
@click.option(
    "--strict", is_flag=True, help="Status 1 also for what is not as claimed, but may be sound."
)
def review_command(target: str, page: Path | None, **options: bool) -> None:
    """Test whether a private training step keeps the epsilon stated for it.

    TARGET is module:function or script.py:function. A function of two arguments, examples and a
    seed, is a step, and one of examples makes a Flower client; the module's names data and claims
    say what is tried and claimed. A function without arguments returns the module, optimizer,
    loader and criterion of an Opacus script, or a review. The exit status is 0 where nothing broken
    was found, 1 where something was, and 2 where the step could not be looked at.
    """
    from fedlora_lab.cli.reviews import review_target

    raise SystemExit(review_target(target, page, **options))


# ---- about the library


@commands.command("submit")
@click.argument("row", metavar="FILE.py:ROW", type=read.Text("row", read.read_any_row))
@click.option("--out", default="cards", type=PATH, metavar="DIR", help="Folder.  [cards]")
@click.option("--jobs", type=click.IntRange(-1), metavar="N", help="Runs at once.  [-1: all cores]")
@click.option("--quick", is_flag=True, help="One round at two rates, to try the row; no card.")
def submit_command(row: str, out: Path, jobs: int | None, quick: bool) -> None:
    """Train ROW by the protocol of the open table, and write its card.

    ROW is a row of a file of your own, FILE.py:NAME, or a row of the library. A card takes 120
    runs. The same command goes on where it was stopped.
    """
    from fedlora_lab.cli.training import submit

    submit(row, out, -1 if jobs is None else jobs, quick)


@commands.command("methods")
def methods_command() -> None:
    """List the methods: what each trains and sends, what it claims, where it was published."""
    from fedlora_lab.methods import table

    click.echo(table()[["schedule", "uploaded_factors", "exact", "source"]].to_string())


@commands.command("doctor")
def doctor_command() -> None:
    """Show what is installed, what runs here, and the command that adds what is missing."""
    from fedlora_lab.cli.doctor import check_up

    if not check_up():
        raise SystemExit(1)
