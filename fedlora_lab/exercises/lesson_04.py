"""Exercises of notebook 04: why does noise get amplified?"""

import math
from typing import Any

import numpy as np

from fedlora_lab.exercises.exercise import Calls, Exercise, Mistake, near, number
from fedlora_lab.theory import crossover, factor_average_terms, noise_terms, product_average_terms

STD = 0.3


def factors() -> tuple[np.ndarray, np.ndarray]:
    """B (5, 2) and A (2, 7) with different norms."""
    return np.arange(10.0).reshape(5, 2) / 10, np.arange(14.0).reshape(2, 7) / 20


def energy(B: Any, A: Any, s: float) -> float:
    """Expected squared norm of (B + ξ_B)(A + ξ_A) − BA, noise of std s on every entry."""
    (d, r), k = B.shape, A.shape[1]
    return float(s**2 * d * np.sum(A**2) + s**2 * k * np.sum(B**2) + s**4 * d * k * r)


def by_theory(B: Any, A: Any, s: float) -> float:
    """The same from the library."""
    return noise_terms(B, A, s, s).total


def _swapped(B: Any, A: Any, s: float) -> float:
    (d, r), k = B.shape, A.shape[1]
    return s**2 * k * np.sum(A**2) + s**2 * d * np.sum(B**2) + s**4 * d * k * r


def _linear(B: Any, A: Any, s: float) -> float:
    return energy(B, A, s) - s**4 * B.size * A.shape[1]


def _quadratic(B: Any, A: Any, s: float) -> float:
    return s**4 * B.size * A.shape[1]


def _squared(B: Any, A: Any, s: float) -> float:
    return _linear(B, A, s) + s**2 * B.size * A.shape[1]


def _without_rank(B: Any, A: Any, s: float) -> float:
    return _linear(B, A, s) + s**4 * B.shape[0] * A.shape[1]


def _norms(B: Any, A: Any, s: float) -> float:
    (d, r), k = B.shape, A.shape[1]
    return float(s**2 * d * np.linalg.norm(A) + s**2 * k * np.linalg.norm(B) + s**4 * d * k * r)


def _root(B: Any, A: Any, s: float) -> float:
    return math.sqrt(energy(B, A, s))


CALLED = Calls("B, A and s", (*factors(), STD), within=1e-9)


def takeover() -> float:
    """The std at which noise times noise overtakes the linear noise, d_in = 1,024 and A orthonormal."""
    return crossover(1024) * math.sqrt(3)


def ratio() -> float:
    """Quadratic energy when ten clients' products are averaged, over that when their factors are."""
    B, A = factors()
    return product_average_terms(B, A, 1.0, 1.0, 10).quadratic / factor_average_terms(B, A, 1.0, 1.0, 10).quadratic


