"""What the servers of the wider family do with the clients' factors, written from the methods' descriptions alone.

A rule takes the state before the round, the clients' ends and their shares p_k; see `transcribed_family` for states.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from transcribed import SCALE, State, mean
from transcribed_family import Rule, layers, product


def heads(ends: list[State], weights: Sequence[float]) -> State:
    return mean([{key: end[key] for key in end if key[0] == "head"} for end in ends], list(weights))


def mean_product(ends: list[State], weights: Sequence[float], name: str) -> np.ndarray:
    return np.sum([w * product(end, name) for w, end in zip(weights, ends)], axis=0)


def plain_mean(state: State, ends: list[State], weights: Sequence[float]) -> State:
    """DP-LoRA, DP-FedLoRA, Fed-SB, AS-LoRA: the mean of everything."""
    return mean(ends, list(weights))


def fedex(state: State, ends: list[State], weights: Sequence[float]) -> State:
    """FedEx-LoRA: means of the factors; what their product misses goes into the base weight."""
    new = mean(ends, list(weights))
    for name in layers(state):
        missing = mean_product(ends, weights, name) - product(new, name)
        new["W", name] = state.get(("W", name), 0.0) + SCALE * missing
    return new


def flora(fresh: Iterator[State]) -> Rule:
    """FLoRA: stacked factors are merged into the base weight; then B = 0 and A is drawn afresh."""

    def server(state: State, ends: list[State], weights: Sequence[float]) -> State:
        new = heads(ends, weights) | next(fresh)
        for name in layers(state):
            rows = np.concatenate([w * end["A", name] for w, end in zip(weights, ends)])
            columns = np.concatenate([end["B", name] for end in ends], axis=1)
            new["W", name] = state.get(("W", name), 0.0) + SCALE * columns @ rows
            new["B", name] = np.zeros_like(state["B", name])
        return new

    return server


def flexlora(state: State, ends: list[State], weights: Sequence[float]) -> State:
    """FlexLoRA: the mean of the products, by SVD cut to the server's rank."""
    new = heads(ends, weights)
    for name in layers(state):
        r = len(state["A", name])
        u, s, vt = np.linalg.svd(mean_product(ends, weights, name))
        new["A", name], new["B", name] = vt[:r], u[:, :r] @ np.diag(s[:r])
    return new


def fedsvd(state: State, ends: list[State], weights: Sequence[float]) -> State:
    """FedSVD: the mean of B; then the product is factored anew, A with orthonormal rows."""
    new = heads(ends, weights)
    for name in layers(state):
        a, b = state["A", name], state["B", name]
        b = b + np.sum([w * (end["B", name] - b) for w, end in zip(weights, ends)], axis=0)
        u, s, vt = np.linalg.svd(b @ a, full_matrices=False)
        new["A", name], new["B", name] = vt[: len(a)], u[:, : len(a)] * s[: len(a)]
    return new


def fedask(sketches: Iterator[dict[str, np.ndarray]]) -> Rule:
    """FedASK: two sketches of the mean product, from left and right, and an SVD that splits its values evenly.

    A sketch wider than the server's rank is cut to it.
    """

    def server(state: State, ends: list[State], weights: Sequence[float]) -> State:
        new, omega = heads(ends, weights), next(sketches)
        for name in layers(state):
            y = np.sum([w * end["B", name] @ (end["A", name] @ omega[name]) for w, end in zip(weights, ends)], axis=0)
            q, _ = np.linalg.qr(y)
            p = np.sum([w * end["A", name].T @ (end["B", name].T @ q) for w, end in zip(weights, ends)], axis=0)
            u, s, vt = np.linalg.svd(p.T, full_matrices=False)
            r, root = len(state["A", name]), np.diag(np.sqrt(s))
            new["B", name], new["A", name] = (q @ u @ root)[:, :r], (root @ vt)[:r]
        return new

    return server


def padded(x: np.ndarray, like: np.ndarray) -> np.ndarray:
    out = np.zeros_like(like)
    out[: x.shape[0], : x.shape[1]] = x
    return out


def hetlora(state: State, ends: list[State], weights: Sequence[float]) -> State:
    """HetLoRA: factors padded with zeros; a client counts by its share and the norm of its layer's product."""
    new = heads(ends, weights)
    for name in layers(state):
        norms = [w * np.linalg.norm(product(end, name)) for w, end in zip(weights, ends)]
        norms = norms if sum(norms) > 0 else list(weights)
        for side in "AB":
            terms = [w * padded(end[side, name], state[side, name]) for w, end in zip(norms, ends)]
            new[side, name] = np.sum(terms, axis=0) / sum(norms)
    return new


def padded_changes(state: State, ends: list[State], weights: Sequence[float]) -> State:
    """FedLoRA of unequal ranks: each factor moves by the mean of the changes; where a client has no rank, by none."""
    new = heads(ends, weights)
    for name in layers(state):
        for side in "AB":
            old = state[side, name]
            received = [old[: end[side, name].shape[0], : end[side, name].shape[1]] for end in ends]
            changes = [padded(end[side, name] - x, old) for x, end in zip(received, ends)]
            new[side, name] = old + np.sum([w * x for w, x in zip(weights, changes)], axis=0)
    return new


def lora_fair(state: State, ends: list[State], weights: Sequence[float], ridge: float = 0.01) -> State:
    """LoRA-FAIR: B is corrected towards the mean product, ||dW - (B + D) A||^2 + ridge ||D||^2, by least squares."""
    new = mean(ends, list(weights))
    for name in layers(state):
        a, missing = new["A", name], mean_product(ends, weights, name) - product(new, name)
        system = np.concatenate([a.T, math.sqrt(ridge) * np.eye(len(a))])
        target = np.concatenate([missing.T, np.zeros((len(a), len(missing)))])
        new["B", name] = new["B", name] + np.linalg.lstsq(system, target)[0].T
    return new
