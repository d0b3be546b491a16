"""One sentence for a model and data of one's own: what is not given follows from public numbers.

Public are the number, sizes and names of the clients, the set of classes, and the model. Where
persons are protected, sizes are numbers of persons, and how many rows somebody has enters nothing.
No value of an example enters a choice, but for the set of classes where ``labels=`` does not
declare it; each choice is printed with its reason and can be given.
"""

import difflib
import inspect
import math
import shutil
import textwrap
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from html import escape
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import nn

from fedlora_lab import methods
from fedlora_lab._utils.environment import ignore_warnings
from fedlora_lab._utils.html_table import html_table
from fedlora_lab._utils.validation import check, check_number, check_one_of, check_whole
from fedlora_lab.experiments.tuned_rates import suggest_lr
from fedlora_lab.federated.compare import BAR, Cell, Progress
from fedlora_lab.federated.records import Round, generate, predict, save_adapter
from fedlora_lab.federated.run import Run, RunOptions
from fedlora_lab.methods.optimizers import optimizer_of
from fedlora_lab.methods.plan import Plan, lora_of
from fedlora_lab.privacy.ledger import UNITS, Ledger
from fedlora_lab.privacy.plan import Privacy
from fedlora_lab.report.page import report as write_report
from fedlora_lab.report.promise import folder_statements
from fedlora_lab.report.run_folder import Folder, read_frame, run_cell, run_settings
from fedlora_lab.report.summary_table import observer_phrase
from fedlora_lab.tasks import architectures
from fedlora_lab.tasks.hub import hub
from fedlora_lab.tasks.labels import class_names, describe_classes, read_labels
from fedlora_lab.tasks.prompts import prompts
from fedlora_lab.tasks.tables import Deal, Rows, check_public_test, owners_of, read_splits
from fedlora_lab.tasks.task import Task, classification, is_linear

