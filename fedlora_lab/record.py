"""What a run yields: frozen records, and the tidy frame made of them."""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

from fedlora_lab import adapters
from fedlora_lab.checks import check
from fedlora_lab.ledger import Ledger
from fedlora_lab.measures import frame_of
from fedlora_lab.method import Global
from fedlora_lab.plan import Lora
from fedlora_lab.tasks.task import Task
from fedlora_lab.wire import Traffic

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from torch import Tensor

COLUMNS = ["task", "method", "seed", "round", "layer", "measure", "value"]


class Tick(NamedTuple):
    """A local step has ended: round (from 1) and step (from 1), for the group of clients that works now."""

    round: int
    step: int


@dataclass(frozen=True)
class Round:
    """The state after a round; index 0 is the model before training.

    Args:
        metrics: means over the task's test examples, NaN in a private run where these are not public; with a quantised
            broadcast also ``<name>_received``, what the clients' copy of the server's model reaches; of a method whose
            clients keep factors, the mean over their own models.
        deviation: ||server's product - mean of the clients' products||_F, relative to that mean, over all layers. What
            a quantised broadcast took from the clients' factors is given back first: it is no fault of the mean. NaN
            where the server sees only a sum, and where a factor stays with its client, so that no product is formed; in
            such runs also before training.
        adapter: layer -> global (A, B), shapes (r, d_in) and (d_out, r).
        head: name -> tensor of the trained head, if there is one.
        uploads: numbers and bytes up and down in this round, summed over the clients.
        participants, seconds: how many took part, and the time it took. In a release of the client unit under
            central trust whose clients take part by chance, these two and ``uploads`` are NaN:
            an epsilon against who sees the released models counts on their not knowing who did.
        clipped, nonfinite: share of examples (client unit: updates) that the clip scaled down, and how many were not
            finite and counted as zero. They read private values: NaN in release mode.
        source: the task, with everyone's examples, and what `save_adapter` and `predict` need beside it. It stays in
            this process: a copy shares it, a pickled record is without.

    Guarantees: tests/test_attack_evaluation.py::test_a_pickled_record_holds_no_example.
    """

    index: int
    method: str
    task: str
    seed: int | None
    metrics: Mapping[str, float]
    deviation: float
    adapter: "Mapping[str, tuple[Tensor, Tensor]]"
    head: "Mapping[str, Tensor]"
    uploads: Traffic
    participants: float
    clipped: float
    nonfinite: float
    seconds: float
    ledger: Ledger | None
    rows: tuple[tuple[str, str, float], ...] = field(repr=False, default=())
    source: "tuple[Task, Lora, Global] | None" = field(repr=False, default=None, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "source": None}

    def __copy__(self) -> "Round":
        return replace(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Round":
        own = {f.name: deepcopy(getattr(self, f.name), memo) for f in fields(self) if f.name != "source"}
        return replace(self, **own)

    def __repr__(self) -> str:
        scores = {name: float(f"{value:.4g}") for name, value in self.metrics.items()}
        return (
            f"Round(index={self.index}, method={self.method!r}, task={self.task!r}, seed={self.seed}, "
            f"metrics={scores}, epsilon={self.epsilon:.3g}, participants={self.participants})"
        )

    @cached_property
    def epsilon(self) -> float:
        """Spent so far, the largest over clients; infinite without privacy or where no epsilon can be certified."""
        return float("inf") if self.ledger is None and self.index else self.ledger.spent() if self.ledger else 0.0

    @property
    def layers(self) -> "pd.DataFrame":
        """The per-layer part of the frame: layer, measure, value."""
        return frame_of(list(self.rows))

    def measures(self) -> dict[str, float]:
        """Whole-model measures by name, as they stand in the frame."""
        named = {"epsilon": self.epsilon, "deviation": self.deviation, **self.uploads._asdict()}
        return {
            **self.metrics,
            **named,
            **{k: getattr(self, k) for k in ("participants", "clipped", "nonfinite", "seconds")},
        }


def to_frame(records: "Iterable[Round]") -> "pd.DataFrame":
    """The tidy frame of some records: one row for each round, layer and measure; layer "all" is the whole model."""
    import pandas as pd

    rows = []
    for record in records:
        key = (record.task, record.method, record.seed, record.index)
        rows += [(*key, "all", measure, float(value)) for measure, value in record.measures().items()]
        rows += [(*key, *row) for row in record.rows]
    return pd.DataFrame(rows, columns=COLUMNS)


def origin(record: Round) -> tuple[Task, Lora, Global]:
    """Task, adapter and server's tensors of a record. Raises ``ValueError`` unless it is one that a run yielded."""
    found = getattr(record, "source", None)
    value = "a pickled copy, without its task" if isinstance(record, Round) else record
    check(found is not None, "record", value, "a record as run() yields it")
    return found  # type: ignore[return-value]


def save_adapter(record: Round, path: "str | Path") -> "Path":
    """Write the record's global adapter as a PEFT folder that ``peft.PeftModel.from_pretrained(base, path)`` reads.

    Guarantees: the loaded model gives the run's logits (tests/test_adapters.py).
    """
    task, lora, state = origin(record)
    check(isinstance(path, (str, PurePath)), "path", path, "a path")
    return adapters.save(task.model, task.targets, task.head, lora, state.tensors, path)
