"""What `finetune` chooses where nothing is given, and why: from public numbers alone.

Public are the number, sizes and names of the clients, the set of classes, and the model. Where
persons are protected, sizes are numbers of persons, and how many rows somebody has enters nothing.
No value of an example enters a choice, but for the set of classes where ``labels=`` does not
declare it.
"""

import math
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from fedlora_lab import methods
from fedlora_lab._utils.validation import (
    check,
    check_number,
    check_whole,
    did_you_mean,
    few,
    printable,
)
from fedlora_lab.federated.compare import Cell
from fedlora_lab.federated.run import RunOptions
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.plan import Lora, Plan, lora_of
from fedlora_lab.privacy.ledger import per_client
from fedlora_lab.privacy.plan import Privacy
from fedlora_lab.recipes.tuned_rates import carry_over, suggest_lr
from fedlora_lab.report.summary_table import observer_phrase
from fedlora_lab.tasks.modules import head_names
from fedlora_lab.tasks.tables import read_splits
from fedlora_lab.tasks.task import Task

if TYPE_CHECKING:
    from peft import LoraConfig

ROUNDS = 20
LOCAL_STEPS = 5
"""The work of most of the runs behind the bound of `suggest_lr`."""
SMALLEST_BATCH = 4
LARGEST_BATCH = 64
LARGEST_RATE = 3.2
"""The largest rate that was best in the committed search on texts, at rank 4 and alpha 8."""
CLIENT_RATE = 0.125
"""The rate that was best in most searches of the client unit, at rank 4 and alpha 8."""
HELD_OUT = 0.2
"""The share of the rows that is scored where nothing is protected."""
HIDDEN = {
    "example": 'one row is hidden; person= hides all rows of a person, unit="client" of a client',
    "person": "all rows of one person are hidden",
}
"""What a unit of privacy means."""
GIVEN = "as given"
OF_THE_TASK = "as the task has it"
READ_CLASSES = "a choice by private rows, which no ε covers"


class Choice(NamedTuple):
    """A setting of a run, and why it is what it is."""

    name: str
    value: Any
    reason: str

    def __str__(self) -> str:
        value = f"{self.value:.4g}" if isinstance(self.value, float) else printable(str(self.value))
        text = f"{self.name:<11} {value:<18} {printable(self.reason)}"
        return textwrap.fill(text, 100, subsequent_indent=31 * " ", break_on_hyphens=False)


@dataclass
class Settings:
    """Every setting with its reason; each is told at once.

    Args:
        say: takes each line; ``None``: nothing is told.
        choices: so far.
    """

    say: Callable[[str], Any] | None = None
    choices: list[Choice] = field(default_factory=list)

    def tell(self, name: str, value: object, reason: str) -> None:
        """Adds a choice.

        Args: name, value, reason: see `Choice`.
        """
        choice = Choice(name, value, reason)
        self.choices.append(choice)
        if self.say is not None:
            self.say(str(choice))

    def choose(self, given: Mapping[str, Any], name: str, default: Any, reason: str) -> Any:
        """Takes the option that was given, or else the default for this reason.

        Args: given: option -> value. name, default, reason: of the choice.
        """
        value = given.get(name, default)
        self.tell(name, value, GIVEN if name in given else reason)
        return value


@dataclass(frozen=True)
class Options:
    """Options by the part of a run that takes them."""

    task: dict[str, Any]
    plan: dict[str, Any]
    privacy: dict[str, Any]
    run: dict[str, Any]

    @classmethod
    def sort(cls, options: Mapping[str, Any], of_the_task: Iterable[str]) -> "Options":
        """Sorts options.

        Args:
            options: name -> value.
            of_the_task: names that the task's builder takes.
        Raises: ``ValueError`` for a name that no part takes.
        """
        takes = {
            "task": {*of_the_task},
            "plan": {field.name for field in fields(Plan)},
            "privacy": {field.name for field in fields(Privacy)},
            "run": {field.name for field in fields(RunOptions)},
        }
        names = set().union(*takes.values())
        for name, value in options.items():
            # A slip would otherwise train with a default in its place.
            expected = "an option of fl.finetune, see help(fl.finetune)"
            check(name in names, name, value, expected + did_you_mean(name, sorted(names)))
        return cls(
            **{
                part: {name: options[name] for name in options if name in taken}
                for part, taken in takes.items()
            }
        )


def choose_promise(
    model: object, epsilon: float | None, options: Options, settings: Settings
) -> None:
    """Chooses budget and unit before anything is read: of persons no number of rows may count.

    Args: model, epsilon: see `finetune`. options: get the unit. settings: takes the choices.
    """
    if epsilon is None:
        ignored = sorted(options.privacy.keys() | options.run.keys() & {"max_epsilon"})
        check(not ignored, "epsilon", None, f"a number where {few(ignored)} is given")
        settings.tell("epsilon", "none", "nothing is promised")
        return
    check_number("epsilon", epsilon, 0, 1e9, open_low=True)
    settings.tell("epsilon", float(epsilon), "smaller protects better and learns less")
    persons = model.persons if isinstance(model, Task) else options.task.get("person")
    default = "example" if persons is None else "person"
    unit = settings.choose(options.privacy, "unit", default, HIDDEN[default])
    expected = "with person=, the column that says whose each row is"
    check(unit != "person" or persons is not None, "unit", unit, expected)
    options.privacy["unit"] = unit


