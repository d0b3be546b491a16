"""What each ingredient adds, and which method is ahead where: the studies in two figures."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fedlora_lab.checks import check
from fedlora_lab.plots.curves import footer
from fedlora_lab.plots.style import CARD, FACTOR, GREY, INK, RIGHT, SOFT, Picture, darker, look, name, paper, picture

if TYPE_CHECKING:
    from collections.abc import Mapping

COLOURS = (FACTOR["B"], FACTOR["A"], RIGHT, INK)


def _clear(table: pd.DataFrame) -> str:
    """The two largest effects whose interval leaves out zero, in words."""
    from fedlora_lab.traits import NAMES

    clear: Any = table[(table["low"] > 0) | (table["high"] < 0)]
    largest = clear.loc[clear["mean"].abs().sort_values(ascending=False).index[:2]]
    words = [f"{NAMES.get(r.field, r.field)}: {r.value} {r.mean:+.3f} at {r.where}" for r in largest.itertuples()]
    head = "Largest clear of zero: " if len(clear) > len(words) else "Clear of zero: "
    return head + ",\n".join(words).replace("-", "−") if words else "No effect is clear of zero"


def effects(table: pd.DataFrame, measure: str = "accuracy") -> Picture:
    """Main effects with their intervals, a line for each field and value, a colour for each situation.

    Args: table: as `study.effects` gives it. measure: what was compared, for the axis.
    Raises: ``ValueError`` for an empty table.
    Guarantees: test_factorial.py::test_the_figure_shows_every_effect.
    """
    from fedlora_lab.traits import NAMES

    check(len(table) > 0, "table", len(table), "at least one effect: is the study run?")
    lines = list(dict.fromkeys(zip(table["field"], table["value"], strict=True)))
    wheres = list(dict.fromkeys(table["where"]))
    with paper():
        figure = picture(8.6, 1.6 + 0.46 * len(lines))
        height = figure.get_figheight()
        ax = figure.add_axes((0.4, 0.72 / height, 0.57, 1 - 1.52 / height))
        figure.text(0.012, 1 - 0.14 / height, _clear(table), weight="bold", fontsize=10.5, va="top")
        ax.axvline(0, color=GREY, lw=1.2)
        for i, where in enumerate(wheres):
            part: Any = table[table["where"] == where]
            colour = COLOURS[i % len(COLOURS)]
            for row in part.itertuples():
                y = lines.index((row.field, row.value)) + 0.24 * (i - (len(wheres) - 1) / 2)
                ax.plot([row.low, row.high], [y, y], color=colour, lw=2)
                ax.plot([row.mean], [y], "o", ms=6.5, color=colour, mec=CARD)
            ax.text(0.35 * i, 1.02, where, transform=ax.transAxes, color=darker(colour), weight="bold", fontsize=9)
        ax.set_ylim(len(lines) - 0.4, -0.6)
        ax.set_yticks(range(len(lines)), [f"{NAMES.get(field, field)}: {value}" for field, value in lines])
        ax.set_xlabel(f"what it adds to {measure}, other fields equal")
        pairs = f"{table['pairs'].min()}–{table['pairs'].max()}"
        footer(figure, f"mean over {pairs} pairs of rows that differ in nothing else, from the plain "
                       "mean with both factors moving; bar: 95 % interval over seeds (Student's t)")  # fmt: skip
    return figure


def ranking(frames: "Mapping[str, Any]") -> Picture:
    """Every situation of the studies as a column, every method as a line: how far it is behind the best there.

    A ring is the best, a dot cannot be told from it (see `study.standing`); what was not run is empty.

    Raises: ``ValueError`` when there is no situation.
    Guarantees: test_guide.py::test_the_figure_of_the_guide.
    """
    from fedlora_lab.study.guide import situations, standing

    found: list[tuple[Any, Any]] = [(one, standing(one.rows)) for one in situations(frames)]
    check(bool(found), "frames", list(frames), "at least one study with results")
    slugs = list(dict.fromkeys(slug for _, table in found for slug in sorted(table.index, key=_place)))
    gaps = np.full((len(slugs), len(found)), np.nan)
    for column, (_, table) in enumerate(found):
        for slug in table.index:
            gaps[slugs.index(slug), column] = -abs(table.loc[slug, "gap"])
    with paper():
        figure = picture(max(6.9, 2.3 + 0.78 * len(found)), 1.65 + 0.32 * len(slugs))
        wide, tall = figure.get_figwidth(), figure.get_figheight()
        ax = figure.add_axes((1.45 / wide, 0.42 / tall, min(0.78 * len(found), wide - 1.6) / wide, 1 - 1.6 / tall))
        figure.text(0.02, 1 - 0.16 / tall, "Best in each situation, and how far behind it the others are",
                    weight="bold", fontsize=10.5, va="top")  # fmt: skip
        ax.imshow(gaps, cmap="YlGnBu_r", vmin=min(-0.15, float(np.nanmin(gaps))), vmax=0.06, aspect="auto")
        for column, (_, table) in enumerate(found):
            for slug, row in table.iterrows():
                y = slugs.index(str(slug))
                dark = gaps[y, column] < 0.5 * min(-0.15, float(np.nanmin(gaps)))
                best = slug == table.index[0]
                text = f"{row['mean']:.2f}" if best else f"−{abs(row['gap']):.2f}".replace("−0.00", "0.00")
                ax.text(column, y, f"{text}{' •' if row['tied'] and not best else ''}", fontsize=8, ha="center",
                        va="center", color="white" if dark else INK, weight="bold" if best else "normal")  # fmt: skip
            ax.plot([column], [slugs.index(str(table.index[0]))], "s", ms=22, mfc="none", mec=INK, mew=1.6)
        ax.grid(False)
        ax.set_yticks(range(len(slugs)), [name(slug) for slug in slugs])
        for tick, slug in zip(ax.get_yticklabels(), slugs, strict=True):
            tick.set(color=darker(look(slug).colour), weight="bold", size=8.8)
        heads = [f"{one.study}\n{one.words.replace(', ', chr(10))}" for one, _ in found]
        ax.xaxis.tick_top()
        ax.set_xticks(range(len(found)), heads, fontsize=7.8, color=SOFT)
        ax.tick_params(length=0)
        for spine in ax.spines.values():
            spine.set_visible(False)
        footer(figure, "framed: best mean; others: how far behind; •: cannot be told from the best (95 %, all pairs)")
    return figure


def _place(slug: str) -> int:
    """Where a method stands in the table."""
    from fedlora_lab.methods import ALL

    return list(ALL).index(slug) if slug in ALL else len(ALL)
