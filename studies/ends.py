"""Where does a range of learning rates end? Three rules, with predictions that came before any run.

    python -m studies.ends predict         writes studies/ends-predicted.csv; trains nothing
    python -m studies.ends run [CELL]      trains what is missing of all cells, or of one
    python -m studies.ends judge [CELL]    runs too, says how far each rule is off, and draws it
    python -m studies.ends control         runs far beyond the end without noise

An end is the rate at which the mean validation accuracy of five seeds is three points below its
best (`rehearsal.plateau_end`); every seed has a split of its own. The rules, in the rate of B:

- v: the variance of the run's noise on an output is 0.35 (`theory.output_variance`), the same bound
  for all methods;
- u: the noise that B takes up, 3 d_in N tau^2, is 3, or 18 where A is frozen;
- curvature: 2 over the largest eigenvalue of the loss' Hessian in the factors at the start, on the
  public validation scans (after arXiv:2602.04998, which uses it without privacy).

Nine rates by half octaves lie around the geometric mean of the ends that v and u predict, without
privacy around that of the curvature. Without privacy v and u predict no end, with it the curvature
predicts the end of training without noise. Cells of texts need the files that `studies.sentiment`
names; their noise is computed from committed frames. Their curvature was committed later than all
else, but before any run on texts; those runs are in results/ends-texts.csv. The first of them were
trained in float32, the others with the frozen maps in bfloat16, which takes about half of the
time. Two settings were trained both ways (results/ends-both-ways.csv).

Registered beside the rules: v is nearer than u where alpha / r or the rank is not that of the cell
at the centre; the mean error of v at K = 5 and K = 20 tells whether a factor 1 + (K - 1)/T belongs
to it; RoLoRA and LA-LoRA, whose factors take turns, end before v says.
"""

import math
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import fedlora_lab as fl
from fedlora_lab import theory
from fedlora_lab._utils.files import write_atomically
from fedlora_lab.plots import style
from fedlora_lab.recipes.rehearsal import plateau_end
from fedlora_lab.recipes.tuned_rates import OUTPUT_VARIANCE, noise_taken_up
from studies import RESULTS, ROOT, rates, runner
from studies.declared import STUDIES, Case, digits
from studies.protocol import scored_apart

PREDICTED = Path(__file__).with_name("ends-predicted.csv")
FIGURE = ROOT / "docs" / "figures" / "ends.png"
STORE = RESULTS / "runs" / "ends"
FRAMES = (RESULTS / "ends.csv", RESULTS / "ends-texts.csv")
METHODS = ("fedlora", "ffa-lora", "rolora", "la-lora")
RULES = ["v", "u", "curvature"]
INPUTS = {"digits": 64, "sentiment": 384, "texts-768": 768}
"""Task -> inputs of every adapted layer."""
PRECISION = {"digits": "float32", "sentiment": "bfloat16", "texts-768": "bfloat16"}
"""Task -> precision of the frozen maps."""
BOTH_WAYS = RESULTS / "ends-both-ways.csv"
"""Runs of `FRAMES` once more, with frozen maps in bfloat16."""
CONTROL = RESULTS / "ends-control.csv"
BEYOND = {"fedlora": 1.074, "ffa-lora": 3.38}
"""Rates of the centre's grid at which noise ruins a run, 0.9 and 1.4 octaves behind the end."""
HALF_OCTAVES = np.arange(-4, 5) / 2
SEEDS = range(5)


def cells() -> dict[str, Case]:
    """The settings by name; the method of a case does not count."""
    one = ("fedlora",)
    found = {
        "no privacy": digits(one, (None,))[0],
        "epsilon 1": digits(one, (1.0,))[0],
        "5 clients": digits(one, (8.0,), clients=5)[0],
        "20 clients": digits(one, (8.0,), clients=20)[0],
    }
    sentiment, wide = STUDIES["rates-elsewhere"].cases[0], STUDIES["rates-768"].cases[0]
    for scaling in (0.5, 2.0, 8.0):
        for rank in (1, 4, 16):
            lora = {"rank": rank, "alpha": rank * scaling}
            (case,) = digits(one, (8.0,), lora=lora)
            found[f"scaling {scaling:g}, rank {rank}"] = case
            if rank == 4:
                found[f"sentiment, scaling {scaling:g}"] = replace(sentiment, lora=lora)
                found[f"texts-768, scaling {scaling:g}"] = replace(wide, lora=lora)
    return found


def setting(case: Case, seed: int) -> tuple[Any, Any, fl.Plan]:
    """Task, privacy and plan of a seed, which draws the split anew."""
    name, arguments = case.task
    task = runner.build_task(name, {**arguments, "seed": seed})
    plan = fl.Plan(**case.plan)
    if case.epsilon is None:
        return task, None, plan
    privacy = fl.Privacy(**case.privacy)
    return task, privacy.calibrate(epsilon=case.epsilon, task=task, plan=plan), plan


