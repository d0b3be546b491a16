"""Figures of notebook 05: what freezing A does to rates, spread and accuracy."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import chi2

from fedlora_lab.plots import style, tidy

PAIR = ("fedlora", "ffa-lora")
KNOBS = {  # study: (its column, words)
    "digits-scale": ("scale", "α / r"),
    "digits-clip": ("clip", "clip norm C"),
    "digits-rank": ("rank", "rank r"),
}


def rate_trials(folder: str | Path) -> pd.DataFrame:
    """Reads the first seed's tuning runs: both methods at every rate and value of a knob.

    Args: folder: with the studies' committed runs.
    Returns: columns method, knob (words), value, lr, accuracy. The three knobs share a centre.
    """
    from fedlora_lab.experiments.paper_claims import screen_frame  # slow to import

    parts = []
    for study, (column, words) in KNOBS.items():
        part = screen_frame(study, Path(folder) / f"{study}.jsonl")
        part = part[part["method"].isin(PAIR) & (part["lr"] <= 5)].assign(knob=words)
        parts.append(part.rename(columns={column: "value"}))
    return pd.concat(parts)[["method", "knob", "value", "lr", "accuracy"]]


def from_best_rate(trials: pd.DataFrame) -> pd.DataFrame:
    """Aligns settings at each method's best learning rate.

    Args: trials: as `rate_trials` gives them.
    Returns: columns method, knob, value, step (on the grid of rates, 0: the best one), loss
        (accuracy minus that at the best rate). The common centre of the knobs is counted once.
    Guarantees: test_settings_are_lined_up_at_their_best_rate.
    """
    rows = []
    for keys, part in trials.groupby(["method", "knob", "value"]):
        part = part.sort_values("lr")
        accuracy = part["accuracy"].to_numpy()
        best = int(accuracy.argmax())
        rows += [(*keys, i - best, x - accuracy[best]) for i, x in enumerate(accuracy)]
    table = pd.DataFrame(rows, columns=["method", "knob", "value", "step", "loss"])
    curves = table.groupby(["method", "knob", "value"])["loss"].agg(tuple).reset_index()
    once = curves.drop_duplicates(["method", "loss"])[["method", "knob", "value"]]
    return table.merge(once)


@style.paper()
def rate_maps(trials: pd.DataFrame) -> style.Picture:
    """Draws accuracy over the learning rate and α, C or the rank; the best rate has a dot.

    Args: trials: as `rate_trials` gives them.
    Guarantees: test_the_maps_mark_the_best_rate.
    """
    knobs = list(dict.fromkeys(trials["knob"]))
    places = [(0.085 + 0.285 * i, y, 0.255, 0.35) for y in (0.525, 0.115) for i in range(3)]
    figure, axes = style.panels(9.6, 6.0, *places)
    rates: list[float] = sorted(trials["lr"].unique())
    shades: Any = None
    for ax, (slug, knob) in zip(axes, ((m, k) for m in PAIR for k in knobs)):
        part = trials[(trials["method"] == slug) & (trials["knob"] == knob)]
        wide = part.pivot(index="lr", columns="value", values="accuracy").reindex(rates)
        shades = ax.imshow(wide, origin="lower", aspect="auto", vmin=0.1, vmax=0.9, cmap="cividis")
        best = wide.to_numpy().argmax(axis=0)
        style.dots(ax, range(len(best)), best, "#FFFFFF", 7, mec=style.INK)
        lowest, first = slug == PAIR[-1], knob == knobs[0]
        ax.set_xticks(range(wide.shape[1]), [f"{x:g}" if lowest else "" for x in wide.columns])
        ax.set_yticks(range(len(rates)), [f"{x:g}" if first else "" for x in rates])
        ax.grid(False)
        ax.set(xlabel=knob if lowest else "", ylabel="learning rate η" if first else "")
        if first:
            ax.set_title(style.name(slug), color=style.darken(style.look(slug).colour))
    bar = figure.colorbar(shades, cax=figure.add_axes((0.935, 0.115, 0.014, 0.76)))
    bar.set_label("accuracy on validation data")
    words = "The best rate moves with α, C and r, whether or not A is frozen"
    figure.text(0.012, 0.985, words, size=11.5, weight="bold", va="top")
    style.footer(figure, "one tuning seed, ε = 8, digits; dots: the best rate of a column")
    return figure


@style.paper()
def cliff(table: pd.DataFrame) -> style.Picture:
    """Draws the accuracy that each method loses above and below its best rate, mean of settings.

    Args: table: as `from_best_rate` gives it.
    """
    figure, (ax,) = style.panels(7.8, 4.0, (0.1, 0.17, 0.68, 0.72))
    labels, counts = [], []
    for slug in PAIR:
        part = table[(table["method"] == slug) & table["step"].between(-3, 2)]
        counts += part.groupby("step").size().tolist()
        steps, mean, low, high = tidy.bands(part, "step", "loss")
        drawn = steps, mean, style.name(slug), style.look(slug).colour, low, high
        labels.append(style.named_line(ax, *drawn, marker=style.look(slug).marker))
    ax.axhline(0, color=style.GREY, lw=0.9, ls=style.DOTTED)
    steps = range(-3, 3)
    ax.set_xticks(steps, ["best" if not s else f"× {2.5**s:.3g}" for s in steps])
    ax.set(xlabel="learning rate, against the setting's own best one", ylim=(-0.68, 0.05))
    ax.set_ylabel("accuracy lost")
    ax.set_title("Above its best rate FedLoRA loses far more than FFA-LoRA")
    style.draw_labels(ax, labels, together=False)
    words = f"means of {min(counts)} to {max(counts)} settings of α, C and r, one seed each"
    style.footer(
        figure, f"{words}; band: 95 % interval over settings; steps of the grid: about × 2.5"
    )
    return figure


def spreads(runs: pd.DataFrame, slugs: "tuple[str, ...]" = PAIR) -> Any:
    """Computes the spread of final accuracies over seeds, with 95 % intervals of normal samples.

    Args: runs: columns setting, method, seed, accuracy; slugs: of the methods.
    Returns: columns setting, method, std, low, high, seeds, in the order of the settings.
    Guarantees: test_a_spread_has_its_interval.
    """
    rows = []
    for setting in dict.fromkeys(runs["setting"]):
        for slug in slugs:
            values = runs[(runs["setting"] == setting) & (runs["method"] == slug)]["accuracy"]
            n, std = len(values), float(values.std())
            ends = (math.sqrt((n - 1) / chi2.ppf((1 + s * 0.95) / 2, n - 1)) for s in (1, -1))
            rows.append((setting, slug, std, *(std * end for end in ends), n))
    return pd.DataFrame(rows, columns=["setting", "method", "std", "low", "high", "seeds"])


@style.paper()
def spread(table: pd.DataFrame, title: str) -> style.Picture:
    """Draws the spread of each method over seeds, a row a setting.

    Args: table: as `spreads` gives it; title: the finding.
    """
    settings = list(dict.fromkeys(table["setting"]))
    figure, (ax,) = style.panels(8.0, 1.2 + 0.4 * len(settings), (0.22, 0.2, 0.6, 0.68))
    for i, slug in enumerate(dict.fromkeys(table["method"])):
        part, colour = table[table["method"] == slug], style.look(slug).colour
        rows = [settings.index(x) + 0.4 * (i - 0.5) for x in part["setting"]]
        ax.hlines(rows, 100 * part["low"], 100 * part["high"], color=colour, lw=2)
        for x, y in zip(100 * part["std"], rows, strict=True):
            style.mark(ax, x, y, slug, 7)
        bold: Any = {"weight": "bold", "va": "center", "transform": ax.get_yaxis_transform()}
        style.note(ax, 1.02, rows[0], style.name(slug), style.darken(colour), 9, **bold)
    ax.set(xscale="log", ylim=(len(settings) - 0.4, -0.6), yticks=range(len(settings)))
    ax.set_yticklabels(settings)
    ax.set(xlabel="standard deviation of the accuracy over seeds, points", title=title)
    style.log_axis(ax.xaxis, (0.5, 1, 2, 5, 10, 20))
    style.footer(figure, f"{table['seeds'].min()} seeds each; bars: 95 % interval (chi-squared)")
    return figure


@style.paper()
def by_budget(panels: Mapping[str, pd.DataFrame], titles: Mapping[str, str]) -> style.Picture:
    """Draws tuned accuracy against ε, a line a method, with 95 % intervals over seeds.

    Args: panels: name -> runs with columns method, epsilon, accuracy; titles: name -> the finding.
    Guarantees: test_the_budgets_are_means_with_intervals.
    """
    share = 0.935 / len(panels)
    across = [(0.065 + share * i, share - 0.125) for i in range(len(panels))]
    figure, axes = style.row(10.4, 4.0, (0.16, 0.73), *across)
    for ax, (name, runs) in zip(axes, panels.items(), strict=True):
        places = {e: i for i, e in enumerate(sorted(runs["epsilon"].unique()))}
        labels = []
        for i, slug in enumerate(dict.fromkeys(runs["method"])):
            own, colour = runs[runs["method"] == slug], style.look(slug).colour
            budgets, mean, low, high = tidy.bands(own, "epsilon", "accuracy")
            x = np.array([places[e] for e in budgets]) + 0.05 * (i - 1)
            ax.vlines(x, low, high, color=colour, lw=1.6)
            drawn = x, mean, style.name(slug), colour
            labels.append(style.named_line(ax, *drawn, lw=1.2, marker=style.look(slug).marker))
        ax.set_xticks(list(places.values()), [f"{e:g}" for e in places])
        ax.set(xlabel="ε", ylim=(0.68, 0.92), xlim=(-0.2, len(places) - 0.8), title=titles[name])
        ax.tick_params(labelleft=ax is axes[0])
        style.draw_labels(ax, [x._replace(x=len(places) - 0.8) for x in labels], together=False)
    axes[0].set_ylabel("accuracy")
    seeds = [runs.groupby(["method", "epsilon"]).size().min() for runs in panels.values()]
    counted = " to ".join(dict.fromkeys(str(n) for n in (min(seeds), max(seeds))))
    words = f"means over {counted} seeds after the last round, bars: 95 % interval (Student's t)"
    style.footer(figure, f"{words}; rates tuned for each method, ε and panel")
    return figure


@style.paper()
def limit(table: pd.DataFrame) -> style.Picture:
    """Draws how far LoRA's product is from FFA-LoRA's as α grows, and slopes to compare with.

    Args: table: columns kind (words), power (of the expected slope), c, distance.
    Guarantees: test_the_limit_is_drawn_as_measured.
    """
    figure, (ax,) = style.panels(7.8, 4.1, (0.1, 0.16, 0.64, 0.74))
    labels = []
    for colour, (kind, part) in zip(style.SERIES, table.groupby("kind", sort=False)):
        power, last = part["power"].iloc[0], part.iloc[-1]
        slope = last["distance"] * (part["c"] / last["c"]) ** power
        ax.plot(part["c"], slope, color=style.GREY, lw=1, ls=style.DASHED, zorder=1)
        drawn = part["c"], part["distance"], str(kind), colour
        labels.append(style.named_line(ax, *drawn, marker="o", lw=1.4))
    ax.set(xscale="log", yscale="log", xlabel="c, with α → c α,  η → η / c²,  C → c C")
    ax.set_ylabel("distance from FFA-LoRA, relative")
    ax.set_title("LoRA tends to FFA-LoRA as α grows: as 1/c² without noise, 1/c with it")
    style.log_axis(ax.xaxis, tuple(sorted(table["c"].unique())))
    style.draw_labels(ax, labels, together=False)
    style.footer(figure, "Frobenius norms of γ B A, all layers, 4 rounds; dashed: slopes −2 and −1")
    return figure


@style.paper()
def clip_trials(trials: pd.DataFrame) -> style.Picture:
    """Draws accuracy over the clip norm with whole clients protected, a panel for each ε.

    Args: trials: columns epsilon, clip_norm and one for each method.
    """
    figure, axes = style.row(10.4, 4.0, (0.16, 0.66), (0.06, 0.22), (0.33, 0.22), (0.6, 0.22))
    labels: list[Any] = []
    for ax, (epsilon, part) in zip(axes, trials.groupby("epsilon"), strict=True):
        labels = []
        for slug in (*PAIR, "balanced-lora"):
            kind: Any = {"marker": style.look(slug).marker, "lw": 1.4}
            drawn = part["clip_norm"], part[slug], style.name(slug), style.look(slug).colour
            labels.append(style.named_line(ax, *drawn, **kind))
        ax.set(xscale="log", ylim=(0.15, 0.95), xlabel="clip norm C", title=f"ε = {epsilon:g}")
        style.log_axis(ax.xaxis, tuple(part["clip_norm"]))
    axes[0].set_ylabel("accuracy on validation data")
    words = "At ε = 3 and 8 a large clip norm ruins FedLoRA, not FFA-LoRA or the balanced start"
    figure.text(0.012, 0.975, words, size=11.5, weight="bold", va="top")
    style.draw_labels(axes[-1], labels, together=False)
    words = "one tuning seed, 100 clients, the best rate at each clip norm"
    style.footer(figure, f"{words}: read the trend, not single dots")
    return figure
