"""Set the regime map beside its prediction: fedlora_lab/experiments/regime.csv, which travels with
the package, and the map's tables on docs/amplification.md.

    python scripts/regime_map.py

Reads results/regime-prediction.csv, which scripts/predict_regime.py wrote before the runs, and the
studies regime-example and regime-client as far as they are finished.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from readme import filled

from fedlora_lab._utils.files import write_atomically
from fedlora_lab.experiments.regime import MAP, PAIRS, read_map
from fedlora_lab.measures.statistics import POINTS_FOR_A_LINE, fit_line
from fedlora_lab.report.summary_table import markdown_table, require_visible

ROOT = Path(__file__).resolve().parent.parent
PREDICTION = ROOT / "results" / "regime-prediction.csv"
PAGE = ROOT / "docs" / "amplification.md"


def lines(both: Any) -> str:
    """For each unit and task: the line through its cells, its zero, and what was predicted."""
    rows = [["unit", "task", "cells", "lead for ten times ρ₁", "level at ρ₁ =", "predicted"]]
    tasks = " and ".join(sorted(set(both["task"])))
    groups = [(unit, tasks, part) for unit, part in both.groupby("unit")]
    if both["task"].nunique() > 1:
        groups += [(*key, part) for key, part in both.groupby(["unit", "task"])]
    for unit, task, part in groups:
        edge, found = f"{part['boundary'].iloc[0]:g}", ("–", "–")
        if len(part) >= POINTS_FOR_A_LINE:
            line = fit_line(np.log10(part["amplification"]), part["mean"])
            zero, low, high = (f"{10**x:.2g}" for x in line.zero)
            slope = f"{100 * line.slope:+.0f} ± {100 * line.half_slope:.0f} %".replace("-", "−")
            found = slope, "not determined" if zero == "nan" else f"{zero} [{low}, {high}]"
        rows.append([unit, task, str(len(part)), *found, edge])
    return markdown_table(rows)


def counts(cells: Any) -> str:
    """For each pair: who leads by the intervals that hold for all cells together, and by sign."""
    rows = [["compared", "ahead", "behind", "cannot tell", "mean above zero"]]
    for key, pair in PAIRS.items():
        part = cells[cells["pair"] == key]
        known, leader = part["mean"].notna(), part["leader"].value_counts()
        sides = [int(leader.get(x, 0)) for x in (pair.ahead, pair.behind)]
        others = len(part) - sum(sides)
        above = f"{int((part['mean'] > 0).sum())} of {int(known.sum())}"
        words = f"`{pair.one}` against " + ", ".join(f"`{x}`" for x in pair.others)
        rows.append([words, *map(str, sides), str(others), above])
    return markdown_table(rows)


def parts(cells: Any) -> Iterator[str]:
    """The paragraphs of the block."""
    both, planned = cells[cells["pair"] == "both"], len(pd.read_csv(PREDICTION))
    known = both[both["mean"].notna()]
    told = known[known["predicted"].isin(("both factors", "one factor"))]
    right = (told["mean"] > 0) == (told["predicted"] == "both factors")
    yield f"Measured: {len(both)} of {planned} cells, in {len(known)} of which somebody learned."
    yield lines(known)
    yield (
        f"A side was predicted for {len(told)} of these cells, and in {int(right.sum())} the mean "
        f"lead lies on it. One cell by itself is decided by intervals for all {planned} cells "
        f"together; so decided are {int(told['verdict'].isin(('hit', 'miss')).sum())}, "
        f"{int((told['verdict'] == 'hit').sum())} of them as predicted."
    )
    yield counts(cells)


if __name__ == "__main__":
    cells = read_map(ROOT / "results")
    if not len(cells):
        raise SystemExit("no cell is measured yet: fedlora-lab study regime-example")
    write_atomically(MAP, cells.to_csv(index=False, float_format="%.6g"), shared=True)
    text = filled(PAGE.read_text(encoding="utf-8"), {"regime": "\n\n".join(parts(cells))})
    write_atomically(PAGE, require_visible(text), shared=True)
