"""Fit the limits of `fl.suggest_lr` on the task digits.

    python -m studies.noise_limits

Read are the searches of the studies digits-example and digits-client: how well the first tuning
seed did at each rate (unit example) or clip norm (unit client), and how much noise B took up there.
The limit of a kind loses least, on the mean over its cases of both units. Written is
results/noise-limits.csv. The limits themselves stand in experiments/tuned_rates.py, which a test
holds equal. What `fl.suggest_lr` gave with them for tasks on which nothing was fitted was put into
suggested_settings.json before any run of the study `suggested`. More has been tried on digits since
then; fitted anew they would differ a little, but the predictions of `rates` and `suggested` used
these, and so they stay.
"""

from typing import Any

import numpy as np
import pandas as pd

from fedlora_lab.experiments import tuned_rates
from studies import RESULTS, runner

FRAME = RESULTS / "noise-limits.csv"
CASE = ["study", "method", "epsilon"]


def noisy_tries(key: str) -> pd.DataFrame:
    """Tabulates what the first tuning seed saw with noise and one rate for A and B."""
    table = runner.select_rows(runner.first_tries(key, RESULTS), ratio=1)
    return table[table["epsilon"].notna()].assign(study=key)


def lost_at(size: Any, scores: Any) -> Any:
    """How far a score is below the best of those that are known at some sizes.

    Between two of them the score is a straight line over the logarithm.

    Args: size: one or an array. scores: indexed by size, ascending.
    """
    return scores.max() - np.interp(np.log(size), np.log(scores.index), scores)


def profile() -> pd.DataFrame:
    """One row for each rate or clip norm that was tried on digits, the best of what it was tried
    with."""
    table = pd.concat(map(noisy_tries, ("digits-example", "digits-client")))
    noises = [tuned_rates.noise_taken_up(*runner.job_arguments(job)) for job in table["job"]]
    table["kind"] = [noise.kind for noise in noises]
    table["taken_up"] = [noise.value for noise in noises]
    table["noise"] = table["taken_up"].map("{:.3g}".format)
    best_first = table.sort_values("accuracy", ascending=False, kind="stable")
    best = best_first.drop_duplicates([*CASE, "noise"]).rename(columns={"accuracy": "score"})
    columns = [*CASE, "kind", "lr", "clip", "taken_up", "score"]
    return best.sort_values(["study", "epsilon", "method", "taken_up"])[columns]


def fit_noise_limits(table: pd.DataFrame) -> pd.DataFrame:
    """Fits for each kind the limit that loses least against the best that was tried.
    That is on the mean over its cases; between two tries the score is a straight line over the
    logarithm.

    Args: table: columns study, method, epsilon, kind, taken_up (see `NoiseTakenUp`) and score.
    Returns: by kind: limit (two digits), lost (in score, mean) and cases.
    """
    grid = np.geomspace(0.05, 50, 121)
    rows = {}
    for kind, part in table.sort_values("taken_up").groupby("kind", sort=False):
        cases = [case.set_index("taken_up")["score"] for _, case in part.groupby(CASE)]
        mean = np.mean([lost_at(grid, scores) for scores in cases], axis=0)
        rows[kind] = float(f"{grid[mean.argmin()]:.2g}"), mean.min(), len(cases)
    return pd.DataFrame.from_dict(rows, orient="index", columns=["limit", "lost", "cases"])


def main() -> None:
    table = profile()
    table.to_csv(FRAME, index=False, float_format="%.6g")
    print(fit_noise_limits(table))


if __name__ == "__main__":
    main()
