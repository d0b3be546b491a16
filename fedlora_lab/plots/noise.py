"""The three energies that noise brings into the product (B + ξ_B)(A + ξ_A)."""

from typing import Any

import numpy as np
import pandas as pd

from fedlora_lab.plots import tidy
from fedlora_lab.plots.curves import footer, left_out
from fedlora_lab.plots.style import FACTOR, SOFT, Picture, name, paper, picture

# measure: colour key, marker, words
TERMS = {
    "noise_B": ("B", "o", "$\\xi_B A$   noise on B"),
    "noise_A": ("A", "s", "$B \\xi_A$   noise on A"),
    "noise_BA": ("BA", "D", "$\\xi_B \\xi_A$   noise times noise"),
}


def energies(frame: pd.DataFrame) -> Any:
    """Energy of each term in a round: summed over layers, then the mean over the rounds in which noise was added.

    Columns method, seed, term, value.
    """
    parts = []
    for term in TERMS:
        part = tidy.rows(frame, term, layers=True)
        part = part[part["round"] > 0] if (part["round"] > 0).any() else part
        total = part.groupby(["method", "seed", "round"], sort=False)["value"].sum()
        mean = total.groupby(["method", "seed"], sort=False).mean().reset_index()
        parts.append(mean.assign(term=term))
    return pd.concat(parts, ignore_index=True)


def _points(ax: Any, some: Any, slugs: list[str]) -> None:
    """The terms that are there: geometric mean over seeds, and its band."""
    import seaborn  # slow to import, and the live figures do without

    sns: Any = seaborn  # its stubs know no dodge in data units
    low, high = np.log10(some["value"].min()), np.log10(some["value"].max())
    ax.set_xscale("log")
    ax.set_xlim(10 ** (low - 0.22 * (high - low) - 0.5), 10 ** (high + 0.3))
    sns.pointplot(
        data=some,
        y="method",
        x="value",
        hue="term",
        order=slugs,
        hue_order=list(TERMS),
        ax=ax,
        orient="y",
        dodge=0.46,
        palette={t: FACTOR[f] for t, (f, _, _) in TERMS.items()},
        log_scale=(True, False),
        markers=[m for _, m, _ in TERMS.values()],
        errorbar=tidy.band,
        linestyle="none",
        legend=False,
        markersize=6,
        err_kws={"lw": 1.4},
    )


def _absent(ax: Any, table: Any, slugs: list[str], edge: float) -> None:
    """An open mark at the left edge for a term that is zero."""
    worst = table.groupby(["method", "term"])["value"].max()
    offsets = dict(zip(TERMS, (-0.23, 0.0, 0.23), strict=True))
    for (slug, term), value in worst.items():
        if value <= 0:
            factor, marker, _ = TERMS[term]
            place = slugs.index(slug) + offsets[term]
            ax.plot([edge], [place], marker=marker, mfc="none", mec=FACTOR[factor], ms=5, ls="none", clip_on=False)
            ax.text(edge, place, "   none", color=SOFT, fontsize=7, va="center")


def noise(frame: pd.DataFrame) -> Picture:
    """Measured energies of the noise in the product, ‖s ξ_B A‖², ‖s B ξ_A‖² and ‖s ξ_B ξ_A‖², on a log axis.

    Args: frame: tidy, one task, with the measures noise_B, noise_A and noise_BA of each layer.
    Raises: ``ValueError`` when the frame lacks one of them.
    Guarantees: a term that is zero is drawn as absent (test_noise_says_which_term_is_absent).
    Source: arXiv:2403.12313, the second discordance.
    """
    table = energies(frame)
    slugs = tidy.order(table)
    some = table[table["value"] > 0]
    with paper():
        figure = picture(7.6, 1.6 + 0.5 * len(slugs))
        bottom, top = 0.78 / figure.get_figheight(), 0.72 / figure.get_figheight()
        ax = figure.add_axes((0.17, bottom, 0.80, 1 - bottom - top))
        if len(some):
            _points(ax, some, slugs)
        _absent(ax, table, slugs, ax.get_xlim()[0])
        ax.set_ylim(len(slugs) - 0.5, -0.5)
        ax.set_yticks(range(len(slugs)), [name(slug) for slug in slugs])
        ax.set_ylabel("")
        ax.set_xlabel("energy of the noise in the product per round, summed over layers (squared Frobenius norm)")
        ax.set_title("What the noise adds to B·A", pad=24)
        _key(ax)
        words = tidy.seeds(table).replace("mean of", "geometric mean of")
        footer(figure, words + left_out([slug for slug in tidy.order(frame) if slug not in slugs]))
    return figure


def _key(ax: Any) -> None:
    """The three terms above the axes, each in its colour."""
    for place, (factor, marker, words) in zip((0.0, 0.25, 0.5), TERMS.values(), strict=True):
        colour, axes = FACTOR[factor], {"transform": ax.transAxes, "clip_on": False}
        ax.plot([place + 0.01], [1.045], marker=marker, color=colour, ms=6, **axes)
        ax.text(place + 0.03, 1.045, words, fontsize=8.5, va="center", color=colour, **axes)
