"""Figures of runs: a measure over rounds, deviation, noise, bytes, and an overview."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from fedlora_lab._utils.validation import check
from fedlora_lab.measures.runs import COLUMNS, headline_measure
from fedlora_lab.plots import style, tidy
from fedlora_lab.plots.grammar import draw_intervals, draw_lines
from fedlora_lab.plots.style import Picture

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
DRAWN_AS_EXACT = 1e-5  # a relative deviation below it is rounding
TERMS = {  # measure of a layer: (words, colour), what noise adds in a round
    "noise_B": ("$\\Xi_B A$   noise on B", style.FACTOR["B"]),
    "noise_A": ("$B\\, \\Xi_A$   noise on A", style.FACTOR["A"]),
    "noise_BA": ("$\\Xi_B \\Xi_A$   noise times noise", style.FACTOR["BA"]),
}


def _rounds_panel(ax: Axes, part: pd.DataFrame, measure: str) -> int:
    """Draws a line a method over the rounds; returns how many runs collapsed by this measure."""
    labels = draw_lines(ax, part, "round", "method")
    title, unit = AXES.get(measure, (measure, measure))
    low = int(part["round"].min())
    high = int(part["round"].max())
    # A single round still needs axes of some width.
    beyond = 0.5 if low == high else 0
    ax.set(ylabel=unit, xlabel="round", xlim=(low - beyond, high + beyond), title=title)
    style.whole_ticks(ax.xaxis)
    collapsed = 0
    # Of what was spent or sent no run collapses.
    if measure.startswith("accuracy") or measure == "loss":
        collapsed = _mark_collapsed(ax, part, measure)
        _start_line(ax, part)
    if measure.startswith("accuracy"):
        _keep_in_unit(ax)
    elif measure in ("epsilon", "deviation"):
        # Of rounding alone nothing is to be seen.
        most = max(float(part["value"].max()), 1e-3)
        ax.set_ylim(-0.02 * most, 1.1 * most)
    if measure == "deviation":
        # Zero looks like any line near the axis: the label says that it is exact.
        worst = part.groupby("method", sort=False)["value"].max()
        labels = [
            label._replace(text=f"{label.text} = 0") if value < DRAWN_AS_EXACT else label
            for label, value in zip(labels, worst, strict=True)
        ]
    style.label_ends(ax, labels)
    return collapsed


def _keep_in_unit(ax: Axes) -> None:
    """Keeps the y axis in [0, 1]: a band may leave it, an accuracy cannot."""
    bottom, top = ax.get_ylim()
    ax.set_ylim(max(0.0, bottom), min(1.0, top))


def _start_line(ax: Axes, part: pd.DataFrame) -> None:
    """Marks the value before training, where the frame has round 0 and something after it."""
    first = part[part["round"] == 0]["value"]
    if len(first) and part["round"].max() > 0:
        value = float(first.mean())
        ax.axhline(value, color=style.GREY, lw=0.9, ls=style.DOTTED, zorder=0.9)
        across = ax.get_yaxis_transform()
        text = f"before training {value:.2f}"
        style.note(ax, 0.98, value, text, size=7.5, ha="right", va="top", transform=across)


def _mark_collapsed(ax: Axes, part: pd.DataFrame, measure: str) -> int:
    """Marks the last value of each run that collapsed by a cross; returns how many there are."""
    ends = tidy.collapsed_ends(part, measure)
    for slug, at, value in zip(ends["method"], ends["round"], ends["value"], strict=True):
        colour = style.darken(style.look(slug).colour)
        ax.plot([at], [value], "x", ms=6, mew=1.6, color=colour, clip_on=False)
    return len(ends)


def _caption(
    frame: pd.DataFrame,
    part: pd.DataFrame,
    collapsed: int = 0,
    missing: Sequence[str] = (),
    why: str = "not measured",
) -> str:
    """Says how many seeds a mean has, what a cross is, of which methods there is nothing, and that
    they spent unequal epsilons."""
    caption = tidy.describe_means(part, ["method", "round"]) + tidy.describe_privacy(frame)
    if collapsed:
        runs = "the run that" if collapsed == 1 else f"{collapsed} runs that"
        caption += f"; ×: {runs} collapsed"
    if missing:
        caption += f"; {why}: {', '.join(map(style.name, missing))}"
    return caption


@style.paper()
def curves(frame: pd.DataFrame, measure: str = "accuracy", ax: Axes | None = None) -> Figure:
    """Draws a measure over the rounds: one line a method, mean over seeds, 95 % band.

    Args:
        frame: tidy, one task (see ``fl.to_frame``); one seed or one round suffices.
        measure: of the whole model, such as "accuracy" or "loss".
        ax: of a figure of your own, which gets no caption; best with ``layout="constrained"``.

    Raises: ``ValueError`` when the frame lacks the measure.
    Guarantees: the line is the mean over seeds (test_curves_draw_the_mean); a run that collapsed
        (`fl.measures.find_collapsed`) has a cross at its end
        (test_plots.py::test_runs_that_collapsed_are_marked).
    """
    part = tidy.select_measure(frame, measure)
    figure, (ax,) = style.subplots(7.6, 4.1, ax=ax)
    collapsed = _rounds_panel(ax, part, measure)
    reason = "no finite ε" if measure == "epsilon" else "not measured"
    caption = _caption(frame, part, collapsed, tidy.unmeasured_methods(frame, part), reason)
    style.footer(figure, caption)
    return figure


def deviation(frame: pd.DataFrame, ax: Axes | None = None) -> Figure:
    """Draws the aggregation deviation over the rounds: mean B · mean A − mean of B·A, relative.

    Args: frame, ax: see `curves`.
    Raises: ``ValueError`` when the frame lacks the measure.
    Guarantees: methods whose deviation is rounding are named as exact
        (test_deviation_names_the_exact).
    Source: arXiv:2403.12313, the first discordance.
    """
    return curves(frame, "deviation", ax)


def mean_noise_energies(frame: pd.DataFrame) -> pd.DataFrame:
    """Computes the energy of each noise term in a round: columns method, seed, term, value.

    It is summed over layers; the mean over the rounds with noise.
    """
    energies = []
    for term in TERMS:
        part = tidy.select_measure(frame, term, layers=True)
        # Before the first round nothing is noised.
        part = part[part["round"] > 0] if (part["round"] > 0).any() else part
        total = part.groupby(["method", "seed", "round"], sort=False)["value"].sum()
        mean = total.groupby(["method", "seed"], sort=False).mean().reset_index()
        energies.append(mean.assign(term=term))
    return pd.concat(energies, ignore_index=True)


@style.paper()
def noise(frame: pd.DataFrame, ax: Axes | None = None) -> Figure:
    """Draws the energy that noise adds to the product in a round, the mean over the rounds.

    It is that of ‖γ Ξ_B A‖², ‖γ B Ξ_A‖² and ‖γ Ξ_B Ξ_A‖² as measured, on a log axis, with geometric
    means over seeds.

    Args: frame: tidy. ax: see `curves`.
    Raises: ``ValueError`` when the frame lacks noise_B, noise_A or noise_BA of each layer, or
        nothing was noised.
    Guarantees: a term that is zero has no mark (test_noise_leaves_out_what_is_zero).
    Source: arXiv:2403.12313, the second discordance.
    """
    added = mean_noise_energies(frame)
    slugs = tidy.slugs_in_order(added)
    # A logarithmic axis has no place for a term that is zero.
    some = added[added["value"] > 0]
    check(len(some) > 0, "frame", "no noise", "a run with noise")
    logs = tidy.means(some.assign(value=np.log10(some["value"])), ["method", "term"])
    shown = logs.assign(**{name: 10 ** logs[name] for name in ("mean", "low", "high")})
    shown["term"] = shown["term"].map({term: text for term, (text, _) in TERMS.items()})
    figure, (ax,) = style.subplots(8.0, 2.4 + 0.5 * len(slugs), ax=ax)
    ax.set(xscale="log", xlabel="added in a round, measured (squared Frobenius norm)")
    draw_intervals(ax, shown, "method", slugs, hue="term", colours=dict(TERMS.values()))
    ax.set_title("What the noise adds to B·A")
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8.5)
    count = tidy.count_measurements(some, ["method", "term"])
    style.footer(figure, f"geometric mean of {count}; no mark: the term is zero")
    return figure


def traffic_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Averages over seeds: columns method, round, bytes (so far), mean (of the score), low, high.

    Bytes are those sent and received by all clients.
    """
    tidy.check_columns(frame, *COLUMNS)
    frame = frame.fillna({"seed": -1})  # pandas would drop the runs without one
    sent = tidy.cumulative_sum(frame, ("bytes_up", "bytes_down")).rename(columns={"value": "bytes"})
    # Only rounds with both: a score belongs to the bytes of its own run so far.
    scores = tidy.select_measure(frame, headline_measure(frame))
    joined = scores.merge(sent, on=["method", "seed", "round"])
    bytes_so_far = joined.groupby(["method", "round"], sort=False)["bytes"].mean().reset_index()
    return tidy.means(joined, ["method", "round"]).merge(bytes_so_far, on=["method", "round"])


