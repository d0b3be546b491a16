"""Runs over Flower's messages in one process, for the tests of the Flower room."""

import torch
from small import LORA, PLAN, private
from torch import Tensor

import fedlora_lab as fl
from fedlora_lab.flower import InProcess, client_app, rounds
from fedlora_lab.flower.server import open_run
from fedlora_lab.flower.simulation import everyone
from fedlora_lab.method import Method, Slot
from fedlora_lab.record import Round, origin
from fedlora_lab.tasks import Task

ROUNDS = PLAN.replace(rounds=3, participation=0.8, dropout=0.1, momentum=0.5)


def protected(unit: str, **fields) -> fl.Privacy:
    """A small privacy plan in which every client noises for itself."""
    return private(unit, **({"trust": "local"} if unit == "client" else {}), **fields)


def by_messages(
    task: Task, row: Method | str, privacy: fl.Privacy | None, plan: fl.Plan = ROUNDS, seen=None, **options
) -> list[Round]:
    """All records of a run over messages."""
    who = everyone(task, row, privacy, plan, options.get("lora", LORA), options.get("seed", 0))
    party = who.party()
    return list(rounds(InProcess(client_app(who), len(task.sizes), seen), party, open_run(party)))


def state(record: Round) -> dict[Slot, Tensor]:
    """Everything the server holds after a round: factors, head, residuals, modes, scores."""
    return dict(origin(record)[2].tensors)


def apart(left: list[Round], right: list[Round]) -> float:
    """Largest relative difference between two runs, over all rounds and all that the server holds, unset scores too."""
    assert len(left) == len(right)
    found = 0.0
    for one, other in zip(left, right, strict=True):
        ours, theirs = state(one), state(other)
        assert ours.keys() == theirs.keys()
        for slot, x in ours.items():
            if not torch.equal(x.isnan(), theirs[slot].isnan()):
                return float("inf")
            gap, size = (x - theirs[slot]).nan_to_num().norm(), theirs[slot].nan_to_num().norm()
            found = max(found, float(gap / size.clamp(min=1e-12)))
    return found
