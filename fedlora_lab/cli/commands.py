"""The commands and their options. What a command does is loaded when its options have been read."""

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from fedlora_lab._utils.environment import __version__
from fedlora_lab._utils.validation import check, check_number, check_whole
from fedlora_lab.cli import options as read
from fedlora_lab.cli import status

DEFAULT_METHODS = "fedlora,ffa-lora,rolora,deer,la-lora,fedlpp"
PATH = click.Path(path_type=Path)


class Command(click.Command):
    """A command that shows on a terminal that it works, as soon as its options are read."""

    def invoke(self, ctx: click.Context) -> Any:
        status.begin(ctx.command_path)
        return super().invoke(ctx)


class Commands(click.Group):
    """The group, which suggests the nearest command for a mistyped one."""

    command_class = Command

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args[0] not in self.commands and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], self.commands, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"No such command {args[0]!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)


CONTEXT_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(cls=Commands, context_settings=CONTEXT_SETTINGS)
@click.version_option(__version__, prog_name="fedlora-lab")
def commands() -> None:
    """Federated LoRA under differential privacy: train, compare, report, audit."""


# ---- training


LR = read.Text("lr", read.read_rates)
OPTIMIZER = read.Text("optimizer", read.read_optimizer)
SERVER_OPTIMIZER = read.Text("server_optimizer", read.read_optimizer)
LR_HELP = "Such as 0.3, or A=0.1,B=0.3, or ffa-lora=0.3,rolora=0.1.  [suggested for the setting]"
RULE_HELP = "Of clients: sgd, adamw, or sgd:momentum=0.9.  [sgd]"
SERVER_RULE_HELP = "Of the server: sgd, adam, or sgd:momentum=0.9.  [sgd]"


def training_options(command: Callable[..., None]) -> Callable[..., None]:
    """Puts on a command what `run` and `compare` share."""
    for option in (
        click.option("--fresh/--resume", default=False, help="Start anew, or go on.  [resume]"),
        click.option("--out", type=PATH, metavar="DIR", help="Run folder.  [runs/TASK]"),
        click.option(
            "--server-optimizer", type=SERVER_OPTIMIZER, metavar="O", help=SERVER_RULE_HELP
        ),
        click.option("--optimizer", type=OPTIMIZER, metavar="O", help=RULE_HELP),
        click.option("--lr", type=LR, metavar="LR", help=LR_HELP),
        read.setting_options(read.SITUATION),
    ):
        command = option(command)
    return command


TASK = read.Text("task", read.read_task, read.TASKS)
METHOD = read.Text("method", read.read_method, read.METHODS)
METHODS = read.Text("methods", read.read_methods, (*read.METHODS, *read.BASELINES))
METHODS_HELP = "Methods and the baselines non-private, central, local, joined by commas."
SEEDS = read.Text("seeds", read.read_seeds)
SEEDS_HELP = "Number of seeds, or a list such as 0,1,2.  [3]"
SEED = read.setting("seed")
SEED_HELP = "A number repeats a run; none draws fresh noise, for a release.  [0]"


@commands.command("compare")
@click.argument("task", type=TASK)
@click.option("--methods", default=DEFAULT_METHODS, type=METHODS, metavar="A,B", help=METHODS_HELP)
@click.option("--seeds", default="3", type=SEEDS, metavar="N", help=SEEDS_HELP)
@training_options
def compare_command(task: str, methods: list[str], seeds: list[int], **options: Any) -> None:
    """Train several methods on TASK (digits or regression), and write a run folder with a report.

    The same command continues where it was stopped; finished runs are kept.
    """
    from fedlora_lab.cli.training import train

    train(task, methods, seeds, **options)


@commands.command("run")
@click.argument("task", type=TASK)
@click.argument("method", type=METHOD)
@click.option("--seed", default="0", type=SEED, metavar="N", help=SEED_HELP)
@training_options
def run_command(task: str, method: str, seed: int | None, **options: Any) -> None:
    """Train one METHOD on TASK (digits or regression), with a line for every round.

    The same command continues a run that was stopped.
    """
    from fedlora_lab.cli.training import train

    options["out"] = options["out"] or Path("runs") / f"{task}-{method}"
    train(task, [method], [seed], every_round=True, **options)


COLUMNS = read.Text("text", read.read_columns)
CLASSES = read.Text("labels", read.read_names)
TEST = read.Text("test", read.read_test)
LENGTH = click.IntRange(1)


