"""Fine-tunes a model of one's own on data of one's own, with settings from public numbers.

`finetune` makes a task, chooses what was not given, and calls the engine. Public are the number,
sizes and names of the clients, the set of classes, and the model. Where persons are protected,
sizes are numbers of persons, and how many rows somebody has enters nothing. No value of an example
enters a choice, but for the set of classes where ``labels=`` does not declare it.
"""

import difflib
import inspect
import math
import shutil
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fedlora_lab import methods
from fedlora_lab._utils.environment import ignore_warnings
from fedlora_lab._utils.html_table import html_table
from fedlora_lab._utils.validation import check, check_number
from fedlora_lab.experiments.tuned_rates import suggest_lr
from fedlora_lab.federated.compare import BAR, Cell, show_progress
from fedlora_lab.federated.records import Round, generate, predict, save_adapter
from fedlora_lab.federated.run import Run, RunOptions
from fedlora_lab.lora.source import require_source
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.plan import Lora, Plan, lora_of
from fedlora_lab.privacy.ledger import Ledger, per_client
from fedlora_lab.privacy.plan import Privacy
from fedlora_lab.report.promise import folder_statements
from fedlora_lab.report.run_folder import Folder, read_frame, run_cell, run_settings
from fedlora_lab.report.summary_table import observer_phrase
from fedlora_lab.tasks import architectures
from fedlora_lab.tasks.hub import hub
from fedlora_lab.tasks.prompts import prompts
from fedlora_lab.tasks.tables import read_splits
from fedlora_lab.tasks.task import Task

if TYPE_CHECKING:
    import pandas as pd
    from peft import LoraConfig
    from torch import Tensor, nn

ROUNDS = 20
LOCAL_STEPS = 5
"""The work for which the limits of noise behind `suggest_lr` were fitted."""
SMALLEST_BATCH = 4
LARGEST_BATCH = 64
LARGEST_RATE = 3.2
"""The largest rate that was best in a committed search."""
CLIENT_RATE = 0.125
"""The rate that was best in most searches of the client unit."""
HELD_OUT = 0.2
"""The share of the rows that is scored where nothing is protected."""
HIDDEN = {
    "example": 'one row is hidden; person= hides all rows of a person, unit="client" of a client',
    "person": "all rows of one person are hidden",
    "client": "all rows of one client are hidden",
}
"""What a unit of privacy means."""
GIVEN = "as given"
READ = "read from the rows"
"""What `Task.info` says of classes that were not declared."""
READ_CLASSES = "a choice by private rows, which no ε covers"
CHOSEN_HERE = {
    "bug", "checkpoint", "noise_multiplier", "public_test", "resume", "sample_rate", "target",
}  # fmt: skip
"""Options of the parts of a run that nobody gives."""
OTHER_NAMES = {
    "learning_rate": "lr",
    "batch_size": "batch",
    "num_train_epochs": "rounds",
    "max_grad_norm": "clip_norm",
    "rank": "lora=fl.Lora(rank=...)",
}
"""Names of other libraries -> the name here."""


class Choice(NamedTuple):
    """A setting of a run, and why it is what it is."""

    name: str
    value: Any
    reason: str

    def __str__(self) -> str:
        value = f"{self.value:.4g}" if isinstance(self.value, float) else str(self.value)
        text = f"{self.name:<11} {value:<18} {self.reason}"
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

        Args: name, value, reason: as of `Choice`.
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


