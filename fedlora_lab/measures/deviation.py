"""How far a server's product is from the mean of its clients' products, and what noise does to it.

No (d_out, d_in) matrix is formed, except where a function says so.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float
from scipy.linalg.blas import dsyrk, ssyrk  # type: ignore[attr-defined]  # made at SciPy's import
from torch import Tensor

from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.validation import check, check_number, check_whole
from fedlora_lab.methods.aggregation import Uploads, sketch
from fedlora_lab.methods.filters import Preconditioner
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.state import ParamKey, ServerState, times_core
from fedlora_lab.privacy import mechanism

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

FactorPair = tuple[Tensor, Tensor]


def product_norm(left: Float[Tensor, "d_out r"], right: Float[Tensor, "r d_in"]) -> float:
    """Computes the norm of ``left @ right`` from two (r, r) Gram matrices, in float64."""
    left, right = left.double(), right.double()
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
    weight. It is that of the mean factors plus a covariance over clients, so two (clients r,
    clients r) Gram matrices are all the work, and none where a factor is common to all clients.
    They are multiplied in the uploads' own precision, and in float64 where large parts cancel.

    Args:
        before, after: the server's (A, B), A (r, d_in), B (d_out, r).
        clients: the clients' (A_k, B_k), (clients, r, d_in) and (clients, d_out, r); a leading 1
            where all agree.
        weights: (clients,).
        added: how far a residual moved, where the new product is ``added`` + B A; matrices of full
            size are formed then.

    Guarantees: zero for one client and for equal clients; equals the direct matrices; 1e-6 relative
        and under 50 ms for 100 clients of rank 4, 4096 x 4096 (tests/measures/test_measures.py).
    Source: arXiv:2403.12313, discordance of averaging factors.
    """
    w, total = weights.double(), float(weights.double().sum())
    if added is not None:
        a, b = (x.double().expand(len(w), *x.shape[1:]) for x in clients)
        old = (1 - w.sum()) * before[1].double() @ before[0].double()
        full = old + (w.view(-1, 1, 1) * b).permute(1, 0, 2).flatten(1) @ a.flatten(0, 1)
        apart = after[1].double() @ after[0].double() + added.double() - full
        return Deviation(*(float(torch.linalg.matrix_norm(x)) for x in (apart, full)))
    kind = torch.promote_types(clients[0].dtype, clients[1].dtype)
    mean_a, gaps_a = _centred(before[0], clients[0], w)
    mean_bt, gaps_b = _centred(before[1].T, clients[1].mT, w)
    pairs = [(pair[1].double(), pair[0].double()) for pair in (after, before)]
    pairs.append((mean_bt.T, mean_a))
    mean, gap = (0.0, 1 - total, total), (1.0, total - 1, -total)
    inner, spread, bound = [0.0] * 3, 0.0, 0.0
    tall = wide = w.new_zeros(0, 0)
    if gaps_a is not None and gaps_b is not None:
        tall, wide = gaps_b.flatten(0, 1), gaps_a.flatten(0, 1)
        spread, bound = _covariance_norm(tall.to(kind), wide.to(kind), w)
        lefts = torch.cat([left for left, _ in pairs], 1)
        rights = torch.cat([right for _, right in pairs])
        along = ((tall @ lefts) * (wide @ rights.T)).view(len(w), -1, len(pairs), len(mean_a))
        inner = torch.einsum("k,kipj->p", w, along).tolist()
    sizes = _joined_norms(pairs, mean, gap)
    cross = [sum(c * x for c, x in zip(terms, inner, strict=True)) for terms in (mean, gap)]
    terms = zip(sizes, (1, -1), cross, strict=True)
    squares = [size**2 + spread**2 + 2 * sign * both for size, sign, both in terms]
    found = Deviation(max(squares[1], 0.0) ** 0.5, max(squares[0], 0.0) ** 0.5)
    cancels = found.norm < 0.1 * max(sizes[1], spread) or spread < 0.01 * bound
    if kind != torch.float64 and cancels:
        return product_deviation(before, after, (clients[0].double(), clients[1].double()), weights)
    # Squares resolve a difference only down to the square root of the working precision.
    if found.norm < 1e-4 * max(sizes[1], bound) and bound > 1e-12 * found.mean:
        weighted = w.repeat_interleave(len(mean_a)) * tall.T
        found = found._replace(norm=_joined_norms([*pairs, (weighted, wide)], (*gap, -1.0))[0])
    return found


