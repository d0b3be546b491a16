"""The command line ``fedlora-lab``. A mistake is one line on stderr and status 2."""

import sys
from importlib import import_module
from typing import NoReturn

import click

from fedlora_lab import __version__

COMMANDS = {
    "methods": ("runs", "List the methods."),
    "run": ("runs", "Train one method, with a line for every round."),
    "compare": ("runs", "Train several methods and write a report."),
    "guide": ("runs", "Say which family leads in a situation, by what was measured near it."),
    "study": ("study_commands", "Run a declared study, resumable at any point."),
    "preset": (
        "study_commands",
        "List the papers' set-ups, check one without weights (--dry-run), or run it.",
    ),
    "flower": ("runs", "Train one method on Flower's simulation engine."),
    "report": ("runs", "Write a run folder's report again."),
    "audit": ("audits", "Audit the runs of a folder: what can be proved against what is stated."),
    "doctor": ("doctor", "Show what is installed and what is missing."),
}
"""Command -> its module, which is loaded when the command is called, and a line of help."""


class LazyGroup(click.Group):
    """Commands whose modules are loaded when they are called: help loads no PyTorch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"fedlora_lab.cli.{COMMANDS[cmd_name][0]}")
        return getattr(module, f"{cmd_name}_command")

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(cls=LazyGroup, context_settings=HELP)
@click.version_option(__version__, prog_name="fedlora-lab")
def commands() -> None:
    """Federated LoRA under differential privacy: train, compare, report, audit."""


def _fail(text: str, status: int = 2) -> NoReturn:
    sys.stdout.flush()
    print("fedlora-lab: " + " ".join(text.split()), file=sys.stderr)
    raise SystemExit(status)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Runs one command and leaves the process with its status.

    Guarantees: bad values, files and options end in one line on stderr and status 2, never in a
        traceback (test_mistakes_are_one_line); Ctrl-C says how to go on.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = commands.main(words, "fedlora-lab", standalone_mode=False, obj=words)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.ctx.get_help() if error.ctx else "")
        raise SystemExit(2) from None
    except click.ClickException as error:
        _fail(error.format_message())
    except (click.Abort, KeyboardInterrupt):
        _fail("stopped; the same command goes on from the last finished round", 130)
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has gone; nothing is left to say
        raise SystemExit(1) from None
    except (ValueError, OSError, ImportError) as error:
        _fail(str(error) or type(error).__name__)
    raise SystemExit(status if isinstance(status, int) else 0)