@dataclass(frozen=True, repr=False)
class Finetuned:
    """What `finetune` returns.

    Args:
        record: of the last round, with the adapter.
        choices: every setting with its reason.
        folder: of the run: ``ledger.json``, ``adapter/``, checkpoints; `fl.report.report` writes
            its page.
        encode: inputs as `predict` takes them -> the model's.
        notes: what all runs of the folder have spent together, cleared ones included, where that
            is more than this one; and what no epsilon covers.
    """

    record: Round
    choices: tuple[Choice, ...]
    folder: Path
    encode: Callable[[Any], Any]
    notes: tuple[str, ...] = ()

    @property
    def ledger(self) -> Ledger | None:
        """What was spent; ``None`` without privacy."""
        return self.record.ledger

    @property
    def score(self) -> float:
        """The last score of the public test examples, by the task's first metric; NaN: none."""
        return next(iter(self.record.metrics.values()))

    @property
    def frame(self) -> "pd.DataFrame":
        """The tidy frame of all rounds, as of `fl.to_frame`."""
        return read_frame(self.folder / "frame.csv")

    def predict(self, inputs: Any, *, probabilities: bool = False) -> Any:
        """Predicts the label of each row, or what a decoder answers to each prompt.

        Args:
            inputs: a list of texts, pairs of texts, prompts or images; of a finished task the
                model's own inputs.
            probabilities: return a frame with a column for each class instead of the labels.

        Raises: ``ValueError`` for a decoder that was trained on texts alone, and for other inputs.
        Guarantees: test_finetune.py::test_predictions_are_those_of_the_saved_adapter.
        """
        import pandas as pd

        task, _, _ = require_source(self.record)
        if task.generation is not None:
            return generate(task, self.record, inputs)
        expected = "a classifier; load the adapter and generate() with PEFT and Transformers"
        check(task.test[1].ndim == 1, "model", type(task.model).__name__, expected)
        shares = predict(task, self.record, self.encode(inputs)).double().softmax(1)
        names = task.labels or tuple(range(shares.shape[1]))
        if probabilities:
            return pd.DataFrame(shares.numpy(), columns=list(names))
        return [names[i] for i in shares.argmax(1).tolist()]

    def facts(self) -> list[tuple[str, str]]:
        """What was reached and spent, in words."""
        record = self.record
        rows = [("method", f"{record.method}, {record.index} rounds")]
        if self.ledger is None:
            rows.append(("privacy", "none"))
        else:
            against = observer_phrase(self.ledger.trust)
            spent = f"{record.epsilon:.3g} at δ = {self.ledger.delta:g}{against}"
            rows.append(("ε spent", spent))
            rows.append(("unit", f"one {self.ledger.unit}"))
            rows.append(("mode", self.ledger.mode))
        rows += [("note", sentence) for sentence in self.notes]
        unseen = math.isnan(self.score)
        score = "not measured: no public test rows" if unseen else f"{self.score:.3f}"
        rows.append((next(iter(record.metrics)), score))
        rows.append(("folder", str(self.folder)))
        return rows

    def __repr__(self) -> str:
        return f"Finetuned({'; '.join(f'{name} {value}' for name, value in self.facts())})"

    def _repr_html_(self) -> str:
        title = f"<p>{escape(self.record.task)}</p>{html_table(self.facts())}"
        chosen = html_table(self.choices, ("setting", "value", "why"))
        return f"{title}<details><summary>Settings</summary>{chosen}</details>"


