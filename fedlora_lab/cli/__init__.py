"""The command line ``fedlora-lab``. A mistake is one line on stderr and status 2."""

import sys
import warnings
from typing import NoReturn

import click


def _fail(text: str, code: int = 2) -> NoReturn:
    sys.stdout.flush()
    print("fedlora-lab: " + " ".join(text.split()), file=sys.stderr)
    raise SystemExit(code)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Runs one command and leaves the process with its status.

    Guarantees: bad values, files and options end in one line on stderr and status 2, never in a
        traceback (test_mistakes_are_one_line); Ctrl-C says how to go on; help and a mistyped
        option load no PyTorch (test_nothing_heavy_is_loaded_before_a_command_is_read).
    """
    from fedlora_lab.cli.commands import commands

    typed = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with warnings.catch_warnings():
            # The line of code that warns says nothing to whoever typed a command.
            warnings.showwarning = lambda x, *_: click.echo(f"warning: {x}", err=True)  # type: ignore
            code = commands.main(typed, "fedlora-lab", standalone_mode=False, obj=typed)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.ctx.get_help() if error.ctx else "")
        raise SystemExit(2) from None
    except click.ClickException as error:
        _fail(error.format_message())
    except (click.Abort, KeyboardInterrupt):
        _fail("stopped; the same command without --fresh goes on from the last finished round", 130)
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has gone; nothing is left to say
        raise SystemExit(1) from None
    except (ValueError, OSError, ImportError) as error:
        _fail(str(error) or type(error).__name__)
    except RuntimeError as error:
        # `Path.expanduser` raises it for the home of a user who is not there.
        if "home directory" not in str(error):
            raise
        _fail("a path begins with ~name: expected the name of a user of this machine")
    raise SystemExit(code if isinstance(code, int) else 0)
