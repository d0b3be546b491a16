"""What notebook 14 rests on: the model and the table that it starts from, and its figures."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from frames import words

import fedlora_lab as fl
from fedlora_lab.course.lesson_14 import figures

PLAN = fl.Plan(rounds=3, local_steps=1, batch=2, participation=0.7)


def test_a_toy_trains_on_its_table(tmp_path):
    own = figures.materials(tmp_path / "toy", rows=12)
    assert own.table["site"].value_counts().to_dict() == dict.fromkeys(
        sorted(set(own.table["site"])), 12
    )
    codes = own.tokenizer(own.table["text"].tolist(), padding=True, return_tensors="pt")
    x = {name: codes[name] for name in ("input_ids", "attention_mask")}
    y = torch.tensor((own.table["label"] == "positive").to_numpy(int))
    task = fl.tasks.classification(own.model, [(x, y)], (x, y), own.targets, own.head)
    plan = fl.Plan(rounds=1, local_steps=1, batch=4)
    *_, last = fl.run(task, "ffa-lora", None, plan)
    assert fl.predict(task, last, x).shape == (48, 2)


def test_the_lines_are_the_tables():
    rows = [(b, n, 1 / b / n) for b in (8, 32, 128) for n in (25, 100)]
    table = pd.DataFrame(rows, columns=["batch", "releases", "noise_to_signal"])
    ax: Any = figures.noise_over_releases(table, 0.5).axes[0]
    *lines, floor = ax.lines
    for line, (batch, part) in zip(lines, table.groupby("batch"), strict=True):
        assert line.get_ydata() == pytest.approx(part["noise_to_signal"].to_numpy()), batch
    assert floor.get_ydata() == pytest.approx([0.5, 0.5])


def test_the_budgets_show_the_study():
    """Means and intervals by hand; without privacy stands last."""
    rows = [
        (slug, budget, seed, 0.5, 0.6 + 0.1 * i + 0.01 * seed)
        for slug in ("fedlora", "ffa-lora")
        for i, budget in enumerate((1.0, 8.0, np.nan))
        for seed in range(5)
    ]
    names = ["method", "epsilon", "seed", "before_accuracy", "accuracy"]
    figure: Any = figures.accuracy_by_budget(pd.DataFrame(rows, columns=names))
    ax = figure.axes[0]
    for line in ax.lines[:2]:
        assert line.get_ydata() == pytest.approx([0.62, 0.72, 0.82])
    half = 2.776 * np.std([0, 0.01, 0.02, 0.03, 0.04], ddof=1) / 5**0.5
    ends = ax.collections[0].get_segments()[0][:, 1]
    assert ends == pytest.approx([0.62 - half, 0.62 + half], abs=1e-5)
    assert [x.get_text() for x in ax.get_xticklabels()] == ["ε = 1", "ε = 8", "no privacy"]
    assert "5 seeds" in words(figure)
