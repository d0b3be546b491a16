"""What an audit can show: a dial, the ceiling over the number of canaries, many draws of one release, a table drawn."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fedlora_lab.audit import game as games
from fedlora_lab.audit import threshold, verdict
from fedlora_lab.checks import check
from fedlora_lab.plots.clipping import log_axis
from fedlora_lab.plots.curves import footer
from fedlora_lab.plots.labels import Label, beside
from fedlora_lab.plots.promise import WITH, WITHOUT
from fedlora_lab.plots.style import CARD, FAINT, GREY, INK, RIGHT, SOFT, WRONG, Picture, darker, name, paper, picture

if TYPE_CHECKING:
    import pandas as pd

EDGE = 13.0
KINDS = {"any mechanism": "#0F7F94", "Gaussian noise": "#7A4FD0"}
LEVELS = ("#0072B2", "#D55E00", "#7A4FD0", "#169C78")


def audit_dial(canaries: int = 200, epsilon: float = 2.0, leak: float = 1.0) -> tuple[Picture, str]:
    """One one-run audit of the plainest release: what is seen of the canaries, and the three numbers.

    Args: as of `audit.game.game`; at most 5,000 canaries.
    Returns: the figure, its axes the same whatever the numbers, and a sentence.
    Guarantees: test_lesson_12.py::test_the_dial_says_what_it_shows.
    """
    check(canaries <= 5000, "canaries", canaries, "at most 5000")
    one = games.game(canaries, epsilon, leak)
    with paper():
        figure = picture(9.6, 3.3)
        left, right = figure.add_axes((0.05, 0.2, 0.36, 0.66)), figure.add_axes((0.475, 0.2, 0.505, 0.66))
        _dots(left, one)
        _line(right, one)
    return figure, _words(one)


def _dots(ax: Any, one: games.Game) -> None:
    """The canaries' numbers in noise deviations; those that took part above."""
    rng, some = np.random.default_rng(1), slice(0, 400)
    for row, (words, colour) in enumerate((("out", WITHOUT), ("in", WITH))):
        values = one.scores[one.included == bool(row)][some] / one.sigma
        place = row + rng.uniform(-0.24, 0.24, len(values))
        ax.plot(values.clip(-5.8, 11.8), place, "o", ms=3, color=colour, mew=0, alpha=0.55)
        ax.text(-0.02, row, words, color=darker(colour), weight="bold", ha="right", va="center",
                transform=ax.get_yaxis_transform())  # fmt: skip
    ax.set(xlim=(-6, 12), ylim=(-0.5, 1.5), yticks=[], xlabel="what is seen of a canary (noise deviations)")
    ax.grid(visible=False, axis="y")
    ax.set_title("The further apart, the easier to guess")


def _line(ax: Any, one: games.Game) -> None:
    """The line of epsilons: proved, provable, stated, true."""
    colour = WRONG if one.caught else RIGHT
    ax.plot([0, EDGE], [0, 0], color=FAINT, lw=10, solid_capstyle="butt")
    ax.plot([0, min(one.lower, EDGE)], [0, 0], color=colour, lw=10, solid_capstyle="butt")
    ax.text(0, -0.24, f"proved {one.lower:.2f}", color=colour, weight="bold", va="top")
    marks = sorted([
        (one.ceiling, f"{len(one.scores)} canaries can show {one.ceiling:.2f}", SOFT),
        (one.stated, f"the ledger states {one.stated:g}", INK),
        (one.true, f"true {one.true:.2f}", WRONG if one.true > one.stated + 1e-6 else GREY),
    ])  # fmt: skip
    for (value, words, ink), height in zip(marks, (0.9, 0.62, 0.34), strict=True):  # words pass over the lower lines
        at = min(value, EDGE)
        ax.plot([at, at], [-0.1, height - 0.06], color=ink, lw=1.2)
        ax.plot([at], [0], "D" if ink is INK else "|", color=ink, ms=7 if ink is INK else 13, mew=1.6, mec=ink)
        right = at < 0.62 * EDGE
        side = "left" if right else "right"
        ax.text(at, height, f" {words}" if right else f"{words} ", color=ink, ha=side, va="center")
    ax.set(xlim=(-0.15, EDGE), ylim=(-0.6, 1.1), yticks=[], xlabel="ε at δ = 0.00001")
    ax.grid(visible=False, axis="y")
    title = "The audit refutes the ledger" if one.caught else "The audit does not contradict the ledger"
    ax.set_title(title, color=colour)


