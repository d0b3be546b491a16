"""Figures of notebook 06: schedules of the factors, noise in the product, and its shape."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from matplotlib.patches import Ellipse

from fedlora_lab import theory
from fedlora_lab._utils.validation import check_number, check_one_of
from fedlora_lab.course.widgets.dial import Dial, round_to_digits
from fedlora_lab.methods.method import Method
from fedlora_lab.plots import style

NOISE = style.SERIES[0]
REACH = 2.8
CLIPS = ("factor", "product")


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

    Guarantees: the axes never move; the title says how well the worst change hides
        (test_the_regulator_shows_the_real_mu).
    Source: the regulator is that of arXiv:2410.12926; the picture is derived, see
        `theory.regulated_mahalanobis`.
    """
    for label, value in (("first", first), ("second", second), ("sigma", sigma)):
        check_number(label, value, 0, open_low=True)
    check_one_of("clip", clip, CLIPS)
    frozen = np.array([first, second])
    largest = 0 if first >= second else 1
    promised = 1 / sigma
    mu = promised
    allowed = 1 / frozen
    if clip == "factor":
        # What the factor's clip allows is a disc; the noise is an ellipse.
        mu = 1 / theory.regulated_multiplier(np.diag(frozen), sigma)
        allowed = np.ones(2)
    figure, (left, right) = style.subplots(8.4, 4.6, columns=2)
    _plane(left, sigma / frozen, allowed, largest, angle)
    left.set_title("the factor: a row of ΔB", fontsize=9.5)
    _plane(right, sigma * np.ones(2), allowed * frozen, largest, angle)
    right.set_title("the product: a row of ΔB·A", fontsize=9.5)
    judged = "as promised"
    if not math.isclose(mu, promised):
        judged = "less well than promised" if mu > promised else "better than promised"
    style.headline(figure, f"Clip on the {clip}: the worst change is hidden {judged}")
    words = "dots, ellipses: noise, 1 and 2 deviations; grey: allowed changes; arrow: the worst, "
    style.footer(figure, f"{words}μ = {mu:.2f} deviations long (promised {promised:.2f})")
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
    """Draws the noise of some rounds on the factor that moves.

    Args: path: of `turns_path`; sigma: noise multiplier > 0; rounds: which ones, from 1 on, even in
        number.
    Guarantees: the worst change of a round is its largest stretch over sigma long
        (test_the_strip_shows_the_worst_change_of_each_round).
    """
    half = len(rounds) // 2
    figure, axes = style.subplots(2.4 * half, 5.6, 2, half, sharex=True, sharey=True)
    for ax, t in zip(axes, rounds, strict=True):
        turn = path[t - 1]
        stretches = np.array(turn["stretches"])
        _plane(ax, sigma / stretches, np.ones(2), 0, turn["angle"], 120)
        ax.set_xlabel("")
        ink = style.darken(style.FACTOR[turn["moves"]])
        ax.set_title(f"round {t}: {turn['moves']} moves", fontsize=9, color=ink)
        worst = stretches[0] / sigma
        colour = style.WRONG if stretches[0] > 1 else style.RIGHT
        put: Any = {"weight": "bold", "ha": "right", "va": "top"}
        style.note(ax, 0.97, 0.96, f"{worst:.1f}", colour, 10, **put)
    less = sum(turn["stretches"][0] > 1 for turn in path)
    title = f"In {less} of {len(path)} rounds the worst change is hidden less well than promised"
    style.headline(figure, title)
    words = (
        "ellipses: noise; grey: changes that the published clip allows; number: the worst of them"
    )
    style.footer(figure, f"{words}, in deviations of the noise (promised {1 / sigma:.1f})")
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
