"""Methods of federated LoRA as plain loops, written from their descriptions alone.

NumPy, one example at a time, no noise. A state maps ("A" | "B" | "head", name) to an array; beside
them it may hold ("W", layer), the change of the layer's base weight, and ("R", layer), a square
matrix between the factors: the layer's weight is W0 + W + s B R A. The gradient of one example
comes from an oracle. C is the clip norm of one example or, in the client unit, of one client's
update.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import norm
from toy_tasks import LORA

State = dict[tuple[str, str], np.ndarray]
Keys = list[tuple[str, str]]
Oracle = Callable[[State, np.ndarray, np.ndarray], State]
Ends = list[State]
Shares = Sequence[float]
Rule = Callable[[State, Ends, Shares], State]
"""A server: state, the clients' ends and their shares -> the state after the round."""
SCALE = LORA.alpha / LORA.rank

# ---- gradients of one example


Loss = Callable[[Mapping[tuple[str, str], Any], torch.Tensor, torch.Tensor], torch.Tensor]


def gradients(loss: Loss) -> Oracle:
    """The gradient of one example's loss, by autograd on one example."""

    def gradient(state: State, x: np.ndarray, y: np.ndarray) -> State:
        leaves = {key: torch.tensor(value, requires_grad=True) for key, value in state.items()}
        loss(leaves, torch.tensor(x), torch.tensor(y)).backward()
        return {
            key: np.zeros(z.shape) if z.grad is None else z.grad.numpy()
            for key, z in leaves.items()
        }

    return gradient


