"""Is it the noise that ends a range of learning rates? The study `rates` without noise.

    python -m studies.quiet_rates    trains, and says the means

The six methods of study `rates` train on digits at its three largest rates with the clip of its
runs at ε = 8, every example protected, and without noise; the seeds are those of the study. A
method that falls here as well does not fall by noise.
"""

from typing import Any

import pandas as pd

import fedlora_lab as fl
from studies import RESULTS, runner
from studies.declared import SIX, digits

FRAME = RESULTS / "quiet-rates.csv"
STORE = RESULTS / "runs" / "quiet-rates"
RATES = (0.8, 1.6, 3.2)
SEEDS = range(5)


def quiet_runs() -> pd.DataFrame:
    """Trains what the store lacks: a row a method, rate and seed."""
    (case,) = digits(("fedlora",), (8.0,))
    name, arguments = case.task
    task, plan = runner.build_task(name, arguments), fl.Plan(**case.plan)
    quiet = fl.Privacy(**case.privacy, noise_multiplier=0.0)
    options: Any = {"lora": fl.Lora(**case.lora), "out": STORE, "jobs": 1, "progress": False}
    options |= {"evaluate_every": plan.rounds, "lr": list(RATES)}
    frame = fl.compare(task, list(SIX), quiet, plan, list(SEEDS), **options)
    rows = frame[(frame["layer"] == "all") & (frame["measure"] == "accuracy")]
    last = rows[rows["round"] == plan.rounds].rename(columns={"value": "accuracy"})
    return last[["method", "lr", "seed", "accuracy"]]


def main() -> None:
    """Writes the frame, and prints the means beside those with noise."""
    runs = quiet_runs()
    runs.to_csv(FRAME, index=False, float_format="%.4g")
    noised = pd.read_csv(RESULTS / "rates.csv").query("unit == 'example' and epsilon == 8")
    means = [x.pivot_table("accuracy", "method", "lr")[list(RATES)] for x in (runs, noised)]
    print(pd.concat(means, axis=1, keys=["without noise", "with noise"]).round(2))


if __name__ == "__main__":
    main()
