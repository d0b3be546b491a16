"""The command line ``fedlora-lab``. A mistake is one line on stderr and status 2."""

import os
import platform
import warnings
from importlib.metadata import PackageNotFoundError, requires, version
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from fedlora_lab._utils.environment import __version__, install_command
from fedlora_lab._utils.files import write_atomically
from fedlora_lab._utils.trust import TRUST
from fedlora_lab._utils.validation import check, check_one_of, in_one_line

if TYPE_CHECKING:
    from fedlora_lab.methods.plan import Lora, Plan
    from fedlora_lab.privacy.plan import Privacy
    from fedlora_lab.tasks.task import Task

SIX = "fedlora,ffa-lora,rolora,deer,la-lora,fedlpp"
"""Methods that are compared if none is named."""
PLAN = {"rounds": int, "local_steps": int, "batch": int, "participation": float}
PRIVACY = {"epsilon": float, "delta": float, "unit": str, "trust": str, "clip_norm": float}
LORA = {"rank": int, "lora_alpha": float}
SPLIT = {"clients": int, "dirichlet": float}
"""Options of `compare`, by the part that takes them, with their types."""
MEANINGS = {
    "epsilon": "Privacy budget ε.",
    "delta": "The δ of (ε, δ)-differential privacy.",
    "unit": "What is protected.",
    "trust": "Who is trusted, in the client unit.",
    "clip_norm": "Norm to which each unit's contribution is clipped.",
    "rounds": "Communication rounds.",
    "local_steps": "Steps of a client in a round.",
    "batch": "Expected batch size of a client.",
    "participation": "Chance that a client takes part in a round.",
    "rank": "Rank of the adapter.",
    "lora_alpha": "α of the adapter; its scale is α / rank.",
    "clients": "Number of clients.",
    "dirichlet": "Dirichlet β of the data split; small is heterogeneous.",
}
"""What the options mean, for ``--help``."""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="fedlora-lab")
def commands() -> None:
    """Federated LoRA under differential privacy: compare methods, begin one, look at the setup."""


def main(arguments: list[str] | None = None) -> NoReturn:
    """Runs one command and leaves the process with its status.

    Guarantees: bad values, files and options end in one line on stderr and status 2, never in a
        traceback (test_mistakes_are_one_line); Ctrl-C says how to go on; help and a mistyped
        option load no PyTorch (test_nothing_heavy_is_loaded_before_a_command_is_read).
    """
    try:
        with warnings.catch_warnings():
            # The line of code that warns says nothing to whoever typed a command.
            warnings.showwarning = lambda x, *_: click.echo(f"warning: {x}", err=True)  # type: ignore
            code = commands.main(arguments, "fedlora-lab", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        code = _fail(error.ctx.get_help() if error.ctx else "")
    except click.ClickException as error:
        code = _fail(f"fedlora-lab: {error.format_message()}")
    except (click.Abort, KeyboardInterrupt):
        line = "stopped; the same command goes on from the last finished round"
        code = _fail(f"fedlora-lab: {line}", 130)
    except (ValueError, OSError, ImportError) as error:
        code = _fail(f"fedlora-lab: {str(error) or type(error).__name__}")
    raise SystemExit(code)


def _fail(text: str, code: int = 2) -> int:
    click.echo(text, err=True)
    return code


# ---- compare


def run_options(command: Any) -> Any:
    """Puts the fields of plan, privacy, adapter and split on a command, as options."""
    for name, kind in (PRIVACY | PLAN | LORA | SPLIT).items():
        flag = f"--{name.replace('_', '-')}"
        command = click.option(flag, type=kind, help=MEANINGS[name])(command)
    return command


@commands.command("compare")
@click.argument("task")
@click.option("--methods", default=SIX, metavar="A,B", help=f"Published methods.  [{SIX}]")
@click.option("--seeds", default=3, type=click.IntRange(1), help="How many, from 0 on.  [3]")
@click.option("--lr", metavar="X,Y", help="Rates to try.  [for each method from public numbers]")
@run_options
@click.option("--jobs", type=click.IntRange(-1), help="Runs at once; -1: all cores.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the runs.  [runs/TASK]")
def compare_command(
    task: str,
    methods: str,
    seeds: int,
    lr: str | None,
    jobs: int | None,
    out: Path | None,
    **options: Any,
) -> None:
    """Train several methods on TASK: digits, sentences or regression.

    Prints a table, and writes DIR/frame.csv. The same command goes on where it was stopped.
    """
    import fedlora_lab as fl
    from fedlora_lab.report import display_table

    slugs = [name.strip() for name in methods.split(",")]
    asked = {name: value for name, value in options.items() if value is not None}
    made, privacy, plan, lora = build_parts(task, asked)
    plans: Any = plan
    rates = None
    if lr is None:
        plans = suggested_plans(slugs, made, privacy, plan, lora)
    else:
        with in_one_line(f"lr={lr!r}: expected numbers joined by commas, but"):
            rates = [float(rate) for rate in lr.split(",")]
    out = Path("runs") / task if out is None else out
    frame = fl.compare(
        made, slugs, privacy, plans, range(seeds), lora=lora, lr=rates, jobs=jobs, out=out
    )
    write_atomically(out / "frame.csv", frame.to_csv(index=False))
    click.echo("\n" + display_table(frame).to_string())
    assert privacy.trust is not None  # set by `calibrate`
    click.echo(f"ε: against {TRUST[privacy.trust].observer}")


def build_parts(name: str, asked: dict[str, Any]) -> "tuple[Task, Privacy, Plan, Lora]":
    """Builds task, privacy, plan and adapter of what was asked for, else of the defaults.

    Args: name: of the task. asked: settings by name.
    """
    import fedlora_lab as fl

    def pick(names: dict[str, type]) -> dict[str, Any]:
        return {name: asked[name] for name in names if name in asked}

    check_one_of("task", name, tuple(fl.tasks.TASKS))
    for option, value in (split := pick(SPLIT)).items():
        takes = signature(fl.tasks.TASKS[name]).parameters
        check(option in takes, f"--{option}", value, f"not given, since {name} has none")
    task = fl.tasks.build(name, **split)
    plan = fl.Plan(**pick(PLAN))
    terms: dict[str, Any] = {"epsilon": 8.0} | pick(PRIVACY)
    epsilon = terms.pop("epsilon")
    privacy = fl.Privacy(**terms).calibrate(epsilon=epsilon, task=task, plan=plan)
    lora = fl.Lora(rank=asked.get("rank", 4), alpha=asked.get("lora_alpha", 8.0))
    return task, privacy, plan, lora


def suggested_plans(
    slugs: list[str], task: "Task", privacy: "Privacy", plan: "Plan", lora: "Lora"
) -> "dict[str, Plan]":
    """Gives each method the rate that public numbers suggest, and says where it comes from.

    Args: slugs: of methods. task, privacy, plan, lora: of all runs.
    """
    import fedlora_lab as fl

    plans = {}
    for slug in slugs:
        plans[slug] = plan
        origin = "the default; --lr tries others"
        # In the other units no rate follows from the noise.
        if privacy.releases_steps:
            suggested = fl.suggest_lr(task, slug, privacy, plan, lora)
            origin = suggested.origin
            plans[slug] = plan.replace(lr=float(f"{suggested.lr:.2g}"))
        click.echo(f"{slug}: learning rate {plans[slug].lr:g}, {origin}")
    return plans


# ---- a method of one's own


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


# ---- the setup


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
