"""Figures of notebook 10: what exact servers send, and what a cut to the rank loses."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator
from matplotlib.transforms import offset_copy

from fedlora_lab import methods
from fedlora_lab._utils.validation import check, check_one_of, check_whole
from fedlora_lab.plots import style
from fedlora_lab.plots.style import look, name
from fedlora_lab.plots.tidy import byte_unit
from fedlora_lab.plots.training_curves import WAYS

STRIPS = {
    "exact": "exact up to\nrounding",
    "off": "relative\ndeviation",
    "own": "no common\nproduct",
}
ZERO = 1e-5
"""A measured relative deviation below this is rounding: runs compute in float32."""
MEASURED = "bytes and deviation as measured: digits, 10 clients, rank 4, no noise"

COLOURS = (style.FACTOR["A"], style.RIGHT, style.FACTOR["B"])
LAYERS = 8


def cost_and_deviation(table: pd.DataFrame, way: str = "both") -> Any:
    """Tabulates method, bytes, deviation and kind: "exact", "off", or "own" (none in common).

    Args: table: columns up, down, deviation, slug as index, as ``fl.methods.table()`` gives it.
    Raises: ``ValueError`` for a table without them, or another way.
    """
    check_one_of("way", way, tuple(WAYS))
    complete = {"up", "down", "deviation"} <= set(table.columns) and len(table) > 0
    check(complete, "table.columns", list(table.columns), "also up, down, deviation, and rows")
    gap = table["deviation"].astype(float)
    kind = np.where(gap.isna(), "own", np.where(gap < ZERO, "exact", "off"))
    columns = [measure.removeprefix("bytes_") for measure in WAYS[way][0]]
    total = table[columns].sum(axis=1, skipna=False)
    columns = {"bytes": total, "deviation": gap, "kind": kind}
    rows = pd.DataFrame(columns).rename_axis("method").reset_index()
    return rows[rows["bytes"].notna()].reset_index(drop=True)


@style.paper()
def exactness_map(
    table: pd.DataFrame | None = None,
    way: str = "both",
    *,
    mark: str | None = None,
    setting: str = MEASURED,
) -> style.Picture:
    """Draws bytes of a client in a round against the relative deviation; exact rows in a strip.

    Args:
        table: rows to draw (see `cost_and_deviation`); ``None``: the whole table as measured.
        way: "both", "up" or "down"; mark: slug of a method to ring.
        setting: words for the footer.

    Guarantees: every row of the table is drawn once, in its strip
        (test_lesson_10.py::test_the_map_draws_every_row).
    """
    rows = cost_and_deviation(methods.table() if table is None else table, way)
    sent = rows[rows["bytes"] > 0]["bytes"]
    xlim = sent.min() / 2, sent.max() * 2.5
    parts = {k: rows[rows["kind"] == k].sort_values("bytes", kind="stable") for k in STRIPS}
    heights = {k: 2.5 if k == "off" else 0.19 * len(part) + 0.12 for k, part in parts.items()}
    tall, bottom, boxes = sum(heights.values()) + 1.35, 0.62, []
    for height in heights.values():
        boxes.append((0.14, bottom / tall, 0.83, height / tall))
        bottom += height + 0.09
    figure, (exact, off, own) = style.panels(8.6, tall, *boxes)
    for ax in (exact, off, own):
        ax.set(xscale="log", xlim=xlim, facecolor="#EEF7F3" if ax is exact else style.CARD)
    _strip(own, parts["own"], mark)
    _strip(exact, parts["exact"], mark)
    _field(off, parts["off"], mark)
    low, high = (math.ceil(math.log10(limit) - 1e-9) for limit in xlim)
    powers = [10.0**p for p in range(low, high)]
    for ax, (kind, words) in zip((exact, off, own), STRIPS.items(), strict=True):
        for plain in rows[rows["method"] == "fedlora"]["bytes"]:  # the plain mean of both factors
            line = {"color": style.GREY, "lw": 1, "ls": (0, (3, 3)), "alpha": 0.5, "zorder": 0.8}
            ax.axvline(float(plain), **line)
        pad = 6 if kind == "off" else 10
        ax.set_ylabel(words, rotation=0, ha="right", va="center", labelpad=pad)
        if ax is not exact:  # the same lines, without an axis to lay out
            ax.xaxis.set_visible(False)
            put = {"transform": ax.get_xaxis_transform(), "zorder": 0.5}
            ax.vlines(powers, 0, 1, style.GRID, lw=0.8, **put)
    style.log_axis(exact.xaxis, tuple(powers))
    exact.yaxis.label.set(color=style.darken(style.RIGHT), weight="bold")
    exact.set_xlabel(f"bytes {WAYS[way][1]} by one client in a round")
    divided = "{0:g} {2}".format
    exact.xaxis.set_major_formatter(lambda x, _: divided(x / byte_unit(x)[0], *byte_unit(x)))
    off.tick_params(length=0)
    own.set_title(_finding(rows), pad=8)
    style.footer(figure, setting)
    return figure


def _finding(rows: pd.DataFrame) -> str:
    """Counts the exact servers and compares their bytes with those of FedLoRA."""
    exact, words = rows[rows["kind"] == "exact"]["bytes"], ""
    for plain in rows[rows["method"] == "fedlora"]["bytes"]:
        dear = exact[exact > plain]
        words = f": {len(exact) - len(dear)} for FedLoRA's bytes or less"
        words += f", {len(dear)} for up to {dear.max() / plain:.2g} times" if len(dear) else ""
    return f"{len(exact)} of {len(rows)} servers are exact{words if len(exact) else ''}"


def _dot(ax: Any, x: float, y: float, slug: str, mark: str | None) -> None:
    """Draws a method's mark, ringed where it is the chosen one, over the edge of the axes."""
    colour, marker, _ = look(slug)
    put: Any = {"ls": "none", "clip_on": False, "transform": ax.transData}
    if slug == mark:
        ring: Any = {"marker": "o", "ms": 17, "mfc": "none", "mec": colour, "mew": 1.8, "zorder": 5}
        ax.add_artist(Line2D([x], [y], **ring, **put))
    edge: Any = {"mec": colour, "mew": 1.8} if marker == "x" else {"mec": style.CARD, "mew": 0.7}
    shape: Any = {"marker": marker, "ms": 7.5, "color": colour, "zorder": 4}
    ax.add_artist(Line2D([x], [y], **shape, **edge, **put))


