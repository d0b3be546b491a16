"""Fine-tunes a model of one's own on data of one's own, with settings from public numbers.

`finetune` makes a task, chooses what was not given (choices.py), and calls the engine.
"""

import inspect
import math
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedlora_lab import methods
from fedlora_lab._utils.rounding import round_up
from fedlora_lab._utils.safe_output import SafeStream, never_failing
from fedlora_lab._utils.torch_state import in_usual_torch
from fedlora_lab._utils.validation import check, few
from fedlora_lab.federated.compare import BAR, Cell, show_progress
from fedlora_lab.federated.records import Round, generate, predict, save_adapter
from fedlora_lab.federated.run import Run, RunOptions
from fedlora_lab.lora.adapters import ADAPTER_FILES
from fedlora_lab.lora.source import require_source
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.optimizers import AdamW
from fedlora_lab.methods.plan import Lora, Plan
from fedlora_lab.privacy.ledger import Ledger
from fedlora_lab.recipes.choices import (
    READ_CLASSES,
    Choice,
    Options,
    Settings,
    choose_cell,
    choose_promise,
    choose_test,
)
from fedlora_lab.recipes.predictions import in_parts, note_base
from fedlora_lab.report.cells import (
    claim_cells,
    round_line,
    run_cell,
    run_settings,
    without_folders,
)
from fedlora_lab.report.neighbours import Neighbours
from fedlora_lab.report.run_folder import Folder, read_frame
from fedlora_lab.report.summary_table import observer_phrase
from fedlora_lab.tasks.hub import hub
from fedlora_lab.tasks.metrics import Metrics
from fedlora_lab.tasks.modules import Head
from fedlora_lab.tasks.prompts import prompts
from fedlora_lab.tasks.task import Task

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from peft import LoraConfig
    from torch import nn

ESCAPED = "backslashreplace"
"""Names of folders may hold bytes that no encoding has."""
READ = "read from the rows"
"""What `Task.info` says of classes that were not declared."""

CHOSEN: Any = type("Chosen", (), {"__repr__": lambda self: "chosen"})()
"""Stands in a signature for a default that follows from other arguments."""


@dataclass(frozen=True, repr=False)
class Finetuned:
    """What `finetune` returns.

    Args:
        record: of the last round, with the adapter.
        choices: every setting with its reason.
        folder: of the run: ``adapter/``, checkpoints with the ledger; `fl.report.report` writes
            its page.
        notes: what all runs on the same rows have spent together, in the folder and in those beside
            it, cleared ones included, where that is more than this one; and what no epsilon covers.
    """

    record: Round
    choices: tuple[Choice, ...]
    folder: Path
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
            inputs: a list of texts, prompts or images; of a finished task the model's own inputs.
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
        if task.encode is not None:
            # A column or array has `tolist`; of a frame or a mapping only names would be left.
            is_list = isinstance(inputs, Sequence) and not isinstance(inputs, str)
            rows = list(inputs) if is_list or hasattr(inputs, "tolist") else []
            expected = "a list of texts or images, or one column of a frame, with at least one row"
            check(bool(rows), "inputs", inputs, expected)
            outputs = in_parts(
                partial(predict, task, self.record),
                task.encode,
                rows,
                [f"row {number}" for number in range(len(rows))],
            )
        else:
            outputs = predict(task, self.record, inputs)
        shares = outputs.double().softmax(1)
        classes = task.labels or tuple(range(shares.shape[1]))
        if probabilities:
            return pd.DataFrame(shares.numpy(), columns=list(classes))
        return [classes[i] for i in shares.argmax(1).tolist()]

    def facts(self) -> list[tuple[str, str]]:
        """What was reached and spent, in words."""
        record = self.record
        rows = [("method", f"{record.method}, {record.index} rounds"), ("privacy", "none")]
        if self.ledger is not None:
            against = observer_phrase(self.ledger.trust)
            delta = round_up(self.ledger.delta, "g")
            spent = f"{round_up(record.epsilon, '.3g')} at δ = {delta}{against}"
            rows[1:] = [("ε spent", spent), ("unit", f"one {self.ledger.unit}")]
            rows.append(("mode", self.ledger.mode))
        rows += [("note", sentence) for sentence in self.notes]
        unseen = math.isnan(self.score)
        score = "not measured: no public test rows" if unseen else f"{self.score:.3f}"
        return [*rows, (next(iter(record.metrics)), score), ("folder", str(self.folder))]

    def __repr__(self) -> str:
        return f"Finetuned({'; '.join(f'{name} {value}' for name, value in self.facts())})"