EXERCISES = (
    Exercise(
        key="04.1",
        question=(
            "Write energy(B, A, s): the expected squared Frobenius norm of (B + ξ_B)(A + ξ_A) − B·A when every entry "
            "of ξ_B and ξ_A is drawn from N(0, s²). B and A are NumPy arrays of shapes (d, r) and (r, k). No random "
            "numbers are needed."
        ),
        hint="Three terms. For ξ_B·A: how large is one entry, squared and averaged, and how many rows are there?",
        solution=(
            "(d, r), k = B.shape, A.shape[1]; return s**2 * d * (A**2).sum() + s**2 * k * (B**2).sum() + "
            "s**4 * d * k * r. The terms are uncorrelated, so their energies add."
        ),
        answer=lambda: energy,
        read=CALLED,
        right=CALLED.gives(energy),
        why="two terms grow with s², one with s⁴: that one wins as soon as the noise is large enough.",
        mistakes=(
            Mistake(_swapped, CALLED.gives(_swapped),
                    "d and k are swapped: ξ_B·A has d rows, each as long as A makes it. "
                    "With square layers nobody notices."),
            Mistake(_linear, CALLED.gives(_linear), "noise times noise is missing: the term ξ_B·ξ_A."),
            Mistake(_quadratic, CALLED.gives(_quadratic),
                    "that is noise times noise alone; the noise also meets B and A."),
            Mistake(_squared, CALLED.gives(_squared),
                    "noise times noise holds s twice, and its square four times: s⁴, not "
                    "s²."),
            Mistake(_without_rank, CALLED.gives(_without_rank),
                    "each entry of ξ_B·ξ_A is a sum of r products: its energy has "
                    "a factor r."),
            Mistake(_norms, CALLED.gives(_norms), "square the norms of A and B."),
            Mistake(_root, CALLED.gives(_root), "that is the norm; the question asks for its square, the energy."),
        ),
        others=(by_theory, lambda B, A, s: np.float64(energy(B, A, s))),
        difficulty=2,
        minutes=8,
    ),
    Exercise(
        key="04.2",
        question=(
            "At the start of training B = 0. This time A is not Kaiming: its r rows are orthonormal, so ‖A‖² = r. The "
            "layer has d_in = 1,024 inputs. At which noise std s (on every entry of both factors) does noise times "
            "noise carry as much energy as the linear noise?"
        ),
        hint="Set s⁴·d·k·r equal to s²·d·‖A‖², with k = d_in. Which letters drop out?",
        solution="s⁴·d·k·r = s²·d·r gives s² = 1/k, so s = 1/√1024 = 1/32 = 0.03125.",
        answer=takeover,
        read=number,
        right=near(1 / 32, 1e-4),
        why="√3 later than with a Kaiming A, whose energy is only r/3: a longer A drowns the product of noises longer.",
        mistakes=(
            Mistake(crossover(1024), near(crossover(1024), 1e-4), "that is the crossover of a Kaiming A, ‖A‖² = r/3; "
                    "here ‖A‖² = r."),
            Mistake(1 / 1024, near(1 / 1024, 1e-5), "that is s²; take the root."),
            Mistake(32.0, near(32.0), "upside down: at s = 32 everything is noise."),
            Mistake(1 / 64, near(1 / 64, 1e-4), "that would need k = 4,096 or ‖A‖² = r/4; put in ‖A‖² = r and k = "
                    "1,024."),
            Mistake(math.sqrt(3 / 1024), near(math.sqrt(3 / 1024), 1e-4), "the 3 of the Kaiming A does not belong "
                    "here, neither above nor below."),
        ),
        others=("0.03125", 2**-5, np.float32(0.03125)),
        difficulty=2,
        minutes=5,
    ),
    Exercise(
        key="04.3",
        question=(
            "Ten clients hold the same B and A; each adds noise of its own to both. Server one averages the factors "
            "and multiplies. Server two multiplies first and averages the ten products, which is exact. How many times "
            "as much energy does noise times noise have at server two as at server one?"
        ),
        hint="Averaging K independent terms divides an energy by K. At server one, how many things are averaged?",
        solution=(
            "Server one: each averaged factor has noise of variance s²/K, so the energy of their product has "
            "(s²/K)² = s⁴/K². Server two: K independent products of energy s⁴ are averaged, s⁴/K. The ratio is K = 10."
        ),
        answer=ratio,
        read=number,
        right=near(10.0),
        why="being exact in the mean costs K times the quadratic noise; the linear terms are the same at both.",
        mistakes=(
            Mistake(1.0, near(1.0), "that holds for the two linear terms; noise times noise is averaged once at server "
                    "two and twice, in both factors, at server one."),
            Mistake(0.1, near(0.1), "upside down: which server averages before the noises meet?"),
            Mistake(100.0, near(100.0), "K² is how much server one gains; server two gains K of it."),
            Mistake(math.sqrt(10), near(math.sqrt(10)), "that is the ratio of the norms; energies are squared norms."),
        ),
        others=(10, "10", np.int64(10)),
        difficulty=3,
        minutes=6,
    ),
)  # fmt: skip
