"""Figures of notebook 06: schedules of the factors, noise in the product, and its shape."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from matplotlib.patches import Ellipse, FancyBboxPatch

from fedlora_lab import theory
from fedlora_lab._utils.validation import check, check_number, check_one_of, check_whole
from fedlora_lab.course.widgets.dial import Dial, round_to_digits
from fedlora_lab.methods.method import Method
from fedlora_lab.plots import style
from fedlora_lab.plots.method_diagrams import ROUND
from fedlora_lab.plots.tidy import confidence_interval

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
    figure, (ax,) = style.panels(min(11.5, 2.3 + 0.24 * width), 1.75, (0.03, 0.05, 0.94, 0.76))
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
    moved = [set("".join(words[t, s] for s in range(steps))) for t in range(rounds)]
    both = sum(len(factors) > 1 for factors in moved)
    title = "One factor rests in every round"
    if both:
        title = f"Both factors move in {both} of {rounds} rounds"
    figure.text(0.012, 0.97, title, fontsize=11, weight="bold", va="top")
    return figure


def timeline_words(method: Method, rounds: int = 6, steps: int = 4) -> str:
    """Describes a schedule: how often factors move, when the mean is exact, what is sent.

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
) -> style.Picture:
    """Draws noise shaped by a frozen rank-2 factor, on the other factor and on the product.

    Args:
        first, second: singular values of the frozen factor, > 0; angle: of the first, in degrees.
        sigma: nominal noise multiplier > 0; the clip norm is 1.
        clip: "factor" bounds the change of the factor, as published; "product" that of the product.

    Guarantees: the axes never move; the bells lie mu apart, and the title says which is further
        (test_the_regulator_shows_the_real_mu).
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
    figure, (left, middle, right) = style.row(8.4, 3.85, (0.145, 0.6), *across)
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
    right.set(xlim=TAILS, ylim=(0, 1.24), yticks=[])
    right.set_xlabel("along the worst direction (deviations)")
    right.grid(False)
    right.set_title("how well the worst change hides", fontsize=9.5)
    for place, words, colour in (
        (0.045, "▬ noise, 1 and 2 deviations", NOISE),
        (0.27, "▬ changes that the clip allows", style.INK),
        (0.52, "→ the worst of them", style.WRONG),
    ):
        figure.text(place, 0.865, words, color=colour, fontsize=8.5, va="center")
    judged = "as promised"
    if not math.isclose(mu, promised):
        judged = "less well than promised" if mu > promised else "better than promised"
    title = f"Clip on the {clip}: the worst change is hidden {judged}"
    figure.text(0.012, 0.98, title, fontsize=11, weight="bold", va="top")
    return figure


def _plane(ax: Any, noise: Any, allowed: Any, largest: int, angle: float, dots: int = 260) -> None:
    """Draws noise (dots, ellipses of one and two deviations), allowed changes and the worst."""
    turn = math.radians(angle)
    axes = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    cloud = (np.random.default_rng(4).standard_normal((dots, 2)) * noise) @ axes
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


def turns_path(records: Sequence[Any], method: Method, layer: str) -> list[dict[str, Any]]:
    """Follows a layer of rank 2 through a run in turns, a dictionary for each round.

    "moves" and "rests" name the factors, "stretches" and "angle" (in degrees) belong to the frozen
    one: its singular values, the larger first, and the direction of the first on the rank axes.
    "from" and "to" are the largest singular values of B and of A before and after the round.

    Args: records: of the run, from the start on; method: its row; layer: of the adapter.
    Guarantees: test_the_path_follows_the_factors.
    """

    def sizes(record: Any) -> list[float]:
        A, B = record.adapter[layer]
        return [float(torch.linalg.matrix_norm(factor, 2)) for factor in (B, A)]

    path = []
    for t, (before, after) in enumerate(pairwise(records)):
        A, B = (factor.double() for factor in before.adapter[layer])
        moves = method.sides_at_step(t, 0)
        values, vectors = torch.linalg.eigh(A @ A.mT if moves == "B" else B.mT @ B)
        first = vectors[:, -1]
        angle = math.degrees(math.atan2(float(first[1]), float(first[0]))) % 180
        one = {"moves": moves, "rests": "A" if moves == "B" else "B", "angle": angle}
        one |= {"stretches": values.clamp(min=0).sqrt().flip(0).tolist()}
        path.append(one | {"from": sizes(before), "to": sizes(after)})
    return path


@style.paper()
def turns_strip(
    path: Sequence[Mapping[str, Any]], sigma: float, rounds: Sequence[int]
) -> style.Picture:
    """Draws the noise of some rounds on the factor that moves, and the path of both factors.

    Args: path: of `turns_path`; sigma: noise multiplier > 0; rounds: which ones, from 1 on, even in
        number.
    Guarantees: the worst change of a round stands its largest stretch over sigma out
        (test_the_strip_shows_the_worst_change_of_each_round).
    """
    half = len(rounds) // 2
    wide, gap = 0.62 / half, 0.012
    places = [
        (0.035 + (i % half) * wide, 0.513 - 0.429 * (i // half), wide - gap, 0.336)
        for i in range(len(rounds))
    ]
    figure, axes = style.panels(10.4, 5.25, *places, (0.735, 0.112, 0.25, 0.69))
    for place, (ax, t) in enumerate(zip(axes, rounds, strict=False)):
        one = path[t - 1]
        stretches = np.array(one["stretches"])
        _plane(ax, sigma / stretches, np.ones(2), 0, one["angle"], 120)
        ax.set(xlabel="", xticks=[-2, 0, 2], yticks=[-2, 0, 2])
        if place % half:
            ax.set_yticklabels([])
        ink = style.FACTOR[one["moves"]]
        ax.set_title(f"round {t}: {one['moves']} moves", fontsize=9, color=style.darken(ink))
        worst = stretches[0] / sigma
        colour = style.WRONG if worst > 1 / sigma else style.RIGHT
        put: Any = {"weight": "bold", "ha": "right", "va": "top"}
        style.note(ax, 0.97, 0.96, f"{worst:.1f}", colour, 10, **put)
    walk = axes[-1]
    for one in path:
        across, up = zip(one["from"], one["to"], strict=True)
        walk.plot(across, up, color=style.FACTOR[one["moves"]], lw=2.6, marker="o", ms=3)
    walk.set(xlim=(0, None), ylim=(0, None), title="Both factors grow, in turn")
    walk.set(xlabel="largest singular value of B", ylabel="largest singular value of A")
    for x, words, colour in (
        (0.035, "▬ noise, 1 and 2 deviations", NOISE),
        (0.235, "▬ changes that the published clip allows", style.INK),
        (0.50, f"→ the worst of them, in deviations (promised {1 / sigma:.1f})", style.WRONG),
    ):
        figure.text(x, 0.9, words, color=colour, fontsize=8.5, va="center")
    less = sum(one["stretches"][0] > 1 for one in path)
    title = f"In {less} of {len(path)} rounds the worst change is hidden less well than promised"
    figure.text(0.012, 0.985, title, fontsize=11.5, weight="bold", va="top")
    return figure


@style.paper()
def noise_comparisons(table: Any) -> style.Picture:
    """Draws the noise in W of FedLoRA and RoLoRA, a panel for each way to compare them.

    Args: table: columns panel (its title), method, x, energy (one row a seed) and closed (the
        closed form), all panels with the same x.
    Guarantees: test_the_comparisons_draw_the_closed_form_and_the_means.
    """
    names = list(dict.fromkeys(table["panel"]))
    across = [(0.065 + 0.315 * i, 0.27) for i in range(len(names))]
    figure, axes = style.row(10.4, 3.9, (0.19, 0.6), *across)
    for ax, panel in zip(axes, names, strict=True):
        part = table[table["panel"] == panel]
        last = part.groupby("method", sort=False)["closed"].max()
        for slug, rows in part.groupby("method", sort=False):
            colour, places = style.look(str(slug)).colour, rows.groupby("x")
            closed = places["closed"].first()
            # Where two lines lie on one another, the dashes let both be seen.
            dashes = "-" if slug == last.index[0] else (0, (4, 3))
            ax.plot(closed.index, closed, color=colour, lw=1.6, ls=dashes)
            ends = np.array([confidence_interval(x) for _, x in places["energy"]])
            ax.vlines(closed.index, *ends.T, color=style.darken(colour), lw=1.2)
            style.dots(ax, closed.index, places["energy"].mean(), colour, 5)
            end, first = float(closed.iloc[-1]), slug == last.index[0]
            above = end > last.min() * 1.001 or (first and np.ptp(last) < 1e-3 * end)
            words, at = f"{style.name(str(slug))} {end:.3g}", end * (1.7 if above else 0.3)
            put: Any = {"ha": "right", "va": "center", "transform": ax.transData, "weight": "bold"}
            style.note(ax, closed.index[-1], at, words, style.darken(colour), 9, **put)
        ax.set(yscale="log", ylim=(0.15, 3 * table["closed"].max()), xlabel="round")
        style.log_axis(ax.yaxis, (1, 10, 100))
        ax.set_xticks([1, 5, 10, 15, 20])
        if panel != names[0]:
            ax.set_xlabel("releases of each moving factor")
        ax.set_title(panel, fontsize=10)
    axes[0].set_ylabel("energy of the noise in W")
    title = "At equal rounds and ε turns leave less noise, at equal releases and ε more"
    figure.text(0.012, 0.98, title, fontsize=11.5, weight="bold", va="top")
    seeds = int(table.groupby(["panel", "method", "x"]).size().min())
    words = f"lines: closed form; dots and bars: means of {seeds} seeds with 95 % intervals"
    style.footer(figure, words)
    return figure


SCHEDULES = {
    "RoLoRA, DEeR: B | A": "B | A",
    "FFA-LoRA: B": "B",
    "FedLoRA: AB": "AB",
    "LA-LoRA: B A": "B A",
    "A rarely: B | B | B | A": "B | B | B | A",
    "both, then B: AB | B": "AB | B",
}


def schedule_explorer() -> Dial:
    """Makes a dial for schedules, published or typed: which factor moves when.

    Guarantees: what is typed goes before what is picked; a word that is none is one readable line
        (tests/browser/test_dials.py::test_a_schedule_is_typed); the counts are those of
        `timeline_words` (test_formulas).
    """
    known = [[schedule, words] for words, schedule in SCHEDULES.items()]
    about = "Who moves when, over rounds and local steps, and where the mean of products is missed."
    return Dial(6, "schedule_explorer", about, {"known": known}, known="B | A", own="")


def regulator_explorer() -> Dial:
    """Makes a dial for frozen factor, noise and clip: how well the noise hides a change.

    Guarantees: the separation is 1 / `theory.regulated_multiplier`
        (tests/browser/test_dials.py::test_formulas).
    """
    about = "Noise shaped by a frozen factor, and the worst of the changes that the clip allows."
    values = {"first": 1.8, "second": 0.6, "angle": 30, "sigma": 1.0, "clip": "factor"}
    return Dial(6, "regulator_explorer", about, **values)


def rounds_explorer(path: list[dict[str, Any]], sigma: float) -> Dial:
    """Makes a dial for the round of a run: the shape of its noise, and the factors' path.

    Args: path: of `turns_path`; sigma: noise multiplier of the run, > 0.
    Guarantees: the worst change of a round is that of `turns_strip`
        (tests/browser/test_dials.py::test_formulas).
    """
    about = "A run in turns, round by round: noise shaped by the frozen factor, and the factors."
    words = {"moves", "rests"}
    sent = [{k: v if k in words else round_to_digits(v) for k, v in one.items()} for one in path]
    return Dial(6, "rounds_explorer", about, {"path": sent, "sigma": sigma}, round=1, clip="factor")
