"""Controls bound to plot functions. Nothing is computed here, and nothing runs before a button is pressed."""

from fedlora_lab.widgets.composer import Composer, method_composer
from fedlora_lab.widgets.dial import Dial, dial
from fedlora_lab.widgets.duel import Duel, duel
from fedlora_lab.widgets.lesson_01 import reach
from fedlora_lab.widgets.lesson_02 import explorer
from fedlora_lab.widgets.lesson_03 import clip_explorer, privacy_planner
from fedlora_lab.widgets.lesson_04 import noise_amplifier
from fedlora_lab.widgets.lesson_06 import regulator, schedule
from fedlora_lab.widgets.lesson_07 import filter_explorer
from fedlora_lab.widgets.lesson_08 import quantiser_explorer
from fedlora_lab.widgets.lesson_09 import results_explorer
from fedlora_lab.widgets.lesson_10 import bytes_map
from fedlora_lab.widgets.lesson_11 import attack_dial
from fedlora_lab.widgets.lesson_12 import audit_dial
from fedlora_lab.widgets.lesson_13 import trust_picker
from fedlora_lab.widgets.live import Live, live

__all__ = [
    "Composer",
    "Dial",
    "Duel",
    "Live",
    "attack_dial",
    "audit_dial",
    "bytes_map",
    "clip_explorer",
    "dial",
    "duel",
    "explorer",
    "filter_explorer",
    "live",
    "method_composer",
    "noise_amplifier",
    "privacy_planner",
    "quantiser_explorer",
    "reach",
    "regulator",
    "results_explorer",
    "schedule",
    "trust_picker",
]
