"""Draws closed forms against measurements: means, bands, ratios and trade-off curves."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, NullLocator

from fedlora_lab import theory
from fedlora_lab._utils.validation import check, check_number
from fedlora_lab.plots import style
from fedlora_lab.plots.style import Picture, darken, panels, paper
from fedlora_lab.plots.tidy import confidence_interval
from fedlora_lab.privacy.ledger import Ledger
from fedlora_lab.theory.products import Band

COLOURS = (style.INK, style.FACTOR["B"], style.FACTOR["A"], style.RIGHT)
PART_COLOURS = (style.GREY, style.FACTOR["B"], style.FACTOR["A"])
NUMBERS = ["mean", "low", "high", "closed"]


def _hits(table: Any) -> Any:
    """Tells which rows have the closed form in their interval [low, high]."""
    return (table["low"] <= table["closed"]) & (table["closed"] <= table["high"])


def share_inside(measured: Any) -> float:
    """Computes the share of measurements that agree with their closed form.
    These are rows of the table of `theory_check` whose interval holds it, or values in the bands of
    `band_check`.

    Raises: ``ValueError`` for no measurement, or a table without x, mean, low, high or closed.
    Guarantees: test_band_check_draws_every_dot.
    """
    if isinstance(measured, pd.DataFrame):
        missing = [name for name in ("x", *NUMBERS) if name not in measured.columns]
        words = f"also {', '.join(missing)}, and rows"
        check(not missing and len(measured) > 0, "table.columns", list(measured.columns), words)
        return float(_hits(measured).mean())
    check(isinstance(measured, Mapping), "measured", type(measured).__name__, "a frame or mapping")
    pairs = [pair for one in measured.values() for pair in zip(one.bands, one.values, strict=True)]
    hits = [value in band for band, row in pairs for value in np.ravel(row)]
    check(bool(hits), "checks", dict(measured), "at least one measurement")
    return float(np.mean(hits))


def theory_check(
    table: Any, *, x: str, y: str, title: str, parts: Mapping[str, Any] | None = None
) -> Picture:
    """Draws closed forms as lines, measured means with intervals, and their ratio below.
    Both axes are logarithmic. For single measurements see `band_check`.

    Args:
        table: one row a measurement: x, mean, low, high (of the measured mean), closed (the closed
            form), and ``group`` where several curves share the figure; all > 0. A dot whose
            interval misses the line is red.
        x, y, title: words for the axes, with units, and the figure.
        parts: column name -> words, further closed forms, drawn dashed.

    Raises: ``ValueError`` when a column is missing.
    Guarantees: the footer states `share_inside`
        (test_lesson_02.py::test_the_figure_counts_what_lies_inside).
    """
    groups = table["group"] if "group" in table.columns else [""] * len(table)
    share = share_inside(table)
    ratio = table.assign(**{name: table[name] / table["closed"] for name in NUMBERS})
    lowest, labels = float(table["low"].min()) / 2.5, []

    def line(column: str, rows: Any, words: str, **drawn: Any) -> None:
        means = rows.groupby("x")[column].mean()
        labels.append(style.named_line(ax, means.index, means, words, **drawn))

    with paper():
        places = (0.09, 0.385, 0.63, 0.555), (0.09, 0.135, 0.63, 0.185)
        figure, (ax, under) = panels(8.6, 5.2, *places)
        ax.set(xscale="log", yscale="log", ylabel=y)
        ax.set_title(title)
        far = max(0.05, 1.2 * float((ratio[["low", "high"]] - 1).abs().max().max()))
        under.axhline(1, color=style.GREY, lw=1.2)
        under.set(xscale="log", xlabel=x, ylim=(1 - far, 1 + far))
        under.set_ylabel("measured /\nclosed form")
        for i, (group, rows) in enumerate(table.groupby(groups, sort=False)):
            colour = COLOURS[i % len(COLOURS)]
            line("closed", rows, str(group) or "closed form", colour=colour, lw=2)
            _error_bars(ax, rows, colour)
            _error_bars(under, ratio.loc[rows.index], colour)
        for i, (column, words) in enumerate((parts or {}).items()):
            line(
                column, table, words, colour=PART_COLOURS[i % 3], lw=1.3, ls=style.DASHED, zorder=1
            )
        highest = 2 * float(table["high"].max())
        ax.set_ylim(lowest, highest)
        if highest < 30 * lowest:  # powers of ten alone would leave one tick or two
            plain = (m * 10.0**power for power in range(-9, 9) for m in (1, 2, 5))
            style.log_axis(ax.yaxis, tuple(at for at in plain if lowest < at < highest))
        for each in (ax, under):
            each.set_xlim(float(table["x"].min()) / 1.15, float(table["x"].max()) * 1.15)
            if table["x"].nunique() <= 8:
                each.xaxis.set_minor_locator(NullLocator())
                each.xaxis.set_major_locator(FixedLocator(sorted(table["x"].unique())))
            each.xaxis.set_major_formatter("{x:g}")
        ax.tick_params(labelbottom=False)
        style.draw_labels(ax, [label for label in labels if label.y > lowest], together=False)
        words = "dots: measured means, bars: their 95 % interval (red: misses the line), lines: "
        words += f"closed form; inside: {share:.0%} of {len(table)}"
        style.footer(figure, words)
    return figure


def _error_bars(ax: Any, rows: Any, colour: str) -> None:
    held = _hits(rows)
    for part, ink in ((rows[held], colour), (rows[~held], style.WRONG)):
        bars = [part["mean"] - part["low"].clip(lower=1e-300), part["high"] - part["mean"]]
        if len(part):
            drawn: Any = {"fmt": "none", "ecolor": darken(ink), "elinewidth": 1.1, "zorder": 3}
            ax.errorbar(part["x"], part["mean"], yerr=bars, **drawn)
            style.dots(ax, part["x"], part["mean"], ink, 4.6, mew=0.7, zorder=4)


class Measurements(NamedTuple):
    """Measurements at some places, and the bands of their closed form.

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