def _centred(old: Tensor, own: Tensor, weights: Tensor) -> tuple[Tensor, Tensor | None]:
    """Returns the clients' weighted mean (r, d) and their gaps to it; no gaps where all agree."""
    if len(own) == 1 or not weights.sum():
        return (own[0] if len(own) == 1 else old).double(), None
    gaps = torch.empty(own.shape, dtype=torch.float64).copy_(own)
    mean = ((weights / weights.sum()) @ gaps.flatten(1)).view(gaps.shape[1:])
    gaps -= mean
    return mean, gaps if bool(gaps.any()) else None


def _covariance_norm(tall: Tensor, wide: Tensor, weights: Tensor) -> tuple[float, float]:
    """Computes the norm of the sum over clients of ``tall_k.T @ wide_k``, and its bound."""
    # One triangle of a Gram matrix is half the work of the whole; the other triangle is its mirror.
    triangle = dsyrk if tall.dtype == torch.float64 else ssyrk
    grams = [torch.from_numpy(triangle(1.0, x.numpy().T, trans=1)).double() for x in (tall, wide)]
    norms = [gram.diagonal().view(len(weights), -1).sum(1).sqrt() for gram in grams]
    each, both = weights.repeat_interleave(len(tall) // len(weights)), grams[0] * grams[1]
    square = 2 * (each @ both @ each) - each.square() @ both.diagonal()
    return float(square.clamp(min=0).sqrt()), float(weights @ (norms[0] * norms[1]))


def _joined_norms(pairs: list[FactorPair], *terms: tuple[float, ...]) -> list[float]:
    """Computes norms of sums of c L R for each list of c; QR first, so squares do not cancel."""
    tall = torch.linalg.qr(torch.cat([left for left, _ in pairs], dim=1)).R
    wide = torch.linalg.qr(torch.cat([right for _, right in pairs]).T).R
    sizes = torch.tensor([len(right) for _, right in pairs])
    scales = torch.tensor(terms, dtype=tall.dtype).repeat_interleave(sizes, dim=1)
    return torch.linalg.matrix_norm(tall * scales.unsqueeze(1) @ wide.T).tolist()


def drift(server: FactorPair, clients: FactorPair) -> Float[Tensor, " clients"]:
    """Computes how far each client's product went from the server's: ||B_k A_k - B A||_F, unscaled.

    ``server`` is (A, B), ``clients`` (A_k, B_k), stacked; a leading 1 where all agree.

    Guarantees: tests/measures/test_measures.py::test_drift.
    """
    (a, b), (own_a, own_b) = (tuple(x.double() for x in pair) for pair in (server, clients))
    # B_k A_k - B A = (B_k - B) A_k + B (A_k - A): small terms, no cancellation of large ones.
    norms = []
    for k in range(max(len(own_a), len(own_b))):
        a_k, b_k = own_a[k % len(own_a)], own_b[k % len(own_b)]
        norms.append(product_norm(torch.cat([b_k - b, b], 1), torch.cat([a_k, a_k - a])))
    return torch.tensor(norms, dtype=torch.float64)


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


def signal_to_noise(released: Iterable[FactorPair]) -> float:
    """Computes the norm of noiseless changes over that of the noise, from pairs of both.

    Guarantees: tests/measures/test_measures.py::test_signal_to_noise.
    """
    signal = noise = 0.0
    for value, xi in released:
        signal += float((value.double() - xi.double()).square().sum())
        noise += float(xi.double().square().sum())
    return (signal / noise) ** 0.5 if noise else (float("inf") if signal else 0.0)


def worst_change(
    precondition: Callable[[Tensor], Preconditioner], peer: Float[Tensor, "r d_in"], d_out: int = 8
) -> Float[Tensor, "d_out r"]:
    """Returns the change of B within a clip of 1 that a rule hides worst.
    It is the peer's largest direction.

    Args:
        precondition: a rule such as `filters.product_space`.
        peer: A (r, d_in).
        d_out: rows of B; the change is in the first.
    """
    rule = precondition(peer @ peer.mT)
    direction = torch.linalg.eigh(peer @ peer.mT).eigenvectors[:, -1]
    change = torch.zeros(d_out, len(peer), dtype=peer.dtype)
    change[0] = direction / torch.linalg.vector_norm(rule.before @ direction)
    return change


def separation(
    precondition: Callable[[Tensor], Preconditioner],
    peer: Float[Tensor, "r d_in"],
    change: Float[Tensor, "d_out r"] | None = None,
    noise_multiplier: float = 1.0,
    *,
    draws: int = 200,
    seed: int = 0,
) -> float:
    """Measures by how many standard deviations of the noise a change of B stands out (mu).

    The change is clipped to 1 and released with the library's own mechanism; the noise is drawn
    ``draws`` times and looked at along the direction that tells best whether the change is there.

    Args:
        precondition: a rule such as `filters.product_space`.
        peer: A (r, d_in), of full row rank.
        change: (d_out, r); ``None``: `worst_change`.
        noise_multiplier: sigma > 0, for clip norm 1.
        draws, seed: of the noise, >= 2 draws.

    Guarantees: follows `theory.regulated_mahalanobis` (test_separation_follows_the_closed_form).
    """
    check_number("noise_multiplier", noise_multiplier, 0, open_low=True)
    check_whole("draws", draws, 2)
    change = worst_change(precondition, peer) if change is None else change
    key = ParamKey("B", "layer")
    maps = {key: Preconditioner(*(matrix[None] for matrix in precondition(peer @ peer.mT)))}
    one = torch.zeros(1, dtype=torch.int64)
    rows = mechanism.precondition_rows({key: change[None]}, maps, one)
    signal, _ = mechanism.clip_sum(rows, 1.0, one, 1)
    stds, where = [noise_multiplier] * draws, [(i,) for i in range(draws)]
    drawn = mechanism.gaussian_noise({key: change.shape}, stds, Streams(seed), where)
    shown, alone = mechanism.release({key: signal[key].expand(draws, -1, -1)}, drawn, maps)
    moved = (shown[key] - alone[key])[0]
    # The best direction for Gaussian noise xi N is the signal times the inverse covariance (N
    # N^T)^-1.
    shape = maps[key].noise[0]
    best = moved @ torch.linalg.pinv(shape @ shape.mT, hermitian=True)
    spread = (alone[key] * best).sum((1, 2)).std()
    return float((moved * best).sum() / spread)


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
        aggregated: what the method's rule made of the uploads; its deviation is measured, while
            ``after`` is after the server's optimiser too. ``None``: ``after``.
    """

    before: ServerState
    mean: ServerState
    after: ServerState
    clients: Mapping[ParamKey, Tensor] | None
    weights: Tensor
    noise: Mapping[ParamKey, Tensor] | None
    aggregated: ServerState | None = None


def layer_rows(seen: Exchange, scaling: float) -> tuple[list[tuple[str, str, float]], float]:
    """Returns rows (layer, measure, value) of a round, and the relative deviation of all layers.

    Args: seen: the round. scaling: the factor before B A.
    """
    parts = (seen.before, seen.mean, seen.after, seen.aggregated or seen.after)
    before, mean, after, ruled = (state.without_core() for state in parts)
    clients = None if seen.clients is None else ServerState(seen.clients).without_core().tensors
    noise = None if seen.noise is None else dict(seen.noise)
    if noise is not None:  # that of a core, seen in B
        held = seen.before.tensors
        cores = {ParamKey("B", key.layer): xi for key, xi in noise.items() if key.side == "R"}
        noise |= {key: times_core(held[key], xi) for key, xi in cores.items()}
        for key, xi in list(noise.items()):  # of first order: the core is noised as well
            if key.side == "gain":
                b, core = ParamKey("B", key.layer), held[ParamKey("R", key.layer)]
                noise[b] = noise[b] + times_core(held[b], core, xi)
    rows, squares = [], [0.0, 0.0]
    for layer in after.layers:
        a, b, w = (ParamKey(side, layer) for side in "ABW")
        factors, old, made = ((x.tensors[a], x.tensors[b]) for x in (after, before, ruled))
        residual = after.tensors.get(w)
        if residual is None:
            size = product_norm(factors[1], factors[0])
        else:
            whole = residual.double() + factors[1].double() @ factors[0].double()
            size = float(torch.linalg.matrix_norm(whole))
        rows.append((layer, "norm", scaling * size))
        if clients is not None:
            added = None if residual is None else residual - before.tensors[w]
            found = product_deviation(old, made, (clients[a], clients[b]), seen.weights, added)
            rows.append((layer, "deviation", scaling * found.norm))
            rows.append((layer, "deviation_relative", found.relative))
            squares = [squares[0] + found.norm**2, squares[1] + found.mean**2]
        if noise is not None:
            new = [mean.tensors[key] for key in (a, b)]
            xi = [noise.get(key, torch.zeros_like(x)) for key, x in zip((a, b), new, strict=True)]
            clean = [x - part for x, part in zip(new, xi, strict=True)]
            energies = noise_energies(clean[0], clean[1], xi[0], xi[1], scaling)
            rows += [(layer, name, value) for name, value in energies.items()]
            if any(bool(part.any()) for part in xi):
                changes = [x - x0 for x, x0 in zip(new, old, strict=True)]
                rows.append((layer, "snr", signal_to_noise(zip(changes, xi, strict=True))))
    if clients is None:
        return rows, float("nan")
    return rows, Deviation(squares[0] ** 0.5, squares[1] ** 0.5).relative


def frame_of(rows: list[tuple[str, str, float]]) -> "pd.DataFrame":
    """Makes a frame of rows (layer, measure, value)."""
    import pandas as pd

    return pd.DataFrame(rows, columns=["layer", "measure", "value"])


# ---- what the server's rule was given, and what others would have made of it


class AggregationInput(NamedTuple):
    """The input of the server's rule in a round: its state, what it had sent, and the uploads."""

    state: ServerState
    sent: ServerState
    uploads: Mapping[ParamKey, Tensor]
    weights: Tensor

    def factors(self, layer: str) -> FactorPair:
        """The clients' (A, B) of a layer; a leading 1 for a factor that was not uploaded."""
        a, b = (ParamKey(side, layer) for side in "AB")
        received = self.sent.tensors
        return self.uploads.get(a, received[a][None]), self.uploads.get(b, received[b][None])

    def server(self, layer: str) -> FactorPair:
        """The server's (A, B) of a layer before the round."""
        return self.state.tensors[ParamKey("A", layer)], self.state.tensors[ParamKey("B", layer)]


@dataclass(frozen=True, eq=False)
class _Recorder:
    """A server's rule that keeps what it is given."""

    rule: Any
    inputs: list[AggregationInput] = field(default_factory=list, repr=False)

    @property
    def writes(self) -> tuple[str, ...]:
        """What the rule writes besides the factors."""
        return tuple(getattr(self.rule, "writes", ()))

    @property
    def mean_gain(self) -> float | None:
        """As of the rule (see `aggregation.Rule`)."""
        return getattr(self.rule, "mean_gain", None)

    def __call__(
        self, state: ServerState, sent: ServerState, uploads: Uploads, weights: Tensor
    ) -> ServerState:
        self.inputs.append(AggregationInput(state, sent, dict(uploads), weights))
        return self.rule(state, sent, uploads, weights)


def record_aggregation(method: Method) -> tuple[Method, list[AggregationInput]]:
    """Returns the method, and a list that gets its server rule's input in every round.

    Guarantees: the run has the bits it would have had
        (tests/measures/test_measures.py::test_recording_changes_nothing).
    """
    recorder = _Recorder(method.aggregate)
    return method.replace(aggregate=recorder), recorder.inputs


def server_deviation(given: AggregationInput, server: "Method | Any", layer: str) -> Deviation:
    """Computes how far another server's product would have been from the mean.

    Args:
        given: of a round, as `record_aggregation` keeps it.
        server: a method, whose server's rule is taken, or a rule.
        layer: name of a layer.

    Guarantees: of the method that was run it is the run's own deviation
        (test_lesson_10.py::test_server_deviation_is_that_of_the_run).
    """
    rule: Any = server.aggregate if isinstance(server, Method) else server
    check(layer in given.state.layers, "layer", layer, "one of " + ", ".join(given.state.layers))
    before = rule.initial_state(given.state) if hasattr(rule, "initial_state") else given.state
    after = rule(before, given.sent, given.uploads, given.weights)
    a, b, w = (ParamKey(side, layer) for side in "ABW")
    added = after.tensors[w] - before.tensors[w] if w in after.tensors else None
    made = after.tensors[a], after.tensors[b]
    return product_deviation(given.server(layer), made, given.factors(layer), given.weights, added)


def mean_spectrum(given: AggregationInput, layer: str) -> "Float[np.ndarray, ' n']":
    """Computes singular values of the mean of the clients' products of a layer.

    Guarantees: test_lesson_10.py::test_the_spectrum_is_that_of_the_matrix.
    """
    count = len(given.weights)
    a, b = (x.double().expand(count, *x.shape[1:]) for x in given.factors(layer))
    mean = torch.einsum("k,kor,kri->oi", given.weights.double(), b, a)
    return torch.linalg.svdvals(mean).numpy()


def sketch_errors(
    given: AggregationInput, layer: str, widths: Sequence[int], seeds: int = 10
) -> Any:
    """Computes the relative error of FedASK's server over the width of its sketch.

    Args: given, layer: a round and a layer; widths: of the sketch; seeds: number of draws, >= 1.
    Returns: columns width, seed, value.
    """
    import pandas as pd

    check_whole("seeds", seeds, 1)
    rows = []
    for width, seed in itertools.product(widths, range(seeds)):
        drawn = given._replace(state=replace(given.state, streams=Streams(seed)))
        rows.append((width, seed, server_deviation(drawn, sketch(width), layer).relative))
    return pd.DataFrame(rows, columns=["width", "seed", "value"])


def update_products(given: AggregationInput) -> Float[Tensor, "clients clients"]:
    """Computes inner products of the clients' updates B_k A_k - B A, summed over the layers.

    B A is what the clients received. No (d_out, d_in) matrix is formed.
    """
    count = len(given.weights)
    total = torch.zeros(count, count, dtype=torch.float64)
    for layer in given.state.layers:
        a, b = (x.double().expand(count, *x.shape[1:]) for x in given.factors(layer))
        old_a, old_b = (given.sent.tensors[ParamKey(side, layer)].double() for side in "AB")
        left = torch.cat([b, -old_b.expand_as(b)], 2)
        right = torch.cat([a, old_a.expand_as(a)], 1)
        across = torch.einsum("kor,jos->kjrs", left, left)
        total += (across * torch.einsum("kri,jsi->kjrs", right, right)).sum((2, 3))
    return total


def alignment(given: AggregationInput) -> float:
    """Computes the mean cosine between the updates of two clients; 1 where all agree.

    Args: given: of a round, as `record_aggregation` keeps it.
    Raises: ``ValueError`` for a round with fewer than two clients.
    Guarantees: equals the cosines of the matrices, whatever the factors' gauge
        (test_measures.py::test_alignment_is_that_of_the_products).
    """
    count = len(given.weights)
    check(count > 1, "clients", count, "at least two")
    gram = update_products(given)
    size = gram.diagonal().clamp(min=1e-300).sqrt()
    cosines = gram / size[:, None] / size[None, :]
    return float((cosines.sum() - cosines.diagonal().sum()) / (count * (count - 1)))
