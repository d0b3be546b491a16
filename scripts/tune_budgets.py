"""Find learning rates for the small runs of notebook 05, for each method and privacy budget.

    python scripts/tune_budgets.py

Prints the mean accuracy on the validation digits after the last round, over seeds that no notebook
uses, and the best rate of the grid. As every search, it looks at private data more often than any
ledger counts: for study only.
"""

from statistics import fmean

from tune import SEEDS, judged_on_validation, score

import fedlora_lab as fl
from fedlora_lab.federated.comparison import Cell

BUDGETS = (1, 3, 8, None)
GRID = (0.05, 0.1, 0.2, 0.4, 0.8)


def main() -> None:
    task = judged_on_validation(fl.tasks.digits(clients=5, alpha=0.5, seed=0))
    plan, open_ = fl.Plan(rounds=10), fl.Privacy(delta=1e-4)
    for budget in BUDGETS:
        privacy = None if budget is None else open_.calibrate(epsilon=budget, task=task, plan=plan)
        for slug in ("fedlora", "ffa-lora"):
            found = {}
            for lr in GRID:
                cells = (
                    Cell.from_name(slug, task, privacy, plan.replace(lr=lr), fl.Lora(), seed)
                    for seed in SEEDS
                )
                found[lr] = fmean(score(cell)[1] or 0.0 for cell in cells)
            rounded = {lr: round(value, 3) for lr, value in found.items()}
            print(budget, slug, "best", max(found, key=lambda lr: found[lr]), rounded, flush=True)


if __name__ == "__main__":
    main()