def band_check(
    checks: Mapping[str, Measurements],
    *,
    title: str,
    x: str,
    y: str,
    log: str = "xy",
    ghost: tuple[str, Sequence[float], Sequence[float]] | None = None,
) -> Picture:
    """Draws closed forms with the 95 % band of one measurement, and measurements as dots.
    The share inside is stated. For means with their own intervals see `theory_check`.

    Args:
        checks: name -> `Measurements`; a method's slug is written as its name.
        title, x, y: words for the figure and the axes, with units.
        log: the axes that are logarithmic: "", "x", "y" or "xy".
        ghost: words, x and y of a dashed line for what one might have expected.

    Guarantees: every measurement is drawn, and the share stated is `share_inside`
        (test_band_check_draws_every_dot).
    """
    share, rng = share_inside(checks), np.random.default_rng(0)
    labels = []
    with paper():
        figure, (ax,) = panels(8.2, 4.3, (0.095, 0.14, 0.62, 0.72))
        ax.set(**{f"{axis}scale": "log" if axis in log else "linear" for axis in "xy"})
        for i, (key, one) in enumerate(checks.items()):
            colour = one.colour or style.look(key).colour
            places, bands = np.asarray(one.x, float), one.bands
            mean, low, high = np.array([(b.mean, b.low, b.high) for b in bands]).T
            label = style.named_line(ax, places, mean, style.name(key), colour, low, high, lw=1.8)
            labels.append(label)
            # Dots stand beside their place, by shares of the smallest gap between places.
            axis = np.log(places) if "x" in log else places
            gap = float(np.min(np.diff(axis))) if len(places) > 1 else 0.1
            for place, row in zip(places, one.values, strict=True):
                aside = 0.2 * (i - (len(checks) - 1) / 2)
                shift = (aside + rng.uniform(-0.08, 0.08, np.size(row))) * gap
                where = place * np.exp(shift) if "x" in log else place + shift
                pale: Any = {"mew": 0, "alpha": 0.55}
                style.dots(ax, where, np.ravel(row), darken(colour, 0.55), 2.6, **pale)

        if ghost is not None:
            words, across, up = ghost
            drawn: Any = {"lw": 1.4, "ls": style.DASHED}
            labels.append(style.named_line(ax, across, up, words, style.SOFT, **drawn))
        ticks = sorted({float(place) for one in checks.values() for place in one.x})
        if len(ticks) <= 10:
            ax.set_xticks(ticks, [f"{place:g}" for place in ticks], minor=False)
            ax.xaxis.minorticks_off()
        if "y" in log:
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_formatter(NullFormatter())
        ax.set(xlabel=x, ylabel=y)
        ax.margins(x=0.08)
        ax.set_title(title, pad=22)
        count = sum(np.size(row) for one in checks.values() for row in one.values)
        words = f"dots: {count:,} measurements, {share:.1%} of them inside"
        words = f"line and band: closed form, 95 %; {words}"
        style.note(ax, 0, 1.03, words, size=8.5, va="bottom")
        edge = float(ax.get_xlim()[1])
        style.draw_labels(ax, [label._replace(x=edge) for label in labels], together=False)
    return figure


# Tables of measured and expected values, whose ratio stands in a panel of its own


def mean_row(*keys: Any, values: Any, expected: float) -> tuple:
    """Makes one row of `ratio_table`: the mean of some seeds' values with its Student band.

    Args: keys: of the row; values: one a seed; expected: the closed form.
    """
    low, high = confidence_interval(values)
    return *keys, float(np.mean(values)), expected, (high - low) / 2


def ratio_table(rows: list[tuple], *keys: str) -> Any:
    """Tabulates measurements: keys, measured, expected, half (of the 95 % band), inside."""
    table = pd.DataFrame(rows, columns=[*keys, "measured", "expected", "half"])
    return table.assign(inside=(table["measured"] - table["expected"]).abs() <= table["half"])


