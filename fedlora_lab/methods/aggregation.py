"""Server rules: the mean of what was sent, and rules that use the mean of the clients' products.

A rule is called as ``rule(state, broadcast, uploads, weights) -> state``: the server's state, the
state that the clients received of it, their uploads (clients, ...) of each key, and their weights
(clients,). All of them are released or public, so a rule costs no privacy.

The mean of the products is T = (1 - sum w) B A + sum_k w_k B_k A_k. It is kept as ``left @ right``
with left (d_out, q), right (q, d_in) and q at most rank times (clients + 1), so singular values
come from two QR factorisations and one (q, q) problem.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedlora_lab.methods.state import MODES, ParamKey, ServerState, Tensors, pad_to_rank, with_signs

Uploads = Tensors
Shapes = Mapping[ParamKey, Sequence[int]]
SCORE_KEPT = 0.9
"""Weight of a layer's old score in its new one, in `ByLayer`."""


class ServerRule(ABC):
    """A server rule. Its methods answer as those of a plain mean, where a rule has no others.

    Attributes:
        writes: kinds of tensors that the rule may change although no client sent them.
        averages_a: A moves by the weighted mean of the clients' changes of A, and by nothing else.
            A rule that is called otherwise than its base has to say it anew.
        orthonormal_a: after a round the rows of A are orthonormal, of energy r and not r / 3.

    Given one sum of the uploads, a rule that combines single ones is no better than a mean.
    """

    writes: ClassVar[tuple[str, ...]] = ()
    averages_a: ClassVar[bool] = False
    orthonormal_a: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        # What holds of the mean need not hold of a rule that does more.
        if "__call__" in vars(cls) and "averages_a" not in vars(cls):
            cls.averages_a = False

    @abstractmethod
    def __call__(
        self, state: ServerState, broadcast: ServerState, uploads: Uploads, weights: Tensor
    ) -> ServerState:
        """Returns the server's state after a round, of the same shapes and types.

        Args:
            state: the server's before the round.
            broadcast: the state that the clients received of it, quantised where the row says so.
            uploads: key -> the clients' values at the end of the round and not their moves,
                (clients, ...); one row where the trust model lets the server see a sum alone.
            weights: (clients,), float64, >= 0. Their sum is 1 in expectation: the old state counts
                with 1 - sum w, less than nothing where more clients came than were expected.
        """

    def initial_state(self, state: ServerState) -> ServerState:
        """Returns the state before the first round, with what the rule keeps there."""
        return state

    def upload_sizes(self, shapes: Shapes, keys: Sequence[ParamKey]) -> list[int]:
        """Returns the sizes of the arrays that one client sends in place of these keys."""
        return [math.prod(shapes[key]) for key in keys]

    def extra_download_sizes(self, shapes: Shapes) -> list[int]:
        """Returns the sizes of the arrays that one client receives in a round beside the state."""
        return []


def client_values(
    state: ServerState, broadcast: ServerState, uploads: Uploads, key: ParamKey
) -> Tensor:
    """Returns the clients' tensors at the end of a round: (clients, ...), (1, ...) if all agree.

    Args:
        state, broadcast: the server's state, and what the clients received of it.
        uploads: key -> (clients, ...); a key that nobody uploads is as it was received.
        key: of a tensor of the state.
    """
    return uploads[key] if key in uploads else broadcast.tensors[key][None]


# ---- means of the factors


@dataclass(frozen=True)
class MeanUpdate(ServerRule):
    """Adds the weighted mean of the changes: state + sum_k w_k (upload_k - broadcast).

    With weights that sum to 1 and nothing lost on the way down this is the mean of the uploads. A
    missing client leaves the state where it was (fixed denominator); for a quantised broadcast it
    is FedLPP's straight-through update psi + mean_k psi_k - Q(psi).

    Source: arXiv:2305.05644 (mean of factors); arXiv:2406.10976, which does not publish which of
        four forms it uses: this one alone keeps a full-precision state and estimates its gradient
        (see docs/methods).
    """

    averages_a = True

    def __call__(
        self, state: ServerState, broadcast: ServerState, uploads: Uploads, weights: Tensor
    ) -> ServerState:
        changed = {}
        for key, upload in uploads.items():
            old = state.tensors[key]
            # Not divided by the weights that arrived: their sum may follow from who took part,
            # and a fixed denominator keeps one client's share of the result bounded.
            change = weights.to(upload.dtype) @ (upload - broadcast.tensors[key]).flatten(1)
            changed[key] = old + change.view_as(old)
        return state.replace_tensors(changed)