def finetune(
    model: "str | Path | nn.Module | Task",
    frame: object = None,
    *,
    text: str | Sequence[str] | None = None,
    label: str | None = None,
    by: str | None = None,
    epsilon: float | None = 8.0,
    test: object = None,
    method: Method | str | None = None,
    lora: "Lora | LoraConfig | None" = None,
    seed: int | None = None,
    out: str | Path | None = None,
    fresh: bool = False,
    say: Callable[[str], Any] | None = print,
    **options: Any,
) -> Finetuned:
    """Fine-tunes a model of one's own on data of one's own, federated and private, by defaults.

    Every setting that is not given follows from public numbers and is printed with its reason.
    Without public test rows nothing is scored under privacy.

    Args:
        model: a Hugging Face name, folder or module; or a finished task, which has its own data.
        frame: a DataFrame, a CSV file, a folder of images or a `datasets` split; private.
        text, label, by: columns: the text (two for pairs), the class, the owner of a row. Without
            ``by`` the rows are dealt at random; without ``label`` a decoder learns the texts.
        epsilon: the budget, > 0; ``None`` trains without privacy.
        test: public rows for scores, as ``frame``; or a share in (0, 0.5] held out of the private
            rows, or persons, which is never scored under privacy.
        method: a row of the table, or its slug; default: RoLoRA, without privacy FedLoRA.
        lora: rank and alpha, or a `peft.LoraConfig`; default ``Lora()``.
        seed: ``None``: the noise is fresh, and the result may be released; a number repeats a run.
        out: run folder; a run that was stopped goes on with the same call. Default: a new folder
            ``runs/finetune-1``, ``-2``, …
        fresh: clear ``out`` of an earlier run; what that released stays counted.
        say: takes each printed line; ``None``: nothing is printed.
        options: of `fl.tasks.hub` or, with ``prompt=`` and ``answer=``, of `fl.tasks.prompts`
            (labels, person, clients, image, max_length, tokenizer, …), of `fl.Plan` (rounds,
            batch, lr, …), `fl.Privacy` (unit, delta, clip_norm, …) and `fl.run` (device, stop_at,
            …). With ``person``, the column of persons, all rows of each are protected.

    Raises: ``ValueError`` in one line that says what to do, before anything is trained.
    Guarantees: no choice depends on a value of an example
        (test_finetune.py::test_no_choice_depends_on_a_private_value), or, where persons are
        protected, on how many rows somebody has
        (test_finetune.py::test_nothing_chosen_or_stated_depends_on_the_rows_of_a_person).

    >>> import tempfile, fedlora_lab as fl
    >>> task, folder = fl.tasks.digits(clients=2), tempfile.mkdtemp()
    >>> tuned = fl.finetune(task, rounds=1, out=folder, say=None)
    >>> tuned.record.index, tuned.ledger.mode
    (1, 'release')
    """
    check(say is None or callable(say), "say", say, "a function of a line, or None")
    check(out is None or isinstance(out, str | Path), "out", out, "a folder's path")
    settings = Settings(say)
    columns = {"text": text, "label": label, "by": by}
    named = {name: column for name, column in columns.items() if column is not None}
    # A decoder that answers prompts is another task than one that classifies or goes on.
    builder: Callable[..., Task] = prompts if "prompt" in options else hub
    takes = () if isinstance(model, Task) else inspect.signature(builder).parameters
    parts = sort_options(named | options, takes)
    _choose_promise(model, epsilon, parts, settings)
    scored = _choose_test(model, frame, test, epsilon, settings)
    if isinstance(model, Task):
        task = model
    else:
        task = builder(model, frame, **{"seed": seed or 0, **scored, **parts["task"]})
        # How many texts were cut is an exact number about private texts.
        public = {name: fact for name, fact in task.info.items() if name != "texts cut"}
        task = replace(task, info=public)
    cell = choose_cell(task, epsilon, method, lora, seed, parts, settings)
    folder = _new_folder() if out is None else Path(out).expanduser()
    settings.tell("folder", str(folder), "ledger, adapter and checkpoints")
    record = _train(folder, cell, fresh, parts["run"])
    notes = folder_statements(Folder(folder))
    if epsilon is not None and task.info.get("labels") == READ:
        notes.append(f"the classes were read from the rows: {READ_CLASSES}")
    encode = _encoder(task, model, parts["task"])
    tuned = Finetuned(record, tuple(settings.choices), folder, encode, tuple(notes))
    if say is not None:
        for name, value in tuned.facts():
            say(f"{name}: {value}")
    return tuned


