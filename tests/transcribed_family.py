"""The wider family of federated LoRA methods as plain loops, written from their descriptions alone.

As in `transcribed`: NumPy, one example at a time, no noise. Beside the factors and the head a state may hold
("W", layer), the change of the layer's base weight, and ("R", layer), a square matrix between the factors:
the layer's weight is W0 + W + s B R A.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from transcribed import SCALE, Oracle, State, clipped_mean, length, mean, of

Keys = list[tuple[str, str]]
Rule = Callable[[State, list[State], Sequence[float]], State]


class Work(NamedTuple):
    """Local work and clip; ``weights`` are the clients' shares p_k."""

    rounds: int
    steps: int
    lr: float
    momentum: float
    clip: float
    weights: list[float]
    unit: str = "example"


def layers(state: State) -> list[str]:
    return [name for side, name in state if side == "A"]


def whole(oracle: Oracle) -> Oracle:
    """The oracle of states that hold W and R too.

    With A = I and B = X / s an oracle of the factors stands at the weight W0 + X and returns s G there, G the gradient
    in the weight; every other gradient follows from G by the chain rule.
    """

    def gradient(state: State, x: np.ndarray, y: np.ndarray) -> State:
        point = {key: value for key, value in state.items() if key[0] == "head"}
        for name in layers(state):
            change = weight_change(state, name)
            point["A", name], point["B", name] = np.eye(change.shape[1]), change / SCALE
        found = oracle(point, x, y)
        for name in layers(state):
            a, b, r = state["A", name], state["B", name], inner(state, name)
            g = found["B", name] / SCALE
            found["A", name] = SCALE * (b @ r).T @ g
            found["B", name] = SCALE * g @ (r @ a).T
            found["R", name] = SCALE * b.T @ g @ a.T
        return found

    return gradient


def inner(state: State, name: str) -> np.ndarray:
    return state.get(("R", name), np.eye(len(state["A", name])))


def product(state: State, name: str) -> np.ndarray:
    return state["B", name] @ inner(state, name) @ state["A", name]


def weight_change(state: State, name: str) -> np.ndarray:
    """The layer's weight minus W0."""
    return state.get(("W", name), 0.0) + SCALE * product(state, name)


def local(oracle: Oracle, state: State, data: list, parts: list[Keys], work: Work) -> State:
    """Local steps of one client; an example's gradient is clipped part by part, each to C / sqrt(parts)."""
    clip = work.clip if work.unit == "example" else math.inf
    state, speed = dict(state), {}
    for _ in range(work.steps):
        g = {}
        for keys in parts:
            g |= clipped_mean(oracle, state, data, keys, clip / math.sqrt(len(parts)))
        for key, value in g.items():
            speed[key] = work.momentum * speed.get(key, 0.0) + value
            state[key] = state[key] - work.lr * speed[key]
    return state


def update(start: State, end: State, keys: Keys, work: Work) -> State:
    """What a client sends: its end; in the client unit its start and the change, clipped over all keys together."""
    if work.unit == "example":
        return end
    change = {key: end[key] - start[key] for key in keys}
    factor = min(1.0, work.clip / max(length(change, keys), 1e-300))
    return end | {key: start[key] + factor * change[key] for key in keys}


def weights_themselves(start: State, end: State, keys: Keys, work: Work) -> State:
    """DP-FedLoRA: each tensor itself, not its change, is scaled to a norm of at most C / sqrt(tensors)."""
    limit, sent = work.clip / math.sqrt(len(keys)), dict(end)
    for key in keys:
        sent[key] = end[key] * min(1.0, limit / max(np.sqrt((end[key] ** 2).sum()), 1e-300))
    return sent


def together(sides: str) -> Callable[[State], list[Keys]]:
    """All that moves is clipped as one."""
    return lambda state: [of(state, sides)]


