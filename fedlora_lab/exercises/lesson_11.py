"""Exercises of notebook 11: what does an update give away?"""

from collections.abc import Callable
from typing import Any

import numpy as np

from fedlora_lab.exercises.exercise import Calls, Exercise, Mistake, near, number
from fedlora_lab.exercises.lesson_02 import exactly, letters
from fedlora_lab.theory import vanishing_noise

_DRAWS = np.random.default_rng(11)
INPUT = _DRAWS.standard_normal(12)
GRADIENT = np.outer(_DRAWS.standard_normal(5), INPUT) + 0.15 * _DRAWS.standard_normal((5, 12))


def read(G: Any) -> np.ndarray:
    """The first right singular vector."""
    return np.linalg.svd(G)[2][0]


def by_eigenvector(G: Any) -> np.ndarray:
    """The same as an eigenvector of G^T G, of another size."""
    return -3 * np.linalg.eigh(G.T @ G)[1][:, -1]


def _first_row(G: Any) -> np.ndarray:
    return G[0]


def _mean(G: Any) -> np.ndarray:
    return G.mean(0)


def _loudest(G: Any) -> np.ndarray:
    return G[np.argmax(np.linalg.norm(G, axis=1))]


def _last(G: Any) -> np.ndarray:
    return np.linalg.svd(G, full_matrices=False)[2][-1]


def _left(G: Any) -> np.ndarray:
    return np.linalg.svd(G)[0][:, 0]


def _column(G: Any) -> np.ndarray:
    return np.linalg.svd(G)[2][:, 0]


def _absolute(G: Any) -> np.ndarray:
    return np.abs(read(G))


CALLED = Calls("the gradient", (GRADIENT,), shape=None)


def direction_of(answer: Any) -> np.ndarray:
    """What a reader's function makes of a noised gradient, brought to length 1."""
    found = CALLED(answer)[0].ravel()
    return found / max(float(np.linalg.norm(found)), 1e-300)


def along(function: Callable[[Any], Any]) -> Callable[[np.ndarray], bool]:
    """Whether a direction is that of this function's result, up to its sign."""
    expected = direction_of(function)
    return lambda found: found.shape == expected.shape and abs(abs(float(found @ expected)) - 1) < 1e-9


LOST = vanishing_noise(8, 768, 16)

EXERCISES = (
    Exercise(
        key="11.1",
        question=(
            "A layer of 768 inputs, rank 8. A client sends 16 updates for one and the same example, each with noise of "
            "its own, and the attacker averages them. Above which noise multiplier σ does the closed form say that the "
            "input is lost?"
        ),
        hint="One update: σ = 1/(r · d_in)^(1/4). What does averaging 16 of them do to the noise?",
        solution="1/(8 · 768)^(1/4) = 0.113. The mean of 16 updates has a quarter of the noise: 4 · 0.113 = 0.452.",
        answer=lambda: LOST,
        read=number,
        right=near(LOST, 5e-3),
        why="averaging T updates gains √T: noise that hides one update need not hide many. That is why ε counts them.",
        mistakes=(
            Mistake(LOST / 4, near(LOST / 4, 5e-3), "that holds for one update; 16 of them are averaged."),
            Mistake(4 * LOST, near(4 * LOST, 5e-3), "noise averages out with the square root: 16 updates gain 4."),
            Mistake(LOST / 2, near(LOST / 2, 5e-3), "16 updates gain √16 = 4; the fourth root is for r · d_in only."),
            Mistake(
                4 / (8 * 768) ** 0.5,
                near(4 / (8 * 768) ** 0.5, 5e-3),
                "you took the square root of r · d_in; it is the fourth.",
            ),
            Mistake(
                4 / 768**0.5,
                near(4 / 768**0.5, 5e-3),
                "that is where signal and noise in a row are equal; the r rows help to find the direction.",
            ),
            Mistake(LOST / 16, near(LOST / 16, 5e-3), "averaging lowers the noise, so more of it is needed, not less."),
        ),
        others=("0.452", 0.4518, 16**0.5 / (8 * 768) ** 0.25),
        difficulty=2,
        minutes=4,
    ),
    Exercise(
        key="11.2",
        question=(
            "No noise. From which of these updates can the exact span of the layer's inputs be read? "
            "(a) FFA-LoRA's: the gradient of B. "
            "(b) FedLoRA's first step, both gradients, B = 0. "
            "(c) RoLoRA's in an A phase, rank 8, B has moved; 5 examples, one input each. "
            "(d) The same with 20 examples. "
            "(e) Rank 8 on query, key and value of one block, B has moved; one sentence of 20 word pieces. "
            'Answer with letters, such as "ab".'
        ),
        hint="Two questions: is the gradient of A there and not zero? And are there as many rows as inputs?",
        solution=(
            "(a) holds A x only, 8 numbers of each input. (b): the gradient of A is s Bᵀ…, zero while B is zero; "
            "that of B again holds A x only. (c): 5 ≤ 8 rows. (d): 20 > 8. (e): query, key and value are given the "
            "same inputs, 24 rows for 20 inputs. So: c, e."
        ),
        answer=lambda: "ce",
        read=letters,
        right=exactly("ce"),
        why="rows of ∇A, counted over all layers that are given the same inputs, against the number of inputs.",
        mistakes=(
            Mistake("c", exactly("c"), "c is right; but query, key and value see the same inputs: count their rows."),
            Mistake("e", exactly("e"), "e is right, and so is another: how many rows has the gradient in c?"),
            Mistake("ace", exactly("ace"), "the gradient of B holds A x, a shadow with r numbers, not x."),
            Mistake("bce", exactly("bce"), "while B is zero the gradient of A is zero, too."),
            Mistake("cde", exactly("cde"), "8 rows cannot span 20 inputs."),
            Mistake("cd", exactly("cd"), "8 rows cannot span 20 inputs, but 3 · 8 rows can."),
            Mistake(
                "abcde", exactly("abcde"), "not all: three of them lack rows, or hold no gradient of A to speak of."
            ),
        ),
        others=("c, e", ["c", "e"], {"C", "E"}, "EC"),
        difficulty=3,
        minutes=8,
    ),
    Exercise(
        key="11.3",
        question=(
            "Write read(G): G is a noised gradient of A, a NumPy array (r, d_in), for a single input. Return the "
            "direction of that input, (d_in,), as well as G tells it; size and sign do not matter."
        ),
        hint="Without noise every row is the input times a number. Which direction fits all rows at once best?",
        solution="def read(G): return np.linalg.svd(G)[2][0]   # the first right singular vector",
        answer=lambda: read,
        read=direction_of,
        right=along(read),
        why="the singular vector weighs the rows by how much signal they carry; it is the maximum-likelihood answer.",
        mistakes=(
            Mistake(_first_row, along(_first_row), "one row is one noisy copy; use all of them."),
            Mistake(_mean, along(_mean), "rows carry the input with either sign, so that a mean cancels them."),
            Mistake(_loudest, along(_loudest), "the loudest row is the best single copy, yet the others know more."),
            Mistake(_last, along(_last), "that is the direction with the least of the gradient in it; take the first."),
            Mistake(_left, along(_left), "that is the left singular vector, of length r; the input is on the right."),
            Mistake(_column, along(_column), "NumPy gives the right singular vectors as rows: [2][0], not [2][:, 0]."),
            Mistake(_absolute, along(_absolute), "inputs may be negative; leave the signs within the vector alone."),
        ),
        others=(by_eigenvector, lambda G: list(read(G))),
        difficulty=2,
        minutes=6,
    ),
)
