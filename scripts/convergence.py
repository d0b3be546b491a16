"""Loss curves of both factors, one factor and turns on noised least squares: derived, and measured.

    python scripts/convergence.py      draws docs/figures/convergence-*.png

docs/convergence.md derives the closed forms. The loss is that of `tasks.regression`, every client
takes one step a round on all its examples, nothing is clipped, and a release puts Gaussian noise of
standard deviation ``std`` (learning rate included) on every entry of an averaged factor that moves.
B starts at zero. tests/theory/test_convergence.py holds the closed forms against runs.
"""

import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from fedlora_lab._utils.files import write_atomically
from fedlora_lab.federated.run import run
from fedlora_lab.methods.method import Cycle
from fedlora_lab.methods.plan import Lora, Plan
from fedlora_lab.methods.published import FedLoRA
from fedlora_lab.plots import closed_form, style, tidy
from fedlora_lab.privacy.plan import Privacy
from fedlora_lab.tasks.regression import regression
from fedlora_lab.tasks.task import Task

FIGURES = Path(__file__).resolve().parent.parent / "docs" / "figures"
Losses = Float[np.ndarray, " n"]
Factor = Float[np.ndarray, "r d_in"]
DIVERGED = 1e6  # times the loss at the start
FAR = 1e6  # a clip norm that no gradient reaches
STEPS, LR, SCALING = 40, 0.5, 2.0  # of the figures' runs
WORDS = {"one factor": ("B",), "turns": ("B", "A"), "both factors": ("AB",)}


# ---- the closed forms


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


def frozen_floor(problem: LeastSquares, A: Factor) -> float:
    """The lowest loss that B alone reaches, given the row space of A (step 3)."""
    seen = A @ problem.cross.T
    gain = np.trace(seen.T @ np.linalg.solve(A @ problem.covariance @ A.T, seen))
    return problem.start - float(gain) / len(problem.cross)


def best_rank_loss(problem: LeastSquares, rank: int) -> float:
    """The lowest loss that a change of this rank has (Eckart and Young)."""
    values = np.linalg.svd(problem.whitened(), compute_uv=False)
    return problem.start - float(np.square(values[:rank]).sum()) / len(problem.cross)


def frozen_losses(
    problem: LeastSquares, A: Factor, steps: int, lr: float, std: float = 0.0, scaling: float = 1.0
) -> Losses:
    """The expected loss of FFA-LoRA after 0 ... steps rounds, exactly (steps 2 to 4).

    Each eigenvalue l_j of A S A^T has its own contraction h_j = 1 - 2 lr scaling^2 l_j / d_out: the
    bias falls as h_j^(2t), the noise grows as scaling^2 std^2 l_j (1 - h_j^(2t)) / (1 - h_j^2).
    """
    d_out = len(problem.cross)
    values, vectors = np.linalg.eigh(A @ problem.covariance @ A.T)
    shares = np.square(problem.cross @ A.T @ vectors).sum(0) / values / d_out
    h2 = np.square(1 - 2 / d_out * lr * scaling**2 * values)
    powers = h2 ** np.arange(steps + 1)[:, None]
    kept = np.cumsum(np.vstack([np.zeros_like(h2), powers[:-1]]), axis=0)
    noise = (scaling * std) ** 2 * (kept @ values)
    return frozen_floor(problem, A) + powers @ shares + noise


def expected_losses(
    problem: LeastSquares,
    A: Factor,
    words: Sequence[str],
    lr: float,
    std: float = 0.0,
    scaling: float = 1.0,
) -> Losses:
    """The expected loss of a schedule round by round, from moments of the factors (steps 5 to 7).

    The factors' law is kept as a Gaussian: mean and full covariance, quadratic noise included.
    Exact where one factor moves all the time, and for the first release of any schedule; elsewhere
    third cumulants and terms of order (lr std)^2 are left out.

    Args:
        problem, A: the loss, and A at the start.
        words: which factors move, one word a round: "B", "A" or "AB".
        lr, std: learning rate and noise of a release, >= 0.
        scaling: alpha / r.
    Returns: one more loss than words; infinite from where they pass a million times the first.
    """
    rate = lr * scaling * 2 / len(problem.cross)
    state = _Moments.start(len(problem.cross), A)
    losses = np.full(len(words) + 1, np.inf)
    for t, word in enumerate(("", *words)):
        if word:
            state = state.step(problem, word, rate, std, scaling)
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
        self, problem: LeastSquares, word: str, rate: float, std: float, s: float
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
        F = np.eye(len(moves)) - rate * moves[:, None] * hessian
        C = F @ self.C @ F.T + np.diag(std**2 * moves)
        B = self.B - rate * of_B * ("B" in word)
        return _Moments(B, self.A - rate * of_A * ("A" in word), C)


