"""Fit the limits of `fl.suggest_lr` on the task digits.

    python -m studies.noise_limits

Read are the searches of the studies digits-example and digits-client: how well the first tuning
seed did at each rate (unit example) or clip norm (unit client), and how much noise B took up there.
The limit of a kind loses least, on the mean over its cases of both units. Written is
results/noise-limits.csv. The limits themselves stand in experiments/tuned_rates.py, which a test
holds equal. What `fl.suggest_lr` gave with them for tasks on which nothing was fitted was put into
suggested_settings.json before any run of the study `suggested`.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fedlora_lab.experiments import tuned_rates
from studies import runner
from studies.amplification import first_tries

RESULTS = Path(__file__).resolve().parent.parent / "results"


def profile() -> pd.DataFrame:
    """One row for each rate or clip norm that was tried on digits, the best of what it was tried
    with."""
    rows = []
    for name in ("digits-example", "digits-client"):
        for run in first_tries(name).itertuples():
            job: Any = run.job
            arguments: Any = runner.job_arguments(job)
            noise = tuned_rates.noise_taken_up(*arguments)
            row = {"study": name, "method": run.method, "epsilon": run.epsilon, "kind": noise.kind}
            row |= {"lr": run.lr, "clip": run.clip, "taken_up": noise.value, "score": run.accuracy}
            rows.append({**row, "noise": f"{noise.value:.3g}"})
    best_first = pd.DataFrame(rows).sort_values("score", ascending=False, kind="stable")
    best = best_first.drop_duplicates(["study", "method", "epsilon", "noise"])
    return best.sort_values(["study", "epsilon", "method", "taken_up"]).drop(columns="noise")


def fit_noise_limits(table: pd.DataFrame) -> pd.DataFrame:
    """Fits for each kind the limit that loses least against the best that was tried.
    That is on the mean over its cases; between two tries the score is a straight line over the
    logarithm.

    Args: table: columns study, method, epsilon, kind, taken_up (see `NoiseTakenUp`) and score.
    Returns: by kind: limit (two digits), lost (in score, mean) and cases.
    """
    grid, rows = np.geomspace(0.05, 50, 121), {}
    for kind, part in table.groupby("kind", sort=False):
        lost = [
            case["score"].max() - np.interp(np.log(grid), np.log(case["taken_up"]), case["score"])
            for _, case in part.sort_values("taken_up").groupby(["study", "method", "epsilon"])
        ]
        mean = np.mean(lost, axis=0)
        rows[kind] = float(f"{grid[mean.argmin()]:.2g}"), mean.min(), len(lost)
    return pd.DataFrame.from_dict(rows, orient="index", columns=["limit", "lost", "cases"])


def main() -> None:
    table = profile()
    table.to_csv(RESULTS / "noise-limits.csv", index=False, float_format="%.6g")
    print(fit_noise_limits(table))


if __name__ == "__main__":
    main()