@dataclass(frozen=True)
class NormWeighted(ServerRule):
    """Averages each factor with weights w_k ||B_k A_k||_F, layer by layer; all else plainly.

    Where every product is zero the weights are w_k.

    Source: arXiv:2401.06432 (HetLoRA), sparsity-weighted aggregation.
    """

    def __call__(
        self, state: ServerState, broadcast: ServerState, uploads: Uploads, weights: Tensor
    ) -> ServerState:
        changed = {}
        for layer in state.layers:
            keys = ParamKey("A", layer), ParamKey("B", layer)
            a, b = (client_values(state, broadcast, uploads, key).double() for key in keys)
            # ||B A||_F^2 = <B^T B, A A^T> of noised uploads: the weights cost no privacy.
            sizes = ((b.mT @ b) * (a @ a.mT)).sum((1, 2)).clamp(min=0).sqrt() * weights
            share = sizes / sizes.sum() * weights.sum() if sizes.sum() > 0 else weights
            for key in [key for key in keys if key in uploads]:
                old = state.tensors[key]
                rows = uploads[key]
                # Weights that did not arrive stay with the old value, as in the plain mean.
                absent = (1 - share.sum()).to(old) * old
                changed[key] = absent + (share.to(rows) @ rows.flatten(1)).view_as(old)
        heads = {key: x for key, x in uploads.items() if not key.kind.scheduled}
        return mean(state, broadcast, heads, weights).replace_tensors(changed)


@dataclass(frozen=True)
class ByLayer(ServerRule):
    """Averages what was sent, then draws which factor each layer moves in the next round.

    All layers alternate, B first, in the first tenth of the planned rounds. After that a layer
    moves A with probability sigmoid(d / T), where d = (S_A - S_B) / (|S_A| + |S_B|) and T =
    max(0.1, 0.95^rounds since the warm-up); a factor that never moved comes first. S is the
    exponential mean of a score of the factor that moved. The draw is public.

    The score is read from released values only: the mean inner product of two clients' changes,
    whose expectation is free of their noise; of a single sum, its squared norm.

    Source: arXiv:2605.05769 (AS-LoRA), schedule; the published score reads raw losses in its
        curvature, these do not.
    """

    writes = ("mode", "score A", "score B")
    averages_a = True

    def initial_state(self, state: ServerState) -> ServerState:
        like = next(iter(state.tensors.values()))
        values = {"mode": 0.0, "score A": math.nan, "score B": math.nan}
        keys = {ParamKey(name, layer): x for layer in state.layers for name, x in values.items()}
        return state.replace_tensors({key: like.new_tensor(x) for key, x in keys.items()})

    def __call__(
        self, state: ServerState, broadcast: ServerState, uploads: Uploads, weights: Tensor
    ) -> ServerState:
        after = mean(state, broadcast, uploads, weights)
        changed = {}
        for layer in state.layers:
            # The mode that the clients trained by in this round: released, like the scores.
            name = MODES[int(state.tensors[ParamKey("mode", layer)])]
            moved = ParamKey(name, layer)
            score = ParamKey(f"score {name}", layer)
            old = state.tensors[score]
            if moved in uploads:
                new = mean_inner_product(uploads[moved] - broadcast.tensors[moved]).to(old)
                changed[score] = new if old.isnan() else SCORE_KEPT * old + (1 - SCORE_KEPT) * new
            keys = ParamKey("score A", layer), ParamKey("score B", layer)
            a, b = (float(changed.get(key, state.tensors[key])) for key in keys)
            mode = float(self._next_mode(after, layer, a, b))
            changed[ParamKey("mode", layer)] = old.new_tensor(mode)
        return after.replace_tensors(changed)

    def _next_mode(self, after: ServerState, layer: str, a: float, b: float) -> int:
        """The layer's mode for the round that comes: 0 moves B, 1 moves A."""
        coming = after.round + 1
        warm = math.ceil(0.1 * after.planned - 1e-9)
        if coming < warm:  # alternating, B first
            return coming % 2
        if math.isnan(a) or math.isnan(b):  # this factor never moved
            return int(math.isnan(a) and not math.isnan(b))
        lead = (a - b) / (abs(a) + abs(b) + 1e-8)
        heat = max(0.1, 0.95 ** (coming + 1 - warm))
        chance = torch.sigmoid(torch.tensor(lead / heat, dtype=torch.float64))
        # From the run's own stream of this round and layer; what was drawn is released.
        return int(after.random(layer).random() < chance)


