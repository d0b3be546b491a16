"""Where does a range of learning rates end? Three rules, with predictions that came before any run.

    python -m studies.ends predict           writes studies/ends-predicted.csv; trains nothing
    python -m studies.ends run [--cell X]    trains what is missing of all cells or of one
                           [--jobs N]
    python -m studies.ends judge             how far each rule is off, over the finished cells

An end is the rate at which the mean validation accuracy of five seeds is three points below its
best (`rates.plateau_end`); every seed has a split of its own. The rules, in the rate of B:

- v: the variance of the run's noise on an output is 0.35 (`theory.output_variance`), the same bound
  for all methods;
- u: the noise that B takes up, 3 d_in N tau^2, is 3, or 18 where A is frozen;
- curvature: 2 over the largest eigenvalue of the loss' Hessian in the factors at the start, on the
  public validation scans (after arXiv:2602.04998, which uses it without privacy).

Nine rates by half octaves lie around the geometric mean of the ends that v and u predict, without
privacy around that of the curvature. Without privacy v and u predict no end, with it the curvature
predicts the end of training without noise. Cells of texts need the files that `studies.sentiment`
names; their noise is computed from committed frames, their curvature where the files are.

Registered beside the rules: v is nearer than u where alpha / r or the rank is not that of the cell
at the centre; the mean error of v at K = 5 and K = 20 tells whether a factor 1 + (K - 1)/T belongs
to it; RoLoRA and LA-LoRA, whose factors take turns, end before v says.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
import torch

import fedlora_lab as fl
from fedlora_lab import theory
from fedlora_lab.experiments.tuned_rates import OUTPUT_VARIANCE, noise_taken_up
from studies import RESULTS, rates, runner
from studies.declared import STUDIES, Case, digits

PREDICTED = Path(__file__).with_name("ends-predicted.csv")
STORE = RESULTS / "runs" / "ends.jsonl"
METHODS = ("fedlora", "ffa-lora", "rolora", "la-lora")
RULES = ("v", "u", "curvature")
INPUTS = {"digits": 64, "sentiment": 384, "texts-768": 768}
"""Task -> inputs of every adapted layer."""
HALF_OCTAVES = np.arange(-4, 5) / 2
SEEDS = range(5)


@dataclass(frozen=True)
class Cell:
    """A setting in which four methods are run over the rate.

    Args:
        case: task, budget, privacy and plan; its method and adapter do not count.
        rank, scaling: of the adapter; scaling is alpha / r.
    """

    name: str
    case: Case
    rank: int = 4
    scaling: float = 2.0

    @property
    def lora(self) -> fl.Lora:
        return fl.Lora(rank=self.rank, alpha=self.rank * self.scaling)

    def setting(self, seed: int) -> tuple[Any, Any, fl.Plan]:
        """Task, privacy and plan of a seed, which draws the split anew."""
        name, arguments = self.case.task
        task = runner.build_task(name, {**arguments, "seed": seed})
        plan = fl.Plan(**self.case.plan)
        if self.case.epsilon is None:
            return task, None, plan
        privacy = fl.Privacy(**self.case.privacy)
        return task, privacy.calibrate(epsilon=self.case.epsilon, task=task, plan=plan), plan


def _cells() -> Iterator[Cell]:
    (centre,) = digits(("fedlora",), (8.0,))
    for scaling in (0.5, 2.0, 8.0):
        for rank in (1, 4, 16):
            yield Cell(f"scaling {scaling:g}, rank {rank}", centre, rank, scaling)
    for name, (case,) in {
        "no privacy": digits(("fedlora",), (None,)),
        "epsilon 1": digits(("fedlora",), (1.0,)),
        "5 clients": digits(("fedlora",), (8.0,), clients=5),
        "20 clients": digits(("fedlora",), (8.0,), clients=20),
    }.items():
        yield Cell(name, case)
    for study in ("rates-elsewhere", "rates-768"):
        case = next(case for case in STUDIES[study].cases if case.task[0] in INPUTS)
        for scaling in (0.5, 2.0, 8.0):
            yield Cell(f"{case.task[0]}, scaling {scaling:g}", case, scaling=scaling)


CELLS = {cell.name: cell for cell in _cells()}


def rates_of(slug: str, rate: float) -> "float | dict[str, float]":
    """The rates of both factors at a rate of B; LA-LoRA's are 2 : 1, as its authors have them."""
    return {"A": rate / 2, "B": rate} if slug == "la-lora" else rate


