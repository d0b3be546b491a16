"""A measure over the rounds, one line a method: accuracy, loss, privacy spent."""

from typing import Any

import pandas as pd

from fedlora_lab.plots import tidy
from fedlora_lab.plots.labels import Label, beside
from fedlora_lab.plots.style import CARD, GREY, SOFT, Picture, look, name, paper, picture

AXES = {
    "accuracy": ("Test accuracy", "share of test examples right"),
    "accuracy_received": ("Accuracy of the received adapter", "share of test examples right"),
    "loss": ("Test loss", "mean loss per test example (nats)"),
    "epsilon": ("Privacy spent", "ε, largest over clients"),
    "deviation": ("Aggregation deviation", "distance from the mean of B·A, relative"),
    "participants": ("Clients that took part", "clients"),
    "clipped": ("Examples clipped", "share of example gradients"),
    "seconds": ("Time", "seconds per round"),
    "bytes_up": ("Sent to the server", "bytes per round, all clients"),
    "bytes_down": ("Received from the server", "bytes per round, all clients"),
}


def lines(ax: Any, part: Any) -> list[Label]:
    """Draw mean and band over rounds for each method; gives the labels of the line ends."""
    import seaborn as sns  # slow to import, and the live figures do without

    slugs = tidy.order(part)
    looks = {slug: look(slug) for slug in slugs}
    sns.lineplot(
        data=part,
        x="round",
        y="value",
        hue="method",
        style="method",
        hue_order=slugs,
        style_order=slugs,
        ax=ax,
        palette={slug: looks[slug].colour for slug in slugs},
        dashes={slug: looks[slug].dashes for slug in slugs},
        errorbar=tidy.band,
        err_kws={"alpha": 0.1, "lw": 0},
        legend=False,
    )
    last = tidy.ends(part)
    for slug in slugs:
        x, y = last.loc[slug, "round"], last.loc[slug, "value"]
        ax.plot([x], [y], marker=looks[slug].marker, ms=6.5, mec=CARD, mew=0.6, color=looks[slug].colour, clip_on=False)
        at_end = part[(part["method"] == slug) & (part["round"] == x)]["value"]
        if part["round"].nunique() == 1 and len(at_end) > 1:
            low, high = tidy.band(at_end)
            ax.plot([x, x], [low, high], color=looks[slug].colour, lw=1.4)
    return [Label(float(last.loc[s, "round"]), float(last.loc[s, "value"]), name(s), looks[s].colour) for s in slugs]


def frame_axes(ax: Any, part: Any, measure: str) -> None:
    """Title, axis labels with units and limits for a measure over rounds."""
    title, unit = AXES.get(measure, (measure, measure))
    ax.set_title(title)
    ax.set_ylabel(unit)
    ax.set_xlabel("round")
    low, high = int(part["round"].min()), int(part["round"].max())
    ax.set_xlim(low - (0.5 if low == high else 0), high + (0.5 if low == high else 0))
    ax.xaxis.get_major_locator().set_params(integer=True)
    bottom, top = ax.get_ylim()
    if measure.startswith("accuracy"):
        ax.set_ylim(max(0.0, bottom), min(1.0, top))
    elif measure in ("epsilon", "deviation"):
        most = float(part["value"].max())
        ax.set_ylim(-0.02 * (most or 1), 1.1 * (most or 1))
    else:
        ax.set_ylim(bottom, top)


def start_line(ax: Any, part: Any) -> None:
    """Mark the value before training, where the frame has round 0 and something after it."""
    first = part[part["round"] == 0]["value"]
    if len(first) and part["round"].max() > 0:
        value = float(first.mean())
        ax.axhline(value, color=GREY, lw=0.9, ls=(0, (1, 2)), zorder=0.9)
        ax.annotate(
            f"before training {value:.2f}",
            xy=(0.98, value),
            xycoords=ax.get_yaxis_transform(),
            xytext=(0, -3),
            textcoords="offset points",
            fontsize=7.5,
            color=SOFT,
            ha="right",
            va="top",
        )


def footer(figure: Picture, text: str) -> None:
    """One small line under a figure: what the band is, how many seeds."""
    figure.text(0.012, 0.012, text, fontsize=7.5, color=SOFT, ha="left", va="bottom")


def left_out(slugs: Any, why: str = "not measured") -> str:
    """Words for the small line: which methods a figure lacks because there is nothing finite to draw of them."""
    return f"; {why}: {', '.join(name(slug) for slug in slugs)}" if slugs else ""


def not_measured(ax: Any, text: str) -> None:
    """Words in the place of a panel that would have nothing to show."""
    ax.set_xticks([])
    ax.set_yticks([])
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", color=SOFT, fontsize=9)


def curves(frame: pd.DataFrame, measure: str = "accuracy") -> Picture:
    """A measure over the rounds: one line a method, mean over seeds, 95 % band.

    Args: frame: tidy, one task (see ``fl.to_frame``). measure: of the whole model, such as "accuracy" or "loss".
    Raises: ``ValueError`` when the frame lacks the measure.
    Guarantees: the line is the mean over seeds (test_curves_draw_the_mean); one seed or one round suffices.
    """
    part = tidy.rows(frame, measure)
    with paper():
        figure = picture(7.6, 4.1)
        ax = figure.add_axes((0.09, 0.16, 0.68, 0.75))
        labels = lines(ax, part)
        frame_axes(ax, part, measure)
        if measure.startswith("accuracy") or measure == "loss":
            start_line(ax, part)
        beside(ax, labels)
        why = "no finite ε" if measure == "epsilon" else "not measured"
        footer(figure, tidy.seeds(part) + left_out(tidy.unmeasured(frame, measure), why))
    return figure


def epsilon(frame: pd.DataFrame) -> Picture:
    """Privacy spent after each round, as the ledger states it. Raises and guarantees as `curves`."""
    return curves(frame, "epsilon")
