"""The figures of notebook 09: rates that methods survive, and which method is best where."""

from collections.abc import Mapping
from math import comb
from typing import Any

import pandas as pd
from matplotlib.patches import Rectangle

from fedlora_lab._utils.statistics import paired_difference
from fedlora_lab.plots import style

VARIANTS = {"balanced-rolora": "Balanced RoLoRA", "balanced-la-lora": "Balanced LA-LoRA"}
"""Rows of the studies that are not in the table of methods."""
TIED = "#CFEBDF"
"""Ground of a method that is tied with the best."""


def rank(rows: pd.DataFrame) -> pd.DataFrame:
    """Ranks the methods of one situation by mean accuracy, with each one's gap to the best.

    The best is chosen by the same numbers with which it is then compared, so the intervals hold for
    all pairs of methods together (Bonferroni, Student's t, paired by seed): a method is tied with
    the best when its interval reaches zero.

    Args: rows: columns method, seed, accuracy.
    Returns: index method, the best first; mean, gap (<= 0 but for rounding) and tied.
    Guarantees: test_ties_are_rarely_broken_by_chance.
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


@style.paper()
def ranking(frames: Mapping[str, pd.DataFrame]) -> style.Picture:
    """Draws how many points each method is behind the best, for every ε of every study.

    A method that is best or tied with the best has a coloured cell. The more such cells, the higher
    stands the method; last stand those that ran in some of the studies only.

    Args: frames: study, whose name ends with its unit -> columns method, epsilon (NaN: no privacy),
        seed, accuracy.
    """
    tables, heads, units = [], [], []
    for study, frame in frames.items():
        for epsilon, rows in frame.groupby("epsilon", dropna=False):
            tables.append(rank(rows))
            heads.append("no privacy" if pd.isna(epsilon) else f"ε = {epsilon:g}")
            units.append(study.rpartition("-")[2])
    tied = pd.DataFrame({place: table["tied"] for place, table in enumerate(tables)})
    counts = pd.DataFrame({"of": tied.notna().sum(axis=1), "tied": tied.eq(True).sum(axis=1)})
    slugs = list(counts.sort_values(["of", "tied"], ascending=False, kind="stable").index)
    names = [VARIANTS.get(slug, style.name(slug)) for slug in slugs]
    figure, (ax,) = style.subplots(9.6, 1.7 + 0.34 * len(slugs))
    ax.set(xlim=(-0.5, len(tables) + 0.75), ylim=(len(slugs) - 0.5, -1.6))
    words: Any = {"ha": "center", "va": "center", "fontsize": 9}
    for place, (table, head) in enumerate(zip(tables, heads, strict=True)):
        ax.text(place, -1, f"{head}\nbest: {100 * table['mean'].iloc[0]:.1f} %", **words)
        for slug, row in table.iterrows():
            y = slugs.index(str(slug))
            best = slug == table.index[0]
            if row["tied"]:
                fill = style.darken(style.RIGHT) if best else TIED
                ax.add_patch(Rectangle((place - 0.46, y - 0.42), 0.92, 0.84, fc=fill, lw=0))
            text = "best" if best else f"{100 * row['gap']:z.1f}".replace("-", "−")
            look = {"color": "white", "weight": "bold"} if best else {"color": style.INK}
            ax.text(place, y, text, **words | look)
    ax.text(len(tables) + 0.15, -1, "best\nor tied", **words, weight="bold")
    for y, slug in enumerate(slugs):
        share = f"{counts['tied'][slug]} of {counts['of'][slug]}"
        ax.text(len(tables) + 0.15, y, share, **words, weight="bold")
    for unit in dict.fromkeys(units):
        first = units.index(unit)
        middle = first + (units.count(unit) - 1) / 2
        ax.text(middle, -1.75, f"every {unit} protected", **words | {"va": "bottom"}, weight="bold")
        ax.axvline(first - 0.5, color=style.FAINT)
    ax.grid(visible=False)
    ax.set(xticks=[], yticks=range(len(slugs)), yticklabels=names)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    first = counts.loc[slugs[0]]
    share = f"{names[0]} is best or tied in {first['tied']} of {first['of']}"
    style.headline(figure, f"None is best in all settings; {share}")
    words = "points behind the best; coloured: best, or tied with it (95 %, all pairs)"
    style.footer(figure, words)
    return figure


@style.paper()
def ranges_of_rates(rates: pd.DataFrame, predicted: pd.Series) -> style.Picture:
    """Draws the learning rates at which each method is near its best, and where that should end.

    Args:
        rates: columns unit, epsilon, method, lr, accuracy: the rates in each method's range.
        predicted: index unit, epsilon, method: the predicted end of the range.
    """
    slugs = list(dict.fromkeys(rates["method"]))
    units = list(dict.fromkeys(rates["unit"]))
    colours = dict(zip(rates["epsilon"].unique(), style.SERIES, strict=False))
    heights = dict(zip(colours, (-0.18, 0.18), strict=True))
    figure, axes = style.subplots(9.5, 1.6 + 0.5 * len(slugs), columns=len(units), sharey=True)
    panels = dict(zip(units, axes, strict=True))
    for (unit, epsilon, slug), rows in rates.groupby(["unit", "epsilon", "method"]):
        ax = panels[unit]
        colour = colours[epsilon]
        y = slugs.index(slug) + heights[epsilon]
        ax.hlines(y, rows["lr"].min(), rows["lr"].max(), color=colour, lw=4, alpha=0.3)
        style.draw_dots(ax, rows["lr"], [y] * len(rows), colour, 5)
        best = rows[rows["accuracy"] == rows["accuracy"].max()]
        style.draw_dots(ax, best["lr"], [y] * len(best), colour, 12, marker="*", zorder=3)
        end = predicted[unit, epsilon, slug]
        ax.plot([end], [y], "s", ms=15, mfc="none", mec=style.INK, mew=1.4, zorder=4)
    for unit, ax in panels.items():
        ax.set_xscale("log", base=2)
        ticks = sorted(rates.loc[rates["unit"] == unit, "lr"].unique())
        ax.set_xticks(ticks, [f"{rate:g}" for rate in ticks])
        ax.set_xlabel("learning rate")
        ax.set_title(f"every {unit} protected", loc="left")
        ax.grid(visible=False, axis="y")
    axes[0].set_yticks(range(len(slugs)), [style.name(slug) for slug in slugs])
    axes[0].set_ylim(len(slugs) - 0.5, -0.5)
    for epsilon, colour in colours.items():
        style.draw_dots(axes[-1], [], [], colour, 6, label=f"ε = {epsilon:g}")
    style.draw_dots(axes[-1], [], [], style.GREY, 11, marker="*", label="best")
    axes[-1].plot([], [], "s", ms=11, mfc="none", mec=style.INK, label="predicted end")
    axes[-1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    ends = rates.groupby(["unit", "epsilon", "method"])["lr"].max()
    hits = int((ends == predicted.reindex(ends.index)).sum())
    style.headline(figure, f"{hits} of {len(ends)} ranges of rates end at the predicted rate")
    words = "dots: within 3 points of the best (star); frame: predicted end of the range"
    style.footer(figure, words)
    return figure