OWN = ("model", "frame", "epsilon", "test", "method", "lora", "seed", "out", "fresh", "say")
"""Arguments of `finetune` that no part of the run has by that name."""
COLUMNS = ("text", "label", "by", "image", "prompt", "answer", "messages", "person")
"""Those that name a column; ``None``: there is none."""


@in_usual_torch
def finetune(
    model: "str | Path | nn.Module | Task",
    frame: object = None,
    *,
    text: str | None = None,
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
    # of the task
    image: str | None = None,
    prompt: str | None = None,
    answer: str | None = None,
    messages: str | None = None,
    labels: Sequence[int | str] = CHOSEN,
    person: str | None = None,
    clients: int = CHOSEN,
    targets: Sequence[str] = CHOSEN,
    head: Head = CHOSEN,
    tokenizer: Any = CHOSEN,
    max_length: int = CHOSEN,
    max_new_tokens: int = CHOSEN,
    metrics: Metrics = CHOSEN,
    # of the plan
    rounds: int = CHOSEN,
    local_steps: int = CHOSEN,
    batch: int | None = CHOSEN,
    lr: float | Mapping[str, float] = CHOSEN,
    optimizer: Any = CHOSEN,
    server_optimizer: Any = CHOSEN,
    server_lr: float = CHOSEN,
    participation: float = CHOSEN,
    client_dropout: float = CHOSEN,
    client_weights: str = CHOSEN,
    lr_decay: float = CHOSEN,
    # of the promise
    unit: str = CHOSEN,
    clip_norm: float = CHOSEN,
    delta: float = CHOSEN,
    accountant: str = CHOSEN,
    trust: str = CHOSEN,
    honest_clients: int | None = CHOSEN,
    colluding_clients: int = CHOSEN,
    # of the run
    max_epsilon: float | None = CHOSEN,
    evaluate_every: int = CHOSEN,
    chunk_clients: int = CHOSEN,
    chunk_examples: int = CHOSEN,
    device: "str | torch.device" = CHOSEN,
    matmul_precision: str = CHOSEN,
) -> Finetuned:
    """Fine-tunes your model on your rows, federated and private, at a privacy loss that you state.

    It chooses every setting that is not given from public numbers, and prints it with its reason.
    Without public test rows nothing is scored under privacy.

    Args:
        model: a Hugging Face name, folder or module; or a finished task, which has its own data.
        frame: a DataFrame, a CSV file, a folder of images or a `datasets` split; private.
        text, label, by: columns: the text, the class, the owner of a row. Without ``by`` the rows
            are dealt at random.
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
        prompt, answer, messages, max_new_tokens: as of `fl.tasks.prompts`, which then makes the
            task.
        image, labels, person, clients: as of `fl.tasks.hub`. With ``person``, the column of
            persons, all rows of each are protected.
        targets, head, tokenizer, max_length, metrics: as of `fl.tasks.hub`.
        rounds, local_steps, batch, lr, optimizer: as of `fl.Plan`.
        server_optimizer, server_lr, participation, client_dropout, client_weights, lr_decay: as of
            `fl.Plan`.
        unit, clip_norm, delta, accountant, trust, honest_clients, colluding_clients: as of
            `fl.Privacy`.
        max_epsilon, evaluate_every, chunk_clients, chunk_examples, device, matmul_precision: as of
            `fl.run`; by default ``max_epsilon`` is ``epsilon``.

    Raises: ``ValueError`` in one line that says what to do, before anything is trained.
    Guarantees: no choice depends on a value of an example
        (test_finetune.py::test_no_choice_depends_on_a_private_value), or, where persons are
        protected, on how many rows somebody has; nor does anything that is said or stored, but for
        what is noised (test_release.py::test_files_and_lines_of_neighbours_are_equal).

    >>> import tempfile, fedlora_lab as fl
    >>> task, folder = fl.tasks.digits(clients=2), tempfile.mkdtemp()
    >>> tuned = fl.finetune(task, rounds=1, out=folder, say=None)
    >>> tuned.record.index, tuned.ledger.mode
    (1, 'release')
    """
    # First of all, while there are no other names here than those of the arguments.
    arguments = locals().items()
    given = {name: x for name, x in arguments if x is not CHOSEN and name not in OWN}
    given = {name: x for name, x in given.items() if x is not None or name not in COLUMNS}
    check(out is None or isinstance(out, str | Path), "out", out, "a folder's path")
    check(say is None or callable(say), "say", say, "a function of a line, such as print, or None")
    say = None if say is None else never_failing(say)
    settings = Settings(say)
    # A decoder that answers prompts is another task than one that classifies or goes on.
    pair = given.keys() & {"prompt", "answer"}
    check(len(pair) != 1, "prompt, answer", pair, "both of them for a decoder, or none")
    builder: Callable[..., Task] = prompts if pair or "messages" in given else hub
    is_task = isinstance(model, Task)
    options = Options.sort(given, () if is_task else inspect.signature(builder).parameters)
    if method is not None:
        row = methods.get(method)
        # Of another row the server's adapter lacks what clients keep: B would stay zero.
        expected = "one that sends all that it trains (uploaded_factors=None)"
        check(row.uploaded_factors is None, "method", row.slug, expected)
    choose_promise(model, epsilon, options, settings)
    if isinstance(model, Task):
        check(test is None, "test", test, "None with a task, which has test examples")
        task = model
    else:
        scored = choose_test(frame, test, epsilon, settings)
        task = builder(model, frame, **{"seed": seed or 0} | scored | options.task)
        task = replace(task, info={**task.info, "data": _data_name(frame)})
    cell = choose_cell(task, epsilon, method, lora, seed, options, settings)
    folder = _new_folder() if out is None else Path(out).expanduser()
    settings.tell("folder", str(folder), "ledger, adapter and checkpoints")
    built_in = task.info["task"] if "arguments" in task.info else None
    beside = Neighbours.of(folder, task.fingerprint, built_in)
    _tell_neighbours(beside, cell, settings)
    # Also where a round that was cut short has to be released again.
    try:
        record = _train(folder, cell, fresh, say, {"max_epsilon": epsilon} | options.run)
    except KeyboardInterrupt:
        if say is not None and folder.exists():
            say(f"stopped; the same call with out={str(folder)!r} goes on from the last round")
        raise
    run = Folder(folder)
    notes = beside.statements(run, read_frame(folder / "frame.csv"))
    run.note(notes)
    # The adapter may be handed on, and what all runs of the folder spend together with it.
    pages = {"README.md": "", "PRIVACY.md": "\n## Other runs\n" if notes else ""}
    for name, title in pages.items():
        with (folder / "adapter" / name).open("a", encoding="utf-8", errors=ESCAPED) as page:
            page.writelines([title, *(f"\n{sentence}\n" for sentence in notes)])
    if epsilon is not None and task.info.get("labels") == READ:
        notes.append(f"the classes were read from the rows: {READ_CLASSES}")
    if record.index < cell.plan.rounds:
        notes.append(f"ended since round {record.index + 1} would spend more than is allowed")
    notes += _advise(record, task, cell.plan)
    tuned = Finetuned(record, tuple(settings.choices), folder, tuple(notes))
    if say is not None:
        for name, value in tuned.facts():
            say(f"{name}: {value}")
    return tuned