def _traffic_panel(ax: Axes, table: pd.DataFrame, measure: str) -> None:
    """Draws the score against bytes so far, one line a method."""
    labels = draw_lines(ax, table, "bytes", "method")
    ax.xaxis.set_major_formatter(EngFormatter("B"))
    _, unit = AXES.get(measure, (measure, measure))
    ax.set(xlabel="sent and received so far, all clients", ylabel=unit)
    ax.set_xlim(left=0)
    if measure == "accuracy":
        _keep_in_unit(ax)
    style.label_ends(ax, labels)


@style.paper()
def traffic(
    frame: pd.DataFrame, title: str = "What accuracy costs in bytes", ax: Axes | None = None
) -> Figure:
    """Draws the test score against bytes so far: one line a method, mean over seeds, 95 % band.

    Args: frame: tidy, of one or more methods. title: the finding. ax: see `curves`.
    Raises: ``ValueError`` when the frame lacks a score or bytes, or no run has the bytes of all its
        rounds.
    """
    table = traffic_table(frame)
    check(len(table) > 0, "measure", "bytes", "bytes of every round of at least one method")
    figure, (ax,) = style.subplots(7.6, 4.1, ax=ax)
    score = headline_measure(frame)
    scores = tidy.select_measure(frame, score)
    _traffic_panel(ax, table, score)
    ax.set_title(title)
    style.footer(
        figure,
        _caption(frame, scores, missing=tidy.unmeasured_methods(frame, table)),
    )
    return figure