def sort_options(
    options: Mapping[str, Any], of_the_task: Iterable[str]
) -> dict[str, dict[str, Any]]:
    """Sorts options by the part that takes them: task, plan, privacy, run.

    Args:
        options: name -> value.
        of_the_task: names that the task's builder takes.
    Raises: ``ValueError`` for a name that none of them takes.
    """
    takes = {
        "task": {*of_the_task},
        "plan": {field.name for field in fields(Plan)},
        "privacy": {field.name for field in fields(Privacy)},
        "run": {field.name for field in fields(RunOptions)},
    }
    names = set().union(*takes.values()) - CHOSEN_HERE
    for name, value in options.items():
        # A slip would otherwise train with a default in its place.
        near = difflib.get_close_matches(name, sorted(names), 1)
        meant = OTHER_NAMES.get(name) or (near[0] if near else "")
        hint = f"; did you mean {meant}?" if meant else ", see help(fl.finetune)"
        check(name in names, name, value, f"an option of fl.finetune{hint}")
    return {
        part: {name: value for name, value in options.items() if name in known}
        for part, known in takes.items()
    }


# ---- the data


def _choose_promise(
    model: object, epsilon: float | None, parts: dict[str, dict[str, Any]], settings: Settings
) -> None:
    """Chooses budget and unit, before anything is read: of persons no number of rows may count."""
    if epsilon is None:
        settings.tell("epsilon", "none", "nothing is promised")
        return
    check_number("epsilon", epsilon, 0, 1e9, open_low=True)
    settings.tell("epsilon", float(epsilon), "smaller protects better and learns less")
    persons = model.persons if isinstance(model, Task) else parts["task"].get("person")
    unit = "example" if persons is None else "person"
    privacy = parts["privacy"]
    privacy["unit"] = settings.choose(privacy, "unit", unit, HIDDEN[unit])
    named = privacy["unit"] != "person" or persons is not None
    check(named, "unit", "person", "with person=, the column that says whose each row is")


def _choose_test(
    model: object, frame: object, test: object, epsilon: float | None, settings: Settings
) -> dict[str, Any]:
    """Chooses what to score on, as options of the task: public rows, a share, or nothing."""
    if isinstance(model, Task):
        check(test is None, "test", test, "None with a task, which has test examples")
        return {}
    # Without a promise a score of held-out rows breaks none.
    if test is None and epsilon is None:
        settings.tell("test", HELD_OUT, "this share is held out, since nothing is protected")
        return {"test": HELD_OUT}
    if test is None:
        settings.tell("test", "none", "not scored; test=FRAME takes public rows to score on")
        tables = read_splits(frame)
        check("train" in tables, "frame", sorted(tables), "a table, or splits with one of train")
        # Rows of the right form, which the task needs. They are private, so nothing scores them.
        return {"test": tables["train"].head(4), "public_test": False}
    if isinstance(test, int | float):
        settings.tell("test", test, "of the private rows, held out; never scored under privacy")
        return {"test": test, "public_test": False}
    settings.tell("test", GIVEN, "public by your word: scored after every round, not protected")
    return {"test": test, "public_test": True}


def _encoder(
    task: Task, model: "str | Path | nn.Module | Task", options: Mapping[str, Any]
) -> Callable[[Any], Any]:
    """What makes the model's inputs of a user's."""
    if isinstance(model, Task) or task.generation is not None:
        return lambda inputs: inputs
    if "image" in options:
        processor = options.get("tokenizer")
        processor = architectures.read_processor(model, processor, "AutoImageProcessor")
        return lambda images: architectures.encode_images(processor, list(images))
    columns = [options["text"]] if isinstance(options["text"], str) else options["text"]
    with ignore_warnings():  # what there is to warn of was told when the task was made
        tokenizer = architectures.prepare_tokenizer(model, options.get("tokenizer"), task.model)

    def encode(texts: object) -> "dict[str, Tensor]":
        listed = isinstance(texts, Iterable) and not isinstance(texts, str)
        rows = list(texts) if listed else []
        pairs = [[row] if isinstance(row, str) else row for row in rows]
        fits = bool(rows) and all(len(pair) == len(columns) for pair in pairs)
        kind = "texts" if len(columns) == 1 else "pairs of texts"
        check(fits, "texts", texts, f"a list of {kind}, at least one")
        sources = [list(source) for source in zip(*pairs, strict=True)]
        return architectures.tokenize(tokenizer, sources, task.model, options.get("max_length"))

    return encode


