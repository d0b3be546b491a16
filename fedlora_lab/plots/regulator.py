"""The noise regulator in pictures: an ellipse of noise, the region of allowed changes, and what hides badly."""

import math
from typing import Any, NamedTuple

import numpy as np
from matplotlib.patches import Ellipse
from matplotlib.ticker import MaxNLocator

from fedlora_lab import theory
from fedlora_lab.checks import check_number, check_one_of
from fedlora_lab.plots.style import FACTOR, FAINT, GREY, INK, RIGHT, SOFT, WRONG, Picture, paper, picture

NOISE = "#0F7F94"
REACH, TAILS = 2.8, (-4.2, 7.2)
CLIPS = ("factor", "product")


class Shape(NamedTuple):
    """The two singular values of a peer of rank 2, the angle of the first, sigma, and what is clipped (to 1)."""

    first: float
    second: float
    angle: float
    sigma: float
    clip: str

    @property
    def mu(self) -> float:
        """How many standard deviations the worst allowed change stands out."""
        if self.clip == "product":
            return 1 / self.sigma
        return 1 / theory.regulated_multiplier(np.diag([self.first, self.second]), self.sigma)


def _shape(first: float, second: float, angle: float, sigma: float, clip: str) -> Shape:
    for label, value in (("first", first), ("second", second), ("sigma", sigma)):
        check_number(label, value, 0, open_low=True)
    check_one_of("clip", clip, CLIPS)
    return Shape(first, second, angle, sigma, clip)


