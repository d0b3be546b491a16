"""Runs over Flower's messages in one process, for the tests of the Flower room."""

from typing import Any

import pytest
import torch
from torch import Tensor
from toy_tasks import LORA, PLAN, private

import fedlora_lab as fl
from fedlora_lab.federated.records import Round
from fedlora_lab.flower import InProcessGrid, Participant, SimulatedClients, client_app, messages
from fedlora_lab.flower.server import open_run, rounds
from fedlora_lab.lora.source import require_source
from fedlora_lab.methods.state import ParamKey

ROUNDS = PLAN.replace(rounds=3, participation=0.8, dropout=0.1, optimizer=fl.SGD(0.5))


def protected(unit: str, **fields) -> fl.Privacy:
    """A small privacy plan in which every client noises for itself."""
    return private(unit, trust="local" if unit == "client" else None, **fields)


def few_fast(*rows):
    """Rows as parameters, of which only a few are not slow."""
    fast = ("fedlora", "fedsa-lora", "fedlpp")
    return [row if row.slug in fast else pytest.param(row, marks=pytest.mark.slow) for row in rows]


def by_messages(
    task, row, privacy, plan=ROUNDS, seen=None, lora=LORA, seed: int | None = 0
) -> list[Round]:
    """All records of a run over messages."""
    who = SimulatedClients(task, row, privacy, plan, lora, seed)
    participant, grid = who.participant(), InProcessGrid(client_app(who), len(task.sizes), seen)
    return list(rounds(grid, participant, open_run(participant)))


def question(own: Participant, t: int = 0, kind: str = "train", **about: Any) -> Any:
    """The server's message about a round before anything was trained, as it comes over the wire."""
    arrays = messages.pack_arrays(own.broadcast(own.begin))
    content = messages.make_content({"terms": own.terms, "round": t, **about}, arrays)
    grid = InProcessGrid(lambda message, context: message, 1)  # type: ignore[arg-type]
    return grid._over_the_wire(grid.create_message(content, kind, 1000, ""), f"question {t}")


def state(record: Round) -> dict[ParamKey, Tensor]:
    """Everything the server holds after a round: factors, head, residuals, modes, scores."""
    return dict(require_source(record)[2].tensors)


def apart(left: list[Round], right: list[Round]) -> float:
    """Largest relative difference between two runs, over all that the server holds, NaN too."""
    found = [0.0]
    for one, other in zip(left, right, strict=True):
        ours, theirs = state(one), state(other)
        assert ours.keys() == theirs.keys()
        for key, x in ours.items():
            same = torch.equal(x.isnan(), theirs[key].isnan())
            gap, size = (x - theirs[key]).nan_to_num().norm(), theirs[key].nan_to_num().norm()
            found.append(float(gap / size.clamp(min=1e-12)) if same else float("inf"))
    return max(found)
