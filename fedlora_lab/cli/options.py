"""Options of the commands, made of the declarations in `RunSettings`, and how their text is read.

Everything is read and checked before PyTorch is loaded, so that a mistake is told at once.
"""

import math
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from fedlora_lab._utils.method_names import letters
from fedlora_lab._utils.run_settings import OPTIONS, Option, RunSettings
from fedlora_lab._utils.validation import check, check_one_of

TASKS = ("digits", "fashion_mnist", "regression", "sentences")
LOOKS = tomllib.loads((Path(__file__).parents[1] / "plots" / "looks.toml").read_text("utf-8"))
"""Slug of a method or baseline -> its look; the table's own module loads PyTorch."""
BASELINES = ("non-private", "central", "local")
"""Names beside the rows of the table, for comparisons."""
CHOSEN = "chosen"
SITUATION = (
    "epsilon", "delta", "unit", "clip_norm", "rounds", "local_steps", "batch", "clients",
    "dirichlet", "rank", "lora_alpha", "participation", "trust", "accountant", "max_epsilon",
)  # fmt: skip
"""Settings of `run` and `compare`."""
FINETUNE = tuple(name for name in OPTIONS if name not in ("dirichlet", "epsilon", "seed"))
"""Settings of `finetune` whose default is chosen."""
TUNED = {"delta", "clip_norm", "rounds", "local_steps", "batch", "rank", "lora_alpha"}
"""Settings whose default is what the learning rates of the task were tuned in."""


class Text(click.ParamType):
    """A text that is read and checked at once, with the library's own errors.

    Args:
        name: of the argument.
        read: name, text -> value.
    """

    def __init__(self, name: str, read: Callable[[str, str], Any]) -> None:
        self.name = name
        self.read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Reads the text of an option; a default that is none passes as it is."""
        name = self.name if param is None or param.name is None else param.name
        return self.read(name, value) if isinstance(value, str) else value


def setting(name: str) -> Text:
    """A declared setting as click reads it."""
    return Text(name, OPTIONS[name].parse)


def count(low: int = 1, high: float = math.inf) -> Text:
    """A whole number in a range, both ends included."""
    return Text("", Option("", low=low, high=high, whole=True).parse)


RATE = Text("lr", Option("", low=0, high=1e9).parse)
"""A learning rate, as of `Plan`."""
RATES = Text("lr", lambda name, text: [RATE.read(name, part) for part in read_names(name, text)])
"""Learning rates joined by commas."""
Command = Callable[..., None]


def setting_options(names: tuple[str, ...], default: str = "") -> Callable[[Command], Command]:
    """Puts declared settings on a command, as options.

    Args: names: of the settings. default: in words, for all; "": the declared ones.
    """

    def decorate(command: Command) -> Command:
        # Backwards: the option that is put on last stands first in the help.
        for name in reversed(names):
            option = OPTIONS[name]
            usual = default or ("as tuned" if name in TUNED else getattr(RunSettings, name))
            help_text = option.meaning
            if option.word:
                help_text += f" Or {option.word}."
            if usual is not None:
                help_text += f"  [{usual}]"
            command = click.option(
                f"--{name.replace('_', '-')}",
                type=setting(name),
                metavar="|".join(option.choices) or ("N" if option.whole else "X"),
                help=help_text,
            )(command)
        return command

    return decorate


def refuse_alpha(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    """Refuses ``--alpha``, which would be read as one of two numbers and mean the other."""
    expected = "--lora-alpha for the adapter's α, or --dirichlet for the β of the data split"
    check(value is None, "--alpha", value, expected)


def typed_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were typed: ``None`` is a value too, as of ``--epsilon none``."""
    source = click.get_current_context().get_parameter_source
    typed = ParameterSource.COMMANDLINE
    return {name: value for name, value in options.items() if source(name) is typed}


# ---- how text is read


def read_names(name: str, text: str) -> list[str]:
    """``"a,b"`` as a list without repeats."""
    names = [part.strip() for part in text.split(",")]
    check(all(names), name, text, "one or more names joined by commas")
    check(len(set(names)) == len(names), name, text, "every name once")
    return names


def read_task(name: str, text: str) -> str:
    """The name of an embedded task."""
    check_one_of(name, text, TASKS)
    return text


def read_method(name: str, text: str, others: tuple[str, ...] = BASELINES) -> str:
    """The slug of a row of the table, however its name is spelled, or one of the other names."""
    slug = {letters(row): row for row in LOOKS}.get(letters(text), text)
    check_one_of(name, slug, tuple(row for row in LOOKS if row not in BASELINES or row in others))
    return slug


def read_row(name: str, text: str) -> str:
    """The slug of a row of the table."""
    return read_method(name, text, ())


OF_FILE = ".py:"
"""Stands in the name of a row that is in a file of the reader's own: ``FILE.py:NAME``."""


def read_methods(name: str, text: str) -> list[str]:
    """Slugs, baselines and rows of files joined by commas."""
    names = read_names(name, text)
    for part in names:
        if not _names_a_file(name, part):
            read_method("method", part)
    return names


def read_any_row(name: str, text: str) -> str:
    """The slug of a row of the table, or a row of a file."""
    return text if _names_a_file(name, text) else read_row(name, text)


def _names_a_file(name: str, text: str) -> bool:
    path, is_file, _ = text.rpartition(":") if OF_FILE in text else ("", "", "")
    check(not is_file or Path(path).is_file(), name, text, f"a file {path} with the row")
    return bool(is_file)


def read_test(name: str, text: str) -> float | str:
    """The file or split of public rows, or the share of rows that is held out."""
    return float(text) if text.replace(".", "", 1).isdecimal() else text
