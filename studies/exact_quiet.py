"""Does an exact server end elsewhere than averaged factors, where nothing else differs?

    python -m studies.exact_quiet    trains, and says the difference

FedEx-LoRA, which changes the server alone, and FedLoRA train on digits without privacy, both at the
rates that were tuned for FedLoRA, with the seeds of the study digits-example.
"""

from typing import Any

import fedlora_lab as fl
from studies import RESULTS, runner
from studies.declared import digits

FRAME = RESULTS / "exact-quiet.csv"
STORE = RESULTS / "runs" / "exact-quiet"
ROWS = ("fedlora", "fedex-lora")
RATES = {"A": 0.08, "B": 0.16}
"""Those of FedLoRA in the study."""
SEEDS = range(20)
ROUNDS = (1, 5, 10, 20)
"""After which the share of the mean product that the server misses is kept."""


def main() -> None:
    """Trains what the store lacks, and writes a row a method and seed."""
    (case,) = digits(("fedlora",), (None,))
    name, arguments = case.task
    task, plan = runner.build_task(name, arguments), fl.Plan(**case.plan).replace(lr=RATES)
    options: Any = {"lora": fl.Lora(**case.lora), "out": STORE, "jobs": 1, "progress": False}
    frame = fl.compare(
        task, list(ROWS), None, plan, list(SEEDS), evaluate_every=plan.rounds, **options
    )
    rows = frame[frame["layer"] == "all"]
    last = rows[(rows["round"] == plan.rounds) & (rows["measure"] == "accuracy")]
    runs = last.set_index(["method", "seed"])[["value"]].rename(columns={"value": "accuracy"})
    missed = rows[(rows["measure"] == "deviation") & rows["round"].isin(ROUNDS)]
    by_round = missed.pivot(index=["method", "seed"], columns="round", values="value")
    runs = runs.join(by_round.rename(columns="deviation_{}".format)).reset_index()
    runs.to_csv(FRAME, index=False, float_format="%.4g")
    print(fl.report.paired_difference(runs, "fedex-lora", "fedlora"))


if __name__ == "__main__":
    main()
