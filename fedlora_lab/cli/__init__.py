"""The command line: methods, run, compare, flower, report, audit ... A mistake is one line on stderr and status 2."""

import sys
from typing import NoReturn

import click

from fedlora_lab import __version__
from fedlora_lab.cli.audit import audit
from fedlora_lab.cli.flower import flower
from fedlora_lab.cli.preset import preset
from fedlora_lab.cli.runs import compare, run
from fedlora_lab.cli.small import doctor, methods, report
from fedlora_lab.cli.study import study


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="fedlora-lab")
def commands() -> None:
    """Federated LoRA under differential privacy: train, compare, report, audit."""


for command in (methods, run, compare, study, preset, flower, report, audit, doctor):
    commands.add_command(command)


def _fail(text: str, status: int = 2) -> NoReturn:
    sys.stdout.flush()
    print("fedlora-lab: " + " ".join(text.split()), file=sys.stderr)
    raise SystemExit(status)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run one command and leave the process with its status.

    Guarantees: bad values, files and options end in one line on stderr and status 2, never in a traceback
        (test_mistakes_are_one_line); Ctrl-C says how to go on.
    """
    try:
        given = sys.argv[1:] if arguments is None else arguments
        status = commands.main(args=list(given), prog_name="fedlora-lab", standalone_mode=False, obj=given)
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
