"""Controls, places for text and pictures, and figures with controls (`interactive_figure`)."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import ipywidgets as w

from fedlora_lab._utils.validation import check
from fedlora_lab.course.widgets.background_worker import LatestOnly
from fedlora_lab.plots.style import png

STYLE = {"description_width": "92px"}
WIDE = "272px"
NARROW = 480  # pixels down to which a picture shrinks with the page


def control_options(label: str, help: str = "", **more: Any) -> dict[str, Any]:
    """Returns the options that every control has: label, tooltip, style and width.

    Args: label: beside the control; help: its tooltip, the label if empty; more: options that come
        with these, or in place of them.
    """
    own = {"description": label, "tooltip": help or label, "style": STYLE}
    return {**own, "layout": w.Layout(width=WIDE), **more}


def menu(label: str, options: Sequence[Any], value: Any, help: str = "") -> Any:
    """Makes a menu.

    Args: label, help: its label and tooltip; options: values or (text, value); value: at first.
    """
    return w.Dropdown(options=list(options), value=value, **control_options(label, help))


def image_box(width: int, height: int) -> Any:
    """Makes a place for PNG bytes that keeps its size, in pixels, whatever is drawn into it."""
    low = f"{min(width, NARROW)}px"
    layout = w.Layout(height="auto", flex=f"1 1 {low}", min_width=low, max_width=f"{width}px")
    return w.Image(format="png", width=width, height=height, layout=layout)


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


def make_control(name: str, given: Any) -> Any:
    """Makes a control from a short form; see `interactive_figure`."""
    label = name.replace("_", " ")
    if isinstance(given, w.Widget):
        return given
    if isinstance(given, bool):
        return w.Checkbox(value=given, indent=False, **control_options(label, style={}))
    if isinstance(given, list) and given:
        return menu(label, given, given[0][1] if isinstance(given[0], tuple) else given[0])
    numbers = isinstance(given, tuple) and all(isinstance(v, int | float) for v in given)
    forms = "a widget, True or False, a list of options, or (value, low, high[, step])"
    check(numbers and len(given) in (3, 4), name, given, forms)
    check(given[1] <= given[0] <= given[2], name, given, "low <= value <= high")
    value, low, high, step = (*given, None)[:4]
    whole = all(isinstance(v, int) for v in given)
    kind, step = (w.IntSlider, step or 1) if whole else (w.FloatSlider, step or (high - low) / 100)
    return kind(value=value, min=low, max=high, step=step, **control_options(label))


class DrawnBox(w.VBox):
    """A widget whose picture and sentence are drawn in a thread that keeps up with the reader."""

    picture: Any
    sentence: Any

    def __init__(self, rest: float) -> None:
        self._drawing = LatestOnly(self.draw, self.show_drawing, self.show_error, rest)
        super().__init__()

    @abstractmethod
    def draw(self, wanted: Any) -> Any:
        """Draws it, in a thread of its own: here a PNG and a sentence."""

    def show_drawing(self, drawn: Any) -> None:
        """Puts what was drawn on the page."""
        self.picture.value, text = drawn
        set_text(self.sentence, text)

    def show_error(self, line: str) -> None:
        """Puts one line on the page in place of a sentence."""
        set_text(self.sentence, line, error=True)

    def settle(self, wait: float = 10.0) -> bool:
        """Waits until the page shows all that was to be drawn; returns whether it does."""
        return self._drawing.settle(wait)

    def close(self) -> None:
        """Takes the widget down."""
        self._drawing.close()
        super().close()


class InteractiveFigure(DrawnBox):
    """Controls bound to a plot function; see `interactive_figure`."""

    def __init__(self, plot: Callable[..., Any], knobs: dict[str, Any]) -> None:
        super().__init__(rest=0.01)
        self.plot, self.knobs = plot, knobs
        self._first = self.values
        first = self.draw(self._first)
        # The header of a PNG states its size, so the page keeps the room before it is shown.
        width, height = (int.from_bytes(first[0][i : i + 4], "big") for i in (16, 20))
        self.picture, self.sentence = image_box(width, height), text_box(3)
        self.show_drawing(first)
        for knob in knobs.values():
            knob.observe(lambda _: self._drawing.request(self.values), "value")
        look: Any = {"icon": "undo", "tooltip": "reset every control"}
        reset = w.Button(description="Reset", layout=w.Layout(width="92px"), **look)
        reset.on_click(lambda _: self.reset())
        self.children = [row(*knobs.values(), reset), row(self.picture), self.sentence]

    @property
    def values(self) -> dict[str, Any]:
        """The controls' present values."""
        return {name: knob.value for name, knob in self.knobs.items()}

    def reset(self) -> None:
        """Puts every control back to its first value."""
        for name, value in self._first.items():
            self.knobs[name].value = value

    def draw(self, wanted: dict[str, Any]) -> tuple[bytes, str]:
        figure, text = self.plot(**wanted)
        return png(figure), text


def interactive_figure(plot: Callable[..., Any], **given: Any) -> InteractiveFigure:
    """Makes a figure with a control for each argument of its plot function.

    Args:
        plot: returns ``(figure, sentence)``; it keeps its axes fixed and says in the sentence,
            with numbers, what is seen.
        given: for each argument of ``plot`` a short form: ``True`` or ``False`` makes a box to
            tick, a list a menu, ``(value, low, high)`` or ``(value, low, high, step)`` a slider;
            a widget is taken as it is.

    Raises: ``ValueError`` for an unknown short form; also what ``plot`` raises for first values.

    Guarantees: moves that come faster than the drawing are skipped, the last one is drawn
        (test_a_figure_draws_the_last_move); an error is one line under the figure
        (test_a_figure_shows_an_error).

    >>> import fedlora_lab as fl
    >>> plot = fl.course.lesson(4).noise_amplification
    >>> sliders = {"std": (0.05, 0.0, 1.0), "size_B": (0.0, 0.0, 2.0)}
    >>> menus = {"rank": [4, 8], "alpha": [8, 16], "width": [64, 256]}
    >>> fl.widgets.interactive_figure(plot, **sliders, **menus).values
    {'std': 0.05, 'size_B': 0.0, 'rank': 4, 'alpha': 8, 'width': 64}
    """
    check(callable(plot), "plot", plot, "a function that gives (figure, sentence)")
    return InteractiveFigure(plot, {name: make_control(name, g) for name, g in given.items()})
