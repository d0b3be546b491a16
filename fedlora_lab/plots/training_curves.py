"""Figures of training: a measure over rounds, deviation, noise, bytes, and an overview."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from fedlora_lab._utils.validation import check, check_one_of
from fedlora_lab.plots import style, tidy
from fedlora_lab.plots.style import (
    Label,
    Picture,
    draw_labels,
    footer,
    look,
    mark,
    name,
    panels,
    paper,
)

SHARE = "share of test examples right"
AXES = {  # measure: (title, axis label with the unit)
    "accuracy": ("Test accuracy", SHARE),
    "accuracy_received": ("Accuracy of the received adapter", SHARE),
    "loss": ("Test loss", "mean loss per test example (nats)"),
    "balanced_accuracy": ("Balanced test accuracy", "mean recall of the classes"),
    "f1": ("Test F1", "F1, mean over the classes"),
    "precision": ("Test precision", "precision, mean over the classes"),
    "recall": ("Test recall", "recall, mean over the classes"),
    "auc": ("Test AUC", "area under the ROC curve, one class against the rest"),
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
TERMS = {  # term of the noise: (colour, marker, words)
    "noise_B": (style.FACTOR["B"], "o", "$\\Xi_B A$   noise on B"),
    "noise_A": (style.FACTOR["A"], "s", "$B\\, \\Xi_A$   noise on A"),
    "noise_BA": (style.FACTOR["BA"], "D", "$\\Xi_B \\Xi_A$   noise times noise"),
}
GATHERED = {  # measure: (colour, marker, words)
    "accumulated_linear": (style.FACTOR["B"], "o", "gathered $\\Xi_B A_0$, closed form"),
    "accumulated_quadratic": (style.FACTOR["BA"], "D", "gathered $\\Xi_B \\Xi_A$, closed form"),
    "norm": (style.SOFT, "P", "the whole change $\\gamma B A$, measured"),
}
WAYS = {  # direction: (measures that are added up, words)
    "both": (("bytes_up", "bytes_down"), "sent and received"),
    "up": (("bytes_up",), "sent to the server"),
    "down": (("bytes_down",), "received from the server"),
}
PLACE = (0.09, 0.16, 0.68, 0.75)
FIGURE_SIZE = 7.6, 4.1


def method_lines(ax: Any, part: Any) -> list[Label]:
    """Draws mean and band over rounds for each method, and returns the labels of the line ends."""
    import seaborn as sns  # slow to import, and the live figures do without

    slugs, labels = tidy.slugs_in_order(part), []
    palette, dashes = ({slug: look(slug)[i] for slug in slugs} for i in (0, 2))
    groups: Any = {"hue": "method", "style": "method", "hue_order": slugs, "style_order": slugs}
    groups |= {"palette": palette, "dashes": dashes, "legend": False}
    band: Any = {"errorbar": tidy.confidence_interval, "err_kws": {"alpha": 0.1, "lw": 0}}
    sns.lineplot(data=part, x="round", y="value", ax=ax, **groups, **band)
    for slug in slugs:
        own = part[part["method"] == slug]
        end = own["round"].max()
        values = own[own["round"] == end]["value"]
        labels.append(Label(float(end), float(values.mean()), name(slug), palette[slug]))
        mark(ax, end, labels[-1].y, slug)
        if part["round"].nunique() == 1 and len(values) > 1:
            ax.plot([end, end], tidy.confidence_interval(values), color=palette[slug], lw=1.4)
    return labels


def frame_axes(ax: Any, part: Any, measure: str) -> None:
    """Sets title, axis labels with units and limits for a measure over rounds.

    Args: ax: what is drawn; part: the rows drawn there; measure: theirs.
    """
    title, unit = AXES.get(measure, (measure, measure))
    low, high = int(part["round"].min()), int(part["round"].max())
    beyond = 0.5 if low == high else 0
    ax.set(ylabel=unit, xlabel="round", xlim=(low - beyond, high + beyond))
    ax.set_title(title)
    ax.xaxis.get_major_locator().set_params(integer=True)
    bottom, top = ax.get_ylim()
    if measure.startswith("accuracy"):
        bottom, top = max(0.0, bottom), min(1.0, top)
    elif measure in ("epsilon", "deviation"):
        most = float(part["value"].max()) or 1
        bottom, top = -0.02 * most, 1.1 * most
    ax.set_ylim(bottom, top)


def start_line(ax: Any, part: Any) -> None:
    """Marks the value before training, where the frame has round 0 and something after it."""
    first = part[part["round"] == 0]["value"]
    if len(first) and part["round"].max() > 0:
        value = float(first.mean())
        ax.axhline(value, color=style.GREY, lw=0.9, ls=style.DOTTED, zorder=0.9)
        place = {"xy": (0.98, value), "xycoords": ax.get_yaxis_transform(), "xytext": (0, -3)}
        place |= {"textcoords": "offset points", "ha": "right", "va": "top"}
        ax.annotate(f"before training {value:.2f}", fontsize=7.5, color=style.SOFT, **place)


def mark_collapsed(ax: Any, part: Any, measure: str) -> str:
    """Marks the last value of each run that collapsed by a cross; returns words for the footer.

    Args: ax: what is drawn; part: the rows drawn there; measure: theirs, a score of the model.
    """
    ends = tidy.collapsed_ends(part, measure)
    for end in ends.itertuples():
        colour: Any = style.darken(look(end.method).colour)
        ax.plot([end.round], [end.value], "x", ms=6, mew=1.6, color=colour, clip_on=False)
    return _crosses(len(ends))


def _crosses(count: int) -> str:
    runs = "the run that" if count == 1 else f"{count} runs that"
    return f"; ×: {runs} collapsed" if count else ""


def _seed_footer(figure: Picture, words: str, missing: Any, why: str = "not measured") -> None:
    """Writes the footer, with the methods of which there is nothing finite to draw."""
    footer(figure, words + (f"; {why}: {', '.join(map(name, missing))}" if len(missing) else ""))


def _method_ticks(ax: Any, slugs: list[str]) -> None:
    """Gives each method a line of the y axis, from top to bottom."""
    ax.set_ylim(len(slugs) - 0.5, -0.5)
    ax.set_yticks(range(len(slugs)), [name(slug) for slug in slugs])
    ax.set_ylabel("")


def _points(data: Any, ax: Any, size: float, width: float, **options: Any) -> None:
    """Draws means with bands, without lines between them."""
    import seaborn

    sns: Any = seaborn  # its stubs know no dodge in data units
    options |= {"linestyle": "none", "markersize": size, "err_kws": {"lw": width}}
    sns.pointplot(
        data,
        x="value",
        orient="y",
        ax=ax,
        errorbar=tidy.confidence_interval,
        legend=False,
        **options,
    )


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
    part, crosses = tidy.select_measure(frame, measure), ""
    with paper():
        figure, (ax,) = panels(*FIGURE_SIZE, PLACE)
        labels = method_lines(ax, part)
        if measure.startswith("accuracy") or measure == "loss":
            crosses = mark_collapsed(ax, part, measure)
            start_line(ax, part)
        frame_axes(ax, part, measure)
        draw_labels(ax, labels)
        why = "no finite ε" if measure == "epsilon" else "not measured"
        missing = tidy.unmeasured_methods(frame, measure)
        _seed_footer(figure, tidy.describe_seeds(part) + crosses, missing, why)
    return figure


def _exact(part: Any) -> list[str]:
    """Lists slugs whose deviation is rounding in every round."""
    worst = part.groupby("method")["value"].max()
    return list(worst[worst < DRAWN_AS_EXACT].index)


def _deviation_panel(ax: Any, part: Any) -> None:
    """Draws the relative deviation over the rounds; exact methods share one label."""
    zero, labels = set(map(name, _exact(part))), method_lines(ax, part)
    frame_axes(ax, part, "deviation")
    exact = [label for label in labels if label.text in zero]
    others = [label for label in labels if label.text not in zero]
    if exact:
        names = ",\n".join(label.text for label in exact)
        one = exact[0]._replace(text=f"{names} = 0")
        many = Label(exact[0].x, 0.0, f"{names}\nexact: 0", style.INK)
        others.append(one if len(exact) == 1 else many)
    draw_labels(ax, others, low=-0.02)  # clear of the last tick


def deviation(frame: pd.DataFrame) -> Picture:
    """Draws the aggregation deviation over the rounds and, if known, layer by layer.
    It is mean B · mean A − mean of B·A: relative over rounds; by layer in the last round.

    Raises: ``ValueError`` when the frame lacks the measure.
    Guarantees: methods whose deviation is rounding are named as exact
        (test_deviation_names_the_exact).
    Source: arXiv:2403.12313, the first discordance.
    """
    part = tidy.select_measure(frame, "deviation")
    layers = frame[(frame["layer"] != "all") & (frame["measure"] == "deviation")]
    if len(layers):
        layers = tidy.select_measure(frame, "deviation", layers=True, required=False)
        layers = layers[~layers["method"].isin(_exact(part))]
    with paper():
        if len(layers):
            figure, (left, ax) = style.row(9.9, 4.1, (0.16, 0.75), (0.065, 0.38), (0.70, 0.285))
            last: Any = layers["round"].max()
            layers = layers[layers["round"] == last]
            slugs, names = tidy.slugs_in_order(layers), list(dict.fromkeys(layers["layer"]))
            groups: Any = {"hue": "method", "hue_order": slugs, "y": "layer", "order": names}
            groups["palette"] = {slug: look(slug).colour for slug in slugs}
            groups["markers"] = [look(slug).marker for slug in slugs]
            _points(layers, ax, 5, 1.2, dodge=0.35 if len(slugs) > 1 else False, **groups)
            ax.set_yticks(range(len(names)), names)
            ax.set(ylabel="", xlabel="Frobenius norm of the layer's deviation", xlim=(0, None))
            ax.set_title(f"By layer, round {int(last)}")
        else:
            figure, (left,) = panels(*FIGURE_SIZE, PLACE)
        _deviation_panel(left, part)
        _seed_footer(figure, tidy.describe_seeds(part), tidy.unmeasured_methods(frame, "deviation"))
    return figure


def mean_noise_energies(frame: pd.DataFrame) -> Any:
    """Computes the energy of each noise term in a round: columns method, seed, term, value.
    It is summed over layers; the mean over the rounds with noise.
    """
    parts = []
    for term in TERMS:
        part = tidy.select_measure(frame, term, layers=True)
        part = part[part["round"] > 0] if (part["round"] > 0).any() else part
        total = part.groupby(["method", "seed", "round"], sort=False)["value"].sum()
        mean = total.groupby(["method", "seed"], sort=False).mean().reset_index()
        parts.append(mean.assign(term=term))
    return pd.concat(parts, ignore_index=True)


def accumulated_energies(frame: pd.DataFrame) -> Any:
    """Computes the energy gathered by the last round: columns method, seed, term, value.
    That is what noise alone has left in the product, in closed form, and the whole change as
    measured, each summed over layers. Without rows where the frame does not hold them.
    """
    there = frame[frame["measure"].isin([*GATHERED]) & (frame["layer"] != "all")]
    there = there[there["round"] == there.groupby(["method", "seed"])["round"].transform("max")]
    energy = there["value"].where(there["measure"] != "norm", there["value"] ** 2)
    rows = there.assign(value=energy).dropna(subset="value").rename(columns={"measure": "term"})
    whole = rows.groupby(["method", "seed", "term"], sort=False)["value"].sum().reset_index()
    known = whole[whole["term"] != "norm"]["method"].unique()
    return whole[whole["method"].isin(known)]


def noise(frame: pd.DataFrame) -> Picture:
    """Draws the noise energy that a round adds to the product, and the energy after all rounds.

    Left the energies of ‖γ Ξ_B A‖², ‖γ B Ξ_A‖² and ‖γ Ξ_B Ξ_A‖² as measured, the mean over rounds;
    right, where the frame has the rows accumulated_…, what all releases have left, beside the
    energy of the whole change. Log axes, geometric means over seeds.

    Raises: ``ValueError`` when the frame lacks noise_B, noise_A or noise_BA of each layer.
    Guarantees: a term that is zero is drawn as absent (test_noise_says_which_term_is_absent);
        test_noise_draws_what_has_gathered_beside_the_signal.
    Source: arXiv:2403.12313, the second discordance; `theory.accumulated_noise_terms`.
    """
    tables = [mean_noise_energies(frame), accumulated_energies(frame)]
    tables = tables if len(tables[1]) else tables[:1]
    slugs = tidy.slugs_in_order(tables[0])
    tall = 1.9 + 0.5 * len(slugs)
    across = ((0.17, 0.80),) if len(tables) == 1 else ((0.12, 0.40), (0.57, 0.40))
    with paper():
        wide, up = 7.6 * len(tables) ** 0.5, (0.78 / tall, 1 - 1.8 / tall)
        figure, axes = style.row(wide, tall, up, *across)
        for ax, table, terms in zip(axes, tables, (TERMS, GATHERED), strict=False):
            _energy_panel(ax, table, terms, slugs)
        axes[0].set_xlabel("added in a round, measured (squared Frobenius norm)")
        axes[0].set_title("What the noise adds to B·A", pad=40)
        if len(tables) > 1:
            axes[1].set(yticklabels=[], xlabel="by the last round (squared Frobenius norm)")
            axes[1].set_title("What has gathered, beside the signal", pad=40)
        words = tidy.describe_seeds(tables[0]).replace("mean of", "geometric mean of")
        missing = [slug for slug in tidy.slugs_in_order(frame) if slug not in slugs]
        _seed_footer(figure, words, missing)
    return figure


def _energy_panel(ax: Any, table: Any, terms: Any, slugs: list[str]) -> None:
    """Draws energies by method and term on a log axis, with the terms named above it."""
    some, count = table[table["value"] > 0], len(terms)
    shift = {term: 0.23 * (2 * i / (count - 1) - 1) for i, term in enumerate(terms)}
    if len(some):
        low, high = np.log10(some["value"].min()), np.log10(some["value"].max())
        ax.set(xscale="log", xlim=(10 ** (low - 0.22 * (high - low) - 0.5), 10 ** (high + 0.3)))
        groups: Any = {"hue": "term", "hue_order": list(terms), "y": "method", "order": slugs}
        groups["palette"] = {term: colour for term, (colour, _, _) in terms.items()}
        groups["markers"] = [marker for _, marker, _ in terms.values()]
        _points(some, ax, 6, 1.4, dodge=0.46, log_scale=(True, False), **groups)
    edge, worst = ax.get_xlim()[0], table.groupby(["method", "term"])["value"].max()
    for slug, term in worst[worst <= 0].index:  # an open mark at the left edge
        colour, marker, _ = terms[term]
        place = slugs.index(slug) + shift[term]
        kind = {"mfc": "none", "mec": colour, "ms": 5, "clip_on": False}
        ax.plot([edge], [place], marker=marker, ls="none", **kind)
        ax.text(edge, place, "   none", color=style.SOFT, fontsize=7, va="center")
    _method_ticks(ax, slugs)
    for i, (colour, marker, words) in enumerate(terms.values()):
        kind = {"color": colour, "transform": ax.transAxes, "clip_on": False}
        height = 1 + (0.06 + 0.115 * (count - 1 - i)) * 3 / (1 + len(slugs))
        ax.plot([0.01], [height], marker=marker, ms=6, **kind)
        ax.text(0.035, height, words, fontsize=8.5, va="center", **kind)


def traffic_table(frame: pd.DataFrame, way: str = "both") -> Any:
    """Averages over seeds: columns method, round, bytes (so far), value (accuracy), low, high."""
    sent = tidy.cumulative_sum(frame, WAYS[way][0]).rename(columns={"value": "bytes"})
    joined = tidy.select_measure(frame, "accuracy").merge(sent, on=["method", "seed", "round"])
    grouped = joined.groupby(["method", "round"], sort=False)
    result = grouped.agg(bytes=("bytes", "mean"), value=("value", "mean")).reset_index()
    parts = grouped["value"] if len(joined) else ()
    bands = [tidy.confidence_interval(values) for _, values in parts]
    return result.assign(low=[low for low, _ in bands], high=[high for _, high in bands])


def _traffic_panel(ax: Any, means: Any, way: str = "both", title: str = "") -> None:
    """Draws accuracy against bytes so far, one line a method, its end marked."""
    most, labels = float(means["bytes"].max()), []
    scale, unit = tidy.byte_unit(most)
    for slug in tidy.slugs_in_order(means):
        part, (colour, _, dashes) = means[means["method"] == slug].sort_values("round"), look(slug)
        line = part["bytes"] / scale, part["value"], name(slug), colour, part["low"], part["high"]
        labels.append(style.named_line(ax, *line, dashes=dashes or (None, None)))
        mark(ax, labels[-1].x, labels[-1].y, slug)
    bottom, top = ax.get_ylim()
    ax.set_title(title)
    ax.set(xlim=(0, most / scale * 1.01 or 1), ylim=(max(0.0, bottom), min(1.0, top)))
    ax.set(xlabel=f"{WAYS[way][1]} so far, all clients ({unit})", ylabel=SHARE)
    draw_labels(ax, labels, together=False, inside=True, above=True)


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
    means = traffic_table(frame, way)
    check(len(means) > 0, "measure", WAYS[way][0], "bytes of every round of at least one method")
    missing = [slug for slug in tidy.slugs_in_order(frame) if slug not in set(means["method"])]
    with paper():
        figure, (ax,) = panels(*FIGURE_SIZE, PLACE)
        _traffic_panel(ax, means, way, title)
        _seed_footer(figure, tidy.describe_seeds(tidy.select_measure(frame, "accuracy")), missing)
    return figure


def _accuracy_panel(ax: Any, part: Any) -> None:
    labels = method_lines(ax, part)
    mark_collapsed(ax, part, "accuracy")
    frame_axes(ax, part, "accuracy")
    start_line(ax, part)
    draw_labels(ax, labels, together=False)


def _epsilon_panel(ax: Any, part: Any) -> None:
    """Draws the privacy spent, as one line in ink where all methods spend the same."""
    gap = part.groupby("round")["value"].agg(np.ptp).max()
    if part["method"].nunique() > 1 and gap < 1e-6:
        one = part.groupby("round")["value"].mean()
        ax.plot(one.index, one.to_numpy(), color=style.INK, marker="o", markevery=[-1])
        x, y = float(one.index[-1]), float(one.iloc[-1])
        labels = [Label(x, y, f"every method\nε = {y:.2f}", style.INK)]
    else:
        labels = method_lines(ax, part)
    frame_axes(ax, part, "epsilon")
    draw_labels(ax, labels)


def overview(frame: pd.DataFrame) -> Picture:
    """Draws accuracy, aggregation deviation and ε over rounds, and accuracy against bytes.

    Raises: ``ValueError`` when the frame, tidy and of one task, lacks one of the measures.
    Guarantees: test_overview_has_four_panels.
    """
    accuracy = tidy.select_measure(frame, "accuracy")
    drift, spent = (tidy.select_measure(frame, x, required=False) for x in ("deviation", "epsilon"))
    parts = (
        ("How well it learns", _accuracy_panel, accuracy, ""),
        ("How far it misses the mean product", _deviation_panel, drift, "deviation: not measured"),
        ("What privacy it spends", _epsilon_panel, spent, "no finite ε in this frame"),
        ("What it sends and receives", _traffic_panel, traffic_table(frame), "bytes: not measured"),
    )
    with paper():
        figure = style.picture(9.9, 7.2)
        for i, (title, draw, part, absent) in enumerate(parts):
            corner = (0.565 if i % 2 else 0.065, 0.105 if i > 1 else 0.575)
            ax = figure.add_axes((*corner, 0.315, 0.36))
            if len(part):
                draw(ax, part)
            else:
                ax.set(xticks=[], yticks=[])
                style.note(ax, 0.5, 0.5, absent, size=9, ha="center")
            ax.set_title(f"{i + 1}  {title}")
        crosses = _crosses(len(tidy.collapsed_ends(accuracy, "accuracy")))
        footer(figure, tidy.describe_seeds(accuracy) + crosses)
    return figure


def accuracy_row(ax: Any, row: int, values: Any, colour: str) -> None:
    """Draws the accuracies of some runs: dots, their mean with its 95 % interval, and its number.

    Args: ax: with one row for each setting; row: its place; values: one a seed; colour: of all.
    """
    ends: Any = tidy.confidence_interval(values)
    ax.plot(ends, [row, row], color=colour, lw=7, alpha=0.25, solid_capstyle="butt")
    style.dots(ax, values, np.full(len(values), row), colour, 4, mew=0, alpha=0.6)
    ax.plot([values.mean()], [row], "D", ms=7, color=colour, mec=style.CARD)
    put: Any = {"weight": "bold", "va": "center", "transform": ax.get_yaxis_transform()}
    style.note(ax, 1.02, row, f"{values.mean():.1%}", colour, 10, **put)


# ---- a run so far, on axes that stand still: the static twin of a live run

CENTRE: Any = {"ha": "center", "va": "center", "fontsize": 8, "color": style.SOFT}
BOXES = (0.1, 0.155, 0.485, 0.75), (0.735, 0.62, 0.25, 0.285), (0.735, 0.155, 0.25, 0.235)


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
    >>> figure = fl.course.widgets.live_figure(fl.to_frame(records), measure="loss")
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
            right["bbox"] = {"fc": style.CARD, "lw": 0, "pad": 0.5, "alpha": 0.8}
            score.text(rounds, start, f"before {start:.2f} ", **right)
        for earlier in past:
            text, at = style.name(earlier["method"].iloc[0]), series(earlier, measure)[1][-1]
            small: Any = {"fontsize": 6.5, "color": style.SOFT, "va": "center"}
            score.text(rounds * 1.02, at, text.replace(" ", "\n"), **small)
        if frame is not None:
            slug, last = str(frame["method"].iloc[0]), series(frame, measure)[1][-1:]
            found = f"{style.name(slug)}: {measure} {start:.2f} → " + "".join(
                f"{v:.2f}" for v in last
            )
            score.set_title(found, color=style.darken(style.look(slug).colour), fontsize=10)
            score.set_ylabel(AXES.get(measure, (measure, measure))[0].lower(), fontsize=8)
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
