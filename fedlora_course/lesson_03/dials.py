"""The dials of notebook 03: two worlds, and the cost of a clip."""

from functools import cache

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import norm

from fedlora_course.lesson_03.theory import clip_terms
from fedlora_course.widgets.dial import Dial
from fedlora_course.widgets.scene import Scene, axis, bars, dots, line, panel, text
from fedlora_lab import theory
from fedlora_lab._utils.rounding import round_up

RATES = np.concatenate([[0], np.geomspace(1e-3, 0.1, 14), np.linspace(0.15, 1, 18)])


def _worlds_scene(sigma: float, releases: int, epsilon: float) -> Scene:
    """Draws both outputs, the best attacker, and δ for every ε."""

    x = np.linspace(-4, 12, 49)
    without = np.exp(-(x**2) / 2).round(3)
    grid = np.linspace(0, 10, 26)
    mu = theory.gaussian_mu(sigma, releases)
    delta = theory.gdp_delta(mu, epsilon)
    deltas = np.exp(theory.gdp_log_delta(mu, grid))
    best_rates = norm.cdf(norm.ppf(RATES) + mu)
    few = norm.cdf(norm.ppf(0.01) + mu)
    # All that (ε, δ) says is two straight lines, which meet on the way.
    meet = (1 - delta) / (1 + np.exp(epsilon))
    corners = [0, meet, 1 - delta, 1], [delta, 1 - meet, 1, 1]
    into = np.exp(-((x - mu) ** 2) / 2).round(3)
    likely = epsilon / mu + mu / 2
    label_with = "with you" if mu < 11 else f"with you: around {mu:.0f}, off to the right →"
    panels = [
        panel(
            "What the attacker sees",
            axis("released number, in noise deviations", -4, 12),
            axis("", 0, 1.3, ticks=[]),
            line(x, without, "blue", "without"),
            line(x, into, "pink", "with"),
            line(likely, [0, 1.05], "red", dash="3 3", width=1.4),
            text(-4, 1.19, "without you", "blue", dx=6),
            text(12, 1.19, label_with, "pink", anchor="end", dx=-6),
            text(12, 1.07, "red: e^ε times likelier", "red", anchor="end", dx=-6, bold=False),
        ),
        panel(
            f"{few:.0%} found at FPR 1 %",
            axis("others wrongly accused (FPR)", 0, 1),
            axis("members found (TPR)", 0, 1),
            line([0, 1], [0, 1], "edge", dash="3 3", width=1.2),
            line(*corners, "red", "allowed by (ε, δ)", dash="6 4"),
            line(RATES, best_rates, "ink", "best attacker", width=2.6),
            dots(0.01, few, "red"),
            text(1, 0.06, "red: (ε, δ) allows", "red", anchor="end", dx=-4, bold=False),
        ),
        panel(
            f"δ({epsilon:g}) = {round_up(delta, '.2g')}",
            axis("ε", 0, 10),
            axis("δ", 1e-10, 1, log=True),
            line(grid, np.maximum(deltas, 1e-13), "ink", "δ"),
            line(epsilon, [1e-10, 1], "soft", dash="3 3", width=1.4),
            dots(epsilon, max(delta, 1e-10), "red", 6),
        ),
    ]
    ending = theory.gdp_epsilon(mu, 1e-5)
    advantage = theory.gdp_delta(mu, 0.0)
    return panels, [
        f"σ = {sigma:g}, N = {releases}: ",
        f"ε = {epsilon:g} holds with δ = {round_up(delta, '.2g')}, ",
        f"and δ = 0.00001 with ε = {round_up(ending, '.3g')}. The best attacker has an advantage "
        f"of {advantage:.2f} and finds {few:.1%} of the members while accusing 1 % of the others "
        "wrongly.",
    ]


def two_worlds() -> Dial:
    """Makes a dial for noise, releases and ε: both outputs, the attacker's curve, and δ(ε).

    Guarantees: δ and curve are those of Gaussian differential privacy, `theory.gdp_delta`
        (test_dials.py::test_two_worlds_are_gaussian_differential_privacy).
    """
    return Dial(
        "03/two_worlds",
        _worlds_scene,
        sigma=(0.3, 0.5, 0.7, 1, 1.4, 2, 3, 4, 6, 10, 20, 30),
        releases=(1, 2, 5, 10, 50, 100),
        epsilon=(0.1, 0.5, 1, 2, 4, 8),
    )


def clip_effect(rows: Float[np.ndarray, "n p"]) -> pd.DataFrame:
    """Computes how clipping at 48 norms changes the mean gradient.

    Returns: columns at (the clip norm), length (of the mean of the clipped gradients, over that of
        the mean gradient) and cosine (between the two).
    Guarantees: test_dials.py::test_a_dial_shows_what_its_scene_draws.
    """
    norms = np.linalg.norm(rows, axis=1)
    mean = rows.mean(0)
    size = float(np.linalg.norm(mean))
    table = []
    for clip in np.geomspace(0.03, 100, 48):
        clipped = np.minimum(1, clip / norms) @ rows / len(rows)
        length = float(np.linalg.norm(clipped))
        table.append((clip, length / size, float(clipped @ mean) / (length * size)))
    return pd.DataFrame(table, columns=["at", "length", "cosine"])