def noise_boundary(problem: LeastSquares, A: Factor, lr: float) -> float:
    """The noise std up to which A brings more than it costs (steps 8 and 9).

    Every direction of the product costs std^2 / (4 lr). B has r d_out of them, A adds r (d_in - r).
    """
    rank, d_in = A.shape
    missed = frozen_floor(problem, A) - best_rank_loss(problem, rank)
    return math.sqrt(4 * lr * missed / (rank * (d_in - rank)))


def start_losses(
    problem: LeastSquares,
    A: Factor,
    scales: Sequence[float],
    steps: int,
    lr: float,
    std: float,
    scaling: float = 1.0,
) -> Losses:
    """FedLoRA's final loss if A starts c times larger and the scale is divided by c (step 10)."""
    words = ("AB",) * steps
    return np.array(
        [expected_losses(problem, c * A, words, lr, std, scaling / c)[-1] for c in scales]
    )


# ---- runs of the engine


def problem_of(task: Task) -> LeastSquares:
    """The loss of a regression's clients as the closed forms take it (step 1)."""
    x, y = (np.concatenate([pair[i].double().numpy() for pair in task.clients]) for i in (0, 1))
    base: Any = task.model.get_submodule(task.targets[0]).weight
    gap = y - x @ base.detach().double().numpy().T
    return LeastSquares(x.T @ x / len(x), gap.T @ x / len(x), float(np.square(gap).mean()))


def drawn_start(task: Task, rank: int, share: float | None = None, seed: int = 0) -> Any:
    """A (rank, d_in) to start from: random as PEFT draws it, or aimed.

    Args:
        task: a regression.
        rank: of A.
        share: in [0, 1], how much of each row lies in the row space of the best change of this
            rank; ``None``: as PEFT draws it. Its norm is the same either way.
        seed: of the draw.
    """
    problem, rng = problem_of(task), np.random.default_rng(seed)
    d_in = len(problem.covariance)
    if share is None:
        return rng.uniform(-1, 1, (rank, d_in)) / d_in**0.5
    rows = np.linalg.svd(problem.whitened())[2]
    turn = np.linalg.qr(rng.standard_normal((rank, rank)))[0]
    rest = np.linalg.qr(rng.standard_normal((d_in - rank, rank)))[0].T @ rows[rank:]
    return turn @ (share**0.5 * rows[:rank] + (1 - share) ** 0.5 * rest) / 3**0.5


def measured_losses(
    task: Task,
    A: Float[np.ndarray, "r d_in"],
    words: Sequence[str],
    lr: float,
    std: float = 0.0,
    scaling: float = 1.0,
    seeds: Sequence[int] = (0,),
) -> Float[np.ndarray, "seeds n"]:
    """Test losses of runs from a given A, before and after every round; infinite once they diverge.

    Args:
        task: a regression; its test loss is the clients' where it is whitened without noise.
        A, words, lr, std, scaling: as of `expected_losses`.
        seeds: one run each.

    """
    runs = [records(task, A, words, lr, std, scaling, seed) for seed in seeds]
    found = np.array([[record.metrics["loss"] for record in one] for one in runs])
    return np.where(found < DIVERGED * found[:, :1], found, np.inf)


def final_losses(
    task: Task, A: Any, words: Sequence[str], lr: float, std: float, scaling: float, seeds: Any
) -> Float[np.ndarray, " seeds"]:
    """The last of `measured_losses`, each round between unscored.

    Args: task, A, words, lr, std, scaling, seeds: as of `measured_losses`.
    """
    given = task, A, words, lr, std, scaling
    ends = np.array([records(*given, seed, len(words))[-1].metrics["loss"] for seed in seeds])
    return np.where(ends < DIVERGED, ends, np.inf)