def mean_inner_product(changes: Tensor) -> Tensor:
    """The mean over pairs of different rows, at least 0; of a single row its squared norm."""
    rows = changes.flatten(1).double()
    count = len(rows)
    squares = rows.square().sum()
    if count == 1:
        return squares
    # Pairs alone: the noise of two clients is independent, that of a row with itself would add up.
    pairs = rows.sum(0).square().sum() - squares
    return (pairs / (count * (count - 1))).clamp(min=0)


def nearest_rotation(matrix: Tensor) -> Tensor:
    """The rotation nearest to each square matrix, (..., r, r); its determinant is 1."""
    u, _, v = torch.linalg.svd(matrix)
    # A reflection would turn the sign of one direction: that of the least singular value is given.
    u[..., -1] *= torch.linalg.det(u @ v).sign().unsqueeze(-1)
    return u @ v


@dataclass(frozen=True)
class Rotated(ServerRule):
    """Rotates each client's factors towards those it received, then averages them.

    (B R)(R^T A) = B A for every rotation R, so no client's product changes. R minimises
    ||R^T A_k - A|| in every second round, from the second, and ||B_k R - B|| in the others. The
    first round is a plain mean: B is zero.

    Source: arXiv:2602.23638 (FedRot-LoRA) and its released code, where clients rotate what they
        send, in full or in part; a rotation of a noised upload at the server is the same.
    """

    def __call__(
        self, state: ServerState, broadcast: ServerState, uploads: Uploads, weights: Tensor
    ) -> ServerState:
        turned = dict(uploads)
        for layer in state.layers if state.round > 0 else ():
            keys = ParamKey("A", layer), ParamKey("B", layer)
            if not all(key in uploads for key in keys):
                continue  # one common factor: there is nothing to align
            a, b = (uploads[key].double() for key in keys)
            old_a, old_b = (broadcast.tensors[key].double() for key in keys)
            overlap = a @ old_a.mT if state.round % 2 == 1 else b.mT @ old_b
            rotations = nearest_rotation(overlap)
            turned[keys[0]] = (rotations.mT @ a).to(uploads[keys[0]])
            turned[keys[1]] = (b @ rotations).to(uploads[keys[1]])
        return mean(state, broadcast, turned, weights)


@dataclass(frozen=True)
class RobustMean(ServerRule):
    """Averages what the clients' changes of a factor have in common, and twice what is their own.

    The changes are the rows of a matrix, which is split into one of low rank and a sparse one. From
    a single row it is the plain mean.

    Source: arXiv:2506.01194 (FedRPCA), from its abstract, which leaves the scale of 2 open.
    """

    def __call__(
        self, state: ServerState, broadcast: ServerState, uploads: Uploads, weights: Tensor
    ) -> ServerState:
        scaled = dict(uploads)
        for key in [key for key in uploads if key.kind.scheduled]:
            change = uploads[key] - broadcast.tensors[key]
            own = change - low_rank_part(change.flatten(1)).view_as(change)
            scaled[key] = uploads[key] + own
        return mean(state, broadcast, scaled, weights)


