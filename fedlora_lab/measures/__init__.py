"""Measures what a run did to the adapter: deviation, noise terms and gradients.

>>> import torch
>>> from fedlora_lab import measures
>>> measures.product_norm(torch.tensor([[3.0], [4.0]]), torch.tensor([[1.0, 0.0]]))  # of B A
5.0
"""
# ruff: noqa: F401

from fedlora_lab.measures.deviation import (
    AggregationInput,
    Deviation,
    Exchange,
    layer_rows,
    noise_energies,
    product_deviation,
    product_norm,
    record_aggregation,
    server_deviation,
)
from fedlora_lab.measures.gradients import (
    Gradients,
    full_updates,
    gradients,
)
from fedlora_lab.measures.runs import find_collapsed, run_ends, t_interval
