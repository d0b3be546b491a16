"""Options shared by run and compare, and what their words mean."""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from fedlora_lab.checks import check, check_one_of
from fedlora_lab.plan import Lora, Plan

if TYPE_CHECKING:
    from fedlora_lab.privacy import Privacy
    from fedlora_lab.tasks import Task

TASKS = ("digits", "regression", "sentiment")
SIDES = {"A", "B", "head"}

_OPTIONS = (
    click.option("--epsilon", default="8", metavar="E", help="Privacy to spend, or none.  [8]"),
    click.option("--delta", type=float, metavar="D", help="Chance that the promise fails.  [as tuned, or 1e-5]"),
    click.option("--unit", default="example", metavar="U", help="What is protected: example or client.  [example]"),
    click.option("--clip", type=float, metavar="C", help="Clip norm.  [as tuned, or 1]"),
    click.option("--rounds", type=int, metavar="N", help="Communication rounds.  [as tuned, or 20]"),
    click.option("--local-steps", type=int, metavar="N", help="Steps of a client in a round.  [as tuned, or 5]"),
    click.option("--batch", metavar="N", help="Expected batch of a client, or all.  [as tuned, or 16]"),
    click.option("--clients", type=int, metavar="N", help="Number of clients.  [the task's]"),
    click.option("--alpha", type=float, metavar="A", help="Dirichlet split; small is heterogeneous.  [the task's]"),
    click.option("--rank", type=int, metavar="R", help="Rank of the adapter.  [as tuned, or 4]"),
    click.option("--lora-alpha", type=float, metavar="A", help="Scale is this over the rank.  [as tuned, or 8]"),
    click.option(
        "--lr",
        metavar="LR",
        help="0.3, or A=0.1,B=0.3, or ffa-lora=0.3,rolora=0.1.  [suggested for method, ε and unit]",
    ),
    click.option("--participation", type=float, metavar="P", help="Chance that a client takes part in a round.  [1]"),
    click.option("--momentum", type=float, metavar="M", help="Momentum of the clients' optimiser.  [0]"),
    click.option("--trust", metavar="T", help="Client unit: local, secagg or central.  [central]"),
    click.option("--accountant", default="prv", metavar="A", help="prv or rdp.  [prv]"),
    click.option(
        "--stop-at", type=float, metavar="E", help="End a run before it spends more than this epsilon.  [none]"
    ),
    click.option("--out", metavar="DIR", help="Run folder.  [runs/TASK]"),
    click.option("--fresh/--resume", default=False, help="Begin anew, or keep finished cells.  [resume]"),
)


def shared(command: Callable) -> Callable:
    """Put the shared options on a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def number(name: str, text: str) -> float:
    """A number, or a one-line error."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    check(not math.isnan(value), name, text, "a number")
    return value


def is_whole(text: str) -> bool:
    """Whether a text is a whole number in plain digits; `str.isdigit` also takes signs that `int` refuses, as "²"."""
    return text.isascii() and text.isdecimal()


def seed(text: str) -> int | None:
    """The seed of one run; ``None`` for "none"."""
    check(text == "none" or is_whole(text), "seed", text, "a whole number >= 0, or none")
    return None if text == "none" else int(text)


def pairs(name: str, text: str) -> dict[str, float]:
    """``"a=1,b=2"`` as a mapping."""
    found: dict[str, float] = {}
    for part in text.split(","):
        key, sign, value = part.partition("=")
        check(bool(sign) and bool(key.strip()), name, text, "a number, or name=number pairs joined by commas")
        check(key.strip() not in found, name, text, f"{key.strip()} once")
        found[key.strip()] = number(f"{name}[{key.strip()!r}]", value)
    return found


def names(name: str, text: str) -> list[str]:
    """``"a,b"`` as a list without repeats or blanks."""
    found = [part.strip() for part in text.split(",") if part.strip()]
    check(bool(found), name, text, "one or more names joined by commas")
    check(len(set(found)) == len(found), name, text, "every name once")
    return found


