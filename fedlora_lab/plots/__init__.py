"""From a tidy frame, or a method's row, to a figure: the same colour for a method everywhere, bands for every mean."""

from fedlora_lab.plots.curves import curves, epsilon
from fedlora_lab.plots.deviation import deviation
from fedlora_lab.plots.live import images, live
from fedlora_lab.plots.noise import noise
from fedlora_lab.plots.overview import overview
from fedlora_lab.plots.score import score, scores
from fedlora_lab.plots.timeline import timeline
from fedlora_lab.plots.traffic import traffic

__all__ = [
    "curves",
    "deviation",
    "epsilon",
    "images",
    "live",
    "noise",
    "overview",
    "score",
    "scores",
    "timeline",
    "traffic",
]
