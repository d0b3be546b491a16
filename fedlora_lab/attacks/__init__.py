"""What an update gives away: spans of inputs, labels, inversion by search, membership.

>>> import torch
>>> from fedlora_lab import attacks
>>> gradient = torch.outer(torch.tensor([1.0, -2.0]), torch.tensor([3.0, 4.0]))  # of A, one input
>>> attacks.similarity(attacks.direction(gradient), torch.tensor([3.0, 4.0])) > 0.999
True
"""
# ruff: noqa: F401

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
