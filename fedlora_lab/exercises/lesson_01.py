"""Exercises of notebook 01: what does LoRA change, and what does it not?"""

from typing import Any

import numpy as np

from fedlora_lab.exercises.exercise import Exercise, Mistake, near, number

SCALE = 3.0
B, A = np.array([[1.0], [2.0]]), np.array([[4.0, 0.0, -1.0]])
G = np.array([[1.0, 2.0, 0.0], [0.0, 1.0, 5.0]])


def gradient_of_A() -> np.ndarray:
    """s B^T G, (1, 3)."""
    return SCALE * B.T @ G


def row(answer: Any) -> np.ndarray:
    """An answer as an array of numbers; refused when it is none."""
    try:
        found = np.asarray(answer.detach() if hasattr(answer, "detach") else answer, dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError("an array of numbers, such as [[1, 2, 3]], is expected") from error
    if found.ndim == 0 and not np.isfinite(found):
        raise ValueError("an array of numbers, such as [[1, 2, 3]], is expected")
    return found


def equals(expected: Any, any_shape: bool = False) -> Any:
    """Whether an array has these numbers, and this shape."""
    wanted = np.asarray(expected, dtype=float)

    def same(found: np.ndarray) -> bool:
        fits = found.size == wanted.size if any_shape else found.shape == wanted.shape
        return bool(fits and np.allclose(found.ravel(), wanted.ravel(), rtol=1e-6, atol=1e-9))

    return same


def same_first_step() -> float:
    """alpha^2 / r stays: 8 sqrt(16 / 4)."""
    return 8 * (16 / 4) ** 0.5


EXERCISES = (
    Exercise(
        key="01.1",
        question=(
            "A layer maps 3 inputs to 2 outputs, rank 1, s = 3. B = [[1], [2]], A = [[4, 0, −1]], and the gradient of "
            "the loss with respect to the whole weight is G = [[1, 2, 0], [0, 1, 5]]. What is the gradient for A? "
            "Give an array of A's shape."
        ),
        hint="Move A by a little dA. By how much does W move? The loss then moves by the sum of G times that.",
        solution=(
            "dW = s B dA, so the loss moves by ⟨G, s B dA⟩ = ⟨s Bᵀ G, dA⟩: the gradient for A is s Bᵀ G = "
            "3 · [1·1 + 2·0, 1·2 + 2·1, 1·0 + 2·5] = [[3, 12, 30]]. A itself does not occur in it."
        ),
        answer=gradient_of_A,
        read=row,
        right=lambda found: equals(gradient_of_A())(found) or equals(gradient_of_A()[0])(found),
        why="it is s Bᵀ G; at B = 0 it would be zero, whatever A and G are.",
        mistakes=(
            Mistake(B.T @ G, equals(B.T @ G, True), "that is Bᵀ G: the scale s = 3 is missing; the chain rule has it."),
            Mistake(
                SCALE * G @ A.T, equals(SCALE * G @ A.T, True), "that is s G Aᵀ, the gradient for B; A's has B in it."
            ),
            Mistake(
                SCALE**2 * B.T @ G, equals(SCALE**2 * B.T @ G, True), "the scale stands there twice; it enters W once."
            ),
            Mistake(
                gradient_of_A().T,
                equals(gradient_of_A().T),
                "the numbers are right, lying on their side: a gradient has the shape of what it belongs to, (1, 3).",
            ),
            Mistake(
                np.zeros((1, 3)),
                lambda found: found.size == 3 and not found.any(),
                "zero only when B is zero; here B = [[1], [2]].",
            ),
        ),
        others=([[3, 12, 30]], [3.0, 12.0, 30.0], np.einsum("or,ok->rk", B, 3 * G)),
        difficulty=2,
        minutes=6,
    ),
    Exercise(
        key="01.2",
        question=(
            "You train with rank 4 and α = 8 and find a learning rate that you like. Now you raise the rank to 16 and "
            "keep the learning rate. Which α gives the first step the same expected move along the full gradient, "
            "s² · r / (3k) with s = α / r?"
        ),
        hint="Write s as α / r, put it in, and see which combination of α and r is left.",
        solution=(
            "s² r / (3k) = α² / (3 k r). So α² / r has to stay: α = 8 · √(16 / 4) = 16. That is α growing with √r, "
            "the rule of rank-stabilised LoRA (s ∝ 1/√r), here from the first step alone."
        ),
        answer=same_first_step,
        read=number,
        right=near(16.0),
        why="α² / r stays the same, so α grows with the square root of the rank.",
        mistakes=(
            Mistake(32.0, near(32.0), "that keeps α / r; but A now has four times the rows, and the step four times."),
            Mistake(8.0, near(8.0), "with α unchanged the step is α² / r: at rank 16 a quarter of what it was."),
            Mistake(4.0, near(4.0), "the wrong way round: a larger rank makes s smaller, so α has to grow."),
            Mistake(128.0, near(128.0), "α enters squared: take the root of the factor 4, not its square."),
            Mistake(2.0, near(2.0), "that is s = α / r at rank 4; the question asks for α at rank 16."),
        ),
        others=("16", 16, 8 * np.sqrt(4)),
        difficulty=3,
        minutes=8,
    ),
    Exercise(
        key="01.3",
        question=(
            "Training in full would change a layer by D, whose singular values are 3, 2 and 1. How near can an adapter "
            "of rank 1 come at best? Give ‖s B A − D‖ / ‖D‖ in the Frobenius norm."
        ),
        hint="The squared Frobenius norm of a matrix is the sum of its squared singular values.",
        solution=(
            "The best rank-1 matrix keeps the largest singular value and leaves 2 and 1: "
            "√(2² + 1²) / √(3² + 2² + 1²) = √(5 / 14) = 0.598. No α changes that."
        ),
        answer=lambda: (5 / 14) ** 0.5,
        read=number,
        right=near((5 / 14) ** 0.5, 2e-3),
        why="what is left is √(4 + 1) of √14; the scale s is absorbed by B.",
        mistakes=(
            Mistake(5 / 14, near(5 / 14, 2e-3), "that is the share of the energy; the norm is its square root."),
            Mistake(
                (9 / 14) ** 0.5, near((9 / 14) ** 0.5, 2e-3), "that is what rank 1 keeps; asked is what it leaves."
            ),
            Mistake(9 / 14, near(9 / 14, 2e-3), "that is the share of the energy which is kept; asked is the error."),
            Mistake(0.5, near(0.5, 2e-3), "you added the singular values; a Frobenius norm adds their squares."),
            Mistake(5**0.5, near(5**0.5, 2e-3), "that is the error itself; divide by the norm of D."),
        ),
        others=(0.598, "0.5976"),
        difficulty=2,
        minutes=5,
    ),
)
