"""Put the learning rates that studies tuned into experiments/rates.json.

    python -m studies.suggested_rates

Rates of digits in the client unit come from the first tuning seed of the study digits-client, at
its own clip norm, and those of texts from results/sentiment-example.csv. The others stay as they
are: the code that searched them is gone, those of digits at other budgets than 8 are of an earlier
model, and a test judges them by the runs of today's. Nothing is trained.
"""

import json
import math
from typing import Any

import pandas as pd

from fedlora_lab._utils.files import write_atomically
from fedlora_lab.experiments.tuned_rates import FILE, NO_BUDGET
from fedlora_lab.report.run_folder import to_json
from studies import RESULTS, runner

Rates = dict[str, dict[str, float]]  # slug -> budget -> rate


def by_budget(table: pd.DataFrame) -> Rates:
    """Lists the rates of a table of methods and budgets."""
    rates: Rates = {}
    for slug, epsilon, lr in table[["method", "epsilon", "lr"]].drop_duplicates().to_numpy():
        budget = NO_BUDGET if math.isnan(epsilon) else f"{epsilon:g}"
        rates.setdefault(slug, {})[budget] = lr
    return rates


def rates_by_client() -> Rates:
    """Lists the rate with the best score of the first tuning seed, at the clip norm of the study
    and with one rate for A and B.
    """
    tried = runner.screen_frame("digits-client", RESULTS, every=True)
    plain = tried[(tried["clip"] == 1) & (tried["ratio"] == 1)]
    best = plain.groupby(["method", "epsilon"], sort=False)["accuracy"].idxmax()
    return by_budget(plain.loc[best])


def collected() -> dict[str, Any]:
    """Task -> unit -> slug -> budget -> rate; and "setting" of a search."""
    table = json.loads(FILE.read_text("utf-8"))
    table["digits"]["client"] = rates_by_client()
    table["sentiment"] = {"example": by_budget(runner.read_study("sentiment-example", RESULTS))}
    return table


def main() -> None:
    write_atomically(FILE, to_json(collected()), shared=True)


if __name__ == "__main__":
    main()
