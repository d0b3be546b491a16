"""Runs of the library against plain loops written from the methods' descriptions (`transcribed`)."""

import numpy as np
import pytest
import transcribed as plain
from small import play, private, regression, tokens

import fedlora_lab as fl
from fedlora_lab.privacy import Privacy
from fedlora_lab.record import Round

ROUNDS, STEPS, LR = 4, 3, 0.5
TASKS = {"least squares": regression, "tokens": tokens, "tokens with head": lambda: tokens("head")}
CLIPS = {"clip bites": 0.3, "clip is loose": 1e6}

every_task = pytest.mark.parametrize("task", TASKS)
every_clip = pytest.mark.parametrize("clip", CLIPS.values(), ids=list(CLIPS))
every_momentum = pytest.mark.parametrize("momentum", [0.0, 0.6])
every_unit = pytest.mark.parametrize("unit", ["example", "client"])


def state_of(record: Round) -> plain.State:
    """A record's tensors under the names of the transcriptions."""
    found = {(side, layer): x.numpy() for layer, pair in record.adapter.items() for side, x in zip("AB", pair)}
    return found | {("head", name): x.numpy() for name, x in record.head.items()}


def compare(name: str, row: str, loop, *, momentum: float, privacy: Privacy | None, weights: str = "uniform") -> None:
    """Start ``loop`` where the run starts and assert that both end at the same place, up to 1e-6 of the way there."""
    task = TASKS[name]()
    plan = fl.Plan(rounds=ROUNDS, local_steps=STEPS, batch=None, lr=LR, momentum=momentum, weights=weights)
    records = play(task, row, privacy, plan)
    oracle = (
        plain.least_squares(task.model.map.weight.numpy())
        if name == "least squares"
        else plain.token_classifier(task.model)
    )
    clients = [[(x.numpy(), y.numpy()) for x, y in zip(*pair)] for pair in task.clients]
    start = state_of(records[0])
    end = loop(oracle, start, clients)
    for key, x in state_of(records[-1]).items():
        way = np.linalg.norm(end[key] - start[key])
        assert np.linalg.norm(x - end[key]) <= 1e-6 * way + 1e-14, key
        assert (way > 1e-6) == (key[0] != "A" or row != "ffa-lora"), key


def shares(task: str, weights: str) -> list[float]:
    sizes = TASKS[task]().sizes
    return [1 / len(sizes)] * len(sizes) if weights == "uniform" else [n / sum(sizes) for n in sizes]


# What moves in round t at each of the local steps, t from 0.
SCHEDULES = {
    "fedlora": lambda t: ["AB"] * STEPS,
    "ffa-lora": lambda t: ["B"] * STEPS,
    "rolora": lambda t: ["B" if t % 2 == 0 else "A"] * STEPS,
    "la-lora-unfiltered": lambda t: ["B" if s % 2 == 0 else "A" for s in range(STEPS)],
    "la-lora": lambda t: ["B" if s % 2 == 0 else "A" for s in range(STEPS)],
}


@every_task
@every_clip
@pytest.mark.parametrize("row", SCHEDULES)
@pytest.mark.parametrize(("momentum", "weights"), [(0.0, "uniform"), (0.6, "size")])
def test_averaged_methods(task, row, clip, momentum, weights):
    """FedAvg-LoRA, FFA-LoRA, RoLoRA, LA-LoRA with and without its filter; each example clipped over all that moves."""
    smooth = plain.low_pass if row == "la-lora" else None
    part = shares(task, weights)

    def loop(oracle, start, clients):
        return plain.averaged(oracle, start, clients, ROUNDS, SCHEDULES[row], LR, momentum, clip, part, smooth)

    compare(task, row, loop, momentum=momentum, privacy=private("example", sigma=0.0, clip=clip), weights=weights)


@every_task
@every_clip
@every_momentum
@every_unit
@pytest.mark.parametrize(("row", "sound"), [("deer", True), ("deer-literal", False)])
def test_deer(task, row, sound, clip, momentum, unit):
    """Both forms: clip in the space of the product, or of the factor as published; of examples, or of updates."""

    def loop(oracle, start, clients):
        return plain.deer(oracle, start, clients, ROUNDS, STEPS, LR, momentum, clip, unit, sound)

    compare(task, row, loop, momentum=momentum, privacy=private(unit, sigma=0.0, clip=clip))


@every_task
@every_clip
@every_momentum
@every_unit
def test_fedlpp(task, clip, momentum, unit):
    """Quantised down, full precision up, straight-through on the server."""

    def loop(oracle, start, clients):
        return plain.fedlpp(oracle, start, clients, ROUNDS, STEPS, LR, momentum, clip, unit)

    compare(task, "fedlpp", loop, momentum=momentum, privacy=private(unit, sigma=0.0, clip=clip))


def test_the_transcriptions_differ_from_each_other():
    """Agreement above is no accident: on this task no two methods end at the same place."""
    task, ends = tokens("head"), []
    for row in ("fedlora", "ffa-lora", "rolora", "deer", "la-lora", "la-lora-unfiltered", "fedlpp"):
        plan = fl.Plan(rounds=ROUNDS, local_steps=STEPS, batch=None, lr=LR)
        ends.append(play(task, row, private("example", sigma=0.0, clip=0.3), plan)[-1].adapter["inner"][1])
    for i, one in enumerate(ends):  # B, which starts at zero
        assert all((one - other).norm() > 1e-3 * one.norm() for other in ends[:i])
