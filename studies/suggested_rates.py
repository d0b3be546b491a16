"""Collect the learning rates that the studies tuned into experiments/suggested.json.

    python -m studies.suggested_rates

Read are results/digits.csv (unit example, the task's own split), results/digits-clients.csv (unit
client) and results/sentiment.csv. Nothing is trained. Run it again when those studies have been run
again.
"""

from pathlib import Path
from typing import Any

from fedlora_lab._utils.files import write_atomically
from fedlora_lab.experiments.tuned_rates import SUGGESTED, budget_label
from fedlora_lab.report.run_folder import to_json
from studies.claims import STALE
from studies.runner import read_study

RESULTS = Path(__file__).resolve().parent.parent / "results"
READ: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("digits", "example", "digits", {"alpha": 0.5}),
    ("digits", "client", "digits-clients", {}),
    ("sentiment", "example", "sentiment", {}),
)


def collected() -> dict[str, Any]:
    """Task -> unit -> {"study", "rates": slug -> ε -> rate}, without rows that wait for new
    measurement.
    """
    table: dict[str, Any] = {}
    for task, unit, name, where in READ:
        frame: Any = read_study(name, RESULTS)
        stale = {method for study, method in STALE if study == name}
        frame = frame[~frame["method"].isin(stale)]
        for column, value in where.items():
            frame = frame[frame[column] == value]
        rates: dict[str, dict[str, float]] = {}
        for slug, epsilon, lr in (
            frame[["method", "epsilon", "lr"]].drop_duplicates().itertuples(index=False)
        ):
            rates.setdefault(slug, {})[budget_label(None if epsilon != epsilon else epsilon)] = lr
        table.setdefault(task, {})[unit] = {"study": name, "rates": dict(sorted(rates.items()))}
    return table


def main() -> None:
    write_atomically(SUGGESTED, to_json(collected()))


if __name__ == "__main__":
    main()
