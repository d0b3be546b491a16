"""The common frame of the small widgets: controls, a figure, a sentence that says what is seen, and a reset."""

from collections.abc import Callable
from typing import Any

import ipywidgets as w

from fedlora_lab.checks import check
from fedlora_lab.plots.style import png
from fedlora_lab.widgets import controls
from fedlora_lab.widgets.worker import Latest


class Dial(w.VBox):
    """Controls bound to a plot function; see `dial`."""

    def __init__(self, plot: Callable[..., Any], knobs: dict[str, Any], image: bytes, text: str) -> None:
        self.plot, self.knobs = plot, knobs
        self._first = self.values
        self.sentence = controls.words(3)
        self.picture = controls.shown(image)
        controls.say(self.sentence, text)
        self._latest = Latest(self._draw, self._show, self._fail)
        for knob in self.knobs.values():
            knob.observe(self._moved, "value")
        reset = controls.button("Reset", "undo", "put every control back", self.reset)
        rows = controls.row(*self.knobs.values(), reset)
        super().__init__([rows, controls.row(self.picture), self.sentence])

    @property
    def values(self) -> dict[str, Any]:
        """What the controls say now."""
        return {name: knob.value for name, knob in self.knobs.items()}

    def reset(self) -> None:
        """Put every control back to where it was at first."""
        for name, value in self._first.items():
            self.knobs[name].value = value

    def settle(self, wait: float = 10.0) -> bool:
        """Wait until the figure shows what the controls say; True when it does."""
        return self._latest.settle(wait)

    def close(self) -> None:
        """Take the widget down."""
        self._latest.close()
        super().close()

    def _draw(self, values: dict[str, Any]) -> tuple[bytes, str]:
        return _drawn(self.plot, values)

    def _moved(self, _: Any) -> None:
        self._latest.ask(self.values)

    def _show(self, result: tuple[bytes, str]) -> None:
        self.picture.value, text = result
        controls.say(self.sentence, text)

    def _fail(self, line: str) -> None:
        controls.say(self.sentence, line, error=True)


def _drawn(plot: Callable[..., Any], values: dict[str, Any]) -> tuple[bytes, str]:
    figure, text = plot(**values)
    return png(figure), text


def dial(plot: Callable[..., Any], **given: Any) -> Dial:
    """A figure with controls.

    Args:
        plot: takes one keyword argument for each control and gives ``(figure, sentence)``; it keeps its axes fixed and
            says in the sentence, with numbers, what is seen.
        given: for each argument a short form (see `controls.control`): ``True``/``False`` is a box to tick, a list is a
            menu, ``(value, low, high)`` or ``(value, low, high, step)`` a slider, and a widget is taken as it is.

    Raises: ``ValueError`` for a short form it does not know; whatever ``plot`` raises for the first values.
    Guarantees: moves that come faster than the drawing are skipped, the last one is drawn (test_a_dial_draws_the_last);
        an error is one line under the figure (test_a_dial_shows_an_error).
    """
    check(callable(plot), "plot", plot, "a function that gives (figure, sentence)")
    knobs = {name: controls.control(name, value) for name, value in given.items()}
    return Dial(plot, knobs, *_drawn(plot, {name: knob.value for name, knob in knobs.items()}))
