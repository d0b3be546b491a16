"""Runs of the library against plain loops written from the papers (`reference_methods`)."""

import itertools
import math
from collections.abc import Callable
from functools import partial
from itertools import count, pairwise
from typing import Any, NamedTuple

import numpy as np
import pytest
import reference_methods as plain
import torch
from reference_methods import Loop, together
from scipy.stats import binomtest, kstest
from toy_tasks import APART, LORA, private, somewhere, tokens

import fedlora_lab as fl
from fedlora_lab._utils.random_streams import Streams
from fedlora_lab.federated.make_config import make_config
from fedlora_lab.federated.records import Round
from fedlora_lab.federated.run import Run
from fedlora_lab.methods.state import ParamKey, ServerState

slow = pytest.mark.slow
TASK = tokens("head")
NAMES = ("A", "B", "R", "gain", "W", "head")
SETTINGS = {  # momentum, weights, unit
    "plain by size": (0.0, "size", "example"),
    "momentum": (0.6, "uniform", "example"),
    "client unit": (0.4, "uniform", "client"),
}
CLIPS = (0.3, 1e6)


class Trace(NamedTuple):
    """A run of the library: records, tensors of server and clients after each; a loop's work."""

    records: list[Round]
    states: list[ServerState]
    personal: list[dict[ParamKey, torch.Tensor]]
    oracle: plain.Oracle
    clients: list
    work: plain.Work

    @property
    def start(self):
        return state_of(self.states[0])


def state_of(server):
    """The server's tensors under the names of the transcriptions, W in units of the weight."""
    return {
        (key.name, key.layer): plain.SCALE * x.numpy() if key.name == "W" else x.numpy()
        for key, x in server.tensors.items()
        if key.name in NAMES
    }


def follow(
    row,
    clip,
    setting,
    *,
    rounds=3,
    scattered=False,
):
    """Play a run without noise, without a clip also without privacy, and keep everything."""
    momentum, weights, unit = SETTINGS[setting]
    privacy = None if clip == math.inf else private(unit, sigma=0.0, clip=clip, trust="local")
    optimizer = fl.SGD(momentum)
    plan = fl.Plan(
        rounds, local_steps=2, batch=None, lr=0.5, client_weights=weights, optimizer=optimizer
    )
    run = Run.open(make_config(TASK, VARIANTS.get(row, row), privacy, plan, LORA, 0))
    if scattered:  # random numbers in all that clients train and in what is added to the base
        server = run.state.server
        shapes = {key: x.shape for key, x in server.tensors.items() if key.name in NAMES}
        run.state.server = server.replace_tensors(somewhere(shapes))
    oracle = plain.gradients(plain.token_classifier(TASK.model))
    sizes = TASK.sizes if weights == "size" else [1] * len(TASK.sizes)
    clients = [[(x.numpy(), y.numpy()) for x, y in zip(*pair)] for pair in TASK.clients]
    unit = "example" if privacy is None else unit
    work = plain.Work(rounds, 2, 0.5, momentum, clip, [n / sum(sizes) for n in sizes], unit)
    trace = Trace([], [], [], oracle, clients, work)
    for record in run.records():
        trace.records.append(record)
        trace.states.append(run.state.server)
        trace.personal.append(dict(run.state.personal))
    return trace


def agree(found, end, start):
    """Both went to the same place, up to 1e-6 of the way."""
    for key, x in end.items():
        way = np.linalg.norm(x - start.get(key, 0.0))
        gap = np.linalg.norm(found.get(key, np.zeros_like(x)) - x)
        assert gap <= 1e-6 * way + 1e-14, f"{key}: {gap / max(way, 1e-300):.1e} of the way"
    assert all(key in end or not x.any() for key, x in found.items()), "the library holds more"


def changes_of(state):
    """The weights' changes and the head: singular vectors are known up to their signs."""
    changes = {("W", name): plain.change(state, name).numpy() for name in plain.layers(state)}
    return changes | {key: x for key, x in state.items() if key[0] == "head"}


def fresh(run):
    """The A that the library drew in each round: public randomness."""
    states = (state_of(server) for server in run.states[1:])
    return iter([{key: x for key, x in state.items() if key[0] == "A"} for state in states])


def sketches(run):
    """The library's own Omega of every round, of the width of the rank."""
    for server in run.states[:-1]:
        factors = server.named("A").items()
        yield {name: server.random(name).standard_normal(a.T.shape) for name, a in factors}


def measured(run):
    """Fed-ZO along the library's own directions: public random numbers, made orthogonal here."""
    row: Any = fl.methods.FedZO.differences
    size = sum(x.size for x in run.start.values())

    def directions(t, s):
        drawn = Streams(0).numpy("directions", t, s).standard_normal((size, row.directions))
        return np.linalg.qr(drawn)[0].T * math.sqrt(size / row.directions)

    loss = plain.token_classifier(TASK.model)
    return Loop(AB, plain.plain_mean, measured=plain.Measured(loss, directions, row.step))


