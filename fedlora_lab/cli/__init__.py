"""The command line ``fedlora-lab``. A mistake is one line on stderr and status 2."""

import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from typing import NoReturn

import click

from fedlora_lab._utils.safe_output import SafeStream


def _fail(text: str, code: int = 2) -> int:
    sys.stdout.flush()
    click.echo("fedlora-lab: " + " ".join(text.split()), err=True)
    return code


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
    from fedlora_lab.cli.commands import commands

    try:
        with warnings.catch_warnings():
            # The line of code that warns says nothing to whoever typed a command.
            warnings.showwarning = lambda x, *_: click.echo(f"warning: {x}", err=True)  # type: ignore
            code = commands.main(typed, "fedlora-lab", standalone_mode=False, obj=typed)
    except SystemExit as stop:
        code = stop.code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "")
        return 2
    except click.ClickException as error:
        return _fail(error.format_message())
    except (click.Abort, KeyboardInterrupt) as stop:
        line = "stopped; the same command without --fresh goes on from the last finished round"
        return _fail(f"{line}; {stop}" if str(stop) else line, 130)
    except (ValueError, OSError, ImportError) as error:
        return _fail(str(error) or type(error).__name__)
    except RuntimeError as error:
        # `Path.expanduser` raises it for the home of a user who is not there.
        if "home directory" not in str(error):
            raise
        return _fail("a path begins with ~name: expected the name of a user of this machine")
    return code if isinstance(code, int) else 0
