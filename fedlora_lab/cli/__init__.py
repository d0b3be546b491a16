"""The command line ``fedlora-lab``. A mistake is one line on stderr and status 2."""

import difflib
import sys
import threading
from importlib import import_module
from typing import Any, NoReturn

import click

from fedlora_lab import __version__

COMMANDS = {
    "methods": ("runs", "List the methods."),
    "run": ("runs", "Train one method, with a line for every round."),
    "compare": ("runs", "Train several methods and write a report."),
    "finetune": ("runs", "Fine-tune your own model on your own CSV file, with defaults."),
    "flower": ("runs", "Train one method on Flower's simulation engine."),
    "report": ("runs", "Rewrite the report of a run folder."),
    "audit": ("audits", "Audit the runs of a folder: attack them and compare with the stated ε."),
    "doctor": ("doctor", "Show what is installed and what is missing."),
}
"""Command -> its module, which is loaded when the command is called, and a line of help."""


class StatusLine:
    """On a terminal, a line that says what a command is doing, renewed every second.

    Imports, downloads and calibration take seconds in which a command has nothing else to show.

    Guarantees: test_progress.py::test_a_command_on_a_terminal_shows_what_it_does.
    """

    def __init__(self) -> None:
        self._bar: Any = None
        self._own = False
        self._over = threading.Event()

    def begin(self, words: str) -> None:
        """Shows these words and the time so far, until another line or bar takes their place."""
        self.end()
        if not sys.stderr.isatty():
            return
        from tqdm import tqdm

        self._bar, self._own, self._over = (
            tqdm(bar_format="{desc} {elapsed}"),
            True,
            threading.Event(),
        )
        self._bar.leave = False
        self._bar.set_description_str(words)
        threading.Thread(target=self._renew, args=(self._over,), daemon=True).start()

    def follow(self, bar: Any) -> None:
        """Renews this tqdm bar from now on, in the place of the line."""
        if self._bar is not None:
            self._drop()
            self._bar = bar

    def say(self, line: str) -> None:
        """Prints a line in the place of this one."""
        self.end()
        click.echo(line)

    def end(self) -> None:
        """Takes the line away."""
        self._over.set()
        if self._bar is not None:
            self._drop()
            self._bar = None

    def _drop(self) -> None:
        if self._own:
            self._own = False
            self._bar.close()

    def _renew(self, over: threading.Event) -> None:
        while not over.wait(1):
            if (bar := self._bar) is not None:
                bar.refresh()


status = StatusLine()


class LazyGroup(click.Group):
    """Commands whose modules are loaded when they are called: help loads no PyTorch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        if not {"-h", "--help"} & {*(ctx.obj or ())}:
            status.begin(f"fedlora-lab {cmd_name}")
        module = import_module(f"fedlora_lab.cli.{COMMANDS[cmd_name][0]}")
        return getattr(module, f"{cmd_name.replace('-', '_')}_command")

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], COMMANDS, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"No such command {args[0]!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


CONTEXT_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(cls=LazyGroup, context_settings=CONTEXT_SETTINGS)
@click.version_option(__version__, prog_name="fedlora-lab")
def commands() -> None:
    """Federated LoRA under differential privacy: train, compare, report, audit."""


def _fail(text: str, code: int = 2) -> NoReturn:
    status.end()
    sys.stdout.flush()
    print("fedlora-lab: " + " ".join(text.split()), file=sys.stderr)
    raise SystemExit(code)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Runs one command and leaves the process with its status.

    Guarantees: bad values, files and options end in one line on stderr and status 2, never in a
        traceback (test_mistakes_are_one_line); Ctrl-C says how to go on.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = commands.main(words, "fedlora-lab", standalone_mode=False, obj=words)
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
    except RuntimeError as error:
        if "home directory" not in str(error):
            raise
        _fail("a path begins with ~name: expected the name of a user of this machine")
    finally:
        status.end()
    raise SystemExit(code if isinstance(code, int) else 0)