def seeds(text: str) -> list[int]:
    """``"3"`` is 0, 1, 2; ``"4,7"`` is those two."""
    parts = text.split(",")
    check(all(is_whole(part.strip()) for part in parts), "seeds", text, "how many, or whole numbers joined by commas")
    numbers = [int(part) for part in parts]
    if len(numbers) == 1:
        check(1 <= numbers[0] <= 1000, "seeds", text, "between 1 and 1000, or a list such as 0,1,2")
        return list(range(numbers[0]))
    check(len(set(numbers)) == len(numbers), "seeds", text, "every seed once")
    return numbers


def task_of(name: str, clients: int | None, alpha: float | None) -> "Task":
    """An embedded task with the options it takes."""
    from fedlora_lab import tasks

    check_one_of("task", name, TASKS)
    build = getattr(tasks, name)
    given = {key: value for key, value in {"clients": clients, "alpha": alpha}.items() if value is not None}
    for key in given:
        check(key in inspect.signature(build).parameters, f"--{key}", given[key], f"not given, since {name} has none")
    return build(**given)


def learning_rates(
    text: str | None,
    task: str,
    slugs: list[str],
    epsilon: float | None = 8.0,
    unit: str = "example",
    say: Callable[[str], Any] = lambda line: None,
) -> dict[str, float | Mapping[str, float]]:
    """The learning rate of each method: one for all, one for each factor, one for each method, else what is suggested.

    Args: epsilon, unit: what is suggested for; ``None``: no privacy. say: told where a suggestion comes from that was
        tuned for something else, one line a method.
    """
    from fedlora_lab.tuning import suggestion

    if text is not None and "=" not in text:
        return dict.fromkeys(slugs, number("lr", text))
    given = pairs("lr", text) if text is not None else {}
    if given and set(given) <= SIDES:
        return dict.fromkeys(slugs, given)
    check(set(given) <= set(slugs), "lr", text, f"names among {', '.join(slugs)}, or A, B, head")
    rates: dict[str, float | Mapping[str, float]] = {**given}
    for slug in (slug for slug in slugs if slug not in given):
        found = suggestion(task, slug, epsilon, unit)
        rates[slug] = found.lr
        if not found.exact:
            say(f"{slug}: learning rate {found.lr:g}, {found.words}")
    return {slug: rates[slug] for slug in slugs}


def budget(options: Mapping[str, Any]) -> float | None:
    """The ε that was asked for; ``None`` for ``--epsilon none``."""
    return None if options["epsilon"] == "none" else number("epsilon", options["epsilon"])


def plan_of(options: Mapping[str, Any], tuned: Mapping[str, Any]) -> Plan:
    """The plan: what was said, else the setting that the learning rates were tuned in, else the defaults."""
    plan = Plan(**tuned.get("plan", {}))
    given = {k: options[k] for k in ("rounds", "local_steps", "participation", "momentum") if options[k] is not None}
    if options["batch"] is not None:
        text = options["batch"]
        check(text == "all" or is_whole(text), "batch", text, "a whole number >= 1, or all")
        given["batch"] = None if text == "all" else int(text)
    return plan.replace(**given)


def lora_of(options: Mapping[str, Any], tuned: Mapping[str, Any]) -> Lora:
    """The adapter, in the same order."""
    fields = {"rank": options["rank"], "alpha": options["lora_alpha"]}
    return Lora(**{**tuned.get("lora", {}), **{k: v for k, v in fields.items() if v is not None}})


def privacy_of(options: Mapping[str, Any], tuned: Mapping[str, Any], task: "Task", plan: Plan) -> "Privacy | None":
    """A calibrated privacy plan, or ``None`` for ``--epsilon none``."""
    from fedlora_lab.privacy import Privacy

    epsilon = budget(options)
    if epsilon is None:
        return None
    fields = {"delta": options["delta"], "clip_norm": options["clip"], "trust": options["trust"]}
    same_unit = {} if options["unit"] != "example" else tuned.get("privacy", {})
    fields = {**same_unit, **{k: v for k, v in fields.items() if v is not None}}
    privacy = Privacy(unit=options["unit"], accountant=options["accountant"], **fields)
    return privacy.calibrate(epsilon=epsilon, task=task, plan=plan)
