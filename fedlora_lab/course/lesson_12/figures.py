"""Figures of notebook 12: canaries' scores, and ε as proved, provable and stated."""

import textwrap
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fedlora_lab._utils.validation import check
from fedlora_lab.audit import bounds
from fedlora_lab.course.widgets.dial import Dial
from fedlora_lab.plots import style

if TYPE_CHECKING:
    from fedlora_lab.audit.canary_audit import Audit

EDGE = 13.0
EPSILON = "ε at δ = 0.00001"
KINDS = {"any mechanism": style.SERIES[0], "Gaussian noise": style.SERIES[1]}
LEVELS = ("#0072B2", "#D55E00", "#7A4FD0", "#169C78")
PROMISE = (0, (3, 2))
GROUPS = (("out", style.WITHOUT), ("in", style.WITH))
VIEWS = {"loss": "loss of the canaries (black box)", "update": "trace in the updates (white box)"}


def _canaries(ax: Any, values: Any, included: Any, seed: int, size: float, alpha: float) -> None:
    """Draws a dot for each canary, those that took part above those that did not."""
    rng = np.random.default_rng(seed)
    for row, (_, colour) in enumerate(GROUPS):
        part = values[included == bool(row)][:400]
        y = row + rng.uniform(-0.24, 0.24, len(part))
        style.dots(ax, part, y, colour, size, mew=0, alpha=alpha)
    ax.set_ylim(-0.6, 1.6)
    ax.set_yticks((0, 1), [words for words, _ in GROUPS], size=10, weight="bold")
    for tick, (_, colour) in zip(ax.get_yticklabels(), GROUPS, strict=True):
        tick.set_color(style.darken(colour))
    ax.tick_params(axis="y", length=0)
    ax.grid(visible=False, axis="y")


@style.paper()
def one_run_audit(canaries: int = 200, epsilon: float = 2.0, leak: float = 1.0) -> style.Picture:
    """Draws a simulated one-run audit: the canaries' scores, and ε proved, stated and true.

    Args: canaries (at most 5,000), epsilon, leak: as of `audit.simulate_one_run`.
    Returns: the figure, its axes the same whatever the numbers.
    Guarantees: test_lesson_12.py::test_the_one_run_audit_says_what_it_shows.
    """
    check(canaries <= 5000, "canaries", canaries, "at most 5000")
    one = bounds.simulate_one_run(canaries, epsilon, leak)
    figure, (left, ax) = style.panels(9.6, 3.3, (0.05, 0.2, 0.36, 0.66), (0.475, 0.2, 0.505, 0.66))
    _canaries(left, (one.scores / one.sigma).clip(-5.8, 11.8), one.included, 1, 3, 0.55)
    left.set(xlim=(-6, 12), xlabel="what is seen of a canary (noise deviations)")
    left.set_title("The further apart, the easier to guess")
    colour, sound = style.WRONG if one.caught else style.RIGHT, one.true <= one.stated + 1e-6
    for end, ink in ((EDGE, style.FAINT), (min(one.lower, EDGE), colour)):
        ax.plot([0, end], [0, 0], color=ink, lw=10, solid_capstyle="butt")
    ax.text(0, -0.24, f"proved {one.lower:.2f}", color=colour, weight="bold", va="top")
    marks = sorted(
        (
            (one.ceiling, f"{canaries} canaries can show {one.ceiling:.2f}", style.SOFT),
            (one.stated, f"the ledger states {one.stated:g}", style.INK),
            (one.true, f"true {one.true:.2f}", style.GREY if sound else style.WRONG),
        )
    )
    # Words pass over the lower lines.
    for (value, words, ink), height in zip(marks, (0.9, 0.62, 0.34), strict=True):
        at = min(value, EDGE)
        marker, size = ("D", 7) if ink is style.INK else ("|", 13)
        ax.plot([at, at], [-0.1, height - 0.06], color=ink, lw=1.2)
        ax.plot([at], [0], marker, color=ink, ms=size, mew=1.6, mec=ink)
        words, side = (f" {words}", "left") if at < 0.62 * EDGE else (f"{words} ", "right")
        ax.text(at, height, words, color=ink, ha=side, va="center")
    ax.set(xlim=(-0.15, EDGE), ylim=(-0.6, 1.1), yticks=[], xlabel=EPSILON)
    ax.grid(visible=False, axis="y")
    verdict = "refutes" if one.caught else "does not contradict"
    ax.set_title(f"The audit {verdict} the ledger", color=colour)
    return figure


