"""Sphinx extension: the order of search results."""

from pathlib import Path
from typing import Any


def set_order(app: Any, config: Any) -> None:
    """Called by Sphinx when it has read its settings: it wants the script's whole path."""
    config.html_search_scorer = str(Path(__file__).with_name("search_order.js"))


def setup(app: Any) -> dict[str, bool]:
    """What Sphinx asks of an extension."""
    app.connect("config-inited", set_order)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
