"""Options of the commands, made of the declarations in `RunSettings`, and how their text is read.

Everything is read and checked before PyTorch is loaded, so that a mistake is told at once.
"""

import math
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from fedlora_lab._utils.options import OPTIONS, RunSettings
from fedlora_lab._utils.validation import check, check_one_of

TASKS = ("digits", "regression")
METHODS = (
    "fedlora", "ffa-lora", "rolora", "deer", "deer-literal", "la-lora", "la-lora-unfiltered",
    "fedlpp", "fedex-lora", "flora", "flexlora", "hetlora", "fedsa-lora", "sdflora",
    "lora-fair", "fedsvd", "fedask", "fed-sb", "as-lora", "ravan", "dp-lora", "dp-fedlora",
    "balanced-lora", "local",
)  # fmt: skip
"""Slugs of the table, whose own module loads PyTorch."""
BASELINES = ("non-private", "central", "local")
FLAGS = {"clip_norm": "--clip"}
"""Flags that are not the setting's own name."""
CHOSEN = "chosen, and printed with its reason"
SITUATION = (
    "epsilon", "delta", "unit", "clip_norm", "rounds", "local_steps", "batch", "clients", "alpha",
    "rank", "lora_alpha", "participation", "server_lr", "trust", "accountant", "stop_at",
)  # fmt: skip
"""Settings of `run` and `compare`."""
FINETUNE = tuple(name for name in SITUATION if name not in ("alpha", "server_lr"))
"""Settings of `finetune`."""
TUNED = {"delta", "clip_norm", "rounds", "local_steps", "batch", "rank", "lora_alpha"}
"""Settings whose default is what the learning rates of the task were tuned in."""

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class Text(click.ParamType):
    """A text that is read and checked at once, with the library's own errors.

    Args: name: of the argument. read: name, text -> value. words: what completion offers.
    """

    def __init__(
        self, name: str, read: Callable[[str, str], Any], words: Iterable[str] = ()
    ) -> None:
        self.name = name
        self.read = read
        self.words = tuple(words)

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Reads the text of an option; a default that is none passes as it is.

        Args: value: text or default; param, ctx: of click.
        """
        return self.read(self.name, value) if isinstance(value, str) else value

    def shell_complete(self, ctx: Any, param: Any, incomplete: str) -> list[CompletionItem]:
        """Offers words; in a list behind the last comma.

        Args: ctx, param: of click; incomplete: what is typed so far.
        """
        before, comma, last = incomplete.rpartition(",")
        near = [word for word in self.words if word.startswith(last)]
        return [CompletionItem(f"{before}{comma}{word}") for word in near]


def setting(name: str) -> Text:
    """A declared setting as click reads it."""
    option = OPTIONS[name]
    return Text(name, option.parse, filter(None, (*option.choices, option.word)))


def setting_options(names: Iterable[str], default: str = "") -> Decorator:
    """Puts declared settings on a command, as options.

    Args: names: of the settings. default: in words, for all; "": the declared ones.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for name in reversed(list(names)):
            option = OPTIONS[name]
            flag = FLAGS.get(name, f"--{name.replace('_', '-')}")
            meaning = option.meaning + (f" Or {option.word}." if option.word else "")
            meaning += f"  [{default or _default_in_words(name)}]"
            metavar = "|".join(option.choices) or ("N" if option.whole else "X")
            add = click.option(flag, name, type=setting(name), metavar=metavar, help=meaning)
            command = add(command)
        return command

    return decorate


def _default_in_words(name: str) -> str:
    value = getattr(RunSettings, name)
    if name in ("clients", "alpha"):
        return "the task's"
    if name == "trust":
        return "central"
    if value is None:
        return "none"
    text = value if isinstance(value, str) else f"{value:g}"
    return f"as tuned, or {text}" if name in TUNED else text


