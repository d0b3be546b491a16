"""Notebook 00: its figures, the health of the runs that it shows, and its workbench's presets."""

import ast
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import torch

import fedlora_lab as fl
from fedlora_lab.course.lesson_00 import figures

ROOT = Path(__file__).resolve().parents[2]


def test_printed_digits_are_those_that_the_model_knows():
    """Of a face that it was trained with; most handwritten ones it does not know as well."""
    task = fl.tasks.digits(clients=2)
    images: Any = np.stack([figures.printed_digit(digit) for digit in range(10)])
    assert images.shape == (10, 8, 8) and 0 <= images.min() < images.max() <= 1
    guessed = task.model(torch.tensor(images, dtype=torch.float32)).argmax(1)
    assert (guessed == torch.arange(10)).sum() >= 9


def test_the_data_are_counted_as_they_are_dealt():
    task = fl.tasks.digits(clients=4, seed=1)
    figure: Any = figures.client_data(task)
    mix = figure.axes[1].images[0].get_array()
    assert mix.shape == (4, 10) and mix.sum(axis=1).tolist() == list(task.sizes)


@pytest.mark.slow
def test_the_presets_of_the_notebook_can_be_set():
    """Every button sets what it says, and the crossing is among them."""
    path = ROOT / "notebooks" / "00_why_is_it_hard.ipynb"
    read: Any = nbformat.read
    cells = [cell.source for cell in read(path, as_version=4).cells]
    source = next(cell for cell in cells if "fl.course.widgets.live(" in cell)
    *lines, last = ast.parse(source).body
    room: dict[str, Any] = {"fl": fl}
    exec(compile(ast.Module(lines, []), "cell", "exec"), room)
    assert isinstance(last, ast.Expr)
    bench = eval(compile(ast.Expression(last.value), "cell", "eval"), room)
    seen = set()
    for name, values in room["presets"].items():
        bench.act("preset", name=name)
        texts = {key: x if isinstance(x, str) else f"{x:g}" for key, x in values.items()}
        assert bench.errors == {} and bench.values.items() >= texts.items()
        seen.add((bench.values["unit"], bench.values["epsilon"]))
    assert {("client", "3"), ("client", "20")} <= seen
    bench.close()