VARIANTS = {
    "fedask-both": fl.methods.FedASK.replace(schedule=fl.Cycle(("AB",)), exact=False),
    "dp-lora": APART,
}
AB = together("AB")
B = together("B")
TURNS = together("B", "A")
LOOPS: dict[str, Loop | Callable[[Trace], Loop]] = {
    "fedlora": Loop(AB, plain.plain_mean),
    "ffa-lora": Loop(B, plain.plain_mean),
    "rolora": Loop(TURNS, plain.plain_mean),
    "la-lora": Loop(together("B A"), plain.plain_mean, filter=plain.low_pass),
    "la-lora-unfiltered": Loop(together("B A"), plain.plain_mean),
    "deer": Loop(TURNS, plain.plain_mean, size=plain.in_product),
    "deer-literal": Loop(TURNS, plain.plain_mean, sends=plain.each_tensor),
    "fed-zo": measured,
    "prism": Loop(AB, plain.prism, direction=plain.tangent_gradient),
    "fedlpp": Loop(AB, plain.straight_through, receives=plain.quantised),
    "fedex-lora": Loop(AB, plain.fedex),
    "flora": lambda run: Loop(AB, plain.flora(fresh(run))),
    "fed-rac-lora": lambda run: Loop(B, plain.flora(fresh(run))),
    "fedmomentum": Loop(AB, plain.momentum),
    "fedrot-lora": lambda run: Loop(AB, plain.rotated(count(run.states[0].round))),
    "fedrpca": Loop(AB, plain.fedrpca),
    "flexlora": Loop(AB, plain.flexlora),
    "fedpower": Loop(AB, plain.fedpower),
    "fedsvd": Loop(B, plain.flexlora),
    "fedgsa": Loop(B, plain.fedgsa),
    "fedask": lambda run: Loop(B, plain.fedask(sketches(run))),
    "fedask-both": lambda run: Loop(AB, plain.fedask(sketches(run))),
    "hetlora": Loop(AB, plain.hetlora),
    "lora-fair": Loop(AB, plain.lora_fair),
    "fed-sb": Loop(together("R"), plain.plain_mean),
    "ravan": Loop(together("R"), plain.ravan),
    "dp-lora": Loop(plain.apart, plain.plain_mean),
}
UP_TO_SIGNS = {"prism", "fedmomentum", "flexlora", "fedsvd", "fedgsa", "fedask", "fedask-both"}
UP_TO_SIGNS |= {"fedpower"}
UNITS = {"dp-lora": "example", "deer-literal": "client"}
UNITS |= {"prism": "example"}  # as published: of an update only the move along the tangent is sent
UNITS |= {"ravan": "example"}  # nothing of so small cores' round reaches the clip


def cases(rows):
    """Each row in each setting that is of its unit, the clips taking turns."""
    pairs = itertools.product(rows, SETTINGS)
    ours = [(row, s) for row, s in pairs if UNITS.get(row, SETTINGS[s][2]) == SETTINGS[s][2]]
    return [(*pair, clip) for pair, clip in zip(ours, itertools.cycle(CLIPS))]


def follows(run, row, loop, **changes):
    """After every round the library's server stands where the loop does.

    Args: loop: or what makes it of the run, whose random numbers it needs. changes: of the loop.
    """
    loop = (loop if isinstance(loop, Loop) else loop(run))._replace(**changes)
    start = run.start
    states, _ = plain.federated(run.oracle, start, run.clients, run.work, loop)
    seen = changes_of if row in UP_TO_SIGNS else dict
    for server, end in zip(run.states, states, strict=True):
        agree(seen(state_of(server)), seen(end), seen(start))
    assert run.work.clip == math.inf or (run.records[-1].clipped > 0) == (run.work.clip < 1)
    for name in plain.layers(start):
        moved = plain.change(states[-1], name) - plain.change(start, name)
        assert moved.norm() > 1e-3, "nothing was trained"


@slow
@pytest.mark.every(2)
@pytest.mark.parametrize(("row", "setting", "clip"), cases(LOOPS))
def test_methods_with_one_state_for_all_equal_their_loops(row, setting, clip):
    follows(follow(row, clip, setting), row, LOOPS[row])


@pytest.mark.parametrize("row", LOOPS)
def test_one_round_from_nonzero_tensors_equals_the_loop(row):
    """One round by size and without a clip, from tensors of which none is zero."""
    run = follow(row, math.inf, "plain by size", rounds=1, scattered=True)
    follows(run, row, LOOPS[row], sends=None)


@pytest.mark.parametrize("row", ["deer", "prism"])
def test_one_round_is_clipped_in_the_product(row):
    """Fault: maps in the other order, which change nothing without a clip."""
    run = follow(row, 0.3, "plain by size", rounds=1, scattered=True)
    follows(run, row, LOOPS[row])


