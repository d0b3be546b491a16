"""What adapted layers receive and give, before any training."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import fedlora_lab as fl
from studies import own_outputs, rates


class Doubling(nn.Module):
    """Doubles every token of two entries, and means over them."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(2, 2, bias=False)
        self.query.weight.data = 2 * torch.eye(2)

    def forward(self, inputs_embeds, attention_mask):
        return self.query(inputs_embeds).mean(1)


def test_padding_has_no_part_in_the_scale_of_a_layer():
    embeds = torch.tensor([[[1.0, 2.0], [3.0, 2.0]], [[5.0, 2.0], [100.0, -100.0]]])
    x = {"inputs_embeds": embeds, "attention_mask": torch.tensor([[1, 1], [1, 0]])}
    y = torch.tensor([0, 1])
    task = fl.tasks.classification(Doubling(), [(x, y)], (x, y), targets=["query"], head=None)
    row = own_outputs.layer_scales(task, fl.Lora(rank=1)).iloc[0]
    assert row["inputs"] == 2
    assert row["input_mean_square"] == pytest.approx((1 + 9 + 25 + 3 * 4) / 6)
    # Outputs are 2, 6 and 10 in one entry, with variance 16, and 4 in the other.
    assert row["output_variance"] == pytest.approx(16 / 2)


def test_the_page_has_the_scales_of_the_committed_layers():
    table: Any = pd.read_csv(own_outputs.FILE).drop(columns=["layer", "inputs"])
    means = np.exp(np.log(table.set_index("task")).groupby("task").mean())
    page = " ".join(rates.PAGE.read_text("utf-8").split())
    shown = {"digits": "0.99", "sentences": "0.89", "sentiment": "0.35", "texts-768": "0.083"}
    for name, number in shown.items():
        digits = len(number.lstrip("0."))
        assert f"{means.loc[name, 'input_mean_square']:.{digits}g}" == number and number in page
    own, beside = [], []
    at_the_end = {"digits": (0.2, 0.43), "sentiment": (0.17,), "texts-768": (2.0,)}
    for name, ends in at_the_end.items():
        received, given = means.loc[name]
        own.append([received * v for v in ends])
        beside.append([received * v / given for v in ends])
    for row in (own, beside):
        cells = [" to ".join(f"{x:.1f}" if x >= 1 else f"{x:.2f}" for x in part) for part in row]
        assert f"| {' | '.join(cells)} |" in page
