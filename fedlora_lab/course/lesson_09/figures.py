"""The figure of notebook 09: which method is best in each situation, and which are tied with it."""

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
    level = 1 - 0.05 / max(comb(len(means), 2), 1)
    table = pd.DataFrame({"mean": means, "gap": 0.0, "tied": True})
    for slug in means.index[1:]:
        gap = paired_difference(rows, str(slug), best, level=level)
        table.loc[slug, ["gap", "tied"]] = gap.mean, gap.high >= 0
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
    figure, (ax,) = style.subplots(2.3 + 1.05 * len(columns), 1.5 + 0.3 * len(slugs))
    ax.imshow(gaps, cmap="YlGnBu_r", vmin=-0.15, vmax=0.06, aspect="auto")
    for place, table in enumerate(columns.values()):
        for slug, row in table.iterrows():
            y = slugs.index(str(slug))
            if slug == table.index[0]:
                text = f"{row['mean']:.2f}"
                ax.plot([place], [y], "s", ms=22, mfc="none", mec=style.INK, mew=1.6)
            else:
                text = f"−{abs(row['gap']):.2f}" + (" •" if row["tied"] else "")
            ink = "white" if row["gap"] < -0.07 else style.INK
            ax.text(place, y, text, ha="center", va="center", fontsize=8, color=ink)
    ax.grid(False)
    ax.set_yticks(range(len(slugs)), [VARIANTS.get(slug, style.name(slug)) for slug in slugs])
    ax.xaxis.tick_top()
    ax.set_xticks(range(len(columns)), list(columns), fontsize=8)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    figure.suptitle("Best in each situation, and how far behind it the others are", weight="bold")
    text = "framed: best mean; others: how far behind; •: tied with the best (95 %, all pairs)"
    figure.supxlabel(text, fontsize=8, color=style.SOFT)
    return figure