def _data_name(frame: object) -> str:
    """What the pages beside an adapter call the data: a name without its folders, or a kind."""
    if isinstance(frame, str | os.PathLike):
        return Path(frame).resolve().name
    named = getattr(getattr(frame, "info", None), "dataset_name", None)
    return str(named) if named else f"a {type(frame).__name__}"


def _tell_neighbours(beside: Neighbours, cell: Cell, settings: Settings) -> None:
    """Tells what was spent beside this run on the same rows, and which run could go on instead."""
    for place in beside.same:
        folder = Folder(place)
        same = folder.continues(run_settings(folder, cell.task, cell.privacy, [cell], ""))
        last = folder.last_round(cell.slug, cell.seed) if same else -1
        state = f"stopped after round {last}: goes on with it"
        if last >= cell.plan.rounds:
            state = "finished: spends nothing"
        if last >= 0:
            settings.tell("instead", f"out={place!r}", f"is this very run, {state}")
    if spent := beside.spent():
        value = f"ε {round_up(spent, '.3g')}" if math.isfinite(spent) else "not certified"
        reason = f"in {few(beside.same)}, on the same rows; what this run spends is added to it"
        settings.tell("spent", value, reason)


def _advise(record: Round, task: Task, plan: Plan) -> list[str]:
    """Says what else to try where a classifier is no better than one answer to every test row."""
    y = task.test[1]
    score = record.metrics.get("accuracy", math.nan)  # of private rows NaN
    # A mean in single precision may end above the share that it equals.
    if y.ndim == 1 and score >= 0 and score <= float(y.bincount().max() / len(y)) + 1e-6:
        untried = "" if isinstance(plan.optimizer, AdamW) else ", or AdamW at lr 0.01"
        advice = f"try another rate (lr), more rounds, a larger rank{untried}"
        return [f"the commonest class for every row would score as much: {advice}"]
    return []


