"""Notebook 00: its figures, the health of the runs that it shows, and its workbench's presets."""

import ast
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from frames import words

import fedlora_lab as fl
from fedlora_lab.course.lesson_00 import figures

ROOT = Path(__file__).resolve().parents[2]
SIX = ("fedlora", "ffa-lora", "rolora", "deer", "la-lora", "fedlpp")


def ends(rows: Any) -> pd.DataFrame:
    columns = ["epsilon", "method", "seed", "accuracy", "before_accuracy"]
    return pd.DataFrame(rows, columns=columns)


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


def test_the_crossing_says_how_many_runs_fell():
    rows = [(e, m, s, 0.8 + 0.01 * s, 0.6) for e in (3, 20) for m in SIX[:2] for s in range(5)]
    table = ends(rows)
    assert "below the start" not in words(figures.crossing(table, "nothing fell"))
    table.loc[[0, 1], "accuracy"] = 0.5  # FedLoRA at ε = 3
    figure: Any = figures.crossing(table, "two fell")
    assert "2 of 5 runs\nend below the start" in words(figure)


def test_gaps_are_paired_by_seed():
    """A spread that both methods share leaves no interval."""
    rows = [
        (3, m, s, 0.1 * s + (0.05 if m == "fedlora" else 0), 0) for m in SIX[:2] for s in range(6)
    ]
    found = figures.gaps(ends(rows), figures.FIXED).iloc[0]
    assert found["gap"] == pytest.approx(0.05) and found["low"] == pytest.approx(found["high"])


def test_a_cell_stands_at_its_amplification():
    rows = [(3, figures.FIXED, 11.7, -0.2, -0.3, -0.1), (3, figures.TUNED, 2.9, 0.01, 0.0, 0.02)]
    cells = pd.DataFrame(rows, columns=["epsilon", "clip", "rho", "gap", "low", "high"])
    figure: Any = figures.gap_by_amplification(cells, "one cell each")
    dots = [line.get_xydata()[0] for line in figure.axes[0].lines if len(line.get_xdata()) == 1]
    for _, clip, rho, gap, *_ in rows:
        place = rho * figures.CLIPS[clip][2], gap
        assert any(dot == pytest.approx(place) for dot in dots)


@pytest.mark.parametrize("study", ["digits-example", "digits-client"])
def test_the_tuned_runs_that_are_shown_end_above_their_start(study):
    table = pd.read_csv(ROOT / "results" / f"{study}.csv")
    shown = table[table["epsilon"].eq(8) | (study == "digits-client")]
    shown = shown[shown["method"].isin(SIX if study == "digits-example" else SIX[:2])]
    assert len(shown) == 120
    assert (shown["accuracy"] > shown["before_accuracy"]).all()


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
        assert bench.errors == {}
        shown = {key: bench.values[key] for key in values}
        assert shown == {
            key: f"{v:g}" if not isinstance(v, str) else v for key, v in values.items()
        }
        seen.add((shown["unit"], shown["epsilon"]))
    assert {("client", "3"), ("client", "20")} <= seen
    bench.close()
