"""Figures of tidy frames and of methods, each method in one colour, each mean with its band."""

from fedlora_lab.plots.scores import score, scores
from fedlora_lab.plots.theory_checks import Measurements, band_check, share_inside, theory_check
from fedlora_lab.plots.training_curves import (
    budgets,
    client_scaling,
    curves,
    deviation,
    epsilon,
    final_values,
    noise,
    overview,
    step_size,
    traffic,
)

__all__ = [
    "Measurements",
    "band_check",
    "budgets",
    "client_scaling",
    "curves",
    "deviation",
    "epsilon",
    "final_values",
    "noise",
    "overview",
    "score",
    "scores",
    "share_inside",
    "step_size",
    "theory_check",
    "traffic",
]
