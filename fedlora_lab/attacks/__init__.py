"""Attacks: what an update or a gradient gives away of the examples that it was computed from.

>>> import torch
>>> from fedlora_lab import attacks
>>> gradient = torch.outer(torch.tensor([1.0, -2.0]), torch.tensor([3.0, 4.0]))  # of A, one input
>>> attacks.similarity(attacks.input_from_a_gradient(gradient), torch.tensor([3.0, 4.0])) > 0.999
True
"""
# ruff: noqa: F401

from fedlora_lab.attacks.reconstruction import (
    Victim,
    as_image,
    flattened_digits_task,
    input_from_a_gradient,
    input_from_b_gradient,
    match_b_gradient,
    read_scans,
    similarity,
    span_residual_by_batch_size,
)