def records(
    task: Task,
    A: Any,
    words: Sequence[str],
    lr: float,
    std: float,
    scaling: float,
    seed: int = 0,
    every: int = 1,
) -> list[Any]:
    """All records of one such run.

    Args: task, A, words, lr, std, scaling, seed: as of `measured_losses`; every: rounds from one
        score to the next.
    """
    start = torch.from_numpy(A)

    def given(weight: torch.Tensor, rank: int) -> dict[str, torch.Tensor]:
        return {"A": start.to(weight), "B": weight.new_zeros(len(weight), rank)}

    row = FedLoRA.replace(name="given start", train=Cycle(tuple(words)), start=given)
    # Noise on the sum of a client's examples; the mean over clients has `std` after the step.
    sigma = std * task.sizes[0] * len(task.sizes) ** 0.5 / (lr * FAR)
    privacy = Privacy(clip_norm=FAR, noise_multiplier=sigma) if std else None
    plan = Plan(rounds=len(words), local_steps=1, batch=None, lr=lr)
    lora = Lora(rank=len(A), alpha=scaling * len(A))
    return list(run(task, row, privacy, plan, lora=lora, seed=seed, evaluate_every=every))


def schedule(family: str, steps: int) -> tuple[str, ...]:
    """What moves in each of so many rounds of "one factor", "turns" or "both factors"."""
    return (WORDS[family] * steps)[:steps]


def toy(d_in: int = 12, heterogeneity: float = 0.0, seed: int = 0, **sizes: Any) -> Task:
    """A small regression whose test loss is its clients' loss.

    Args: d_in, heterogeneity, seed: of `tasks.regression`; sizes: what else differs.
    """
    sizes = {"clients": 4, "examples": 24, "d_out": 8, "rank": 2, "test": 24, **sizes}
    fixed: dict[str, Any] = {"noise": 0.0, "whitened": True, "dtype": "float64"}
    return regression(d_in=d_in, heterogeneity=heterogeneity, seed=seed, **sizes, **fixed)


def leader_draws(final: Any = final_losses) -> Any:
    """Who leads, predicted and measured, in 24 settings that were fixed before any run.

    Args: final: what gives the last losses of runs, called as `final_losses`.

    Returns: d_in, heterogeneity, start, std, boundary, both, one (measured means), predicted and
        measured (share by which both factors are ahead), closed (whether std < boundary).
    """
    rows, seeds, task_seed = [], (0, 1, 2), 3
    for d_in, unlike, share, std in product((12, 24), (0.0, 0.5), (None, 0.8), (0.03, 0.1, 0.3)):
        task = toy(d_in, unlike, task_seed)
        A, problem = drawn_start(task, 2, share, task_seed), problem_of(task)
        edge = noise_boundary(problem, A, LR)
        foretold, ended = {}, {}
        for name in ("both factors", "one factor"):
            words = schedule(name, STEPS)
            foretold[name] = float(expected_losses(problem, A, words, LR, std, SCALING)[-1])
            ended[name] = final(task, A, words, LR, std, SCALING, seeds).mean()
        both, one = ended.values()
        predicted, measured = (
            1 - b / a if b < a else a / b - 1 for b, a in (foretold.values(), ended.values())
        )
        start = "random A" if share is None else "aimed A"
        rows.append((d_in, unlike, start, std, edge, both, one, predicted, measured, std < edge))
    names = ["d_in", "heterogeneity", "start", "std", "boundary", "both", "one"]
    return pd.DataFrame(rows, columns=[*names, "predicted", "measured", "closed"])


def start_draws(
    scales: Sequence[float] = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0),
    stds: Sequence[float] = (0.03, 0.1, 0.2),
    seeds: Sequence[int] = range(5),
    task: Task | None = None,
    share: float | None = 0.5,
    final: Any = final_losses,
) -> Any:
    """Final losses of FedLoRA for A started c times larger at 1 / c of the scale.

    Args:
        scales, stds: the c and the noise, each with each.
        seeds: of the runs.
        task: default `toy`.
        share: of A, as `drawn_start` takes it.
        final: what gives the last losses of runs, called as `final_losses`.

    Returns: a table as `plots.closed_form` takes it: x is c, a group is a std.
    """
    task, rows = task or toy(), []
    A, problem = drawn_start(task, 2, share), problem_of(task)
    for std in stds:
        closed = start_losses(problem, A, scales, STEPS, LR, std, SCALING)
        for c, value in zip(scales, closed, strict=True):
            words = schedule("both factors", STEPS)
            losses = final(task, c * A, words, LR, std, SCALING / c, seeds)
            finite = bool(np.isfinite(losses).all())
            ends = tidy.confidence_interval(losses) if finite else (np.inf, np.inf)
            rows.append((c, losses.mean(), *ends, value, f"noise std {std:g}", std))
    return pd.DataFrame(rows, columns=["x", "mean", "low", "high", "closed", "group", "std"])


