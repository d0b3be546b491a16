"""Where does a range of rates end? v, the dry run and the rehearsal, on cells that none has seen.

    python -m studies.rehearsals predict    writes studies/rehearsals-predicted.csv; no private run
    python -m studies.rehearsals run        trains what results/rehearsals.csv lacks
    python -m studies.rehearsals judge      says how far each prediction is off

Both of the first two go on after a kill at any point: a cell or a run is a line. A cell is a method
in a setting of layers, steps, rank, unit, optimiser, task and budget. Its rates are:

- Rehearsal: octaves of 1, five of them around the end that v predicts (one below it, three above;
  around `START` where v refuses the row), then two more at a time, upwards until the score has
  fallen by three points, downwards until the best is not the least, at most `FURTHER` times in all.
  Two runs a rate.
- Private runs: half-octaves between these, five of them around the end that the rehearsal found
  (three below it, two above), and further by the same rule. Two seeds on one split; and the rate
  that the rehearsal chose. Each cell has a split of its own.
- Twins: the same rates, clip and first seed, without noise.

An end is the rate at which the mean score over all public examples that are scored falls three
points below its best (`rehearsal.plateau_end`). The rehearsal learns and scores on the validation
examples; of sentences, on the first half of the test sentences. What a chosen rate costs is
measured on the other public examples, which no rehearsal reads.

Registered before any private run of a cell, over all cells whose ends lie on their grids:

1. The rehearsal's end is off by at most .25 octaves in the median and .6 in the root mean square,
   and is nearer than v's and the dry run's.
2. The rate that it chooses costs at most three points against the best of the grid in nine of ten
   cells.
3. The dry run flags a cell for steps that may end the range (its `warning` names clipped steps)
   where the twin without noise ends within half an octave of the found end or before, and only
   there, in eight of ten cells.

What had been seen: 29 ends of a sketch with other seeds and partly like settings, on which .55 of
`recipes.dry_run` was chosen, and on which a rehearsal by other code was off by .57 octaves.
"""

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import fedlora_lab as fl
from fedlora_lab.federated.run import Diverged
from fedlora_lab.recipes.dry_run import at_rate
from fedlora_lab.recipes.rehearsal import plateau_end
from fedlora_lab.recipes.tuned_rates import OUTPUT_VARIANCE, noise_taken_up
from fedlora_lab.tasks.task import Task, take
from studies import RESULTS
from studies.protocol import scored_apart

PREDICTED = Path(__file__).with_name("rehearsals-predicted.csv")
FRAME = RESULTS / "rehearsals.csv"
JUDGED = RESULTS / "rehearsals-judged.csv"
SEEDS = (200, 201)
START = 0.5
FURTHER = 3
FALL = 0.03
VALUES = tuple(f"blocks.{i}.value" for i in range(4))
EVERY = ("query", "key", "value", "out", "up", "down")
ONE_STEP = {"rounds": 20, "local_steps": 1, "batch": 8}
FIVE_STEPS = {"rounds": 20, "local_steps": 5, "batch": 8}
SHORT = {"rounds": 6, "local_steps": 5, "batch": 8}
BY_CLIENT = {"rounds": 15, "local_steps": 2, "batch": None, "participation": 0.3}
ONE_LAYER = ("blocks.1.value",)


@dataclass(frozen=True)
class Setting:
    """What the cells of a row of `SETTINGS` have in common.

    Args:
        methods: a cell each.
        task: name of the task.
        targets, rank: of the adapters; alpha is twice the rank.
        plan: without its rate. privacy: fields that are not the default of the study.
        epsilon: that is spent.
        clients, head: of the task.
    """

    methods: tuple[str, ...]
    targets: tuple[str, ...] = ("query", "value")
    rank: int = 4
    plan: Mapping[str, Any] = field(default_factory=lambda: ONE_STEP)
    epsilon: float = 8.0
    task: str = "digits"
    unit: str = "example"
    clients: int = 4
    head: str | None = None


