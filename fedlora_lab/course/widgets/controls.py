"""Menus, and places for text and pictures that keep their size."""

from base64 import b64encode
from collections.abc import Sequence
from html import escape
from typing import Any

import ipywidgets as w

STYLE = {"description_width": "92px"}
WIDE = "272px"
NARROW = 480  # pixels down to which a picture shrinks with the page


def menu(label: str, options: Sequence[Any], value: Any, help: str = "") -> Any:
    """Makes a menu.

    Args: label, help: its label and tooltip; options: values or (text, value); value: at first.
    """
    look: Any = {"tooltip": help or label, "style": STYLE, "layout": w.Layout(width=WIDE)}
    return w.Dropdown(options=list(options), value=value, description=label, **look)


def image_box(width: int, height: int) -> Any:
    """Makes a place for a picture that keeps its size, in pixels, whatever is drawn into it."""
    low = f"{min(width, NARROW)}px"
    size = {"min_width": low, "max_width": f"{width}px", "min_height": f"{height}px"}
    return w.HTML(layout=w.Layout(flex=f"1 1 {low}", **size))


def set_image(place: Any, png: bytes, words: str) -> None:
    """Puts a picture into an `image_box`.

    Args: place, png: what goes where; words: for those who do not see it.
    """
    source = f"data:image/png;base64,{b64encode(png).decode()}"
    place.value = f'<img alt="{escape(words)}" src="{source}" style="width:100%">'


def text_box(lines: int = 1) -> Any:
    """Makes a place for text of fixed height."""
    height = f"{22 * lines + 4}px"
    return w.HTML(layout=w.Layout(height=height, width="100%", overflow="hidden", margin="0"))


def row(*parts: Any) -> Any:
    """Puts parts side by side, on further lines where the page is narrow."""
    return w.HBox(parts, layout=w.Layout(flex_flow="row wrap", align_items="flex-start"))


def set_text(place: Any, text: str, error: bool = False) -> None:
    """Puts escaped text into a `text_box`; it is read aloud.

    Args: place, text: what goes where; error: in an error's looks.
    """
    look, role = "color:var(--jp-content-font-color1,inherit)", "status"
    if error:
        look, role = "color:var(--jp-error-color1,#b3261e);font-weight:600", "alert"
    place.value = f'<div role="{role}" style="{look};line-height:22px">{escape(text)}</div>'
