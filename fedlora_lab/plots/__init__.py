"""From a tidy frame, or a method's row, to a figure: the same colour for a method everywhere, bands for every mean."""

from fedlora_lab.plots.amplifier import amplifier, energy_check, rank_check, run_check, share_check
from fedlora_lab.plots.clipping import Clip, clip, clip_check
from fedlora_lab.plots.curves import curves, epsilon
from fedlora_lab.plots.deviation import deviation
from fedlora_lab.plots.live import images, live
from fedlora_lab.plots.noise import noise
from fedlora_lab.plots.overview import overview
from fedlora_lab.plots.promise import composition, planner, worlds
from fedlora_lab.plots.score import score, scores
from fedlora_lab.plots.timeline import timeline
from fedlora_lab.plots.traffic import traffic

__all__ = [
    "Clip",
    "amplifier",
    "clip",
    "clip_check",
    "composition",
    "curves",
    "deviation",
    "energy_check",
    "epsilon",
    "images",
    "live",
    "noise",
    "overview",
    "planner",
    "rank_check",
    "run_check",
    "score",
    "scores",
    "share_check",
    "timeline",
    "traffic",
    "worlds",
]
