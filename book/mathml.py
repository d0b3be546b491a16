"""Sphinx extension: formulas as MathML, which browsers show by themselves.

Sphinx's own way is a script from a network; these pages need none."""

import re
from typing import Any

from docutils.nodes import SkipNode
from docutils.utils.math.latex2mathml import tex2mathml

COLOUR = re.compile(r"\\color\{(#[0-9A-Fa-f]{6})\}")
BARE = re.compile(r"\\([dt]?frac)\s*(\d)\s*(\d)")
BAR = re.compile(r'<mo( class="mathopen")?>‖')
MARKED = re.compile(r"<mrow>\s*<mtext>(#[0-9A-Fa-f]{6})</mtext>")


def mathml(node: Any, as_block: bool = False) -> str:
    r"""The formula as MathML; ``{\color{#0B7656}{...}}`` becomes a row that style.css colours."""
    # Docutils knows no colours: one travels as a text at the head of its row.
    latex = COLOUR.sub(r"\\text{\1}", node.astext())
    # Nor does it know \frac13, in which the two digits are the parts.
    latex = BARE.sub(r"\\\1{\2}{\3}", latex)
    # Browsers stretch the bar that opens ‖x‖², not the one with the power: that would hang lower.
    written = BAR.sub(r'<mo\1 stretchy="false">‖', tex2mathml(latex, as_block=as_block))
    return MARKED.sub(r'<mrow class="coloured" style="--colour: \1">', written)


def inline(writer: Any, node: Any) -> None:
    """Writes a formula in a line."""
    writer.body.append(mathml(node))
    raise SkipNode  # else Sphinx writes the formula's source behind it


def display(writer: Any, node: Any) -> None:
    """Writes a formula on lines of its own."""
    writer.body.append(mathml(node, as_block=True))
    raise SkipNode


def setup(app: Any) -> dict[str, bool]:
    """Adds the renderer to Sphinx."""
    app.add_html_math_renderer("mathml", (inline, None), (display, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