@style.paper()
def power_curves(
    epsilon: float = 3.0,
    leaks: Sequence[float] = (1.5, 2.0, 3.0, 4.0),
    canaries: Sequence[int] = (50, 100, 200, 500, 1000, 2000, 5000),
    repeats: int = 200,
) -> tuple[style.Picture, "pd.DataFrame"]:
    """Draws what audits prove at most and how often they find a bug, over the canaries.

    The attacker is the best there is: he reads every canary from a noised number of its own.

    Args:
        epsilon: stated; it sets the noise.
        leaks: how much louder than the noise was made for each bug makes a canary.
        canaries, repeats: numbers of canaries, and simulated audits of each.
    Returns: (figure, frame): columns kind, canaries, ceiling, leak, power, low, high (95 %
        Clopper-Pearson).
    Guarantees: test_the_power_of_audits_is_that_of_the_bounds.
    """
    check(repeats >= 2, "repeats", repeats, "at least 2")
    sigma, rows = bounds.gaussian_noise_multiplier(epsilon), []
    bound = dict(zip(KINDS, (bounds.one_run_lower_bound, bounds.gaussian_one_run_lower_bound)))
    for m in canaries:
        tried = bounds.default_guesses(m)
        given = bounds.DELTA, 0.05 / len(tried)
        coins = np.random.default_rng(m).random((repeats, m)) < 0.5
        noise = sigma * np.random.default_rng(m + 1).standard_normal((repeats, m))
        # More right guesses prove more: the fewest that refute are found once.
        least: Any = {
            kind: [
                bisect_left(range(sum(g) + 1), epsilon, key=lambda v: lower(m, sum(g), v, *given))
                for g in tried
            ]
            for kind, lower in bound.items()
        }
        top = {
            kind: max(lower(m, sum(g), sum(g), *given) for g in tried)
            for kind, lower in bound.items()
        }
        for leak in leaks:
            pairs = zip(leak * coins + noise, coins, strict=True)
            right = np.array([[bounds.count_correct(*one, g) for g in tried] for one in pairs])
            for kind in bound:
                found = int((right >= least[kind]).any(1).sum())
                low = 1 - bounds.clopper_pearson_upper(repeats - found, repeats, 0.025)
                high = bounds.clopper_pearson_upper(found, repeats, 0.025)
                rows.append((kind, m, top[kind], leak, found / repeats, low, high))
    columns = ["kind", "canaries", "ceiling", "leak", "power", "low", "high"]
    table = pd.DataFrame(rows, columns=columns)
    places = (0.055, 0.17, 0.2, 0.64), (0.355, 0.17, 0.24, 0.64), (0.63, 0.17, 0.24, 0.64)
    figure, axes = style.panels(11.0, 3.7, *places)
    first = table[table["leak"] == leaks[0]]
    labels = []
    for kind, part in first.groupby("kind"):
        line = part["canaries"], part["ceiling"], str(kind), KINDS[str(kind)]
        labels.append(style.named_line(axes[0], *line, lw=2))
    axes[0].axhline(epsilon, color=style.GREY, lw=1.2, ls=PROMISE)
    put: Any = {"transform": axes[0].transData, "ha": "right", "va": "top"}
    style.note(axes[0], canaries[-1], epsilon, "stated", **put)
    axes[0].set(ylim=(0, None), ylabel=EPSILON)
    axes[0].set_title("Provable at most", fontsize=9.5)
    style.draw_labels(axes[0], labels, together=False, wide=10)
    for ax, kind in zip(axes[1:], bound, strict=True):
        labels = []
        for leak, colour in zip(leaks, LEVELS, strict=False):
            part: Any = table[(table["kind"] == kind) & (table["leak"] == leak)]
            line = part["canaries"], part["power"], f"{leak:g} × too loud", colour
            labels.append(style.named_line(ax, *line, part["low"], part["high"], marker="o"))
        ax.set(ylim=(-0.03, 1.03))
        ax.set_title(f"Bugs found: {kind}", fontsize=9.5)
    axes[2].set_yticklabels([])
    style.draw_labels(axes[2], labels, together=False)
    known = table[table["kind"] == next(iter(bound))].groupby("leak")["power"].max()
    hidden = known[known < 0.05]
    who = f"A canary {hidden.index.max():g} × too loud" if len(hidden) else "No bug"
    words = f"{who} escapes the bound for any mechanism"
    figure.text(0.055, 0.97, words, weight="bold", va="top")
    for ax in axes:
        ax.set(xscale="log", xlim=(canaries[0], canaries[-1]), xlabel="canaries")
        style.log_axis(ax.xaxis, tuple(canaries[::3]))
    words = f"stated ε = {epsilon:g}; {repeats} simulated audits a dot, bands: 95 % "
    style.footer(figure, f"{words}(Clopper–Pearson); all bounds 95 % sure")
    return figure, table


