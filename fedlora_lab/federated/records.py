"""What a run yields: frozen records, and the tidy frame made of them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from fedlora_lab._utils.torch_state import full_precision, with_default_modes
from fedlora_lab._utils.validation import check, in_one_line
from fedlora_lab.federated.exchange import Traffic
from fedlora_lab.lora import peft_folder, per_example
from fedlora_lab.lora.card import adapter_card, privacy_card
from fedlora_lab.lora.source import adapted_for, require_source
from fedlora_lab.measures.runs import COLUMNS
from fedlora_lab.methods.plan import Lora
from fedlora_lab.methods.state import ServerState
from fedlora_lab.privacy.ledger import Ledger
from fedlora_lab.tasks.task import Task

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd


NOT_SEEN = float("nan")
"""Stands for a value that nobody may see, or that was not measured."""
BUILT_IN = ("epsilon", "deviation", "participants", "clipped", "nonfinite", "seconds")
"""Fields of `Round` that are measures of the whole model in frames. What a release may not show
of them is decided in `config.Config.visibility`."""


@dataclass(frozen=True)
class Round:
    """The record of a round; index 0 is the model before training.

    Args:
        metrics: scores of the task's test examples, NaN in a private run where these are not
            public; with a quantised broadcast also ``<name>_received``, of the clients' copy of
            the model; where clients keep factors, the mean over their own models.
        deviation: ||server's product - mean of the clients' products||_F, relative to that mean,
            over all layers; what a quantised broadcast took from the factors is given back first.
            NaN where the server sees only a sum, or no product is formed because a factor stays
            with its client.
        adapter: layer -> global (A, B), shapes (r, d_in) and (d_out, r).
        head: name -> tensor of the trained head, if there is one.
        traffic: numbers and bytes up and down in this round, summed over the clients.
        participants: how many took part; on Flower, how many of those that were asked answered.
            With ``traffic`` NaN in a release of the client unit under central trust whose clients
            take part by chance: its epsilon counts on nobody knowing who did.
        seconds: the time it took; NaN in every release, since it may tell of a single example.
        clipped, nonfinite: share of examples, persons or updates that the clip scaled down, and
            how many were not finite and counted as zero. They read private values: NaN in release
            mode.
        source: the task, with everyone's examples, and what `save_adapter` and `predict` need
            beside it. It stays in this process: a record that was copied or pickled is without.

    Guarantees: test_attack_evaluation.py::test_a_pickled_record_holds_no_example.
    """

    index: int
    method: str
    task: str
    seed: int | None
    metrics: Mapping[str, float]
    deviation: float
    adapter: "Mapping[str, tuple[Tensor, Tensor]]" = field(repr=False)
    head: "Mapping[str, Tensor]" = field(repr=False)
    traffic: Traffic
    participants: float
    clipped: float
    nonfinite: float
    seconds: float
    ledger: Ledger | None = field(repr=False)
    rows: tuple[tuple[str, str, float], ...] = field(repr=False, default=())
    source: "tuple[Task, Lora, ServerState] | None" = field(repr=False, default=None, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        # The task holds everyone's examples: a file or a queue must not get them with a record.
        return {**self.__dict__, "source": None}

    @cached_property
    def epsilon(self) -> float:
        """Spent so far, the largest over clients; infinite where no epsilon can be certified."""
        if self.ledger is None:
            # Before training nothing was released; without privacy every round tells everything.
            return float("inf") if self.index else 0.0
        return self.ledger.epsilon_or_inf()

    @property
    def layers(self) -> "pd.DataFrame":
        """The per-layer part of the frame: layer, measure, value."""
        import pandas as pd

        return pd.DataFrame(list(self.rows), columns=["layer", "measure", "value"])

    def measures(self) -> dict[str, float]:
        """Whole-model measures by name, as they stand in the frame."""
        built_in = {name: getattr(self, name) for name in BUILT_IN}
        return {**self.metrics, **built_in, **self.traffic._asdict()}


def rows_of(record: Round) -> list[tuple[Any, ...]]:
    """The rows of a record in a tidy frame, in the order of its columns."""
    key = (record.task, record.method, record.seed, record.index)
    rows = [(*key, "all", name, float(value)) for name, value in record.measures().items()]
    return rows + [(*key, *row) for row in record.rows]


def to_frame(records: "Iterable[Round]") -> "pd.DataFrame":
    """Turns records of runs into one tidy frame, a row for each round, layer and measure.

    The layer "all" is the whole model.

    >>> import fedlora_lab as fl
    >>> task = fl.tasks.regression(clients=2, examples=4, d_in=3, d_out=3, rank=1, test=4)
    >>> frame = fl.to_frame(fl.run(task, "rolora", None, fl.Plan(rounds=1, local_steps=2)))
    >>> list(frame.columns)
    ['task', 'method', 'seed', 'round', 'layer', 'measure', 'value']
    """
    import pandas as pd

    rows = []
    check(isinstance(records, Iterable), "records", records, "records as run() yields them")
    # One by one: a generator's run trains while the frame is made.
    for record in records:
        check(isinstance(record, Round), "records", record, "records as run() yields them")
        rows += rows_of(record)
    return pd.DataFrame(rows, columns=COLUMNS)


@with_default_modes
def save_adapter(record: Round, path: "str | Path") -> "Path":
    """Saves the adapter of a record as a folder that PEFT loads without this package.

    It is for ``peft.PeftModel.from_pretrained(base, path)``.

    Args:
        record: as a run yields it.
        path: a new folder, or one with an adapter.

    Beside it lie a README, which says how to load it and what its classes are, the run's ledger,
    and PRIVACY.md: what that promises, with its caveats. An adapter for release names a base that
    lay in a folder by its name alone; any other keeps the path, so that ``AutoPeftModelFor...``
    finds it.

    Guarantees: the loaded model gives the run's logits (test_adapters.py); the numbers are those
        of the ledger (test_promise.py::test_beside_an_adapter_lies_what_its_run_promises).

    >>> import tempfile
    >>> import fedlora_lab as fl
    >>> task = fl.tasks.regression(clients=2, examples=4, d_in=3, d_out=3, rank=1, test=4)
    >>> *_, last = fl.run(task, "rolora", None, fl.Plan(rounds=1, local_steps=2))
    >>> folder = tempfile.mkdtemp()
    >>> sorted(path.name for path in fl.save_adapter(last, folder).glob("*.safetensors"))
    ['adapter_model.safetensors']
    """

    task, lora, state = require_source(record)
    check(isinstance(path, (str, PurePath)), "path", path, "a path")
    # The promise goes with the adapter: whoever gets the folder can compute epsilon again.
    card = adapter_card(task, record.method, record.index, record.ledger, path)
    promise = privacy_card(task, record.method, record.index, record.ledger)
    beside = {"README.md": card, "PRIVACY.md": promise}
    if record.ledger is not None:
        beside["ledger.json"] = record.ledger.to_json() + "\n"
    # What is released tells nobody where its maker keeps files. Anything else stays here, where
    # loaders of PEFT find the base by its whole path.
    is_public = record.ledger is not None and not record.ledger.reproducible
    folder = peft_folder.save(task, lora, state.tensors, path, beside, is_public)
    if task.origin.processing_class is not None:
        task.origin.processing_class.save_pretrained(folder)
    return folder


@with_default_modes
@full_precision()  # as a run scores its model
def predict(
    task: Task, record: Round, x: "Tensor | Mapping[str, Tensor]"
) -> Float[Tensor, "n ..."]:
    """Returns what the trained model answers to inputs, with the adapter and head of a record.

    Args:
        task, record: of the run.
        x: inputs as the task's model takes them, (n, ...) or a mapping of such tensors.
    Raises: ``ValueError`` for other inputs, and for a task whose model the record is not of.

    >>> import fedlora_lab as fl
    >>> task = fl.tasks.regression(clients=2, examples=4, d_in=3, d_out=3, rank=1, test=4)
    >>> *_, last = fl.run(task, "rolora", None, fl.Plan(rounds=1, local_steps=2))
    >>> fl.predict(task, last, task.test[0]).shape
    torch.Size([8, 3])
    """
    adapted, tensors = adapted_for(task, record)
    expected = "inputs as the model takes them: a tensor, or a mapping of tensors"
    check(isinstance(x, Tensor | Mapping), "x", type(x).__name__, expected)
    shape = tuple(x.shape) if isinstance(x, Tensor) else sorted(x)
    with in_one_line(f"x={shape}: expected {expected}; it says"):
        return per_example.model_outputs(task, adapted, tensors, x)
