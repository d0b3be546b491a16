"""The figures of notebook 09: rates that methods survive, and which method is best where."""

from collections.abc import Mapping
from math import comb

import pandas as pd

from fedlora_lab._utils.statistics import paired_difference
from fedlora_lab.methods.published import ALL
from fedlora_lab.plots import style

VARIANTS = {"balanced-rolora": "Balanced RoLoRA", "balanced-la-lora": "Balanced LA-LoRA"}
"""Rows of the studies that are not in the table of methods."""


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
    """Draws how far each method is behind the best, for every ε of every study.

    Args: frames: study -> columns method, epsilon (NaN: no privacy), seed, accuracy.
    """
    columns = {}
    for study, frame in frames.items():
        for epsilon, rows in frame.groupby("epsilon", dropna=False):
            promise = "no privacy" if pd.isna(epsilon) else f"ε = {epsilon:g}"
            columns[f"{study.replace('-', ' ')}\n{promise}"] = rank(rows)
    seen = {str(slug) for table in columns.values() for slug in table.index}
    slugs = [slug for slug in ALL if slug in seen]
    slugs += sorted(seen - set(slugs))
    gaps = pd.DataFrame({head: table["gap"] for head, table in columns.items()}).reindex(slugs)
    figure, (ax,) = style.subplots(2.3 + 1.05 * len(columns), 1.5 + 0.36 * len(slugs))
    ax.imshow(gaps, cmap="YlGnBu_r", vmin=-0.15, vmax=0.06, aspect="auto")
    for place, table in enumerate(columns.values()):
        for slug, row in table.iterrows():
            y = slugs.index(str(slug))
            if slug == table.index[0]:
                text = f"{row['mean']:.3f}"
                ax.plot([place], [y], "s", ms=27, mfc="none", mec=style.INK, mew=1.6)
            else:
                text = f"−{abs(row['gap']):.3f}" + (" •" if row["tied"] else "")
            ink = "white" if row["gap"] < -0.07 else style.INK
            ax.text(place, y, text, ha="center", va="center", fontsize=8, color=ink)
    ax.grid(False)
    ax.set_yticks(range(len(slugs)), [VARIANTS.get(slug, style.name(slug)) for slug in slugs])
    ax.xaxis.tick_top()
    ax.set_xticks(range(len(columns)), list(columns), fontsize=8)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    figure.suptitle("No method is best in every situation", weight="bold")
    text = "framed: best mean; others: how far behind; •: tied with the best (95 %, all pairs)"
    figure.supxlabel(text, fontsize=8, color=style.SOFT)
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
    axes[-1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    ends = rates.groupby(["unit", "epsilon", "method"])["lr"].max()
    hits = int((ends == predicted.reindex(ends.index)).sum())
    style.headline(figure, f"{hits} of {len(ends)} ranges of rates end at the predicted rate")
    words = "dots: within 3 points of the best (star); frame: predicted end of the range"
    style.footer(figure, words)
    return figure
