"""Loss curves of both factors, one factor and alternation on noised least squares.

The loss is that of `tasks.regression`, every client takes one step a round on all its examples,
nothing is clipped, and a release puts Gaussian noise of standard deviation ``std`` (learning rate
included) on every entry of an averaged factor that moves. B starts at zero. docs/convergence.md
derives all of it. At the end stand other closed forms of factors that move in turns: noise shaped
by the factor that stands still (the peer), and the low-pass filter.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import chdtri

from fedlora_lab._utils.validation import (
    check,
    check_number,
    check_one_of,
    check_symbols,
    check_whole,
)
from fedlora_lab.theory.products import Band, FactorA

Losses = Float[np.ndarray, " n"]
DIVERGED = 1e6  # times the loss at the start


class LeastSquares(NamedTuple):
    """A loss of the weight's change D: start + (tr D S D^T - 2 tr D M^T) / d_out.

    Args:
        covariance: S = mean of x x^T, (d_in, d_in), positive definite.
        cross: M = mean of (y - W0 x) x^T, (d_out, d_in).
        start: the loss at D = 0.
    """

    covariance: np.ndarray
    cross: np.ndarray
    start: float

    def loss(self, change: Float[np.ndarray, "d_out d_in"]) -> float:
        """The loss after the weight has changed by this."""
        part = (change @ self.covariance - 2 * self.cross) * change
        return self.start + float(part.sum()) / len(self.cross)

    def whitened(self) -> np.ndarray:
        """M S^(-1/2): the best change where the inputs are scaled to covariance 1."""
        values, vectors = np.linalg.eigh(self.covariance)
        return self.cross @ (vectors / np.sqrt(values)) @ vectors.T


class Lead(NamedTuple):
    """Which family ends with the lower expected loss, and by which share of the other's loss."""

    leader: str
    both: float
    one: float
    margin: float


class Boundary(NamedTuple):
    """Noise std up to which A and up to which B brings more than it costs."""

    second: float
    first: float


def least_squares(
    x: Float[np.ndarray, "clients n d_in"],
    y: Float[np.ndarray, "clients n d_out"],
    base: Float[np.ndarray, "d_out d_in"],
) -> LeastSquares:
    """Builds the mean over clients of their squared error as a function of the weight's change.

    Args:
        x, y: every client's examples, as many of each.
        base: the frozen weight W0.

    Guarantees: test_least_squares_is_the_loss_of_a_run.
    Source: arithmetic.
    """
    x, rest = x.reshape(-1, x.shape[-1]), (y - x @ base.T).reshape(-1, y.shape[-1])
    n = len(x)
    return LeastSquares(x.T @ x / n, rest.T @ x / n, float(np.square(rest).mean()))


def _checked(problem: LeastSquares, A: np.ndarray, **numbers: float) -> float:
    """Raises unless A fits the problem; returns the loss's curvature unit 2 / d_out."""
    fits = A.ndim == 2 and A.shape[1] == len(problem.covariance) and len(A) <= A.shape[1]
    check(fits, "A", A.shape, f"(r, {len(problem.covariance)}) with r <= d_in")
    check_symbols(**numbers)
    return 2 / len(problem.cross)


# ---- one factor: exact


def frozen_floor(problem: LeastSquares, A: FactorA) -> float:
    """Computes the lowest loss that B alone reaches, given the row space of A.

    For a random A and white inputs it is start - (r / d_in) |M|^2 / d_out in expectation.

    Guarantees: test_frozen_floor.
    Source: derived, docs/convergence.md, step 3.
    """
    _checked(problem, A)
    found = A @ problem.cross.T
    gain = np.trace(found.T @ np.linalg.solve(A @ problem.covariance @ A.T, found))
    return problem.start - float(gain) / len(problem.cross)


