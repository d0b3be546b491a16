"""Audit every row of the table in both units at several seeds, and write results/audit.csv.

    python scripts/audit_table.py [--seeds 20]

Whole rows of the file are kept. At the end it says in how many settings an audit could have failed
at all. Leaves with status 1 where a lower bound exceeds the ledger's epsilon, or an audit is
invalid.
"""

import argparse
import csv
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

import fedlora_lab as fl
from fedlora_lab.audit.canary_audit import audit
from fedlora_lab.audit.simulated_audits import summarize_audits

OUT = Path(__file__).resolve().parent.parent / "results" / "audit.csv"
COLUMNS = ("method", "unit", "noise_multiplier", "seed", "canaries", "confidence", "delta", "loss")
COLUMNS += ("update", "epsilon_lower", "ceiling", "epsilon_upper", "invalid", "holds")
KEY = COLUMNS[:4]
PLAN = fl.Plan(rounds=6, local_steps=2, batch=8, lr=0.2)
NOISE, CANARIES, CONFIDENCE, DELTA = (0.5, 2.0), 64, 0.99, 1e-5


def one(task: Any, slug: str, unit: str, sigma: float, seed: int) -> dict[Any, Any]:
    """One audit as a row; views of single sides are left out."""
    privacy = fl.Privacy(unit=unit, noise_multiplier=sigma, delta=DELTA, accountant="rdp")
    options: dict[str, Any] = {"canaries": CANARIES, "confidence": CONFIDENCE, "seed": seed}
    found = audit(task, slug, privacy, PLAN, lora=fl.Lora(8, 8.0), **options)
    row: dict[Any, Any] = {x: getattr(found, x) for x in COLUMNS if hasattr(found, x)}
    row |= {view: found.lower.get(view, float("nan")) for view in ("loss", "update")}
    row |= {"method": slug, "noise_multiplier": sigma, "invalid": found.invalid or ""}
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
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    rows: list[Any] = kept(given.out)
    done = {tuple(row[name] for name in KEY) for row in rows}
    task = fl.tasks.regression(clients=4, examples=16, d_in=40, d_out=24, rank=4)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with open(given.out, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        settings = product(range(given.seeds), ("example", "client"), NOISE, fl.methods.ALL)
        for seed, unit, sigma, slug in settings:
            if (slug, unit, str(sigma), str(seed)) not in done:
                writer.writerow(one(task, slug, unit, sigma, seed))
                file.flush()
    frame: Any = pd.read_csv(given.out)
    shares = (frame["epsilon_lower"] / frame["ceiling"])[frame["ceiling"] > 0]
    print(f"{summarize_audits(frame)}; at most {shares.max():.0%} of a ceiling was shown")
    sys.exit(0 if frame["holds"].all() else 1)


if __name__ == "__main__":
    main()
