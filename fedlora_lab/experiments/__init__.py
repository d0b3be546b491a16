"""Declared grids of runs: every method tuned alike, reported on other seeds, resumable after a kill
at any point.

>>> from fedlora_lab import experiments
>>> study = experiments.STUDIES["digits-rank"]
>>> len(study.cases), study.tries, study.runs
(30, 11, 480)
"""

from fedlora_lab.experiments.method_guide import (
    describe_coverage,
    effects,
    frames,
    guide,
    rank_methods,
    situations,
)
from fedlora_lab.experiments.paper_claims import CLAIMS, VERDICTS, judge_claims
from fedlora_lab.experiments.runner import frame, progress, read, run_study, settings, tuning_cost
from fedlora_lab.experiments.studies import STUDIES, Case, Study, composed

__all__ = [
    "CLAIMS",
    "STUDIES",
    "VERDICTS",
    "Case",
    "Study",
    "composed",
    "describe_coverage",
    "effects",
    "frame",
    "frames",
    "guide",
    "judge_claims",
    "progress",
    "rank_methods",
    "read",
    "run_study",
    "settings",
    "situations",
    "tuning_cost",
]
