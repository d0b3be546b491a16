"""The command line ``fedlora-lab``. A mistake is one line on stderr and status 2."""

import os
import platform
import runpy
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click.core import ParameterSource

from fedlora_lab._utils.environment import __version__, install_command
from fedlora_lab._utils.files import write_atomically
from fedlora_lab._utils.run_settings import OPTIONS, Option, RunSettings
from fedlora_lab._utils.safe_output import SafeStream
from fedlora_lab._utils.validation import check, check_one_of, few, in_one_line

if TYPE_CHECKING:
    from fedlora_lab.methods.method import Method
    from fedlora_lab.methods.plan import Lora, Plan
    from fedlora_lab.privacy.plan import Privacy
    from fedlora_lab.tasks.task import Task

SIX = "fedlora,ffa-lora,rolora,deer,la-lora,fedlpp"
"""Methods that are compared if none is named."""
PLAN = ("rounds", "local_steps", "batch", "participation")
PRIVACY = ("delta", "unit", "trust", "clip_norm", "accountant")
LORA = {"rank": "rank", "lora_alpha": "alpha"}
"""Option -> field of `Lora`."""
SPLIT = ("clients", "dirichlet")
"""Arguments of the task's builder."""
OF_FILE = ".py:"
"""Stands in the name of a row that is in a file of the reader's own: ``FILE.py:NAME``."""


class Commands(click.Group):
    """The group, which names what is near to a mistyped command."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if not args[0].startswith("-"):
            check_one_of("command", args[0], tuple(self.commands))
        return super().resolve_command(ctx, args)


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, prog_name="fedlora-lab")
def commands() -> None:
    """Federated LoRA under differential privacy: compare methods, list them, look at the setup."""


def main(arguments: list[str] | None = None) -> NoReturn:
    """Runs one command and leaves the process with its status.

    Guarantees: bad values, files and options end in one line on stderr and status 2, never in a
        traceback (test_mistakes_are_one_line); Ctrl-C says how to go on; help and a mistyped
        option load no PyTorch (test_nothing_heavy_is_loaded_before_a_command_is_read); a log of any
        encoding, a closed pipe and a full disk stop no run, and the status is 1 where not
        everything could be printed (test_a_log_of_any_encoding_stops_no_command,
        ::test_output_that_cannot_be_written_stops_no_run).
    """
    typed = list(sys.argv[1:] if arguments is None else arguments)
    output = SafeStream(sys.stdout)
    with redirect_stdout(output), redirect_stderr(SafeStream(sys.stderr)):
        code = _status(typed)
        output.flush()
        if output.failure is not None:
            code = code or 1
            # Whoever closed a pipe has read enough.
            if not isinstance(output.failure, BrokenPipeError):
                _fail(f"not everything could be printed: {output.failure}")
            output.abandon()
    raise SystemExit(code)


def _status(typed: list[str]) -> int:
    """Runs the command that was typed, tells what went wrong, and returns its status."""
    try:
        with warnings.catch_warnings():
            # The line of code that warns says nothing to whoever typed a command.
            warnings.showwarning = lambda x, *_: click.echo(f"warning: {x}", err=True)  # type: ignore
            code = commands.main(typed, "fedlora-lab", standalone_mode=False)
    except SystemExit as stop:
        code = stop.code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "")
        return 2
    except click.ClickException as error:
        return _fail(error.format_message())
    except (click.Abort, KeyboardInterrupt):
        return _fail("stopped; the same command goes on from the last finished round", 130)
    except (ValueError, OSError, ImportError) as error:
        return _fail(str(error) or type(error).__name__)
    except RuntimeError as error:
        # `Path.expanduser` raises it for the home of a user who is not there.
        if "home directory" not in str(error):
            raise
        return _fail("a path begins with ~name: expected the name of a user of this machine")
    return code if isinstance(code, int) else 0


def _fail(text: str, code: int = 2) -> int:
    sys.stdout.flush()
    click.echo("fedlora-lab: " + " ".join(text.split()), err=True)
    return code


# ---- options


class Text(click.ParamType):
    """A text that is read and checked at once, with the library's own errors.

    Args:
        read: name, text -> value.
    """

    name = "text"

    def __init__(self, read: Callable[[str, str], Any]) -> None:
        self.read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Reads the text of an option; a default that is none passes as it is."""
        name = str(param.name) if param is not None else ""
        return self.read(name, value) if isinstance(value, str) else value