def _new_folder() -> Path:
    """The first of runs/finetune-1, -2, … that does not exist."""
    # Never one that exists: its run would go on, and its ledger with it.
    number = 1
    while (path := Path("runs") / f"finetune-{number}").exists():
        number += 1
    return path


def _train(
    place: Path,
    cell: Cell,
    fresh: bool,
    say: Callable[[str], Any] | None,
    options: Mapping[str, Any],
) -> Round:
    """Runs to the end, or from where the folder's run was left; returns the last record."""
    from tqdm.auto import tqdm

    options = {"chunk_examples": 64, **options}
    RunOptions(**options)  # refuses bad values before there is a folder
    record = None
    with Folder(place) as folder:
        command = f"fl.finetune(..., out={without_folders(str(place))!r})"
        (cell,) = claim_cells(folder, cell.task, cell.privacy, [cell], command, fresh)
        note_base(folder.path, cell.task.model)
        old = place / "adapter"
        if fresh and old.is_dir() and {part.name for part in old.iterdir()} <= ADAPTER_FILES:
            shutil.rmtree(old)  # else a fresh run that is stopped would leave that of another
        shown = SafeStream(sys.stderr)
        with tqdm(total=cell.plan.rounds, disable=None, file=shown, **BAR) as bar:
            events = run_cell(folder, cell, **options)
            for event in show_progress(bar, cell.plan, cell.slug, events):
                if isinstance(event, Round):
                    record = event
                    if bar.disable and say is not None:  # a log shows no bar
                        say(f"round {event.index} of {cell.plan.rounds}: {round_line(event)}")
        if record is None:  # every round was done before
            state = folder.cell(cell.slug, cell.seed)
            terms = cell.task, cell.method, cell.privacy, cell.plan
            done = Run.open(*terms, lora=cell.lora, seed=cell.seed, resume=state, **options)
            record = done.record_state()
        why = getattr(record.ledger, "uncertified", None) or "it spends more"
        check(
            record.index > 0,
            "max_epsilon",
            options["max_epsilon"],
            f"room for one round, but {why}",
        )
        folder.gather()
        save_adapter(record, folder.path / "adapter")
    return record