def typed_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were typed: ``None`` is a value too, as of ``--epsilon none``."""
    source = click.get_current_context().get_parameter_source
    typed = ParameterSource.COMMANDLINE
    return {name: value for name, value in options.items() if source(name) is typed}


# ---- how text is read


def read_number(name: str, text: str) -> float:
    """A number; ``ValueError`` in one line for anything else."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    check(not math.isnan(value), name, text, "a number")
    return value


def read_seeds(name: str, text: str) -> list[int]:
    """``"3"`` is 0, 1, 2; ``"4,7"`` is those two."""
    parts = [part.strip() for part in text.split(",")]
    # `str.isdigit` also takes signs that `int` refuses, as "²".
    whole = all(part.isascii() and part.isdecimal() for part in parts)
    check(whole, name, text, "how many, or whole numbers joined by commas")
    numbers = [int(part) for part in parts]
    if len(numbers) == 1:
        check(1 <= numbers[0] <= 1000, name, text, "between 1 and 1000, or a list such as 0,1,2")
        return list(range(numbers[0]))
    check(len(set(numbers)) == len(numbers), name, text, "every seed once")
    return numbers


def read_names(name: str, text: str) -> list[str]:
    """``"a,b"`` as a list without repeats or blanks."""
    names = [part.strip() for part in text.split(",") if part.strip()]
    check(bool(names), name, text, "one or more names joined by commas")
    check(len(set(names)) == len(names), name, text, "every name once")
    return names


def read_columns(name: str, text: str) -> str | list[str]:
    """The name of one column, or a list of several joined by commas."""
    return read_names(name, text) if "," in text else text


def read_task(name: str, text: str) -> str:
    """The name of an embedded task, or of one that was registered in this process."""
    # Whoever registered one has loaded the tasks; nobody else waits for PyTorch.
    loaded = sys.modules.get("fedlora_lab.tasks")
    check_one_of(name, text, tuple(getattr(loaded, "TASKS", TASKS)))
    return text


def read_method(name: str, text: str) -> str:
    """The slug of a row of the table, or a baseline."""
    check_one_of(name, text, tuple(dict.fromkeys((*METHODS, *BASELINES))))
    return text


def read_methods(name: str, text: str) -> list[str]:
    """Slugs and baselines joined by commas."""
    return [read_method("method", slug) for slug in read_names(name, text)]


def read_rates(name: str, text: str) -> float | dict[str, float]:
    """A learning rate, or one for each factor or method: ``"A=1,B=2"``."""
    if "=" not in text:
        return read_number(name, text)
    rates: dict[str, float] = {}
    for part in text.split(","):
        key, equals, value = part.strip().partition("=")
        words = "a number, or name=number pairs joined by commas"
        check(bool(equals and key), name, text, words)
        check(key not in rates, name, text, f"{key} once")
        rates[key] = read_number(f"{name}[{key!r}]", value)
    return rates


def read_test(name: str, text: str) -> float | Path:
    """The path of public rows, or the share of rows that is held out."""
    return float(text) if text.replace(".", "", 1).isdecimal() else Path(text)


def read_optimizer(name: str, text: str) -> dict[str, Any]:
    """``"adamw:eps=1e-6,betas=0.9/0.99"``: a name, and settings, each a number or several.

    >>> read_optimizer("optimizer", "adamw:eps=1e-6,betas=0.9/0.99")["betas"]
    (0.9, 0.99)
    """
    kind, colon, rest = text.partition(":")
    settings: dict[str, Any] = {"name": kind.strip()}
    for part in rest.split(",") if colon else ():
        key, _, value = part.strip().partition("=")
        once = bool(key) and key not in settings
        check(once, name, text, "settings as in 'adamw:eps=1e-6,betas=0.9/0.99', each once")
        numbers = tuple(read_number(f"{name} {key}", number) for number in value.split("/"))
        settings[key] = numbers if len(numbers) > 1 else numbers[0]
    return settings
