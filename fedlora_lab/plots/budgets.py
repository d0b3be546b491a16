"""Accuracy against the privacy budget: what each method makes of the same promise."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from fedlora_lab.checks import check
from fedlora_lab.plots import tidy
from fedlora_lab.plots.curves import footer
from fedlora_lab.plots.labels import Label, beside
from fedlora_lab.plots.style import CARD, GREY, SOFT, Picture, look, name, paper, picture

Frames = Mapping[float | None, pd.DataFrame]


def last_scores(frames: Frames, measure: str = "accuracy") -> Any:
    """Score of every run after its last round: columns method, seed, budget (infinity: no privacy), value."""
    parts = []
    for budget, frame in frames.items():
        part = tidy.last(frame, measure)
        parts.append(part.assign(budget=math.inf if budget is None else float(budget)))
    columns = ["method", "seed", "budget", "value"]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def _line(ax: Any, part: Any, places: dict[float, int], slug: str, aside: float) -> Label:
    """One method, a little ``aside`` of the others: every run a pale mark, the means a line."""
    seen, groups = look(slug), sorted(part.groupby("budget"), key=lambda pair: pair[0])
    xs = [places[budget] + aside for budget, _ in groups]
    means = [float(rows["value"].mean()) for _, rows in groups]
    for x, (_, rows) in zip(xs, groups, strict=True):
        values = rows["value"].to_numpy(float)
        ax.plot([x] * len(values), values, ls="none", marker=seen.marker, ms=4, mew=0, color=seen.colour, alpha=0.35)
    ax.plot(xs, means, color=seen.colour, marker=seen.marker, ms=7, mec=CARD, mew=0.6)
    return Label(float(xs[-1]), means[-1], name(slug), seen.colour)


def budgets(
    frames: Frames,
    *,
    axis: Sequence[float | None] | None = None,
    start: float | None = None,
    measure: str = "accuracy",
) -> Picture:
    """The score after the last round against ε, one line a method; faint marks are single runs.

    Args:
        frames: ε -> tidy frame of runs calibrated for it; ``None``: without privacy; may be empty beside ``axis``.
        axis: every ε that has a place, in order; ``None``: those of the frames. start: the score before training.
    Guarantees: the line is the mean over seeds (test_budgets_draw_the_mean); the axes follow ``axis`` and ``start``
        alone when both are given (test_budgets_stand_still), unless a run falls out of them
        (test_budgets_show_a_fall).
    """
    wanted = [math.inf if e is None else float(e) for e in (frames if axis is None else axis)]
    check(bool(wanted), "axis", axis, "at least one ε")
    places = {budget: i for i, budget in enumerate(sorted(wanted))}
    scores = last_scores(frames, measure)
    if start is None:
        zero = [tidy.rows(frame, measure) for frame in frames.values()]
        start = float(np.mean([part[part["round"] == 0]["value"].mean() for part in zero]))
    with paper():
        figure = picture(7.6, 4.1)
        ax = figure.add_axes((0.1, 0.16, 0.7, 0.74))
        ax.set_xlim(-0.4, len(places) - 0.6)
        low = min([start - 0.05 if axis is None else max(0.0, start - 0.35), *scores["value"].tolist()])
        ax.set_ylim(max(0.0, low - 0.02), 1.0)
        ax.axhline(start, color=GREY, lw=0.9, ls=(0, (1, 2)), zorder=0.9)
        ax.text(-0.35, start, f"before training {start:.2f}", fontsize=7.5, color=SOFT, va="bottom")
        slugs = tidy.order(scores)
        labels = [
            _line(ax, scores[scores["method"] == slug], places, slug, 0.05 * (i - (len(slugs) - 1) / 2))
            for i, slug in enumerate(slugs)
        ]
        ax.set_xticks(list(places.values()), ["none" if math.isinf(e) else f"{e:g}" for e in places])
        ax.set_xlabel("privacy budget ε (none: trained without privacy)")
        ax.set_ylabel("share of test examples right" if measure == "accuracy" else measure)
        ax.set_title("The same promise, two methods" if len(labels) <= 2 else "The same promise")
        beside(ax, labels, together=False)
        footer(figure, "large marks: means over seeds; small pale marks: single runs")
    return figure
