"""Options shared by run, compare and flower, and how their words become a run's parts."""

import math
from collections.abc import Callable, Mapping
from inspect import signature
from types import MappingProxyType
from typing import Any

import click

import fedlora_lab as fl
from fedlora_lab._utils.validation import check, check_one_of
from fedlora_lab.experiments.tuned_rates import load_searches, suggestion
from fedlora_lab.methods.optimizers import (
    OPTIMIZERS,
    SERVER_OPTIMIZERS,
    SGD,
    Optimizer,
    Table,
    optimizer_of,
)

PLAN_FIELDS = "rounds local_steps participation optimizer server_optimizer server_lr"
"""Fields of a plan that options of the same name set."""
PLAIN = SGD()
LR_HELP = (
    "Such as 0.3, or A=0.1,B=0.3, or ffa-lora=0.3,rolora=0.1.  [suggested for method, ε and unit]"
)
RUN_OPTIONS: list[tuple[str, type, str, str]] = [
    ("--epsilon", str, "E", "Privacy budget ε, or none to train without privacy.  [8]"),
    ("--delta", float, "D", "The δ of (ε, δ)-differential privacy.  [as tuned, or 1e-5]"),
    ("--unit", str, "U", "What is protected: example, person or client.  [example]"),
    (
        "--clip",
        float,
        "C",
        "A clip norm.  [as tuned, or 1]",
    ),
    ("--rounds", int, "N", "Communication rounds.  [as tuned, or 20]"),
    ("--local-steps", int, "N", "Steps of a client in a round.  [as tuned, or 5]"),
    ("--batch", str, "N", "Expected batch size of a client, or all.  [as tuned, or 16]"),
    ("--clients", int, "N", "Number of clients.  [the task's]"),
    ("--alpha", float, "A", "Dirichlet β of the data split; small is heterogeneous.  [the task's]"),
    ("--rank", int, "R", "Rank of the adapter.  [as tuned, or 4]"),
    ("--lora-alpha", float, "A", "α of the adapter; its scale is α / rank.  [as tuned, or 8]"),
    ("--peft", str, "FILE", "An adapter_config.json of PEFT that sets the adapter.  [none]"),
    ("--lr", str, "LR", LR_HELP),
    ("--participation", float, "P", "Chance that a client takes part in a round.  [1]"),
    ("--optimizer", str, "O", "Of clients: sgd, adamw, or sgd:momentum=0.9.  [sgd]"),
    ("--server-optimizer", str, "O", "Of the server: sgd, adam, or sgd:momentum=0.9.  [sgd]"),
    ("--server-lr", float, "LR", "Learning rate of the server.  [1]"),
    ("--trust", str, "T", "Client unit: who is trusted: local, secagg or central.  [central]"),
    ("--accountant", str, "A", "pld (tight) or rdp.  [pld]"),
    ("--stop-at", float, "E", "End a run before it spends more than this ε.  [none]"),
    ("--out", str, "DIR", "Run folder.  [runs/TASK]"),
]
"""Name, type, placeholder and help of each option."""
DEFAULTS = {"--epsilon": "8", "--unit": "example", "--accountant": "pld"}
SEED_HELP = "A whole number to repeat a run, or none for a release.  [0]"
seed_option = click.option("--seed", default="0", metavar="N", help=SEED_HELP)


def run_options(command: Callable) -> Callable:
    """Puts the shared options on a command."""
    fresh = "Start anew, or keep finished runs.  [resume]"
    command = click.option("--fresh/--resume", default=False, help=fresh)(command)
    return _put(command, RUN_OPTIONS)


def situation_options(command: Callable) -> Callable:
    """Puts those of them on a command that say what would be trained, and not where or how fast."""
    elsewhere = ("--lr", "--stop-at", "--out")
    return _put(command, [x for x in RUN_OPTIONS if x[0] not in elsewhere])


def own_options(own: list[tuple[str, type, str, str]], names: list[str]) -> Callable:
    """Puts options of its own on a command, and some of the shared ones without their defaults."""
    why = "  [chosen, printed with its reason]"
    shared = [
        (
            name,
            kind,
            word,
            text.split("  [")[0] + (why if name not in ("--stop-at", "--out") else ""),
        )
        for name, kind, word, text in RUN_OPTIONS
        if name in names
    ]
    return lambda command: _put(command, [*own, *shared], {})