# ---- the choices


def choose_cell(
    task: Task,
    epsilon: float | None,
    method: Method | str | None,
    lora: "Lora | LoraConfig | None",
    seed: int | None,
    parts: Mapping[str, dict[str, Any]],
    settings: Settings,
) -> Cell:
    """Chooses all that a run needs beside its task; nothing is trained.

    Args:
        task: made.
        epsilon, method, lora, seed: as of `finetune`.
        parts: options as `sort_options` gives them, with the unit of privacy.
        settings: takes the choices.
    """
    unit = parts["privacy"].get("unit", "example")
    by_person = unit == "person"
    sizes = task.person_counts if by_person else task.sizes
    counted = "persons" if by_person else "rows"
    settings.tell("clients", len(sizes), f"of {_span(sizes)} {counted}")
    # How many there are decides the model's shape, which is released.
    if "classes" in task.info:
        declared = "labels" in parts["task"]
        covered = "" if epsilon is None else f", {READ_CLASSES}"
        reason = GIVEN if declared else f"read from the rows{covered}; labels=[...] declares them"
        settings.tell("labels", f"{task.info['classes']} classes", reason)
    plan = _choose_plan(sizes, counted, parts["plan"], settings)
    adapter = lora_of(lora)
    shape = f"rank {adapter.rank}, alpha {adapter.alpha:g}"
    settings.tell("lora", shape, "as in the committed studies" if lora is None else GIVEN)
    privacy = None
    if epsilon is not None:
        units = len(sizes) if unit == "client" else sum(sizes)
        privacy = _choose_privacy(units, parts["privacy"], settings)
        privacy = privacy.calibrate(epsilon=epsilon, task=task, plan=plan)
        sigmas = per_client(privacy.noise_multiplier or 0.0)
        reason = f"the least that keeps to ε{observer_phrase(privacy.trust)}"
        settings.tell("noise", _span(sigmas), reason)
    row = _choose_method(method, privacy, settings)
    privacy, plan = _choose_rate(task, row, privacy, plan, adapter, parts, settings)
    release = "drawn anew, fit for release; seed=0 repeats a run, for study only"
    settings.tell("seed", seed, release if seed is None else GIVEN)
    return Cell(row.slug, task, row, privacy, plan, adapter, seed)


def _span(numbers: Sequence[float]) -> str:
    """The smallest and the largest of some numbers, in words."""
    low = f"{min(numbers):.3g}"
    high = f"{max(numbers):.3g}"
    return low if low == high else f"{low} to {high}"


