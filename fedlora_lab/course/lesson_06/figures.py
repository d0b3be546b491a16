"""Figures of notebook 06: who moves when, and noise shaped by the frozen factor."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.patches import Ellipse, FancyBboxPatch
from matplotlib.ticker import MaxNLocator

from fedlora_lab import theory
from fedlora_lab._utils.validation import check, check_number, check_one_of, check_whole
from fedlora_lab.methods.method import Method
from fedlora_lab.plots import style
from fedlora_lab.plots.method_diagrams import ROUND

NOISE = style.SERIES[0]
REACH, TAILS = 2.8, (-4.2, 7.2)
CLIPS = ("factor", "product")
SPARSE = (0, (3, 2))


@style.paper()
def timeline(cycle: Callable[[int, int], str], rounds: int = 6, steps: int = 4) -> style.Picture:
    """Draws a schedule over rounds and local steps: a filled cell where a factor moves.

    Args: cycle: ``(t, s) -> "A", "B" or "AB"``, such as ``Cycle(("B", "A"))``; rounds, steps: >= 1.
    Raises: ``ValueError`` when the schedule gives another word.
    Guarantees: a cell is filled iff the schedule moves the factor
        (test_timeline_follows_the_schedule).
    """
    check_whole("rounds", rounds, 1)
    check_whole("steps", steps, 1)
    words = {(t, s): cycle(t, s) for t in range(rounds) for s in range(steps)}
    for (t, s), word in words.items():
        check(word in ("A", "B", "AB", "BA"), f"cycle({t}, {s})", word, '"A", "B" or "AB"')
    width = rounds * steps
    figure, (ax,) = style.panels(min(11.5, 2.3 + 0.24 * width), 1.45, (0.03, 0.06, 0.94, 0.9))
    ax.axis("off")
    small: Any = {"fontsize": 8.5, "color": style.SOFT}
    for row, factor in enumerate("BA"):
        moves = [factor in word for word in words.values()]
        for i, filled in enumerate(moves):
            face, edge = (style.FACTOR[factor], "none") if filled else ("none", style.FAINT)
            box: Any = {"boxstyle": ROUND, "fc": face, "ec": edge, "lw": 1}
            ax.add_patch(FancyBboxPatch((i + 0.1, row + 0.16), 0.8, 0.68, **box))
        bold: Any = {"fontsize": 12, "weight": "bold", "color": style.FACTOR[factor], "ha": "right"}
        ax.text(-0.4, row + 0.5, factor, va="center", **bold)
        share = f"{sum(moves) / len(moves):.0%} of steps"
        ax.text(width + 0.5, row + 0.5, share, va="center", **small)
    for t in range(rounds + 1):
        edge = {"color": style.INK, "lw": 2} if t else {"color": style.GREY, "lw": 1}
        ax.plot([t * steps] * 2, [0, 2], solid_capstyle="butt", **edge)
        if t < rounds:
            ax.text((t + 0.5) * steps, -0.12, f"{t + 1}", ha="center", va="top", **small)
    ax.text(-0.4, -0.12, "round", ha="right", va="top", **small)
    ax.set(xlim=(-2.2, width + 4.2), ylim=(-0.5, 2.1))
    return figure


def timeline_words(method: Method, rounds: int = 6, steps: int = 4) -> str:
    """Says who moves how often, where the mean is exact, and how much is sent.

    Args: method: whose schedule it is; rounds, steps: how much of it is counted, >= 1.
    Guarantees: test_timeline_words_say_where_the_mean_is_exact.
    """
    words = [method.sides_at_step(t, s) for t in range(rounds) for s in range(steps)]
    often = {side: sum(side in word for word in words) / len(words) for side in "BA"}
    shares = [f"{side} moves in {share:.0%}" for side, share in often.items()]
    moved = [method.sides_in_round(t, steps) for t in range(rounds)]
    both = [str(t + 1) for t in range(rounds) if len(moved[t]) > 1]
    exact = f"the mean of the products is missed in rounds {', '.join(both)}, where both move"
    if not both:
        exact = "one factor is fixed in every round, so the mean of the products is exact"
    elif len(both) == rounds:
        exact = "both move in every round, so the mean of the products is missed"
    sent = sum(map(len, moved)) / (2 * rounds)
    return f"{' of the steps, '.join(shares)}; {exact}. Sent up: {sent:.0%} of FedLoRA's."


@style.paper()
def regulator(
    first: float = 1.8,
    second: float = 0.6,
    angle: float = 30.0,
    sigma: float = 1.0,
    clip: str = "factor",
) -> tuple[style.Picture, str]:
    """Draws noise shaped by a frozen factor of rank 2: on the other factor, on the product, and how
    well it hides changes.

    Args:
        first, second: singular values of the frozen factor, > 0; angle: of the first, in degrees.
        sigma: nominal noise multiplier > 0; the clip norm is 1.
        clip: "factor" bounds the change of the factor, as published; "product" that of the product.

    Returns: the figure, and what it shows in words; ε at δ = 0.00001.
    Guarantees: the axes never move; the bells lie mu apart (test_the_regulator_shows_the_real_mu).
    Source: the regulator is that of arXiv:2410.12926; the picture is derived, see
        `theory.regulated_mahalanobis`.
    """
    for label, value in (("first", first), ("second", second), ("sigma", sigma)):
        check_number(label, value, 0, open_low=True)
    check_one_of("clip", clip, CLIPS)
    peer, largest, mu = np.array([first, second]), 0 if first >= second else 1, 1 / sigma
    if clip == "factor":
        mu = 1 / theory.regulated_multiplier(np.diag(peer), sigma)
    allowed = 1 / peer if clip == "product" else np.ones(2)
    across = (0.045, 0.27), (0.365, 0.27), (0.69, 0.295)
    figure, (left, middle, right) = style.row(8.4, 3.5, (0.16, 0.66), *across)
    _plane(left, sigma / peer, allowed, largest, angle)
    left.set_title("the factor: a row of ΔB", fontsize=9.5)
    _plane(middle, sigma * np.ones(2), allowed * peer, largest, angle)
    middle.set_title("the product: a row of ΔB·A", fontsize=9.5)
    x, promised = np.linspace(*TAILS, 300), 1 / sigma
    bell = np.exp(-(x**2) / 2)
    right.fill_between(x, bell, color=NOISE, alpha=0.22, lw=0)
    right.plot(x, bell, color=NOISE)
    for place, words, height, bold, line in (
        (mu, f"real {mu:.2f}", 1.16, "bold", {"color": style.WRONG, "lw": 2.2}),
        (promised, f"promised {promised:.2f}", 1.07, None, {"color": style.GREY, "ls": SPARSE}),
    ):
        right.plot(x, np.exp(-((x - place) ** 2) / 2), **{"lw": 1.3, **line})
        ink = style.WRONG if bold else style.SOFT
        right.plot([0, place], [height, height], color=ink, lw=1.2, marker="|", ms=6)
        put: Any = {"ha": "right", "va": "center", "fontsize": 9, "weight": bold}
        right.text(TAILS[1], height, words, color=ink, **put)
    right.set(
        xlim=TAILS, ylim=(0, 1.24), yticks=[], xlabel="along the worst direction (deviations)"
    )
    right.grid(False)
    right.set_title("how well the worst change hides", fontsize=9.5)
    for place, words, colour in (
        (0.045, "▬ noise, 1 and 2 deviations", NOISE),
        (0.27, "▬ changes that the clip allows", style.INK),
        (0.52, "→ the worst of them", style.WRONG),
    ):
        figure.text(place, 0.945, words, color=colour, fontsize=8.5, va="center")
    real, nominal = (theory.gdp_epsilon(value, 1e-5) for value in (mu, promised))
    start = f"Clip on the {clip}: the worst change stands {mu:.2f} deviations out"
    if clip == "product":
        end = f"exactly as promised, whatever the frozen factor; one release: ε = {real:.2f}."
        return figure, f"{start}, {end}"
    judged = "more than" if mu > promised else "less than" if mu < promised else "as"
    end = f"one release: ε = {real:.2f}, promised {nominal:.2f}."
    return figure, f"{start}, {judged} the {promised:.2f} promised; {end}"


def _plane(ax: Any, noise: Any, allowed: Any, largest: int, angle: float) -> None:
    """Noise (dots, ellipses of one and two deviations), allowed changes, and the worst of them."""
    turn = math.radians(angle)
    axes = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    cloud = (np.random.default_rng(4).standard_normal((260, 2)) * noise) @ axes
    ax.plot(*cloud.T, ls="none", marker="o", ms=2, mew=0, color=NOISE, alpha=0.35)
    for halves, look in (
        (noise, {"fc": "none", "ec": NOISE, "lw": 1.6}),
        (2 * noise, {"fc": "none", "ec": NOISE, "lw": 0.8}),
        (allowed, {"fc": style.INK, "ec": "none", "alpha": 0.1}),
        (allowed, {"fc": "none", "ec": style.INK, "lw": 1.4}),
    ):
        ax.add_patch(Ellipse((0, 0), *(2 * halves), angle=angle, **look))
    arrow = {"arrowstyle": "-|>", "color": style.WRONG, "lw": 2.2, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", allowed[largest] * axes[largest], (0, 0), arrowprops=arrow)
    ax.set(xlim=(-REACH, REACH), ylim=(-REACH, REACH), aspect="equal")
    ax.set(xticks=[-2, 0, 2], yticks=[-2, 0, 2], xlabel="in units of the clip C")


@style.paper()
def published_regulator(peers: Any, spent: Any, target: float) -> style.Picture:
    """Draws the regulator as published over a run: size of the frozen factor, and ε.

    Args:
        peers: (rounds,), largest spectral norm of the frozen factor, B moving first.
        spent: (rounds,), the ε that the noise really gives, see `theory.regulated_epsilon`.
        target: the nominal ε.
    Guarantees: test_the_published_regulator_is_drawn_as_given.
    """
    peers, spent = np.asarray(peers, float), np.asarray(spent, float)
    rounds = np.arange(1, len(peers) + 1)
    figure, (left, right) = style.row(9.6, 3.6, (0.15, 0.72), (0.07, 0.4), (0.56, 0.4))
    for start, words, factor in ((0, "A frozen, B moves", "A"), (1, "B frozen, A moves", "B")):
        x, y, colour = rounds[start::2], peers[start::2], style.FACTOR[factor]
        left.plot(x, y, color=colour, marker="o")
        place = 3 * len(x) // 4
        left.text(x[place], y[place] - 0.06, words, color=colour, va="top", fontsize=9)
    left.axhline(1, color=style.INK, lw=1, ls=SPARSE)
    words = "above the dashed line the noise hides less than promised"
    left.text(1, 0.03, words, fontsize=8, color=style.SOFT)
    left.set(ylabel="largest singular value", title="The frozen factor grows")
    colour, last = style.WRONG if spent[-1] > target else style.RIGHT, rounds[-1]
    right.plot(rounds, spent, color=colour, lw=2.4)
    right.axhline(target, color=style.INK, lw=1, ls=SPARSE)
    for y, words, ink, put in (
        (0.96 * target, f"nominal ε = {target:g} ", style.SOFT, {"size": 8, "va": "top"}),
        (spent[-1], f"ε = {spent[-1]:.1f} ", colour, {"weight": "bold", "va": "bottom"}),
    ):
        right.text(last, y, words, color=ink, ha="right", **put)
    right.set(ylabel="the ε that its noise really gives", title="What it spends")
    for ax in (left, right):
        ax.set(xlabel="round", ylim=(0, None))
        ax.grid(color=style.FAINT, lw=0.5)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure
