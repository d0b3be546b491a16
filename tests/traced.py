"""Runs of the library kept whole, for comparison with the loops of `transcribed_family`."""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import transcribed as plain
from small import LORA, private, regression, somewhere, tokens
from transcribed_family import Work, layers

import fedlora_lab as fl
from fedlora_lab.loop import Federation
from fedlora_lab.method import Global, Slot
from fedlora_lab.record import Round
from fedlora_lab.tasks import Task

ROUNDS, STEPS, LR = 3, 2, 0.5
TASKS = {"least squares": regression, "tokens with head": lambda: tokens("head")}
SIDES = ("A", "B", "R", "W", "head")
RANKS, WIDE = (1, 3, 2), {"rank": 3, "alpha": 3 * LORA.scaling}  # another rank, the same scale


class Trace(NamedTuple):
    """A run of the library: records, the server's tensors and the clients' own after each; and what a loop needs."""

    records: list[Round]
    states: list[Global]
    personal: list[dict[Slot, torch.Tensor]]
    oracle: plain.Oracle
    clients: list
    work: Work

    @property
    def start(self) -> plain.State:
        return state_of(self.states[0])


def state_of(server: Global) -> plain.State:
    """The server's tensors under the names of the transcriptions, where W stands in units of the weight."""
    return {
        (slot.side, slot.layer): plain.SCALE * x.numpy() if slot.side == "W" else x.numpy()
        for slot, x in server.tensors.items()
        if slot.side in SIDES
    }


def shares(task: Task, weights: str) -> list[float]:
    sizes = task.sizes
    return [1 / len(sizes)] * len(sizes) if weights == "uniform" else [n / sum(sizes) for n in sizes]


def oracle_of(task: Task) -> plain.Oracle:
    model: Any = task.model
    return plain.least_squares(model.map.weight.numpy()) if hasattr(model, "map") else plain.token_classifier(model)


def open_run(
    task: Task,
    row: str,
    clip: float,
    setting: tuple,
    lora: fl.Lora = LORA,
    rounds: int = ROUNDS,
    seed: int = 0,
    trust: str = "local",
) -> Federation:
    """A run of the library without noise, with (momentum, weights, unit); without a clip also without privacy."""
    momentum, weights, unit = setting
    privacy = None if clip == math.inf else private(unit, sigma=0.0, clip=clip, trust=trust)
    plan = fl.Plan(rounds=rounds, local_steps=STEPS, batch=None, lr=LR, momentum=momentum, weights=weights)
    return Federation.open(task, row, privacy, plan, lora=lora, seed=seed)


def follow(run: Federation) -> Trace:
    """Play all rounds of a run and keep everything."""
    task, plan, privacy = run.setting.task, run.setting.plan, run.asked.privacy
    clients = [[(x.numpy(), y.numpy()) for x, y in zip(*pair)] for pair in task.clients]
    clip, unit = (math.inf, "example") if privacy is None else (privacy.clip_norm, privacy.unit)
    work = Work(plan.rounds, plan.local_steps, plan.rate("B"), plan.momentum, clip, shares(task, plan.weights), unit)
    found = Trace([], [], [], oracle_of(task), clients, work)
    for event in run.events():
        if isinstance(event, Round):
            found.records.append(event)
            found.states.append(run.state.server)
            found.personal.append(dict(run.state.personal))
    return found


def signed(found: plain.State, end: plain.State) -> plain.State:
    """A singular vector is known up to its sign: give each rank the sign that ``end`` has."""
    found = dict(found)
    for name in layers(end):
        signs = np.sign((found["A", name] * end["A", name]).sum(1))
        found["A", name], found["B", name] = signs[:, None] * found["A", name], signs * found["B", name]
    return found


def agree(found: plain.State, end: plain.State, start: plain.State) -> None:
    """Both went to the same place, up to 1e-6 of the way."""
    for key, x in end.items():
        way = np.linalg.norm(x - start.get(key, 0.0))
        gap = np.linalg.norm(found.get(key, np.zeros_like(x)) - x)
        assert gap <= 1e-6 * way + 1e-14, f"{key}: {gap / max(way, 1e-300):.1e} of the way"
    assert all(key in end or not x.any() for key, x in found.items()), "the library holds more"


def scattered(run: Federation) -> Federation:
    """The same run, with random numbers in everything that clients train and in what is added to the base weight."""
    server = run.state.server
    shapes = {slot: x.shape for slot, x in server.tensors.items() if slot.side in SIDES}
    run.state.server = server.with_(somewhere(shapes))
    return run
