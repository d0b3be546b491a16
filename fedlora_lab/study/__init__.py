"""Declared grids of runs: every method tuned alike, reported on other seeds, resumable after a kill at any point."""

from fedlora_lab.study.declared import Case, Study
from fedlora_lab.study.grids import STUDIES
from fedlora_lab.study.results import frame, read, settings
from fedlora_lab.study.work import play, progress

__all__ = ["STUDIES", "Case", "Study", "frame", "play", "progress", "read", "settings"]
