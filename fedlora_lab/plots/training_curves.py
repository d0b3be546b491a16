"""A measure of runs over the rounds."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedlora_lab._utils.validation import check
from fedlora_lab.measures.runs import run_ends
from fedlora_lab.plots import style, tidy
from fedlora_lab.plots.line_plot import lines

SHARE = "share of test examples right"
AXES = {  # measure: (title, axis label with the unit)
    "accuracy": ("Test accuracy", SHARE),
    "accuracy_received": ("Accuracy of the received adapter", SHARE),
    "loss": ("Test loss", "mean loss per test example (nats)"),
    "perplexity": ("Test perplexity", "exp of the mean loss per token"),
    "epsilon": ("Privacy spent", "ε, largest over clients"),
    "deviation": ("Aggregation deviation", "distance from the mean of B·A, relative"),
    "participants": ("Clients that took part", "clients"),
    "clipped": ("Examples clipped", "share of example gradients"),
    "seconds": ("Time", "seconds per round"),
    "bytes_up": ("Sent to the server", "bytes per round, all clients"),
    "bytes_down": ("Received from the server", "bytes per round, all clients"),
}
EXACT = 1e-5
"""A relative deviation below it is rounding."""


@style.paper()
def curves(frame: pd.DataFrame, measure: str = "accuracy", ax: Axes | None = None) -> Figure:
    """Draws a measure over the rounds: one line a method, mean over seeds, 95 % band.

    Args:
        frame: tidy, one task (see ``fl.to_frame``); one seed or one round suffices.
        measure: of the whole model, such as "accuracy" or "loss".
        ax: of a figure of your own, which gets no caption; best with ``layout="constrained"``.

    Raises: ``ValueError`` when the frame lacks the measure.
    Guarantees: the line is the mean over seeds (test_means.py::test_lines_go_through_the_means);
        a run that collapsed (`fl.measures.find_collapsed`) has a cross at its end
        (test_plots.py::test_runs_that_collapsed_are_marked).
    """
    part = tidy.select_measure(frame, measure)
    check(len(part) > 0, "measure", measure, "a finite value in at least one row")
    title, unit = AXES.get(measure, (measure, measure))
    figure = lines(part, title=title, ylabel=unit, ax=ax)
    ax = ax or figure.axes[0]
    notes = [figure.get_supxlabel() + tidy.describe_privacy(frame)]
    missing = [
        style.name(slug) for slug in frame["method"].unique() if slug not in {*part["method"]}
    ]
    if missing:
        reason = "no finite ε" if measure == "epsilon" else "not measured"
        notes.append(f"{reason}: {', '.join(missing)}")
    if measure.startswith("accuracy") or measure == "loss":
        notes += [_mark_start(ax, part), _mark_collapsed(ax, part, measure)]
    if measure.startswith("accuracy"):
        # A band may leave [0, 1], an accuracy cannot.
        bottom, top = ax.get_ylim()
        ax.set_ylim(max(0.0, bottom), min(1.0, top))
    if measure == "deviation":
        worst = part.groupby("method", sort=False)["value"].max()
        exact = map(style.name, worst.index[worst < EXACT])
        notes.append(f"zero: {', '.join(exact)}" if (worst < EXACT).any() else "")
        # Of rounding alone nothing is to be seen.
        ax.set_ylim(-0.02 * worst.max(), max(1.1 * worst.max(), 1e-3))
    style.footer(figure, "; ".join(filter(None, notes)))
    return figure


def _mark_start(ax: Axes, part: pd.DataFrame) -> str:
    """Marks the value before training, where the frame has round 0 and something after it."""
    first = part[part["round"] == 0]["value"]
    if first.empty or part["round"].max() == 0:
        return ""
    ax.axhline(first.mean(), color=style.GREY, lw=0.9, ls=style.DOTTED, zorder=0.9)
    return "dotted: before training"


def _mark_collapsed(ax: Axes, part: pd.DataFrame, measure: str) -> str:
    """Marks the last value of each run that collapsed by a cross; says how many there are.

    See `fl.measures.find_collapsed`.
    """
    runs = part.groupby(["method", "seed"], sort=False, dropna=False)
    # By place, not by name: a missing seed is found under no name.
    ends = run_ends(part, measure).assign(last=runs["round"].max().to_numpy()).reset_index()
    collapsed = ends[ends["collapsed"]]
    for slug, at, value in collapsed[["method", "last", "after"]].itertuples(index=False):
        colour = style.darken(style.look(slug).colour)
        ax.plot([at], [value], "x", ms=6, mew=1.6, color=colour, clip_on=False)
    return f"×: runs that collapsed, {len(collapsed)}" if len(collapsed) else ""


def deviation(frame: pd.DataFrame, ax: Axes | None = None) -> Figure:
    """Draws the aggregation deviation over the rounds: mean B · mean A − mean of B·A, relative.

    Args: frame, ax: see `curves`.
    Raises: ``ValueError`` when the frame lacks the measure.
    Guarantees: methods whose deviation is rounding are named as exact
        (test_deviation_names_the_exact).
    Source: arXiv:2403.12313, the first discordance.
    """
    return curves(frame, "deviation", ax)
