"""Audit every row of the table in both units at ten seeds, and add what results/audit.csv lacks.

    python scripts/audit_table.py

Every setting could fail: the perfect guess of so many canaries proves more than the stated epsilon.
Nothing is sampled, so that the noise is Gaussian and the sharper bound holds as well. A test fails
where a lower bound in the file exceeds the ledger's epsilon, or an audit is invalid.
"""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import fedlora_lab as fl
from fedlora_lab._utils.files import write_atomically

OUT = Path(__file__).resolve().parent.parent / "results" / "audit.csv"
PLAN = fl.Plan(rounds=2, local_steps=2, batch=None, lr=0.02)
EPSILONS = (1.0, 3.0)
DELTA = 1e-5


def audit(task: fl.tasks.Task, slug: str, unit: str, target: float, seed: int) -> dict[str, Any]:
    """One audit as a row; views of single sides are left out.

    Args: task, slug, unit, seed: of the audited run. target: the stated epsilon.
    """
    planned = fl.Privacy(unit=unit, delta=DELTA).calibrate(epsilon=target, task=task, plan=PLAN)
    # The largest noise that a client needs, for all: one bound then speaks of every canary.
    sigma = float(np.max(np.asarray(planned.noise_multiplier, float)))
    privacy = fl.Privacy(unit=unit, noise_multiplier=sigma, delta=DELTA)
    result = fl.audit.run_audit(
        task, slug, privacy, PLAN, lora=fl.Lora(8, 8.0), canaries=500, confidence=0.99, seed=seed
    )
    row: dict[str, Any] = {"method": slug, "unit": unit, "target": target, "seed": seed}
    row |= {"noise_multiplier": sigma, "canaries": 500, "confidence": 0.99, "delta": DELTA}
    row |= {view: result.lower.get(view, float("nan")) for view in ("loss", "update")}
    for name in ("epsilon_lower", "gaussian_lower", "ceiling", "epsilon_upper"):
        row[name] = getattr(result, name)
    floats = {name: float(f"{x:.5g}") for name, x in row.items() if isinstance(x, float)}
    return {**row, **floats, "invalid": result.invalid or "", "holds": result.holds}


def main() -> None:
    """Runs the audits that the file lacks, one by one."""
    task = fl.tasks.regression(clients=4, examples=16, d_in=300, d_out=200, rank=4)
    table = pd.read_csv(OUT, keep_default_na=False)
    places = table[["method", "unit", "target", "seed"]]
    done = set(places.itertuples(index=False, name=None))
    for place in product(fl.methods.ALL, ("example", "client"), EPSILONS, range(10)):
        if place not in done:
            table = pd.concat([table, pd.DataFrame([audit(task, *place)])], ignore_index=True)
            write_atomically(OUT, table.to_csv(index=False), shared=True)


if __name__ == "__main__":
    main()
