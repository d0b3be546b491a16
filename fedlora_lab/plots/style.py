"""How every figure looks: one colour a method, a light card that reads in light and dark pages, equal bytes each time.

A figure here is a `Picture`, a Matplotlib figure outside pyplot's registry: nothing stays open, and threads may draw.
"""

import hashlib
import io
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

DPI = 100
INK, SOFT, GREY, FAINT, GRID, CARD = "#22252B", "#4A505C", "#8A8F99", "#D5D8DE", "#E8EAEE", "#FCFCFD"
FACTOR: Mapping[str, str] = {"A": "#D55E00", "B": "#0072B2", "BA": INK, "R": "#7A4FD0", "head": "#7A8290"}
RIGHT, WRONG = "#169C78", "#B3261E"


class Look(NamedTuple):
    """A method's colour, marker and dashes (as seaborn writes them; "" is solid)."""

    colour: str
    marker: str = "o"
    dashes: Any = ""


DASH, DOT, DASH_DOT = (4.5, 1.5), (1.1, 1.3), (4, 1.2, 1.2, 1.2)
# Every pair of the first six differs by more than 25 in CIELAB, also as seen with each of the three colour blindnesses.
LOOKS: Mapping[str, Look] = {
    "fedlora": Look(INK, "o"),
    "ffa-lora": Look("#169C78", "s"),
    "rolora": Look("#2E35D8", "^"),
    "deer": Look("#A8862A", "D"),
    "la-lora": Look("#D455C8", "v"),
    "fedlpp": Look("#8C1D0F", "P"),
    "deer-literal": Look("#6E5716", "d", DASH),
    "la-lora-unfiltered": Look("#8B3B84", "<", DASH),
    "fedex-lora": Look("#0B7285", "X", DASH_DOT),
    "flora": Look("#4C7A0E", "p", DASH_DOT),
    "flexlora": Look("#6741D9", "h", DASH_DOT),
    "hetlora": Look("#A61E4D", "8", DASH_DOT),
    "fedsa-lora": Look("#3B5B8C", ">", DASH_DOT),
    "sdflora": Look("#7C4A1E", "<", DASH_DOT),
    "lora-fair": Look("#2B6E4F", "d", DASH_DOT),
    "fedsvd": Look("#C2410C", "s", DASH_DOT),
    "fedask": Look("#0E6BA8", "^", DASH_DOT),
    "fed-sb": Look("#5B6B00", "v", DASH_DOT),
    "as-lora": Look("#9C36B5", "D", DASH_DOT),
    "dp-lora": Look("#52525B", "o", DASH),
    "dp-fedlora": Look("#7F5F5F", "P", DASH),
    "local": Look(GREY, "x", DOT),
    "central": Look("#5F6673", "*", DOT),
    "non-private": Look("#6B7280", "h", DASH),
}
FURTHER = ("#0F7F94", "#5C7F1A", "#7A4FD0", "#B0486A", "#4F6D8F", "#8F5A33", "#3D7D5C", "#9A4FA0")

_RC: Any = {
    "figure.facecolor": CARD,
    "savefig.facecolor": CARD,
    "axes.facecolor": CARD,
    "axes.edgecolor": GREY,
    "axes.labelcolor": SOFT,
    "axes.titlecolor": INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8.0,
    "axes.titley": 1.0,  # no ticks stand above an axes, so nobody has to look for them at every drawing
    "axes.labelsize": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "text.color": INK,
    "lines.linewidth": 1.9,
    "lines.markersize": 5.0,
    "legend.frameon": False,
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
}
# Matplotlib's settings are one dictionary for all threads, so whoever draws holds this lock.
_LOCK = threading.RLock()


class Picture(Figure):
    """A Matplotlib figure that shows itself as PNG wherever it is the last value of a cell."""

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display({"image/png": png(self), "text/plain": self._words()}, raw=True)

    def _words(self) -> str:
        titles = [ax.get_title(loc="left") or ax.get_title() for ax in self.axes]
        return f"Picture: {'; '.join(title for title in titles if title) or 'no title'}"


@contextmanager
def paper() -> Iterator[None]:
    """The style in which everything is drawn; restores Matplotlib's settings, one thread at a time.

    Guarantees: leaves rcParams and pyplot as they were (test_nothing_leaks).
    """
    with _LOCK, matplotlib.rc_context(_RC):
        yield


def picture(width: float, height: float) -> Picture:
    """An empty figure of this size in inches; call it inside `paper`."""
    figure = Picture(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


def png(figure: Figure) -> bytes:
    """The figure as PNG bytes: fixed dpi, 256 colours, no date, no version.

    Guarantees: equal figures give equal bytes (test_same_frame_same_bytes).
    """
    with paper():
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    buffer = io.BytesIO()
    image.quantize(256, method=Image.Quantize.FASTOCTREE).save(buffer, format="png")
    return buffer.getvalue()


def look(slug: str) -> Look:
    """Colour, marker and line of a method, the same in every figure; a slug outside the table gets a look of its own.

    Guarantees: depends on the slug alone (test_a_method_keeps_its_colour).
    """
    if slug in LOOKS:
        return LOOKS[slug]
    code = int.from_bytes(hashlib.blake2b(slug.encode(), digest_size=4).digest(), "big")
    return Look(FURTHER[code % 8], "X8ph>"[code // 8 % 5], (DASH_DOT, DASH)[code // 40 % 2])


def name(slug: str) -> str:
    """The method's name as published, or the words of the slug where the table has none."""
    from fedlora_lab.methods import ALL, VARIANTS

    row = (ALL | VARIANTS).get(slug)
    return slug.replace("-", " ") if row is None else row.name


def darker(colour: str, share: float = 0.25) -> str:
    """The colour mixed with ink, for text in a method's colour."""
    pairs = [(int(colour[i : i + 2], 16), int(INK[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(a + share * (b - a)):02X}" for a, b in pairs)