def _words(one: games.Game) -> str:
    bug = "no bug" if one.true <= one.stated + 1e-6 else f"a bug that makes the true ε {one.true:.2f}"
    start = f"{len(one.scores)} canaries, the ledger states ε = {one.stated:g}, {bug}: the audit proves {one.lower:.2f}"
    if one.caught:
        return f"{start}, more than stated. Caught."
    if one.ceiling < one.stated:
        return f"{start}; it could prove {one.ceiling:.2f} at most, so no bug of any size can be caught."
    return f"{start} of the {one.ceiling:.2f} it could prove at most; nothing is refuted, nothing shown to be sound."


def audit_ceilings(epsilons: Sequence[float] = (1.0, 3.0, 8.0)) -> Picture:
    """The largest epsilon that an audit can show when every guess is right, over canaries of one run, or runs.

    Args: epsilons: promises to mark.
    Guarantees: the lines are `one_run.ceiling` and `threshold.ceiling` (test_the_ceilings_are_drawn).
    """
    counts = np.unique(np.geomspace(10, 2000, 28).astype(int))
    one = [games.most(int(m), games.DELTA, 0.05) for m in counts]
    many = [threshold.ceiling(int(m) // 2, games.DELTA, 0.05) for m in counts]
    with paper():
        figure = picture(8.2, 3.7)
        ax = figure.add_axes((0.075, 0.15, 0.72, 0.74))
        for epsilon in epsilons:
            ax.axhline(epsilon, color=GREY, lw=1, ls=(0, (3, 2)))
            ax.text(1900, epsilon, f"a promise of {epsilon:g}", color=SOFT, fontsize=8, ha="right", va="bottom")
        ax.plot(counts, one, color=INK, lw=2.2)
        ax.plot(counts, many, color=KINDS["any mechanism"])
        ax.set(xscale="log", ylim=(0, 9), xlabel="canaries in one run, or runs in all", ylabel="ε at δ = 0.00001")
        log_axis(ax.xaxis, (10, 30, 100, 300, 1000, 2000))
        ax.set_xlim(10, 2000)
        ax.set_title("What can be shown when every guess is right")
        ends = (one[-1], "one run,\nmany canaries", INK), (many[-1], "many runs,\none canary", KINDS["any mechanism"])
        beside(ax, [Label(2000, *end) for end in ends], together=False)
    return figure


def repeated_audits(found: "dict[int, dict[str, np.ndarray]]", epsilon: float) -> Picture:
    """Lower bounds from independent draws, over the number of runs: mean and the middle 95 % of the repeats.

    Args: found: runs -> what `audit.game.repeated` gives. epsilon: the truth.
    Guarantees: dots are the means (test_the_repeated_audits_are_drawn).
    """
    check(bool(found), "found", found, "at least one number of runs")
    runs = sorted(found)
    with paper():
        figure = picture(8.2, 3.9)
        ax = figure.add_axes((0.075, 0.17, 0.72, 0.72))
        labels = []
        for kind, colour in KINDS.items():
            means = [float(found[n][kind].mean()) for n in runs]
            low, high = (np.array([np.quantile(found[n][kind], q) for n in runs]) for q in (0.025, 0.975))
            ax.fill_between(runs, low, high, color=colour, alpha=0.16, lw=0)
            ax.plot(runs, means, "o-", color=colour, mec=CARD)
            labels.append(Label(runs[-1], means[-1], kind, colour))
        ceilings = [threshold.ceiling(n, games.DELTA, 0.05) for n in runs]
        ax.plot(runs, ceilings, color=GREY, lw=1.2, ls=(0, (3, 2)))
        ax.axhline(epsilon, color=INK, lw=1.4)
        labels += [Label(runs[-1], epsilon, f"the truth: {epsilon:g}", INK)]
        ax.text(runs[0], 2.0 * epsilon, "  dashed: if no guess were wrong", color=SOFT, fontsize=8, va="top")
        ax.set(xscale="log", xlim=(runs[0], runs[-1]), ylim=(0, 2.1 * epsilon))
        ax.set(xlabel="runs with the canary, and as many without", ylabel="proved ε at δ = 0.00001")
        log_axis(ax.xaxis, tuple(runs))
        ax.set_title("Every run costs a training, and proves a little more")
        beside(ax, labels, together=False)
        footer(figure, f"dots: mean of {len(found[runs[0]]['any mechanism'])} audits; bands: the middle 95 % of them")
    return figure


def audit_results(frame: "pd.DataFrame") -> Picture:
    """A table of audits drawn: every lower bound as a dot, the ceiling as a tick, the ledger's epsilon as a diamond.

    The last line says how many of the audits could have contradicted their ledger at all.

    Args: frame: columns method, unit, noise_multiplier, epsilon_lower, ceiling, epsilon_upper, as results/audit.csv;
        a lower bound that is NaN is that of an invalid audit, drawn as a cross.
    Guarantees: every row is a dot or a cross (test_the_results_are_all_drawn).
    """
    check(len(frame) > 0, "frame", f"{len(frame)} rows", "at least one audit")
    methods, units = list(dict.fromkeys(frame["method"])), list(dict.fromkeys(frame["unit"]))
    height = 1.5 + 0.23 * len(methods)
    with paper():
        figure = picture(9.8, height)
        bottom, share = 0.82 / height, 1 - 1.4 / height
        width = 0.81 / len(units)
        for place, unit in enumerate(units):
            ax = figure.add_axes((0.155 + place * width, bottom, width - 0.03, share))
            _table(ax, frame[frame["unit"] == unit], methods)
            ax.set_title(f"one {unit} is promised")
            ax.set_yticks(range(len(methods)), [name(m) for m in methods] if place == 0 else [])
        noises = sorted(frame["noise_multiplier"].unique())
        for i, sigma in enumerate(noises):
            place = 0.155 + 0.1 * i, 1 - 0.2 / height
            figure.text(*place, f"● σ = {sigma:g}", color=LEVELS[i], fontsize=9, weight="bold", va="center")
        words = "dot: proved by one audit,   tick: can be proved at most,   diamond: the ledger"
        words += ",   cross: invalid" if bool(frame["epsilon_lower"].isna().any()) else ""
        figure.text(0.985, 1 - 0.2 / height, words, color=SOFT, fontsize=9, ha="right", va="center")
        footer(figure, verdict(frame).replace("epsilon", "ε"))
    return figure


def _table(ax: Any, part: Any, methods: "list[str]") -> None:
    rng = np.random.default_rng(0)
    noises = sorted(part["noise_multiplier"].unique())
    for i, sigma in enumerate(noises):
        shift = 0.3 * (i - (len(noises) - 1) / 2)
        for row, method in enumerate(methods):
            here = part[(part["method"] == method) & (part["noise_multiplier"] == sigma)]
            y = row + shift
            dots = here["epsilon_lower"].clip(lower=0.05)
            places = y + rng.uniform(-0.1, 0.1, len(here))
            ax.plot(dots, places, "o", ms=2.6, mew=0, color=LEVELS[i], alpha=0.5)
            if dots.isna().any():
                ax.plot([0.05] * int(dots.isna().sum()), places[dots.isna()], "x", ms=4, color=WRONG)
            ax.plot(here["ceiling"].max(), y, "|", ms=6, color=GREY)
            upper = here["epsilon_upper"].max()
            ax.plot(upper, y, "D", ms=3.6, color=LEVELS[i], mec=CARD, mew=0.4) if np.isfinite(upper) else None
    ax.set(xscale="log", xlim=(0.045, 60), ylim=(len(methods) - 0.4, -0.6), xlabel="ε at δ = 0.00001")
    log_axis(ax.xaxis, (0.1, 0.3, 1, 3, 10, 30))
    ax.set_xticks([0.05, 0.1, 0.3, 1, 3, 10, 30], ["none", "0.1", "0.3", "1", "3", "10", "30"])
    ax.tick_params(axis="y", labelsize=8, length=0)
