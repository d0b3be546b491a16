"""Server rules against the numbers that public code gives for the same uploads.

`anchors.json` names repository, commit, file and licence of each. It holds numbers only.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from places import ROOT

from fedlora_lab import methods
from fedlora_lab._utils.random_streams import Streams
from fedlora_lab.methods.aggregation import ServerRule
from fedlora_lab.methods.state import ParamKey, ServerState

ANCHORS = json.loads((Path(__file__).parent / "anchors.json").read_text(encoding="utf-8"))
A, B, W = (ParamKey(name, "layer") for name in "ABW")
SHARES = [0.2, 0.3, 0.5]
SCALING = 3.0
"""Alpha over rank, by which public code multiplies what it adds to a weight."""


def drawn(d_out: int = 4) -> list[np.ndarray]:
    """A and B of three clients, and what they received: rank 2, d_in 5."""
    random = np.random.default_rng(2026)
    shapes = (3, 2, 5), (3, d_out, 2), (2, 5), (d_out, 2)
    return [random.standard_normal(shape) for shape in shapes]


def aggregated(name: str) -> dict[str, np.ndarray]:
    """What the row of an anchor makes of the uploads, under the names of `anchors.json`."""
    row = methods.get({**ANCHORS["agree"], **ANCHORS["differ"]}[name]["row"])
    square = name.endswith("nn.Linear")
    a, b, old_a, old_b = map(torch.from_numpy, drawn(5 if square else 4))
    equal = name in ("fedex-lora", "fedex-lora on nn.Linear")
    shares = torch.full((3,), 1 / 3).double() if equal else torch.tensor(SHARES).double()
    # In FedRot-LoRA the round says which factor decides.
    state = ServerState({A: old_a, B: old_b}, round=2 if name.endswith("by B") else 1)
    state = ServerState(state.tensors, state.round, streams=Streams(0))
    rule: Any = row.aggregate
    state = rule.initial_state(state) if isinstance(rule, ServerRule) else state
    moved = row.factors_in_round(0, 1)
    uploads = {key: x for key, x in ((A, a), (B, b)) if key.name in moved}
    after = rule(state, state, uploads, shares).tensors
    new_a, new_b = (after[key].numpy() for key in (A, B))
    residual = after.get(W, torch.zeros(())).numpy()
    return {
        "A": new_a,
        "B": new_b,
        "product": residual if row.slug == "flora" else new_b @ new_a,
        "energy of A": new_a @ new_a.T,
        "energy of B": new_b.T @ new_b,
        "residual": residual,
        "weight": SCALING * residual,
    }


@pytest.mark.parametrize("name", ANCHORS["agree"])
def test_rows_give_the_numbers_of_public_code(name):
    """To the precision of float32, in which some of it computes."""
    ours = aggregated(name)
    for part, numbers in ANCHORS["agree"][name]["numbers"].items():
        np.testing.assert_allclose(ours[part], numbers, rtol=2e-6, atol=2e-6, err_msg=part)


@pytest.mark.parametrize("name", ANCHORS["differ"])
def test_where_public_code_gives_other_numbers_the_page_says_by_how_much(name):
    """The gap between both new weights, over the size of ours."""
    ours = aggregated(name)
    numbers = {k: np.array(x) for k, x in ANCHORS["differ"][name]["numbers"].items()}
    a, b = (numbers.get(side, ours[side]) for side in "AB")
    theirs = numbers.get("product", b @ a) * SCALING + numbers.get("weight", 0.0)
    whole = ours["product"] * SCALING + ours["weight"]
    gap = np.linalg.norm(theirs - whole) / np.linalg.norm(whole)
    repository = ANCHORS["differ"][name]["repository"]
    page = (ROOT / "docs" / "other_software.md").read_text(encoding="utf-8")
    stated = [line for line in page.splitlines() if repository in line and f"{gap:.2f}" in line]
    assert len(stated) == 1, f"{repository}: {gap:.2f}"