@style.paper()
def repeated_audits(found: "dict[int, dict[str, np.ndarray]]", epsilon: float) -> style.Picture:
    """Draws lower bounds from independent audits over the number of runs: mean and middle 95 %.

    Args: found: runs -> what `audit.simulate_many_runs` gives; epsilon: the truth.
    Guarantees: dots are the means (test_the_repeated_audits_are_drawn).
    """
    check(bool(found), "found", found, "at least one number of runs")
    runs, labels = sorted(found), []
    figure, (ax,) = style.panels(8.2, 3.9, (0.075, 0.17, 0.72, 0.72))
    for kind, colour in KINDS.items():
        means = [float(found[n][kind].mean()) for n in runs]
        edges = np.array([np.quantile(found[n][kind], (0.025, 0.975)) for n in runs]).T
        mark: Any = {"marker": "o", "mec": style.CARD}
        labels.append(style.named_line(ax, runs, means, kind, colour, *edges, **mark))
    ceilings = [bounds.threshold_ceiling(n, bounds.DELTA, 0.05) for n in runs]
    ax.plot(runs, ceilings, color=style.GREY, lw=1.2, ls=PROMISE)
    ax.axhline(epsilon, color=style.INK, lw=1.4)
    labels.append(style.Label(runs[-1], epsilon, f"the truth: {epsilon:g}", style.INK))
    words = "  dashed: if no guess were wrong"
    ax.text(runs[0], 2.0 * epsilon, words, color=style.SOFT, fontsize=8, va="top")
    ax.set(xscale="log", xlim=(runs[0], runs[-1]), ylim=(0, 2.1 * epsilon))
    ax.set(xlabel="runs with the canary, and as many without", ylabel=f"proved {EPSILON}")
    style.log_axis(ax.xaxis, tuple(runs))
    ax.set_title("Every run costs a training, and proves a little more")
    style.draw_labels(ax, labels, together=False)
    count = len(found[runs[0]]["any mechanism"])
    style.footer(figure, f"dots: mean of {count} audits; bands: the middle 95 % of them")
    return figure


@style.paper()
def audit_bounds(
    audits: "Audit | Sequence[Audit] | Mapping[str, Audit]", gaussian: bool = False
) -> style.Picture:
    """Draws each audit as a line from its lower bound to the ledger's ε; scores on the left.

    The scores are those of the view that proved most in the first audit, in units of their standard
    deviation. An audit that is invalid has neither scores nor a bound: its reason stands in their
    place. One with an injected bug is held against the nominal epsilon.

    Args: audits: one, several, or label -> audit; without labels the lines are named by method and
        unit; gaussian: a pale bar shows what is proved where the noise is taken for Gaussian.
    Raises: ``ValueError`` without an audit.
    Guarantees: test_the_figure_draws_the_three_numbers.
    """
    if isinstance(audits, Mapping):
        several, labels = list(audits.values()), list(audits)
    else:
        several = list(audits) if isinstance(audits, Sequence) else [audits]
        labels = [f"{style.name(one.method)}, {one.unit}" for one in several]
    check(bool(several), "audits", audits, "at least one audit")
    height = 2.05 + 0.42 * max(4, len(several))
    bottom, share = 0.78 / height, 1 - 1.2 / height
    places = (0.065, bottom, 0.3, share), (0.545, bottom, 0.43, share)
    figure, (left, right) = style.panels(10.2, height, *places)
    _scores(left, several[0])
    _bounds(right, several, gaussian)
    right.set_yticks(range(len(labels))[::-1], labels, color=style.SOFT)
    words = f"bar: proved, {several[0].confidence:.0%} sure; tick: provable at most; "
    words += "diamond: stated" + gaussian * "; pale bar: proved if the noise is Gaussian"
    figure.text(0.985, 0.012, words, fontsize=7.5, color=style.SOFT, ha="right", va="bottom")
    return figure


