"""The figures of a run under way: fixed axes, so that the data move and the frame does not."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.collections import PatchCollection
from matplotlib.patches import Rectangle

from fedlora_lab.checks import check
from fedlora_lab.plots.curves import AXES
from fedlora_lab.plots.style import (
    CARD,
    FAINT,
    GREY,
    INK,
    RIGHT,
    SOFT,
    WRONG,
    Picture,
    darker,
    look,
    name,
    paper,
    picture,
)


def series(frame: Any, measure: str) -> tuple[np.ndarray, np.ndarray]:
    """Rounds and values of one measure of one run."""
    if frame is None:
        return np.zeros(0), np.zeros(0)
    part = frame[(frame["layer"] == "all") & (frame["measure"] == measure)].sort_values("round")
    return part["round"].to_numpy(dtype=float), part["value"].to_numpy(dtype=float)


def _panel(ax: Any, frame: Any, past: Sequence[pd.DataFrame], measure: str, rounds: int) -> None:
    """One measure over rounds: this run in its method's colour, earlier runs pale."""
    title, _ = AXES.get(measure, (measure, measure))
    ax.set_title(title)
    ax.set_xlim(0, rounds)
    ax.set_xlabel("round")
    ax.xaxis.get_major_locator().set_params(integer=True)
    for earlier in past:
        x, y = series(earlier, measure)
        ax.plot(x, y, color=look(earlier["method"].iloc[0]).colour, lw=1.1, alpha=0.35)
    if frame is not None:
        trace(ax, frame, measure)
        _, values = series(frame, measure)
        if len(values) > 1 and np.isnan(values[1:]).all():
            ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", va="center", fontsize=8, color=SOFT)


def trace(ax: Any, frame: pd.DataFrame, measure: str) -> None:
    """One measure of one run so far, in its method's colour, with the method's mark where it stands now."""
    x, y = series(frame, measure)
    seen = look(frame["method"].iloc[0])
    ax.plot(x, y, color=seen.colour, lw=2.2)
    ax.plot(x[-1:], y[-1:], marker=seen.marker, ms=7, mec=CARD, mew=0.6, color=seen.colour, clip_on=False)


def untrained(ax: Any, rounds: int, start: float) -> None:
    """The score before training, as a line across the plan's rounds; none where it was not measured."""
    if not np.isfinite(start):
        return
    ax.axhline(start, color=GREY, lw=0.9, ls=(0, (1, 2)), zorder=0.9)
    ax.text(rounds, start, f"before {start:.2f} ", fontsize=7.5, color=SOFT, ha="right", va="top")


def live(
    frame: pd.DataFrame | None,
    *,
    rounds: int | None = None,
    start: float | None = None,
    target: float | None = None,
    measure: str = "accuracy",
    past: Sequence[pd.DataFrame] = (),
) -> Picture:
    """A run so far: its score over rounds, the privacy it spent and its deviation, on axes that do not move.

    Args:
        frame: tidy frame of one run, or ``None`` before it begins.
        rounds: planned, >= 1; ``None``: as many as the frame has.
        start: the score before training; ``None``: round 0 of the frame.
        target: the epsilon planned for; ``None``: no privacy.
        measure: "accuracy", or another whole-model measure of the frame such as "loss".
        past: frames of earlier runs, drawn pale.
    Guarantees: axes depend on the plan and not on the data (test_live_axes_stand_still), but where a value would leave
        them: then they grow until it is inside (test_live_shows_a_fall).
    """
    known, values = series(frame, measure)
    rounds = int(known.max(initial=0)) if rounds is None else rounds
    start = (float(values[0]) if len(values) else 0.0) if start is None else start
    check(rounds >= 1, "rounds", rounds, "a whole number >= 1")
    with paper():
        figure = picture(5.6, 2.9)
        left = figure.add_axes((0.085, 0.155, 0.5, 0.75))
        _panel(left, frame, past, measure, rounds)
        _score(left, frame, past, measure, rounds, start)
        spent = figure.add_axes((0.735, 0.62, 0.25, 0.285))
        _panel(spent, frame, past, "epsilon", rounds)
        _budget(spent, target)
        drift = figure.add_axes((0.735, 0.155, 0.25, 0.235))
        _panel(drift, frame, past, "deviation", rounds)
        spent.set_title("ε spent", fontsize=9)
        drift.set_title("deviation (relative)", fontsize=9)
        drift.set_ylim(-0.03, _grown(1.0, _seen(frame, past, "deviation")))
    return figure


def _score(ax: Any, frame: Any, past: Sequence[Any], measure: str, rounds: int, start: float) -> None:
    """The score's axis, which depends on where training starts, and the names of the runs."""
    seen = _seen(frame, past, measure)
    if measure.startswith("accuracy"):
        ax.set_ylim(floor(start, seen), 1.0)
    else:
        ax.set_ylim(0.0, _grown(1.15 * start if 0 < start < np.inf else 1.0, seen))
    untrained(ax, rounds, start)
    for earlier in past:
        _, y = series(earlier, measure)
        ax.text(rounds * 1.01, y[-1], name(earlier["method"].iloc[0]), fontsize=6.5, color=SOFT, va="center")
    if frame is not None:
        slug = str(frame["method"].iloc[0])
        ax.set_title(name(slug), loc="right", color=darker(look(slug).colour), fontsize=10)


