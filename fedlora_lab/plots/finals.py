"""Where runs ended: a dot a run, the mean of each method with its interval."""

import pandas as pd

from fedlora_lab.plots import tidy
from fedlora_lab.plots.curves import AXES, footer, left_out
from fedlora_lab.plots.style import CARD, Picture, darker, look, name, paper, picture


def finals(
    frame: pd.DataFrame, measure: str = "accuracy", title: str | None = None, unit: str | None = None
) -> Picture:
    """A measure after the last round, one line a method: single runs pale, mean and 95 % interval dark.

    Args: title, unit: words for the figure and its axis; ``None``: those of `curves`.
    Guarantees: the dark dots are the means over seeds (test_lesson_07.py::test_finals).
    """
    part = tidy.last(frame, measure)
    slugs = tidy.order(part)
    words = AXES.get(measure, (measure, measure))
    with paper():
        figure = picture(8.2, 1.15 + 0.42 * len(slugs))
        height = figure.get_figheight()
        ax = figure.add_axes((0.24, 0.62 / height, 0.73, 1 - 1.0 / height))
        for place, slug in enumerate(slugs):
            values, colour = part[part["method"] == slug]["value"].to_numpy(), look(slug).colour
            low, high = tidy.band(values)
            ax.plot(values, [place + 0.17] * len(values), "o", ms=4.5, mew=0, color=colour, alpha=0.45)
            ax.plot([low, high], [place - 0.08] * 2, color=colour, lw=2)
            ax.plot([values.mean()], [place - 0.08], look(slug).marker, ms=8, color=colour, mec=CARD)
        ax.set_ylim(len(slugs) - 0.5, -0.5)
        ax.set_yticks(range(len(slugs)), [name(slug) for slug in slugs])
        for tick, slug in zip(ax.get_yticklabels(), slugs, strict=True):
            tick.set(color=darker(look(slug).colour), weight="bold", size=9.5)
        ax.set_xlabel(unit or words[1])
        ax.set_title(title or f"{words[0]} after the last round")
        missing = tidy.order(frame[~frame["method"].isin(slugs)])
        footer(figure, f"pale: single runs; dark: {tidy.seeds(part).replace('band', 'bar')}{left_out(missing)}")
    return figure