def best_rank_loss(problem: LeastSquares, rank: int) -> float:
    """Computes the lowest loss that a change of this rank has.

    Args: problem: the loss; rank: in [1, min(d_out, d_in)].
    Guarantees: test_turns_losses.
    Source: Eckart and Young (1936), in coordinates in which the inputs are white.
    """
    check_whole("rank", rank, 1, min(problem.cross.shape))
    values = np.linalg.svd(problem.whitened(), compute_uv=False)
    return problem.start - float(np.square(values[:rank]).sum()) / len(problem.cross)


def frozen_losses(
    problem: LeastSquares, A: FactorA, steps: int, lr: float, std: float = 0.0, scaling: float = 1.0
) -> Losses:
    """Computes the expected loss of FFA-LoRA after 0 ... steps rounds, exactly.

    Each eigenvalue l_j of A S A^T has its own contraction h_j = 1 - 2 lr scaling^2 l_j / d_out: the
    bias falls as h_j^(2t), the noise grows as scaling^2 std^2 l_j (1 - h_j^(2t)) / (1 - h_j^2).

    Args:
        problem, A: the loss, and the factor at rest.
        steps: rounds, >= 0.
        lr, std: learning rate and noise of a release, >= 0.
        scaling: alpha / r.

    Guarantees: test_frozen_losses_are_the_mean_of_runs.
    Source: derived, docs/convergence.md, steps 1 to 4.
    """
    unit = _checked(problem, A, steps=steps, lr=lr, std=std, scaling=scaling)
    values, vectors = np.linalg.eigh(A @ problem.covariance @ A.T)
    shares = np.square(problem.cross @ A.T @ vectors).sum(0) / values / len(problem.cross)
    h2 = np.square(1 - unit * lr * scaling**2 * values)
    powers = h2 ** np.arange(steps + 1)[:, None]
    held = np.cumsum(np.vstack([np.zeros_like(h2), powers[:-1]]), axis=0)
    noise = (scaling * std) ** 2 * (held @ values)
    return frozen_floor(problem, A) + powers @ shares + noise


# ---- turns without noise: exact where each phase runs to its end


def turns_losses(problem: LeastSquares, A: FactorA, cycles: int) -> Losses:
    """Computes the loss of noiseless alternation after each cycle, phases run out.

    Turns are then an orthogonal iteration: the row space of A after t cycles is that of
    A (D^T D)^t, D the best change (white inputs).

    Args: problem, A: the loss, and A at the start; cycles: >= 0.
    Guarantees: test_turns_losses.
    Source: derived, docs/convergence.md, steps 5 and 6.
    """
    _checked(problem, A)
    check_whole("cycles", cycles, 0)
    target, values_vectors = problem.whitened(), np.linalg.eigh(problem.covariance)
    root = (values_vectors[1] * np.sqrt(values_vectors[0])) @ values_vectors[1].T
    rows, found = A @ root, []
    for _ in range(cycles + 1):
        basis = np.linalg.qr(rows.T)[0]
        found.append(problem.start - float(np.square(target @ basis).sum()) / len(target))
        rows = basis.T @ target.T @ target
    return np.array(found)


def turns_rate(problem: LeastSquares, rank: int) -> float:
    """Computes the factor by which a cycle of noiseless alternation shrinks the excess loss.

    (s_(r+1) / s_r)^4, of the singular values of the best change; 0 where it has rank r. It is the
    limit after many cycles, with phases that run to their end.

    Args: problem: the loss; rank: below min(d_out, d_in).
    Guarantees: test_turns_losses.
    Source: derived, docs/convergence.md, step 6; the rate of orthogonal iteration.
    """
    check_whole("rank", rank, 1, min(problem.cross.shape) - 1)
    values = np.linalg.svd(problem.whitened(), compute_uv=False)
    return float((values[rank] / values[rank - 1]) ** 4)


# ---- any schedule with noise: moments


