"""Fit the limits of `fl.suggest_lr` on the task digits, and write down what it suggests elsewhere.

    python -m studies.noise_limits

Read are the searches of the studies digits-example and digits-client: how well the first tuning
seed did at each rate (unit example) or clip norm (unit client), and how much noise B took up there.
The limit of a kind loses least, on the mean over its cases of both units. Written are
results/noise-limits.csv and, for the tasks on which nothing was fitted, the settings that the study
`suggested` reports (suggested_settings.json): before any of its runs. The limits
themselves stand in experiments/tuned_rates.py, which a test holds equal.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fedlora_lab._utils.files import write_atomically
from fedlora_lab.experiments import tuned_rates
from fedlora_lab.methods.plan import Plan
from fedlora_lab.report.run_folder import to_json
from studies import runner
from studies.declared import STUDIES, SUGGESTED_CASES, SUGGESTED_FILE, Job, Setting

RESULTS = Path(__file__).resolve().parent.parent / "results"


def profile() -> Iterator[dict[str, Any]]:
    """One row for each rate or clip norm that was tried on digits, the best of what it was tried
    with."""
    for name in ("digits-example", "digits-client"):
        study = STUDIES[name]
        done = runner.load_results(RESULTS / "runs" / f"{name}.jsonl")
        for case in (case for case in study.cases if case.epsilon is not None):
            best: dict[float, dict[str, Any]] = {}
            tried = [x for x in runner.screen(study, case, done)[0] if x.ratio == 1]
            for job in study.screening_jobs(case, tried):
                arguments: Any = runner.job_arguments(job)
                noise = tuned_rates.noise_taken_up(*arguments)
                row = {"study": name, "method": case.method.slug, "epsilon": case.epsilon}
                row |= {"kind": noise.kind, "lr": job.setting.lr, "clip": job.setting.clip}
                row |= {"taken_up": noise.value, "score": runner.score(job, done)}
                key = float(f"{noise.value:.3g}")
                if key not in best or best[key]["score"] < row["score"]:
                    best[key] = row
            yield from (best[key] for key in sorted(best))


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
    table = pd.DataFrame(list(profile()))
    table.to_csv(RESULTS / "noise-limits.csv", index=False, float_format="%.6g")
    print(fit_noise_limits(table))
    settings = {}
    for case in SUGGESTED_CASES:
        arguments: Any = runner.job_arguments(Job(case, Setting(Plan().rate("B")), 0, False))
        suggestion = tuned_rates.suggest_lr(*arguments)
        clip = suggestion.clip_norm / arguments[2].clip_norm
        settings[case.key] = [float(f"{x:.4g}") for x in (suggestion.lr, clip)]
    write_atomically(SUGGESTED_FILE, to_json(settings))


if __name__ == "__main__":
    main()
