"""Collect the learning rates that were tuned into experiments/rates.json.

    python -m studies.suggested_rates

On digits, rates of the client unit come from the first tuning seeds of the study digits-client, at
its own clip norm. Those of the example unit are of an earlier search on an earlier model of the
task (results/earlier-rates.json); a test judges them by the runs of today's. On texts they come
from results/sentiment.csv. results/tuned.json, a search at one budget on the embedded tasks, goes
before all of them. Nothing is trained.
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


def rates_by_client() -> Rates:
    """Lists the rate with the best mean over the tuning seeds that tried all, at the clip norm of
    the study and with one rate for A and B.
    """
    tried = runner.screen_frame("digits-client", RESULTS, every=True)
    plain = tried[(tried["clip"] == 1) & (tried["ratio"] == 1)]
    means = plain.groupby(["method", "epsilon", "lr"], sort=False)["accuracy"].mean()
    rates: Rates = {}
    for slug, epsilon, lr in means.groupby(["method", "epsilon"], sort=False).idxmax():
        rates.setdefault(slug, {})[f"{epsilon:g}"] = lr
    return rates


def rates_of_frame(frame: pd.DataFrame) -> Rates:
    """Lists the rates of a study's reported runs."""
    rates: Rates = {}
    tuned = frame[["method", "epsilon", "lr"]].drop_duplicates()
    for slug, epsilon, lr in tuned.itertuples(index=False):
        budget = NO_BUDGET if math.isnan(epsilon) else f"{epsilon:g}"
        rates.setdefault(slug, {})[budget] = lr
    return rates


def collected() -> dict[str, Any]:
    """Task -> unit -> slug -> budget -> rate; and "setting" of a search."""
    earlier = json.loads((RESULTS / "earlier-rates.json").read_text("utf-8"))
    table: dict[str, Any] = {
        "digits": {"example": earlier, "client": rates_by_client()},
        "sentiment": {"example": rates_of_frame(runner.read_study("sentiment", RESULTS))},
    }
    for task, search in json.loads((RESULTS / "tuned.json").read_text("utf-8")).items():
        rates = table.setdefault(task, {}).setdefault("example", {})
        budget = f"{search['setting']['epsilon']:g}"
        for slug, row in search["methods"].items():
            rates.setdefault(slug, {})[budget] = row["lr"]
        # Searched is FedLoRA's row, without privacy.
        alone = search["methods"]["non-private"]["lr"]
        rates["non-private"] = {NO_BUDGET: alone}
        rates["fedlora"][NO_BUDGET] = alone
        parts = ("plan", "privacy", "lora")
        table[task]["setting"] = {part: search["setting"][part] for part in parts}
    return table


def main() -> None:
    write_atomically(FILE, to_json(collected()), shared=True)


if __name__ == "__main__":
    main()
