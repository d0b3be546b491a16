"""Declared grids of runs: each method is tuned alike and reported on other seeds.

A study goes on after a kill at any point.

>>> from fedlora_lab import experiments
>>> study = experiments.STUDIES["digits-rank"]
>>> len(study.cases), study.tries, study.runs
(30, 11, 480)
"""

from fedlora_lab.experiments.method_guide import (
    best_methods,
    rank_methods,
    read_studies,
    situations,
)
from fedlora_lab.experiments.paper_claims import (
    CLAIMS,
    VERDICTS,
    claim_frames,
    judge_claims,
    select_rows,
)
from fedlora_lab.experiments.regime import map_cells, measured_cells
from fedlora_lab.experiments.runner import (
    count_runs,
    read_study,
    run_study,
    study_frame,
    study_settings,
    tuning_cost,
)
from fedlora_lab.experiments.studies import STUDIES, Case, Study, factorial_methods

__all__ = [
    "CLAIMS",
    "STUDIES",
    "VERDICTS",
    "Case",
    "Study",
    "best_methods",
    "claim_frames",
    "count_runs",
    "factorial_methods",
    "judge_claims",
    "map_cells",
    "measured_cells",
    "rank_methods",
    "read_studies",
    "read_study",
    "run_study",
    "select_rows",
    "situations",
    "study_frame",
    "study_settings",
    "tuning_cost",
]
