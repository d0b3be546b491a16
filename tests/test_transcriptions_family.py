"""Runs of the wider family of methods against plain loops (`transcribed_family`, `transcribed_servers`)."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pytest
import torch
import transcribed as plain
import transcribed_family as family
import transcribed_servers as servers
from scipy.stats import kstest
from traced import RANKS, TASKS, WIDE, Trace, agree, follow, open_run, scattered, signed, state_of

import fedlora_lab as fl
from fedlora_lab.method import Slot

every_task = pytest.mark.parametrize("task", TASKS)
every_clip = pytest.mark.parametrize("clip", [0.3, 1e6], ids=["clip bites", "clip is loose"])
SETTINGS = {  # momentum, weights, unit
    "plain by size": (0.0, "size", "example"),
    "momentum": (0.6, "uniform", "example"),
    "client unit": (0.4, "uniform", "client"),
}
every_setting = pytest.mark.parametrize("setting", SETTINGS)


def fresh(run: Trace) -> Iterator[plain.State]:
    """The A that the library drew in each round: public randomness."""
    return iter([{key: x for key, x in state_of(server).items() if key[0] == "A"} for server in run.states[1:]])


def sketches(run: Trace) -> Iterator[dict[str, np.ndarray]]:
    """The library's own Omega of every round, of the width of the rank."""
    for server in run.states[:-1]:
        shapes = {name: a.shape[::-1] for name, a in server.side("A").items()}
        yield {n: server.random(n).standard_normal(s) for n, s in shapes.items()}


def others(run: Trace, wider: int = 1) -> Iterator[dict[str, np.ndarray]]:
    """Some other Omega: where a sketch is as wide as the mean product's rank the result does not depend on it."""
    random = np.random.default_rng(0)
    for server in run.states[:-1]:
        yield {name: random.normal(size=(a.shape[1], wider * len(a))) for name, a in server.side("A").items()}


class Loop(NamedTuple):
    """How a row is transcribed: what moves and is clipped together, what the server does, what a client sends."""

    parts: Callable[[plain.State], list[family.Keys]]
    server: Callable[[Trace], servers.Rule]
    sends: Callable = family.update
    units: tuple[str, ...] = ("example", "client")
    up_to_signs: bool = False


AB, B, R = family.together("AB"), family.together("B"), family.together("R")
LOOPS = {
    "fedex-lora": Loop(AB, lambda run: servers.fedex),
    "flora": Loop(AB, lambda run: servers.flora(fresh(run))),
    "flexlora": Loop(AB, lambda run: servers.flexlora, up_to_signs=True),
    "fedsvd": Loop(B, lambda run: servers.fedsvd, up_to_signs=True),
    "fedask": Loop(B, lambda run: servers.fedask(others(run)), up_to_signs=True),
    "fedask-both": Loop(AB, lambda run: servers.fedask(sketches(run)), up_to_signs=True),
    "fedask-wide": Loop(AB, lambda run: servers.fedask(others(run, len(run.clients))), up_to_signs=True),
    "hetlora": Loop(AB, lambda run: servers.hetlora),
    "lora-fair": Loop(AB, lambda run: servers.lora_fair),
    "fed-sb": Loop(R, lambda run: servers.plain_mean),
    "dp-lora": Loop(family.apart, lambda run: servers.plain_mean, units=("example",)),
    "dp-fedlora": Loop(AB, lambda run: servers.plain_mean, family.weights_themselves, ("client",)),
}
UNEQUAL = {row: LOOPS[row] for row in ("flora", "flexlora", "hetlora")}
UNEQUAL["fedlora"] = Loop(AB, lambda run: servers.padded_changes)
CASES = [(row, setting) for row, loop in LOOPS.items() for setting in SETTINGS if SETTINGS[setting][2] in loop.units]


def follows(run: Trace, loop: Loop, start: plain.State, ranks: tuple[int, ...] | None = None) -> None:
    """After every round the library's server stands where the loop does."""
    states = family.federated(run.oracle, start, run.clients, run.work, loop.server(run), loop.parts, ranks, loop.sends)
    for server, end in zip(run.states, states, strict=True):
        found = state_of(server)
        agree(signed(found, end) if loop.up_to_signs else found, end, start)
    assert run.work.clip == math.inf or (run.records[-1].clipped > 0) == (run.work.clip < 1)
    for name in family.layers(start):
        before, after = (family.weight_change(state, name) for state in (start, states[-1]))
        assert np.linalg.norm(after - before) > 1e-3, "nothing was trained"


@every_task
@every_clip
@pytest.mark.parametrize(("row", "setting"), CASES)
def test_server_rules(task, row, clip, setting):
    """Every method with one state for all: the same tensors after every round."""
    run = follow(open_run(TASKS[task](), row, clip, SETTINGS[setting]))
    follows(run, LOOPS[row], run.start)