def _scores(ax: Any, audit: "Audit") -> None:
    """Draws the canaries' scores with their medians, or says why there are none."""
    title = f"{audit.canaries} canaries: "
    if audit.invalid is not None:
        ax.set(xticks=[], yticks=[])
        reason = "\n".join(textwrap.wrap(f"invalid: {audit.invalid}", 34))
        style.note(ax, 0.5, 0.5, reason, style.WRONG, 10, ha="center", va="center")
        ax.set_title(f"{title}no scores", fontsize=9.5)
        return
    view = max(audit.lower, key=lambda key: (audit.lower[key], key == "update"))
    values = audit.scores[view] / (audit.scores[view].std() or 1.0)
    _canaries(ax, values, audit.included, 0, 4, 0.8)
    for row, (_, colour) in enumerate(GROUPS):
        part = values[audit.included == bool(row)]
        if len(part):
            line = {"color": style.darken(colour), "lw": 2}
            ax.plot([np.median(part)] * 2, [row - 0.34, row + 0.34], **line)
    ax.set_xlabel("score, in units of its standard deviation")
    ax.set_title(title + VIEWS.get(view, f"trace in the {view}"), fontsize=9.5)


def _bounds(ax: Any, audits: "list[Audit]", gaussian: bool) -> None:
    """Draws a line for each audit: ε proved, provable at most, and stated."""
    finite = [value for one in audits for value in (one.ceiling, one.claimed) if np.isfinite(value)]
    finite += [one.gaussian_lower for one in audits if gaussian and one.invalid is None]
    edge, butt = 1.45 * max([*finite, 1.0]), {"lw": 6, "solid_capstyle": "butt"}
    for y, one in enumerate(reversed(audits)):
        claimed = np.isfinite(one.claimed)
        end = one.claimed if claimed else 0.7 * edge  # a bar without a diamond
        ax.plot([0, end], [y, y], color=style.FAINT, zorder=1, **butt)
        words, far = f"invalid: {one.invalid}", 0.0
        if one.invalid is None:
            colour = style.look(one.method).colour if one.holds else style.WRONG
            if gaussian:
                ax.plot([0, one.gaussian_lower], [y, y], color=colour, alpha=0.4, **butt)
            ax.plot([0, one.epsilon_lower], [y, y], color=colour, **butt)
            stated = f"{one.claimed:.3g}" if claimed else "not certified"
            words = f"{one.epsilon_lower:.2f} {'≤' if one.holds else '>'} {stated}"
            far = max(end, one.epsilon_lower)
        ax.plot([one.ceiling], [y], "|", color=style.GREY, ms=13, mew=1.6)
        if claimed:
            ax.plot([end], [y], "D", color=style.INK, ms=5.5, mec=style.CARD)
        put = {"xytext": (6, 9), "textcoords": "offset points", "va": "bottom", "fontsize": 8.5}
        ax.annotate(words, (far, y), color=style.INK if one.holds else style.WRONG, **put)
    ax.set(xlim=(0, edge), ylim=(-0.7, len(audits) - 0.3), xlabel=f"ε at δ = {audits[0].delta:g}")
    ax.grid(visible=False, axis="y")
    caught = [one for one in audits if one.invalid is None and not one.holds]
    words = f"{len(caught) or 'None'} of {len(audits)} shown to spend more than stated"
    ax.set_title(words, fontsize=9.5)


def audit_explorer() -> Dial:
    """Makes a dial for canaries, promise and size of a bug: one simulated audit.

    Canaries and noise are drawn in the browser, the same for every promise and bug.

    Guarantees: the bound is `audit.bounds.one_run_lower_bound`
        (tests/browser/test_dials.py::test_formulas).
    """
    about = "One audit in one run: what is seen of its canaries, and ε as proved, provable, stated."
    return Dial(12, "audit_explorer", about, canaries=200, epsilon=2, leak=1)
