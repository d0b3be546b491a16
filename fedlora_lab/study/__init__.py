"""Declared grids of runs: every method tuned alike, reported on other seeds, resumable after a kill at any point."""

from fedlora_lab.study.claims import ledger
from fedlora_lab.study.coverage import coverage, frames, told
from fedlora_lab.study.declared import Case, Study
from fedlora_lab.study.factorial import effects
from fedlora_lab.study.grids import STUDIES, composed
from fedlora_lab.study.guide import guide, situations, standing
from fedlora_lab.study.published import CLAIMS
from fedlora_lab.study.results import frame, read, settings
from fedlora_lab.study.tuning_cost import tuning_cost
from fedlora_lab.study.work import play, progress

__all__ = [
    "CLAIMS",
    "STUDIES",
    "Case",
    "Study",
    "composed",
    "coverage",
    "effects",
    "frame",
    "frames",
    "guide",
    "ledger",
    "play",
    "progress",
    "read",
    "settings",
    "situations",
    "standing",
    "told",
    "tuning_cost",
]