@pytest.mark.parametrize(("row", "setting", "clip"), cases(("fedsa-lora",)))
def test_methods_that_keep_factors_equal_their_loops(row, setting, clip):
    """What is sent ends where the loop has it, and what is kept with every client."""
    run = follow(row, clip, setting)
    server, own = plain.personal(run.oracle, run.start, run.clients, run.work)
    agree(state_of(run.states[-1]), server, run.start)
    kept = run.personal[-1]
    assert {key.name for key in kept} == {"B"}
    for k, expected in enumerate(own):
        found = {(key.name, key.layer): x[k].numpy() for key, x in kept.items()}
        agree(found, {key: expected[key] for key in found}, {})


def test_deer_literal_clips_each_tensor_of_an_example_to_c():
    """In the client unit its loop is among the others. A loop of four parts clips each to C / 2."""

    def parts(state, t, s):
        return [[key] for keys in TURNS(state, t, s) for key in keys]

    run = follow("deer-literal", 0.3, "momentum")
    run = run._replace(work=run.work._replace(clip=0.6))
    follows(run, "deer-literal", Loop(parts, plain.plain_mean))


@slow
def test_flora_draws_a_new_factor_each_round():
    """The A of every round and layer is another one, with entries uniform in +-1 / sqrt(d_in)."""
    run = follow("flora", 0.0, "plain by size", rounds=20)
    drawn = [a * math.sqrt(a.shape[1]) for state in fresh(run) for a in state.values()]
    entries = np.concatenate([a.ravel() for a in drawn])
    assert len(np.unique(entries)) == len(entries)
    assert kstest(entries, "uniform", args=(-1, 2)).pvalue > 1e-3


# ---- AS-LoRA: training with given modes, scores, and how modes are drawn


def modes_of(server):
    """Layer -> what moves in the round to come."""
    return {name: "BA"[int(mode)] for name, mode in server.named("mode").items()}


@pytest.mark.parametrize(("setting", "clip"), [("plain by size", 1e6), ("client unit", 0.3)])
def test_modes_train_and_score(setting, clip):
    """With the library's modes the loop ends where it does, and its scores are running means."""
    run = follow("as-lora", clip, setting, rounds=8)
    score = {}
    modes = [modes_of(server) for server in run.states[:-1]]

    def parts(state, t, s):
        return [[(side, name) for name, side in modes[t].items()] + plain.of(state, "")]

    loop = Loop(parts, plain.plain_mean)
    states, ends = plain.federated(run.oracle, run.start, run.clients, run.work, loop)
    rounds = zip(pairwise(states), modes, ends, run.states[1:], strict=True)
    for (before, end), mode, arrived, server in rounds:
        agree(state_of(server), end, run.start)
        for name, side in mode.items():
            new = plain.agreement([one[side, name] - before[side, name] for one in arrived])
            old = score.get((side, name))
            score[side, name] = new if old is None else 0.9 * old + 0.1 * new
            for each in "AB":
                found = float(server.tensors[ParamKey(f"score {each}", name)])
                expected = score.get((each, name), math.nan)
                assert found == pytest.approx(expected, rel=1e-6, abs=1e-18, nan_ok=True)
    assert max(score.values()) > 0


def test_layers_take_turns_in_the_warm_up():
    """All B first, in the first tenth of the rounds."""
    run = follow("as-lora", math.inf, "plain by size", rounds=25)
    assert [set(modes_of(server).values()) for server in run.states[:3]] == [{"B"}, {"A"}, {"B"}]


def drawn(a, b, step, t):
    """How many of 1000 equal layers with these scores choose A after round t, in which B moved by
    ``step``.
    """
    number = partial(torch.tensor, dtype=torch.float64)
    values = {"A": [[0.0]], "B": [[0.0]], "score A": a, "score B": b, "mode": 0.0}
    layers = [f"layer{i}" for i in range(1000)]
    tensors = {ParamKey(side, x): number(values[side]) for x in layers for side in values}
    state = ServerState(tensors, round=t, planned=20, streams=Streams(0))
    uploads = {ParamKey("B", x): number([[[step]], [[step]]]) for x in layers}
    after = fl.methods.get("as-lora").aggregate(state, state, uploads, number([0.5, 0.5]))
    return int(sum(after.named("mode").values()))


@pytest.mark.parametrize(("a", "b", "t"), [(0.3, 0.1, 2), (1e-8, 3e-8, 21), (0.1, 0.12, 80)])
def test_modes_follow_the_sigmoid(a, b, t):
    """Over many layers A is chosen as often as its probability says."""
    count = drawn(a, b, math.sqrt(b), t)  # which leaves the score of B: 0.9 b + 0.1 b
    # The round to come is number t + 2; two of the 20 planned ones are the warm-up.
    assert binomtest(count, 1000, plain.chance_of_a(a, b, t + 2 - 2)).pvalue > 1e-3
    assert drawn(math.nan, b, 1.0, t) == 1000  # a factor without a score is first
