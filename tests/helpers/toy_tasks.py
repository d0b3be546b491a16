"""Tasks of a few numbers, in double precision, and what tests of the core do with them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, lru_cache
from typing import Any

import pandas as pd
import torch
from calls import Options
from torch import Tensor, nn

import fedlora_lab as fl
from fedlora_lab.audit.instruments import Recorder
from fedlora_lab.federated.make_config import make_config
from fedlora_lab.federated.recording import RoundResult
from fedlora_lab.federated.records import Round
from fedlora_lab.federated.run import Run
from fedlora_lab.federated.store import RunState
from fedlora_lab.lora.source import require_source
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.state import ParamKey, ServerState, TensorDict
from fedlora_lab.privacy.ledger import Ledger, PerClient
from fedlora_lab.tasks.modules import frozen_copy
from fedlora_lab.tasks.task import Task

LORA = fl.Lora(rank=2, alpha=3.0)
PLAN = fl.Plan(rounds=2, local_steps=2, batch=3, lr=0.2)
UNITS = ("example", "client")
KEEPS_B = fl.methods.FedLoRA.replace(name="keeps B", uploaded_factors="A")
"""A row that nobody published."""
PERSONS = ((0, 1, 0, 2, 2), (3, 4, 3, 4, 3, 5, 6, 6), (7, 8, 7))


class Tokens(nn.Module):
    """Sequences of vectors: two linear maps that mix tokens between them, a head over the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer, self.head = nn.Linear(5, 6), nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.inner(x))
        return self.head(torch.tanh(self.outer(hidden - 0.5 * hidden.flip(1))).mean(1))


def seeded(make: Callable[[], nn.Module]) -> Any:
    """A frozen model of double precision whose weights are the same in every test."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return frozen_copy(make().double())


def two_layers() -> Any:
    """Linear maps of single precision."""
    return seeded(lambda: nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3))).float()


@cache
def regression(clients: int = 3) -> Task:
    """Least squares, one layer, no head."""
    sizes: Options = {"examples": 6, "d_in": 6, "d_out": 5, "rank": 2, "test": 8}
    return in_double(fl.tasks.regression(clients=clients, **sizes))


def random(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers in double precision."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def examples(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs for `Tokens` and labels that depend on them."""
    x = random(count, 3, 5, seed=seed)
    return x, (x.sum((1, 2)) > 0).long() + (x[:, 0, 0] > 1).long()


def tokens(head: str | None = None, sizes: tuple[int, ...] = (5, 8, 3)) -> Task:
    """Three clients of unequal size, two adapted layers, with or without a trained head."""
    clients = [examples(count, 10 + k) for k, count in enumerate(sizes)]
    places: Options = {"targets": ["inner", "outer"], "head": head, "name": "tokens"}
    return fl.tasks.classification(seeded(Tokens), clients, test=examples(9, 1), **places)


@cache
def people() -> Task:
    """The same with persons: three, four and two of them, of one to three examples each."""
    return with_persons(tokens("head"), PERSONS)


def with_head(digits: Task) -> Task:
    """The task of digits, whose head is trained too."""
    return replace(digits, layers=fl.tasks.Layers(digits.targets, "head"))


def in_double(task: Task) -> Task:
    """The same task in double precision."""
    assert task.validation
    clients = [(x.double(), y.double()) for x, y in task.clients]
    test, validation = ((x.double(), y.double()) for x, y in (task.test, task.validation))
    held_out = fl.tasks.HeldOut(test, validation)
    model = frozen_copy(task.model).double()
    return replace(task, model=model, clients=clients, held_out=held_out)


def with_persons(task: Task, persons: Any) -> Task:
    """The same task with these persons."""
    return replace(task, persons=persons)


APART = fl.methods.FedLoRA.replace(name="apart", clip_groups=fl.methods.clip_groups.by_factor)
"""A row that clips all A together and all B together, as no row of the table does."""


def private(unit: str, sigma: PerClient = 1.0, clip: float = 0.7, **fields: Any) -> fl.Privacy:
    """A privacy plan with its noise set, for any of the small tasks."""
    fields |= {"unit": unit, "noise_multiplier": sigma, "clip_norm": clip}
    return fl.Privacy(delta=1e-3, accountant="rdp", **fields)


def play(
    task: Task, row: Method | str, privacy: fl.Privacy | None, plan: fl.Plan = PLAN, **options: Any
) -> list[Round]:
    """All records of a run with the small adapter."""
    options.setdefault("lora", LORA)
    options.setdefault("seed", 0)
    return list(fl.run(task, row, privacy, plan, **options))


def opened(
    task: Task,
    row: Method,
    privacy: Any,
    plan: fl.Plan,
    t: int,
    values: ServerState,
    seed: int = 0,
    kind: type[Run] = Run,
) -> Any:
    """A run that stands before round t with these values on the server."""
    run = kind.open(make_config(task, row, privacy, plan.replace(rounds=t + 1), LORA, seed))
    values = replace(values, round=t)
    run.state = RunState(values, {}, {})
    return run


class Witness(Recorder):
    """A run that keeps also what was sent, and what the server received."""

    result: RoundResult

    def close_round(self, result: RoundResult) -> Round:
        self.result = result
        return super().close_round(result)


