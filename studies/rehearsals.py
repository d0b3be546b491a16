"""Where does a range of rates end? v, the dry run and the rehearsal, on cells that none has seen.

    python -m studies.rehearsals    says how far each prediction is off

The runs are made. In commit dfbccc7f the same command has `predict` and `run`, and the settings in
full; new cells are added there. A cell is a method in a setting of layers, steps, rank, unit,
optimiser, task and budget. Its rates are:

- Rehearsal: octaves of 1, five of them around the end that v predicts (one below it, three above;
  around 0.5 where v refuses the row), then two more at a time, upwards until the score has
  fallen by three points, downwards until the best is not the least, at most three times in all.
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
from pathlib import Path

import numpy as np
import pandas as pd

from fedlora_lab.recipes.rehearsal import plateau_end
from studies import RESULTS

PREDICTED = Path(__file__).with_name("rehearsals-predicted.csv")
FRAME = RESULTS / "rehearsals.csv"
JUDGED = RESULTS / "rehearsals-judged.csv"
FALL = 0.03
REHEARSING = {"fashion": 600 / 1600, "sentences": 400 / 800}
"""Which share of the public examples rehearses, by the first word of a setting; of digits 180 of
540 scans."""


def is_fallen(scores: pd.Series) -> bool:
    """Whether the score at the largest rate is three points below the best."""
    return bool(scores.iloc[-1] < scores.max() - FALL)


def pooled(name: str, runs: pd.DataFrame) -> pd.Series:
    """The mean score over all public examples, by rate."""
    share = REHEARSING.get(name.replace(",", " ").split()[0], 180 / 540)
    both = share * runs["rehearsing"] + (1 - share) * runs["accuracy"]
    return both.groupby(runs["lr"]).mean().sort_index()


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


def main() -> None:
    table = judge()
    table.to_csv(JUDGED, index=False, float_format="%.4g")
    print(table.round(3).to_string())
    print(errors(table).round(2))
    print("cost at most 3 points:", (table["cost"] <= FALL).sum(), "of", len(table))
    judged = table[table["found"].notna() & table["steps"].notna()]
    print("flags right:", (judged["flagged"] == judged["by_step"]).sum(), "of", len(judged))


if __name__ == "__main__":
    main()
