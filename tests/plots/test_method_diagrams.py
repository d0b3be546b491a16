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
ROWS = {slug: fl.methods.get(slug) for slug in ("deer", "la-lora", "fed-sb", "as-lora")}


@pytest.mark.parametrize(
    ("row", "moved", "arrows", "signs"),
    [
        (ROWS["deer"], "BBBBAAAA", 2, "=="),
        (ROWS["la-lora"], "BABABABA", 4, "≠≠"),
        (ROWS["fed-sb"], "RRRRRRRR", 2, "=="),
        (ROWS["as-lora"], 8 * "AB", 4, "=="),
        (PLAIN, 8 * "AB", 4, "≠≠"),
        (ODD, 8 * "AB", 2, "≠≠"),
    ],
)
def test_a_diagram_is_read_from_the_row(row, moved, arrows, signs):
    """Two rounds of four steps. Where each layer chooses, both factors are drawn. A row made of
    another does not keep its note."""
    ax: Any = plots.method_diagram(row).axes[0]
    boxes = [matplotlib.colors.to_hex(box.get_facecolor()) for box in ax.patches]
    assert sorted(boxes) == sorted(style.FACTOR[factor].lower() for factor in moved)
    assert sum(getattr(text, "arrow_patch", None) is not None for text in ax.texts) == arrows
    written = [text.get_text() for text in ax.texts]
    assert [word for word in written if word in ("=", "≠")] == list(signs)
    assert (textwrap.fill(PLAIN.note, 76) in written) == (row is PLAIN)