def choose_test(
    frame: object, test: object, epsilon: float | None, settings: Settings
) -> dict[str, Any]:
    """Chooses what to score on, as options of the task: public rows, a share, or nothing.

    Args: frame, test, epsilon: see `finetune`. settings: takes the choice.
    """
    if test is None and epsilon is None:
        # Without a promise a score of held-out rows breaks none.
        settings.tell("test", HELD_OUT, "this share is held out, since nothing is protected")
        return {"test": HELD_OUT}
    if test is None:
        settings.tell("test", "none", "not scored; test=FRAME takes public rows to score on")
        tables = read_splits(frame)
        check("train" in tables, "frame", sorted(tables), "a split called train")
        # Rows of the right form, which the task needs. They are private, so nothing scores them.
        return {"test": tables["train"].head(4), "public_test": False}
    is_share = isinstance(test, int | float)
    held_out = "of the private rows, held out; never scored under privacy"
    public = "public by your word: scored after every round, not protected"
    settings.tell("test", test if is_share else GIVEN, held_out if is_share else public)
    return {"test": test, "public_test": not is_share}


def choose_cell(
    task: Task,
    epsilon: float | None,
    method: Method | str | None,
    lora: "Lora | LoraConfig | None",
    seed: int | None,
    options: Options,
    settings: Settings,
) -> Cell:
    """Chooses all that a run needs beside its task; nothing is trained.

    Args:
        task: made.
        epsilon, method, lora, seed: see `finetune`.
        options: with the unit of privacy.
        settings: takes the choices.
    """
    unit = options.privacy.get("unit", "example")
    sizes = task.person_counts if unit == "person" else task.sizes
    counted = "persons" if unit == "person" else "rows"
    # A finished task takes no options here: whoever made it chose.
    dealt = "by" not in options.task and len(task.clients) > 1 and "kind" in task.info
    way = ", dealt at random; by= names the owner of each row" if dealt else ""
    settings.tell("clients", len(sizes), f"of {_span(sizes)} {counted}{way}")
    _tell_model(task, epsilon, lora, options.task, settings)
    # How many classes there are decides the model's shape, which is released.
    if "classes" in task.info:
        is_given = task.info.get("labels") == "declared"
        reason = GIVEN if is_given else _read_classes(task, epsilon)
        settings.tell("labels", f"{len(task.info['classes'])} classes", reason)
    plan = _choose_plan(sizes, counted, options.plan, settings)
    adapter = lora_of(lora)
    shape = f"rank {adapter.rank}, alpha {adapter.alpha:g}, scale {adapter.scaling:.3g}"
    settings.tell("lora", shape, "as in the committed studies" if lora is None else GIVEN)
    privacy = None
    if epsilon is not None:
        units = len(sizes) if unit == "client" else sum(sizes)
        delta = _choose_delta(units, options.privacy, settings)
        privacy = Privacy(**options.privacy | {"delta": delta})
        privacy = privacy.calibrate(epsilon=epsilon, task=task, plan=plan)
        reason = f"the least that keeps to ε{observer_phrase(privacy.trust)}"
        settings.tell("noise", _span(per_client(privacy.noise_multiplier or 0.0)), reason)
    row = _choose_method(method, privacy, settings)
    cell = Cell(row.slug, task, row, privacy, plan, adapter, seed)
    cell = _choose_rate_and_clip(cell, options.plan | options.privacy, settings)
    release = "drawn anew, fit for release; seed=0 repeats a run, for study only"
    settings.tell("seed", seed, release if seed is None else GIVEN)
    settings.tell("others", "defaults", "of fl.Plan, fl.Privacy and fl.run; settings.json has all")
    return cell


def _tell_model(
    task: Task,
    epsilon: float | None,
    lora: "Lora | LoraConfig | None",
    given: Mapping[str, Any],
    settings: Settings,
) -> None:
    """Tells what of the model is trained and read, and what of that was guessed.

    Args: task, epsilon, lora, settings: see `choose_cell`. given: options of the task.
    """
    adapter = lora_of(lora)

    def tell(name: str, value: str, guess: str) -> None:
        is_given = name in given or getattr(adapter, name, None) is not None
        made_here = "kind" in task.info
        settings.tell(name, value, GIVEN if is_given else guess if made_here else OF_THE_TASK)

    targets = task.targets if adapter.targets is None else adapter.targets
    names = targets if isinstance(targets, str) else ", ".join(targets)
    tell(
        "targets", names, "guessed: the linear maps that are named like those of queries and values"
    )
    heads = head_names(task.head if adapter.head is None else adapter.head)
    guess = "guessed: the model's own classifier, which is trained in full"
    tell("head", ", ".join(heads) or "none", guess if heads else "only adapters are trained")
    if task.info.get("kind") in ("text", "causal"):
        tell("max_length", str(given.get("max_length") or "none"), "nothing is cut")
    if task.drawn:
        settings.tell("new", ", ".join(task.drawn), "drawn at random: the model's files lack it")
    if epsilon is None and task.info.get("texts cut"):
        settings.tell("texts cut", task.info["texts cut"], "by max_length, test rows included")


