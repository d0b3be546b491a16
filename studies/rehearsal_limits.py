"""What does a rehearsal need? Fewer public examples, others, own labels, fewer rounds.

    python -m studies.rehearsal_limits run      rehearses what results/rehearsal-limits.csv lacks
    python -m studies.rehearsal_limits judge    how far each variant is off, in octaves

Ten cells of `studies.rehearsals` are rehearsed again, on digits, with 180 scans there:

- few: 30 of the scans, of which 20 teach and 10 score.
- printed: 180 printed digits, such as the model was pretrained on, in the place of scans.
- own labels: the scans with the answers of the model at its start as their labels.
- short: half of the rounds, with noise of twice the variance, so that N tau^2 stays.

Each has the grid of the cell's rehearsal: the octave at its end, two below and two above, and
further by the same rule. The private runs of the cells were under way when this was written, and no
end of theirs had been looked at.

Registered before: short is off by at most .6 octaves in the root mean square, few by at most 1,
printed by more than 1, and own labels end too early in at least eight of ten cells.
"""

import math
import runpy
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import torch

import fedlora_lab as fl
from fedlora_lab.recipes.rehearsal import plateau_end
from fedlora_lab.tasks.task import Task
from studies import RESULTS, ROOT, rehearsals

FRAME = RESULTS / "rehearsal-limits.csv"
NAMES = (
    "one value map",
    "one output map, rank 16",
    "four up maps, rank 2",
    "all maps, rank 2, epsilon 3",
    "qv",
)
VARIANTS = ("few", "printed", "own labels", "short")


@cache
def printed() -> tuple[torch.Tensor, torch.Tensor]:
    """Digits printed as for the pretraining, but others."""
    return runpy.run_path(str(ROOT / "scripts" / "pretrain.py"))["printed"](180, "rehearsal")


@torch.no_grad()
def with_own_labels(task: Task, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs with the answers of the untrained model."""
    return x, task.model(x).argmax(1)


def halved(privacy: fl.Privacy, plan: fl.Plan) -> tuple[fl.Privacy, fl.Plan]:
    """Half of the rounds at the same noise over all of them."""
    sigma: Any = privacy.noise_multiplier
    factor = math.sqrt(2)
    sigma = tuple(factor * x for x in sigma) if isinstance(sigma, tuple) else factor * sigma
    louder = privacy.replace(noise_multiplier=sigma, target_epsilon=None)
    return louder, plan.replace(rounds=plan.rounds // 2)


def rehearse(name: str, slug: str, variant: str, middle: float) -> dict[str, Any]:
    """The end that a variant finds. Args: middle: where the grid begins."""
    task, public, privacy, plan, lora = rehearsals.parts_of(name)
    x, y = public
    if variant == "few":
        public = x[:30], y[:30]
    elif variant == "printed":
        public = printed()
    elif variant == "own labels":
        public = with_own_labels(task, x)
    else:
        privacy, plan = halved(privacy, plan)
    exponents = [round(math.log2(middle)) + float(i) for i in range(-2, 3)]
    table = pd.DataFrame()
    scores = pd.Series(dtype=float)
    steps = 0
    while exponents:
        rates = [2.0**exponent for exponent in exponents]
        found = fl.rehearse(task, slug, privacy, plan, rates, public=public, lora=lora)
        table = pd.concat([table, found.table]).sort_values("lr")
        scores = table.fillna(0.0).set_index("lr")["score"]
        exponents = rehearsals.missing_exponents(scores, steps)
        steps += 1
    row = {"setting": name, "method": slug, "variant": variant, "end": plateau_end(scores)}
    return row | {"chosen": scores.idxmax(), "open": not rehearsals.is_fallen(scores)}


def cells() -> Iterator[tuple[str, str, float]]:
    """Setting, method and the end of the registered rehearsal of each cell."""
    for row in pd.read_csv(rehearsals.PREDICTED).to_dict("records"):
        if row["setting"] in NAMES:
            yield row["setting"], row["method"], row["rehearsal"]


def run() -> None:
    """Rehearses what is missing, variant by variant."""
    done = rehearsals.read(FRAME, ["setting", "method", "variant"])
    known = {*zip(done["setting"], done["method"], done["variant"], strict=True)}
    for variant in VARIANTS:
        for name, slug, middle in cells():
            if (name, slug, variant) not in known:
                rehearsals.append(FRAME, rehearse(name, slug, variant, middle))


def judge() -> pd.DataFrame:
    """By variant: cells, root mean square and mean of the error in octaves, and how many early."""
    found = rehearsals.judge().set_index(["setting", "method"])["found"]
    table = pd.read_csv(FRAME)
    table = table[~table["open"]].set_index(["setting", "method"])
    off = np.log2(table["end"] / found.reindex(table.index))
    groups = off.dropna().groupby(table["variant"].to_numpy())
    return pd.DataFrame(
        {
            "cells": groups.count(),
            "rms": groups.apply(lambda x: float((x**2).mean() ** 0.5)),
            "mean": groups.mean(),
            "early": groups.apply(lambda x: int((x < 0).sum())),
        }
    )


if __name__ == "__main__":
    if sys.argv[1] == "run":
        run()
    else:
        print(judge().round(2))