# ---- predictions


def noise_at_one(cell: Cell, slug: str) -> theory.OutputVariance:
    """The variance of noise on an output at a rate of 1: of digits by the forecast of the run, of
    texts from the committed predictions, which were made with the files."""
    name = cell.case.task[0]
    if name == "digits":
        task, privacy, plan = cell.setting(seed=0)
        at_one = plan.replace(lr=rates_of(slug, 1.0))
        return noise_taken_up(task, slug, privacy, at_one, cell.lora).variance
    study = "rates-elsewhere" if name == "sentiment" else "rates-768"
    table = pd.read_csv(RESULTS / f"{study}-predicted.csv")
    if "setting" in table:
        table = table[table["setting"].eq("texts")]
    here = table[table["method"].eq(slug)].iloc[0]
    linear = cell.scaling**2 * cell.rank * here["taken_up"] / here["lr"] ** 2 / (9 * INPUTS[name])
    # A's rate was B's there.
    ratio = (1 / 2 if slug == "la-lora" else 1) * float(slug != "ffa-lora")
    return theory.OutputVariance(linear, linear * here["rho"] * (ratio / here["lr"]) ** 2)


def curvature(cell: Cell) -> float:
    """The largest eigenvalue at the start of seed 0, on the validation scans."""
    task, _, plan = cell.setting(seed=0)
    first, *_ = fl.run(task, "fedlora", None, plan.replace(rounds=0), lora=cell.lora, seed=0)
    return fl.measures.flatness(task, first, task.validation)


def predict_ends(cell: Cell) -> pd.DataFrame:
    """Predicts for each method the end by each rule, and the middle of its nine rates."""
    is_here = cell.case.task[0] == "digits"
    at_curvature = 2 / curvature(cell) if is_here else math.nan
    rows = []
    for slug in METHODS:
        ends = dict.fromkeys(RULES, math.nan) | {"curvature": at_curvature}
        middle = at_curvature
        if cell.case.epsilon is not None:
            noise = noise_at_one(cell, slug)
            limit = rates.A_AT_REST if slug == "ffa-lora" else rates.BOTH_NOISED
            inputs = INPUTS[cell.case.task[0]]
            taken_up = 9 * inputs * noise.linear / (cell.scaling**2 * cell.rank)
            ends["v"] = theory.noise_factor(noise, OUTPUT_VARIANCE)
            ends["u"] = math.sqrt(limit / taken_up)
            middle = math.sqrt(ends["v"] * ends["u"])
        rows.append({"cell": cell.name, "method": slug, **ends, "middle": middle})
    return pd.DataFrame(rows)


# ---- runs


def _share_right(part: slice) -> fl.tasks.OverAll:
    def right(logits: torch.Tensor, y: torch.Tensor) -> float:
        return float((logits.argmax(1) == y)[part].double().mean())

    return fl.tasks.OverAll(right)


def scored_on_both(task: Any) -> Any:
    """The task with its validation examples before its test examples, and a score of each."""
    (x, y), (u, v) = task.validation, task.test
    joined = {key: torch.cat([x[key], u[key]]) for key in x} if isinstance(x, dict) else None
    both = (torch.cat([x, u]) if joined is None else joined), torch.cat([y, v])
    first = len(y)
    scores = {
        "accuracy": _share_right(slice(first, None)),
        "validation": _share_right(slice(first)),
    }
    return replace(task, test=both, validation=None, metrics=scores)