ROUNDS, LOCAL_STEPS = 20, 5
"""The work for which the limits of noise behind `suggest_lr` were fitted."""
SMALLEST_BATCH, LARGEST_BATCH = 4, 64
LARGEST_RATE, CLIENT_RATE, ADAM_RATE = 3.2, 0.125, 1e-3
"""The largest rate that was best in a committed search; the one that was best in most searches of
the client unit; torch's own of Adam."""
MOST_TOKENS = 128
HIDDEN = {
    "example": 'one row is hidden; person= hides all rows of a person, unit="client" of a client',
    "person": "all rows of one person are hidden",
    "client": "all rows of one client are hidden",
}
"""What a unit of privacy means."""
GIVEN = "as given"
READ_CLASSES = "a choice by private rows, which no ε covers"
OTHER_NAMES = {
    "learning_rate": "lr",
    "batch_size": "batch",
    "epochs": "rounds",
    "num_train_epochs": "rounds",
    "max_grad_norm": "clip_norm",
    "max_seq_length": "max_length",
    "target": "label",
    "rank": "lora=fl.Lora(rank=...)",
    "r": "lora=fl.Lora(rank=...)",
    "noise_multiplier": "epsilon, which sets it",
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


@dataclass(frozen=True, repr=False)
class Finetuned:
    """What `finetune` returns.

    Args:
        record: of the last round, with the adapter.
        choices: every setting with its reason.
        folder: of the run: report, ledger, adapter, checkpoints.
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
    def frame(self) -> Any:
        """The tidy frame of all rounds, as of `fl.to_frame`."""
        return read_frame(self.folder / "frame.csv")

    def _first(self, measure: str) -> float:
        rows = self.frame.query("round == 0 and layer == 'all' and measure == @measure")
        return float(rows["value"].iloc[0]) if len(rows) else math.nan

    def _majority(self) -> float:
        """Share of the largest class in the test rows; 0 for texts."""
        task = self.record.source[0] if self.record.source else None
        labels = None if task is None else task.test[1]
        if labels is None or labels.ndim != 1:
            return 0.0
        return float(labels.bincount().max()) / len(labels)

    def report(self) -> Path:
        """Writes the report again and returns the path of its page."""
        return write_report(self.folder)

    def save(self, folder: str | Path) -> Path:
        """Saves the adapter as a folder for ``peft.PeftModel.from_pretrained(model, folder)``."""
        return save_adapter(self.record, folder)

    def predict(self, inputs: Any, *, probabilities: bool = False) -> Any:
        """Predicts the label of each row, or what a decoder answers to each prompt.

        Args:
            inputs: a list of texts, pairs of texts, prompts or images; or a table with the feature
                columns, as ``frame`` of `finetune`.
            probabilities: return a frame with a column for each class instead of the labels.

        Raises: ``ValueError`` for a decoder that was trained on texts alone, and for other inputs.
        Guarantees: test_finetune.py::test_predictions_are_those_of_the_saved_adapter.
        """
        import pandas as pd

        task, _, _ = self.record.source or (None, None, None)
        check(task is not None, "record", "a pickled copy", "the result that fl.finetune returned")
        assert task is not None
        if task.generation is not None:
            return generate(task, self.record, self.encode(inputs))
        expected = "a classifier; save() the adapter and generate() with PEFT and Transformers"
        check(task.test[1].ndim == 1, "model", type(task.model).__name__, expected)
        chances = predict(task, self.record, self.encode(inputs)).double().softmax(1)
        names = task.labels or tuple(range(chances.shape[1]))
        if probabilities:
            return pd.DataFrame(chances.numpy(), columns=list(names))
        return [names[i] for i in chances.argmax(1).tolist()]

    def _facts(self) -> list[tuple[str, str]]:
        record, book = self.record, self.ledger
        measure, score = next(iter(record.metrics)), self.score
        rows = [("method", f"{record.method}, {record.index} rounds")]
        if book is None:
            rows.append(("privacy", "none"))
        else:
            words = observer_phrase(book.trust)
            rows += [("ε spent", f"{record.epsilon:.3g} at δ = {book.delta:g}{words}")]
            rows += [("unit", f"one {book.unit}"), ("mode", book.mode)]
        rows += [("note", sentence) for sentence in self.notes]
        said = f"{score:.3f}, before training {self._first(measure):.3f}"
        most = self._majority()
        if measure == "accuracy" and score <= most:
            said += f"; the largest class alone makes {most:.3f}: more rounds, rows or epsilon"
        said = "not measured: no public test rows" if math.isnan(score) else said
        return [*rows, (measure, said), ("folder", str(self.folder))]

    def __repr__(self) -> str:
        return f"Finetuned({'; '.join(f'{name} {value}' for name, value in self._facts())})"

    def _repr_html_(self) -> str:
        rows = [(c.name, str(c.value), c.reason) for c in self.choices]
        head = f"<p>{escape(self.record.task)}</p>{html_table(self._facts())}"
        chosen = html_table(rows, ("setting", "value", "why"))
        return f"{head}<details><summary>Settings</summary>{chosen}</details>"


def finetune(
    model: Any,
    frame: Any,
    *,
    text: str | Sequence[str] | None = None,
    label: str | None = None,
    labels: Sequence[Any] | None = None,
    by: str | None = None,
    epsilon: float | None = 8.0,
    test: Any = None,
    prompt: str | None = None,
    answer: str | None = None,
    features: Sequence[str] | None = None,
    image: str | None = None,
    clients: int | None = None,
    unit: str | None = None,
    delta: float | None = None,
    method: "str | methods.Method | None" = None,
    rounds: int | None = None,
    local_steps: int | None = None,
    batch: int | str | None = None,
    lr: float | Mapping[str, float] | None = None,
    clip_norm: Any = None,
    lora: Any = None,
    seed: int | None = None,
    out: str | Path | None = None,
    fresh: bool = False,
    progress: bool | None = None,
    say: Callable[[str], Any] | None = print,
    **options: Any,
) -> Finetuned:
    """Fine-tunes a model of one's own on data of one's own, federated and private, by defaults.

    Every setting that is not given follows from public numbers and is printed with its reason.
    Without public test rows nothing is scored under privacy.

    Args:
        model: a Hugging Face name or folder, a pair (model, tokenizer), or any torch module that
            takes the feature columns, (n, features) -> (n, classes).
        frame: a DataFrame, a CSV file, or a `datasets` split; private.
        text, label, by: columns: the text (two for pairs), the class, the owner of a row. Without
            ``by`` the rows are dealt at random among ``clients``; without ``label`` a decoder
            learns the texts.
        labels: the classes in order, names or numbers; rows with another label are refused.
            Without it they are read from the rows, and no epsilon covers that.
        epsilon: the budget, > 0; ``None`` trains without privacy.
        test: public rows for scores, as ``frame``; or a share in (0, 0.5] held out of the private
            rows, or persons, which is never scored under privacy. Private rows given as public
            ones are refused.
        prompt, answer: in place of ``text``, for a decoder: columns or templates, see
            `fl.tasks.prompts`.
        features, image: columns in place of ``text``: numbers for a torch module (default: all
            others), or images.
        clients, unit, delta, method, rounds, local_steps, batch, lr, clip_norm, lora: given in
            place of what would be chosen; ``batch="all"`` takes every example in every step.
        seed: ``None``: the noise is fresh, and the result may be released; a number repeats a run.
        out: run folder; a run that was stopped goes on with the same call. Default: a new folder
            ``runs/finetune-1``, ``-2``, …
        fresh: clear ``out`` of an earlier run; what that released stays counted.
        progress: a bar; ``None``: on a terminal and in a notebook.
        say: takes each printed line; ``None``: nothing is printed.
        options: of `fl.tasks.hub` or `fl.tasks.prompts` (person, targets, head, max_length,
            …), `fl.Plan`, `fl.Privacy` and `fl.run` (device, stop_at, …), by their names there.
            With ``person``, the column of persons, all rows of each are protected.

    Raises: ``ValueError`` in one line that says what to do, before anything is trained.
    Guarantees: no choice depends on a value of an example
        (test_finetune.py::test_no_choice_depends_on_a_private_value), or, where persons are
        protected, on how many rows somebody has
        (test_finetune.py::test_nothing_chosen_or_stated_depends_on_the_rows_of_a_person).

    >>> import tempfile, pandas as pd, fedlora_lab as fl
    >>> rows = pd.DataFrame({"x": [0.0, 1.0] * 40, "z": 1.0, "y": [0, 1] * 40})
    >>> model, folder = torch.nn.Linear(2, 2), tempfile.mkdtemp()
    >>> found = fl.finetune(model, rows, label="y", clients=2, rounds=1, out=folder, say=None)
    >>> found.record.index, found.ledger.mode
    (1, 'release')
    """
    asked = {
        "text": text, "label": label, "labels": labels, "by": by, "epsilon": epsilon, "test": test,
        "prompt": prompt, "answer": answer, "features": features, "image": image,
        "clients": clients, "unit": unit, "delta": delta, "method": method, "rounds": rounds,
        "local_steps": local_steps, "batch": batch, "lr": lr, "clip_norm": clip_norm, "lora": lora,
        "seed": seed,
    }  # fmt: skip
    check(say is None or callable(say), "say", say, "a function of a line, or None")
    check(progress in (None, True, False), "progress", progress, "True, False or None")
    settings, parts = Settings(asked, say), sort_options(options)
    cell, encode = choose_cell(model, frame, settings, parts)
    folder = _choose_folder(out)
    settings.choose("folder", str(folder), "report, ledger, adapter and checkpoints")
    record = _train(folder, cell, fresh, parts["run"], progress, say)
    notes = folder_statements(Folder(folder))
    if epsilon is not None and label is not None and labels is None:
        notes.append(f"the classes were read from the rows: {READ_CLASSES}")
    found = Finetuned(record, tuple(settings.choices), folder, encode, tuple(notes))
    if say is not None:
        for name, value in found._facts()[:-1]:
            say(f"{name}: {value}")
        say(f"report: {folder / 'report.html'}")
    return found


class Settings:
    """What was asked for, and what is chosen where it was not; each choice is told at once.

    Args:
        asked: option -> what was given for it, or ``None``.
        say: takes each line; ``None``: nothing is told.
    """

    def __init__(self, asked: Mapping[str, Any], say: Callable[[str], Any] | None = None) -> None:
        self.asked = dict(asked)
        self.say = say
        self.choices: list[Choice] = []

    def choose(self, name: str, value: Any, reason: str) -> Any:
        """Adds a choice and returns its value.

        Args: name, value, reason: as of `Choice`.
        """
        self.choices.append(Choice(name, value, reason))
        if self.say is not None:
            self.say(str(self.choices[-1]))
        return value

    def default(self, name: str, value: Any, reason: str) -> Any:
        """Chooses what was asked for, or else this value.

        Args: name: of the option. value, reason: where nothing was asked for.
        """
        given = self.asked[name]
        return (
            self.choose(name, value, reason) if given is None else self.choose(name, given, GIVEN)
        )


def choose_cell(
    model: Any, frame: Any, settings: Settings, parts: dict[str, dict[str, Any]]
) -> tuple[Cell, Callable[[Any], Any]]:
    """All that a run needs, and what encodes inputs for it; nothing is trained.

    Args:
        model, frame: as of `finetune`.
        settings: what was asked for.
        parts: other options by the part that takes them, as `sort_options` gives them.
    """
    asked = settings.asked
    epsilon, seed = asked["epsilon"], asked["seed"]
    if epsilon is not None:
        check_number("epsilon", epsilon, 0, 1e9, open_low=True)
    whole = seed is None or (type(seed) is int and 0 <= seed < 2**63)
    check(whole, "seed", seed, "a whole number >= 0 and below 2**63, or None")
    budget = "smaller protects better and learns less" if epsilon else "nothing is promised"
    settings.choose("epsilon", "none" if epsilon is None else float(epsilon), budget)
    # Before the task: in the person unit nothing may be chosen from numbers of rows.
    unit = _choose_unit(settings, parts["task"].get("person"))
    parts["task"] = {"seed": seed or 0, **parts["task"]}
    task, encode = _build(model, frame, unit, settings, parts["task"])

    plan = _choose_plan(task, unit, settings, parts["plan"])
    adapter = lora_of(asked["lora"])
    words = f"rank {adapter.rank}, alpha {adapter.alpha:g}"
    usual = "as in the committed studies"
    settings.choose("lora", words, usual if asked["lora"] is None else GIVEN)
    privacy = None
    if epsilon is not None:
        units = len(task.sizes) if unit == "client" else sum(_sizes(task, unit)[0])
        tenth = 10.0 ** math.floor(math.log10(0.1 / max(units, 1)))
        small = f"at most 1e-05 and a tenth of 1 / {units:,} {unit}s"
        delta = settings.default("delta", min(1e-5, max(tenth, 1e-12)), small)
        norm = 1.0 if asked["clip_norm"] is None else asked["clip_norm"]
        terms: dict[str, Any] = {"unit": unit, "delta": delta, "clip_norm": norm}
        terms |= parts["privacy"]
        privacy = Privacy(**terms).calibrate(epsilon=epsilon, task=task, plan=plan)
        seen = observer_phrase(privacy.trust).strip()
        noise = _numbers(privacy.noise_multiplier)
        settings.choose("noise", noise, f"the least that keeps to ε {seen}")
    row = _choose_method(privacy, settings)
    privacy, plan = _choose_rate(task, row, privacy, plan, adapter, settings)
    release = "fresh noise, fit for release; seed=0 repeats a run, for study only"
    anew = "drawn anew; seed=0 repeats a run"
    seed = settings.default("seed", None, anew if epsilon is None else release)
    return Cell(row.slug, task, row, privacy, plan, adapter, seed), encode


# ---- where options belong


def sort_options(options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The options by the part that takes them: task, plan, privacy, run."""
    own = {*inspect.signature(finetune).parameters} - {"options"}
    fixed = {"checkpoint", "resume", "bug", "public_test", "name", "dataset", "target"}
    takes = {
        "task": [*inspect.signature(hub).parameters, *inspect.signature(prompts).parameters],
        "plan": [field.name for field in fields(Plan)],
        "privacy": [field.name for field in fields(Privacy)],
        "run": [field.name for field in fields(RunOptions)],
    }
    known = {name for names in takes.values() for name in names} | own
    known -= fixed | {"noise_multiplier", "sample_rate"}
    for name in options:
        near = difflib.get_close_matches(name, sorted(known), 1)
        meant = OTHER_NAMES.get(name) or (near[0] if near else "")
        hint = f"; did you mean {meant}?" if meant else ", see help(fl.finetune)"
        words = f"an option of fl.finetune{hint}"
        check(name in known, name, options[name], words)
    return {
        part: {name: options[name] for name in options if name in names and name not in own}
        for part, names in takes.items()
    }


# ---- the task


def _choose_unit(settings: Settings, person: Any) -> str:
    """What is protected; not told where nothing is."""
    unit = settings.asked["unit"]
    check_one_of("unit", unit or "example", UNITS)
    words = "with person= (--person), the column that says whose each row is"
    check(unit != "person" or person is not None, "unit", unit, words)
    usual = "example" if person is None else "person"
    if settings.asked["epsilon"] is None:
        return "example"
    return settings.default("unit", usual, HIDDEN[usual])


def _choose_test(settings: Settings, counted: str) -> Any:
    """What to score on: a data set or a split's name, a share, or ``None`` for nothing."""
    test, protected = settings.asked["test"], settings.asked["epsilon"] is not None
    if test is None and not protected:
        why = f"this share of the {counted} is held out, since nothing is protected"
        return settings.choose("test", 0.2, why)
    if test is None:
        why = "scores are not measured; test=FRAME takes public rows to score on"
        settings.choose("test", "none", why)
        return None
    if isinstance(test, (int, float)) and not isinstance(test, bool):
        held = f"of the private {counted}, held out" + (": never scored" if protected else "")
        return settings.choose("test", float(test), f"as given: {held}")
    why = "public by your word: scored after every round, not protected"
    settings.choose("test", GIVEN, why)
    return test


def _build(
    model: Any, frame: Any, unit: str, settings: Settings, options: dict[str, Any]
) -> tuple[Task, Callable[[Any], Any]]:
    """The task, and what encodes inputs for it."""
    if isinstance(model, tuple):
        check(len(model) == 2, "model", f"{len(model)} things", "a pair (model, tokenizer)")
        model, options = model[0], {"tokenizer": model[1], **options}
    names = ("text", "image", "features", "label", "labels", "by", "prompt", "answer")
    columns = {name: settings.asked[name] for name in names}
    bare = isinstance(model, nn.Module) and not hasattr(model, "config")
    read = any(columns[name] is not None for name in ("text", "image", "prompt"))
    if bare:
        why = "a Hugging Face model, since text= and image= are given; a module takes features="
        check(not read, "model", type(model).__name__, why)
    else:
        check(read, "text, image", None, 'the column that the model reads, as text="review"')
    both = (columns["prompt"] is None) == (columns["answer"] is None)
    check(both, "prompt, answer", (columns["prompt"], columns["answer"]), "both or none")
    splits = read_splits(frame)
    check("train" in splits, "frame", sorted(splits), "a table, or splits with one called train")
    data, person = splits["train"], options.get("person")
    for argument in ("text", "image", "features", "label", "by"):
        given = columns[argument]
        several = argument in ("text", "features") and isinstance(given, (list, tuple))
        columns[argument] = given = list(given) if several else given
        for name in given if several else [given]:
            _check_column(argument, name, data)
    _check_column("person", person, data)
    read = [columns[name] for name in ("text", "image", "features", "label")]
    names = [name for given in read for name in (given if isinstance(given, list) else [given])]
    twice = [name for name, count in Counter(names).items() if name is not None and count > 1]
    check(not twice, "columns", twice, "each once: what the model reads is not its label")
    dealt = "rows" if person is None else "persons"
    test = _choose_test(settings, dealt)
    if columns["by"] is None:
        _, count = owners_of(data, person)
        reason = f"no column by=: the {dealt} are dealt at random among so many clients"
        clients = settings.default("clients", max(2, min(10, count // 20)), reason)
    else:
        clients = settings.asked["clients"]
    shared = {"by": columns["by"], "clients": clients, **options}
    if bare:
        task, encode = _features_task(model, frame, test, columns, shared)
    else:
        task, encode = _hub_task(model, frame, data, test, columns, shared, settings)
    if columns["by"] is not None:
        found = f"one for each value of {columns['by']!r}"
        sizes, counted = _sizes(task, unit)
        settings.choose("clients", len(sizes), f"{found}, of {_span(sizes)} {counted}")
    if columns["label"] is not None:
        _tell_classes(task, settings)
    return task, encode


def _tell_classes(task: Task, settings: Settings) -> None:
    """Says which classes there are, and whether private rows were read for it."""
    shown = f"{task.info['classes']} classes"
    reason = "those of the rows" if task.labels else "whole numbers from 0 to the rows' largest"
    if settings.asked["epsilon"] is not None:
        reason += f": {READ_CLASSES}"
    declared = settings.asked["labels"] is not None
    reason = GIVEN if declared else f"{reason}; labels=[...] declares them"
    settings.choose("labels", shown, reason)


def _sizes(task: Task, unit: str) -> tuple[tuple[int, ...], str]:
    """How many each client has, and of what: persons where they are protected, else rows."""
    return (task.person_counts, "persons") if unit == "person" else (task.sizes, "rows")


def _span(sizes: Sequence[int]) -> str:
    low, high = min(sizes), max(sizes)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _check_column(argument: str, name: Any, data: Any) -> None:
    if name is None or (isinstance(name, Hashable) and name in data.columns):
        return
    there = list(map(str, data.columns))
    near = difflib.get_close_matches(str(name), there, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    if len(there) == 1 and any(sign in there[0] for sign in ";\t|"):
        hint = "; cells must be separated by commas"
    check(False, argument, name, f"one of the columns {', '.join(there)}{hint}")


def _hub_task(
    model: Any,
    frame: Any,
    data: Any,
    test: Any,
    columns: dict[str, Any],
    options: dict[str, Any],
    settings: Settings,
) -> tuple[Task, Callable[[Any], Any]]:
    """A task of a Hugging Face model."""
    text, image, label = columns["text"], columns["image"], columns["label"]
    asked = columns["prompt"] is not None
    if (asked or text is not None) and "max_length" not in options:
        options["max_length"] = settings.choose("max_length", *_longest(model))
    words = [text] if isinstance(text, str) else list(text or ())
    public = test is not None and not isinstance(test, float)
    if test is None:  # shapes are read from made-up rows; nothing of them is scored
        made = list(data.columns) if asked else words
        test = _made_up(data, made, image, label, columns["labels"])
    given: dict[str, Any] = {"test": test, "public_test": public, **options}
    takes = [*inspect.signature(prompts if asked else hub).parameters]
    for name in given:
        check(name in takes, name, given[name], f"one of {', '.join(takes[2:])} for this task")
    if asked:
        plain = label is None and text is None and columns["labels"] is None
        check(plain, "prompt", columns["prompt"], "no text=, label= or labels=")
        task = prompts(model, frame, prompt=columns["prompt"], answer=columns["answer"], **given)
    else:
        own = {"text": text, "image": image, "label": label, "labels": columns["labels"]}
        task = hub(model, frame, **own, **given)
    # How many texts were cut is an exact number about private texts.
    task = replace(task, info={k: v for k, v in task.info.items() if k != "texts cut"})
    if asked:
        return task, list
    if image is not None:
        own_processor = options.get("tokenizer")
        processor = architectures.read_processor(model, own_processor, "AutoImageProcessor")
        return task, lambda images: architectures.encode_images(processor, list(images))
    with ignore_warnings():  # what there is to warn of was told when the task was made
        code = architectures.prepare_tokenizer(model, options.get("tokenizer"), task.model)

    def encode(texts: Any) -> Any:
        listed = hasattr(texts, "__iter__") and not isinstance(texts, str)
        rows = list(texts) if listed else []
        what = "a list of texts" if len(words) == 1 else "a list of pairs of texts"
        check(bool(rows), "texts", texts, f"{what}, at least one")
        pairs = all(isinstance(row, (list, tuple)) and len(row) == len(words) for row in rows)
        check(len(words) == 1 or pairs, "texts", rows, what)
        parts = [rows] if len(words) == 1 else [list(part) for part in zip(*rows, strict=True)]
        return architectures.tokenize(code, parts, task.model, options["max_length"])

    return task, encode


def _longest(model: Any) -> tuple[int, str]:
    """Tokens kept of a text."""
    config = getattr(model, "config", None)
    if config is None:
        from transformers import AutoConfig

        here: dict[str, Any] = {"local_files_only": architectures.cached_only(str(model))}
        try:
            config = AutoConfig.from_pretrained(str(model), **here)
        except Exception:  # a model that cannot be read is refused when it is loaded
            config = SimpleNamespace()
    limit = architectures.longest_text(config)
    if limit is not None and limit < MOST_TOKENS:
        return limit, "tokens of a text, as many as the model takes; longer texts are cut"
    return MOST_TOKENS, "tokens of a text; longer texts are cut"


def _made_up(
    data: Any, words: Sequence[str], image: str | None, label: str | None, labels: Any
) -> Any:
    """Four rows that are nobody's, with classes of the data."""
    import numpy as np
    import pandas as pd

    rows: dict[str, Any] = {}
    for column in words:
        rows[column] = ["a made up text", "another one", "this is a third text", "the last"]
    if image is not None:
        draw = np.random.default_rng(0)
        rows[image] = list(draw.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8))
    if label is not None:
        # Of a table without labels the message comes later.
        classes = list(data[label].dropna())[:4] if labels is None else list(labels)[:4]
        rows[label] = [classes[i % len(classes)] if classes else 0 for i in range(4)]
    return pd.DataFrame(rows)


def _features_task(
    model: nn.Module, frame: Any, test: Any, columns: dict[str, Any], options: dict[str, Any]
) -> tuple[Task, Callable[[Any], Any]]:
    """A task of any module on columns of numbers."""
    import numpy as np

    label, by = columns["label"], options.pop("by")
    check(isinstance(label, str), "label", label, "a column's name, the class of each row")
    taken = {"clients", "seed", "targets", "head", "metrics", "person"}
    for name in options:
        expected = f"one of {', '.join(sorted(taken))} with features"
        check(name in taken, name, options[name], expected)
    seed, whose = options["seed"], options.get("person")
    # Without test rows the table stands in their place, and nothing of it is scored.
    given = frame if test is None else test
    public_test = test is not None and not isinstance(test, float)
    rows = Rows.read(frame, given, seed, whose, public_test)
    data, rest = rows.private, rows.held_out
    names = columns["features"]
    if names is None:
        names = [name for name in data.columns if name not in (label, by, whose)]
    names = names if isinstance(names, list) else [names]
    check(bool(names), "features", names, "one or more columns of numbers")

    def numbers(table: Any) -> torch.Tensor:
        for name in names:
            kind = table[name].dtype if name in table.columns else "missing"
            right = kind != "missing" and getattr(kind, "kind", "O") in "iufb"
            check(right, f"feature {name!r}", str(kind), "a column of numbers; or give features=")
        values = torch.from_numpy(np.asarray(table[list(names)], dtype=np.float32))
        gaps = ~values.isfinite()
        row = int(gaps.any(1).int().argmax())
        column = int(gaps[row].int().argmax())
        what = "nothing" if values[row, column].isnan() else "no finite number"
        words = "a number in each row"
        check(not gaps.any(), f"feature {names[column]!r}", f"{what} in row {row}", words)
        return values

    codes, classes = read_labels(rows.sources, label, columns["labels"])
    x, y = numbers(data), torch.from_numpy(codes[0][data.index])
    if test is None:
        example = torch.randn(4, x.shape[1], generator=torch.Generator().manual_seed(0))
        public = example, torch.arange(4) % len(classes)
    else:
        public = numbers(rest), torch.from_numpy(codes[1][rest.index])
    split, names_of = Deal(by, options["clients"], seed).split(rows)
    people = rows.people
    maps = [name for name, module in model.named_modules() if name and is_linear(module)]
    targets = options.get("targets") or maps
    single = isinstance(model, nn.Linear)
    model = nn.Sequential(model) if single else model  # a layer without a name gets one
    try:
        task = classification(
            model,
            [(x[i], y[i]) for i in map(torch.from_numpy, split)],
            test=public,
            targets=["0"] if single else targets,
            head=options.get("head"),
            metrics=options.get("metrics", ("accuracy",)),
            labels=class_names(classes),
            client_names=names_of,
            persons=None if people is None else [people[i] for i in split],
            name="finetune",
        )
    except RuntimeError as error:
        words = f"a module that takes ({len(names)},) features: {', '.join(map(str, names[:6]))}"
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"model={type(model).__name__}: expected {words} ({reason})") from error
    info = {**task.info, **describe_classes(classes, columns["labels"])}
    task = replace(task, public_test=public_test, info=info)
    check_public_test(task, rows)
    return task, lambda table: numbers(read_splits(table)["train"])


# ---- the choices


def _choose_plan(task: Task, unit: str, settings: Settings, more: dict[str, Any]) -> Plan:
    """Rounds, steps and batch from the clients' sizes."""
    protected = settings.asked["epsilon"] is not None
    work = "the work that the noise limits were fitted for" if protected else "as with privacy"
    rounds = settings.asked["rounds"]
    check_whole("rounds", ROUNDS if rounds is None else rounds, 1)
    rounds = settings.default("rounds", ROUNDS, work)
    steps = settings.default("local_steps", LOCAL_STEPS, work)
    sizes, counted = _sizes(task, unit)
    middle = sorted(sizes)[len(sizes) // 2]
    size = min(max(middle // 4, SMALLEST_BATCH), LARGEST_BATCH)
    ends = f"{SMALLEST_BATCH} to {LARGEST_BATCH}"
    reason = f"a quarter of the median client's {middle:,} {counted}, within {ends}"
    if protected and unit != "client":
        reason += "; larger: less noise, more time"
    batch = settings.default("batch", size, reason)
    named = not isinstance(batch, str) or batch == "all"
    check(named, "batch", batch, 'a whole number >= 1, or "all"')
    size = None if batch == "all" else batch
    return Plan(rounds=rounds, local_steps=steps, batch=size, **more)


def _choose_method(privacy: Privacy | None, settings: Settings) -> "methods.Method":
    """What was asked for, else turns under privacy and both factors without."""
    if (method := settings.asked["method"]) is not None:
        row = methods.get(method)
        settings.choose("method", row.slug, GIVEN)
        return row
    if privacy is None:
        settings.choose("method", "fedlora", "both factors: without noise none has to rest")
        return methods.FedLoRA
    reason = "turns: their mean is exact, and no place measured left them far behind"
    settings.choose("method", "rolora", reason)
    return methods.RoLoRA


def _choose_rate(
    task: Task,
    row: "methods.Method",
    privacy: Privacy | None,
    plan: Plan,
    lora: Any,
    settings: Settings,
) -> tuple[Privacy | None, Plan]:
    """Learning rate and clip norm by what the noise allows: in the example unit the rate, in the
    client unit the norm."""
    lr, clip_norm = settings.asked["lr"], settings.asked["clip_norm"]
    rule, fixed = optimizer_of(plan.optimizer), privacy is not None and privacy.unit == "client"
    rate, why = (
        (CLIENT_RATE, "best in most searches of the unit") if fixed else (Plan().rate("B"), "")
    )
    norm, reason = 1.0, "with the noise in proportion to it, and the rate fitted to both"
    if rule.nonlinear:
        rate, why = ADAM_RATE, f"torch's own for Adam; what suits {rule} here is not known"
    elif privacy is None:
        why = "the library's; without noise no rate follows from public numbers"
    elif lr is None or (fixed and clip_norm is None):
        start = plan.replace(lr=rate if lr is None else lr)
        try:
            found = suggest_lr(task, row, privacy, start, lora)
        except ValueError as error:
            why = f"the library's, since fl.suggest_lr does not know this case ({error})"
        else:
            if fixed:
                norm = float(f"{min(found.clip_norm, 1.0):.3g}")
                reason = f"fl.suggest_lr: {found.words}; at most 1"
            else:
                rate = float(f"{min(found.lr, LARGEST_RATE):.3g}")
                why = f"fl.suggest_lr: {found.words}; at most {LARGEST_RATE:g}"
    plan = plan.replace(lr=settings.default("lr", rate, why))
    if privacy is None:
        return None, plan
    return privacy.replace(clip_norm=settings.default("clip_norm", norm, reason)), plan


def _numbers(value: Any) -> str:
    values = value if isinstance(value, tuple) else (value,)
    low, high = min(values), max(values)
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


# ---- the run


def _choose_folder(out: str | Path | None) -> Path:
    if out is not None:
        check(isinstance(out, (str, Path)), "out", out, "a folder's path")
        return Path(out).expanduser()
    numbers = range(1, 100_000)
    return next(path for n in numbers if not (path := Path("runs") / f"finetune-{n}").exists())


def _train(
    place: Path,
    cell: Cell,
    fresh: bool,
    options: dict[str, Any],
    progress: bool | None,
    say: Callable[[str], Any] | None,
) -> Round:
    """Runs to the end, or from where the folder's run was left; returns the last record."""
    from tqdm.auto import tqdm

    options = {"chunk_examples": 64, **options}
    stop_at, record, begun = options.pop("stop_at", None), None, False
    new = not place.exists()
    with Folder(place) as folder:
        if fresh:
            folder.clear()
        known = (folder.path / "settings.json").exists()
        command = f"fl.finetune(..., out={str(place)!r})"
        terms = folder.claim(run_settings(folder, cell.task, cell.privacy, [cell], command))
        if known and (stored := terms["privacies"][cell.slug]) is not None:
            cell = replace(cell, privacy=Privacy(**stored))
        state = folder.checkpoint(cell.slug, cell.seed)
        disable = None if progress is None else not progress
        with tqdm(total=cell.plan.rounds, disable=disable, **BAR) as bar:
            shown = Progress(bar, cell.plan, cell.slug)
            try:
                for event in run_cell(folder, cell, stop_at, **options):
                    begun = True
                    shown.show(event)
                    record = event if isinstance(event, Round) else record
            except KeyboardInterrupt:
                if say is not None and begun:
                    say(f"stopped; the same call with out={str(place)!r} goes on from here")
                raise
            except Exception:
                if new and not begun:  # a bad option leaves no folder behind
                    shutil.rmtree(place)
                raise
        if record is None:  # every round was done before
            parts = cell.task, cell.method, cell.privacy, cell.plan
            kept = Run.open(*parts, lora=cell.lora, seed=cell.seed, resume=state)
            record = kept.record(kept.initial_result())
        folder.gather()
        save_adapter(record, folder.path / "adapter")
        write_report(folder.path)
    return record
