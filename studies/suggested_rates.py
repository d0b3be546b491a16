"""Collect the learning rates that were tuned into experiments/rates.json.

    python -m studies.suggested_rates

Read are results/digits.csv (unit example, the task's own split), results/digits-clients.csv (unit
client), results/sentiment.csv, and results/tuned.json, the searches of the embedded tasks, whose
rates go before those of the studies. Nothing is trained. Run it again when those studies have been
run again.
"""

import json
import math
from typing import Any

from fedlora_lab._utils.files import write_atomically
from fedlora_lab.experiments.tuned_rates import FILE, NO_BUDGET
from fedlora_lab.report.run_folder import to_json
from studies import RESULTS
from studies.runner import read_study, select_rows

READ: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("digits", "example", "digits", {"alpha": 0.5}),
    ("digits", "client", "digits-clients", {}),
    ("sentiment", "example", "sentiment", {}),
)


def collected() -> dict[str, Any]:
    """Task -> unit -> slug -> budget -> rate; and "setting" of a search."""
    table: dict[str, Any] = {}
    for task, unit, name, where in READ:
        frame = select_rows(read_study(name, RESULTS), **where)
        rates = table.setdefault(task, {}).setdefault(unit, {})
        tuned = frame[["method", "epsilon", "lr"]].drop_duplicates()
        for slug, epsilon, lr in tuned.itertuples(index=False):
            budget = NO_BUDGET if math.isnan(epsilon) else f"{epsilon:g}"
            rates.setdefault(slug, {})[budget] = lr
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