def apart(state: State) -> list[Keys]:
    """DP-LoRA: all A, all B, and a head, are clipped each on their own."""
    parts = [[key for key in state if key[0] == side] for side in ("A", "B", "head")]
    return [keys for keys in parts if keys]


def cut(state: State, rank: int) -> State:
    """The first ranks of every layer."""
    first = {("A", n): state["A", n][:rank] for n in layers(state)}
    return state | first | {("B", n): state["B", n][:, :rank] for n in layers(state)}


def federated(
    oracle: Oracle,
    state: State,
    clients: list,
    work: Work,
    server: Rule,
    parts: Callable[[State], list[Keys]],
    ranks: Sequence[int] | None = None,
    sends: Callable[[State, State, Keys, Work], State] = update,
) -> list[State]:
    """The state before training and after every round. Client k trains its first ``ranks[k]`` ranks, or all."""
    states, gradient = [state], whole(oracle)
    for _ in range(work.rounds):
        ends, moving = [], parts(state)
        keys = [key for part in moving for key in part]
        for k, data in enumerate(clients):
            start = state if ranks is None else cut(state, ranks[k])
            end = local(gradient, start, data, moving, work)
            ends.append(sends(start, end, keys, work))
        state = server(state, ends, work.weights)
        states.append(state)
    return states


def personal(
    oracle: Oracle, state: State, clients: list, work: Work, shared: dict[str, int]
) -> tuple[State, list[State]]:
    """FedSA-LoRA and SDFLoRA: of every factor the first ``shared[side]`` ranks are sent and averaged.

    Returns what the server holds, the other ranks as they were, and for each client the ranks that it kept.
    """

    def split(s: State, key: tuple[str, str]) -> list[np.ndarray]:
        axis = "AB".index(key[0])
        return np.split(s[key], [shared[key[0]]], axis)

    def joined(fronts: State, backs: State) -> State:
        both = {key: np.concatenate([fronts[key], x], "AB".index(key[0])) for key, x in backs.items()}
        return fronts | both

    def fronts(s: State) -> State:
        return {key: x if key[0] == "head" else split(s, key)[0] for key, x in s.items()}

    keys, gradient = of(state, "AB"), whole(oracle)
    still = {key: split(state, key)[1] for key in keys if key[0] != "head"}
    server, own = fronts(state), [still for _ in clients]
    for _ in range(work.rounds):
        sent = []
        for k, data in enumerate(clients):
            end = local(gradient, joined(server, own[k]), data, [keys], work)
            own[k] = {key: split(end, key)[1] for key in still}
            sent.append(update(server, fronts(end), keys, work))
        server = mean(sent, work.weights)
    return joined(server, still), own


def agreement(changes: list[np.ndarray]) -> float:
    """Mean inner product of two different clients' changes, at least 0."""
    pairs = [(x * y).sum() for j, x in enumerate(changes) for k, y in enumerate(changes) if j != k]
    return max(0.0, float(np.mean(pairs)))


def as_lora(
    oracle: Oracle, state: State, clients: list, work: Work, modes: list[dict[str, str]]
) -> tuple[list[State], list[list[State]]]:
    """AS-LoRA with given modes, layer -> "A" or "B" for each round: the states, and each round's clients' ends."""
    states, ends = [state], []

    def server(state: State, arrived: list[State], weights: Sequence[float]) -> State:
        ends.append(arrived)
        return mean(arrived, list(weights))

    for mode in modes:
        moving = [(side, name) for name, side in mode.items()] + [key for key in state if key[0] == "head"]
        states += federated(
            oracle, states[-1], clients, work._replace(rounds=1), server, lambda state, moving=moving: [moving]
        )[1:]
    return states, ends


def chance_of_a(score_a: float, score_b: float, past: int) -> float:
    """AS-LoRA: how likely a layer moves A, ``past`` rounds after the last one of the warm-up."""
    d = (score_a - score_b) / (abs(score_a) + abs(score_b) + 1e-8)
    return 1 / (1 + math.exp(-d / max(0.1, 0.95**past)))
