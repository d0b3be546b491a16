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
        one, done = STUDIES[name], runner.load_results(RESULTS / "runs" / f"{name}.jsonl")
        for case in (case for case in one.cases if case.epsilon is not None):
            best: dict[float, dict[str, Any]] = {}
            tried = [x for x in runner.screen(one, case, done)[0] if x.ratio == 1]
            for job in one.screening_jobs(case, tried):
                asked: Any = runner.job_arguments(job)
                taken = tuned_rates.noise_taken_up(*asked)
                row = {"study": name, "method": case.method.slug, "epsilon": case.epsilon}
                row |= {"kind": taken.kind, "lr": job.setting.lr, "clip": job.setting.clip}
                row |= {"taken_up": taken.value, "score": runner.score(job, done)}
                key = float(f"{taken.value:.3g}")
                if key not in best or best[key]["score"] < row["score"]:
                    best[key] = row
            yield from (best[key] for key in sorted(best))


def main() -> None:
    table = pd.DataFrame(list(profile()))
    table.to_csv(RESULTS / "noise-limits.csv", index=False, float_format="%.6g")
    print(tuned_rates.fit_noise_limits(table))
    settings = {}
    for case in SUGGESTED_CASES:
        asked: Any = runner.job_arguments(Job(case, Setting(Plan().rate("B")), 0, False))
        found, clip = tuned_rates.suggest_lr(*asked), asked[2].clip_norm
        settings[case.key] = [float(f"{x:.4g}") for x in (found.lr, found.clip_norm / clip)]
    write_atomically(SUGGESTED_FILE, to_json(settings))


if __name__ == "__main__":
    main()
