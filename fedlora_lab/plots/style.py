"""Colours of methods, the style of every figure, PNG bytes, and labels beside lines."""

import base64
import hashlib
import io
import textwrap
import threading
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation, Text
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike
from PIL import Image

from fedlora_lab._utils.method_names import NAMES
from fedlora_lab._utils.validation import check

DPI = 100
INK = "#22252B"
SOFT = "#4A505C"
GREY = "#8A8F99"
FAINT = "#D5D8DE"
CARD = "#FCFCFD"
RIGHT = "#169C78"
WRONG = "#B3261E"
WITH = "#B0486A"  # the example (or canary) took part
WITHOUT = "#4F6D8F"  # it did not
FACTOR = {"A": "#D55E00", "B": "#0072B2", "BA": INK, "R": "#7A4FD0", "head": "#7A8290"}
SERIES = ("#0F7F94", "#7A4FD0", "#8F5A33", "#B0486A")  # lines of no method and no factor
DASHED = (0, (4, 2))
DOTTED = (0, (1, 2))
Dashes = tuple[float, ...]
"""Lengths of dashes and gaps in points; none is a solid line."""


class Look(NamedTuple):
    """How a method is drawn.

    Args:
        colour: as Matplotlib reads it.
        marker: Matplotlib's word for one.
        dashes: lengths of strokes and gaps in turn, in line widths; (): a solid line.
    """

    colour: str
    marker: str = "o"
    dashes: Dashes = ()


DASHES: dict[str, Dashes] = {
    "solid": (),
    "dash": (4.5, 1.5),
    "dot": (1.1, 1.3),
    "dash-dot": (4, 1.2, 1.2, 1.2),
}
_TABLE = tomllib.loads(Path(__file__).with_name("looks.toml").read_text(encoding="utf-8"))
LOOKS: dict[str, Look] = {
    slug: Look(colour, marker, DASHES[dashes])
    for slug, (_, colour, marker, dashes) in _TABLE.items()
}
SPARE_COLOURS = (
    "#0F7F94",
    "#5C7F1A",
    "#7A4FD0",
    "#B0486A",
    "#4F6D8F",
    "#8F5A33",
    "#3D7D5C",
    "#9A4FA0",
)

_RC = matplotlib.rc_params_from_file(
    Path(__file__).with_name("figures.mplstyle"), use_default_template=False
)
# Matplotlib's settings are one dictionary for all threads, so whoever draws holds this lock.
_LOCK = threading.RLock()


IN_THE_DARK = """<style>:is(body[data-jp-theme-light="false"], html[theme="dark"],
body[data-vscode-theme-kind*="dark"], body[data-vscode-theme-kind$="high-contrast"]) .fl-figure
{{filter: invert(.93) hue-rotate(180deg)}}</style>
<img class="fl-figure" alt="{}" src="data:image/png;base64,{}">"""
"""A figure in JupyterLab, Colab and VS Code: in a dark theme paper and ink change places, and the
colours keep their hues."""


class Picture(Figure):
    """A Matplotlib figure that shows itself as PNG wherever it is the last value of a cell."""

    below: Any = None
    """What a notebook shows under it, such as a sentence."""

    def _ipython_display_(self) -> None:
        from IPython.display import display

        titles = [self.get_suptitle(), *(ax.get_title(loc="left") for ax in self.axes)]
        words = [str(text) for text in (*titles, self.get_label()) if text]
        text = " ".join("; ".join(words).split()) or "no title"
        shown = png(self)
        html = IN_THE_DARK.format(escape(text), base64.b64encode(shown).decode())
        forms = {"image/png": shown, "text/html": html, "text/plain": f"Picture: {text}"}
        display(forms, raw=True)
        if self.below is not None:
            display(self.below)


@contextmanager
def paper() -> Iterator[None]:
    """Sets the style of all figures, one thread at a time, and restores Matplotlib's settings.

    Guarantees: leaves rcParams and pyplot as they were (test_nothing_is_cut_off_and_nothing_leaks).
    """
    with _LOCK, matplotlib.rc_context(_RC):
        yield


