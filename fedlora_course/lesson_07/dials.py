"""The dial of lesson 07: noise shaped by the frozen factor."""

from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from fedlora_course.lesson_07.theory import regulated_multiplier
from fedlora_course.widgets.dial import Dial
from fedlora_course.widgets.scene import Scene, area, axis, dots, line, panel, text
from fedlora_lab import theory
from fedlora_lab._utils.rounding import round_up

CIRCLE = np.linspace(0, 2 * np.pi, 31)
CLIPS = {"factor": "factor (as published)", "product": "product"}
Pair = Float[np.ndarray, " 2"]


def _plane(title: str, noise: Pair, allowed: Pair) -> dict[str, Any]:
    """Draws one deviation of the noise, the changes that the clip allows, and the worst of them."""
    turn = np.radians(30)
    axes = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])

    def ellipse(halves: Pair) -> tuple[np.ndarray, np.ndarray]:
        around = halves[:, None] * np.stack([np.cos(CIRCLE), np.sin(CIRCLE)])
        x, y = (axes.T @ around).round(2)
        return x, y

    worst = int(np.argmax(allowed / noise))
    tip = allowed[worst] * axes[worst]
    frame = axis("in units of the clip C", -3.6, 3.6, ticks=[-2, 0, 2])
    return panel(
        title,
        frame,
        frame | {"label": ""},
        line(*ellipse(noise), "teal", width=1.6),
        area(*ellipse(allowed), "ink", 0.12),
        line(*ellipse(allowed), "ink", width=1.8),
        line([0, tip[0]], [0, tip[1]], "red", width=3),
        dots(tip[0], tip[1], "red"),
        text(-3.6, 3.2, "noise, one deviation", "teal", dx=4),
        text(-3.6, 2.7, "allowed changes", "ink", dx=4),
        text(-3.6, 2.2, "the worst of them", "red", dx=4),
        square=True,
        height=240,
    )


def separation(stretches: ArrayLike, sigma: float, clip: str) -> float:
    """Computes how far the worst allowed change stands out of the noise, in deviations.

    Args: stretches: singular values of the frozen factor; sigma: nominal noise multiplier; clip: of
        `CLIPS`, what the clip bounds.
    Source: arXiv:2410.12926 for the regulator; see `regulated_multiplier`.
    """
    if clip == "product":
        return 1 / sigma
    return 1 / regulated_multiplier(np.diag(stretches), sigma)


def _regulator_scene(first: float, second: float, sigma: float, clip: str) -> Scene:
    """Draws noise and allowed changes on factor and product, and how far the worst stands out."""

    x = np.linspace(-4, 7, 45)
    stretches = np.array([first, second])
    allowed = 1 / stretches if clip == "product" else np.ones(2)
    mu = separation(stretches, sigma, clip)
    promised = 1 / sigma
    colour = "red" if mu > promised + 1e-9 else "green"
    bells = [np.exp(-((x - place) ** 2) / 2) for place in (0, promised, mu)]
    real = theory.gdp_epsilon(mu, 1e-5)
    nominal = theory.gdp_epsilon(promised, 1e-5)
    panels = [
        _plane("The factor: a row of ΔB", sigma / stretches, allowed),
        _plane("The product: a row of ΔB·A", sigma * np.ones(2), allowed * stretches),
        panel(
            f"The worst change stands {mu:.2f} deviations out",
            axis("along the worst direction, in deviations", -4, 7),
            axis("", 0, 1.3, ticks=[]),
            area([-4, *x, 7], [0, *bells[0], 0], "teal"),
            line(x, bells[1], "grey", dash="5 4", width=1.6),
            line(x, bells[2], colour, width=2.6),
            text(7, 1.18, f"real {mu:.2f}", colour, anchor="end", dx=-4),
            text(7, 1.06, f"promised {promised:.2f}", "soft", anchor="end", dx=-4),
            text(-4, 1.18, "noise", "teal", dx=4),
            height=240,
        ),
    ]
    judged = f"as the {promised:.2f} promised"
    if not np.isclose(mu, promised):
        judged = f"{'more' if mu > promised else 'less'} than the {promised:.2f} promised"
    return panels, [
        f"Clip on the {clip}: ",
        f"the worst change stands {mu:.2f} deviations out, {judged}; one release gives "
        f"ε = {round_up(real, '.2f')}, promised {round_up(nominal, '.2f')} at δ = 0.00001.",
    ]


def regulator_explorer() -> Dial:
    """Makes a dial for frozen factor, noise and clip: how well the noise hides a change.

    The separation is that of `separation`.
    """
    return Dial(
        "07/regulator_explorer",
        _regulator_scene,
        first=(0.5, 1, 1.4, 1.8, 2.4),
        second=(0.4, 0.6, 1),
        sigma=(0.5, 1, 2),
        clip=CLIPS,
    )