PAIR = ("fedlora", "ffa-lora")
ADAMW = {"optimizer": "adamw"}
SETTINGS = {
    # Digits, other layers.
    "one value map": Setting(PAIR, targets=ONE_LAYER),
    "one value map, rank 1, short rounds": Setting(PAIR, ("blocks.3.value",), 1, SHORT),
    "one output map, rank 16": Setting(PAIR, ("blocks.0.out",), 16),
    "four key maps": Setting(PAIR, ("key",), plan=ONE_STEP | {"rounds": 30}),
    "four value maps, LA-LoRA and turns": Setting(("la-lora", "rolora"), VALUES, plan=SHORT),
    "four up maps, rank 2": Setting(PAIR, ("up",), 2, SHORT),
    "all maps, rank 2, epsilon 3": Setting(PAIR, EVERY, 2, epsilon=3.0),
    "four down maps, clients protected": Setting(
        PAIR, ("down",), 8, BY_CLIENT, unit="client", clients=20
    ),
    "one block's MLP, epsilon 1": Setting(
        PAIR, ("blocks.2.up", "blocks.2.down"), plan=ONE_STEP | {"rounds": 30}, epsilon=1.0
    ),
    "patches": Setting(PAIR, ("patch",), 2),
    "one block's attention, momentum": Setting(
        PAIR,
        ("blocks.1.query", "blocks.1.key", "blocks.1.value"),
        plan=SHORT | {"optimizer": {"name": "sgd", "momentum": 0.9}},
    ),
    "one value map, AdamW": Setting(PAIR, ("blocks.3.value",), plan=SHORT | ADAMW),
    # Other models.
    "fashion qv": Setting(PAIR, task="fashion", clients=4, epsilon=1.0),
    "fashion, one value map": Setting(
        PAIR, ("blocks.2.value",), task="fashion", clients=4, epsilon=1.0
    ),
    "fashion MLP": Setting(PAIR, ("up", "down"), task="fashion", clients=4, epsilon=1.0),
    "sentences": Setting(PAIR, task="sentences", clients=4, head="classifier"),
    "sentences, one value map": Setting(
        ("fedlora",), ("layer.1.attention.self.value",), task="sentences", clients=4
    ),
    # Digits, the eight query and value maps.
    "qv": Setting(PAIR, clients=8),
    "qv, rank 8, 100 steps, epsilon 3": Setting(
        ("fedlora", "rolora"), rank=8, plan=FIVE_STEPS, epsilon=3.0
    ),
    "qv, AdamW": Setting(PAIR, plan=SHORT | ADAMW),
    "qv, a trained head": Setting(PAIR, head="head"),
    "qv, clients protected": Setting(PAIR, plan=BY_CLIENT, unit="client", clients=20),
    "qv, cores": Setting(("fed-sb", "ravan"), rank=8),
}


def cells() -> Iterator[tuple[str, int, str, Setting]]:
    """Name of the setting, its number, method and setting of every cell."""
    for number, (name, setting) in enumerate(SETTINGS.items()):
        for slug in setting.methods:
            yield name, number, slug, setting


@cache
def parts_of(name: str) -> tuple[Task, Any, fl.Privacy, fl.Plan, fl.Lora]:
    """Task, public examples that rehearse, privacy, plan at a rate of 1, and adapter."""
    number, setting = [*SETTINGS].index(name), SETTINGS[name]
    options: Any = {"clients": setting.clients, "targets": setting.targets, "head": setting.head}
    seed = 300 + number
    if setting.task == "digits":
        task = fl.tasks.digits(seed=seed, **options)
        public = task.validation
    elif setting.task == "sentences":
        task = fl.tasks.sentences(seed=seed, **options)
        half = len(task.test[1]) // 2
        public = take(task.test[0], slice(half)), task.test[1][:half]
    else:
        task = fl.tasks.fashion_mnist(seed=seed, **options)
        x, y = task.validation or task.test
        public = x[:600], y[:600]
        x, y = task.test
        task = replace(task, held_out=fl.tasks.HeldOut((x[:1000], y[:1000]), public))
    plan = fl.Plan(**setting.plan, lr=1.0)
    by_client = setting.unit == "client"
    delta = 1e-2 if by_client else 1e-4 if setting.task == "digits" else 1e-5
    privacy = fl.Privacy(unit=setting.unit, clip_norm=2.0 if by_client else 1.0, delta=delta)
    privacy = privacy.calibrate(epsilon=setting.epsilon, task=task, plan=plan)
    lora = fl.Lora(rank=setting.rank, alpha=2.0 * setting.rank)
    return task, public, privacy, plan, lora


