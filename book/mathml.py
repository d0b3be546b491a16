"""Sphinx extension: formulas as MathML, which browsers show by themselves.

Sphinx's own way is a script from a network; these pages need none."""

import re
from typing import Any

from docutils.nodes import SkipNode
from docutils.utils.math.latex2mathml import tex2mathml


def source(node: Any) -> str:
    """The formula's LaTeX without colours, which are chosen for one of the site's two themes."""
    return re.sub(r"\\color\{[^{}]*\}", "", node.astext())


def inline(writer: Any, node: Any) -> None:
    """Writes a formula in a line."""
    writer.body.append(tex2mathml(source(node)))
    raise SkipNode  # else Sphinx writes the formula's source behind it


def display(writer: Any, node: Any) -> None:
    """Writes a formula on lines of its own."""
    writer.body.append(tex2mathml(source(node), as_block=True))
    raise SkipNode


def setup(app: Any) -> dict[str, bool]:
    """Adds the renderer to Sphinx."""
    app.add_html_math_renderer("mathml", (inline, None), (display, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