def curve_draws(std: float = 0.03, seeds: Sequence[int] = range(20)) -> Any:
    """Loss above that of the best weight, of one factor, turns and both factors over the rounds.

    Args: std, seeds: of the noise.
    Returns: a table as `plots.closed_form` takes it: x is a round, a group is a family.
    """
    task, rows = toy(), []
    A, problem = drawn_start(task, 2, share=0.5), problem_of(task)
    least = best_rank_loss(problem, min(problem.cross.shape))
    for family in WORDS:
        given = A, schedule(family, STEPS), LR, std, SCALING
        above = measured_losses(task, *given, seeds) - least
        closed = expected_losses(problem, *given) - least
        for t in sorted({*np.geomspace(1, STEPS, 9).round().astype(int).tolist()}):
            ends = tidy.confidence_interval(above[:, t])
            rows.append((t, above[:, t].mean(), *ends, closed[t], family))
    return pd.DataFrame(rows, columns=["x", "mean", "low", "high", "closed", "group"])


def curve_check(table: Any) -> style.Picture:
    """Draws the curves that two moments predict over the means of runs.

    Args: table: as of `curve_draws`.
    """
    title = "Two moments of the factors predict the mean loss"
    return closed_form(table, x="round", y="expected loss above the least", title=title)


def start_check(table: Any) -> style.Picture:
    """Draws the final loss over the start of A, predicted and measured.

    Args: table: as of `start_draws`.
    """
    table = table[np.isfinite(table[["mean", "closed"]]).all(axis=1)]  # the others diverge
    words = "c: A starts c times larger, at 1/c of the scale"
    title = "How large A should start is known before the run"
    return closed_form(table, x=words, y="expected final loss", title=title)


@style.paper()
def leader_check(table: Any) -> style.Picture:
    """Draws by how much both factors lead over the noise, in units of the predicted boundary.

    Args: table: as of `leader_draws`.
    """
    figure, (ax,) = style.subplots(8.2, 4.6)
    x, led = table["std"] / table["boundary"], table["measured"] > 0
    right = (table["predicted"] > 0) == led
    ax.axvline(1, color=style.INK, lw=1.4, ls=style.DASHED)
    ax.axhline(0, color=style.GREY, lw=1.2)
    ax.vlines(x, table["predicted"], table["measured"], color=style.GREY, lw=1.2, zorder=1)
    ax.plot(x, table["predicted"], "_", color=style.INK, ms=11, mew=2, zorder=2)
    colours = dict(zip(dict.fromkeys(table["start"]), (style.FACTOR["B"], style.FACTOR["A"])))
    for place, (start, colour) in enumerate(colours.items()):
        part = table["start"] == start
        style.draw_dots(ax, x[part], table["measured"][part], colour, 6.5, zorder=3)
        style.note(ax, 0.02, 0.16 - 0.07 * place, f"● {start}", colour, 9, weight="bold")
    style.draw_dots(ax, x[~right], table["measured"][~right], style.WRONG, 6.5, zorder=4)
    ax.set(xscale="log", ylim=(-1.08, 1.08), xlabel="noise std / boundary of the closed form")
    ax.set_ylabel("lead of both factors\n(share of the loser's loss)")
    style.log_axis(ax.xaxis, (0.1, 0.2, 0.5, 1, 2, 5))
    ax.set_title("Up to a noise known beforehand two factors beat one")
    count, closed = int(right.sum()), int((table["closed"] == led).sum())
    words = f"dots: measured, bars: predicted from two moments; they name the leader in {count} of "
    words += f"{len(table)} settings, the dashed closed form in {closed}; −1: both factors diverge"
    style.footer(figure, words)
    return figure


if __name__ == "__main__":
    figures = {
        "curves": curve_check(curve_draws()),
        "leader": leader_check(leader_draws()),
        "start": start_check(start_draws(seeds=range(8))),
    }
    for name, figure in figures.items():
        write_atomically(FIGURES / f"convergence-{name}.png", style.png(figure), shared=True)