def ratio_panels(room: float = 0.0) -> tuple[Picture, Any, Any]:
    """Makes axes for values and for measured over closed form; ``room`` is for labels."""
    figure, axes = style.row(10.2, 3.9, (0.17, 0.73), (0.065, 0.45 - room), (0.6, 0.385))
    return figure, *axes


def draw_ratios(ax: Any, x: Any, part: Any, colour: str) -> None:
    """Draws measured over expected, each dot with its band around 1; red where it misses the band.

    Args: ax, x, colour: what stands where; part: rows of a `ratio_table`.
    """
    slack = part["half"] / part["expected"]
    ax.vlines(x, 1 - slack, 1 + slack, color=colour, alpha=0.3, lw=6)
    ink = [colour if inside else style.WRONG for inside in part["inside"]]
    ratio = part["measured"] / part["expected"]
    ax.scatter(x, ratio, s=30, c=ink, edgecolors=style.CARD, zorder=3)


def finish_ratios(figure: Any, right: Any, table: Any, seeds: Any, more: str = "") -> None:
    """Writes the share inside, the line at 1, and a footer that says what a dot is.

    Args: figure, right, table: of the check; seeds, more: what a dot is a mean over.
    """
    right.axhline(1, color=style.INK, lw=1)
    right.set(ylabel="measured / closed form")
    right.set_title(f"{table['inside'].mean():.0%} of {len(table)} dots inside their 95 % band")
    bar = "bar: 95 % of such means lie here if the closed form is right (red: misses)"
    style.footer(figure, f"each dot: mean over {seeds} seeds{more}; {bar}")


# ---- what a promise leaves to attackers: members found against others accused


HUES = (style.WRONG, style.FACTOR["A"], style.FACTOR["B"], style.RIGHT, style.INK)


@style.paper()
def tradeoff(
    ledger: Ledger,
    attacks: Mapping[str, Any] | None = None,
    lowest: float = 1e-3,
    title: str = "Who was in the training data?",
) -> style.Picture:
    """Draws the trade-off curve of a ledger on log axes; what no attacker reaches is shaded.

    The curve comes from the composed privacy loss. The dashed line is all that epsilon at one delta
    says; it lies above.

    Args:
        ledger: of a run, or a composition.
        attacks: words -> `attacks.Membership`, drawn below the curve.
        lowest: the left and lower end of the axes, in (0, 0.1].
        title: the finding.

    Raises: `Uncertified` where the ledger states no epsilon.
    Guarantees: test_the_curve_is_the_ledgers_and_the_dashed_line_lies_above.

    >>> import fedlora_lab as fl
    >>> ledger = fl.Privacy(noise_multiplier=3.0, sample_rate=0.1).ledger(releases=512)
    >>> fl.plots.tradeoff(ledger).axes[0].get_title(loc="left")
    'Who was in the training data?'
    """
    check_number("lowest", lowest, 0, 0.1, open_low=True)
    grid, attacks = np.geomspace(lowest, 1, 200), attacks or {}
    allowed, spent = ledger.tradeoff(grid), ledger.epsilon()
    loose = theory.membership_bound(grid, spent, ledger.delta)
    figure, (ax,) = style.panels(7.4, 4.8, (0.1, 0.16, 0.87, 0.76))
    ax.set(xscale="log", yscale="log", xlim=(lowest, 1), ylim=(lowest, 1))
    ax.fill_between(grid, allowed, 1, color=style.WRONG, alpha=0.09, lw=0)
    ax.plot(grid, allowed, color=style.WRONG, lw=1.8)
    ax.plot(grid, loose, color=style.WRONG, lw=1.2, ls=style.DASHED)
    ax.plot(grid, grid, color=style.GREY, lw=1.2, ls=style.DOTTED)
    bold: Any = {"weight": "bold", "va": "top"}
    style.note(ax, 0.025, 0.987, "impossible", style.WRONG, 9, **bold)
    # Beside the diagonal, at any height of the axes.
    style.note(ax, 0.2, 0.175, "guessing", size=8.5, rotation=33, ha="center", va="center")
    for i, (words, one) in enumerate(attacks.items()):
        accused, members = (np.maximum(share, lowest) for share in one.curve())
        hue, y = HUES[1 + i % (len(HUES) - 1)], 0.03 + 0.055 * (len(attacks) - 1 - i)
        ax.plot(accused, members, color=hue, lw=2, drawstyle="steps-post")
        style.note(ax, 0.985, y, f"{words}: AUC {one.auc:.2f}", hue, 9, ha="right", weight="bold")
    ax.set(xlabel="share of others accused (false positive rate)", ylabel="share of members found")
    ax.set_title(title)
    for axis in (ax.xaxis, ax.yaxis):
        style.log_axis(axis, tuple(tick for tick in (0.001, 0.01, 0.1, 1) if tick >= lowest))
    loosely = f"dashed: all that ε = {spent:.3g} at δ = {ledger.delta:g} says"
    words = f"red: composed privacy loss, advantage at most {ledger.advantage():.2g}; {loosely}"
    style.footer(figure, words + ("; AUC 0.5 is guessing" if attacks else ""))
    return figure
