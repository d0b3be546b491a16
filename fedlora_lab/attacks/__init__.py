"""What an update gives away, and what the noise takes back: spans, labels, inversion, membership."""

from fedlora_lab.attacks.guesses import assembled, patches, words
from fedlora_lab.attacks.inversion import Inverted, invert, variation
from fedlora_lab.attacks.labels import counts, label
from fedlora_lab.attacks.membership import Membership, likelihood_ratio, lira, loss_difference
from fedlora_lab.attacks.scans import outside_by_batch, read_scan, same_shadow, shadow, shown, whole_scans
from fedlora_lab.attacks.sentences import PIECES, read_sentence, sentences
from fedlora_lab.attacks.span import direction, inputs_of, joined, residual, row_space, span_check
from fedlora_lab.attacks.victim import Victim, similarity

__all__ = [
    "PIECES",
    "Inverted",
    "Membership",
    "Victim",
    "assembled",
    "counts",
    "direction",
    "inputs_of",
    "invert",
    "joined",
    "label",
    "likelihood_ratio",
    "lira",
    "loss_difference",
    "outside_by_batch",
    "patches",
    "read_scan",
    "read_sentence",
    "residual",
    "row_space",
    "same_shadow",
    "sentences",
    "shadow",
    "shown",
    "similarity",
    "span_check",
    "variation",
    "whole_scans",
    "words",
]