def play_round(run: Run) -> Round:
    """The round before which a run stands, without a record of where it began."""
    return run.close_round(run._round())


def somewhere(shapes: Mapping[ParamKey, torch.Size]) -> TensorDict:
    """Random values for every key: no factor is zero, every Gram matrix is invertible."""
    sizes = [shape.numel() for shape in shapes.values()]
    parts = (0.5 * random(sum(sizes))).split(sizes)
    return {key: x.view(shape) for (key, shape), x in zip(shapes.items(), parts, strict=True)}


@lru_cache(maxsize=64)
def begun(task: Task, row: Method | str) -> ServerState:
    """The server's state of a run that has not begun; to open one takes longer than a step."""
    return Run.open(make_config(task, row, None, PLAN, LORA, 0)).state.server


def anywhere(task: Task, row: Method) -> ServerState:
    """The same with random values in all that clients hold; modes of layers, if any, take turns."""
    state, names = begun(task, row), ("A", "B", "R", "gain", "head", "W")
    held = {key: tensor.shape for key, tensor in state.tensors.items() if key.name in names}
    modes = [key for key in state.tensors if key.name == "mode"]
    turns = {key: torch.tensor(float(i % 2), dtype=torch.float64) for i, key in enumerate(modes)}
    return state.replace_tensors({**somewhere(held), **turns})


def movers(row: Method, t: int, s: int, state: ServerState) -> set[ParamKey]:
    """What moves at (t, s), by the schedule and the modes in the state; heads and gains always
    move."""
    word, modes = row.schedule(t, s), state.named("mode")

    def moves(key: ParamKey) -> bool:
        if key.name in ("A", "B", "R") and word == "*":
            return key.name == "BA"[int(modes[key.layer])]
        return key.name in ("head", "gain") or (key.name in ("A", "B", "R") and key.name in word)

    return {key for key in state.tensors if moves(key)}


def plain_server(row: Method) -> Method:
    """The row with the mean for a server's rule that does more, unless its schedule needs it."""
    writes = getattr(row.aggregate, "writes", ())
    plain = writes and "mode" not in writes
    return row.replace(aggregate=fl.methods.FedLoRA.aggregate) if plain else row


def keeps(row: Method) -> bool:
    """Whether some factor moves and stays with its client."""
    moved = set("".join(row.schedule(t, s) for t in range(4) for s in range(4)))
    return row.uploaded_factors is not None and not moved <= set(row.uploaded_factors)


def with_clients(task: Task, clients: list[tuple[Tensor, Tensor]]) -> Task:
    """The same task on other data."""
    return replace(task, clients=clients)


def with_private_test(task: Task) -> Task:
    """The same task, whose examples to measure on are private."""
    return replace(task, held_out=replace(task.held_out, public=False))


def other_data(task: Task) -> Task:
    """Clients of the same sizes with other examples, some of them not finite."""
    others = []
    for k, (x, y) in enumerate(task.clients):
        x = x.flip(0) * 3 + k
        x[0], x[1] = torch.nan, torch.inf
        others.append((x, y.roll(1, 0)))
    return replace(task, clients=others)


def tensors(record: Round) -> dict[ParamKey, Tensor]:
    """Everything the server holds after a round: factors, head, residuals, modes."""
    return dict(require_source(record)[2].tensors)


def book(record: Round) -> Ledger:
    """The ledger of a private run's record."""
    assert record.ledger is not None
    return record.ledger


def frame(records: list[Round], *without: str) -> pd.DataFrame:
    """The tidy frame without the time it took."""
    table = fl.to_frame(records)
    kept: Any = table[~table["measure"].isin(["seconds", *without])]
    return kept.reset_index(drop=True)


def same_bits(left: list[Round], right: list[Round], *without: str) -> None:
    """Assert that two runs agree in every bit of the server's tensors and of the frame."""
    for one, other in zip(left, right, strict=True):
        ours, theirs = tensors(one), tensors(other)
        assert ours.keys() == theirs.keys()
        for key, x in ours.items():
            assert x.numpy().tobytes() == theirs[key].numpy().tobytes(), (one.index, key)
    pd.testing.assert_frame_equal(frame(left, *without), frame(right, *without), check_exact=True)


def gap(left: Round, right: Round) -> float:
    """Largest relative difference between two records' tensors; what is NaN is so in both."""
    ours, theirs = tensors(left), tensors(right)
    assert ours.keys() == theirs.keys()
    largest = 0.0
    for key, x in ours.items():
        if not torch.equal(x.isnan(), theirs[key].isnan()):
            return math.inf
        difference = (x - theirs[key]).double().nan_to_num().norm()
        size = theirs[key].double().nan_to_num().norm().clamp(min=1e-12)
        largest = max(largest, float(difference / size))
    return largest


def is_binomial(counts: Sequence[int], n: int, p: float) -> None:
    """Assert that counts have the mean and variance of independent draws, to five deviations."""
    x = torch.tensor(counts, dtype=torch.float64)
    variance = n * p * (1 - p)
    assert abs(float(x.mean()) - n * p) < 5 * math.sqrt(variance / len(x))
    assert abs(float(x.var()) - variance) < 5 * variance * math.sqrt(2 / len(x))
