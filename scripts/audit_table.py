"""Audit every row of the table in both units at several seeds, and write results/audit.csv.

    python scripts/audit_table.py [--seeds 10]

Every setting could fail: the perfect guess of so many canaries proves more than the stated epsilon.
Nothing is sampled, so that the noise is Gaussian and the sharper bound holds as well. Whole rows of
the file are kept, and the command goes on where it was stopped. At the end it says what each
setting reached. Leaves with status 1 where a lower bound
exceeds the ledger's epsilon, or an audit is invalid.
"""

import argparse
import csv
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import fedlora_lab as fl
from fedlora_lab.audit.canary_audit import canaries as audit

OUT = Path(__file__).resolve().parent.parent / "results" / "audit.csv"
COLUMNS = ("method", "unit", "target", "seed", "noise_multiplier", "canaries", "confidence")
COLUMNS += ("delta", "loss", "update", "epsilon_lower", "gaussian_lower", "ceiling")
COLUMNS += ("epsilon_upper", "invalid", "holds")
KEY = COLUMNS[:4]
PLAN = fl.Plan(rounds=2, local_steps=2, batch=None, lr=0.02)
EPSILONS, CANARIES, CONFIDENCE, DELTA = (1.0, 3.0), 500, 0.99, 1e-5


def one(task: Any, slug: str, unit: str, target: float, seed: int) -> dict[Any, Any]:
    """One audit as a row; views of single sides are left out."""
    planned = fl.Privacy(unit=unit, delta=DELTA).calibrate(epsilon=target, task=task, plan=PLAN)
    sigma = float(np.max(np.asarray(planned.noise_multiplier, float)))
    privacy = fl.Privacy(unit=unit, noise_multiplier=sigma, delta=DELTA)
    options: dict[str, Any] = {"canaries": CANARIES, "confidence": CONFIDENCE, "seed": seed}
    found = audit(task, slug, privacy, PLAN, lora=fl.Lora(8, 8.0), **options)
    row: dict[Any, Any] = {x: getattr(found, x) for x in COLUMNS if hasattr(found, x)}
    row |= {view: found.lower.get(view, float("nan")) for view in ("loss", "update")}
    row |= {"method": slug, "target": target, "noise_multiplier": sigma}
    row["invalid"] = found.invalid or ""
    floats = {name: float(f"{x:.5g}") for name, x in row.items() if isinstance(x, float)}
    return {**row, **floats}


def kept(path: Path) -> list[dict[str, str]]:
    """The whole rows of the file; the last may have been cut off."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row.get("holds") in ("True", "False")]


def main() -> None:
    """Fill the file, then say what stands in it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    rows: list[Any] = kept(given.out)
    done = {tuple(row[name] for name in KEY) for row in rows}
    task = fl.tasks.regression(clients=4, examples=16, d_in=300, d_out=200, rank=4)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with open(given.out, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        settings = product(range(given.seeds), ("example", "client"), EPSILONS, fl.methods.ALL)
        for seed, unit, target, slug in settings:
            if (slug, unit, str(target), str(seed)) not in done:
                writer.writerow(one(task, slug, unit, target, seed))
                file.flush()
    frame: Any = pd.read_csv(given.out)
    settings = frame.groupby(["unit", "target", "method"], sort=False)
    print(settings[["epsilon_lower", "ceiling", "epsilon_upper"]].median().round(3).to_string())
    sys.exit(0 if frame["holds"].all() else 1)


if __name__ == "__main__":
    main()
