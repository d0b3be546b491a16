"""Fit the limits on B's noise that `fl.suggest_lr` had until it got one bound on v.

    python -m studies.noise_limits

Read are the searches of the studies digits-example and digits-client: how well the first tuning
seed did at each rate (unit example) or clip norm (unit client), and how much noise B took up there.
The limit of a kind loses least, on the mean over its cases of both units. Written is
results/noise-limits.csv. What `fl.suggest_lr` gave with these limits for tasks on which nothing was
fitted was put into suggested_settings.json before any run of the study `suggested`.

The noise that B takes up does not depend on alpha: two settings that are one run get several values
of it. So nothing is suggested from it any more (`theory.output_variance` is what is used). Both
stay here for the record, since the committed predictions used them: all of their runs share
gamma^2 r = 16, where the two rules differ by constants only.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from fedlora_lab import methods
from fedlora_lab.experiments.tuned_rates import noise_product
from fedlora_lab.federated.make_spec import make_run_spec
from fedlora_lab.federated.noise_forecast import forecast_of
from fedlora_lab.methods import aggregation
from studies import RESULTS, runner

FRAME = RESULTS / "noise-limits.csv"
CASE = ["study", "method", "epsilon"]
BALANCED = "balanced"
NOISE_LIMITS = {
    "never": 3.0,
    "at once": 1.5,
    "within a round": 1.0,
    "over rounds": 0.75,
    BALANCED: 5.9,
}
"""How noise on two factors meets (`noise_product`), or a balanced start -> how large 3 d_in
N tau^2 of B's noise was allowed to become."""


def noise_in_b(task: Any, method: Any, privacy: Any, plan: Any, lora: Any) -> tuple[float, str]:
    """Computes 3 d_in N tau^2 of B's noise, weighted by d_out over the layers, and its kind.

    Args: as of `fl.run`.
    """
    row = methods.get(method)
    spec = make_run_spec(task, row, privacy, plan, lora, 0)
    like = row.replace(aggregate=aggregation.mean, balance=None)
    forecast = forecast_of(replace(spec, method=like))
    d_in = {layer: weight.shape[1] for layer, weight in forecast.weights.items()}
    value = forecast.weighted(lambda at: 3 * d_in[at] * float(forecast.variance("B", at)[-1]))
    kind = BALANCED if row.balance is not None else noise_product(row)
    # With clients protected both factors are noised together at the end of a round.
    return value, "at once" if not privacy.by_step and kind == "within a round" else kind


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
    noises = [noise_in_b(*runner.job_arguments(job)) for job in table["job"]]
    table["taken_up"], table["kind"] = zip(*noises, strict=True)
    table["noise"] = table["taken_up"].map("{:.3g}".format)
    best_first = table.sort_values("accuracy", ascending=False, kind="stable")
    best = best_first.drop_duplicates([*CASE, "noise"]).rename(columns={"accuracy": "score"})
    columns = [*CASE, "kind", "lr", "clip", "taken_up", "score"]
    return best.sort_values(["study", "epsilon", "method", "taken_up"])[columns]


def fit_noise_limits(table: pd.DataFrame) -> pd.DataFrame:
    """Fits for each kind the limit that loses least against the best that was tried.
    That is on the mean over its cases; between two tries the score is a straight line over the
    logarithm.

    Args: table: columns study, method, epsilon, kind, taken_up (see `noise_in_b`) and score.
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
