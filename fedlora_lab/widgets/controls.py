"""Labelled controls of one look: every one described, of fixed size, usable by keyboard."""

import base64
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import ipywidgets as w

from fedlora_lab.checks import check

STYLE = {"description_width": "92px"}
WIDE = "272px"
NARROW = 480  # pixels down to which a picture shrinks with the page


def slider(label: str, value: float, low: float, high: float, step: float | None = None, help: str = "") -> Any:
    """A slider for a whole number, or for a real one when any of its numbers is no integer."""
    whole = all(isinstance(v, int) and not isinstance(v, bool) for v in (value, low, high, step or 1))
    kind, step = (w.IntSlider, step or 1) if whole else (w.FloatSlider, step or (high - low) / 100)
    layout = w.Layout(width=WIDE)
    return kind(
        value=value, min=low, max=high, step=step, description=label, tooltip=help or label, style=STYLE, layout=layout
    )


def steps(label: str, values: Sequence[float], value: float, help: str = "") -> Any:
    """A slider over some given numbers."""
    return w.SelectionSlider(
        options=[(f"{v:g}", v) for v in values],
        value=value,
        description=label,
        tooltip=help or label,
        style=STYLE,
        layout=w.Layout(width=WIDE),
    )


def choice(label: str, options: Sequence[Any], value: Any, help: str = "") -> Any:
    """A menu; options are values or (text, value) pairs."""
    return w.Dropdown(
        options=list(options), value=value, description=label, tooltip=help or label, style=STYLE,
        layout=w.Layout(width=WIDE),
    )  # fmt: skip


def button(label: str, icon: str, help: str, act: Callable[[], Any], style: str = "") -> Any:
    """A button with a word, an icon and a description."""
    made = w.Button(description=label, icon=icon, tooltip=help, button_style=style, layout=w.Layout(width="92px"))
    made.on_click(lambda _: act())
    return made


def picture(width: int, height: int, narrowest: int | None = None) -> Any:
    """A place for PNG bytes that keeps its size whatever is drawn into it. (An image widget takes no tooltip.)

    On a narrow page it shrinks down to ``narrowest`` pixels and keeps its proportions.
    """
    narrowest = width if narrowest is None else narrowest
    layout = w.Layout(height="auto", flex=f"1 1 {narrowest}px", min_width=f"{narrowest}px", max_width=f"{width}px")
    return w.Image(format="png", width=width, height=height, layout=layout)


def shown(image: bytes) -> Any:
    """A picture of this PNG's size that shows it, and shrinks with the page down to `NARROW` pixels."""
    width, height = (int.from_bytes(image[i : i + 4], "big") for i in (16, 20))  # as its header states
    place = picture(width, height, narrowest=min(width, NARROW))
    place.value = image
    return place


def words(lines: int = 1) -> Any:
    """A place for text of fixed height."""
    return w.HTML(layout=w.Layout(height=f"{22 * lines + 4}px", width="100%", overflow="hidden", margin="0"))


def code(label: str, help: str) -> Any:
    """A place for a few lines of code to copy."""
    layout = w.Layout(width="98%", height="196px")
    return w.Textarea(description=label, tooltip=help, rows=10, style={"description_width": "120px"}, layout=layout)


def row(*parts: Any) -> Any:
    """Parts side by side, each as high as it is, on further lines where the page is narrow."""
    return w.HBox(parts, layout=w.Layout(flex_flow="row wrap", align_items="flex-start"))


def say(place: Any, text: str, error: bool = False, role: str = "status") -> None:
    """Put plain text into a place for words; a status is read out when it changes, an error is coloured as well."""
    look = "color:var(--jp-content-font-color1,inherit)"
    look = "color:var(--jp-error-color1,#b3261e);font-weight:600" if error else look
    role = "alert" if error else role
    place.value = f'<div role="{role}" style="{look};line-height:22px">{escape(text)}</div>'


def offer(place: Any, text: str, name: str, content: str) -> None:
    """Put a link into a place for words, which saves this content as a CSV file of this name."""
    data = base64.b64encode(content.encode()).decode()
    place.value = (
        f'<a style="color:var(--jp-content-link-color,#0b57d0);line-height:22px" download="{escape(name)}" '
        f'href="data:text/csv;base64,{data}">{escape(text)}</a>'
    )


def control(name: str, given: Any) -> Any:
    """A control from a short form: a widget as it is, True/False, a list of options, or (value, low, high[, step])."""
    label = name.replace("_", " ")
    if isinstance(given, w.Widget):
        return given
    if isinstance(given, bool):
        return w.Checkbox(value=given, description=label, tooltip=label, indent=False, layout=w.Layout(width=WIDE))
    if isinstance(given, list) and given:
        first = given[0]
        return choice(label, given, first[1] if isinstance(first, tuple) else first)
    ok = isinstance(given, tuple) and len(given) in (3, 4) and all(isinstance(v, (int, float)) for v in given)
    check(ok, name, given, "a widget, True or False, a list of options, or (value, low, high[, step])")
    check(given[1] <= given[0] <= given[2], name, given, "low <= value <= high")
    return slider(label, *given)
