"""The dial of notebook 04: noise on the factors and in their product, as matrices."""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from jaxtyping import Float

from fedlora_course.lesson_04.figures import (
    COLOURS,
    PARTS,
    SUM,
    WORDS,
    SplitRound,
    matrix_frames,
    shade,
)
from fedlora_course.widgets.dial import Dial
from fedlora_course.widgets.scene import Scene, picture

Shades = Mapping[str, Sequence[Float[np.ndarray, "rows columns"]]]
Energies = Mapping[str, Sequence[float]]


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
