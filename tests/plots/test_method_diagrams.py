"""Diagrams of methods are read from their fields."""

import textwrap
from typing import Any

import matplotlib.colors
import pytest

import fedlora_lab as fl
from fedlora_lab import plots
from fedlora_lab.plots import style

PLAIN = fl.methods.FedLoRA
ODD = PLAIN.replace(name="odd", share="A")
SOME = "deer", "la-lora", "fedsa-lora", "fed-sb", "as-lora", "flora"


@pytest.mark.parametrize("row", [*map(fl.methods.get, SOME), PLAIN, ODD])
def test_a_diagram_is_read_from_the_row(row):
    """Boxes, arrows and signs; where each layer chooses, both factors are drawn. A row made of
    another does not keep its note."""
    rounds = 2
    steps = 4
    ax: Any = plots.method_diagram(row).axes[0]
    moved = [row.sides_at_step(t, s) for t in range(rounds) for s in range(steps)]
    expected = [style.FACTOR[factor].lower() for factor in "".join(moved).replace("*", "AB")]
    boxes = [matplotlib.colors.to_hex(box.get_facecolor()) for box in ax.patches]
    assert sorted(boxes) == sorted(expected)
    text = [t.get_text() for t in ax.texts]
    sent = [row.sides_sent(t, steps).replace("*", "AB") for t in range(rounds)]
    arrows = sum(getattr(t, "arrow_patch", None) is not None for t in ax.texts)
    assert arrows == len("".join(sent))
    averaged = sum(map(bool, sent))
    assert (text.count("="), text.count("≠")) == ((averaged, 0) if row.exact else (0, averaged))
    assert (textwrap.fill(PLAIN.note, 76) in text) == (row is PLAIN)