def rates_of(slug: str, rate: float) -> float | Mapping[str, float]:
    """The rates of both factors at a rate of B; LA-LoRA's are 2 : 1, as its authors have them."""
    return {"A": rate / 2, "B": rate} if slug == "la-lora" else rate


# ---- predictions


def noise_at_one(case: Case, slug: str) -> theory.OutputVariance:
    """The variance of noise on an output at a rate of 1: of digits by the forecast of the run, of
    texts from the committed predictions, which were made with the files."""
    name = case.task[0]
    lora = fl.Lora(**case.lora)
    if name == "digits":
        task, privacy, plan = setting(case, seed=0)
        plan = plan.replace(lr=rates_of(slug, 1.0))
        return noise_taken_up(task, slug, privacy, plan, lora).variance
    file = "rates-elsewhere" if name == "sentiment" else "rates-768"
    table: Any = pd.read_csv(RESULTS / f"{file}-predicted.csv")  # texts come first
    here = table[table["method"] == slug].iloc[0]
    per_rate = lora.scaling**2 * lora.rank / (9 * INPUTS[name]) / here["lr"] ** 2
    # Without A's noise rho is not stated; LA-LoRA's A had the rate of B there.
    rho = np.nan_to_num(here["rho"]) / here["lr"] ** 2 / (4 if slug == "la-lora" else 1)
    return theory.OutputVariance(per_rate * here["taken_up"], per_rate * here["taken_up"] * rho)


def predict_ends(name: str, case: Case) -> pd.DataFrame:
    """Predicts for each method the end by each rule, and the middle of its nine rates."""
    lora = fl.Lora(**case.lora)
    curvature = math.nan
    if case.task[0] == "digits" or "FEDLORA_STUDIES" in os.environ:
        task, _, plan = setting(case, seed=0)
        first, *_ = fl.run(task, "fedlora", None, plan.replace(rounds=0), lora=lora, seed=0)
        curvature = 2 / fl.measures.flatness(task, first, task.validation)
    rows = []
    for slug in METHODS:
        row: Any = {"cell": name, "method": slug, "curvature": curvature, "middle": curvature}
        if case.epsilon is not None:
            noise = noise_at_one(case, slug)
            taken_up = 9 * INPUTS[case.task[0]] * noise.linear / (lora.scaling**2 * lora.rank)
            limit = rates.A_AT_REST if slug == "ffa-lora" else rates.BOTH_NOISED
            row |= {"v": theory.noise_factor(noise, OUTPUT_VARIANCE)}
            row |= {"u": math.sqrt(limit / taken_up)}
            row |= {"middle": math.sqrt(row["v"] * row["u"])}
        rows.append(row)
    return pd.DataFrame(rows, columns=["cell", "method", *RULES, "middle"])


# ---- runs


def run_cell(name: str, case: Case, seeds: Any = SEEDS) -> pd.DataFrame:
    """Runs four methods at nine rates; what the store has is not run again.

    Returns: cell, method, seed, lr (of B), validation, accuracy on test, and precision.
    """
    middles = pd.read_csv(PREDICTED).query("cell == @name").set_index("method")["middle"]
    precision = PRECISION[case.task[0]]
    options: Any = {"lora": fl.Lora(**case.lora), "out": STORE, "progress": False, "jobs": 1}
    options |= {"matmul_precision": precision}
    frames = []
    for seed in seeds:
        task, privacy, plan = setting(case, seed)
        task = scored_apart(task)
        for step in HALF_OCTAVES:
            at = {slug: float(f"{middles[slug] * 2**step:.4g}") for slug in METHODS}
            plans = {slug: plan.replace(lr=rates_of(slug, at[slug])) for slug in METHODS}
            options |= {"evaluate_every": plan.rounds}
            frame: Any = fl.compare(task, METHODS, privacy, plans, [seed], **options)
            last = frame[(frame["round"] == plan.rounds) & (frame["layer"] == "all")]
            table = last.pivot(index="method", columns="measure", values="value").reset_index()
            frames.append(table.assign(cell=name, seed=seed, lr=table["method"].map(at)))
    runs = pd.concat(frames).assign(precision=precision)
    return runs[["cell", "method", "seed", "lr", "validation", "accuracy", "precision"]]


def run_control(slug: str, seed: int) -> pd.DataFrame:
    """Runs the setting at the centre without its noise, with its clip, at the rate in `BEYOND`.

    Returns: one row: method, seed, lr, validation, and accuracy on test.
    """
    case = cells()["scaling 2, rank 4"]
    task, privacy, plan = setting(case, seed)
    quiet = privacy.replace(noise_multiplier=0.0, target_epsilon=None)
    plan = plan.replace(lr=BEYOND[slug])
    options: Any = {"lora": fl.Lora(**case.lora), "seed": seed, "evaluate_every": plan.rounds}
    *_, last = fl.run(scored_apart(task), slug, quiet, plan, **options)
    row = {"method": slug, "seed": seed, "lr": plan.lr}
    return pd.DataFrame([row | {name: last.metrics[name] for name in ("validation", "accuracy")}])


