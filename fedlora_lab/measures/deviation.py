"""How far a server's product is from the mean of its clients' products, and the noise in it."""

import copy
import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fedlora_lab._utils.validation import check
from fedlora_lab.methods.aggregation import ServerRule, client_values
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.state import ParamKey, ServerState, TensorDict, Tensors, times_core

FactorPair = tuple[Tensor, Tensor]


def product_norm(left: Float[Tensor, "d_out r"], right: Float[Tensor, "r d_in"]) -> float:
    """Computes the norm of ``left @ right`` from two (r, r) Gram matrices, in float64."""
    # Of the product itself only the norm is wanted; for wide layers it would be large.
    left = left.double()
    right = right.double()
    return float(((left.T @ left) * (right @ right.T)).sum().clamp(min=0).sqrt())


class Deviation(NamedTuple):
    """Frobenius norms: of the server's product minus the clients' mean, and of that mean."""

    norm: float
    mean: float

    @property
    def relative(self) -> float:
        """norm / mean, 0 where both vanish."""
        return self.norm / self.mean if self.mean else (0.0 if not self.norm else float("inf"))


def product_deviation(
    before: FactorPair,
    after: FactorPair,
    clients: FactorPair,
    weights: Tensor,
    added: Float[Tensor, "d_out d_in"] | None = None,
) -> Deviation:
    """Computes how far the server's new product is from the mean of the clients' products.

    The mean is (1 - sum w) B A + sum_k w_k B_k A_k: with absent clients the old product keeps their
    weight.

    Args:
        before, after: the server's (A, B), A (r, d_in), B (d_out, r).
        clients: the clients' (A_k, B_k), (clients, r, d_in) and (clients, d_out, r); a leading 1
            where all agree.
        weights: (clients,).
        added: how far a residual moved, where the new product is ``added`` + B A.

    Guarantees: that of the full matrices
        (tests/lab/measures/test_measures.py::test_rows_of_a_round_are_those_by_hand).
    Source: arXiv:2403.12313, discordance of averaging factors.
    """
    mean = _mean_product(before, clients, weights)
    # In float64: the deviation may be a millionth of the products that it is the difference of.
    server = after[1].double() @ after[0].double()
    if added is not None:
        server = server + added.double()
    return Deviation(float((server - mean).norm()), float(mean.norm()))


def _mean_product(
    server: FactorPair, clients: FactorPair, weights: Tensor
) -> Float[Tensor, "d_out d_in"]:
    """Forms (1 - sum w) B A + sum_k w_k B_k A_k, in float64."""
    w = weights.double()
    old_a, old_b = (x.double() for x in server)
    a, b = (x.double().expand(len(w), *x.shape[1:]) for x in clients)
    # One product of stacked factors: (d_out, clients r) @ (clients r, d_in).
    tall = (w.view(-1, 1, 1) * b).permute(1, 0, 2).flatten(1)
    return (1 - w.sum()) * old_b @ old_a + tall @ a.flatten(0, 1)


# ---- noise


def noise_energies(
    a: Float[Tensor, "r d_in"],
    b: Float[Tensor, "d_out r"],
    noise_a: Tensor,
    noise_b: Tensor,
    scaling: float,
) -> dict[str, float]:
    """Computes squared norms of the product's noise terms: s xi_B A, s B xi_A and s xi_B xi_A.

    Args:
        a, b: the factors without this noise.
        noise_a, noise_b: the noise in each.
        scaling: s.

    Returns: under ``noise_B``, ``noise_A`` and ``noise_BA``.
    Source: arXiv:2403.12313, noise of both factors multiplied out.
    """
    terms = {"noise_B": (noise_b, a), "noise_A": (b, noise_a), "noise_BA": (noise_b, noise_a)}
    return {name: (scaling * product_norm(*pair)) ** 2 for name, pair in terms.items()}


# ---- the rows of a round


class Exchange(NamedTuple):
    """The effect of a round on the server.

    Args:
        before, after: the server's state.
        mean: the state with the plain mean of what was sent, before the server's rule did anything
            else with it.
        clients: key -> (1 or clients, ...), the clients' factors at the end; ``None``: nobody may
            see them.
        weights: (clients,).
        noise: key -> (...), the noise in the mean of the updates; ``None``: nobody may see it.
    """

    before: ServerState
    mean: ServerState
    after: ServerState
    clients: Tensors | None
    weights: Tensor
    noise: Tensors | None


def layer_rows(seen: Exchange, scaling: float) -> tuple[list[tuple[str, str, float]], float]:
    """Returns rows (layer, measure, value) of a round, and the relative deviation of all layers.

    Args: seen: the round. scaling: the factor before B A.
    """
    before, after = (x.without_core() for x in (seen.before, seen.after))
    mean = seen.mean.without_core().tensors
    clients = None if seen.clients is None else ServerState(seen.clients).without_core().tensors
    noise = None if seen.noise is None else _noise_in_factors(seen)
    rows = []
    deviations = []
    for layer in after.layers:
        a, b, w = (ParamKey(factor, layer) for factor in "ABW")
        old, new = ((x.tensors[a], x.tensors[b]) for x in (before, after))
        residual = after.tensors.get(w)
        product = new[1].double() @ new[0].double()
        size = float((product if residual is None else residual.double() + product).norm())
        rows.append((layer, "norm", scaling * size))
        if clients is not None:
            added = None if residual is None else residual - before.tensors[w]
            gap = product_deviation(old, new, (clients[a], clients[b]), seen.weights, added)
            deviations.append(gap)
            rows.append((layer, "deviation", scaling * gap.norm))
            rows.append((layer, "deviation_relative", gap.relative))
        if noise is not None:
            rows += _noise_rows(layer, mean, noise, scaling)
    if clients is None:
        return rows, float("nan")
    # Squares of all layers add up, as those of one large matrix.
    norm, size = (math.hypot(*sizes) for sizes in zip(*deviations, strict=True))
    return rows, Deviation(norm, size).relative