@every_task
@every_clip
@every_setting
@pytest.mark.parametrize("row", UNEQUAL)
def test_unequal_ranks(task, row, clip, setting):
    """Client k trains the first r_k ranks."""
    lora = fl.Lora(**WIDE, ranks=RANKS)
    run = follow(open_run(TASKS[task](), row, clip, SETTINGS[setting], lora))
    follows(run, UNEQUAL[row], run.start, RANKS)


@every_task
@pytest.mark.parametrize("row", LOOPS)
def test_one_round_from_anywhere(task, row):
    """The server's rule alone: one round by size and without a clip, from tensors of which none is zero."""
    loop = LOOPS[row] if row != "dp-fedlora" else Loop(AB, LOOPS[row].server)
    run = follow(scattered(open_run(TASKS[task](), row, math.inf, SETTINGS["plain by size"], rounds=1)))
    follows(run, loop, run.start)


# Ranks of A and of B, out of three, that are sent; the others stay with their client.
SENT = {"fedsa-lora": {"A": 3, "B": 0}, "sdflora": {"A": 2, "B": 2}}


@every_task
@every_clip
@every_setting
@pytest.mark.parametrize("row", SENT)
def test_kept_ranks(task, row, clip, setting):
    """What is sent ends on the server where the loop has it, and what is kept with every client; the rest stays put."""
    run = follow(open_run(TASKS[task](), row, clip, SETTINGS[setting], fl.Lora(**WIDE)))
    server, own = family.personal(run.oracle, run.start, run.clients, run.work, SENT[row])
    agree(state_of(run.states[-1]), server, run.start)
    for k, kept in enumerate(own):
        theirs = {key: run.personal[-1][Slot(*key)][k].numpy() for key, x in kept.items() if x.size}
        assert len(theirs) == len(run.personal[-1]), "other factors are kept"
        lasts = {
            key: x[-len(kept[key]) :] if key[0] == "A" else x[:, -kept[key].shape[1] :] for key, x in theirs.items()
        }
        agree(lasts, {key: kept[key] for key in theirs}, {})


@pytest.mark.parametrize("row", LOOPS)
def test_the_weight_is_that_of_the_factors(row):
    """What the library computes with a state is W0 + W + s B R A: outputs of a linear layer at unit vectors."""
    task = TASKS["least squares"]()
    run = follow(open_run(task, row, math.inf, SETTINGS["plain by size"]))
    base = task.model.map.weight
    for record, server in zip(run.records, run.states, strict=True):
        found = fl.predict(task, record, torch.eye(base.shape[1], dtype=torch.float64)).T - base
        torch.testing.assert_close(found.numpy(), family.weight_change(state_of(server), "map"), rtol=1e-9, atol=1e-12)


def test_flora_draws_a_new_factor_each_round():
    """The A of every round and layer is another one, with entries uniform in +-1 / sqrt(d_in)."""
    run = follow(open_run(TASKS["tokens with head"](), "flora", 0.0, SETTINGS["plain by size"], rounds=40))
    drawn = [a * math.sqrt(a.shape[1]) for state in fresh(run) for a in state.values()]
    entries = np.concatenate([a.ravel() for a in drawn])
    assert len(np.unique(entries)) == len(entries)
    assert kstest(entries, "uniform", args=(-1, 2)).pvalue > 1e-3


@pytest.mark.parametrize("trust", ["secagg", "central"])
def test_dp_fedlora_of_a_sum(trust):
    """Where the server sees a sum only, it is that of the clipped weights too."""
    run = follow(open_run(TASKS["tokens with head"](), "dp-fedlora", 0.3, SETTINGS["client unit"], trust=trust))
    follows(run, LOOPS["dp-fedlora"], run.start)


def test_hetlora_of_no_products():
    """Where every client's product is zero the shares alone count."""
    run = follow(open_run(TASKS["tokens with head"](), "hetlora", 0.0, SETTINGS["plain by size"], fl.Lora(**WIDE)))
    agree(state_of(run.states[-1]), run.start, run.start)


def test_the_transcriptions_differ_from_each_other():
    """Agreement above is no accident: no two methods end at the same weight."""
    task, ends = TASKS["tokens with head"](), {}
    for row in LOOPS:
        server = state_of(follow(open_run(task, row, 0.3, (0.0, "uniform", LOOPS[row].units[0]))).states[-1])
        ends[row] = family.weight_change(server, "inner")
    for row, one in ends.items():
        for other in ends.keys() - {row}:
            assert np.linalg.norm(one - ends[other]) > 1e-5 * np.linalg.norm(one), f"{row} and {other}"
