"""What accuracy costs in bytes."""

from typing import Any

import pandas as pd

from fedlora_lab.checks import check, check_one_of
from fedlora_lab.plots import tidy
from fedlora_lab.plots.curves import footer, left_out
from fedlora_lab.plots.labels import Label, beside
from fedlora_lab.plots.style import CARD, Picture, look, name, paper, picture

WAYS = {"both": ("bytes_up", "bytes_down"), "up": ("bytes_up",), "down": ("bytes_down",)}


def table(frame: pd.DataFrame, way: str = "both") -> Any:
    """Mean over seeds for each method and round: columns method, round, bytes (so far), value (accuracy), low, high."""
    sent = tidy.cumulative(frame, WAYS[way]).rename(columns={"value": "bytes"})
    joined = tidy.rows(frame, "accuracy").merge(sent, on=["method", "seed", "round"])
    grouped = joined.groupby(["method", "round"], sort=False)
    result = grouped.agg(bytes=("bytes", "mean"), value=("value", "mean")).reset_index()
    bands = [tidy.band(values) for _, values in grouped["value"]] if len(joined) else []
    return result.assign(low=[low for low, _ in bands], high=[high for _, high in bands])


def panel(ax: Any, means: Any, way: str = "both") -> None:
    """Accuracy against bytes so far, one line a method, its end marked."""
    scale, unit = tidy.sized(float(means["bytes"].max()))
    labels = []
    for slug in tidy.order(means):
        part, seen = means[means["method"] == slug].sort_values("round"), look(slug)
        x = part["bytes"] / scale
        ax.fill_between(x, part["low"], part["high"], color=seen.colour, alpha=0.1, lw=0)
        (line,) = ax.plot(x, part["value"], color=seen.colour)
        if seen.dashes:
            line.set_dashes(seen.dashes)
        end = (float(x.iloc[-1]), float(part["value"].iloc[-1]))
        ax.plot(*[[v] for v in end], marker=seen.marker, ms=6.5, mec=CARD, mew=0.8, color=seen.colour, clip_on=False)
        labels.append(Label(*end, name(slug), seen.colour))
    words = {"both": "sent and received", "up": "sent to the server", "down": "received from the server"}[way]
    ax.set_title("What accuracy costs in bytes")
    ax.set_xlabel(f"{words} so far, all clients ({unit})")
    ax.set_ylabel("share of test examples right")
    ax.set_xlim(0, float(means["bytes"].max()) / scale * 1.01 or 1)
    bottom, top = ax.get_ylim()
    ax.set_ylim(max(0.0, bottom), min(1.0, top))
    beside(ax, labels, together=False, inside=True, above=True)


def traffic(frame: pd.DataFrame, way: str = "both") -> Picture:
    """Test accuracy against bytes so far: one line a method, mean over seeds, 95 % band.

    Args: frame: tidy, one task. way: "both", "up" (to the server) or "down" (from it).
    Raises: ``ValueError`` when the frame lacks accuracy or bytes, or no run has the bytes of all its rounds.
    Guarantees: the line ends at the total of the run (test_traffic_ends_at_the_total).
    """
    check_one_of("way", way, tuple(WAYS))
    means = table(frame, way)
    check(len(means) > 0, "measure", WAYS[way], "bytes of every round of at least one method")
    missing = [slug for slug in tidy.order(frame) if slug not in set(means["method"])]
    with paper():
        figure = picture(7.6, 4.1)
        panel(figure.add_axes((0.09, 0.16, 0.68, 0.75)), means, way)
        footer(figure, tidy.seeds(tidy.rows(frame, "accuracy")) + left_out(missing))
    return figure