def low_rank_part(matrix: Tensor) -> Tensor:
    """Splits a matrix into L + S of nearly least ||L||_* + ||S||_1 / sqrt(longer side); returns L.

    A single row, which has nothing in common with others, is returned as it is.

    Source: Candes et al., arXiv:0912.3599, algorithm 1 and its step size, 100 steps.
    """
    # By how much singular values shrink in a step: one over the step of the dual.
    shrink = 4 * matrix.abs().mean().double()
    if len(matrix) == 1 or not shrink > 0:
        return matrix
    limit = shrink / max(matrix.shape) ** 0.5
    common = sparse = dual = torch.zeros_like(matrix.double())
    for _ in range(100):
        u, s, v = torch.linalg.svd(matrix - sparse + dual, full_matrices=False)
        common = u * (s - shrink).clamp(min=0) @ v
        rest = matrix - common + dual
        sparse = torch.sgn(rest) * (rest.abs() - limit).clamp(min=0)
        dual = rest - sparse
    return common.to(matrix)


# ---- rules that use the mean of the products


def mean_product(
    state: ServerState, broadcast: ServerState, uploads: Uploads, weights: Tensor, layer: str
) -> tuple[Tensor, Tensor]:
    """Factorises the mean of the clients' products of a layer as left @ right, in float64.

    Args:
        state, broadcast, uploads: see `client_values`.
        weights: (clients,); 1 less their sum, of absent clients, counts with the old product. It is
            negative where more came than expected.
        layer: its name.
    """
    keys = ParamKey("A", layer), ParamKey("B", layer)
    a, b = (client_values(state, broadcast, uploads, key).double() for key in keys)
    old_a, old_b = (state.tensors[key].double() for key in keys)
    # In float64: residuals and deviations are small differences from this mean.
    w = weights.double()
    if len(a) == 1:  # one A for all: the mean falls on B
        shares = w if len(b) > 1 else w.sum()[None]
        left = [(shares @ b.flatten(1)).view_as(old_b)]
        right = [a[0]]
    elif len(b) == 1:  # one B for all: the mean falls on A
        left = [b[0]]
        right = [(w @ a.flatten(1)).view_as(old_a)]
    else:
        left = list(w.view(-1, 1, 1) * b)
        right = list(a)
    # Weights that did not arrive stay with the old product, as in the plain mean.
    return torch.cat([(1 - w.sum()) * old_b, *left], 1), torch.cat([old_a, *right])