def _noise_in_factors(seen: Exchange) -> TensorDict:
    """The noise of a round by key; that of a core, and of its gains, is seen in B."""
    assert seen.noise is not None
    noise = dict(seen.noise)
    tensors = seen.before.tensors
    for key, xi in seen.noise.items():
        if key.name == "R":
            b = ParamKey("B", key.layer)
            noise[b] = times_core(tensors[b], xi)
    for key, xi in seen.noise.items():  # of first order: the core is noised as well
        if key.name == "gain":
            b = ParamKey("B", key.layer)
            noise[b] = noise[b] + times_core(tensors[b], tensors[ParamKey("R", key.layer)], xi)
    return noise


def _noise_rows(
    layer: str, mean: Tensors, noise: Tensors, scaling: float
) -> list[tuple[str, str, float]]:
    """Rows of the noise of a layer: its energies in the product."""
    keys = [ParamKey(factor, layer) for factor in "AB"]
    xi = [noise.get(key, torch.zeros_like(mean[key])) for key in keys]
    clean = [mean[key] - part for key, part in zip(keys, xi, strict=True)]
    energies = noise_energies(*clean, *xi, scaling=scaling)
    return [(layer, name, value) for name, value in energies.items()]


# ---- what the server's rule was given, and what others would have made of it


class AggregationInput(NamedTuple):
    """The input of the server's rule in a round.

    Args:
        state: the server's, before the round.
        broadcast: the state that the clients received of it.
        uploads: key -> what the clients sent, (clients, ...); one row where only a sum is seen.
        weights: (clients,), float64, of each upload in the mean.
    """

    state: ServerState
    broadcast: ServerState
    uploads: Tensors
    weights: Tensor

    def factors(self, layer: str) -> FactorPair:
        """The clients' (A, B) of a layer; a leading 1 for a factor that was not uploaded.

        Raises: ``ValueError`` for a layer with a core, whose product they are not.
        """
        plain = ParamKey("R", layer) not in self.state.tensors
        check(plain, "layer", layer, "one without a core: its product is B R A")
        a, b = (client_values(*self[:3], ParamKey(factor, layer)) for factor in "AB")
        return a, b

    def server(self, layer: str) -> FactorPair:
        """The server's (A, B) of a layer before the round."""
        return self.state.tensors[ParamKey("A", layer)], self.state.tensors[ParamKey("B", layer)]


def record_aggregation(method: Method) -> tuple[Method, list[AggregationInput]]:
    """Returns the method, and a list that gets a copy of its server rule's input in every round.

    Guarantees: the run has the bits it would have had, whatever is written into the copies
        (tests/lab/measures/test_measures.py::test_recording_changes_nothing).
    """
    rule = method.aggregate
    kind: Any = type(rule) if isinstance(rule, ServerRule) else ServerRule

    # A subclass: the engine asks what kind of rule it is, what it keeps and what it sends.
    class Recorder(kind):
        def __call__(self, state, broadcast, uploads, weights):
            given = AggregationInput(state, broadcast, dict(uploads), weights)
            self.inputs.append(copy.deepcopy(given))
            return rule(state, broadcast, uploads, weights)

    recorder: Any = object.__new__(Recorder)
    # Of a callable of the user's too, which may be no `ServerRule`.
    flags = {k: getattr(rule, k) for k in ("writes", "averages_a") if hasattr(rule, k)}
    vars(recorder).update(getattr(rule, "__dict__", {}), **flags, inputs=[])
    # Not by `Method.replace`: the rule is the same, and so is what the row claims.
    return replace(method, aggregate=recorder), recorder.inputs


def server_deviation(inputs: AggregationInput, server: "Method | Any", layer: str) -> Deviation:
    """Computes how far another server's product would have been from the mean.

    Args:
        inputs: of a round, as `record_aggregation` keeps it.
        server: a method, whose server's rule is taken, or a rule.
        layer: name of a layer.

    Guarantees: notebook 02 compares it with the matrices formed in full, notebook 09 over servers.
    """
    rule: Any = server.aggregate if isinstance(server, Method) else server
    check(layer in inputs.state.layers, "layer", layer, "one of " + ", ".join(inputs.state.layers))
    before = rule.initial_state(inputs.state) if hasattr(rule, "initial_state") else inputs.state
    after = rule(before, inputs.broadcast, inputs.uploads, inputs.weights)
    a, b, w = (ParamKey(factor, layer) for factor in "ABW")
    added = after.tensors[w] - before.tensors[w] if w in after.tensors else None
    made = after.tensors[a], after.tensors[b]
    return product_deviation(
        inputs.server(layer), made, inputs.factors(layer), inputs.weights, added
    )