CLIPS = tuple(float(f"{clip:.2g}") for clip in np.geomspace(0.03, 100, 16))


def clip_explorer(rows: Float[np.ndarray, "n p"]) -> Dial:
    """Makes a dial for clip norm, noise and batch: gradient norms and the cost of the clip.

    Args: rows: private gradients before the clip, see `example_gradients`.
    Guarantees: the cosine with draw and noise is that of `clip_terms`
        (test_dials.py::test_a_dial_shows_what_its_scene_draws).
    """
    effect = clip_effect(rows)
    at = effect["at"].to_numpy()
    norms = np.linalg.norm(rows, axis=1)
    size = float(np.linalg.norm(rows.mean(0)))
    edges = np.geomspace(0.03, 100, 43)
    counts = np.histogram(norms, edges)[0] / len(norms)
    batches = [batch for batch in (16, 64, 256, 1024) if batch <= len(rows)]
    clip_axis = axis("clip norm C", 0.03, 100, log=True)

    @cache
    def released_cosine(noise: float, batch: int) -> Float[np.ndarray, " at"]:
        # Draw and noise depend on the lengths alone: a row of one number each stands for the whole.
        terms = [clip_terms(norms[:, None], float(clip), noise, batch) for clip in at]
        spread = np.array([term.sampling + rows.shape[1] * term.noise for term in terms]) / size**2
        length = effect["length"].to_numpy()
        return effect["cosine"].to_numpy() * length / np.sqrt(length**2 + spread)

    def scene(clip_norm: float, noise_multiplier: float, batch: int) -> Scene:
        released = released_cosine(noise_multiplier, batch)
        best = int(np.argmax(released))
        here = {
            name: float(np.interp(np.log(clip_norm), np.log(at), values))
            for name, values in (*effect.items(), ("released", released))
        }
        cut = float((norms > clip_norm).mean())
        long = edges[:-1] >= clip_norm
        top = 1.3 * counts.max()
        # Its name stands below the line, or above it where the line runs along the axis.
        below = released[0] - 0.08 if released[0] > 0.1 else released[:best].max(initial=0) + 0.05
        panels = [
            panel(
                f"{cut:.0%} are cut down to C",
                axis("length of an example's gradient", 0.03, 100, log=True),
                axis("share of the examples", 0, top),
                bars(edges[:-1], 0, edges[1:], np.where(long, 0, counts), "grey"),
                bars(edges[:-1], 0, edges[1:], np.where(long, counts, 0), "pink"),
                line(clip_norm, [0, top], "ink"),
                text(
                    100, 0.95 * top, "longer than C: cut", "pink", anchor="end", dx=-4, bold=False
                ),
            ),
            panel(
                f"With noise, best near C = {at[best]:.2g}",
                clip_axis,
                axis("cosine with the mean gradient", 0, 1.1),
                line(at, effect["cosine"], "pink", "mean of the clipped"),
                line(at, released, "teal", "release of a drawn batch, noised", width=2.6),
                line(clip_norm, [0, 1.1], "ink", width=1.4),
                dots(at[best], released[best], "ink", 6),
                text(100, 1.04, "mean of the clipped", "pink", anchor="end", dx=-4, bold=False),
                text(0.03, below, "release of a drawn batch, noised", "teal", dx=4, bold=False),
                wide=True,
            ),
        ]
        turned = np.degrees(np.arccos(min(1.0, here["cosine"])))
        return panels, [
            f"C = {clip_norm:g}: {cut:.0%} of {len(norms):,} gradients are cut. The mean of the "
            f"clipped ones is {1 / here['length']:.2g} times shorter than the mean gradient, which "
            f"a learning rate makes up for, and turned by {turned:.2g}°, which none does. ",
            f"With the draw of the batch and the noise the cosine is {here['released']:.2f}, ",
            f"at best {released[best]:.2f} near C = {at[best]:.2g}.",
        ]

    start = {"clip_norm": CLIPS[6], "noise_multiplier": 1, "batch": batches[-1]}
    return Dial(
        "03/clip_explorer",
        scene,
        presets={
            "too low: turned": {**start, "clip_norm": CLIPS[2]},
            "too high: noisy": {**start, "clip_norm": CLIPS[14]},
            "small batch": {**start, "batch": 16},
        },
        start=start,
        clip_norm=CLIPS,
        noise_multiplier=(0.1, 0.5, 1, 3, 10),
        batch=batches,
    )
