"""A width is a start: a function of wider inputs trains as one of few inputs and a smaller A."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from toy_tasks import LORA, play, private, regression

import fedlora_lab as fl
from fedlora_lab.tasks.modules import frozen_copy
from fedlora_lab.tasks.task import HeldOut


def padded(matrix, scale):
    """Behind its 6 columns 18 of zeros."""
    return torch.nn.functional.pad(scale * matrix, (0, 18))


def test_a_smaller_start_is_a_wider_layer():
    """The same function of inputs that are four times as many, of the same mean square: clipped
    training is that from a half of A at twice the scale.
    """
    narrow = regression()
    model: Any = frozen_copy(narrow.model)
    model.map.weight.data = padded(model.map.weight.data, 0.5)
    clients = tuple((padded(x, 2), y) for x, y in narrow.clients)
    x, y = narrow.test
    wide = replace(narrow, model=model, clients=clients, held_out=HeldOut((padded(x, 2), y)))

    small = replace(LORA, start_scale=0.5)
    noiseless = private("example", sigma=0.0)
    records = play(narrow, "fedlora", noiseless, lora=small)
    A = padded(records[0].adapter["map"][0], 1)
    row = fl.methods.FedLoRA.replace(name="embedded", initial_factors=lambda weight, rank: {"A": A})
    losses, expected = (
        [record.metrics["loss"] for record in run] for run in (play(wide, row, noiseless), records)
    )
    assert losses == pytest.approx(expected, rel=1e-9)