def leading_svd(left: Tensor, right: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Finds the leading singular vectors and values of left @ right: U (d_out, k), S (k,), V^T.

    Each row of V^T has a sum of at least zero, so that every processor finds the same vectors.

    Args:
        left, right: (d_out, q) and (q, d_in); no (d_out, d_in) matrix is formed.
        rank: k, unless the smallest side of left and right is less.
    """
    # Orthonormal factors leave singular values alone: only the (q, q) product is decomposed.
    tall, r = torch.linalg.qr(left)
    wide, c = torch.linalg.qr(right.T)
    u, s, v = torch.linalg.svd(r @ c.T, full_matrices=False)
    left_vectors, right_vectors = with_signs(tall @ u[:, :rank], v[:rank] @ wide.T)
    return left_vectors, s[:rank], right_vectors


def even_factors(left: Tensor, right: Tensor, rank: int) -> dict[str, Tensor]:
    """The best approximation of left @ right as B = U sqrt(S), A = sqrt(S) V^T; none of a zero.

    Args: left, right: (d_out, q) and (q, d_in). rank: of the factors, which zeros fill up.
    """
    u, s, v = leading_svd(left, right, rank)
    # Singular vectors of a zero product are arbitrary: A would be lost with nothing gained.
    if not s[0] > 0:
        return {}
    root = s.sqrt()
    return dict(zip("AB", pad_to_rank(root.unsqueeze(1) * v, u * root, rank), strict=True))


class ProductRule(ServerRule, ABC):
    """A rule that turns each layer's mean product into new tensors; a head is averaged.

    A residual W, where the rule writes one, is zero before the first round.
    """

    def initial_state(self, state: ServerState) -> ServerState:
        if "W" not in self.writes:
            return state
        a = state.named("A")
        residuals = {
            ParamKey("W", layer): b.new_zeros(len(b), a[layer].shape[1])
            for layer, b in state.named("B").items()
        }
        return state.replace_tensors(residuals)

    @abstractmethod
    def layer(
        self, after: ServerState, left: Tensor, right: Tensor, layer: str
    ) -> Mapping[str, Tensor]:
        """Returns the layer's new tensors, by name; a name that is not there stays averaged.

        Args:
            after: the state with the mean of what was sent.
            left, right: (d_out, q) and (q, d_in), as `mean_product` gives them.
            layer: its name.
        """

    def __call__(
        self, state: ServerState, broadcast: ServerState, uploads: Uploads, weights: Tensor
    ) -> ServerState:
        after = mean(state, broadcast, uploads, weights)
        changed = {}
        for layer in state.layers:
            left, right = mean_product(state, broadcast, uploads, weights, layer)
            for name, value in self.layer(after, left, right, layer).items():
                key = ParamKey(name, layer)
                # Back in the state's precision: what clients receive is what is kept.
                changed[key] = value.to(state.tensors[key])
        return after.replace_tensors(changed)


@dataclass(frozen=True)
class MeanWithResidual(ProductRule):
    """Averages each factor, and adds what their product misses of the mean product to W.

    Exact. Noise that the residual takes up stays in it.

    Source: arXiv:2410.09432 (FedEx-LoRA), residual added to the frozen weight.
    """

    writes = ("W",)
    averages_a = True

    def layer(self, after: ServerState, left: Tensor, right: Tensor, layer: str):
        # In float64 the residual is what the mean of factors misses, and not rounding.
        a, b, w = (after.tensors[ParamKey(name, layer)].double() for name in "ABW")
        return {"W": w + left @ right - b @ a}


@dataclass(frozen=True)
class SplitProduct(ProductRule):
    """Keeps the leading r directions of the mean product as B = U sqrt(S), A = sqrt(S) V^T.

    Exact: what does not fit into rank r is added to W. A product of zero leaves the factors.

    Source: arXiv:2603.08014 (FedMomentum). The abstract merges the residual "later"; here it is
        merged in every round, and the even split of S is ours.
    """

    writes = ("W", "A", "B")

    def layer(self, after: ServerState, left: Tensor, right: Tensor, layer: str):
        a, w = (after.tensors[ParamKey(name, layer)] for name in "AW")
        factors = even_factors(left, right, len(a))
        if not factors:
            return {}
        # The residual is taken from the factors as they are sent, rounded to their precision.
        kept = factors["B"].to(a).double() @ factors["A"].to(a).double()
        return {**factors, "W": w.double() + left @ right - kept}


@dataclass(frozen=True)
class Merge(ProductRule):
    """Adds the mean of the products to W; sets B to zero and A to a fresh public draw.

    Exact: it is the stack of all clients' factors.

    Source: arXiv:2409.05976 (FLoRA), stacking and re-initialisation.
    """

    writes = ("W", "A", "B")

    def layer(self, after: ServerState, left: Tensor, right: Tensor, layer: str):
        a, b, w = (after.tensors[ParamKey(name, layer)] for name in "ABW")
        # Public, by round and layer: it tells nothing of the clients.
        fresh = torch.from_numpy(after.random(layer).random(a.shape)) * 2 - 1
        zero = torch.zeros_like(b)
        return {"W": w.double() + left @ right, "A": fresh / a.shape[1] ** 0.5, "B": zero}


@dataclass(frozen=True)
class TruncatedSVD(ProductRule):
    """Approximates the mean product best with rank r: B = U S, A = V^T.

    A mean product of zero leaves the factors as they are.

    Source: arXiv:2402.11505 (FlexLoRA).
    """

    writes = ("A", "B")
    orthonormal_a = True

    def layer(
        self, after: ServerState, left: Tensor, right: Tensor, layer: str
    ) -> Mapping[str, Tensor]:
        rank = after.tensors[ParamKey("A", layer)].shape[0]
        u, s, v = leading_svd(left, right, rank)
        return dict(zip("AB", pad_to_rank(v, u * s, rank), strict=True)) if s[0] > 0 else {}


@dataclass(frozen=True)
class SubspaceIteration(ProductRule):
    """Finds r output directions Q of the mean product T by two subspace iterations from the mean A,
    and splits what T has in them as B = Q, A = Q^T T.

    Near the best approximation of rank r. A mean product of zero leaves the factors as they are.

    Source: arXiv:2605.08443 (FedPower), abstract. There the server adds noise before it
        orthonormalises for the last time; here the uploads are noised, as in every row. The number
        of iterations and their start are this project's.
    """

    writes = ("A", "B")

    def layer(
        self, after: ServerState, left: Tensor, right: Tensor, layer: str
    ) -> Mapping[str, Tensor]:
        a = after.tensors[ParamKey("A", layer)].double()
        rank = len(a)
        for _ in range(2):
            q, _ = torch.linalg.qr(left @ (right @ a.T))
            a = (q.T @ left) @ right
        b, a = with_signs(q, a)
        return dict(zip("AB", pad_to_rank(a, b, rank), strict=True)) if a.any() else {}


@dataclass(frozen=True)
class Retraction(ServerRule):
    """Moves the product along the mean of the clients' moves and cuts it back to rank r, evenly.

    The new product is the best approximation of B A + mean(B_k - B) A + B mean(A_k - A), split as
    U sqrt(S) and sqrt(S) V^T. Clients that step once from a common point move along its tangent, so
    the mean of their moves is exact; then the rank is all that is lost.

    Source: arXiv:2606.00944 (PRISM), retraction; the mean over clients is this project's. Its turn
        of the new factors towards the old ones moves no product and is left out.
    """

    writes = ("A", "B")

    def __call__(
        self, state: ServerState, broadcast: ServerState, uploads: Uploads, weights: Tensor
    ) -> ServerState:
        after = mean(state, broadcast, uploads, weights)
        changed = {}
        for layer in state.layers:
            keys = ParamKey("A", layer), ParamKey("B", layer)
            a, b = (state.tensors[key].double() for key in keys)
            new_a, new_b = (after.tensors[key].double() for key in keys)
            # B (A + dA) + dB A: both moves along the tangent, without the term dB dA.
            left, right = torch.cat([b, new_b - b], 1), torch.cat([new_a, a])
            for name, factor in even_factors(left, right, len(a)).items():
                changed[ParamKey(name, layer)] = factor.to(state.tensors[keys[0]])
        return after.replace_tensors(changed)


@dataclass(frozen=True)
class SharedOutputs(TruncatedSVD):
    """Projects each client's B on the r output directions that the clients share most, then splits
    the mean product as `TruncatedSVD` does.

    U_k are the left singular vectors of B_k, which span the outputs of B_k A_k; the shared
    directions are the leading eigenvectors of sum_k w_k U_k U_k^T.

    Source: arXiv:2608.03267 (FedGSA), from notes.
    """

    def __call__(
        self, state: ServerState, broadcast: ServerState, uploads: Uploads, weights: Tensor
    ) -> ServerState:
        projected = dict(uploads)
        for key in [key for key in uploads if key.name == "B"]:
            b = uploads[key].double()
            u, s, _ = torch.linalg.svd(b, full_matrices=False)
            # A direction without energy is arbitrary.
            spans = weights.double().sqrt().view(-1, 1, 1) * u * (s > 1e-9 * s[:, :1])[:, None]
            shared = torch.linalg.svd(torch.cat(list(spans), 1), full_matrices=False).U
            shared = shared[:, : b.shape[2]]
            projected[key] = (shared @ (shared.T @ b)).to(uploads[key])
        return super().__call__(state, broadcast, projected, weights)


@dataclass(frozen=True)
class MergeGains(ServerRule):
    """Averages each client's gains times blocks; the server's gains stay 1.

    Exact. The gains are sent within the blocks.

    Source: arXiv:2506.05568 (RAVAN), H_i becomes the mean of s_i H_i.
    """

    writes = ("gain",)

    def upload_sizes(self, shapes: Shapes, keys: Sequence[ParamKey]) -> list[int]:
        return [math.prod(shapes[key]) for key in keys if key.name != "gain"]

    def __call__(
        self, state: ServerState, broadcast: ServerState, uploads: Uploads, weights: Tensor
    ) -> ServerState:
        merged = dict(uploads)
        gains = [key for key in uploads if key.name == "gain"]
        for key in gains:
            core = ParamKey("R", key.layer)
            gain = merged.pop(key)
            rows = client_values(state, broadcast, uploads, core)
            blocks = rows.unflatten(1, (gain.shape[1], -1)) * gain[..., None, None]
            merged[core] = blocks.flatten(1, 2)
        # Each upload's gains are in its blocks now. Kept beside them they would count twice.
        after = mean(state, broadcast, merged, weights)
        # A tensor that is all ones already stays the same one: clients need not receive it again.
        changed = [key for key in gains if bool((state.tensors[key] != 1).any())]
        return after.replace_tensors({key: torch.ones_like(state.tensors[key]) for key in changed})


@dataclass(frozen=True)
class Sketch(ProductRule):
    """Splits the product by two random sketches of it: B = Q U sqrt(S), A = sqrt(S) V^T.

    The server sums Y_k = B_k (A_k Omega) over a public random Omega (d_in, r), sends back Q, an
    orthonormal basis of the sum, and sums P_k = A_k^T (B_k^T Q).
    Exact where the clients share a factor; else the mean product's rank is up to clients x r.

    Source: arXiv:2507.09990 (FedASK), two-stage sketch aggregation.
    """

    writes = ("A", "B")

    def layer(self, after: ServerState, left: Tensor, right: Tensor, layer: str):
        rank, size = after.tensors[ParamKey("A", layer)].shape
        omega = torch.from_numpy(after.random(layer).standard_normal((size, rank)))
        # Sums of sketches are sketches of the sum: secure aggregation would show no single one.
        basis, _ = torch.linalg.qr(left @ (right @ omega))
        return even_factors(basis, (basis.T @ left) @ right, rank)

    def upload_sizes(self, shapes: Shapes, keys: Sequence[ParamKey]) -> list[int]:
        # Two sketches go up in the place of both factors: Y is as large as B, and P as A.
        layers = dict.fromkeys(key.layer for key in keys if key.name in "AB")
        sketches = [ParamKey(name, layer) for layer in layers for name in "BA"]
        others = [key for key in keys if key.name not in "AB"]
        return [math.prod(shapes[key]) for key in others + sketches]

    def extra_download_sizes(self, shapes: Shapes) -> list[int]:
        # Q, between the two sketches of a round, is as large as B.
        return [math.prod(shape) for key, shape in shapes.items() if key.name == "B"]


@dataclass(frozen=True)
class Repair(ProductRule):
    """Averages both factors, then moves B to where B A is nearest to the mean product.

    B = mean B + D with D the minimum of ||T - (mean B + D) A||_F^2 + 0.01 ||D||_F^2.

    Source: arXiv:2411.14961 (LoRA-FAIR); the paper's discrepancy is a similarity, here it is the
        squared error, whose minimum is known in closed form.
    """

    writes = ("B",)
    averages_a = True

    def layer(self, after: ServerState, left: Tensor, right: Tensor, layer: str):
        a, b = (after.tensors[ParamKey(name, layer)].double() for name in "AB")
        gram = a @ a.T
        gap = left @ (right @ a.T) - b @ gram
        # More than 0 keeps it invertible where A has lost rank.
        ridge = gram + 0.01 * torch.eye(len(gram), dtype=gram.dtype)
        return {"B": b + torch.linalg.solve(ridge, gap.T).T}


# The names in rows of the table.
mean = MeanUpdate()
norm_weighted = NormWeighted()
merge = Merge()
split_product = SplitProduct()
mean_with_residual = MeanWithResidual()
truncated_svd = TruncatedSVD()
subspace_iteration = SubspaceIteration()
retraction = Retraction()
merge_gains = MergeGains()
rotated = Rotated()
shared_outputs = SharedOutputs()
robust_mean = RobustMean()
by_layer = ByLayer()
sketch = Sketch()
repair = Repair()
