"""The dials of notebook 04: noise on the factors, in closed form and as matrices."""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from jaxtyping import Float

from fedlora_lab import theory
from fedlora_lab.course.lesson_04.figures import (
    COLOURS,
    PARTS,
    SUM,
    WORDS,
    SplitRound,
    matrix_frames,
    shade,
)
from fedlora_lab.course.widgets.dial import Dial
from fedlora_lab.course.widgets.scene import Scene, axis, bars, dots, line, panel, picture, text

Shades = Mapping[str, Sequence[Float[np.ndarray, "rows columns"]]]
Energies = Mapping[str, Sequence[float]]

TERMS = [(words, COLOURS[term]) for term, words in WORDS.items()]
NOISES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1)
ALPHA = 8


def _noise_scene(std: float, width: int, rank: int, size_B: float) -> Scene:
    """Draws the three noise terms over τ, and their shares at one τ."""

    ends = np.array([NOISES[0], NOISES[-1]])
    # ‖A‖² = r / 3, as PEFT draws it on average; ‖B‖ is given in units of ‖A‖.
    A = np.full((rank, width), (3 * width) ** -0.5)
    B = size_B * A.T
    one = theory.noise_terms(B, A, 1.0, 1.0, ALPHA / rank)
    here = theory.noise_terms(B, A, std, std, ALPHA / rank)
    linear = one.linear_B + one.linear_A
    cross = float(np.sqrt(linear / one.quadratic))
    marks = []
    shares = []
    for (name, colour), at_one, value, power in zip(TERMS, one, here, (2, 2, 4)):
        # Where a term is zero its line is empty: a logarithm has no zero.
        energy = at_one * ends**power if at_one else np.full(2, np.nan)
        dash = "7 4" if name == "noise on A" else None
        marks.append(line(ends, energy, colour, name, labelled=True, dash=dash))
        marks.append(dots(std, value or np.nan, colour))
        shares.append(value / here.total)
    rows = [bars(0, i - 0.32, shares[i], i + 0.32, TERMS[i][1]) for i in range(3)]
    panels = [
        panel(
            f"Noise × noise takes over at τ = {cross:.2g}",
            axis("τ, std of the noise on each entry of B and A", *ends, log=True),
            axis("energy in γ B A", 1e-6, 1e8, log=True),
            line(std, [1e-6, 1e8], "soft", dash="3 3", width=1.4),
            *marks,
            dots(cross, linear * cross**2, "ink", 6),
            wide=True,
        ),
        panel(
            f"Shares at τ = {std:g}",
            axis("share of the energy", 0, 1.2, ticks=[0, 0.5, 1]),
            axis("", 2.6, -0.6, ticks=[0, 1, 2], names=[name for name, _ in TERMS]),
            *rows,
            *(text(shares[i], i, f"{shares[i]:.0%}", dx=6, dy=4) for i in range(3)),
        ),
    ]
    return panels, [
        f"Noise of τ = {std:g} on both factors of a {width} × {width} layer, ",
        f"rank {rank}, α = {ALPHA}: the product moves by ",
        f"{here.total**0.5:.3g} (root mean square norm). Noise × noise carries ",
        f"{shares[2]:.0%} of that energy; from τ = {cross:.2g} on it carries more than half.",
    ]


def noise_explorer() -> Dial:
    """Makes a dial for noise, width, rank and the size of B: energies of three noise terms.

    Guarantees: the energies are `theory.noise_terms`
        (test_dials.py::test_a_dial_shows_what_its_scene_draws).
    """
    return Dial(
        "04/noise_explorer",
        _noise_scene,
        std=NOISES,
        width=(64, 256, 768, 4096),
        rank=(1, 4, 16, 64),
        size_B=(0, 0.5, 1, 2),
    )


def _film_scene(shades: Shades, energies: Energies, round: int) -> Scene:
    """Draws the factors of a round in one row, and their product as a sum in the next."""
    words = {"B": "B", "A": "A", **SUM}
    panels = [
        picture(label, shades[name][round], COLOURS.get(name, "ink"), row=name == "product")
        for name, label in words.items()
    ]
    noise = sum(energies[term][round] for term in WORDS)
    share = energies["noise_BA"][round] / noise if noise else 0.0
    rounds = len(energies["signal"]) - 1
    return panels, [
        f"Round {round} of {rounds}: in this layer the noise has an energy of {noise:.2g}, the "
        f"learned product {energies['signal'][round]:.2g}. ",
        f"Noise × noise is {share:.0%} of the noise.",
    ]


def matrix_film(run_rounds: Sequence[SplitRound], layer: str) -> Dial:
    """Makes a dial for the round: the factors, and their product as the sum of its four parts.

    Args: run_rounds: of `split_run`; layer: name of an adapted layer.
    """
    frames = matrix_frames(run_rounds, layer)
    shades = {name: shade(frames, name) for name in frames[0]}
    energies = {term: [float(np.sum(frame[term] ** 2)) for frame in frames] for term in PARTS}
    rounds = len(frames) - 1
    return Dial(
        "04/matrix_film",
        partial(_film_scene, shades, energies),
        presets={f"round {t}": {"round": t} for t in (1, rounds // 2, rounds)},
        start={"round": rounds},
        play="round",
        round=range(rounds + 1),
    )