def _read_classes(task: Task, epsilon: float | None) -> str:
    """Names the classes that were read from the rows, so that a mistyped label is seen."""
    names = [str(name) for name in task.info["classes"]]
    covered = f", {READ_CLASSES}"
    if epsilon is None:  # else the counts would be exact numbers about private rows
        covered = ""
        counts = Counter(number for _, y in task.clients for number in y.tolist())
        rare = max(1, counts.total() / 100)
        for i, name in enumerate(names):
            names[i] = f"{name} {counts[i]}" + " (rare: mistyped?)" * (counts[i] <= rare)
    return f"{', '.join(names)}: read from the rows{covered}; labels=[...] declares them"


def _span(numbers: Sequence[float]) -> str:
    """The smallest and the largest of some numbers, in words."""
    low, high = (f"{x:,}" if x >= 1000 else f"{x:.3g}" for x in (min(numbers), max(numbers)))
    return low if low == high else f"{low} to {high}"


def _choose_plan(
    sizes: Sequence[int], counted: str, given: Mapping[str, Any], settings: Settings
) -> Plan:
    """Chooses rounds, steps and batch from the clients' sizes."""
    work = "the work of the runs behind fl.suggest_lr"
    rounds = settings.choose(given, "rounds", ROUNDS, work)
    check_whole("rounds", rounds, 1)
    local_steps = settings.choose(given, "local_steps", LOCAL_STEPS, work)
    # Sizes are public: the ledger's sample rates tell them anyway.
    median = sorted(sizes)[len(sizes) // 2]
    quarter = min(max(median // 4, SMALLEST_BATCH), LARGEST_BATCH)
    limits = f"within {SMALLEST_BATCH} to {LARGEST_BATCH}"
    reason = f"a quarter of the median client's {median:,} {counted}, {limits}"
    batch = settings.choose(given, "batch", quarter, reason)
    return Plan(**{**given, "rounds": rounds, "local_steps": local_steps, "batch": batch})


def _choose_delta(units: int, given: Mapping[str, Any], settings: Settings) -> Any:
    """Chooses delta from the number of units."""
    # Below 1 / number of units no single unit's data could be published as it is.
    tenth = 10.0 ** math.floor(math.log10(0.1 / max(units, 1)))
    reason = f"at most 1e-05 and a tenth of 1 / {units:,} {given['unit']}s"
    return settings.choose(given, "delta", min(1e-5, max(tenth, 1e-12)), reason)


def _choose_method(
    method: Method | str | None, privacy: Privacy | None, settings: Settings
) -> Method:
    """Takes what was asked for, else turns under privacy and both factors without."""
    if method is not None:
        row = methods.get(method)
        reason = GIVEN
    elif privacy is None:
        row = methods.FedLoRA
        reason = "both factors: without noise none has to rest"
    else:
        row = methods.RoLoRA
        reason = "turns: exact mean; among the best on MNIST, up to 4 points behind on texts"
    settings.tell("method", row.slug, reason)
    return row


def _choose_rate_and_clip(cell: Cell, given: Mapping[str, Any], settings: Settings) -> Cell:
    """Chooses learning rate and clip norm by what the noise allows.

    In the example unit it sets the rate, at a clip norm of 1. In the client unit no rate enters the
    noise of an update: there it sets the clip norm.
    """
    privacy = cell.privacy
    by_client = privacy is not None and privacy.unit == "client"
    adapter = lora_of(cell.lora)
    rate = carry_over(CLIENT_RATE if by_client else Plan().rate("B"), adapter, by_clip=False)
    rate = float(f"{rate:.3g}")
    largest = float(f"{carry_over(LARGEST_RATE, adapter, by_clip=True):.3g}")
    norm = 1.0
    reasons = {
        "lr": "best in most searches of the unit" if by_client else "the default",
        "clip_norm": "with the noise in proportion to it, and the rate fitted to both",
    }
    limited = "clip_norm" if by_client else "lr"
    if privacy is not None and limited not in given:
        plan = cell.plan.replace(lr=given.get("lr", rate))
        suggested = suggest_lr(cell.task, cell.method, privacy, plan, cell.lora)
        rate = float(f"{min(suggested.lr, largest):.3g}")
        norm = float(f"{min(suggested.clip_norm, 1.0):.3g}")
        most = 1 if by_client else largest
        reasons[limited] = f"fl.suggest_lr: {suggested.origin}; at most {most:g}"
    plan = cell.plan.replace(lr=settings.choose(given, "lr", rate, reasons["lr"]))
    if privacy is not None:
        norm = settings.choose(given, "clip_norm", norm, reasons["clip_norm"])
        privacy = privacy.replace(clip_norm=norm)
    return replace(cell, plan=plan, privacy=privacy)
