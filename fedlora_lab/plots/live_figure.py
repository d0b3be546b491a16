"""The static twin of a live run: a run so far, on axes that stand still."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes

from fedlora_lab._utils.validation import check
from fedlora_lab.plots import style
from fedlora_lab.plots.training_curves import AXES


@style.paper()
def live_figure(
    frame: pd.DataFrame,
    *,
    target: float | None = None,
    measure: str = "accuracy",
    past: Sequence[pd.DataFrame] = (),
) -> style.Picture:
    """Draws a run: score, privacy spent and deviation over rounds, on the axes of a live run.

    A run whose deviation nobody can measure has no panel for it.

    Args:
        frame: tidy frame of one run.
        target: the epsilon planned for; ``None``: no privacy.
        measure: "accuracy", or another whole-model measure of the frame such as "loss".
        past: frames of earlier runs, drawn pale.

    Guarantees: axes depend on the start and the target alone, unless a value would leave them: then
        they grow (test_the_static_twin_shows_a_fall).

    >>> import fedlora_lab as fl
    >>> records = fl.run(fl.tasks.regression(clients=2), "ffa-lora", None, fl.Plan(rounds=1))
    >>> figure = fl.course.widgets.live_figure(fl.to_frame(records), measure="loss")
    >>> len(figure.axes)  # score, ε spent, deviation
    3
    """
    measured, values = series(frame, measure)
    check(len(values) > 0, "measure", measure, "one of the whole model that the frame has")
    rounds = max(int(measured[-1]), 1)
    start = float(values[0])
    measures = [measure, "epsilon", "deviation"]
    # Where only the sum of the uploads is known, nobody can measure the deviation.
    if frame is not None and not np.isfinite(series(frame, "deviation")[1]).any():
        measures.remove("deviation")
    widths = [1.7, 1, 1][: len(measures)]
    # The score is what one looks at; the other two need less room.
    figure, axes = style.subplots(9.2, 2.9, columns=len(measures), width_ratios=widths)
    seen = {}
    for ax, name in zip(axes, measures, strict=True):
        seen[name] = _draw_run(ax, frame, past, name, rounds)
    score, spent = axes[:2]
    if measure.startswith("accuracy"):
        score.set_ylim(_floor(start, seen[measure]), 1.0)
    else:
        score.set_ylim(0.0, _doubled(1.15 * start if 0 < start < np.inf else 1.0, seen[measure]))
    if np.isfinite(start):
        _mark_start(score, rounds, start)
    slug = str(frame["method"].iloc[0])
    title = f"{style.name(slug)}: {measure} {start:.2f} → {values[-1]:.2f}"
    score.set_title(title, color=style.darken(style.look(slug).colour))
    # Room above the target, so that a run that ends on it is not cut off.
    spent.set_ylim(0, 1 if target is None else 1.15 * target)
    if target is None:
        spent.set_yticks([])
        style.note(spent, 0.5, 0.5, "∞ (no privacy)", size=8, ha="center")
    else:
        spent.axhline(target, color=style.INK, lw=0.8, ls=style.DASHED)
    for drift in axes[2:]:
        drift.set_ylim(-0.03, _doubled(1.0, seen["deviation"]))
    return figure


def _mark_start(ax: Axes, rounds: int, start: float) -> None:
    """Draws the score before training as a dotted line, and its number at the end of it."""
    ax.axhline(start, color=style.GREY, lw=0.9, ls=style.DOTTED, zorder=0.9)
    beside = {"ha": "right", "va": "top", "transform": ax.transData}
    style.note(ax, rounds, start, f"before {start:.2f} ", size=7.5, **beside)


def series(
    frame: pd.DataFrame, measure: str
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Returns rounds and values of one measure of one run."""
    part = frame[(frame["layer"] == "all") & (frame["measure"] == measure)].sort_values("round")
    return part["round"].to_numpy(dtype=float), part["value"].to_numpy(dtype=float)


def _floor(start: float, values: Float[np.ndarray, " n"]) -> float:
    """Returns the lower end of an accuracy axis, with room under the start and every value."""
    # A tenth below the start, and the tenth below whatever fell further.
    start = start if np.isfinite(start) else 0.0
    lowest = min([start, *values])
    return max(0.0, min(np.floor(10 * start) / 10 - 0.1, np.floor(10 * lowest - 1e-9) / 10))


def _doubled(top: float, values: Float[np.ndarray, " n"]) -> float:
    """Returns the upper end of an axis: doubled until every value is below it."""
    return top * 2.0 ** max(0, int(np.ceil(np.log2(max([*values, top]) / top))))


def _draw_run(
    ax: Axes,
    frame: pd.DataFrame,
    past: Sequence[pd.DataFrame],
    measure: str,
    rounds: int,
) -> Float[np.ndarray, " n"]:
    """Draws one measure of this run and, pale, of earlier ones; returns all its finite values."""
    ax.set(title=AXES.get(measure, (measure, measure))[0], xlim=(0, rounds), xlabel="round")
    style.whole_ticks(ax.xaxis)
    every = []
    labels = []
    for earlier in past:
        slug = str(earlier["method"].iloc[0])
        x, values = series(earlier, measure)
        ax.plot(x, values, color=style.look(slug).colour, lw=1.1, alpha=0.35)
        labels.append(style.Label(float(x[-1]), float(values[-1]), style.name(slug), style.SOFT))
        every.append(values)
    x, values = series(frame, measure)
    look = style.look(str(frame["method"].iloc[0]))
    ax.plot(x, values, color=look.colour, lw=2.2)
    style.draw_dots(ax, x[-1:], values[-1:], look.colour, 7, marker=look.marker)
    every.append(values)
    if measure not in ("epsilon", "deviation"):
        style.label_ends(ax, labels)
    numbers = np.concatenate(every)
    return numbers[np.isfinite(numbers)]