def _plane(ax: Any, shape: Shape, noise: tuple[float, float], allowed: tuple[float, float], angle: float) -> None:
    """Noise (dots and a two-deviation ellipse) and the allowed changes in one plane; the worst change as an arrow."""
    turn = math.radians(angle)
    axes = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    dots = (np.random.default_rng(4).standard_normal((260, 2)) * noise) @ axes
    ax.plot(*dots.T, ls="none", marker="o", ms=2, mew=0, color=NOISE, alpha=0.35)
    for deviations, width in ((1, 1.6), (2, 0.8)):
        size = [2 * deviations * half for half in noise]
        ax.add_patch(Ellipse((0, 0), *size, angle=angle, fc="none", ec=NOISE, lw=width))
    ax.add_patch(Ellipse((0, 0), *(2 * half for half in allowed), angle=angle, fc=INK, ec="none", alpha=0.1))
    ax.add_patch(Ellipse((0, 0), *(2 * half for half in allowed), angle=angle, fc="none", ec=INK, lw=1.4))
    largest = 0 if shape.first >= shape.second else 1
    arrow = {"arrowstyle": "-|>", "color": WRONG, "lw": 2.2, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", allowed[largest] * axes[largest], (0, 0), arrowprops=arrow)
    ax.set(xlim=(-REACH, REACH), ylim=(-REACH, REACH), aspect="equal")
    ax.set_xticks([-2, 0, 2])
    ax.set_yticks([-2, 0, 2])
    ax.set_xlabel("in units of the clip C")


def _bells(ax: Any, shape: Shape) -> None:
    """What the worst change looks like through the noise, beside what was promised."""
    x = np.linspace(*TAILS, 300)
    bell = np.exp(-(x**2) / 2)
    promised = 1 / shape.sigma
    ax.fill_between(x, bell, color=NOISE, alpha=0.22, lw=0)
    ax.plot(x, bell, color=NOISE)
    ax.plot(x, np.exp(-((x - shape.mu) ** 2) / 2), color=WRONG, lw=2.2)
    ax.plot(x, np.exp(-((x - promised) ** 2) / 2), color=GREY, lw=1.3, ls=(0, (3, 2)))
    for place, height, colour in ((shape.mu, 1.16, WRONG), (promised, 1.07, SOFT)):
        ax.plot([0, place], [height, height], color=colour, lw=1.2, marker="|", ms=6)
    ax.text(TAILS[1], 1.16, f"real {shape.mu:.2f}", color=WRONG, ha="right", va="center", fontsize=9, weight="bold")
    ax.text(TAILS[1], 1.07, f"promised {promised:.2f}", color=SOFT, ha="right", va="center", fontsize=9)
    ax.set(xlim=TAILS, ylim=(0, 1.24), yticks=[])
    ax.set_xlabel("along the worst direction (deviations)")
    ax.grid(False)


def regulator(
    first: float = 1.8, second: float = 0.6, angle: float = 30.0, sigma: float = 1.0, clip: str = "factor"
) -> Picture:
    """Noise shaped by a peer of rank 2: in the space of the factor, in the space of the product, and what it hides.

    Args:
        first, second: singular values of the peer, > 0; angle: of the first, in degrees.
        sigma: nominal noise multiplier > 0; the clip norm is 1.
        clip: "factor" bounds the change of the factor, as published; "product" the change of the product.
    Guarantees: the axes never move; the bells lie mu apart (test_the_regulator_shows_the_real_mu).
    Source: the regulator is that of arXiv:2410.12926; the picture is derived, see `theory.regulated_mahalanobis`.
    """
    shape = _shape(first, second, angle, sigma, clip)
    inverse = (1 / first, 1 / second)
    with paper():
        figure = picture(8.4, 3.5)
        left, middle, right = (
            figure.add_axes((x, 0.16, w, 0.66)) for x, w in ((0.045, 0.27), (0.365, 0.27), (0.69, 0.295))
        )
        noise = (sigma * inverse[0], sigma * inverse[1])
        _plane(left, shape, noise, inverse if clip == "product" else (1, 1), angle)
        left.set_title("the factor: a row of ΔB", fontsize=9.5)
        _plane(middle, shape, (sigma, sigma), (1, 1) if clip == "product" else (first, second), angle)
        middle.set_title("the product: a row of ΔB·A", fontsize=9.5)
        _bells(right, shape)
        right.set_title("how well the worst change hides", fontsize=9.5)
        words = (("▬ noise, 1 and 2 deviations", NOISE), ("▬ changes that the clip allows", INK))
        for place, (text, colour) in zip((0.045, 0.27, 0.52), (*words, ("→ the worst of them", WRONG)), strict=True):
            figure.text(place, 0.945, text, color=colour, fontsize=8.5, va="center")
    return figure


def regulator_words(
    first: float = 1.8, second: float = 0.6, angle: float = 30.0, sigma: float = 1.0, clip: str = "factor"
) -> str:
    """The figure in a sentence; ε at δ = 0.00001. Arguments as `regulator`."""
    shape = _shape(first, second, angle, sigma, clip)
    real, promised = (theory.gdp_epsilon(mu, 1e-5) for mu in (shape.mu, 1 / sigma))
    start = f"Clip on the {clip}: the worst change stands {shape.mu:.2f} deviations out"
    if clip == "product":
        return f"{start}, exactly as promised, whatever the peer; one release: ε = {real:.2f}."
    judged = "more than" if shape.mu > 1 / sigma else "less than" if shape.mu < 1 / sigma else "as"
    return f"{start}, {judged} the {1 / sigma:.2f} promised; one release: ε = {real:.2f}, promised {promised:.2f}."


def literal(peers: Any, spent: Any, target: float) -> Picture:
    """The regulator as published, over a run: size of the peer that shapes the noise, and ε by what it really hides.

    Args:
        peers: largest spectral norm of the resting factor in each round, (rounds,), B moving first.
        spent: ε after each round, (rounds,), see `theory.regulated_epsilon`. target: the nominal ε.
    Guarantees: test_literal_draws_what_it_is_given.
    """
    peers, spent = np.asarray(peers, float), np.asarray(spent, float)
    rounds = np.arange(1, len(peers) + 1)
    with paper():
        figure = picture(9.6, 3.6)
        left, right = figure.add_axes((0.07, 0.15, 0.4, 0.72)), figure.add_axes((0.56, 0.15, 0.4, 0.72))
        for start, words, colour in ((0, "A rests, B moves", FACTOR["A"]), (1, "B rests, A moves", FACTOR["B"])):
            left.plot(rounds[start::2], peers[start::2], color=colour, marker="o")
            place = 3 * len(peers[start::2]) // 4
            left.text(rounds[start::2][place], peers[start::2][place] - 0.06, words, color=colour, va="top", fontsize=9)
        left.axhline(1, color=INK, lw=1, ls=(0, (3, 2)))
        left.text(1, 0.03, "above the dashed line the noise hides less than promised", fontsize=8, color=SOFT)
        left.set(xlabel="round", ylabel="largest singular value", ylim=(0, None))
        left.set_title("The resting factor grows")
        over = spent[-1] > target
        right.plot(rounds, spent, color=WRONG if over else RIGHT, lw=2.4)
        right.axhline(target, color=INK, lw=1, ls=(0, (3, 2)))
        right.text(rounds[-1], 0.96 * target, f"nominal ε = {target:g} ", fontsize=8, color=SOFT, ha="right", va="top")
        right.text(rounds[-1], spent[-1], f"ε = {spent[-1]:.1f} ", ha="right", va="bottom", weight="bold",
                   color=WRONG if over else RIGHT)  # fmt: skip
        right.set(xlabel="round", ylabel="ε by what the noise really hides", ylim=(0, None))
        right.set_title("What it spends")
        for ax in (left, right):
            ax.grid(color=FAINT, lw=0.5)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure
