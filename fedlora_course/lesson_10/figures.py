"""The figures of lesson 10: rates that methods survive, and which method is best where."""

from collections.abc import Mapping
from math import comb
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

from fedlora_course import drawing
from fedlora_lab.plots import style
from fedlora_lab.report import paired_difference

TIED = "#CFEBDF"
"""Ground of a method that is tied with the best."""
LOST = 3.0
"""Points of accuracy, in per cent, that are lost at the end of a range."""
END = 0.35
"""The v at which a range of rates is expected to end (lesson 04)."""
FACTOR = 1.5
"""The shade around equal predicted and found ends: all lie in it or on its edge."""
CURVE = ["unit", "epsilon", "method"]


def rank(rows: pd.DataFrame) -> pd.DataFrame:
    """Ranks the methods of one situation by mean accuracy, with each one's gap to the best.

    The best is chosen by the same numbers with which it is then compared, so the intervals hold for
    all pairs of methods together (Bonferroni, Student's t, paired by seed): a method is tied with
    the best when its interval reaches zero.

    Args: rows: columns method, seed, accuracy.
    Returns: index method, the best first; mean, gap (<= 0 but for rounding) and tied.
    Guarantees: test_a_difference_has_student_s_interval_which_decides.
    """
    means = rows.groupby("method")["accuracy"].mean().sort_values(ascending=False)
    best = means.index[0]
    pairs = comb(len(means), 2)
    table = pd.DataFrame({"mean": means, "gap": 0.0, "tied": True})
    for slug in means.index[1:]:
        gap = paired_difference(rows, str(slug), best, comparisons=pairs)
        # The interval is NaN where a method equals the best in every seed: that is a tie.
        table.loc[slug, ["gap", "tied"]] = gap.mean, not gap.high < 0
    return table


def in_all_settings(frames: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Keeps the methods that ran with every seed at every ε of all studies.

    Args: frames: study -> columns method, epsilon and seed.
    """
    kept = set.intersection(*(set(frame["method"]) for frame in frames.values()))
    for frame in frames.values():
        runs = frame["method"].value_counts()
        kept &= set(runs[runs == runs.max()].index)
    return {study: frame[frame["method"].isin(kept)] for study, frame in frames.items()}


@style.paper()
def ranking(frames: Mapping[str, pd.DataFrame]) -> style.Picture:
    """Draws which methods are best or tied with the best, for every ε of every study.

    Another method's cell has the points that it is behind. The more coloured cells, the higher
    stands the method.

    Args: frames: study, whose name ends with its unit -> columns method, epsilon (NaN: no privacy,
        which is left out), seed, accuracy; the same methods in all.
    """
    tables, heads, units = [], [], []
    for study, frame in frames.items():
        for epsilon, rows in frame.groupby("epsilon"):
            tables.append(rank(rows))
            heads.append(f"ε = {epsilon:g}")
            units.append(study.rpartition("-")[2])
    tied = pd.DataFrame({place: table["tied"] for place, table in enumerate(tables)})
    counts = tied.sum(axis=1).sort_values(ascending=False, kind="stable")
    slugs = [str(slug) for slug in counts.index]
    names = [style.name(slug) for slug in slugs]
    figure, (ax,) = style.subplots(9.6, 1.7 + 0.34 * len(slugs))
    ax.set(xlim=(-0.5, len(tables) + 0.75), ylim=(len(slugs) - 0.5, -1.6))
    words: Any = {"ha": "center", "va": "center", "fontsize": 9}
    for place, (table, head) in enumerate(zip(tables, heads, strict=True)):
        ax.text(place, -1, head, **words)
        for slug, row in table.iterrows():
            y = slugs.index(str(slug))
            # A method that equals the best in every seed is no runner-up.
            best = row["mean"] == table["mean"].iloc[0]
            fill = style.darken(style.RIGHT) if best else TIED
            text = "best" if best else "tied"
            if not row["tied"]:
                fill = "none"
                text = f"{100 * row['gap']:.1f}".replace("-", "−")
            look = {"color": "white", "weight": "bold"} if best else {"color": style.INK}
            drawing.cell(ax, place, y, text, fill, **look)
    ax.text(len(tables) + 0.15, -1, "best\nor tied", **words, weight="bold")
    for y, slug in enumerate(slugs):
        share = f"{counts[slug]} of {len(tables)}"
        ax.text(len(tables) + 0.15, y, share, **words, weight="bold")
    for unit in dict.fromkeys(units):
        first = units.index(unit)
        middle = first + (units.count(unit) - 1) / 2
        ax.text(middle, -1.75, f"every {unit} protected", **words | {"va": "bottom"}, weight="bold")
        ax.axvline(first - 0.5, color=style.FAINT)
    ax.set(xticks=[], yticks=range(len(slugs)), yticklabels=names)
    drawing.clear(ax)
    share = f"{names[0]} is best or tied in {counts.iloc[0]} of {len(tables)}"
    style.headline(figure, f"None is best in all settings; {share}")
    words = "numbers: points behind the best, beyond chance (95 %, all pairs together)"
    style.footer(figure, words)
    return figure


# ---- where ranges of rates end


def range_ends(means: pd.DataFrame) -> pd.Series:
    """Finds where each curve has lost `LOST` points, between two of its places.

    Args: means: columns unit, epsilon, method, lr and accuracy, each curve beyond its best falling.
    """

    def place(curve: pd.DataFrame) -> float:
        curve = curve.sort_values("lr")
        behind = 100 * (curve["accuracy"].max() - curve["accuracy"]).to_numpy()
        best = behind.argmin()
        after = best + int((behind[best:] >= LOST).argmax())
        here = slice(after - 1, after + 1)
        return float(np.exp(np.interp(LOST, behind[here], np.log(curve["lr"].to_numpy()[here]))))

    return means.groupby(CURVE, sort=False)[["lr", "accuracy"]].apply(place)


def predicted_ends(means: pd.DataFrame) -> pd.Series:
    """Finds the rate at which the v of each curve is 0.35.

    Args: means: columns unit, epsilon, method, lr and v, which grows with lr.
    """

    def rate(curve: pd.DataFrame) -> float:
        curve = curve.sort_values("v")
        return float(np.exp(np.interp(np.log(END), np.log(curve["v"]), np.log(curve["lr"]))))

    return means.groupby(CURVE, sort=False)[["lr", "v"]].apply(rate)


@style.paper()
def ends_of_ranges(means: pd.DataFrame, unit: str, epsilon: float) -> style.Picture:
    """Draws the curves of one setting with the ends of their ranges, and all ends over predicted.

    Args:
        means: columns unit, epsilon, method, lr, v and accuracy, a row a rate.
        unit, epsilon: of the setting whose curves are drawn.
    """
    figure, (left, right) = style.subplots(10.2, 4.3, columns=2)
    found, predicted = range_ends(means), predicted_ends(means)
    for slug in means["method"].unique():
        look = style.look(str(slug))
        here = (means["unit"] == unit) & (means["epsilon"] == epsilon) & (means["method"] == slug)
        curve = means[here].sort_values("lr")
        behind = 100 * (curve["accuracy"] - curve["accuracy"].max())
        left.plot(curve["lr"], behind, color=look.colour, lw=1.8, label=style.name(str(slug)))
        style.draw_dots(left, [found[unit, epsilon, slug]], [-3.0], look.colour, size=9)
        ends = pd.DataFrame({"predicted": predicted, "found": found}).xs(slug, level="method")
        for protected, part in ends.groupby(level="unit"):
            face = look.colour if protected == "example" else style.CARD
            edge: Any = {"mec": look.colour, "mew": 1.8}
            style.draw_dots(right, part["predicted"], part["found"], face, size=8, **edge)
    left.axhline(-3, color=style.GREY, lw=1, ls=style.DOTTED)
    left.legend(loc="lower left", frameon=False, fontsize=9)
    left.set(xscale="log", xlim=(0.02, 4), ylim=(-20, 1), xlabel="learning rate")
    left.set_yticks(range(-20, 1, 5))
    left.set_ylabel("points behind the method's own best")
    left.set_title(f"one setting, ε = {epsilon:g}: four ranges end at four rates", loc="left")
    limits = (0.04, 2.6)
    right.plot(limits, limits, color=style.GREY, lw=1, ls=style.DOTTED)
    right.fill_between(
        limits, np.array(limits) / FACTOR, np.array(limits) * FACTOR, color=style.FAINT, alpha=0.5
    )
    right.set(xscale="log", yscale="log", xlim=limits, ylim=limits)
    right.set(xlabel="predicted: the rate at which v is 0.35", ylabel="found: the range ends here")
    right.set_title(f"four settings: predicted within a factor of {FACTOR:g}", loc="left")
    for axis in (left.xaxis, right.xaxis, right.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FormatStrFormatter("%g"))
        axis.set_minor_locator(NullLocator())
    style.note(right, 0.03, 0.94, "full: examples protected, hollow: clients", size=9)
    style.headline(figure, "Each method's range ends at a rate of its own, near the predicted one")
    style.footer(
        figure, "dot: where a range ends, three points lost (five seeds); shade: a factor of 1.5"
    )
    return figure