def _put(
    command: Callable,
    options: list[tuple[str, type, str, str]],
    defaults: Mapping[str, str] = MappingProxyType(DEFAULTS),
) -> Callable:
    for name, kind, metavar, text in reversed(options):
        words: dict[str, Any] = {"metavar": metavar, "help": text, "default": defaults.get(name)}
        command = click.option(name, type=kind, **words)(command)
    return command


def _given(**values: Any) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in values.items() if value is not None}


def parse_number(name: str, text: str) -> float:
    """A number; ``ValueError`` in one line for anything else."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    check(not math.isnan(value), name, text, "a number")
    return value


def is_whole(text: str) -> bool:
    """Whether a text is a whole number in plain digits; `str.isdigit` also takes signs that `int`
    refuses, as "²"."""
    return text.isascii() and text.isdecimal()


def parse_whole(name: str, text: str) -> int:
    """A whole number; ``ValueError`` in one line for anything else."""
    check(is_whole(text), name, text, "a whole number")
    return int(text)


def parse_seed(text: str) -> int | None:
    """The seed of one run; ``None`` for "none"."""
    check(text == "none" or is_whole(text), "seed", text, "a whole number >= 0, or none")
    return None if text == "none" else int(text)


def parse_seeds(text: str) -> list[int]:
    """``"3"`` is 0, 1, 2; ``"4,7"`` is those two."""
    parts, expected = text.split(","), "how many, or whole numbers joined by commas"
    check(all(is_whole(part.strip()) for part in parts), "seeds", text, expected)
    numbers = [int(part) for part in parts]
    if len(numbers) == 1:
        check(1 <= numbers[0] <= 1000, "seeds", text, "between 1 and 1000, or a list such as 0,1,2")
        return list(range(numbers[0]))
    check(len(set(numbers)) == len(numbers), "seeds", text, "every seed once")
    return numbers


def parse_names(name: str, text: str) -> list[str]:
    """``"a,b"`` as a list without repeats or blanks."""
    names = [part.strip() for part in text.split(",") if part.strip()]
    check(bool(names), name, text, "one or more names joined by commas")
    check(len(set(names)) == len(names), name, text, "every name once")
    return names


def parse_pairs(name: str, text: str) -> dict[str, float]:
    """``"a=1,b=2"`` as a mapping."""
    pairs: dict[str, float] = {}
    for part in text.split(","):
        key, sign, value = part.strip().partition("=")
        check(bool(sign and key), name, text, "a number, or name=number pairs joined by commas")
        check(key not in pairs, name, text, f"{key} once")
        pairs[key] = parse_number(f"{name}[{key!r}]", value)
    return pairs


def parse_optimizer(name: str, text: str) -> Optimizer:
    """``"adamw:eps=1e-6,betas=0.9/0.99"``: a name, and settings, each a number or several.

    Args: name: "optimizer" or "server_optimizer". text: of the option.

    >>> parse_optimizer("optimizer", "adamw:eps=1e-6,betas=0.9/0.99").betas
    (0.9, 0.99)
    """
    table: Table = OPTIMIZERS if name == "optimizer" else SERVER_OPTIMIZERS
    kind, colon, rest = text.partition(":")
    settings: dict[str, Any] = {"name": kind.strip()}
    words = "settings as in 'adamw:eps=1e-6,betas=0.9/0.99', each once"
    for part in rest.split(",") if colon else ():
        key, _, value = (word.strip() for word in part.partition("="))
        check(bool(key) and key not in settings, name, text, words)
        numbers = tuple(parse_number(f"{name} {key}", number) for number in value.split("/"))
        settings[key] = numbers if len(numbers) > 1 else numbers[0]
    return optimizer_of(settings, name, table)


def build_task(name: str, clients: int | None, alpha: float | None) -> fl.tasks.Task:
    """Builds a task of `fl.tasks.TASKS`.

    Args: name: of the task. clients, alpha: of its split, if given; refused where it takes none.
    """
    check_one_of("task", name, tuple(fl.tasks.TASKS))
    given, taken = _given(clients=clients, alpha=alpha), signature(fl.tasks.TASKS[name]).parameters
    for key, value in given.items():
        check(key in taken, f"--{key}", value, f"not given, since {name} has none")
    return fl.tasks.build(name, **given)


def learning_rates(
    text: str | None,
    task: str,
    slugs: list[str],
    epsilon: float | None = 8.0,
    unit: str = "example",
    say: Callable[[str], Any] = lambda line: None,
    optimizer: Optimizer = PLAIN,
) -> dict[str, float | Mapping[str, float]]:
    """Finds each method's learning rate: one for all, one for each factor, one for each method,
    else what is suggested.

    Args:
        text: of the option --lr; ``None``: not given.
        task, slugs: of the run.
        epsilon, unit: what is suggested for; ``None``: no privacy.
        say: called with one line for each suggestion that was tuned for something else.
        optimizer: of the clients; suggestions were tuned for SGD, others need a rate of their own.
    """
    if text is not None and "=" not in text:
        return dict.fromkeys(slugs, parse_number("lr", text))
    given = parse_pairs("lr", text) if text is not None else {}
    if given and set(given) <= {"A", "B", "head"}:
        return dict.fromkeys(slugs, given)
    check(set(given) <= set(slugs), "lr", text, f"names among {', '.join(slugs)}, or A, B, head")
    rates: dict[str, float | Mapping[str, float]] = {**given}
    for slug in (slug for slug in slugs if slug not in given):
        why = f"a number with --optimizer {optimizer}: what is suggested was tuned for sgd"
        check(optimizer.linear, "lr", None, why)
        found = suggestion(task, slug, epsilon, unit)
        rates[slug] = found.lr
        if not found.exact or optimizer != PLAIN:
            momentum = "" if optimizer == PLAIN else f", without {optimizer}"
            say(f"{slug}: learning rate {found.lr:g}, {found.words}{momentum}")
    return {slug: rates[slug] for slug in slugs}


def parse_budget(text: str) -> float | None:
    """The epsilon of --epsilon; ``None`` for "none"."""
    return None if text == "none" else parse_number("epsilon", text)


def build_plan(options: Mapping[str, Any], tuned: Mapping[str, Any]) -> fl.Plan:
    """Builds the plan: what was given, else the setting that the learning rates were tuned in, else
    the defaults."""
    given, batch = _given(**{name: options[name] for name in PLAN_FIELDS.split()}), options["batch"]
    for name in {"optimizer", "server_optimizer"} & given.keys():
        given[name] = parse_optimizer(name, given[name])
    if batch is not None:
        check(batch == "all" or is_whole(batch), "batch", batch, "a whole number >= 1, or all")
        given["batch"] = None if batch == "all" else int(batch)
    return fl.Plan(**tuned.get("plan", {})).replace(**given)


def build_lora(options: Mapping[str, Any], tuned: Mapping[str, Any]) -> fl.Lora:
    """Builds the adapter, in the same order."""
    given = _given(rank=options["rank"], alpha=options["lora_alpha"])
    if options["peft"] is not None:
        for name, value in given.items():
            check(False, name, value, "not given beside --peft, whose file has r and lora_alpha")
        return fl.Lora.from_peft(options["peft"])
    return fl.Lora(**{**tuned.get("lora", {}), **given})


def build_privacy(
    options: Mapping[str, Any], tuned: Mapping[str, Any], task: fl.tasks.Task, plan: fl.Plan
) -> fl.Privacy | None:
    """Calibrates the privacy plan; ``None`` for ``--epsilon none``.

    Args: options, tuned: as for `build_plan`. task, plan: what is calibrated for.
    """
    epsilon, unit = parse_budget(options["epsilon"]), options["unit"]
    if epsilon is None:
        return None
    own = {name: options[name] for name in ("delta", "trust")}
    given = _given(**own, clip_norm=options["clip"])
    fields = {**(tuned.get("privacy", {}) if unit == "example" else {}), **given}
    privacy = fl.Privacy(unit=unit, accountant=options["accountant"], **fields)
    return privacy.calibrate(epsilon=epsilon, task=task, plan=plan)


def build_situation(
    name: str, options: Mapping[str, Any]
) -> tuple[fl.tasks.Task, fl.Privacy | None, fl.Plan, fl.Lora]:
    """Builds task, privacy, plan and adapter from the options of `situation_options`.

    Args: name: of the task. options: by their names.
    """
    task = build_task(name, options["clients"], options["alpha"])
    tuned = load_searches().get(task.name, {}).get("setting", {})
    plan = build_plan(options, tuned)
    lora = build_lora(options, tuned)
    return task, build_privacy(options, tuned, task, plan), plan, lora