def run_cell(cell: Cell, seeds: Any = SEEDS, jobs: int = 1) -> pd.DataFrame:
    """Runs four methods at nine rates; what the store has is not run again.

    Args: jobs: runs at once, each with one thread, as of `fl.compare`.
    Returns: cell, method, seed, place (of the rate), lr of B, validation, and accuracy on test.
    """
    table = pd.read_csv(PREDICTED).set_index(["cell", "method"])
    frames = []
    for seed in seeds:
        task, privacy, plan = cell.setting(seed)
        task = scored_on_both(task)
        for step in HALF_OCTAVES:
            at = {m: table.loc[(cell.name, m), "middle"] * 2**step for m in METHODS}
            plans = {m: plan.replace(lr=rates_of(m, float(f"{at[m]:.4g}"))) for m in METHODS}
            options: Any = {"lora": cell.lora, "store": STORE, "evaluate_every": plan.rounds}
            options |= {"jobs": jobs, "progress": False}
            frame = fl.compare(task, METHODS, privacy, plans, [seed], **options)
            last = frame[frame["round"].eq(plan.rounds) & frame["layer"].eq("all")]
            scores = last.pivot(index="method", columns="measure", values="value").reset_index()
            scores = scores.assign(
                cell=cell.name, seed=seed, place=step, lr=scores["method"].map(at)
            )
            frames.append(scores)
    return pd.concat(frames)[["cell", "method", "seed", "place", "lr", "validation", "accuracy"]]


# ---- the judgement


def judge(runs: pd.DataFrame, draws: int = 10_000) -> pd.DataFrame:
    """Holds the rules against the ends that were measured.

    Args: runs: of whole cells, see `run_cell`. draws: of the bootstrap over cells.
    Returns: by rule the root mean square of its error in octaves of the rate, with the 95 %
        interval over cells, and over how many ends. An end beyond the grid counts as at its edge.
    """
    mean = runs.groupby(["cell", "method", "lr"])["validation"].mean()
    ends = mean.groupby(["cell", "method"]).apply(lambda x: rates.plateau_end(x.droplevel([0, 1])))
    predicted: Any = pd.read_csv(PREDICTED).set_index(["cell", "method"])
    errors = np.log2(predicted[list(RULES)]).sub(np.log2(ends), axis=0).loc[ends.index] ** 2
    by_cell = errors.groupby("cell").agg(["sum", "count"])
    picks = np.random.default_rng(0).integers(len(by_cell), size=(draws, len(by_cell)))
    rows = {}
    for rule in RULES:
        sums, counts = by_cell[rule].to_numpy().T
        drawn = np.sqrt(sums[picks].sum(1) / np.maximum(counts[picks].sum(1), 1))
        low, high = np.quantile(drawn, (0.025, 0.975))
        rows[rule] = {"error": math.sqrt(sums.sum() / counts.sum()), "low": low, "high": high}
        rows[rule] |= {"ends": int(counts.sum())}
    return pd.DataFrame.from_dict(rows, orient="index")


@click.command(help=__doc__)
@click.argument("act", type=click.Choice(["predict", "run", "judge"]))
@click.option("--cell", type=click.Choice([*CELLS]), help="One cell.  [all]")
@click.option("--jobs", default=1, help="Runs at once.  [1]")
def main(act: str, cell: str | None, jobs: int) -> None:
    cells = [CELLS[cell]] if cell else [*CELLS.values()]
    if act == "predict":
        table = pd.concat(map(predict_ends, cells))
        table.to_csv(PREDICTED, index=False, float_format="%.4g")
        return
    runs = pd.concat(run_cell(cell, jobs=jobs) for cell in cells)
    runs.to_csv(RESULTS / "ends.csv", index=False, float_format="%.4g")
    if act == "judge":
        click.echo(judge(runs).round(2))


if __name__ == "__main__":
    main()