def read_names(name: str, text: str) -> list[str]:
    """``"a,b"`` as a list without repeats."""
    names = [part.strip() for part in text.split(",")]
    check(all(names), name, text, "one or more names joined by commas")
    check(len(set(names)) == len(names), name, text, "every name once")
    return names


RATE = Option("", low=0, high=1e9)
COUNT = Option("", low=1, high=1000, whole=True)


def read_rates(name: str, text: str) -> list[float]:
    """Learning rates joined by commas."""
    return [RATE.parse(name, part) for part in read_names(name, text)]


def setting_options(command: Callable[..., None]) -> Callable[..., None]:
    """Puts the declared settings of a run on a command, as options."""
    # Backwards: the option that is put on last stands first in the help.
    for name in reversed(("epsilon", *PRIVACY, *PLAN, *SPLIT, *LORA)):
        option = OPTIONS[name]
        usual = getattr(RunSettings, name)
        meaning = option.meaning + (f" Or {option.word}." if option.word else "")
        command = click.option(
            f"--{name.replace('_', '-')}",
            type=Text(option.parse),
            metavar="|".join(option.choices) or ("N" if option.whole else "X"),
            help=meaning if usual is None else f"{meaning}  [{usual}]",
        )(command)
    return command


# ---- compare


@commands.command("compare")
@click.argument("task")
@click.option(
    "--methods",
    default=SIX,
    type=Text(read_names),
    metavar="A,B",
    help="Methods, the baselines non-private, central, local, and rows FILE.py:NAME of your own, "
    "joined by commas.",
)
@click.option(
    "--seeds", default=3, type=Text(COUNT.parse), metavar="N", help="How many, from 0 on.  [3]"
)
@click.option(
    "--lr",
    type=Text(read_rates),
    metavar="X,Y",
    help="Learning rates to try.  [for each method from public numbers]",
)
@setting_options
@click.option("--jobs", type=click.IntRange(-1), metavar="N", help="Runs at once; -1: all cores.")
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR", help="Of the runs.  [runs/TASK]"
)
def compare_command(
    task: str, methods: list[str], seeds: int, out: Path | None, jobs: int | None, **options: Any
) -> None:
    """Train several methods on TASK: digits, fashion_mnist, sentences or regression.

    Prints a table, and writes DIR/frame.csv. The same command goes on where it was stopped.
    """
    import fedlora_lab as fl
    from fedlora_lab.report import display_table, observer_phrase

    source = click.get_current_context().get_parameter_source
    # ``None`` is a value too, see ``--epsilon none``.
    asked = {x: y for x, y in options.items() if source(x) is ParameterSource.COMMANDLINE}
    rows = [load_row(name, "--methods") if OF_FILE in name else name for name in methods]
    made, privacy, plan, lora = build_parts(task, asked)
    plans: Any = plan
    if "lr" not in asked:
        plans = suggested_plans(rows, made, privacy, plan, lora)
    out = (Path("runs") / task if out is None else out).expanduser()
    frame = fl.compare(
        made,
        rows,
        privacy,
        plans,
        range(seeds),
        lora=lora,
        lr=asked.get("lr"),
        jobs=jobs,
        out=out,
    )
    write_atomically(out / "frame.csv", frame.to_csv(index=False))
    click.echo("\n" + display_table(frame).to_string())
    if privacy is not None:
        click.echo(f"ε:{observer_phrase(privacy.trust)}")


def load_row(text: str, argument: str) -> "Method":
    """Runs a file of the reader's own and takes a row of it.

    Args: text: ``FILE.py:NAME``. argument: that it was given as.
    """
    from fedlora_lab.methods.method import Method

    path, _, name = text.rpartition(":")
    check(Path(path).is_file(), argument, text, f"a file {path} with the row")
    with in_one_line(f"{argument}={text!r}: expected a file that runs, but"):
        content = runpy.run_path(path)
    rows = [key for key, value in content.items() if isinstance(value, Method)]
    check(name in rows, argument, text, "a row of the file: " + (few(rows, 8) or "it has none"))
    return content[name]


