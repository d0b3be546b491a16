"""Diagrams of methods are read from their fields."""

import textwrap
from typing import Any

import pytest
from matplotlib.colors import to_hex

from fedlora_course import figures
from fedlora_lab import Cycle, methods
from fedlora_lab.plots import style

PLAIN = methods.FedLoRA


@pytest.mark.parametrize(
    ("row", "moved", "arrows", "signs"),
    [
        (methods.DEeR, "BBBBAAAA", 2, "=="),
        (methods.LALoRA, "BABABABA", 4, "≠≠"),
        (methods.FedSB, "RRRRRRRR", 2, "=="),
        (methods.ASLoRA, 8 * "AB", 4, "=="),
        (PLAIN, 8 * "AB", 4, "≠≠"),
        (PLAIN.replace(name="odd", uploaded_factors="A"), 8 * "AB", 2, "≠≠"),
        (PLAIN.replace(name="late", schedule=Cycle(("B", "B", "A"))), "BBBBBBBB", 2, "≠≠"),
    ],
)
def test_a_diagram_is_read_from_the_row(row, moved, arrows, signs):
    """Two rounds of four steps. Where each layer chooses, both factors are drawn. A row made of
    another does not keep its note. A whose turn comes in the third round was said never to move."""
    ax: Any = figures.method_diagrams([row]).axes[0]
    boxes = [text.get_bbox_patch() for text in ax.texts if text.get_bbox_patch()]
    colours = sorted(to_hex(box.get_facecolor()) for box in boxes)
    assert colours == sorted(style.FACTOR[factor].lower() for factor in moved)
    written = [text.get_text() for text in ax.texts]
    assert written.count("↑") == arrows
    assert [word for word in written if word in ("=", "≠")] == list(signs)
    assert ("never moves" in written) == (row is methods.FedSB)
    assert (textwrap.fill(PLAIN.note, 76) in written) == (row is PLAIN)