@commands.command("finetune")
@click.argument("data", type=PATH)
@click.option("--model", metavar="DIR", help="A Hugging Face name, or a folder.  [required]")
@click.option("--text", type=COLUMNS, metavar="COLUMN", help="Of the texts, or A,B of pairs.")
@click.option(
    "--label", metavar="COLUMN", help="Of the classes; without it a decoder learns texts."
)
@click.option("--labels", type=CLASSES, metavar="A,B", help="Classes in order.  [from the rows]")
@click.option("--by", metavar="COLUMN", help="Of the owner, a client.  [dealt at random]")
@click.option("--image", metavar="COLUMN", help="Of image files, in place of --text.")
@click.option(
    "--test", type=TEST, metavar="CSV", help="Public rows to score on, or a share.  [none]"
)
@click.option("--method", type=METHOD, metavar="A", help=f"A method.  [{read.CHOSEN}]")
@click.option("--person", metavar="COLUMN", help="Of persons: protect all rows of each.")
@click.option("--max-length", type=LENGTH, metavar="N", help="Tokens of a text.  [at most 128]")
@click.option("--device", metavar="D", help="Such as cpu or cuda.  [cpu]")
@click.option("--lr", type=LR, metavar="LR", help=f"Learning rate.  [{read.CHOSEN}]")
@click.option("--optimizer", type=OPTIMIZER, metavar="O", help="Of clients: sgd or adamw.  [sgd]")
@read.setting_options(read.FINETUNE, default=read.CHOSEN)
@click.option("--seed", default="none", type=SEED, metavar="N", help="none for a release.  [none]")
@click.option("--out", type=PATH, metavar="DIR", help="Run folder.  [runs/finetune-DATA]")
@click.option("--fresh", is_flag=True, help="Start anew in a folder that holds another run.")
def finetune_command(
    data: Path, out: Path | None, fresh: bool, seed: int | None, **options: Any
) -> None:
    """Fine-tune your own model on DATA, a CSV file or a folder of images, under differential
    privacy.

    Settings that are not given are chosen from public numbers and printed with the reason. The same
    command continues a run that was stopped.
    """
    asked = read.typed_options(options)
    check("model" in asked, "--model", None, "a Hugging Face name, or a folder")
    check(data.exists(), "data", str(data), "a CSV file, or a folder of images, that exists")
    from fedlora_lab.cli.training import finetune

    out = out or Path("runs") / f"finetune-{data.stem}"
    finetune(data, asked, out=out, fresh=fresh, seed=seed)


# ---- about runs that were made


@commands.command("report")
@click.argument("folder", type=PATH)
def report_command(folder: Path) -> None:
    """Write FOLDER/report.html from the contents of the run folder, if they have changed."""
    from fedlora_lab.report.page import report

    status.say(f"report: {report(folder)}")


@commands.command("audit")
@click.argument("folder", metavar="RUN", type=PATH)
@click.option("--canaries", type=int, metavar="N", help="How many.  [a fifth of the run's cost]")
@click.option("--confidence", default=0.99, metavar="P", help="Of every lower bound.  [0.99]")
@click.option("--rounds", type=int, metavar="N", help="Rounds of the audited runs.  [the run's]")
@click.option("--seed", default=0, metavar="N", help="Of the audited runs and the canaries.  [0]")
@click.option(
    "--check/--no-check", "reviewed", default=True, help="Also review the engine's step.  [check]"
)
def audit_command(
    folder: Path,
    canaries: int | None,
    confidence: float,
    rounds: int | None,
    seed: int,
    reviewed: bool,
) -> None:
    """Run every method of the run folder RUN once more with canaries inside, and write
    RUN/private/audit.json.

    Canaries are examples planted to measure what a release reveals. Each line states the epsilon
    that is proved and the one that the ledger states. The exit status is 1 if the first exceeds the
    second, if a release is not finite, or if the review finds a fault.
    """
    check_number("confidence", confidence, 0, 1 - 1e-9, open_low=True)
    check_whole("seed", seed)
    for name, value, low in (("canaries", canaries, 2), ("rounds", rounds, 1)):
        if value is not None:
            check_whole(name, value, low)
    from fedlora_lab.cli.audits import audit_folder

    if not audit_folder(folder, canaries, confidence, rounds, seed, reviewed):
        raise SystemExit(1)


# ---- about the library


@commands.command("methods")
def methods_command() -> None:
    """List the methods: what each trains and sends, what it claims, where it was published."""
    from fedlora_lab.cli.method_table import method_lines

    status.say("\n".join(method_lines()))


@commands.command("doctor")
def doctor_command() -> None:
    """Show what is installed, what runs here, and the command that adds what is missing."""
    from fedlora_lab.cli.doctor import check_up

    if not check_up():
        raise SystemExit(1)
