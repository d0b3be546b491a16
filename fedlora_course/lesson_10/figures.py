"""The figures of lesson 10: rates that methods survive, and which method is best where."""

from collections.abc import Mapping
from html import escape
from math import comb
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from fedlora_course import drawing
from fedlora_lab import methods
from fedlora_lab.federated.records import Round
from fedlora_lab.lora import adapters, per_example
from fedlora_lab.lora.source import require_source
from fedlora_lab.plots import style
from fedlora_lab.report import paired_difference

VARIANTS = {"balanced-rolora": "Balanced RoLoRA", "balanced-la-lora": "Balanced LA-LoRA"}
"""Rows of the studies that are not in the table of methods."""
TIED = "#CFEBDF"
"""Ground of a method that is tied with the best."""
BA = Float[np.ndarray, " two"]
"""A number of B, and one of A."""


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
            fill = style.darken(style.RIGHT) if best else TIED
            text = "best" if best else f"{100 * row['gap']:z.1f}".replace("-", "−")
            look = {"color": "white", "weight": "bold"} if best else {"color": style.INK}
            drawing.cell(ax, place, y, text, fill if row["tied"] else "none", **look)
    ax.text(len(tables) + 0.15, -1, "best\nor tied", **words, weight="bold")
    for y, slug in enumerate(slugs):
        share = f"{counts['tied'][slug]} of {counts['of'][slug]}"
        ax.text(len(tables) + 0.15, y, share, **words, weight="bold")
    for unit in dict.fromkeys(units):
        first = units.index(unit)
        middle = first + (units.count(unit) - 1) / 2
        ax.text(middle, -1.75, f"every {unit} protected", **words | {"va": "bottom"}, weight="bold")
        ax.axvline(first - 0.5, color=style.FAINT)
    ax.set(xticks=[], yticks=range(len(slugs)), yticklabels=names)
    drawing.clear(ax)
    first = counts.loc[slugs[0]]
    share = f"{names[0]} is best or tied in {first['tied']} of {first['of']}"
    style.headline(figure, f"None is best in all settings; {share}")
    words = "points behind the best; coloured: best, or tied with it (95 %, all pairs)"
    style.footer(figure, words)
    return figure


# ---- rates of six methods, and the noise that they put on an output


def falls(means: pd.DataFrame, x: str, points: float = 10.0) -> pd.Series:
    """Finds where each curve has fallen by some points behind its best, between two of its places.

    Args:
        means: columns unit, epsilon, method, accuracy and x, each curve beyond its best falling.
        x: column of the places, on a logarithmic axis.
        points: of accuracy, in per cent.
    """

    def place(curve: pd.DataFrame) -> float:
        curve = curve.sort_values(x)
        behind = 100 * (curve["accuracy"].max() - curve["accuracy"]).to_numpy()
        best = behind.argmin()
        after = best + int((behind[best:] >= points).argmax())
        here = slice(after - 1, after + 1)
        return float(np.exp(np.interp(points, behind[here], np.log(curve[x].to_numpy()[here]))))

    return means.groupby(["unit", "epsilon", "method"], sort=False)[[x, "accuracy"]].apply(place)


@style.paper()
def falling_together(means: pd.DataFrame) -> style.Picture:
    """Draws how far each method is behind its own best, over the rate and over v.

    Args: means: columns unit, epsilon, method, lr, v and accuracy, a row a rate.
    """
    figure, axes = style.subplots(10.2, 4.3, columns=2, sharey=True)
    for ax, x, words in zip(axes, ("lr", "v"), ("learning rate", "v, variance on an output")):
        named = set()
        for (_, _, slug), curve in means.groupby(["unit", "epsilon", "method"], sort=False):
            curve = curve.sort_values(x)
            look = style.look(str(slug))
            label = None if slug in named else style.name(str(slug))
            named.add(slug)
            behind = 100 * (curve["accuracy"] - curve["accuracy"].max())
            ax.plot(curve[x], behind, color=look.colour, lw=1.3, alpha=0.8, label=label)
        found = falls(means, x)
        ax.axvspan(found.min(), found.max(), color=style.FAINT, alpha=0.5, lw=0, zorder=0)
        ax.axhline(-10, color=style.GREY, lw=1, ls=style.DOTTED)
        spread = found.max() / found.min()
        ax.set_title(f"ten points lost within a factor of {spread:.0f}", loc="left", fontsize=9.5)
        ax.set(xscale="log", xlabel=words, ylim=(-45, 1.5))
    axes[1].set_xlim(1e-4, 1e2)
    axes[0].set_ylabel("points behind the method's own best")
    axes[1].legend(loc="lower left", frameon=False)
    style.headline(figure, "Over the rate the methods fall far apart, over v they fall together")
    words = "a line: a method in a setting, five seeds; shade: where lines cross ten points lost"
    style.footer(figure, words)
    return figure


# ---- which factor should move


def step_numbers(record: Round) -> tuple[BA, BA, BA]:
    """Measures what a step on each factor may gain and cost, on public validation scans.

    Args: record: of a run that trains B and A.
    Returns: u, s and J, each of B and of A: squared norm of the mean gradient, mean squared norm of
        an example's gradient, and energy in the product of noise of variance one. Sums over layers.
    Guarantees: J is the energy of drawn noise (test_J_is_the_energy_of_noise_of_variance_one).
    """
    task, lora, state = require_source(record)
    adapted = adapters.adapt(task, lora)
    places = tuple(key for key in adapted.places if key.name in "AB")
    examples = task.test if task.validation is None else task.validation
    rows = per_example.gradients_at(task, adapted, state.tensors, places, examples)
    numbers = np.zeros((3, 2))
    for key, gradients in rows.items():
        is_A = key.name == "A"
        other = state.tensors[key._replace(name="B" if is_A else "A")]
        # Noise on B spreads over its rows, noise on A over its columns.
        spread = gradients.shape[2] if is_A else gradients.shape[1]
        u = gradients.mean(0).square().sum()
        s = gradients.square().sum((1, 2)).mean()
        numbers[:, int(is_A)] += [float(u), float(s), spread * float(other.square().sum())]
    u, s, J = numbers
    return u, s, J


# ---- all rows


def all_rows() -> Any:
    """Lays out every row of `fl.methods` in a line: what a client sends, and what is new."""
    from IPython.display import HTML

    table = methods.table()
    lines = []
    for _, row in table.iterrows():
        note = str(row["note"])
        cells = (row["name"], f"{row['up'] / 1000:.1f}", note[0].upper() + note[1:])
        lines.append("".join(f'<td style="text-align: left">{escape(x)}</td>' for x in cells))
    heads = ("row", "kB up", "in one line")
    head = "".join(f'<th style="text-align: left">{name}</th>' for name in heads)
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return HTML(f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>")
