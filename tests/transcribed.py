"""The six methods as plain loops over clients and examples, written from their descriptions alone.

NumPy, one example at a time, no noise. A state maps ("A" | "B" | "head", name) to an array; the gradient of one example
comes from an oracle. C is the clip norm of one example or, in the client unit, of one client's update.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.stats import norm
from small import LORA, Tokens

State = dict[tuple[str, str], np.ndarray]
Oracle = Callable[[State, np.ndarray, np.ndarray], State]
SCALE = LORA.alpha / LORA.rank


def least_squares(base: np.ndarray) -> Oracle:
    """Loss of an example: mean over outputs of (W x - y)^2 with W = W0 + s B A."""

    def gradient(state: State, x: np.ndarray, y: np.ndarray) -> State:
        a, b = state["A", "map"], state["B", "map"]
        w = base + SCALE * b @ a
        g = 2 / len(y) * np.outer(w @ x - y, x)
        return {("A", "map"): SCALE * b.T @ g, ("B", "map"): SCALE * g @ a.T}

    return gradient


def token_classifier(model: Tokens) -> Oracle:
    """Cross-entropy of the small token model, written with full matrices, by autograd."""
    fixed = {name: p.detach() for name, p in model.named_parameters()}

    def gradient(state: State, x: np.ndarray, y: np.ndarray) -> State:
        leaf = {key: torch.tensor(value, requires_grad=True) for key, value in state.items()}
        inner, outer = (fixed[f"{n}.weight"] + SCALE * leaf["B", n] @ leaf["A", n] for n in ("inner", "outer"))
        hidden = torch.tanh(torch.tensor(x) @ inner.T + fixed["inner.bias"])
        mixed = torch.tanh((hidden - 0.5 * hidden.flip(0)) @ outer.T + fixed["outer.bias"])
        weight = leaf.get(("head", "head.weight"), fixed["head.weight"])
        logits = weight @ mixed.mean(0) + leaf.get(("head", "head.bias"), fixed["head.bias"])
        (torch.logsumexp(logits, 0) - logits[int(y)]).backward()
        return {key: np.zeros(v.shape) if v.grad is None else v.grad.numpy() for key, v in leaf.items()}

    return gradient


def length(g: State, keys: list) -> float:
    return math.sqrt(sum((g[key] ** 2).sum() for key in keys))


def clipped_mean(oracle: Oracle, state: State, data: list, keys: list, clip: float, size: Callable = length) -> State:
    """Mean over the examples of the gradient of ``keys``, each example scaled to ``size`` at most ``clip``."""
    total = {key: np.zeros_like(state[key]) for key in keys}
    for x, y in data:
        g = oracle(state, x, y)
        factor = min(1.0, clip / max(size(g, keys), 1e-300))
        for key in keys:
            total[key] += g[key] * factor
    return {key: value / len(data) for key, value in total.items()}


def of(state: State, sides: str) -> list:
    """The keys of some factors; a trained head always moves."""
    return [key for key in state if key[0] in sides or key[0] == "head"]


def sgd(oracle, state, data, words, lr, momentum, clip, smooth=None, size=length) -> State:
    """Local steps of one client: one word a step says what moves."""
    state, speed = dict(state), {}
    for word in words:
        g = clipped_mean(oracle, state, data, of(state, word), clip, size)
        for key, value in g.items():
            if smooth is not None and key[0] != "head":
                value = smooth(value, key[0])
            speed[key] = momentum * speed.get(key, 0.0) + value
            state[key] = state[key] - lr * speed[key]
    return state


def mean(states: list[State], weights: list[float]) -> State:
    return {key: np.sum([w * state[key] for w, state in zip(weights, states)], axis=0) for key in states[0]}


def averaged(oracle, state, clients, rounds, words, lr, momentum, clip, weights, smooth=None) -> State:
    """FedAvg-LoRA, FFA-LoRA, RoLoRA, LA-LoRA: local DP-SGD on what moves, then the mean of the factors."""
    for t in range(rounds):
        ends = [sgd(oracle, state, data, words(t), lr, momentum, clip, smooth) for data in clients]
        state = mean(ends, weights)
    return state


def low_pass(g: np.ndarray, side: str) -> np.ndarray:
    """[1, 4, 6, 4, 1] / 16 along the long axis of the factor, padded by 2 with its mirror image."""
    long = g if side == "A" else g.T
    padded = np.pad(long, ((0, 0), (2, 2)), mode="symmetric")
    rows = [np.convolve(row, np.array([1, 4, 6, 4, 1]) / 16, mode="valid") for row in padded]
    return np.array(rows) if side == "A" else np.array(rows).T


def in_product(peers: State) -> Callable:
    """||g_B A||_F or ||B g_A||_F over all layers together, plus the head."""

    def size(g: State, keys: list) -> float:
        squares = 0.0
        for side, name in keys:
            x = g[side, name]
            if side == "B":
                x = x @ peers["A", name]
            elif side == "A":
                x = peers["B", name] @ x
            squares += (x**2).sum()
        return math.sqrt(squares)

    return size


def deer(oracle, state, clients, phases, steps, lr, momentum, clip, unit, sound=True) -> State:
    """Two phases in turn, B first, each with its own broadcast, local steps and mean.

    The clip is in the space of the product (sound) or on the factor as published; of examples or of clients' updates.
    """
    for t in range(phases):
        side, ends = "BA"[t % 2], []
        size = in_product(state) if sound else length
        for data in clients:
            if unit == "example":
                ends.append(sgd(oracle, state, data, [side] * steps, lr, momentum, clip, size=size))
                continue
            end, keys = sgd(oracle, state, data, [side] * steps, lr, momentum, math.inf), of(state, side)
            change = {key: end[key] - state[key] for key in keys}
            factor = min(1.0, clip / max(size(change, keys), 1e-300))
            ends.append({key: state[key] + factor * change.get(key, 0.0) for key in state})
        state = mean(ends, [1 / len(clients)] * len(clients))
    return state


def levels(width: int) -> np.ndarray:
    """Quantiles of the normal law on both sides of zero, scaled to [-1, 1]."""
    offset, half = 0.9677083, 2 ** (width - 1)
    positive = norm.ppf(np.linspace(offset, 0.5, half + 1)[:-1])
    negative = -norm.ppf(np.linspace(offset, 0.5, half)[:-1])
    every = np.sort(np.concatenate([negative, [0.0], positive]))
    return every / every.max()


def quantised(x: np.ndarray, width: int, block: int) -> np.ndarray:
    """Block by block: divide by the largest magnitude, take the nearest level, multiply back."""
    flat, v, out = x.ravel(), levels(width), []
    for i in range(0, len(flat), block):
        part = flat[i : i + block]
        c = abs(part).max() or 1e-8
        out.append(v[abs(part[:, None] / c - v).argmin(1)] * c)
    return np.concatenate(out).reshape(x.shape)


def fedlpp(oracle, state, clients, rounds, steps, lr, momentum, clip, unit, width=4, block=64) -> State:
    """Clients receive a quantised adapter; the server adds the mean change of what they received to its own."""
    for _ in range(rounds):
        sent = {key: x if key[0] == "head" else quantised(x, width, block) for key, x in state.items()}
        changes = []
        for data in clients:
            end = sgd(oracle, sent, data, ["AB"] * steps, lr, momentum, clip if unit == "example" else math.inf)
            change = {key: end[key] - sent[key] for key in sent}
            factor = 1.0 if unit == "example" else min(1.0, clip / max(length(change, list(change)), 1e-300))
            changes.append({key: factor * x for key, x in change.items()})
        state = {key: x + sum(change[key] for change in changes) / len(clients) for key, x in state.items()}
    return state
