"""Measures what a run did to the adapter: deviation, noise terms and gradients.

>>> import numpy as np
>>> from fedlora_lab import measures
>>> measures.find_collapsed(np.array([0.29, 0.004, 0.27])).tolist()
[False, True, False]
"""
# ruff: noqa: F401

from fedlora_lab.measures.deviation import (
    Exchange,
    layer_rows,
    record_aggregation,
    server_deviation,
)
from fedlora_lab.measures.gradients import full_updates, gradients
from fedlora_lab.measures.runs import find_collapsed, t_interval
