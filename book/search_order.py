"""Sphinx extension: the order of search results, and names for the arrows of the contents."""

from pathlib import Path
from typing import Any

ARROW = '<summary><span class="toctree-toggle"'
NAMED = '<summary aria-label="Pages of this part"><span class="toctree-toggle"'


def set_order(app: Any, config: Any) -> None:
    """Called by Sphinx when it has read its settings: it wants the script's whole path."""
    config.html_search_scorer = str(Path(__file__).with_name("search_order.js"))


def name_arrows(app: Any, page: str, template: str, context: Any, tree: Any) -> None:
    """Called by Sphinx before a page is written: the theme's arrows are pictures without words."""
    draw = context.get("generate_toctree_html")
    if draw is not None:
        context["generate_toctree_html"] = lambda *a, **k: str(draw(*a, **k)).replace(ARROW, NAMED)


def setup(app: Any) -> dict[str, bool]:
    """What Sphinx asks of an extension."""
    app.connect("config-inited", set_order)
    app.connect("html-page-context", name_arrows, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
