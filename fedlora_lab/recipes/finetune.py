"""`finetune`: a task and an ε; plan, clip norm and rate are chosen, each with its reason."""

import copy
import math
import shutil
import tempfile
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedlora_lab import methods
from fedlora_lab._utils.rounding import round_up
from fedlora_lab._utils.torch_state import with_default_modes
from fedlora_lab._utils.validation import check, warn
from fedlora_lab.federated.records import Round, predict, save_adapter
from fedlora_lab.federated.run import run
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.plan import Lora, Plan, lora_of
from fedlora_lab.privacy.ledger import Ledger
from fedlora_lab.privacy.plan import Privacy
from fedlora_lab.recipes.suggested_rates import suggest_lr
from fedlora_lab.tasks.task import Task
from fedlora_lab.tasks.trainer import read_rows

LOCAL_STEPS = 5
"""The steps a round of most of the runs behind `suggest_lr`."""
BATCHES = 4, 64
"""The smallest and the largest batch that is chosen."""
LARGEST_RATE = 3.2
"""The largest rate that was best in the committed search on texts, with `SEARCHED`."""
SEARCHED = Lora(rank=4, alpha=8)
"""The adapter of that search."""


@dataclass(frozen=True)
class Finetuned:
    """A finished run of `finetune`.

    Args:
        task: that was learned.
        record: of the last round, with the adapter and the ledger.
        choices: what was chosen: name -> value and reason.
    """

    task: Task
    record: Round
    choices: dict[str, str]

    @property
    def ledger(self) -> Ledger:
        """What was spent."""
        assert self.record.ledger is not None  # epsilon is a number
        return self.record.ledger

    def predict(self, rows: Sequence[dict]) -> list[str]:
        """Predicts the class of each row, which is tokenised as the training rows were.

        Raises: ValueError for a task that was not made by `fl.tasks.from_trainer` of a classifier.
        Guarantees: test_finetune.py::test_a_prediction_is_that_of_the_trained_model.
        """
        origin = self.task.origin
        expected = "of fl.tasks.from_trainer, with classes; else fl.predict takes the inputs"
        known = bool(origin.classes) and origin.data_collator is not None
        check(known, "task", self.task.name, expected)
        # The collator asks for labels, which nobody reads here.
        labelled = [{"label": 0, **row} for row in rows]
        x, _ = read_rows(self.task.model, labelled, origin.data_collator, origin.processing_class)
        outputs = predict(self.task, self.record, x)
        return [origin.classes[i] for i in outputs.argmax(1).tolist()]

    def save(self, path: str | Path, merged: bool = False) -> Path:
        """Saves a folder that serves as it lies.

        Args:
            path: a new folder.
            merged: base and adapter as one model, for ``transformers.pipeline``; else the adapter
                for PEFT, with a README that loads it. Tokenizer or processor and the ledger lie
                beside either.
        Returns: the folder.
        Guarantees: test_finetune.py::test_a_csv_becomes_a_served_model_offline.
        """
        if not merged:
            return save_adapter(self.record, path)
        from peft import PeftModel

        path = Path(path).expanduser()
        check(not path.exists(), "path", str(path), "a new folder")
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as scratch:
            adapter = save_adapter(self.record, Path(scratch) / "adapter")
            model: Any = PeftModel.from_pretrained(copy.deepcopy(self.task.model), str(adapter))
            whole = Path(scratch) / "whole"
            model.merge_and_unload().save_pretrained(whole)
            processing_class = self.task.origin.processing_class
            if processing_class is not None:
                processing_class.save_pretrained(whole)
            for name in ("PRIVACY.md", "ledger.json"):
                shutil.copy(adapter / name, whole)
            whole.rename(path)
        return path

    def __repr__(self) -> str:
        scores = ", ".join(f"{name} {x:.3f}" for name, x in self.record.metrics.items())
        spent = round_up(self.record.epsilon, ".3g")
        return f"Finetuned({self.record.method}: {scores}; ε {spent} for one {self.ledger.unit})"


