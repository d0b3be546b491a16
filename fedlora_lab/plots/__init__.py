"""From a tidy frame, or a method's row, to a figure: the same colour for a method everywhere, bands for every mean."""

from fedlora_lab.plots.against import against, inside
from fedlora_lab.plots.amplifier import amplifier, energy_check, rank_check, run_check, share_check
from fedlora_lab.plots.audit import audit
from fedlora_lab.plots.auditing import audit_ceilings, audit_dial, audit_results, repeated_audits
from fedlora_lab.plots.band_check import Measured, band_check, share_inside
from fedlora_lab.plots.budgets import budgets
from fedlora_lab.plots.clipping import Clip, clip, clip_check
from fedlora_lab.plots.composed import composed
from fedlora_lab.plots.curves import curves, epsilon
from fedlora_lab.plots.deviation import deviation
from fedlora_lab.plots.effects import effects, ranking
from fedlora_lab.plots.exactness import exactness_map
from fedlora_lab.plots.explorer import explorer
from fedlora_lab.plots.finals import finals
from fedlora_lab.plots.growth import growth
from fedlora_lab.plots.leak import Fading, fading, leak_check, spans
from fedlora_lab.plots.live import images, live
from fedlora_lab.plots.membership import membership
from fedlora_lab.plots.noise import noise
from fedlora_lab.plots.overview import overview
from fedlora_lab.plots.promise import composition, planner, promises, worlds
from fedlora_lab.plots.quantising import levels, protection, quantiser_check, quantiser_explorer
from fedlora_lab.plots.reach import reach
from fedlora_lab.plots.recovered import recovered
from fedlora_lab.plots.regulator import literal, regulator, regulator_words
from fedlora_lab.plots.results import View, results, results_words
from fedlora_lab.plots.score import score, scores
from fedlora_lab.plots.servers import mean_products
from fedlora_lab.plots.smoothing import coupling, filter_explorer, gradient_spectra, response_check
from fedlora_lab.plots.step_size import step_size
from fedlora_lab.plots.timeline import timeline, timeline_words
from fedlora_lab.plots.traffic import traffic
from fedlora_lab.plots.trusting import collusion, masked, rounding, trust_picker, trusts

__all__ = [
    "Clip",
    "Fading",
    "Measured",
    "View",
    "against",
    "amplifier",
    "audit",
    "audit_ceilings",
    "audit_dial",
    "audit_results",
    "band_check",
    "budgets",
    "clip",
    "clip_check",
    "collusion",
    "composed",
    "composition",
    "coupling",
    "curves",
    "deviation",
    "effects",
    "energy_check",
    "epsilon",
    "exactness_map",
    "explorer",
    "fading",
    "filter_explorer",
    "finals",
    "gradient_spectra",
    "growth",
    "images",
    "inside",
    "leak_check",
    "levels",
    "literal",
    "live",
    "masked",
    "mean_products",
    "membership",
    "noise",
    "overview",
    "planner",
    "promises",
    "protection",
    "quantiser_check",
    "quantiser_explorer",
    "rank_check",
    "ranking",
    "reach",
    "recovered",
    "regulator",
    "regulator_words",
    "repeated_audits",
    "response_check",
    "results",
    "results_words",
    "rounding",
    "run_check",
    "score",
    "scores",
    "share_check",
    "share_inside",
    "spans",
    "step_size",
    "timeline",
    "timeline_words",
    "traffic",
    "trust_picker",
    "trusts",
    "worlds",
]