def _seen(frame: Any, past: Sequence[Any], measure: str) -> np.ndarray:
    """Every finite value of a measure, of this run and the earlier ones."""
    values = np.concatenate([series(one, measure)[1] for one in (frame, *past)])
    return values[np.isfinite(values)]


def floor(start: float, seen: Any, below: float = 0.1) -> float:
    """The lower end of an axis of accuracy: ``below`` under the start in tenths, and lower where a run has fallen."""
    start = start if np.isfinite(start) else 0.0
    lowest = min([start, *seen])
    return max(0.0, min(np.floor(10 * start) / 10 - below, np.floor(10 * lowest - 1e-9) / 10))


def _grown(top: float, seen: np.ndarray) -> float:
    """The upper end of an axis: doubled until every value is below it."""
    return top * 2.0 ** max(0, int(np.ceil(np.log2(max([*seen, top]) / top))))


def _budget(ax: Any, target: float | None) -> None:
    """The epsilon axis: the plan's target as a line, or the word that there is none."""
    ax.set_xlabel("")
    if target is None:
        ax.set_ylim(0, 1)
        ax.set_yticks([])
        ax.text(0.5, 0.5, "∞ (no privacy)", transform=ax.transAxes, ha="center", va="center", fontsize=8, color=SOFT)
    else:
        ax.set_ylim(0, 1.15 * target)
        ax.axhline(target, color=INK, lw=0.8, ls=(0, (4, 2)))


def images(x: Any, truth: Any, before: Any, now: Any = None, columns: int = 9) -> Picture:
    """Test images with what the model says of them: which are right, and which have changed since the start.

    Args:
        x: (n, height, width) in [0, 1]. truth, before, now: n class numbers; ``now=None`` before training.
    Guarantees: the frame of an image says right, wrong, turned right or turned wrong (test_images_show_what_turned).
    """
    x, truth, before = np.asarray(x), np.asarray(truth), np.asarray(before)
    now = before if now is None else np.asarray(now)
    check(x.ndim == 3, "x.shape", x.shape, "(n, height, width)")
    lines = -(-len(x) // columns)
    with paper():
        figure = picture(3.4, 2.9)
        ax = figure.add_axes((0.01, 0.1, 0.98, 0.895))
        ax.axis("off")
        ax.imshow(_mosaic(x, lines, columns), extent=(0, columns, lines, 0), cmap="Greys", vmin=0, vmax=1.25)
        frames, looks = [], []
        for i in range(len(x)):
            column, line = i % columns, i // columns
            frames.append(Rectangle((column + 0.07, line + 0.07), 0.86, 0.86))
            looks.append(KINDS[kind(truth[i], before[i], now[i])])
            if now[i] != truth[i]:
                said = ax.text(
                    column + 0.9, line + 0.88, str(now[i]), fontsize=7, color="white", ha="right", va="bottom"
                )
                said.set_bbox({"boxstyle": "square,pad=0.1", "fc": WRONG, "ec": "none"})
        edges, widths = zip(*looks, strict=True)
        ax.add_collection(PatchCollection(frames, facecolor="none", edgecolor=edges, linewidths=widths))
        ax.set_xlim(0, columns)
        ax.set_ylim(lines, 0)
        _image_key(figure)
    return figure


KINDS = {"right": (FAINT, 1.0), "turned right": (RIGHT, 2.6), "wrong": (WRONG, 1.2), "turned wrong": (WRONG, 3.2)}


def kind(truth: int, before: int, now: int) -> str:
    """What became of one example: "right", "wrong", "turned right" or "turned wrong"."""
    if now == truth:
        return "right" if before == truth else "turned right"
    return "turned wrong" if before == truth else "wrong"


def _mosaic(x: np.ndarray, lines: int, columns: int) -> np.ndarray:
    """All images in one array, each with a white margin of an eighth of its size."""
    n, height, width = x.shape
    top, side = -(-height // 8), -(-width // 8)
    cells = np.zeros((lines * columns, height + 2 * top, width + 2 * side))
    cells[:n, top : top + height, side : side + width] = x
    return cells.reshape(lines, columns, *cells.shape[1:]).swapaxes(1, 2).reshape(lines * cells.shape[1], -1)


def _image_key(figure: Picture) -> None:
    x = 0.02
    for words, (edge, width) in KINDS.items():
        figure.text(x, 0.045, "■" if width > 2 else "□", color=GREY if edge == FAINT else edge, fontsize=8, va="center")
        figure.text(x + 0.035, 0.045, words, color=SOFT, fontsize=7.5, va="center")
        x += 0.07 + 0.0235 * len(words)
