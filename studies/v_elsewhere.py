"""Where v fails: other adapted layers, and fewer steps, than those that it was tested on.

    python -m studies.v_elsewhere        writes results/v-elsewhere.csv, a row a run

Digits, ten clients, every example protected at ε = 8, rank 4 and α/r = 2, as in the registered
test. Changed is one thing at a time: one adapted layer, or 20 rounds of one step. The grid goes by
octaves around the rate at which v is 0.35; the end of the range is read off 540 public scans.
"""

import math
import sys
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
from tqdm import tqdm

import fedlora_lab as fl
from fedlora_lab import methods
from fedlora_lab._utils.files import write_atomically
from fedlora_lab.federated.compare import Cell, run_cells
from fedlora_lab.recipes.rehearsal import plateau_end
from fedlora_lab.recipes.tuned_rates import OUTPUT_VARIANCE, noise_taken_up
from studies import RESULTS, protocol

FRAME = RESULTS / "v-elsewhere.csv"
METHODS = ("fedlora", "ffa-lora")
SEEDS = (0, 1)


@dataclass(frozen=True)
class Case:
    """What is changed, and the octaves around the predicted end that are run."""

    targets: Any
    local_steps: int
    octaves: range


CASES = {
    "one layer": Case(("blocks.3.value",), 5, range(-1, 6)),
    "few steps": Case(None, 1, range(-3, 3)),
}


def cells(name: str, slug: str) -> tuple[list[Cell], float]:
    """The runs of a case and a method, and the rate at which v is 0.35."""
    case = CASES[name]
    row = methods.get(slug)
    made = []
    end = 0.0
    for seed in SEEDS:
        given = {} if case.targets is None else {"targets": case.targets}
        task = fl.tasks.digits(clients=10, dirichlet=0.5, seed=seed, **given)
        plan = fl.Plan(rounds=20, local_steps=case.local_steps, batch=16, lr=1.0)
        privacy = fl.Privacy(delta=1e-4).calibrate(epsilon=8, task=task, plan=plan)
        noise = noise_taken_up(task, row, privacy, plan, protocol.LORA)
        end = end or noise.factor(OUTPUT_VARIANCE)  # the grid is the first seed's
        task = protocol.scored_apart(task)
        for octave in case.octaves:
            its_plan = plan.replace(lr=end * 2**octave)
            cell = Cell.from_name(row, task, privacy, its_plan, protocol.LORA, seed)
            made.append(replace(cell, setting={"case": name, "octave": octave}))
    return made, end


def run() -> pd.DataFrame:
    """Trains all: columns case, method, predicted, octave, lr, seed, score."""
    parts = []
    for name in CASES:
        for slug in METHODS:
            some, end = cells(name, slug)
            frame = run_cells(
                some, {"evaluate_every": 20}, None, 1, tqdm(total=20 * len(some), disable=True)
            )
            last = frame[(frame["layer"] == "all") & (frame["round"] == 20)]
            keys = ["case", "method", "octave", "seed"]
            scores = last.pivot(index=keys, columns="measure", values="value").reset_index()
            # 180 scans for validation and 360 for testing, all of them public.
            scores["score"] = (scores["validation"] + 2 * scores["accuracy"]) / 3
            scores["predicted"] = end
            scores["lr"] = end * 2.0 ** scores["octave"].astype(float)
            parts.append(scores[[*keys, "predicted", "lr", "score"]])
            print(name, slug, octaves_late(parts[-1]), flush=True)
    return pd.concat(parts)


def octaves_late(frame: pd.DataFrame) -> dict[tuple[str, str], float]:
    """By how many octaves the predicted end lies behind the one that was found; below zero, early.

    Args: frame: see `run`.
    Returns: by case and method.
    """
    late = {}
    for (case, method), part in frame.groupby(["case", "method"], sort=False):
        # In multiples of the predicted end, so that the logarithm is the answer.
        means = part.groupby(2.0 ** part["octave"].astype(float))["score"].mean()
        late[str(case), str(method)] = -math.log2(plateau_end(means))
    return late


def main() -> None:
    write_atomically(FRAME, run().to_csv(index=False, float_format="%.4g"), shared=True)


if __name__ == "__main__":
    sys.exit(main())
