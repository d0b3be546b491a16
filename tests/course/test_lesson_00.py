"""Notebook 00: its workbench's presets."""

from pathlib import Path
from typing import Any

import nbformat
import pytest

import fedlora_lab as fl

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_presets_of_the_notebook_can_be_set():
    """Every button sets what it says, and the crossing is among them."""
    read: Any = nbformat.read
    cells = read(ROOT / "notebooks" / "00_why_is_it_hard.ipynb", as_version=4).cells
    source = next(cell.source for cell in cells if "fl.course.widgets.live(" in cell.source)
    room: dict[str, Any] = {"fl": fl, "task": fl.tasks.digits(clients=10)}
    room |= {"plan": fl.Plan(rounds=20, batch=16), "privacy": fl.Privacy(delta=1e-4)}
    exec(source.replace("fl.course.widgets.live(", "bench = fl.course.widgets.live("), room)
    bench = room["bench"]
    seen = set()
    for name, values in room["presets"].items():
        bench.act("preset", name=name)
        texts = {key: x if isinstance(x, str) else f"{x:g}" for key, x in values.items()}
        assert bench.errors == {} and bench.values.items() >= texts.items()
        seen.add((bench.values["method"], bench.values["lr"]))
    assert {("fedlora", "1.6"), ("ffa-lora", "1.6")} <= seen
    bench.close()