def _strip(ax: Any, rows: Any, mark: str | None) -> None:
    """Draws one line a method, the cheapest at the bottom, its name beside the mark."""
    ax.set(ylim=(-0.7, max(len(rows), 1) - 0.3), yticks=[])
    left, right = ax.get_xlim()
    for line, row in enumerate(rows.itertuples()):
        x = max(float(row.bytes), left)
        _dot(ax, x, line, row.method, mark)
        far = math.log(x / left) > 0.75 * math.log(right / left)
        words = name(row.method) + ("" if row.bytes else " (nothing is sent)")
        place = offset_copy(ax.transData, ax.figure, -9 if far else 9, -0.5, units="points")
        put: Any = {"ha": "right" if far else "left", "va": "center", "transform": place}
        colour = style.darken(look(row.method).colour)
        style.note(ax, x, line, words, colour, 8.3, weight="bold", **put)


def _field(ax: Any, rows: Any, mark: str | None) -> None:
    """Draws the servers that miss the mean product, by how much."""
    bottom = min([0.01, *rows["deviation"]]) * 0.6
    ax.set(yscale="log", ylim=(bottom, 1.0))
    ticks = [tick for tick in (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0) if tick > bottom]
    ax.set_yticks(ticks, [f"{tick:.0%}" if tick > 0.005 else f"{tick:.1%}" for tick in ticks])
    ax.yaxis.set_minor_locator(NullLocator())
    ax.axhline(bottom, color=style.FAINT, lw=0.8)
    labels = []
    for (x, y), same in rows.groupby(["bytes", "deviation"], sort=False):
        y = min(float(y), 1.0)
        for slug in same["method"][::-1]:
            _dot(ax, float(x), y, slug, mark)
        text, colour = ", ".join(map(name, same["method"])), look(same["method"].iloc[0]).colour
        labels.append(style.Label(float(x), y, text, colour))
    if labels:
        style.draw_labels(ax, labels, size=8.3, together=False, inside=True, wide=26)
    else:
        style.note(ax, 0.5, 0.5, "none", style.GREY, 10, ha="center")
    ax.yaxis.label.set_color(style.SOFT)


@style.paper()
def mean_spectra(cases: Mapping[str, Any], rank: int) -> style.Picture:
    """Draws the singular values of mean products, relative to the largest.

    Args:
        cases: words -> singular values, falling; one to three.
        rank: that the server's factors have: the line.

    Raises: ``ValueError`` without cases.
    Guarantees: dots are the values (test_lesson_10.py::test_the_figure_of_mean_products).
    """
    check(0 < len(cases) <= len(COLOURS), "cases", list(cases), "one to three")
    check_whole("rank", rank, 1)
    figure, (ax,) = style.row(7.6, 3.7, (0.17, 0.70), (0.11, 0.72))
    ends = []
    for (words, given), colour in zip(cases.items(), COLOURS, strict=False):
        values = np.asarray(given, dtype=float)
        y = values[values > 1e-6 * values[0]] / values[0]
        drawn = style.named_line(ax, np.arange(1, len(y) + 1), y, words, colour, lw=1)
        style.dots(ax, np.arange(1, len(y) + 1), y, colour, 4, mew=0.4)
        ends.append(drawn)
    ax.axvline(rank + 0.5, color=style.GREY, lw=1.2, ls=style.DASHED)
    ax.text(rank + 0.9, 1.3, f"rank {rank} ends here", fontsize=8, color=style.SOFT, va="bottom")
    ax.set(yscale="log", ylim=(1e-6, 4), xlabel="direction, largest first")
    ax.set_ylabel("singular value, relative to the largest")
    ax.set_title("The mean product outgrows the rank, unless a factor is common")
    style.draw_labels(ax, ends, together=False, inside=True)
    return figure
