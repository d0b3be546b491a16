"""A closed form with its 95 % band, and single measurements as dots."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter

from fedlora_lab.checks import check
from fedlora_lab.plots.labels import Label, beside
from fedlora_lab.plots.style import SOFT, Picture, darker, look, name, paper, picture
from fedlora_lab.theory import Band


class Measured(NamedTuple):
    """What was measured and what the closed form says of it.

    Args:
        x: places, (n,), > 0 on a logarithmic axis.
        values: at each place, n arrays of any length.
        bands: closed form of one measurement at each place, n of them.
        colour: of line and dots; ``None``: that of the method whose slug is the name.
    """

    x: Sequence[float]
    values: Sequence[Any]
    bands: Sequence[Band]
    colour: str | None = None


def share_inside(checks: Mapping[str, Measured]) -> float:
    """Share of all measurements that lie in the closed form's band.

    Guarantees: test_share_inside_counts_what_is_drawn.
    """
    hits = [value in band for one in checks.values() for band, row in zip(one.bands, one.values, strict=True)
            for value in np.ravel(row)]  # fmt: skip
    check(bool(hits), "checks", dict(checks), "at least one measurement")
    return float(np.mean(hits))


def _one(ax: Any, one: Measured, colour: str, rng: np.random.Generator, logarithmic: bool, aside: float) -> None:
    """Band, line, and dots spread ``aside`` of their place, in units of the smallest gap between places."""
    x, bands = np.asarray(one.x, float), one.bands
    ax.fill_between(x, [b.low for b in bands], [b.high for b in bands], color=colour, alpha=0.2, lw=0)
    ax.plot(x, [b.mean for b in bands], color=colour, lw=1.8)
    gap = float(np.min(np.diff(np.log(x) if logarithmic else x))) if len(x) > 1 else 0.1
    for place, row in zip(x, one.values, strict=True):
        values = np.ravel(row)
        shift = (aside + rng.uniform(-0.08, 0.08, len(values))) * gap
        where = place * np.exp(shift) if logarithmic else place + shift
        ax.plot(where, values, ls="none", marker="o", ms=2.6, mew=0, color=darker(colour, 0.55), alpha=0.55)


def _ticks(ax: Any, places: list[float], log: str) -> None:
    """A tick for every place where they are few; plain numbers on a logarithmic axis."""
    if len(places) <= 10:
        ax.set_xticks(places, [f"{place:g}" for place in places], minor=False)
        ax.xaxis.minorticks_off()
    if "y" in log:
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter(NullFormatter())


def band_check(
    checks: Mapping[str, Measured],
    *,
    title: str,
    x: str,
    y: str,
    log: str = "xy",
    ghost: tuple[str, Sequence[float], Sequence[float]] | None = None,
) -> Picture:
    """Closed forms (line and 95 % band of one measurement) against measurements (dots); the share inside is stated.

    Where means with their own intervals are to be shown, see `against`.

    Args:
        checks: name -> `Measured`; a method's slug is written as its name.
        title, x, y: words for the title and the axes, with units.
        log: the axes that are logarithmic: "", "x", "y" or "xy".
        ghost: words, x and y of a dashed line for what one might have expected.
    Guarantees: every measurement is drawn, and the share stated is `share_inside` (test_band_check_draws_every_dot).
    """
    share, rng = share_inside(checks), np.random.default_rng(0)
    with paper():
        figure = picture(8.2, 4.3)
        ax = figure.add_axes((0.095, 0.14, 0.62, 0.72))
        ax.set_xscale("log" if "x" in log else "linear")
        ax.set_yscale("log" if "y" in log else "linear")
        ends: list[tuple[float, str, str]] = []
        for i, (key, one) in enumerate(checks.items()):
            colour = one.colour or look(key).colour
            _one(ax, one, colour, rng, "x" in log, 0.2 * (i - (len(checks) - 1) / 2))
            ends.append((one.bands[-1].mean, name(key), colour))
        if ghost is not None:
            ax.plot(ghost[1], ghost[2], color=SOFT, lw=1.4, ls=(0, (4, 2)))
            ends.append((float(ghost[2][-1]), ghost[0], SOFT))
        _ticks(ax, sorted({float(place) for one in checks.values() for place in one.x}), log)
        ax.set(xlabel=x, ylabel=y)
        ax.margins(x=0.08)
        ax.set_title(title, pad=22)
        count = sum(np.size(row) for one in checks.values() for row in one.values)
        words = f"line and band: closed form, 95 %; dots: {count:,} measurements, {share:.1%} of them inside"
        ax.text(0, 1.03, words, transform=ax.transAxes, fontsize=8.5, color=SOFT, va="bottom")
        edge = float(ax.get_xlim()[1])
        beside(ax, [Label(edge, *end) for end in ends], together=False)
    return figure