def token_classifier(model: torch.nn.Module) -> Loss:
    """Cross-entropy of the small token model, written with full matrices."""
    fixed = {name: p.detach() for name, p in model.named_parameters()}

    def loss(state: Mapping, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        inner, outer = (fixed[f"{n}.weight"] + change(state, n) for n in ("inner", "outer"))
        hidden = torch.tanh(x @ inner.T + fixed["inner.bias"])
        mixed = torch.tanh((hidden - 0.5 * hidden.flip(0)) @ outer.T + fixed["outer.bias"])
        weight = state.get(("head", "head.weight"), fixed["head.weight"])
        logits = weight @ mixed.mean(0) + state.get(("head", "head.bias"), fixed["head.bias"])
        return torch.logsumexp(logits, 0) - logits[y]

    return loss


class Measured(NamedTuple):
    """Fed-ZO: central differences of one example's loss along directions of squared norm d / J.

    ``directions(t, s)`` gives those of a step, one a row, over the tensors that move, end to end.
    """

    loss: Loss
    directions: Callable[[int, int], np.ndarray]
    step: float

    def numbers(self, state: State, keys: Keys, t: int, s: int, x: Any, y: Any) -> np.ndarray:
        found = []
        for v in self.directions(t, s):
            ends = []
            for sign in (1, -1):
                there = moved(state, keys, sign * self.step * v)
                leaves = {key: torch.tensor(value) for key, value in there.items()}
                ends.append(float(self.loss(leaves, torch.tensor(x), torch.tensor(y))))
            found.append((ends[0] - ends[1]) / (2 * self.step))
        return np.array(found)


def moved(state: State, keys: Keys, by: np.ndarray) -> State:
    """The state with these tensors moved by the parts of a long vector."""
    parts = np.split(by, np.cumsum([state[key].size for key in keys])[:-1])
    return state | {k: state[k] + x.reshape(state[k].shape) for k, x in zip(keys, parts)}


def change(state: Mapping[tuple[str, str], Any], name: str) -> torch.Tensor:
    """The layer's weight minus W0: W + s B R A, with a core's blocks on the diagonal of R."""
    a, b = (torch.as_tensor(state[side, name]) for side in "AB")
    if ("R", name) in state:
        blocks = torch.as_tensor(state["R", name])
        width = blocks.shape[1]
        gain = state.get(("gain", name), torch.ones(len(blocks) // width))
        b = b @ torch.block_diag(*[s * x for s, x in zip(gain, blocks.split(width))])
    return torch.as_tensor(state.get(("W", name), 0.0)) + SCALE * b @ a


def layers(state: State) -> list[str]:
    return [name for side, name in state if side == "A"]


def product(state: State, name: str) -> np.ndarray:
    return state["B", name] @ state["A", name]


# ---- what a client does


class Work(NamedTuple):
    """Local work and clip; ``weights`` are the clients' shares p_k."""

    rounds: int
    steps: int
    lr: float
    momentum: float
    clip: float
    weights: list[float]
    unit: str = "example"


def length(g: State, keys: Keys) -> float:
    return math.sqrt(sum((g[key] ** 2).sum() for key in keys))


class Loop(NamedTuple):
    """How a method is transcribed: ``parts(state, t, s)`` move at a step, each clipped to
    C / sqrt(parts); ``size(state)`` is the norm that is clipped; ``sends(start, end, keys, work,
    loop)`` is what a client sends of its end.
    """

    parts: Callable[[State, int, int], list[Keys]]
    server: Rule
    size: Callable[[State], Callable[[State, Keys], float]] = lambda state: length
    filter: Callable[[np.ndarray, str], np.ndarray] = lambda g, side: g
    receives: Callable[[State], State] = dict
    sends: Callable | None = None
    measured: Measured | None = None
    direction: Callable[[State, State, Keys], tuple[State, float]] | None = None


def of(state: State, sides: str) -> Keys:
    """The keys of some factors; a trained head and gains always move."""
    return [key for key in state if key[0] in sides or key[0] in ("head", "gain")]


def scaled(x: float, clip: float) -> float:
    return min(1.0, clip / max(x, 1e-300))


def local(oracle: Oracle, start: State, own: list, t: int, work: Work, loop: Loop) -> State:
    """Local steps of one client on the mean of its examples' clipped gradients."""
    clip = work.clip if work.unit == "example" else math.inf
    size = loop.size(start)
    state = dict(start)
    speed: State = {}
    for s in range(work.steps):
        data = own
        parts = loop.parts(start, t, s)
        total = {key: np.zeros_like(state[key]) for keys in parts for key in keys}
        if loop.measured is not None:
            (keys,) = parts
            for x, y in data:
                c = loop.measured.numbers(state, keys, t, s, x, y)
                c = c * scaled(float(np.linalg.norm(c)), clip) / len(data)
                total = moved(total, keys, c @ loop.measured.directions(t, s))
            data = []
        for x, y in data:
            g = oracle(state, x, y)
            for keys in parts:
                g, long = loop.direction(state, g, keys) if loop.direction else (g, size(g, keys))
                factor = scaled(long, clip / math.sqrt(len(parts)))
                for key in keys:
                    total[key] += g[key] * factor / len(data)
        for key, value in total.items():
            if work.unit == "example" and key[0] != "head":
                value = loop.filter(value, key[0])
            speed[key] = work.momentum * speed.get(key, 0.0) + value
            state[key] = state[key] - work.lr * speed[key]
    return state


def update(start, end, keys, work, loop):
    """What a client sends: its end; in the client unit its change is clipped, then filtered."""
    if work.unit == "example":
        return end
    change = {key: end[key] - start[key] for key in keys}
    factor = scaled(loop.size(start)(change, keys), work.clip)
    for key, x in change.items():
        x = factor * x
        end = end | {key: start[key] + (x if key[0] == "head" else loop.filter(x, key[0]))}
    return end


def each_tensor(start, end, keys, work, loop):
    """DEeR's release: the change of every tensor is clipped to C, each by itself."""
    for key in keys:
        change = {key: end[key] - start[key]}
        end = end | {key: start[key] + change[key] * scaled(length(change, [key]), work.clip)}
    return end


def federated(
    oracle: Oracle,
    state: State,
    clients: list,
    work: Work,
    loop: Loop,
) -> tuple[list[State], list[list[State]]]:
    """The state before training and after every round, and what the clients sent in each."""
    states = [state]
    sent = []
    for t in range(work.rounds):
        parts = [keys for s in range(work.steps) for keys in loop.parts(state, t, s)]
        keys = list(dict.fromkeys(key for part in parts for key in part))
        ends = []
        for data in clients:
            start = loop.receives(state)
            end = local(oracle, start, data, t, work, loop)
            ends.append((loop.sends or update)(start, end, keys, work, loop))
        state = loop.server(state, ends, work.weights)
        states.append(state)
        sent.append(ends)
    return states, sent


# ---- what moves, how it is measured and filtered


def together(*words: str) -> Callable[[State, int, int], list[Keys]]:
    """All that moves is clipped as one. A word a round, of one letter group a step; both repeat."""

    def parts(state: State, t: int, s: int) -> list[Keys]:
        steps = words[t % len(words)].split()
        return [of(state, steps[s % len(steps)])]

    return parts


def apart(state: State, t: int, s: int) -> list[Keys]:
    """DP-LoRA: all A, all B, and a head, are clipped each on their own."""
    parts = [[key for key in state if key[0] == side] for side in ("A", "B", "head")]
    return [keys for keys in parts if keys]


def in_product(peers: State) -> Callable[[State, Keys], float]:
    """DEeR: ||g_B A||_F or ||B g_A||_F over all layers together, plus the head."""

    def size(g: State, keys: Keys) -> float:
        squares = 0.0
        for side, name in keys:
            x = g[side, name]
            x = x @ peers["A", name] if side == "B" else x
            x = peers["B", name] @ x if side == "A" else x
            squares += (x**2).sum()
        return math.sqrt(squares)

    return size


def low_pass(g: np.ndarray, side: str) -> np.ndarray:
    """[1, 4, 6, 4, 1] / 16 along the long axis of the factor, padded by 2 with its mirror image."""
    long = g if side == "A" else g.T
    padded = np.pad(long, ((0, 0), (2, 2)), mode="symmetric")
    rows = [np.convolve(row, np.array([1, 4, 6, 4, 1]) / 16, mode="valid") for row in padded]
    return np.array(rows) if side == "A" else np.array(rows).T


def quantised(state: State) -> State:
    """FedLPP: block by block, divide by the largest magnitude and take the nearest level.

    Levels are quantiles of the normal law on both sides of zero, scaled to [-1, 1]: 4 bits, and
    blocks of 64 numbers.
    """
    positive = norm.ppf(np.linspace(0.9677083, 0.5, 9)[:-1])
    negative = -norm.ppf(np.linspace(0.9677083, 0.5, 8)[:-1])
    levels = np.sort([*negative, 0.0, *positive]) / positive.max()
    sent = {key: x.copy() for key, x in state.items()}
    for key, x in sent.items():
        for block in np.split(x.ravel(), range(64, x.size, 64)) if key[0] != "head" else ():
            scaled_levels = levels * abs(block).max()
            block[:] = scaled_levels[abs(block[:, None] - scaled_levels).argmin(1)]
    return sent


# ---- what the server does with the clients' ends


def mean(ends: Ends, weights: Shares, keys: Keys | None = None) -> State:
    keys = list(ends[0]) if keys is None else keys
    return {key: np.sum([w * end[key] for w, end in zip(weights, ends)], axis=0) for key in keys}


def heads(ends: Ends, weights: Shares) -> State:
    return mean(ends, weights, [key for key in ends[0] if key[0] == "head"])


def mean_product(ends: Ends, weights: Shares, name: str) -> np.ndarray:
    return np.sum([w * product(end, name) for w, end in zip(weights, ends)], axis=0)


def plain_mean(state, ends, weights):
    return mean(ends, weights)


def straight_through(state, ends, weights):
    """FedLPP: the server adds the mean change of what the clients received to its own."""
    sent = quantised(state)
    end = mean(ends, weights)
    return {key: x + end[key] - sent[key] for key, x in state.items()}


def add_to_base(new: State, state: State, name: str, more: np.ndarray) -> None:
    """The base weight of a layer takes up a product, (d_out, d_in)."""
    new["W", name] = state.get(("W", name), 0.0) + SCALE * more


def fedex(state, ends, weights):
    """FedEx-LoRA: means of the factors; what their product misses goes into the base weight."""
    new = mean(ends, weights)
    for name in layers(state):
        add_to_base(new, state, name, mean_product(ends, weights, name) - product(new, name))
    return new


def flora(fresh: Iterator[State]) -> Rule:
    """FLoRA: stacked factors are merged into the base weight; then B = 0 and A is drawn afresh.
    The product of the stacks is the mean of the products.
    """

    def server(state, ends, weights):
        new = heads(ends, weights) | next(fresh)
        for name in layers(state):
            add_to_base(new, state, name, mean_product(ends, weights, name))
            new["B", name] = np.zeros_like(state["B", name])
        return new

    return server


def momentum(state, ends, weights):
    """FedMomentum: the mean product's leading directions become the factors, split evenly; what is
    left goes into the base weight.
    """
    new = heads(ends, weights)
    for name in layers(state):
        r = len(state["A", name])
        u, s, vt = np.linalg.svd(mean_product(ends, weights, name))
        new["A", name] = np.diag(np.sqrt(s[:r])) @ vt[:r]
        new["B", name] = u[:, :r] @ np.diag(np.sqrt(s[:r]))
        add_to_base(new, state, name, u[:, r : len(s)] @ np.diag(s[r:]) @ vt[r : len(s)])
    return new


def rotated(rounds: Iterator[int]) -> Rule:
    """FedRot-LoRA: Procrustes rotations towards what was received, by A in round 1, by B in 2."""

    def server(state, ends, weights):
        t = next(rounds)
        turned = [dict(end) for end in ends]
        for name in layers(state) if t else []:
            for end in turned:
                a, b = end["A", name], end["B", name]
                pair = (a.T, state["A", name].T) if t % 2 else (b, state["B", name])
                u, _, vt = np.linalg.svd(pair[0].T @ pair[1])
                # Kabsch: of a reflection the least of the directions is turned.
                u[:, -1] *= np.sign(np.linalg.det(u @ vt))
                rotation = u @ vt
                end["A", name] = rotation.T @ a
                end["B", name] = b @ rotation
        return mean(turned, weights)

    return server


def flexlora(state, ends, weights):
    """FlexLoRA: the mean of the products, by SVD cut to the server's rank. FedSVD does the same
    where A rests: the mean has the rank of B.
    """
    new = heads(ends, weights)
    for name in layers(state):
        r = len(state["A", name])
        u, s, vt = np.linalg.svd(mean_product(ends, weights, name))
        new["A", name] = vt[:r]
        new["B", name] = u[:, :r] @ np.diag(s[:r])
    return new


def fedpower(state, ends, weights):
    """FedPower, rebuilt: Q are the directions of T T^T T A^T for the mean product T and mean A."""
    new = mean(ends, weights)
    for name in layers(state):
        t = mean_product(ends, weights, name)
        q, _ = np.linalg.qr(t @ t.T @ t @ new["A", name].T)
        new["B", name], new["A", name] = q, q.T @ t
    return new


def fedgsa(state, ends, weights):
    """FedGSA: the mean product within the r leading eigenvectors of the mean projector on the
    clients' columns.
    """
    new = heads(ends, weights)
    for name in layers(state):
        r = len(state["A", name])
        spans = [np.linalg.svd(product(end, name))[0][:, : len(end["A", name])] for end in ends]
        mean_projector = sum(w * u @ u.T for w, u in zip(weights, spans))
        shared = np.linalg.eigh(mean_projector)[1][:, -r:]
        u, s, vt = np.linalg.svd(shared.T @ mean_product(ends, weights, name), full_matrices=False)
        new["B", name] = shared @ u @ np.diag(s)
        new["A", name] = vt
    return new


def prism(state, ends, weights):
    """PRISM: the product moves along the mean tangent; its best approximation of rank r is split
    evenly by an SVD of the whole matrix.
    """
    new = heads(ends, weights)
    middle = mean(ends, weights)
    for name in layers(state):
        a, b = state["A", name], state["B", name]
        z = b @ a + (middle["B", name] - b) @ a + b @ (middle["A", name] - a)
        u, s, vt = np.linalg.svd(z)
        r, root = len(a), np.sqrt(s[: len(a)])
        new["A", name], new["B", name] = root[:, None] * vt[:r], u[:, :r] * root
        new["W", name] = state["W", name]
    return new


def tangent_gradient(state: State, g: State, keys: Keys) -> tuple[State, float]:
    """PRISM's step directions of one example, and the norm of their move of the product.

    dA = (B^T B)^-1 g_A, dB = (I - P_B) g_B (A A^T)^-1; other tensors by their gradient.
    """
    moves = {}
    squares = 0.0
    for key in keys:
        side, name = key
        move = g[key]
        seen = move
        if side in "AB":
            a, b = state["A", name], state["B", name]
            if side == "A":
                move = np.linalg.solve(b.T @ b, g[key])
                seen = b @ move
            else:
                own = b @ np.linalg.solve(b.T @ b, b.T)
                move = (g[key] - own @ g[key]) @ np.linalg.inv(a @ a.T)
                seen = move @ a
        moves[key] = move
        squares += (seen**2).sum()
    return moves, math.sqrt(squares)


def fedrpca(state, ends, weights):
    """FedRPCA: changes are split into L + S by alternating directions; mean L, twice the mean S."""
    new = heads(ends, weights)
    for key in of(state, "AB"):
        if key[0] == "head":
            continue
        m = np.array([(end[key] - state[key]).ravel() for end in ends])
        mu, lam = m.size / (4 * abs(m).sum()), 1 / math.sqrt(max(m.shape))
        s, y = np.zeros_like(m), np.zeros_like(m)
        for _ in range(100):
            u, d, vt = np.linalg.svd(m - s + y / mu, full_matrices=False)
            low = u @ np.diag(np.maximum(d - 1 / mu, 0)) @ vt
            z = m - low + y / mu
            s = np.sign(z) * np.maximum(abs(z) - lam / mu, 0)
            y = y + mu * (m - low - s)
        mixed = low + 2 * (m - low)
        new[key] = state[key] + (np.array(weights) @ mixed).reshape(state[key].shape)
    return new


def ravan(state, ends, weights):
    """RAVAN: each client's blocks times their gains are averaged; gains are 1 again."""
    new = mean(ends, weights)
    for name in layers(state):
        if ("gain", name) in state:
            gains = [np.repeat(end["gain", name], end["R", name].shape[1]) for end in ends]
            cores = [s[:, None] * end["R", name] for s, end in zip(gains, ends)]
            new["R", name] = np.sum([w * x for w, x in zip(weights, cores)], axis=0)
            new["gain", name] = np.ones_like(state["gain", name])
    return new


def fedask(sketches: Iterator[dict[str, np.ndarray]]) -> Rule:
    """FedASK: two sketches of the mean product, from left and right, and an SVD that splits its
    values evenly; a sketch wider than the server's rank is cut to it.
    """

    def server(state, ends, weights):
        new = heads(ends, weights)
        omega = next(sketches)
        for name in layers(state):
            mean_of_products = mean_product(ends, weights, name)
            q, _ = np.linalg.qr(mean_of_products @ omega[name])
            u, s, vt = np.linalg.svd(q.T @ mean_of_products, full_matrices=False)
            r = len(state["A", name])
            root = np.diag(np.sqrt(s))
            new["B", name] = (q @ u @ root)[:, :r]
            new["A", name] = (root @ vt)[:r]
        return new

    return server


def hetlora(state, ends, weights):
    """HetLoRA at one rank: a client counts by its share and its product's norm."""
    new = heads(ends, weights)
    for name in layers(state):
        norms = [w * np.linalg.norm(product(end, name)) for w, end in zip(weights, ends)]
        norms = norms if sum(norms) > 0 else list(weights)
        for side in "AB":
            terms = [w * end[side, name] for w, end in zip(norms, ends)]
            new[side, name] = np.sum(terms, axis=0) / sum(norms)
    return new


def lora_fair(state, ends, weights):
    """LoRA-FAIR: B is corrected towards the mean product, ||dW - (B + D) A||^2 + 0.01 ||D||^2."""
    new = mean(ends, weights)
    for name in layers(state):
        a = new["A", name]
        missing = mean_product(ends, weights, name) - product(new, name)
        system = np.concatenate([a.T, math.sqrt(0.01) * np.eye(len(a))])
        target = np.concatenate([missing.T, np.zeros((len(a), len(missing)))])
        new["B", name] = new["B", name] + np.linalg.lstsq(system, target)[0].T
    return new


# ---- methods in which clients keep something, or the server chooses


def personal(oracle: Oracle, state: State, clients: list, work: Work) -> tuple[State, list[State]]:
    """FedSA-LoRA: every client sends A and its head, and keeps its B. Returns the tensors of the
    server and of each client.
    """
    loop = Loop(together("AB"), plain_mean)
    keys = of(state, "A")
    own = [state for _ in clients]
    for _ in range(work.rounds):
        sent = []
        for k, data in enumerate(clients):
            start = own[k] | {key: state[key] for key in keys}
            own[k] = local(oracle, start, data, 0, work, loop)
            sent.append(update(start, own[k], keys, work, loop))
        state = state | mean(sent, work.weights, keys)
    return state, own


def agreement(changes: list[np.ndarray]) -> float:
    """AS-LoRA's score: mean inner product of two different clients' changes, at least 0."""
    pairs = [(x * y).sum() for j, x in enumerate(changes) for k, y in enumerate(changes) if j != k]
    return max(0.0, float(np.mean(pairs)))


def chance_of_a(score_a: float, score_b: float, past: int) -> float:
    """AS-LoRA: how likely a layer moves A, ``past`` rounds after the last one of the warm-up."""
    d = (score_a - score_b) / (abs(score_a) + abs(score_b) + 1e-8)
    return 1 / (1 + math.exp(-d / max(0.1, 0.95**past)))