def expected_losses(
    problem: LeastSquares,
    A: FactorA,
    words: Sequence[str],
    lr: float,
    std: float = 0.0,
    scaling: float = 1.0,
) -> Losses:
    """Computes the expected loss of a schedule round by round, from moments of the factors.

    The factors' law is kept as a Gaussian: mean and full covariance, quadratic noise included.
    Exact where one factor moves all the time, and for the first release of any schedule; elsewhere
    third cumulants and terms of order (lr std)^2 are left out.

    Args:
        problem, A: the loss, and A at the start.
        words: which factors move, one word a round: "B", "A" or "AB".
        lr, std: learning rate and noise of a release, >= 0.
        scaling: alpha / r.
    Returns: one more loss than words; infinite from where they pass a million times the first.

    Guarantees: test_expected_losses_are_the_mean_of_runs,
        test_expected_losses_of_one_factor_are_the_closed_form.
    Source: derived, docs/convergence.md, steps 7 to 9.
    """
    unit = _checked(problem, A, lr=lr, std=std, scaling=scaling)
    for word in words:
        check_one_of("word", word, ("B", "A", "AB", "BA"))
    state, losses = _Moments.start(len(problem.cross), A), np.full(len(words) + 1, np.inf)
    for t, word in enumerate(("", *words)):
        state = state.step(problem, word, lr, std, scaling, unit * scaling) if t else state
        loss = state.loss(problem, scaling)
        if not loss < DIVERGED * problem.start:
            break
        losses[t] = loss
    return losses


