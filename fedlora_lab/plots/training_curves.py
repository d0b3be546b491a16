"""Figures of runs: a measure over rounds, deviation, noise, bytes, and an overview."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from fedlora_lab._utils.validation import check, check_one_of
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
WAYS = {  # direction: (measures that are added up, words)
    "both": (("bytes_up", "bytes_down"), "sent and received"),
    "up": (("bytes_up",), "sent to the server"),
    "down": (("bytes_down",), "received from the server"),
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
    bottom, top = ax.get_ylim()
    # A band may leave [0, 1], an accuracy cannot.
    if measure.startswith("accuracy"):
        ax.set_ylim(max(0.0, bottom), min(1.0, top))
    elif measure in ("epsilon", "deviation"):
        most = float(part["value"].max()) or 1
        ax.set_ylim(-0.02 * most, 1.1 * most)
    if measure == "deviation":
        # Zero looks like any line near the axis: the label says that it is exact.
        exact = {style.name(slug) for slug in _exact(part)}
        named = [label.text + (" = 0" if label.text in exact else "") for label in labels]
        pairs = zip(labels, named, strict=True)
        labels = [label._replace(text=text) for label, text in pairs]
    style.label_ends(ax, labels)
    return collapsed


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
    part: pd.DataFrame, collapsed: int = 0, missing: Sequence[str] = (), why: str = "not measured"
) -> str:
    """Says how many seeds a mean has, what a cross is, and of which methods there is nothing."""
    caption = tidy.describe_seeds(part)
    if collapsed:
        runs = "the run that" if collapsed == 1 else f"{collapsed} runs that"
        caption += f"; ×: {runs} collapsed"
    if missing:
        caption += f"; {why}: {', '.join(map(style.name, missing))}"
    return caption


@style.paper()
def curves(frame: pd.DataFrame, measure: str = "accuracy") -> Picture:
    """Draws a measure over the rounds: one line a method, mean over seeds, 95 % band.

    Args:
        frame: tidy, one task (see ``fl.to_frame``); one seed or one round suffices.
        measure: of the whole model, such as "accuracy" or "loss".

    Raises: ``ValueError`` when the frame lacks the measure.
    Guarantees: the line is the mean over seeds (test_curves_draw_the_mean); a run that collapsed
        (`fl.measures.find_collapsed`) has a cross at its end
        (test_plots.py::test_runs_that_collapsed_are_marked).
    """
    part = tidy.select_measure(frame, measure)
    figure, (ax,) = style.subplots(7.6, 4.1)
    collapsed = _rounds_panel(ax, part, measure)
    reason = "no finite ε" if measure == "epsilon" else "not measured"
    missing = tidy.unmeasured_methods(frame, measure)
    style.footer(figure, _caption(part, collapsed, missing, reason))
    return figure


def _exact(part: pd.DataFrame) -> list[str]:
    """Lists slugs whose deviation is rounding in every round."""
    worst = part.groupby("method")["value"].max()
    return list(worst[worst < DRAWN_AS_EXACT].index)


@style.paper()
def deviation(frame: pd.DataFrame) -> Picture:
    """Draws the aggregation deviation over the rounds: mean B · mean A − mean of B·A, relative.

    Raises: ``ValueError`` when the frame lacks the measure.
    Guarantees: methods whose deviation is rounding are named as exact
        (test_deviation_names_the_exact).
    Source: arXiv:2403.12313, the first discordance.
    """
    part = tidy.select_measure(frame, "deviation")
    figure, (ax,) = style.subplots(7.6, 4.1)
    _rounds_panel(ax, part, "deviation")
    missing = tidy.unmeasured_methods(frame, "deviation")
    style.footer(figure, _caption(part, missing=missing))
    return figure


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
def noise(frame: pd.DataFrame) -> Picture:
    """Draws the energy that noise adds to the product in a round, the mean over the rounds.

    It is that of ‖γ Ξ_B A‖², ‖γ B Ξ_A‖² and ‖γ Ξ_B Ξ_A‖² as measured, on a log axis, with geometric
    means over seeds.

    Raises: ``ValueError`` when the frame lacks noise_B, noise_A or noise_BA of each layer.
    Guarantees: a term that is zero has no mark (test_noise_leaves_out_what_is_zero).
    Source: arXiv:2403.12313, the second discordance.
    """
    added = mean_noise_energies(frame)
    slugs = tidy.slugs_in_order(added)
    figure, (ax,) = style.subplots(8.0, 2.4 + 0.5 * len(slugs))
    ax.set_xlabel("added in a round, measured (squared Frobenius norm)")
    # A logarithmic axis has no place for a term that is zero.
    some = added[added["value"] > 0]
    if len(some):
        logs = tidy.means(some.assign(value=np.log10(some["value"])), ["method", "term"])
        shown = logs.assign(**{name: 10 ** logs[name] for name in ("mean", "low", "high")})
        names = {term: text for term, (text, _) in TERMS.items()}
        shown = shown.assign(term=shown["term"].map(names))
        ax.set_xscale("log")
        draw_intervals(ax, shown, "method", slugs, hue="term", colours=dict(TERMS.values()))
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), fontsize=8.5)
    else:
        _say_absent(ax, "no noise")
    style.headline(figure, "What the noise adds to B·A")
    missing = [slug for slug in tidy.slugs_in_order(frame) if slug not in slugs]
    caption = _caption(added, missing=missing).replace("mean of", "geometric mean of")
    style.footer(figure, f"{caption}; no mark: the term is zero")
    return figure


def traffic_table(frame: pd.DataFrame, way: str = "both") -> pd.DataFrame:
    """Averages over seeds: columns method, round, bytes (so far), mean (accuracy), low, high."""
    sent = tidy.cumulative_sum(frame, WAYS[way][0]).rename(columns={"value": "bytes"})
    # Only rounds with both: an accuracy belongs to the bytes of its own run so far.
    joined = tidy.select_measure(frame, "accuracy").merge(sent, on=["method", "seed", "round"])
    scores = tidy.means(joined, ["method", "round"])
    bytes_so_far = joined.groupby(["method", "round"], sort=False)["bytes"].mean().reset_index()
    return scores.merge(bytes_so_far, on=["method", "round"])


def _traffic_panel(ax: Axes, table: pd.DataFrame, way: str) -> None:
    """Draws accuracy against bytes so far, one line a method."""
    # One unit for all lines, that of the longest.
    most = float(table["bytes"].max())
    scale, unit = tidy.byte_unit(most)
    labels = draw_lines(ax, table.assign(bytes=table["bytes"] / scale), "bytes", "method")
    bottom, top = ax.get_ylim()
    ax.set(xlim=(0, most / scale * 1.01 or 1), ylim=(max(0.0, bottom), min(1.0, top)))
    ax.set(xlabel=f"{WAYS[way][1]} so far, all clients ({unit})", ylabel=SHARE)
    style.label_ends(ax, labels)


@style.paper()
def traffic(
    frame: pd.DataFrame, way: str = "both", title: str = "What accuracy costs in bytes"
) -> Picture:
    """Draws test accuracy against bytes so far: one line a method, mean over seeds, 95 % band.

    Args:
        frame: tidy, of one or more methods.
        way: "both", "up" (to the server) or "down" (from it).
        title: the finding.

    Raises: ``ValueError`` when the frame lacks accuracy or bytes, or no run has the bytes of all
        its rounds.
    Guarantees: the line ends at the total of the run (test_traffic_ends_at_the_total).
    """
    check_one_of("way", way, tuple(WAYS))
    table = traffic_table(frame, way)
    check(len(table) > 0, "measure", WAYS[way][0], "bytes of every round of at least one method")
    missing = [slug for slug in tidy.slugs_in_order(frame) if slug not in set(table["method"])]
    figure, (ax,) = style.subplots(7.6, 4.1)
    _traffic_panel(ax, table, way)
    ax.set_title(title)
    style.footer(figure, _caption(tidy.select_measure(frame, "accuracy"), missing=missing))
    return figure


@style.paper()
def overview(frame: pd.DataFrame) -> Picture:
    """Draws accuracy, aggregation deviation and ε over rounds, and accuracy against bytes.

    Raises: ``ValueError`` when the frame, tidy and of one task, lacks one of the measures.
    Guarantees: test_overview_has_four_panels.
    """
    accuracy = tidy.select_measure(frame, "accuracy")
    over_rounds = {
        "accuracy": ("1  How well it learns", ""),
        "deviation": ("2  How far it misses the mean product", "deviation: not measured"),
        "epsilon": ("3  What privacy it spends", "no finite ε in this frame"),
    }
    figure, axes = style.subplots(10.4, 7.2, 2, 2)
    collapsed = 0
    for ax, (measure, (title, absent)) in zip(axes, over_rounds.items(), strict=False):
        part = tidy.select_measure(frame, measure, required=False)
        if len(part):
            collapsed += _rounds_panel(ax, part, measure)
        else:
            _say_absent(ax, absent)
        ax.set_title(title)
    table = traffic_table(frame)
    if len(table):
        _traffic_panel(axes[3], table, "both")
    else:
        _say_absent(axes[3], "bytes: not measured")
    axes[3].set_title("4  What it sends and receives")
    style.footer(figure, _caption(accuracy, collapsed))
    return figure


def _say_absent(ax: Axes, words: str) -> None:
    ax.set(xticks=[], yticks=[])
    style.note(ax, 0.5, 0.5, words, size=9, ha="center")