@with_default_modes
def finetune(
    task: Task,
    epsilon: float,
    *,
    method: Method | str = "rolora",
    rounds: int = 20,
    lora: "Lora | None" = None,
    unit: str | None = None,
    seed: int | None = None,
    out: str | Path | None = None,
) -> Finetuned:
    """Fine-tunes a task at an ε, and chooses batch, δ, noise, clip norm and learning rate.

    Sizes of clients are public and decide the batch and δ; no value of a private example enters a
    choice. The rate is the rehearsed one where the task has public validation examples, see
    `suggest_lr`. ``choices`` of the result says what was chosen and why.

    Args:
        task: such as one of `fl.tasks.from_trainer`.
        epsilon: the privacy loss, > 0.
        method: a row of `fl.methods` that uploads all that it trains.
        rounds: at least 1.
        lora: of the adapter; by default rank 4 and alpha 8.
        unit: "example", "person" or "client"; by default the person, where the task knows persons.
        seed: repeats a run, for study; ``None``: fresh noise, for a release.
        out: folder in which the run is stored, and goes on after it was stopped; see `run`.
    Raises: ValueError in one line.
    Guarantees: test_finetune.py::test_a_csv_becomes_a_served_model_offline,
        ::test_a_run_that_ends_at_the_commonest_class_says_so.

    >>> import fedlora_lab as fl
    >>> result = fl.finetune(fl.tasks.regression(clients=2), epsilon=8, rounds=1)
    >>> sorted(result.choices)
    ['batch', 'clip norm', 'delta', 'rate', 'unit']
    """
    row = methods.get(method)
    # Of another row the server's adapter lacks what clients keep: B would stay zero.
    expected = "one that sends all that it trains (uploaded_factors=None)"
    check(row.uploaded_factors is None, "method", row.slug, expected)
    reason = "as given"
    if unit is None:
        unit = "example" if task.persons is None else "person"
        reason = "a person where the task knows whose each row is, else a row"
    choices = {"unit": f"{unit}: {reason}"}
    counts = task.person_counts if unit == "person" else task.sizes
    median = sorted(counts)[len(counts) // 2]
    batch = min(max(median // 4, BATCHES[0]), BATCHES[1])
    words = f"a quarter of the median client's {median} {unit}s"
    choices["batch"] = f"{batch}: {words}, at least {BATCHES[0]} and at most {BATCHES[1]}"
    units = len(counts) if unit == "client" else sum(counts)
    # Below 1 / units: else one of them could be published whole.
    delta = min(1e-5, 10.0 ** math.floor(math.log10(0.1 / units)))
    choices["delta"] = f"{delta:g}: at most 1e-05, and at most a tenth of 1/{units}"
    plan = Plan(rounds=rounds, local_steps=LOCAL_STEPS, batch=batch)
    privacy = Privacy(unit=unit, delta=delta).calibrate(epsilon=epsilon, task=task, plan=plan)
    rehearsed = task.validation is not None
    suggested = suggest_lr(task, row, privacy, plan, lora, rehearse=rehearsed)
    largest = LARGEST_RATE * _step(SEARCHED) / _step(lora_of(lora))
    rate = float(f"{min(suggested.lr, largest):.3g}")
    norm = min(suggested.clip_norm, 1.0)
    reason = suggested.origin
    if suggested.lr > largest:
        reason = f"the largest that is taken; {suggested.lr:.3g} is {suggested.origin}"
    choices["rate"] = f"{rate:g}: {reason}"
    choices["clip norm"] = f"{norm:.3g}: the noise is in proportion to it"
    terms = task, row, privacy.replace(clip_norm=norm), plan.replace(lr=rate)
    records = _with_bar(run(*terms, lora=lora, seed=seed, out=out), rounds)
    record = deque(records, maxlen=1).pop()  # of the others nothing is kept
    result = Finetuned(task, record, choices)
    _warn_of_the_commonest_class(result)
    spent = round_up(record.epsilon, ".3g")
    if float(spent) > 1.01 * epsilon:
        warn(f"epsilon={spent}, and not {epsilon:g}: rounds that a stop repeated count again")
    return result


def _step(lora: Lora) -> float:
    """How far a clipped step of rate 1 moves a layer's output, but for a factor of the layer."""
    # A larger start of A and the smaller scale that goes with it move the output alike.
    return lora.scaling * lora.start_scale * math.sqrt(lora.rank)


def _with_bar(records: Any, rounds: int) -> Any:
    """Shows rounds, accuracy or loss, and what is spent, on a terminal."""
    from tqdm.auto import tqdm

    with tqdm(total=rounds, disable=None, unit="round") as bar:
        for record in records:
            bar.update(record.index - bar.n)
            name, score = next(iter(record.metrics.items()))
            bar.set_postfix({name: f"{score:.3f}", "ε": round_up(record.epsilon, ".3g")})
            yield record


def _warn_of_the_commonest_class(result: Finetuned) -> None:
    """Says what to try where the model answers no better than one class for every row."""
    y = result.task.test[1]
    score = result.record.metrics.get("accuracy", math.nan)  # of private rows NaN
    # A mean in single precision may end above the share that it equals.
    if y.ndim == 1 and score <= float(y.bincount().max() / len(y)) + 1e-6:
        advice = "try more rounds, a pretrained base, or a larger ε"
        warn(f"accuracy {score:.3f}: the commonest class for every row scores as much; {advice}")
