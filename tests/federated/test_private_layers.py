"""The private choice of layers: its sensitivity, its noise, and its place in ledger and budget."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_tasks import LORA, private, tokens

import fedlora_lab as fl
from fedlora_lab._utils.random_streams import Streams
from fedlora_lab.federated.records import clipped_squares
from fedlora_lab.lora import peft


@pytest.mark.parametrize("clip", [0.01, 0.5, 1e3])
def test_one_example_moves_the_layers_scores_by_f_squared(clip):
    """By at most F^2, and an example longer than F by exactly that in all layers together: noise
    for F would be too little above F = 1. What is not a number adds nothing.
    """
    task = tokens()
    adapted = peft.adapt(task.model, task.targets, task.head, LORA)
    values = peft.initial_values(adapted, Streams(0))
    x, y = task.clients[1][0].clone(), task.clients[1][1]
    x[0], x[1] = x[0] * 1e8, math.nan
    whole = clipped_squares(task, adapted, values, (x, y), clip)
    for i in range(len(y)):
        stay = torch.tensor([k for k in range(len(y)) if k != i])
        moved = whole - clipped_squares(task, adapted, values, (x[stay], y[stay]), clip)
        rounding = 1e-9 * float(whole.max())
        assert float(moved.min()) >= -rounding and float(moved.sum()) <= clip**2 * (1 + 1e-9)
        assert i != 1 or float(moved.abs().max()) <= rounding
        assert clip > 0.01 or i == 1 or float(moved.sum()) == pytest.approx(clip**2)


@pytest.mark.slow
def test_the_choice_of_layers_is_noised_and_in_the_budget(tmp_path: Path):
    """Scores deviate by sigma F^2 sqrt(clients) from the true ones, the ledger states the asked
    epsilon and adds up with a run's; a budget that is spent refuses before a gradient is taken.
    """
    task, scores = tokens(), []
    how: Any = {"epsilon": 2.0, "delta": 1e-3, "clip_norm": 2.0, "share": 0.5, "lora": LORA}
    for seed in range(60):
        chosen = fl.private_layers(task, seed=seed, **how)
        scores.append(list(chosen.scores.values()))
        assert len(chosen.layers) == 1 and chosen.layers[0] == max(
            chosen.scores, key=lambda name: chosen.scores[name]
        )
    assert chosen.epsilon == pytest.approx(2.0, rel=1e-3)
    sigma = chosen.ledger.releases[0].noise_multiplier
    expected, spread = sigma * 4 * math.sqrt(len(task.clients)), np.std(scores, 0)
    # Between seeds the public A differs too; its share is far below the noise's here.
    assert np.all(np.abs(spread / expected - 1) < 5 / math.sqrt(2 * 60))
    *_, last = fl.run(task, "fedlora", private("example"), fl.Plan(rounds=1), lora=chosen.lora)
    assert list(last.adapter) == list(chosen.layers)
    assert last.ledger is not None and last.ledger.terms.delta == 1e-3
    both = fl.Ledger.compose(chosen.ledger, last.ledger)
    assert both.epsilon() > max(chosen.epsilon, last.epsilon)
    budget = fl.Budget(tmp_path / "project.json", epsilon=3.0, delta=1e-3)
    fl.private_layers(task, seed=0, budget=budget, **how)
    with pytest.raises(ValueError, match=r"expected"):
        fl.private_layers(task, seed=1, budget=budget, **how)


@pytest.mark.parametrize(
    ("name", "value"),
    [("share", 0.0), ("epsilon", 0.0), ("clip_norm", -1.0), ("delta", 0.0), ("delta", 0.5)],
)
def test_bad_values_are_refused(name, value):
    """Also a delta that would allow one of the examples to be published outright."""
    given: Any = {"epsilon": 1.0, "lora": LORA, name: value}
    with pytest.raises(ValueError, match=f"^{name}="):
        fl.private_layers(tokens(), **given)