def blank_picture(width: float, height: float) -> Picture:
    """Makes an empty figure of this size in inches; call it inside `paper`."""
    figure = Picture(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


def subplots(
    width: float,
    height: float,
    rows: int = 1,
    columns: int = 1,
    ax: Axes | None = None,
    **options: Any,
) -> tuple[Any, list[Axes]]:
    """Makes a figure whose axes, titles and labels find their own places.

    Args:
        width, height: of the figure, inches.
        rows, columns: of axes.
        ax: the caller's own, in the place of new ones.
        options: see ``Figure.subplots``, such as ``width_ratios`` or ``sharey``.

    Returns: the figure, and its axes row by row.
    """
    if ax is not None:
        check(isinstance(ax, Axes), "ax", ax, "axes of Matplotlib")
        check(rows == columns == 1, "ax", "one", f"None, for {rows * columns} panels")
        return ax.figure, [ax]
    with paper():
        figure = blank_picture(width, height)
        figure.set_layout_engine(ConstrainedLayoutEngine(h_pad=0.06, w_pad=0.08))
        return figure, list(figure.subplots(rows, columns, squeeze=False, **options).flat)


def png(figure: Figure) -> bytes:
    """Renders the figure as PNG bytes: fixed dpi, 256 colours, no date, no version.

    Guarantees: equal figures give equal bytes (test_threads_may_draw_at_once).
    """
    with paper():
        # A canvas of its own: the figure may stand in a notebook's.
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        # Matplotlib's own writer would put its version into the file.
        image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    buffer = io.BytesIO()
    # Few colours are enough for lines and text, and a notebook holds many figures.
    image.quantize(256, method=Image.Quantize.FASTOCTREE).save(buffer, format="png")
    return buffer.getvalue()


def look(slug: str) -> Look:
    """Returns colour, marker and dashes of a method, the same in every figure.

    Guarantees: depends on the slug alone (test_lines_and_their_names_are_seen_on_the_card).
    """
    # A method of the table has a place of its own among the colours.
    if slug in LOOKS:
        return LOOKS[slug]
    # Python's own hash of a text differs from process to process.
    code = int.from_bytes(hashlib.blake2b(slug.encode(), digest_size=4).digest(), "big")
    dashes = DASHES[("dash-dot", "dash")[code // 40 % 2]]
    return Look(SPARE_COLOURS[code % 8], "X8ph>"[code // 8 % 5], dashes)


def name(slug: str) -> str:
    """Returns the method's name: as published, as its row says, or else the words of the slug.

    Guarantees: equals the name of the row (test_plots.py::test_names_are_those_of_the_table).
    """
    # Not asked of the table's rows: they load torch, and a report needs none.
    return _TABLE[slug][0] if slug in _TABLE else NAMES.get(slug, slug.replace("-", " "))


def darken(colour: str) -> str:
    """Mixes the colour with a quarter of ink, for text in a method's colour."""
    mixed: Any = 0.75 * np.array(to_rgb(colour)) + 0.25 * np.array(to_rgb(INK))
    return to_hex(mixed)


def whole_ticks(axis: Axis) -> None:
    """Puts the ticks of a linear axis at whole numbers alone."""
    locator = axis.get_major_locator()
    assert isinstance(locator, MaxNLocator)  # what a linear axis has
    locator.set_params(integer=True)


def note(
    ax: Axes,
    x: float,
    y: float,
    text: str,
    colour: str = SOFT,
    size: float = 8.0,
    **style: Any,
) -> Text:
    """Writes a text at (x, y), in shares of the axes unless ``transform`` says otherwise.

    Args: ax, x, y, text, colour: what stands where; size: in points; style: see ``Axes.text``.
    """
    style.setdefault("transform", ax.transAxes)
    return ax.text(x, y, text, color=colour, fontsize=size, **style)


def draw_dots(
    ax: Axes, x: ArrayLike, y: ArrayLike, colour: str, size: float = 6.0, **style: Any
) -> None:
    """Draws dots with a light edge, which keeps them apart from lines and from each other.

    Args: ax, x, y, colour: what stands where; size: in points; style: see ``Axes.plot``.
    """
    look: dict[str, Any] = {"marker": "o", "ls": "none", "color": colour, "mec": CARD, "ms": size}
    ax.plot(x, y, **look | style)


def headline(figure: Figure, text: str) -> None:
    """Writes the finding above all panels of a figure."""
    figure.suptitle(text, x=0.012, ha="left", fontsize=11, weight="bold", color=INK)


def footer(figure: Figure, text: str) -> None:
    """Writes one small line under a figure: what the band is, how many seeds."""
    # What stands under a figure of the caller's own is the caller's affair.
    if not isinstance(figure, Picture):
        return
    # The layout makes room for the label of the whole figure's x axis, not for a free text.
    figure.supxlabel(text, x=0.012, fontsize=7.5, color=SOFT, ha="left", va="bottom")


class Label(NamedTuple):
    """A text for a point of a figure.

    Args:
        x, y: the point, in data units.
        text, colour: what is written there.
    """

    x: float
    y: float
    text: str
    colour: str


def named_line(
    ax: Axes,
    x: ArrayLike,
    y: ArrayLike,
    text: str,
    colour: str,
    low: ArrayLike | None = None,
    high: ArrayLike | None = None,
    **drawn: Any,
) -> Label:
    """Draws a line, with a pale band around it where one is given; returns a label for its end.

    Args: x, y: of the line, not empty; text, colour: of its label; low, high: edges of the band;
        drawn: see ``Axes.plot``.
    """
    if low is not None and high is not None:
        ax.fill_between(x, low, high, color=colour, alpha=0.13, lw=0)
    ax.plot(x, y, color=colour, **drawn)
    return Label(float(np.asarray(x)[-1]), float(np.asarray(y)[-1]), text, colour)


LABEL_SIZE = 8.5  # points
LABEL_WIDTH = 14  # letters in a line


def label_ends(ax: Axes, labels: list[Label]) -> None:
    """Writes labels right of axes, as near to the ends of their lines as they fit.

    A thin leader joins each to the end of its line.

    Args: ax, labels: of its lines.
    Guarantees: no label lies on another (test_labels_beside_lines_keep_apart).
    """
    if not labels:
        return
    leader: Any = {"arrowstyle": "-", "color": GREY, "lw": 0.6, "relpos": (0, 0.5), "shrinkA": 0}
    put: Any = {"xytext": (1.03, 0.5), "textcoords": "axes fraction", "annotation_clip": False}
    look: Any = {"fontsize": LABEL_SIZE, "weight": "bold", "va": "center", "arrowprops": leader}
    fold: Any = {"break_long_words": False, "break_on_hyphens": False}
    column = []
    for label in labels:
        # "ε = 8" stays on one line.
        text = textwrap.fill(label.text.replace(" = ", "\u00a0=\u00a0"), LABEL_WIDTH, **fold)
        text = text.replace("\u00a0", " ")
        shown = ax.annotate(text, (label.x, label.y), color=darken(label.colour), **put, **look)
        shown.set_path_effects([withStroke(linewidth=2.5, foreground=CARD)])
        column.append(shown)
    ax.add_artist(_LabelsApart(column))


class _LabelsApart(Artist):
    """Drawn before the labels of some axes: puts them where they fit, whatever lays out the figure.

    The height of the axes, which decides how far apart they must be, is known only then.
    """

    zorder = -1

    def __init__(self, labels: list[Annotation]) -> None:
        super().__init__()
        self.labels = labels

    def draw(self, renderer: RendererBase) -> None:
        ax = self.labels[0].axes
        assert ax is not None
        line = 1.2 * LABEL_SIZE / 72 * ax.figure.dpi / ax.get_window_extent().height
        heights = [line * (label.get_text().count("\n") + 1) for label in self.labels]
        to_axes = ax.transData + ax.transAxes.inverted()
        ends = to_axes.transform([label.xy for label in self.labels])
        for label, place in zip(self.labels, spread_apart(list(ends[:, 1]), heights), strict=True):
            label.set_position((1.03, place))


def spread_apart(values: list[float], sizes: list[float]) -> list[float]:
    """Places boxes of these sizes as near to ``values`` as possible, without overlap.

    Args: values, sizes: of the boxes, alike long; they stay in [0, 1], where they fit.
    Guarantees: test_labels_beside_lines_keep_apart.
    """
    from scipy.optimize import isotonic_regression  # slow to import

    order = np.argsort(values, kind="stable")
    places = np.empty(len(values))
    size = np.asarray(sizes, float)[order]
    # Less the boxes below it, a box may move anywhere above its predecessor: a monotone fit.
    below = np.cumsum(size) - size
    edges = isotonic_regression(np.asarray(values, float)[order] - below - size / 2).x
    places[order] = np.clip(edges, 0.0, max(0.0, 1.0 - size.sum())) + below + size / 2
    return places.tolist()


def finish(
    figure: Figure, axes: Sequence[Axes], names: Sequence[str], title: str, caption: str
) -> Figure:
    """Writes the finding above one panel or all of them, and the caption below.

    Args:
        figure: of these panels.
        axes: its panels.
        names: of the panels, one each; empty where one panel needs none.
        title: the finding.
        caption: empty for none.
    """
    if len(axes) == 1 and not names[0]:
        axes[0].set_title(title)
    else:
        for ax, name in zip(axes, names, strict=True):
            ax.set_title(name, fontsize=9.5)
        headline(figure, title)
    if caption:
        footer(figure, caption)
    return figure
