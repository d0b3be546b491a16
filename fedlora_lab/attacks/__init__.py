"""What an update gives away: spans of inputs, labels, inversion by search, membership."""

from fedlora_lab.attacks.gradient_inversion import Victim, infer_label, invert, similarity
from fedlora_lab.attacks.membership_inference import Membership, lira, loss_difference
from fedlora_lab.attacks.reconstruction import (
    as_image,
    direction,
    outside_by_batch,
    read_scan,
    same_shadow,
    sentences,
    shadow,
    whole_scans,
)

__all__ = [
    "Membership",
    "Victim",
    "as_image",
    "direction",
    "infer_label",
    "invert",
    "lira",
    "loss_difference",
    "outside_by_batch",
    "read_scan",
    "same_shadow",
    "sentences",
    "shadow",
    "similarity",
    "whole_scans",
]
