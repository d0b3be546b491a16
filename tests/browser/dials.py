"""Drive a dial in JupyterLab as a reader does, and measure how quickly it answers."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PLAIN = """
import time
from fedlora_lab.plots.style import paper, picture, png
def draw():
    begun = time.perf_counter()
    with paper():
        figure = picture(7.6, 4.0)
        figure.add_axes((0.1, 0.1, 0.8, 0.8)).plot([0, 1], [0, 1])
    png(figure)
    return time.perf_counter() - begun
print(sorted(draw() for _ in range(20))[18])
"""
"""A cell that says how long an almost empty figure takes in this kernel, on this machine, now: p95 of 20."""

NOTES = Path(__file__).parents[2] / "build" / "repaint"


def p95(waits: "list[float]") -> float:
    """The wait, in seconds, that 95 of 100 moves stay below."""
    return sorted(waits)[math.ceil(0.95 * len(waits)) - 1]


def note(widget: str, waits: "list[float]", plain: float) -> None:
    """Keep how quickly a widget answered, beside an almost empty figure on the same machine. No test asserts a time."""
    found = {"moves": len(waits), "p95_ms": round(1000 * p95(waits)), "empty_figure_ms": round(1000 * plain)}
    NOTES.mkdir(parents=True, exist_ok=True)
    (NOTES / f"{widget}.json").write_text(json.dumps(found) + "\n")
    print(widget, found)


class Repaints:
    """A dial on the page. ``move`` turns its focused control by a key and waits for the new figure."""

    def __init__(self, notebook: Any, output: Any) -> None:
        self.notebook, self.page, self.output, self.waits = notebook, notebook.page, output, []
        self.image = output.locator("img").first
        self.image.wait_for()
        self.handle = self.image.element_handle()

    @property
    def sentence(self) -> str:
        """What the dial says under its figure."""
        return self.output.locator("[role=status], [role=alert]").first.inner_text()

    def focus(self, label: str) -> None:
        """Put the keyboard on a slider, found by its label."""
        row = self.output.locator(".widget-inline-hbox", has=self.page.get_by_text(label, exact=True))
        row.locator(".noUi-handle").focus()

    def move(self, key: str) -> str:
        """Press a key; gives the sentence once figure and sentence have changed, and notes how long the figure took."""
        return self.change(lambda: self.page.keyboard.press(key))

    def moves(self, key: str, times: int) -> "list[str]":
        """Press a key some times; the sentences."""
        return [self.move(key) for _ in range(times)]

    def choose(self, label: str) -> str:
        """Pick from the menu, as `move`. (JupyterLab keeps the arrow keys of a closed menu for itself.)"""
        return self.change(lambda: self.output.locator("select").select_option(label=label))

    def change(self, act: Callable[[], Any]) -> str:
        """Do something that changes figure and sentence; gives the new sentence and notes how long the figure took."""
        before, said = self.handle.get_attribute("src"), self.sentence
        begun = time.monotonic()
        act()
        self.page.wait_for_function("([e, src]) => e.src !== src", arg=[self.handle, before], polling=5)
        self.waits.append(time.monotonic() - begun)
        place = self.output.locator("[role=status], [role=alert]").first.element_handle()
        self.page.wait_for_function("([e, said]) => !e.isConnected || e.innerText !== said", arg=[place, said])
        return self.sentence


def cut_off(output: Any) -> "list[str]":
    """Parts of a widget that stick out at the right, or text that does not fit its place."""
    return output.evaluate(
        """area => {
            const right = area.getBoundingClientRect().right + 1;
            const parts = 'button, select, img, textarea, .progress, .widget-slider, .widget-html-content';
            return [...area.querySelectorAll(parts)]
                .filter(e => e.getBoundingClientRect().right > right || e.tagName !== 'TEXTAREA'
                    && e.scrollHeight > e.clientHeight + 4)
                .map(e => e.outerHTML.slice(0, 90));
        }"""
    )


def picture_bytes(image: Any) -> str:
    """What an image shows, as text; its address is another one after every drawing."""
    return image.evaluate(
        "async e => [...new Uint8Array(await (await fetch(e.src)).arrayBuffer())].map(b => b.toString(16)).join('')"
    )


def wait_for_bytes(image: Any, wanted: str, seconds: float = 120) -> None:
    """Wait until an image shows what `picture_bytes` gave."""
    until = time.monotonic() + seconds
    while picture_bytes(image) != wanted:
        assert time.monotonic() < until, "the picture did not come back"
        time.sleep(0.05)
