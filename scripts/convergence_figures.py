"""Draw docs/figures/convergence-*.png: runs beside `theory.convergence`, which predicted them.

    python scripts/convergence_figures.py

Every client takes one step a round on all its examples and nothing is clipped: the setting of the
closed forms. The tests of the closed forms (tests/theory/test_convergence.py) use these runs.
"""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from fedlora_lab import theory
from fedlora_lab._utils.files import write_atomically
from fedlora_lab.federated.run import run
from fedlora_lab.methods.method import Cycle
from fedlora_lab.methods.plan import Lora, Plan
from fedlora_lab.methods.published import FedLoRA
from fedlora_lab.plots import style, theory_check, tidy
from fedlora_lab.plots import theory_checks as checks
from fedlora_lab.privacy.config import Privacy
from fedlora_lab.tasks.regression import regression
from fedlora_lab.tasks.task import Task

FIGURES = Path(__file__).resolve().parent.parent / "docs" / "figures"
FAR = 1e6  # a clip norm that no gradient reaches
STEPS, LR, SCALING = 40, 0.5, 2.0  # of the figures' runs
WORDS = {"one factor": ("B",), "turns": ("B", "A"), "both factors": ("AB",)}


def problem_of(task: Task) -> theory.LeastSquares:
    """The loss of a regression's clients as the closed forms take it."""
    parts = ([pair[i].double().numpy() for pair in task.clients] for i in (0, 1))
    base: Any = task.model.get_submodule(task.targets[0]).weight
    x, y = (np.stack(part) for part in parts)
    return theory.least_squares(x, y, base.detach().double().numpy())


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
        A, words, lr, std, scaling: as of `theory.expected_losses`.
        seeds: one run each.

    Guarantees: test_expected_losses_are_the_mean_of_runs.
    """
    runs = [records(task, A, words, lr, std, scaling, seed) for seed in seeds]
    found = np.array([[record.metrics["loss"] for record in one] for one in runs])
    return np.where(found < theory.DIVERGED * found[:, :1], found, np.inf)


def final_losses(
    task: Task, A: Any, words: Sequence[str], lr: float, std: float, scaling: float, seeds: Any
) -> Float[np.ndarray, " seeds"]:
    """The last of `measured_losses`, each round between unscored.

    Args: task, A, words, lr, std, scaling, seeds: as of `measured_losses`.
    """
    given = task, A, words, lr, std, scaling
    ends = np.array([records(*given, seed, len(words))[-1].metrics["loss"] for seed in seeds])
    return np.where(ends < theory.DIVERGED, ends, np.inf)


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
        floor = theory.frozen_floor(problem, A)
        missed = floor - theory.best_rank_loss(problem, 2)
        edge = theory.boundary(problem.start - floor, missed, 8, d_in, 2, LR).second
        lead = theory.which_family(problem, A, STEPS, LR, std, SCALING)
        both, one = (
            final(task, A, schedule(name, STEPS), LR, std, SCALING, seeds).mean()
            for name in ("both factors", "one factor")
        )
        pairs = (lead.one, lead.both), (one, both)
        predicted, measured = (1 - b / a if b < a else a / b - 1 for a, b in pairs)
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

    Returns: a table as `plots.theory_check` takes it: x is c, a group is a std.
    """
    task, rows = task or toy(), []
    A, problem = drawn_start(task, 2, share), problem_of(task)
    for std in stds:
        closed = theory.start_losses(problem, A, np.array(scales), STEPS, LR, std, SCALING)
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
    Returns: a table as `plots.theory_check` takes it: x is a round, a group is a family.
    """
    task, rows = toy(), []
    A, problem = drawn_start(task, 2, share=0.5), problem_of(task)
    least = theory.best_rank_loss(problem, min(problem.cross.shape))
    for family in WORDS:
        given = A, schedule(family, STEPS), LR, std, SCALING
        above = measured_losses(task, *given, seeds) - least
        closed = theory.expected_losses(problem, *given) - least
        for t in sorted({*np.geomspace(1, STEPS, 9).round().astype(int).tolist()}):
            ends = tidy.confidence_interval(above[:, t])
            rows.append((t, above[:, t].mean(), *ends, closed[t], family))
    return pd.DataFrame(rows, columns=["x", "mean", "low", "high", "closed", "group"])


def curve_check(table: Any) -> style.Picture:
    """Draws the curves that two moments predict over the means of runs.

    Args: table: as of `curve_draws`.
    """
    title = "Two moments of the factors predict the mean loss"
    return theory_check(table, x="round", y="expected loss above the least", title=title)


def start_check(table: Any) -> style.Picture:
    """Draws the final loss over the start of A, predicted and measured.

    Args: table: as of `start_draws`.
    """
    table = table[np.isfinite(table[["mean", "closed"]]).all(axis=1)]  # the others diverge
    words = "c: A starts c times larger, at 1/c of the scale"
    title = "How large A should start is known before the run"
    return theory_check(table, x=words, y="expected final loss", title=title)


def alpha_draws(scales: Sequence[float] = (1, 2, 4, 8, 16, 32, 64), steps: int = 30) -> Any:
    """How far FedLoRA's product ends from FFA-LoRA's at c times the scale and rate / c^2.

    Args: scales: the c; steps: of the runs, which have no noise.
    Returns: columns c, measured, expected (the limit over c^2).
    """
    task = toy()
    A, problem = drawn_start(task, 2), problem_of(task)
    limit = theory.alpha_limit_gap(problem, A, steps, LR, SCALING)

    def product(word: str, c: float = 1.0) -> Any:
        given = task, A, (word,) * steps, LR / c**2, 0.0, c * SCALING
        ((a, b),) = records(*given, every=steps)[-1].adapter.values()
        return c * SCALING * (b @ a).numpy()

    frozen = product("B")
    rows = [(c, np.linalg.norm(product("AB", c) - frozen), limit / c**2) for c in scales]
    return pd.DataFrame(rows, columns=["c", "measured", "expected"])


@style.paper()
def alpha_check(table: Any) -> style.Picture:
    """Draws the distance from FFA-LoRA's product over c, and its ratio to the limit's closed form.

    Args: table: as of `alpha_draws`.
    """
    figure, left, right = checks.ratio_panels()
    colour = style.FACTOR["A"]
    left.plot(table["c"], table["expected"], color=colour)
    style.dots(left, table["c"], table["measured"], colour)
    right.axhline(1, color=style.INK, lw=1)
    right.plot(table["c"], table["measured"] / table["expected"], color=colour, lw=1)
    style.dots(right, table["c"], table["measured"] / table["expected"], colour)
    for ax in (left, right):
        ax.set(xscale="log", xlabel="c: scale times c, learning rate over c²")
        style.log_axis(ax.xaxis, tuple(table["c"]))
    left.set_xlim(None, table["c"].max() * 1.3)
    left.set(yscale="log", ylabel="distance of the products (Frobenius norm)")
    right.set(ylabel="measured / closed form", ylim=(0, 1.5))
    left.set_title("FedLoRA comes to FFA-LoRA as 1/c²")
    right.set_title("The derived constant holds from c = 16 on")
    style.footer(figure, "line: first order in 1/c²; dots: runs without privacy")
    return figure


@style.paper()
def leader_check(table: Any) -> style.Picture:
    """Draws by how much both factors lead over the noise, in units of the predicted boundary.

    Args: table: as of `leader_draws`.
    Guarantees: the footer counts the misses of both predictions
        (test_the_leader_figure_counts_its_misses).
    """
    figure, (ax,) = style.panels(8.2, 4.6, (0.115, 0.16, 0.86, 0.74))
    x, led = table["std"] / table["boundary"], table["measured"] > 0
    right = (table["predicted"] > 0) == led
    ax.axvline(1, color=style.INK, lw=1.4, ls=style.DASHED)
    ax.axhline(0, color=style.GREY, lw=1.2)
    ax.vlines(x, table["predicted"], table["measured"], color=style.GREY, lw=1.2, zorder=1)
    ax.plot(x, table["predicted"], "_", color=style.INK, ms=11, mew=2, zorder=2)
    colours = dict(zip(dict.fromkeys(table["start"]), (style.FACTOR["B"], style.FACTOR["A"])))
    for place, (start, colour) in enumerate(colours.items()):
        part = table["start"] == start
        style.dots(ax, x[part], table["measured"][part], colour, 6.5, zorder=3)
        style.note(ax, 0.02, 0.16 - 0.07 * place, f"● {start}", colour, 9, weight="bold")
    style.dots(ax, x[~right], table["measured"][~right], style.WRONG, 6.5, zorder=4)
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
        "alpha": alpha_check(alpha_draws()),
        "leader": leader_check(leader_draws()),
        "start": start_check(start_draws(seeds=range(8))),
    }
    for name, figure in figures.items():
        write_atomically(FIGURES / f"convergence-{name}.png", style.png(figure), shared=True)
