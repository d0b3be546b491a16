"""What every method sends against how far its server is from the mean of the clients' products."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator
from matplotlib.transforms import offset_copy

from fedlora_lab.checks import check, check_one_of
from fedlora_lab.plots.curves import footer
from fedlora_lab.plots.labels import Label, beside
from fedlora_lab.plots.style import CARD, FAINT, GREY, GRID, RIGHT, SOFT, Picture, darker, look, name, paper, picture
from fedlora_lab.plots.tidy import sized

WAYS = {"both": ("up", "down"), "up": ("up",), "down": ("down",)}
WORDS = {"both": "sent and received", "up": "sent to the server", "down": "received from the server"}
ZERO = 1e-5
"""A measured relative deviation below this is rounding: runs compute in float32."""


def places(table: pd.DataFrame, way: str = "both") -> Any:
    """Columns method, bytes, deviation, and kind: "exact", "off", or "own" where no common product is formed.

    Args: table: columns up, down, deviation, slug as index, as ``fl.methods.table()`` gives it.
    Raises: ``ValueError`` for a table without them, or another way.
    """
    check_one_of("way", way, tuple(WAYS))
    missing = [column for column in ("up", "down", "deviation") if column not in table.columns]
    check(not missing and len(table) > 0, "table.columns", list(table.columns), "also up, down, deviation, and rows")
    gap = table["deviation"].astype(float)
    kind = np.where(gap.isna(), "own", np.where(gap < ZERO, "exact", "off"))
    total = table[list(WAYS[way])].sum(axis=1, skipna=False)
    found = pd.DataFrame({"method": table.index, "bytes": total.to_numpy(), "deviation": gap.to_numpy(), "kind": kind})
    return found[found["bytes"].notna()].reset_index(drop=True)


def exactness_map(
    table: pd.DataFrame | None = None,
    way: str = "both",
    *,
    mark: str | None = None,
    limits: tuple[float, float] | None = None,
    setting: str = "",
) -> Picture:
    """Bytes of one client in one round against the relative deviation; rows that are exact stand in a strip below.

    Args:
        table: rows to draw (see `places`); ``None``: the whole table as measured.
        way: "both", "up" or "down".
        mark: slug of a method to ring.
        limits: bytes that the axis spans, both > 0; ``None``: those of the rows.
        setting: words for the footer.

    Guarantees: every row of the table is drawn once, in its strip (test_lesson_10.py::test_the_map_draws_every_row).
    """
    from fedlora_lab import methods

    table = methods.table() if table is None else table
    found = places(table, way)
    sent = found[found["bytes"] > 0]
    low, high = limits or (sent["bytes"].min() / 2, sent["bytes"].max() * 2.5)
    strips = {
        kind: found[found["kind"] == kind].sort_values("bytes", kind="stable") for kind in ("own", "off", "exact")
    }
    heights = {"own": 0.19 * len(strips["own"]) + 0.12, "off": 2.5, "exact": 0.19 * len(strips["exact"]) + 0.12}
    with paper():
        figure = picture(8.6, sum(heights.values()) + 1.35)
        tall, bottom, axes = figure.get_figheight(), 0.62, {}
        for kind in ("exact", "off", "own"):
            axes[kind] = figure.add_axes((0.14, bottom / tall, 0.83, heights[kind] / tall))
            axes[kind].set(xscale="log", xlim=(low, high), facecolor="#EEF7F3" if kind == "exact" else CARD)
            bottom += heights[kind] + 0.09
        for kind in ("own", "exact"):
            _strip(axes[kind], strips[kind], mark)
        _field(axes["off"], strips["off"], mark)
        _reference(axes, found)
        _words(axes, f"bytes {WORDS[way]} by one client in a round")
        count = len(strips["exact"])
        axes["own"].set_title(f"{count} of {len(found)} servers hold the mean product, at very different prices", pad=8)
        footer(figure, setting or "bytes and deviation as measured: digits, 10 clients, rank 4, no noise")
    return figure


def _reference(axes: Mapping[str, Any], found: Any) -> None:
    """A line through all strips where the plain mean of both factors stands."""
    plain = found[found["method"] == "fedlora"]["bytes"]
    for ax in axes.values() if len(plain) else ():
        ax.axvline(float(plain.iloc[0]), color=GREY, lw=1, ls=(0, (3, 3)), alpha=0.5, zorder=0.8)


def _words(axes: Mapping[str, Any], x: str) -> None:
    for kind, words in (
        ("own", "no common\nproduct"),
        ("off", "relative\ndeviation"),
        ("exact", "exact up to\nrounding"),
    ):
        axes[kind].set_ylabel(words, rotation=0, ha="right", va="center", labelpad=10 if kind != "off" else 6)
    low, high = (math.ceil(math.log10(limit) - 1e-9) for limit in axes["exact"].get_xlim())
    powers = [10.0**p for p in range(low, high)]
    axes["exact"].xaxis.set_major_locator(FixedLocator(powers))
    axes["exact"].xaxis.set_minor_locator(NullLocator())
    axes["exact"].yaxis.label.set(color=darker(RIGHT), weight="bold")
    axes["exact"].set_xlabel(x)
    axes["exact"].xaxis.set_major_formatter(lambda x, _: "{0:g} {2}".format(x / sized(x)[0], *sized(x)))
    axes["off"].tick_params(length=0)
    for kind in ("own", "off"):  # the same lines, without an axis to lay out
        axes[kind].xaxis.set_visible(False)
        axes[kind].vlines(powers, 0, 1, GRID, lw=0.8, transform=axes[kind].get_xaxis_transform(), zorder=0.5)


def _dot(ax: Any, x: float, y: float, slug: str, mark: str | None) -> None:
    seen = look(slug)
    edge = {"mec": seen.colour, "mew": 1.8} if seen.marker == "x" else {"mec": CARD, "mew": 0.7}
    place: dict[str, Any] = {"ls": "none", "clip_on": False, "transform": ax.transData}
    if slug == mark:
        ax.add_artist(Line2D([x], [y], marker="o", ms=17, mfc="none", mec=seen.colour, mew=1.8, zorder=5, **place))
    ax.add_artist(Line2D([x], [y], marker=seen.marker, ms=7.5, color=seen.colour, zorder=4, **edge, **place))


def _strip(ax: Any, rows: Any, mark: str | None) -> None:
    """One line a method, cheapest at the bottom, its name beside the mark."""
    ax.set(ylim=(-0.7, max(len(rows), 1) - 0.3), yticks=[])
    left, right = ax.get_xlim()
    for line, row in enumerate(rows.itertuples()):
        x = max(float(row.bytes), left)
        _dot(ax, x, line, row.method, mark)
        far = math.log(x / left) > 0.75 * math.log(right / left)
        words = name(row.method) + ("" if row.bytes else " (nothing is sent)")
        beside = offset_copy(ax.transData, ax.figure, -9 if far else 9, -0.5, units="points")
        ax.text(
            x, line, words, transform=beside, fontsize=8.3, weight="bold", color=darker(look(row.method).colour),
            ha="right" if far else "left", va="center",
        )  # fmt: skip


def _field(ax: Any, rows: Any, mark: str | None) -> None:
    """The servers that miss the mean product, by how much."""
    ax.set(yscale="log", ylim=(0.006, 1.0))
    ax.set_yticks((0.01, 0.03, 0.1, 0.3, 1.0), ("1 %", "3 %", "10 %", "30 %", "100 %"))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.axhline(0.006, color=FAINT, lw=0.8)
    labels = []
    for (x, y), same in rows.groupby(["bytes", "deviation"], sort=False):
        y = min(max(float(y), 0.006), 1.0)
        for slug in same["method"][::-1]:
            _dot(ax, float(x), y, slug, mark)
        text = ", ".join(name(slug) for slug in same["method"])
        labels.append(Label(float(x), y, text, look(same["method"].iloc[0]).colour))
    if labels:
        beside(ax, labels, size=8.3, together=False, inside=True, wide=38)
    else:
        ax.text(0.5, 0.5, "none", transform=ax.transAxes, color=GREY, ha="center")
    ax.yaxis.label.set_color(SOFT)
