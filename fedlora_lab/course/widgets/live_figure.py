"""The static twin of a live run: the same curves as a figure, for where no widget is shown."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from fedlora_lab._utils.validation import check
from fedlora_lab.plots import style
from fedlora_lab.plots.training_curves import AXES

CENTRE: Any = {"ha": "center", "va": "center", "fontsize": 8, "color": style.SOFT}
BOXES = (0.085, 0.155, 0.5, 0.75), (0.735, 0.62, 0.25, 0.285), (0.735, 0.155, 0.25, 0.235)


def series(frame: Any, measure: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns rounds and values of one measure of one run; none for ``None``."""
    if frame is None:
        return np.zeros(0), np.zeros(0)
    part = frame[(frame["layer"] == "all") & (frame["measure"] == measure)].sort_values("round")
    return part["round"].to_numpy(dtype=float), part["value"].to_numpy(dtype=float)


def _floor(start: float, values: np.ndarray) -> float:
    """Returns the lower end of an accuracy axis, with room under the start and every value."""
    start = start if np.isfinite(start) else 0.0
    lowest = min([start, *values])
    return max(0.0, min(np.floor(10 * start) / 10 - 0.1, np.floor(10 * lowest - 1e-9) / 10))


def _doubled(top: float, values: np.ndarray) -> float:
    """Returns the upper end of an axis: doubled until every value is below it."""
    return top * 2.0 ** max(0, int(np.ceil(np.log2(max([*values, top]) / top))))


def live_figure(
    frame: pd.DataFrame | None,
    *,
    rounds: int | None = None,
    start: float | None = None,
    target: float | None = None,
    measure: str = "accuracy",
    past: Sequence[pd.DataFrame] = (),
) -> style.Picture:
    """Draws a run so far: score, privacy spent and deviation over rounds, on fixed axes.

    Args:
        frame: tidy frame of one run, or ``None`` before it begins.
        rounds: planned, >= 1; ``None``: as many as the frame has.
        start: the score before training; ``None``: round 0 of the frame.
        target: the epsilon planned for; ``None``: no privacy.
        measure: "accuracy", or another whole-model measure of the frame such as "loss".
        past: frames of earlier runs, drawn pale.

    Guarantees: axes depend on the plan and not on the data (test_live_axes_stand_still), unless a
        value would leave them: then they grow (test_the_static_twin_shows_a_fall).

    >>> import fedlora_lab as fl
    >>> records = fl.run(fl.tasks.regression(clients=2), "ffa-lora", None, fl.Plan(rounds=1))
    >>> figure = fl.widgets.live_figure(fl.to_frame(records), measure="loss")
    >>> len(figure.axes)  # score, ε spent, deviation
    3
    """
    known, values = series(frame, measure)
    rounds = int(known.max(initial=0)) if rounds is None else rounds
    start = float(next(iter(values), 0.0)) if start is None else start
    check(rounds >= 1, "rounds", rounds, "a whole number >= 1")
    with style.paper():
        figure, (score, spent, drift) = style.panels(5.6, 2.9, *BOXES)
        panels = (score, measure), (spent, "epsilon"), (drift, "deviation")
        seen = [_panel(ax, frame, past, one, rounds) for ax, one in panels]
        if measure.startswith("accuracy"):
            score.set_ylim(_floor(start, seen[0]), 1.0)
        else:
            score.set_ylim(0.0, _doubled(1.15 * start if 0 < start < np.inf else 1.0, seen[0]))
        if np.isfinite(start):
            score.axhline(start, color=style.GREY, lw=0.9, ls=(0, (1, 2)), zorder=0.9)
            right: Any = {"fontsize": 7.5, "color": style.SOFT, "ha": "right", "va": "top"}
            score.text(rounds, start, f"before {start:.2f} ", **right)
        for earlier in past:
            text, at = style.name(earlier["method"].iloc[0]), series(earlier, measure)[1][-1]
            score.text(rounds * 1.01, at, text, fontsize=6.5, color=style.SOFT, va="center")
        if frame is not None:
            slug = str(frame["method"].iloc[0])
            colour = style.darker(style.look(slug).colour)
            score.set_title(style.name(slug), loc="right", color=colour, fontsize=10)
        spent.set_title("ε spent", fontsize=9)
        spent.set_xlabel("")
        if target is None:
            spent.set(ylim=(0, 1), yticks=[])
            spent.text(0.5, 0.5, "∞ (no privacy)", transform=spent.transAxes, **CENTRE)
        else:
            spent.set_ylim(0, 1.15 * target)
            spent.axhline(target, color=style.INK, lw=0.8, ls=(0, (4, 2)))
        drift.set_title("deviation (relative)", fontsize=9)
        drift.set_ylim(-0.03, _doubled(1.0, seen[2]))
    return figure


def _panel(ax: Any, frame: Any, past: Any, measure: str, rounds: int) -> np.ndarray:
    """Draws one measure of this run and, pale, of earlier ones; returns all its finite values."""
    ax.set(title=AXES.get(measure, (measure, measure))[0], xlim=(0, rounds), xlabel="round")
    ax.xaxis.get_major_locator().set_params(integer=True)
    for earlier in past:
        colour = style.look(earlier["method"].iloc[0]).colour
        ax.plot(*series(earlier, measure), color=colour, lw=1.1, alpha=0.35)
    x, values = series(frame, measure)
    if frame is not None:
        look = style.look(frame["method"].iloc[0])
        ax.plot(x, values, color=look.colour, lw=2.2)
        mark = {"marker": look.marker, "ms": 7, "mec": style.CARD, "mew": 0.6, "clip_on": False}
        ax.plot(x[-1:], values[-1:], color=look.colour, **mark)
        if len(values) > 1 and np.isnan(values[1:]).all():
            ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, **CENTRE)
    every = np.concatenate([values, *(series(earlier, measure)[1] for earlier in past)])
    return every[np.isfinite(every)]