def frame_of(case: Case) -> Path:
    """Where the runs of a cell are kept: those of digits and those of texts apart."""
    return FRAMES[case.task[0] != "digits"]


def save_cell(name: str, runs: pd.DataFrame, path: Path) -> None:
    """Puts a cell's runs in the place of earlier ones, in the order of the cells."""
    before = pd.read_csv(path) if path.exists() else runs[:0]
    table = pd.concat([before[before["cell"] != name], runs])
    places = {cell: i for i, cell in enumerate(cells())}
    table = table.sort_values("cell", key=lambda column: column.map(places), kind="stable")
    table.to_csv(path, index=False, float_format="%.4g")


# ---- the judgement


def with_measured(runs: pd.DataFrame) -> pd.DataFrame:
    """The predictions of the cells that were run, by cell and method, and the ends found."""
    mean = runs.groupby(["cell", "method", "lr"], sort=False)["validation"].mean()
    groups = mean.groupby(["cell", "method"], sort=False)
    ends = groups.apply(lambda scores: plateau_end(scores.droplevel([0, 1]).sort_index()))
    predicted: Any = pd.read_csv(PREDICTED).set_index(["cell", "method"])
    return predicted.loc[ends.index].assign(found=ends)


def judge(runs: pd.DataFrame, draws: int = 10_000) -> pd.DataFrame:
    """Holds the rules against the ends that were measured.

    Args: runs: of whole cells, see `run_cell`. draws: of the bootstrap over cells.
    Returns: by rule the root mean square of its error in octaves of the rate, and its 95 %
        interval over cells. An end beyond the grid counts as at its edge.
    """
    table = with_measured(runs)
    off: Any = np.log2(table[RULES].div(table["found"], axis=0))
    errors = off**2
    of_cells = errors.groupby("cell")
    sums, counts = of_cells.sum().to_numpy(), of_cells.count().to_numpy()
    picks = np.random.default_rng(0).integers(len(sums), size=(draws, len(sums)))
    drawn = np.sqrt(sums[picks].sum(1) / np.maximum(counts[picks].sum(1), 1))
    low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
    return pd.DataFrame({"error": errors.mean() ** 0.5, "low": low, "high": high}, index=RULES)


def figure(runs: pd.DataFrame) -> style.Figure:
    """Draws the ends that were found over those of each rule, for the cells with privacy: what is
    right lies on the diagonal.
    """
    table = with_measured(runs).dropna(subset=["v", "u"])
    errors = judge(runs[runs["cell"].isin(table.index.unique("cell"))])["error"]
    names = {"v": "v = 0.35", "u": "u = 3, or 18", "curvature": "2 over the curvature"}
    picture, axes = style.subplots(9.5, 3.9, columns=3, sharex=True, sharey=True)
    limits = (
        table[[*RULES, "found"]].min().min() / 1.4,
        table[[*RULES, "found"]].max().max() * 1.4,
    )
    for ax, rule in zip(axes, RULES, strict=True):
        ax.plot(limits, limits, color=style.GREY, lw=1)
        for slug, part in table.groupby("method", sort=False):
            shown = style.look(str(slug))
            style.draw_dots(
                ax, part[rule], part["found"], shown.colour, label=style.name(str(slug))
            )
        ax.set(xscale="log", yscale="log", xlim=limits, ylim=limits)
        ax.set_title(f"{names[rule]}: {errors[rule]:.2f} octaves off", loc="left", fontsize=9)
        ax.set_xlabel("end predicted, learning rate")
    axes[0].set_ylabel("end found, learning rate")
    axes[0].legend(loc="lower right", frameon=False, fontsize=8)
    cells = table.index.unique("cell")
    style.headline(
        picture,
        f"Over {len(cells)} settings of digits v is nearest to where the ranges of rates end",
    )
    style.footer(
        picture,
        "A dot: a method in a setting, five seeds; on the grey line the prediction is right. "
        "Octaves: the root mean square of the error.",
    )
    return picture


def main(act: str, cell: str = "") -> None:
    chosen = {name: case for name, case in cells().items() if cell in ("", name)}
    if act == "predict":
        table = pd.concat(predict_ends(name, case) for name, case in chosen.items())
        table.to_csv(PREDICTED, index=False, float_format="%.4g")
        return
    if act == "control":
        table = pd.concat(run_control(slug, seed) for slug in BEYOND for seed in SEEDS)
        table.to_csv(CONTROL, index=False, float_format="%.4g")
        return
    for name, case in chosen.items():
        save_cell(name, run_cell(name, case), frame_of(case))
    if act == "judge":
        for frame in FRAMES:
            print(judge(pd.read_csv(frame)).round(2))
        write_atomically(FIGURE, style.png(figure(pd.read_csv(FRAMES[0]))), shared=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
