"""Exercises of notebook 08: what if clients never see the real adapter?"""

from typing import Any

import numpy as np

from fedlora_lab.exercises.exercise import Calls, Exercise, Mistake, near, number
from fedlora_lab.theory import bits_per_number
from fedlora_lab.wire import normal_float, normal_levels

LEVELS = np.array(normal_levels(2))
BLOCK = np.array([0.10, -0.62, 0.30, 0.05, -1.6, 0.90])


def quantise(x: Any, levels: Any) -> np.ndarray:
    """One block: divide by the largest magnitude, round to the nearest level, multiply back."""
    scale = np.abs(x).max()
    nearest = np.abs(x[:, None] / scale - levels[None]).argmin(1)
    return levels[nearest] * scale


def by_library(x: Any, levels: Any) -> Any:
    """The same from the library (for the two-bit code)."""
    import torch

    return normal_float(2, len(x))(torch.from_numpy(np.asarray(x)))


def _unscaled(x: Any, levels: Any) -> np.ndarray:
    return levels[np.abs(x[:, None] - levels[None]).argmin(1)]


def _not_back(x: Any, levels: Any) -> np.ndarray:
    return quantise(x, levels) / np.abs(x).max()


def _largest_signed(x: Any, levels: Any) -> np.ndarray:
    scale = x.max()
    return levels[np.abs(x[:, None] / scale - levels[None]).argmin(1)] * scale


def _down(x: Any, levels: Any) -> np.ndarray:
    scale = np.abs(x).max()
    return levels[np.searchsorted(levels, x / scale, side="right") - 1] * scale


def _codes(x: Any, levels: Any) -> np.ndarray:
    return np.abs(x[:, None] / np.abs(x).max() - levels[None]).argmin(1).astype(float)


def _even(x: Any, levels: Any) -> np.ndarray:
    return quantise(x, np.linspace(-1, 1, len(levels)))


CALLED = Calls("x and levels", (BLOCK, LEVELS), shape=BLOCK.shape, within=1e-9)

EXERCISES = (
    Exercise(
        key="08.1",
        question=(
            "Write quantise(x, levels): x is one block, a NumPy array; levels is the code, rising from −1 to 1. Return "
            "what the client receives: each number divided by the block's largest magnitude, put on the nearest level, "
            "and multiplied back."
        ),
        hint="x[:, None] - levels[None] is a table of all differences. Which column is nearest in each row?",
        solution=("c = np.abs(x).max(); i = np.abs(x[:, None] / c - levels[None]).argmin(1); return levels[i] * c."),
        answer=lambda: quantise,
        read=CALLED,
        right=CALLED.gives(quantise),
        why="the largest of the block arrives exactly, zero stays zero, everything else moves to a level.",
        mistakes=(
            Mistake(
                _unscaled,
                CALLED.gives(_unscaled),
                "the levels reach from −1 to 1; divide the block by its largest magnitude first, and multiply back.",
            ),
            Mistake(
                _not_back,
                CALLED.gives(_not_back),
                "multiply by the scale again: the client needs numbers of the old size.",
            ),
            Mistake(
                _largest_signed,
                CALLED.gives(_largest_signed),
                "scale by the largest magnitude, not the largest number: here it is −1.6.",
            ),
            Mistake(_down, CALLED.gives(_down), "that rounds down to the level below; take the nearest one."),
            Mistake(
                _codes,
                CALLED.gives(_codes),
                "these are the codes, the levels' places; look the levels up and scale them.",
            ),
            Mistake(_even, CALLED.gives(_even), "these levels lie evenly; use the ones you are given."),
        ),
        others=(by_library, lambda x, levels: list(quantise(x, levels))),
        difficulty=2,
        minutes=8,
    ),
    Exercise(
        key="08.2",
        question=(
            "One number, FedLPP's server: it holds ψ = 1.0, and the clients received Q(ψ) = 1.1. After local training "
            "they send 1.3, 1.4 and 1.5. The server's learning rate is η = 0.5. What does the server hold now?"
        ),
        hint="How far did the clients move from what they received? The server moves from what it holds.",
        solution="The clients moved by 1.4 − 1.1 = 0.3 on average. ψ + η · 0.3 = 1.0 + 0.15 = 1.15.",
        answer=lambda: 1.0 + 0.5 * (np.mean([1.3, 1.4, 1.5]) - 1.1),
        read=number,
        right=near(1.15),
        why="the clients' movement is applied to the unquantised state: small steps add up, none is rounded away.",
        mistakes=(
            Mistake(
                1.25, near(1.25), "that starts from Q(ψ): what the rounding took would be lost for ever. Start from ψ."
            ),
            Mistake(
                1.2,
                near(1.2),
                "that measures the movement from ψ, but the clients started at Q(ψ) = 1.1: the rounding "
                "of 0.1 is not theirs.",
            ),
            Mistake(
                1.4,
                near(1.4),
                "1.4 is the mean of what they sent; the server takes its movement away from 1.1, times η.",
            ),
            Mistake(1.3, near(1.3), "η is missing: only half of the movement is applied."),
            Mistake(1.45, near(1.45), "you added the three movements; take their mean."),
            Mistake(0.85, near(0.85), "the sign is turned: move the way the clients moved."),
        ),
        others=("1.15", 1 + 0.5 * 0.3, np.float32(1.15)),
        difficulty=2,
        minutes=4,
    ),
    Exercise(
        key="08.3",
        question=(
            "A code of 4 bits, blocks of 64 numbers, one 32-bit scale a block. How many times fewer bits does a long "
            "broadcast take than with 32 bits a number?"
        ),
        hint="The scale is shared by the block: how many bits of it fall on each number?",
        solution="4 + 32/64 = 4.5 bits a number, and 32/4.5 = 7.11.",
        answer=lambda: 32 / bits_per_number(4, 64),
        read=number,
        right=near(32 / 4.5, 2e-3),
        why="the scale costs half a bit a number; with blocks of 16 it would be two bits, and the gain 5.3.",
        mistakes=(
            Mistake(8.0, near(8.0), "the block's scale is sent too."),
            Mistake(4.5, near(4.5), "these are the bits a number takes; how many times fewer than 32?"),
            Mistake(32 / 36, near(32 / 36, 2e-3), "the scale is one for 64 numbers, not one for each."),
            Mistake(32 / 4.25, near(32 / 4.25, 2e-3), "the scale has 32 bits, not 16."),
            Mistake(4.5 / 32, near(4.5 / 32, 2e-3), "upside down: that is the share which is left."),
        ),
        others=("7.111", 64 / 9, 7.11),
        difficulty=1,
        minutes=3,
    ),
)