@cache
def scored_task(name: str) -> Task:
    """The task of private runs, with scores on the examples that rehearse and on the others."""
    return scored_apart(parts_of(name)[0])


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Adds a line to a table, which is begun where it is not there."""
    table = pd.DataFrame([row])
    table.to_csv(path, mode="a", header=not path.exists(), index=False, float_format="%.5g")


def read(path: Path, columns: list[str]) -> pd.DataFrame:
    """A table, or an empty one."""
    return pd.read_csv(path) if path.exists() else pd.DataFrame(columns=columns)


def is_fallen(scores: pd.Series) -> bool:
    """Whether the score at the largest rate is three points below the best."""
    return bool(scores.iloc[-1] < scores.max() - FALL)


def missing_exponents(scores: pd.Series, steps: int) -> list[float]:
    """The rates to try next, as powers of two: upwards, downwards, or none.

    Args: scores: by rate, ascending. steps: how often the grid was extended before, each way.
    """
    least, most = math.log2(scores.index[0]), math.log2(scores.index[-1])
    if not is_fallen(scores) and steps < FURTHER:
        return [most + 1, most + 2]
    if scores.idxmax() == scores.index[0] and steps < FURTHER:
        return [least - 2, least - 1]
    return []


# ---- predictions


def predict(name: str, slug: str) -> dict[str, Any]:
    """What the three say of a cell; NaN where they refuse it."""
    task, public, privacy, plan, lora = parts_of(name)
    row: dict[str, Any] = {"setting": name, "method": slug, "v": math.nan, "dry": math.nan}
    row |= {"steps": math.nan, "warning": ""}
    middle = START
    try:
        middle = noise_taken_up(task, slug, privacy, plan, lora).factor(OUTPUT_VARIANCE)
        dry = fl.dry_run(
            replace(task, held_out=fl.tasks.HeldOut(task.test, public)),
            slug,
            privacy,
            plan,
            lora=lora,
        )
        row |= {"v": middle, "dry": dry.end, "steps": dry.steps, "warning": dry.warning or ""}
    except ValueError as error:
        row["warning"] = str(error)
    first = round(math.log2(middle))
    exponents: list[float] = [float(first + i) for i in range(-1, 4)]
    table = pd.DataFrame()
    scores = pd.Series(dtype=float)
    steps = 0
    while exponents:
        rates = [2.0**exponent for exponent in exponents]
        found = fl.rehearse(task, slug, privacy, plan, rates, public=public, lora=lora)
        table = pd.concat([table, found.table]).sort_values("lr")
        scores = table.fillna(0.0).set_index("lr")["score"]
        exponents = missing_exponents(scores, steps)
        steps += 1
    row |= {"rehearsal": plateau_end(scores), "chosen": scores.idxmax()}
    # An end at the edge of the grid was not found.
    return row | {"open": not is_fallen(scores), "rates": len(scores)}


def predict_all() -> None:
    """Predicts every cell that has no prediction yet."""
    done = read(PREDICTED, ["setting", "method"])
    known = {*zip(done["setting"], done["method"], strict=True)}
    for name, _, slug, _ in cells():
        if (name, slug) not in known:
            append(PREDICTED, predict(name, slug))


# ---- runs


def score(name: str, slug: str, rate: float, seed: int, noise: bool) -> tuple[float, float]:
    """Accuracy on the examples that rehearse, and on the others; zero where a run diverged."""
    _, _, privacy, plan, lora = parts_of(name)
    privacy, plan = at_rate(privacy, plan, rate)
    if not noise:
        privacy = privacy.replace(noise_multiplier=0.0, target_epsilon=None)
    options: Any = {"lora": lora, "seed": seed, "evaluate_every": plan.rounds}
    try:
        *_, last = fl.run(scored_task(name), slug, privacy, plan, **options)
    except Diverged:
        return 0.0, 0.0
    return last.metrics["validation"], last.metrics["accuracy"]


def pooled(name: str, runs: pd.DataFrame) -> pd.Series:
    """The mean score over all public examples, by rate."""
    task, public, *_ = parts_of(name)
    count = len(public[1])
    others = len(task.test[1]) - (count if task.validation is None else 0)
    both = (count * runs["rehearsing"] + others * runs["accuracy"]) / (count + others)
    return both.groupby(runs["lr"]).mean().sort_index()


def run_cell(name: str, slug: str, predicted: Mapping[str, Any]) -> None:
    """Trains what is missing of a cell."""

    def train(rates: list[float], noise: bool) -> None:
        done = read(FRAME, ["setting", "method", "lr", "seed", "noise"])
        here = done[(done["setting"] == name) & (done["method"] == slug)]
        known = {*zip(here["lr"], here["seed"], here["noise"], strict=True)}
        for rate in rates:
            for seed in SEEDS if noise else SEEDS[:1]:
                if (rate, seed, noise) not in known:
                    first, second = score(name, slug, rate, seed, noise)
                    row = {"setting": name, "method": slug, "lr": rate, "seed": seed}
                    row |= {"noise": noise, "rehearsing": first, "accuracy": second}
                    append(FRAME, row)

    def scores(noise: bool) -> pd.Series:
        done = pd.read_csv(FRAME)
        here = (done["setting"] == name) & (done["method"] == slug) & (done["noise"] == noise)
        on_grid = done["lr"] != chosen
        return pooled(name, done[here & on_grid])

    chosen = float(f"{predicted['chosen']:.5g}")
    first = round(math.log2(predicted["rehearsal"]))
    exponents = [first + i - 0.5 for i in range(-2, 3)]
    steps = 0
    tried: list[float] = []
    while exponents:
        rates = [float(f"{2.0**exponent:.5g}") for exponent in exponents]
        tried += rates
        train(rates, True)
        exponents = missing_exponents(scores(True), steps)
        steps += 1
    train([chosen], True)
    train(tried, False)


def run_all() -> None:
    """Trains what is missing of every cell that was predicted."""
    rows: Any = pd.read_csv(PREDICTED).to_dict("records")
    for row in rows:
        run_cell(row["setting"], row["method"], row)


# ---- the judgement


def judge() -> pd.DataFrame:
    """A row a cell: what was predicted, what was found, and what the chosen rate cost."""
    runs = pd.read_csv(FRAME)
    rows = []
    for row in pd.read_csv(PREDICTED).to_dict("records"):
        name = row["setting"]
        here = runs[(runs["setting"] == name) & (runs["method"] == row["method"])]
        at_chosen = here["lr"] == float(f"{row['chosen']:.5g}")
        noised, quiet = here[here["noise"] & ~at_chosen], here[~here["noise"]]
        if not len(quiet):
            continue
        scores, twin = pooled(name, noised), pooled(name, quiet)
        means = here[here["noise"]].groupby("lr")["accuracy"].mean()
        found = plateau_end(scores) if is_fallen(scores) else math.nan
        twin_end = plateau_end(twin) if is_fallen(twin) else math.inf
        row |= {"found": found, "twin": twin_end, "best": means.max()}
        row |= {"cost": means.max() - here[here["noise"] & at_chosen]["accuracy"].mean()}
        row |= {"by_step": twin_end <= found * 2**0.5}
        row |= {"flagged": "clipped steps" in str(row["warning"])}
        rows.append(row)
    return pd.DataFrame(rows)


def errors(table: pd.DataFrame) -> pd.DataFrame:
    """For each predictor: cells, root mean square, median and largest error in octaves."""
    found = table[table["found"].notna() & ~table["open"]]
    rows = {}
    for name in ("v", "dry", "rehearsal"):
        octaves = np.log2(found[name].replace(math.inf, math.nan) / found["found"])
        off = pd.Series(octaves).dropna()
        size = off.abs()
        rows[name] = {
            "cells": len(off),
            "rms": float((off**2).mean() ** 0.5),
            "median": float(size.median()),
            "mean": float(off.mean()),
            "earliest": float(off.min()),
            "latest": float(off.max()),
        }
    return pd.DataFrame(rows).T


def main(act: str) -> None:
    if act == "predict":
        predict_all()
    elif act == "run":
        run_all()
    else:
        table = judge()
        table.to_csv(JUDGED, index=False, float_format="%.4g")
        print(table.round(3).to_string())
        print(errors(table).round(2))
        print("cost at most 3 points:", (table["cost"] <= FALL).sum(), "of", len(table))
        judged = table[table["found"].notna() & table["steps"].notna()]
        print("flags right:", (judged["flagged"] == judged["by_step"]).sum(), "of", len(judged))


if __name__ == "__main__":
    main(*sys.argv[1:])
