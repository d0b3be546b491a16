"""Tasks of a few numbers, in double precision, and what the tests of the core do with them again and again."""

from collections.abc import Mapping
from functools import cache, lru_cache
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

import fedlora_lab as fl
from fedlora_lab.checkpoint import State
from fedlora_lab.ledger import Ledger
from fedlora_lab.loop import Federation
from fedlora_lab.method import Global, Method, Slot
from fedlora_lab.record import Round
from fedlora_lab.tasks import Task

LORA = fl.Lora(rank=2, alpha=3.0)
PLAN = fl.Plan(rounds=2, local_steps=2, batch=3, lr=0.2)
UNITS = ("example", "client")
HELD = ("A", "B", "R", "head", "W")


class Tokens(nn.Module):
    """Sequences of vectors: two linear maps with a mixing of tokens between them, and a head over their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer, self.head = nn.Linear(5, 6), nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.inner(x))
        return self.head(torch.tanh(self.outer(hidden - 0.5 * hidden.flip(1))).mean(1))


@cache
def regression(clients: int = 3, heterogeneity: float = 0.5) -> Task:
    """Least squares, one layer, no head."""
    sizes: dict[str, Any] = {"examples": 6, "d_in": 6, "d_out": 5, "rank": 2, "test": 8}
    return fl.tasks.regression(clients=clients, heterogeneity=heterogeneity, dtype="float64", **sizes)


def examples(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs for `Tokens` and labels that depend on them."""
    x = torch.randn(count, 3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x, (x.sum((1, 2)) > 0).long() + (x[:, 0, 0] > 1).long()


@cache
def tokens(head: str | None = None, sizes: tuple[int, ...] = (5, 8, 3)) -> Task:
    """Three clients of unequal size, two adapted layers, with or without a trained head."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Tokens().double()
    clients = [examples(count, 10 + k) for k, count in enumerate(sizes)]
    return fl.tasks.classification(
        model, clients, test=examples(9, 1), targets=["inner", "outer"], head=head, name="tokens"
    )


def private(unit: str, sigma: float = 1.0, clip: float = 0.7, **fields: Any) -> fl.Privacy:
    """A privacy plan with its noise set, for any of the small tasks."""
    return fl.Privacy(unit=unit, noise_multiplier=sigma, clip_norm=clip, delta=1e-3, accountant="rdp", **fields)


def play(
    task: Task, row: Method | str, privacy: fl.Privacy | None, plan: fl.Plan = PLAN, **options: Any
) -> list[Round]:
    """All records of a run with the small adapter."""
    return list(fl.run(task, row, privacy, plan, **{"lora": LORA, **options}))


def opened(
    task: Task,
    row: Method,
    privacy: fl.Privacy | None,
    plan: fl.Plan,
    t: int,
    values: Global,
    seed: int = 0,
) -> Federation:
    """A run that stands before round t with these values on the server."""
    run = Federation.open(task, row, privacy, plan.replace(rounds=t + 1), lora=LORA, seed=seed)
    state = State(t, values, {}, [-1] * len(task.sizes), [{} for _ in range(t)])
    run.state, run.resumed = state, True
    return run


def one_round(run: Federation) -> Round:
    """The record of the round that is next."""
    return next(event for event in run.events() if isinstance(event, Round))


def somewhere(shapes: Mapping[Slot, torch.Size], seed: int = 0, scale: float = 0.5) -> dict[Slot, Tensor]:
    """Random values for every slot: no factor is zero, every Gram matrix is invertible."""
    random = torch.Generator().manual_seed(seed)
    return {slot: scale * torch.randn(*shape, generator=random, dtype=torch.float64) for slot, shape in shapes.items()}


@lru_cache(maxsize=64)
def begun(task: Task, row: Method | str) -> Global:
    """The server's state of a run that has not begun; to open one takes longer than a step."""
    return Federation.open(task, row, None, PLAN, lora=LORA).state.server


def anywhere(task: Task, row: Method, seed: int = 0) -> Global:
    """The same with random values in every tensor that clients hold; modes of layers, if any, take turns."""
    state = begun(task, row)
    held = {slot: tensor.shape for slot, tensor in state.tensors.items() if slot.side in HELD}
    modes = [slot for slot in state.tensors if slot.side == "mode"]
    turns = {slot: torch.tensor(float(i % 2), dtype=torch.float64) for i, slot in enumerate(modes)}
    return state.with_({**somewhere(held, seed), **turns})


def movers(row: Method, t: int, s: int, state: Global) -> set[Slot]:
    """What moves at (t, s), read from the schedule and the modes in the state; a head always moves."""
    word = row.train(t, s)
    modes = {layer: "BA"[int(mode)] for layer, mode in state.side("mode").items()}
    factors = {slot for slot in state.tensors if slot.side in ("A", "B", "R")}
    moving = {slot for slot in factors if slot.side in word or (word == "*" and modes[slot.layer] == slot.side)}
    return moving | {slot for slot in state.tensors if slot.side == "head"}


def plain_server(row: Method) -> Method:
    """The row with a mean in place of a server's rule that does more, unless its schedule lives on that rule."""
    writes = getattr(row.aggregate, "writes", ())
    return row.replace(aggregate=fl.methods.FedLoRA.aggregate) if writes and "mode" not in writes else row


def tensors(record: Round) -> dict[str, Tensor]:
    """Everything the server holds after a round, by name."""
    factors = {
        f"{layer}.{side}": x for layer, pair in record.adapter.items() for side, x in zip("AB", pair, strict=True)
    }
    return factors | {f"head.{name}": x for name, x in record.head.items()}


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
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        ours, theirs = tensors(one), tensors(other)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), f"round {one.index}"
    pd.testing.assert_frame_equal(frame(left, *without), frame(right, *without), check_exact=True)


def gap(left: Round, right: Round) -> float:
    """Largest relative difference between two records' tensors."""
    ours, theirs = tensors(left), tensors(right)
    assert ours.keys() == theirs.keys()
    return max(float((ours[n] - theirs[n]).norm() / theirs[n].norm().clamp(min=1e-12)) for n in ours)
