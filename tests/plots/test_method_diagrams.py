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


@pytest.mark.parametrize("row", [*map(fl.methods.get, SOME), ODD])
def test_a_diagram_is_read_from_the_row(row):
    """Boxes, arrows and signs; where each layer chooses, both factors are drawn, with a question
    mark."""
    rounds = 2
    steps = 4
    ax: Any = plots.method_diagram(row).axes[0]
    expected = [
        (round(t * (steps + 1.25) + 0.12 + s, 2), style.FACTOR[factor].upper())
        for t in range(rounds)
        for s in range(steps)
        for factor in row.sides_at_step(t, s).replace("*", "AB")
    ]
    to_hex = matplotlib.colors.to_hex
    boxes = [(round(p.get_x(), 2), to_hex(p.get_facecolor()).upper()) for p in ax.patches]
    assert sorted(boxes) == sorted(expected)
    text = [t.get_text() for t in ax.texts]
    sent, moved = (
        [f(t, steps) for t in range(rounds)] for f in (row.sides_sent, row.sides_in_round)
    )
    arrows = sum(getattr(t, "arrow_patch", None) is not None for t in ax.texts)
    assert arrows == sum(len(word.replace("*", "AB")) for word in sent)
    assert any("?" in word for word in text) == ("*" in moved[0])
    assert text.count("↺") == sum(len(a) - len(b) for a, b in zip(moved, sent, strict=True))
    averaged = sum(map(bool, sent))
    assert (text.count("="), text.count("≠")) == ((averaged, 0) if row.exact else (0, averaged))


def test_a_row_made_of_another_does_not_keep_its_note():
    note = textwrap.fill(PLAIN.note, 76)
    for row, shown in ((PLAIN, True), (ODD, False)):
        texts = [text.get_text() for text in plots.method_diagram(row).axes[0].texts]
        assert (note in texts) == shown


def test_a_page_without_a_method_is_refused():
    with pytest.raises(ValueError, match=r"^methods=\[\]: expected at least one method"):
        plots.method_diagrams([])
