"""What an update gives away, and what the noise takes back: spans, labels, inversion, membership."""

from fedlora_lab.attacks.guesses import assembled, patches, words
from fedlora_lab.attacks.inversion import Inverted, invert, variation
from fedlora_lab.attacks.labels import counts, label
from fedlora_lab.attacks.membership import Membership, likelihood_ratio, lira, loss_difference
from fedlora_lab.attacks.span import direction, inputs_of, residual, row_space, span_check
from fedlora_lab.attacks.victim import Victim, similarity

__all__ = [
    "Inverted",
    "Membership",
    "Victim",
    "assembled",
    "counts",
    "direction",
    "inputs_of",
    "invert",
    "label",
    "likelihood_ratio",
    "lira",
    "loss_difference",
    "patches",
    "residual",
    "row_space",
    "similarity",
    "span_check",
    "variation",
    "words",
]