class _Moments(NamedTuple):
    """Mean and covariance of (B, A), entries in this order; a Gaussian's higher moments follow."""

    B: np.ndarray
    A: np.ndarray
    C: np.ndarray

    @classmethod
    def start(cls, d_out: int, A: np.ndarray) -> "_Moments":
        size = len(A) * (d_out + A.shape[1])
        return cls(np.zeros((d_out, len(A))), np.asarray(A, float), np.zeros((size, size)))

    def seconds(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """E B^T B, E A_a A_b^T entry by entry, E B_ia A_bj, and E B A."""
        (d_out, r), d_in = self.B.shape, self.A.shape[1]
        n, C = d_out * r, self.C
        BB = np.einsum("iaib->ab", C[:n, :n].reshape(d_out, r, d_out, r)) + self.B.T @ self.B
        AA = C[n:, n:].reshape(r, d_in, r, d_in) + np.multiply.outer(self.A, self.A)
        BA = C[:n, n:].reshape(d_out, r, r, d_in) + np.multiply.outer(self.B, self.A)
        return BB, AA, BA, np.einsum("ibbj->ij", BA)

    def loss(self, problem: LeastSquares, s: float) -> float:
        """E of the loss: E xyzw = S_xy S_zw + S_xz S_yw + S_xw S_yz - 2 m_x m_y m_z m_w."""
        S, M, _ = problem
        BB, AA, BA, P = self.seconds()
        mean, white = self.B @ self.A, BA @ S
        square = float(np.sum(BB * np.einsum("ajbl,jl->ab", AA, S)) + np.sum(P * (P @ S)))
        square += float(np.einsum("iabl,ibal->", white, BA)) - 2 * float(np.sum(mean * (mean @ S)))
        return problem.start + (s * s * square - 2 * s * float(np.sum(P * M))) / len(M)

    def step(
        self, problem: LeastSquares, word: str, lr: float, std: float, s: float, k: float
    ) -> "_Moments":
        """One release of what moves: means by E gradient, covariance by E Hessian."""
        S, M, _ = problem
        (d_out, r), d_in = self.B.shape, self.A.shape[1]
        BB, AA, BA, P = self.seconds()
        Q, white, AS = np.einsum("ajbl,jl->ab", AA, S), BA @ S, self.A @ S
        # E xyz = m_x S_yz + m_y S_xz + m_z S_xy - 2 m_x m_y m_z
        mean = self.B @ AS
        of_B = self.B @ Q + np.einsum("ibal,bl->ia", BA, AS) + (P @ S - 2 * mean) @ self.A.T
        of_A = BB @ AS + np.einsum("ib,iabl->al", self.B, white) + self.B.T @ (P @ S - 2 * mean)
        of_B, of_A = s * of_B - M @ self.A.T, s * of_A - self.B.T @ M
        cross = s * np.einsum("ibal->iabl", white)
        cross[:, range(r), range(r)] += (s * P @ S - M)[:, None]
        cross = cross.reshape(d_out * r, r * d_in)
        corner = np.kron(np.eye(d_out), s * Q), np.kron(s * BB, S)
        hessian = np.block([[corner[0], cross], [cross.T, corner[1]]])
        moves = np.repeat([float("B" in word), float("A" in word)], [d_out * r, r * d_in])
        F = np.eye(len(moves)) - lr * k * moves[:, None] * hessian
        C = F @ self.C @ F.T + np.diag(std**2 * moves)
        B = self.B - lr * k * of_B * ("B" in word)
        return _Moments(B, self.A - lr * k * of_A * ("A" in word), C)


def noise_floor(d_out: int, d_in: int, rank: int, lr: float, std: float, train: str = "B") -> float:
    """Computes the loss that noise holds up after many rounds: std^2 / (4 lr) a direction.

    Directions in which the product can move: r d_out with B alone, r (d_out + d_in - r) with both
    factors or turns. Neither scale, inputs nor data enter; the learning rate is taken as small.

    Args:
        d_out, d_in, rank: of the layer, >= 1.
        lr: > 0; std: noise of a release, >= 0.
        train: "B" or "AB".

    Guarantees: test_noise_floor.
    Source: derived, docs/convergence.md, step 10.

    >>> noise_floor(d_out=16, d_in=32, rank=4, lr=0.5, std=0.25)
    2.0
    """
    check_symbols(d_out=d_out, d_in=d_in, rank=rank, std=std)
    check_number("lr", lr, 0, open_low=True)
    check_one_of("train", train, ("B", "AB"))
    directions = rank * (d_out if train == "B" else d_out + d_in - rank)
    return directions * std**2 / (4 * lr)


# ---- alpha to infinity


def alpha_limit_gap(
    problem: LeastSquares, A: FactorA, steps: int, lr: float, scaling: float = 1.0
) -> float:
    """Computes the distance of FedLoRA's product from FFA-LoRA's as alpha grows, times c^2.

    FedLoRA runs without noise at c times the scale and the rate lr / c^2, FFA-LoRA at either. Then
    B's part of every step is the same and A's is 1 / c^2 of what it was; the path of the product to
    first order in 1 / c^2 obeys a linear recursion. A started c times larger at 1 / c of the scale
    has the same path as alpha c times larger at rate lr / c^2.

    Args:
        problem, A: the loss, and A at the start.
        steps, lr, scaling: rounds, learning rate and alpha / r at c = 1.
    Returns: limit of c^2 |s B A - s B' A'|_F after the last round.

    Guarantees: test_the_gap_to_a_frozen_factor_falls_with_alpha_squared.
    Source: derived, docs/convergence.md, step 11; the limit itself is theorem 1 of
        arXiv:2403.12313.
    """
    unit = _checked(problem, A, steps=steps, lr=lr, scaling=scaling)
    S, M, _ = problem
    P, X, D = np.zeros((len(M), len(A))), np.zeros((len(M), len(A))), np.zeros_like(A, float)
    for _ in range(steps):
        R = unit * (P @ A @ S - M)
        moved = unit * (X @ A + P @ D) @ S @ A.T + R @ D.T
        P, X, D = P - lr * scaling**2 * R @ A.T, X - lr * scaling**2 * moved, D - lr * P.T @ R
    return float(np.linalg.norm(X @ A + P @ D))


# ---- who leads


def common_signal(heterogeneity: float, clients: int) -> float:
    """Computes the share of the teachers' energy that one common weight can reach, on average.

    (1 - h)^2 + (2 h (1 - h) + h^2) / K: of teachers whose factors are sqrt(1 - h) of a common draw
    and sqrt(h) of their own, as those of `tasks.regression`. The rest stays as loss.

    Guarantees: test_common_signal.
    Source: derived, docs/convergence.md, step 12.

    >>> common_signal(0.5, clients=10)
    0.325
    """
    check_number("heterogeneity", heterogeneity, 0, 1)
    check_symbols(clients=clients)
    h = heterogeneity
    return (1 - h) ** 2 + (2 * h * (1 - h) + h**2) / clients


def boundary(
    reached: float, missed: float, d_out: int, d_in: int, rank: int, lr: float
) -> Boundary:
    """Computes the noise std up to which each factor brings more than it costs.

    Every direction costs std^2 / (4 lr). B has r d_out of them, A adds r (d_in - r): a factor pays
    as long as the loss that it takes away, a direction, is more than that. So one factor leads and
    is of use only where first > second: reached / d_out > missed / (d_in - r).

    Args:
        reached: loss that B alone takes away without noise: start - `frozen_floor`.
        missed: what both take away beyond that: `frozen_floor` - `best_rank_loss`. For a random A
            about r / d_in of `common_signal` is reached and the rest is missed.
        d_out, d_in, rank: of the layer; rank < d_in.
        lr: > 0.

    Guarantees: test_the_boundary_names_the_leader (right in 22 of 24 settings, the misses within
        12 % of the boundary).
    Source: derived, docs/convergence.md, step 12.

    >>> [round(std, 3) for std in boundary(0.125, 0.875, d_out=16, d_in=32, rank=4, lr=0.5)]
    [0.125, 0.062]
    """
    check_symbols(reached=reached, missed=missed, d_out=d_out, d_in=d_in)
    check_whole("rank", rank, 1, d_in - 1)
    check_number("lr", lr, 0, open_low=True)
    second = math.sqrt(4 * lr * missed / (rank * (d_in - rank)))
    return Boundary(second, math.sqrt(4 * lr * reached / (rank * d_out)))


def which_family(
    problem: LeastSquares, A: FactorA, steps: int, lr: float, std: float, scaling: float = 1.0
) -> Lead:
    """Predicts whether both factors or B alone end with the lower expected loss.

    Args:
        problem, A: the loss, and A at the start.
        steps, lr, std, scaling: as of `frozen_losses`.

    Guarantees: test_the_boundary_names_the_leader (right in 24 of 24 settings).
    Source: `frozen_losses` and `expected_losses`.
    """
    one = float(frozen_losses(problem, A, steps, lr, std, scaling)[-1])
    both = float(expected_losses(problem, A, ("AB",) * steps, lr, std, scaling)[-1])
    ahead = 1 - both / one if both < one else one / both - 1
    return Lead("both factors" if ahead > 0 else "one factor", both, one, abs(ahead))


def start_losses(
    problem: LeastSquares,
    A: FactorA,
    scales: Float[np.ndarray, " m"],
    steps: int,
    lr: float,
    std: float,
    scaling: float = 1.0,
) -> Float[np.ndarray, " m"]:
    """Computes FedLoRA's final loss if A starts c times larger and the scale is divided by c.

    The function at the start and B's noise in the product are the same for every c; A learns at
    1 / c^2 of the rate and its noise has 1 / c of the std. c -> infinity is FFA-LoRA. The best c is
    where the losses are least.

    Args:
        problem, A: the loss, and A at the start for c = 1.
        scales: the c, each > 0.
        steps, lr, std, scaling: as of `frozen_losses`.

    Guarantees: test_the_best_start_is_predicted.
    Source: derived, docs/convergence.md, step 13.
    """
    check(bool(np.all(np.asarray(scales) > 0)), "scales", scales, "numbers > 0")
    run = ("AB",) * steps, lr, std
    return np.array([expected_losses(problem, c * A, *run, scaling / c)[-1] for c in scales])


# ---- factors in turns: noise shaped by the factor that stands still, and the low-pass filter


def regulated_mahalanobis(
    shift: Float[np.ndarray, "d_out r"], peer: Float[np.ndarray, "r d_in"], std: float
) -> float:
    """Computes how many deviations of noise xi_W A^+ a shift of B is: |shift A| / std.

    The noise has covariance std^2 (A A^T)^-1 on each row, so a shift counts by the product it
    makes.

    Args:
        shift, peer: a change of B, and A of full row rank.
        std: of the iid noise xi_W in weight space, > 0.

    Guarantees: test_regulated_mahalanobis.
    Source: derived; the noise is that of arXiv:2410.12926.
    """
    check_number("std", std, 0, open_low=True)
    shapes, fits = (shift.shape, peer.shape), shift.shape[1] == peer.shape[0]
    check(fits, "shift, peer", shapes, "(d_out, r) and (r, d_in)")
    return float(np.linalg.norm(shift @ peer)) / std


def regulated_multiplier(peer: Float[np.ndarray, "r d_in"], noise_multiplier: float) -> float:
    """Computes the noise multiplier of a clipped change of B under xi_W A^+: sigma / |A|_2.

    Weaker than nominal when that norm exceeds 1; clipping |dB A| instead gives sigma exactly.

    Guarantees: test_regulated_multiplier.
    Source: derived; see `regulated_mahalanobis`.
    """
    check_symbols(noise_multiplier=noise_multiplier)
    size = float(np.linalg.norm(peer, 2))
    check(size > 0, "peer", size, "a matrix other than zero")
    return noise_multiplier / size


def regulated_energy(d_out: int, rank: int, std: float) -> float:
    """Computes the expected |xi_B A|^2 of regulated noise: std^2 d_out r, whatever A.

    Noise of the same std put on B itself makes std^2 d_out |A|^2.

    Args: d_out, rank: >= 1; std: of xi_W, >= 0.
    Guarantees: test_regulated_energy.
    Source: derived; xi_W A^+ A is xi_W projected on r dimensions.
    """
    check_symbols(d_out=d_out, rank=rank, std=std)
    return std**2 * d_out * rank


def measured_band(mu: float, draws: int, level: float = 0.95) -> Band:
    """Computes the band of a separation measured on ``draws`` draws of noise, if ``mu`` is true.

    Only the spread of the noise is estimated, so the ratio follows a chi-square with draws - 1
    degrees of freedom.

    Args: mu: > 0; draws: >= 2; level: in (0, 1).
    Guarantees: test_measured_band.
    Source: the law of a sample variance.
    """
    check_symbols(mu=mu, draws=draws, level=level)
    ends = ((1 + side * level) / 2 for side in (-1, 1))
    return Band(mu, *(float(mu * np.sqrt((draws - 1) / chdtri(draws - 1, p))) for p in ends))


def coupled_step(b: float, a: float, lr: float, target: float = 1.0) -> tuple[float, float, float]:
    """Computes the change of b a by one step of both on the loss (b a - target)^2 / 2.

    Three parts that add up: by b's step, by a's step, and by both together (the coupling).

    Args: b, a: where the step starts; lr: >= 0; target: any.
    Guarantees: test_a_coupled_step_is_the_change_of_the_product.
    Source: derived; the coupling is the term that arXiv:2602.19926 removes from each step.
    """
    check_symbols(lr=lr)
    error = b * a - target
    return -lr * error * a * a, -lr * error * b * b, lr**2 * error**2 * a * b


def two_number_descent(
    start: tuple[float, float], lr: float, steps: int, turns: bool, target: float = 1.0
) -> Float[np.ndarray, "n 2"]:
    """Computes the path of (b, a) down (b a - target)^2 / 2, both at once or alternating.

    In turns b moves in steps 0, 2, ... and a in the others.

    Args:
        start: (b, a).
        lr, steps: >= 0.
        turns: one number a step.
        target: of the product.
    Returns: (steps + 1, 2); NaN from where a number has passed a million.

    Guarantees: test_in_turns_each_step_shrinks_the_error.
    Source: derived.
    """
    check_symbols(lr=lr, steps=steps)
    path = np.full((steps + 1, 2), np.nan)
    b, a = start
    for step in range(steps + 1):
        if not max(abs(b), abs(a)) < 1e6:
            break
        path[step] = b, a
        error, b_moves = b * a - target, step % 2 == 0
        moves = (b_moves, not b_moves) if turns else (True, True)
        b, a = b - lr * error * a * moves[0], a - lr * error * b * moves[1]
    return path


def filter_weights(taps: int) -> Float[np.ndarray, " taps"]:
    """Binomial low-pass weights with sum 1: 1 4 6 4 1 over 16 for five taps; taps odd, in [1, 99].

    Guarantees: test_filter_gain.
    Source: arXiv:2602.19926, the low-pass filter.
    """
    check_whole("taps", taps, 1, 99)
    check(taps % 2 == 1, "taps", taps, "an odd number")
    return np.array([math.comb(taps - 1, i) for i in range(taps)], float) / 2.0 ** (taps - 1)


def filter_gain(taps: int) -> float:
    """Computes the share of white noise variance that the filter leaves: binom(2n, n) / 4^n.
    Here n = taps - 1.

    Guarantees: test_filter_gain.
    Source: derived; the sum of squared `filter_weights`.
    """
    n = len(filter_weights(taps)) - 1
    return math.comb(2 * n, n) / 4.0**n


def filter_response(taps: int, size: int) -> Float[np.ndarray, " size"]:
    """Gain of the binomial filter at each frequency along channels: cos^(taps - 1)(theta / 2).

    Frequencies theta = pi j / size, j = 0 ... size - 1, are those of the cosine transform (DCT-II):
    with mirrored edges its cosines are the filter's eigenvectors, so the gain is exact.

    Guarantees: test_the_filter_response_is_the_librarys_filter.
    Source: derived; the filter is that of arXiv:2602.19926.
    """
    filter_weights(taps)
    check_whole("size", size, 1)
    return np.cos(np.pi * np.arange(size) / (2 * size)) ** (taps - 1)


def filtered_energy(energy: Float[np.ndarray, " n"], taps: int) -> float:
    """Computes the share of a spectrum's energy (a number a DCT frequency) that a filter leaves.

    sum g^2 E / sum E. The filter is of use where a signal keeps more than a flat spectrum does.

    Guarantees: test_filtered_energy_is_what_the_filter_leaves.
    Source: derived.
    """
    energy = np.asarray(energy, float)
    some = energy.ndim == 1 and bool(energy.sum() > 0)
    check(some, "energy", energy.shape, "one dimension, not all zero")
    return float(filter_response(taps, len(energy)) ** 2 @ energy / energy.sum())


def filter_worth(energy: Float[np.ndarray, " n"], taps: int) -> float:
    """Computes a filtered step's gain under white noise, relative to an unfiltered one.

    (sum g E / sum E)^2 / mean(g^2), each step at its best rate: above 1 the filter helps, and a
    flat spectrum under five taps has 0.51. A shorter step without a filter has 1.

    Args: energy: of the gradient, at each DCT frequency; taps: of the filter.
    Guarantees: test_the_worth_is_the_best_steps_gain.
    Source: derived; one step, the same curvature in all directions, noise much larger than the
        gradient.
    """
    energy, gain = np.asarray(energy, float), filter_response(taps, len(energy))
    check(bool(energy.sum() > 0), "energy", energy.sum(), "a sum above 0")
    return float((gain @ energy / energy.sum()) ** 2 / np.mean(gain**2))
