"""Where each method's plateau over the learning rate ends: predicted from noise, then measured.

    python -m studies.rates     # writes results/rates-predicted.csv; trains nothing

The rule was read off committed tuning runs on digits at ε = 3 (results/noise-limits.csv), in both
units. The validation score falls 3 points below its best where the noise that B takes up reaches
about 3, which is ρ where A is noised alike. With A at rest it is about 18. The study `rates` has
other budgets, 1 and 8, and other seeds.
"""

from pathlib import Path
from typing import Any

import pandas as pd

import fedlora_lab as fl
from fedlora_lab.experiments.tuned_rates import noise_taken_up
from studies import runner
from studies.declared import STUDIES, Job

RESULTS = Path(__file__).resolve().parent.parent / "results"
PREDICTED = RESULTS / "rates-predicted.csv"
BOTH_NOISED = 3.0
"""ρ at which a plateau ends where both factors take up noise."""
A_AT_REST = 18.0
"""The same number, 3 d_in N τ² of B, where A is frozen."""


def predict() -> pd.DataFrame:
    """Tabulates the noise of every setting of the study, and whether it lies on the plateau.

    Returns: method, unit, epsilon, lr, rho (of A, NaN where no run tells before), taken_up (by B)
        and on_plateau.
    """
    study = STUDIES["rates"]
    assert study.settings is not None
    rows = []
    for case in study.cases:
        for setting in study.settings[case.key]:
            arguments: Any = runner.job_arguments(Job(case, setting, study.seeds[0], tune=False))
            taken_up = noise_taken_up(*arguments).value
            limit = A_AT_REST if case.method.slug == "ffa-lora" else BOTH_NOISED
            rho = fl.amplification(*arguments).mean
            row = {"method": case.method.slug, **case.labels, "lr": setting.lr, "rho": rho}
            rows.append({**row, "taken_up": taken_up, "on_plateau": taken_up <= limit})
    return pd.DataFrame(rows)


def main() -> None:
    table = predict()
    table.to_csv(PREDICTED, index=False, float_format="%.4g")
    ends = table[table["on_plateau"]].groupby(["unit", "epsilon", "method"], sort=False)["lr"].max()
    print(ends.unstack("method"))


if __name__ == "__main__":
    main()