@style.paper()
def overview(frame: pd.DataFrame) -> Picture:
    """Draws score, aggregation deviation and ε over rounds, and the score against bytes.

    What was not measured has no panel.

    Raises: ``ValueError`` when the frame, tidy and of one task, lacks a measure, or has no score.
    """
    spent = traffic_table(frame)  # refuses what is no tidy frame
    score = headline_measure(frame)
    titles = {
        score: "How well it learns",
        "deviation": "How far it misses the mean product",
        "epsilon": "What privacy it spends",
        "bytes": "What it sends and receives",
    }
    scores = tidy.select_measure(frame, score)
    parts = {name: tidy.select_measure(frame, name, required=False) for name in [*titles][:3]}
    parts["bytes"] = spent
    measured = [name for name, part in parts.items() if len(part)]
    columns = 2 if len(measured) == 4 else len(measured)
    rows = len(measured) // columns
    figure, axes = style.subplots(10.4, 3.6 * rows, rows, columns)
    collapsed = 0
    for ax, name in zip(axes, measured, strict=True):
        if name == "bytes":
            _traffic_panel(ax, parts[name], score)
        else:
            collapsed += _rounds_panel(ax, parts[name], name)
        ax.set_title(f"{1 + axes.index(ax)}  {titles[name]}")
    style.footer(figure, _caption(frame, scores, collapsed))
    return figure
