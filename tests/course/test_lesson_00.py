"""Notebook 00: its figures, the health of the runs that it shows, and its workbench's presets."""

import ast
from pathlib import Path
from typing import Any

import nbformat
import pytest

import fedlora_lab as fl

ROOT = Path(__file__).resolve().parents[2]


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