def _choose_plan(
    sizes: Sequence[int], counted: str, given: Mapping[str, Any], settings: Settings
) -> Plan:
    """Chooses rounds, steps and batch from the clients' sizes."""
    work = "the work that the noise limits were fitted for"
    rounds = settings.choose(given, "rounds", ROUNDS, work)
    local_steps = settings.choose(given, "local_steps", LOCAL_STEPS, work)
    # Sizes are public: the ledger's sample rates tell them anyway.
    median = sorted(sizes)[len(sizes) // 2]
    quarter = min(max(median // 4, SMALLEST_BATCH), LARGEST_BATCH)
    limits = f"within {SMALLEST_BATCH} to {LARGEST_BATCH}"
    reason = f"a quarter of the median client's {median:,} {counted}, {limits}"
    batch = settings.choose(given, "batch", quarter, reason)
    return Plan(**{**given, "rounds": rounds, "local_steps": local_steps, "batch": batch})


def _choose_privacy(units: int, given: Mapping[str, Any], settings: Settings) -> Privacy:
    """Chooses delta from the number of units; the clip norm follows with the learning rate."""
    # Below 1 / number of units no single unit's data could be published as it is.
    tenth = 10.0 ** math.floor(math.log10(0.1 / max(units, 1)))
    reason = f"at most 1e-05 and a tenth of 1 / {units:,} {given['unit']}s"
    delta = settings.choose(given, "delta", min(1e-5, max(tenth, 1e-12)), reason)
    return Privacy(**{**given, "delta": delta})


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
        reason = "turns: their mean is exact, and no place measured left them far behind"
    settings.tell("method", row.slug, reason)
    return row


def _choose_rate(
    task: Task,
    row: Method,
    privacy: Privacy | None,
    plan: Plan,
    lora: Lora,
    parts: Mapping[str, dict[str, Any]],
    settings: Settings,
) -> tuple[Privacy | None, Plan]:
    """Chooses learning rate and clip norm by what the noise allows.

    In the example unit it sets the rate, at a clip norm of 1; in the client unit the clip norm.
    """
    # In the client unit no rate enters the noise of an update: the clip norm decides it alone.
    by_client = privacy is not None and privacy.unit == "client"
    rate = CLIENT_RATE if by_client else Plan().rate("B")
    rate_reason = "best in most searches of the unit" if by_client else "the default"
    norm = 1.0
    norm_reason = "with the noise in proportion to it, and the rate fitted to both"
    rate_given = "lr" in parts["plan"]
    norm_given = "clip_norm" in parts["privacy"]
    if privacy is not None and not (norm_given if by_client else rate_given):
        start = plan if rate_given else plan.replace(lr=rate)
        suggested = suggest_lr(task, row, privacy, start, lora)
        if by_client:
            norm = float(f"{min(suggested.clip_norm, 1.0):.3g}")
            norm_reason = f"fl.suggest_lr: {suggested.origin}; at most 1"
        else:
            rate = float(f"{min(suggested.lr, LARGEST_RATE):.3g}")
            rate_reason = f"fl.suggest_lr: {suggested.origin}; at most {LARGEST_RATE:g}"
    plan = plan.replace(lr=settings.choose(parts["plan"], "lr", rate, rate_reason))
    if privacy is None:
        return None, plan
    norm = settings.choose(parts["privacy"], "clip_norm", norm, norm_reason)
    return privacy.replace(clip_norm=norm), plan


# ---- the run


def _new_folder() -> Path:
    """The first of runs/finetune-1, -2, … that does not exist."""
    # Never one that exists: its run would go on, and its ledger with it.
    number = 1
    while (path := Path("runs") / f"finetune-{number}").exists():
        number += 1
    return path


def _train(place: Path, cell: Cell, fresh: bool, options: Mapping[str, Any]) -> Round:
    """Runs to the end, or from where the folder's run was left; returns the last record."""
    from tqdm.auto import tqdm

    RunOptions(**options)  # refuses bad values before there is a folder
    begun = place.exists()
    record = None
    with Folder(place) as folder:
        if fresh:
            folder.clear()
        command = f"fl.finetune(..., out={str(place)!r})"
        stored = folder.claim(run_settings(folder, cell.task, cell.privacy, [cell], command))
        # Run with the noise that stands in the folder, to the last bit.
        privacy = stored["privacies"][cell.slug]
        cell = replace(cell, privacy=privacy and Privacy(**privacy))
        with tqdm(total=cell.plan.rounds, disable=None, **BAR) as bar:
            events = run_cell(folder, cell, **{"chunk_examples": 64, **options})
            try:
                for event in show_progress(bar, cell.plan, cell.slug, events):
                    begun = True
                    record = event if isinstance(event, Round) else record
            except Exception:
                if not begun:  # a model that cannot be adapted leaves no folder behind
                    shutil.rmtree(place)
                raise
        if record is None:  # every round was done before
            state = folder.checkpoint(cell.slug, cell.seed)
            terms = cell.task, cell.method, cell.privacy, cell.plan
            done = Run.open(*terms, lora=cell.lora, seed=cell.seed, resume=state)
            record = done.record(done.initial_result())
        folder.gather()
        save_adapter(record, folder.path / "adapter")
    return record