def build_parts(name: str, asked: Mapping[str, Any]) -> "tuple[Task, Privacy | None, Plan, Lora]":
    """Builds task, privacy, plan and adapter of what was asked for, else of the defaults.

    Args: name: of the task. asked: settings by name.
    """
    from inspect import signature

    import fedlora_lab as fl

    def pick(names: Iterable[str]) -> dict[str, Any]:
        return {x: asked[x] for x in names if x in asked}

    check_one_of("task", name, tuple(fl.tasks.TASKS))
    for option, value in (split := pick(SPLIT)).items():
        takes = signature(fl.tasks.TASKS[name]).parameters
        check(option in takes, f"--{option}", value, f"not given, since {name} has none")
    task = fl.tasks.build(name, **split)
    plan = fl.Plan(**pick(PLAN))
    lora = fl.Lora(**{LORA[option]: value for option, value in pick(LORA).items()})
    epsilon = asked.get("epsilon", RunSettings.epsilon)
    if epsilon is None:
        ignored = pick(PRIVACY)
        check(not ignored, "epsilon", None, f"a number where {few(ignored)} is given")
        return task, None, plan, lora
    privacy = fl.Privacy(**pick(PRIVACY)).calibrate(epsilon=epsilon, task=task, plan=plan)
    return task, privacy, plan, lora


def suggested_plans(
    rows: "list[str | Method]", task: "Task", privacy: "Privacy | None", plan: "Plan", lora: "Lora"
) -> "dict[str, Plan]":
    """Gives each method the rate that public numbers suggest, and says where it comes from.

    Args: rows: methods and baselines. task, privacy, plan, lora: of all runs.
    """
    import fedlora_lab as fl
    from fedlora_lab.federated.compare import BASELINES

    plans = {}
    for row in rows:
        slug = row if isinstance(row, str) else row.slug
        plans[slug] = plan
        origin = "the default; --lr tries others"
        # In the other units no rate follows from the noise, and a baseline has another one.
        if privacy is not None and privacy.releases_steps and slug not in BASELINES:
            suggested = fl.suggest_lr(task, row, privacy, plan, lora)
            origin = suggested.origin
            plans[slug] = plan.replace(lr=float(f"{suggested.lr:.2g}"))
        click.echo(f"{slug}: learning rate {plans[slug].lr:g}, {origin}")
    return plans


# ---- about the library


@commands.command("new")
@click.argument("name")
def new_command(name: str) -> None:
    """Write NAME, a method of your own: a file with its row, a test, and a comparison that run.

    The folder has the method's name and must be new.
    """
    module = name.lower().replace("-", "_").replace(" ", "_")
    expected = "letters, digits and hyphens, a letter first, such as my-method"
    check(module.isidentifier() and module.isascii(), "name", name, expected)
    folder = Path(name)
    check(not folder.exists(), "name", name, "a folder that is not there yet")
    folder.mkdir()
    title = name.replace("-", " ").replace("_", " ").capitalize()
    for template in sorted((Path(__file__).parent / "template").glob("*.py")):
        text = template.read_text(encoding="utf-8")
        text = text.replace("MODULE", module).replace("TITLE", title)
        path = folder / template.name.replace("method", module)
        path.write_text(text, encoding="utf-8")
        click.echo(path)
    click.echo(f"next: cd {name}; pytest; python compare_{module}.py")


@commands.command("methods")
def methods_command() -> None:
    """List the methods: what each trains and sends, what it claims, where it was published."""
    from fedlora_lab.methods import table

    click.echo(table()[["schedule", "uploaded_factors", "exact", "source"]].to_string())


@commands.command("doctor")
def doctor_command() -> None:
    """Show what is installed, what runs here, and the command that adds what is missing."""
    from packaging.requirements import Requirement

    click.echo(f"fedlora-lab {__version__}")
    system = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    _show(True, "Python", f"{platform.python_version()}, {system}")
    missing = set()
    for requirement in map(Requirement, requires("fedlora-lab") or []):
        extra = str(requirement.marker or "").partition("extra ==")[2].strip(" '\"")
        try:
            value = version(requirement.name)
        except PackageNotFoundError:
            value = "missing"
        fits = value != "missing" and requirement.specifier.contains(value, prereleases=True)
        wanted = "" if fits else f", needs {requirement.specifier}"
        _show(fits, f"{requirement.name} [{extra}]" if extra else requirement.name, value + wanted)
        if not fits:
            missing.add(extra)
    try:
        import torch

        from fedlora_lab import tasks

        tasks.digits()  # whether its weights and scans are as they were
        device = torch.accelerator.current_accelerator() or "cpu"
        _show(True, "digits", f"ready, on {device} with {torch.get_num_threads()} threads")
    except (ImportError, ValueError) as error:
        _show(False, "digits", str(error))
        missing.add("")
    click.echo("What is missing can be added with:" if missing else "Nothing is missing.")
    for extra in sorted(missing):
        click.echo(f"  {install_command(extra)}")
    if "" in missing:
        raise SystemExit(1)


def _show(ok: bool, name: str, value: str) -> None:
    click.echo(f"  {'ok' if ok else '--'}  {name:<28}  {value}")
