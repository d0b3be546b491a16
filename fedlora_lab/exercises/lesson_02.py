"""Exercises of notebook 02: why is the average of products not the product of averages?"""

from collections.abc import Callable
from typing import Any

import numpy as np

from fedlora_lab.exercises.exercise import Calls, Exercise, Mistake, near, number

_DRAWS = np.random.default_rng(20)
STACK_B, STACK_A = _DRAWS.standard_normal((7, 6, 2)), _DRAWS.standard_normal((7, 2, 5))


def weighted() -> float:
    """-p1 p2 (B1 - B2)(A1 - A2) for p = 1/4, 3/4; B = 0, 4; A = 2, 6."""
    return -0.25 * 0.75 * (0 - 4) * (2 - 6)


def letters(answer: Any) -> frozenset[str]:
    """An answer as a set of letters: "ac", ["a", "c"] and "a, c" are the same."""
    parts = "".join(answer) if isinstance(answer, (list, tuple, set, frozenset)) and _texts(answer) else answer
    if not isinstance(parts, str):
        raise ValueError('letters such as "a, b" are expected')
    return frozenset(letter for letter in parts.lower() if letter.isalpha())


def _texts(answer: Any) -> bool:
    return all(isinstance(part, str) for part in answer)


def exactly(text: str) -> Callable[[frozenset], bool]:
    """Whether the letters are these."""
    return lambda found: found == frozenset(text)


def _norm(x: np.ndarray) -> float:
    return float(np.sqrt(np.sum(np.square(x))))


def relative(B: np.ndarray, A: np.ndarray) -> float:
    """||mean B mean A - mean of B A|| / ||mean of B A||."""
    mean = np.mean(B @ A, axis=0)
    return _norm(B.mean(0) @ A.mean(0) - mean) / _norm(mean)


def covariance_form(B: np.ndarray, A: np.ndarray) -> float:
    """The same from the gaps to the means."""
    gaps = np.einsum("ior,irk->ok", B - B.mean(0), A - A.mean(0)) / len(B)
    return _norm(gaps) / _norm(np.einsum("ior,irk->ok", B, A) / len(B))


def _of_norms(B: np.ndarray, A: np.ndarray) -> float:
    mean = np.mean([_norm(b @ a) for b, a in zip(B, A, strict=True)])
    return float(abs(_norm(B.mean(0) @ A.mean(0)) - mean) / mean)


def _absolute(B: np.ndarray, A: np.ndarray) -> float:
    return relative(B, A) * _norm(np.mean(B @ A, axis=0))


def _to_server(B: np.ndarray, A: np.ndarray) -> float:
    return _absolute(B, A) / _norm(B.mean(0) @ A.mean(0))


def _summed(B: np.ndarray, A: np.ndarray) -> float:
    total = np.sum(B @ A, axis=0)
    return _norm(B.mean(0) @ A.mean(0) - total) / _norm(total)


def _squared(B: np.ndarray, A: np.ndarray) -> float:
    return relative(B, A) ** 2


CALLED = Calls("B and A", (STACK_B, STACK_A))

EXERCISES = (
    Exercise(
        key="02.1",
        question=(
            "Two clients, one number each: B = 0 and 4, A = 2 and 6. The server weighs them by their data, "
            "p = 1/4 and 3/4. What is D = (Σ p B)(Σ p A) − Σ p B A?"
        ),
        hint="For two clients the sum over pairs has one term: D = −p₁ p₂ (B₁ − B₂)(A₁ − A₂).",
        solution=(
            "Server: (3/4 · 4)(1/4 · 2 + 3/4 · 6) = 3 · 5 = 15. Mean of the products: 3/4 · 24 = 18. D = −3, and "
            "−p₁ p₂ (B₁ − B₂)(A₁ − A₂) = −3/16 · (−4)(−4) = −3."
        ),
        answer=weighted,
        read=number,
        right=near(-3.0),
        why="−p₁ p₂ (B₁ − B₂)(A₁ − A₂) = −3/16 · 16; equal weights would make it −4.",
        mistakes=(
            Mistake(-4.0, near(-4.0), "that is D for equal weights; here the clients count 1/4 and 3/4."),
            Mistake(
                3.0, near(3.0), "the size is right; D is the server's product minus the mean, and it is too small."
            ),
            Mistake(-6.0, near(-6.0), "you counted the pair twice: the double sum over i and j has a factor ½."),
            Mistake(15.0, near(15.0), "15 is what the server holds; subtract the weighted mean of the products."),
            Mistake(
                18.0, near(18.0), "18 is the weighted mean of the products; asked is how far the server is from it."
            ),
            Mistake(-16.0, near(-16.0), "the weights are missing: multiply by p₁ p₂ = 3/16."),
        ),
        others=("-3", -3, (0.75 * 4) * (0.25 * 2 + 0.75 * 6) - 0.75 * 24),
        difficulty=1,
        minutes=4,
    ),
    Exercise(
        key="02.2",
        question=(
            "In which of these federations is D = 0 for EVERY choice of weights? "
            "(a) All clients hold the same A. "
            "(b) Rank 1, four clients with (B, A) = (1, 1), (1, −1), (−1, 1), (−1, −1). "
            "(c) Two clients of rank 2 that differ only in the first column of B and in the second row of A. "
            "(d) Two clients of rank 2 that differ only in the first column of B and in the first row of A. "
            'Answer with letters, such as "ab".'
        ),
        hint="D = 0 for every weighting exactly when (B_i − B_j)(A_i − A_j) = 0 for every pair of clients.",
        solution=(
            "(a): A_i − A_j = 0. (b): clients 1 and 4 differ by 2 in both, 2 · 2 ≠ 0, so weights on these two alone "
            "give D ≠ 0; equal weights on all four only happen to cancel. (c): the product of the gaps is the first "
            "column times the first row of A's gap, which is zero. (d): first column times first row, not zero. "
            "So: a, c."
        ),
        answer=lambda: "ac",
        read=letters,
        right=exactly("ac"),
        why="a pair only hurts where its gap in B meets its gap in A in the same one of the r directions.",
        mistakes=(
            Mistake("a", exactly("a"), "a is right, but there is another: in c both factors differ and no gap meets."),
            Mistake("abc", exactly("abc"), "b cancels for equal weights only; try weights on the first and the last."),
            Mistake("ab", exactly("ab"), "b only cancels for equal weights, and there is one more that always does."),
            Mistake("acd", exactly("acd"), "in d the gaps meet: the first column of B multiplies the first row of A."),
            Mistake("ad", exactly("ad"), "c and d are exchanged: which row of A does the first column of B multiply?"),
            Mistake("c", exactly("c"), "c is right, but so is the simplest of all: one factor common to everybody."),
            Mistake("abcd", exactly("abcd"), "not all: two of them have a pair of clients whose gaps multiply to ≠ 0."),
        ),
        others=("c, a", ["a", "c"], {"A", "C"}, "AC"),
        difficulty=4,
        minutes=10,
    ),
    Exercise(
        key="02.3",
        question=(
            "Write a function of two NumPy arrays, B (clients, d_out, r) and A (clients, r, d_in), that gives the "
            "relative deviation: the Frobenius norm of D over that of the mean of the products, all clients alike. "
            "Hand in the function itself."
        ),
        hint="B @ A multiplies client by client; .mean(0) averages over clients; np.linalg.norm is the Frobenius norm.",
        solution=(
            "def relative(B, A): mean = (B @ A).mean(0); "
            "return np.linalg.norm(B.mean(0) @ A.mean(0) − mean) / np.linalg.norm(mean)"
        ),
        answer=lambda: relative,
        read=CALLED,
        right=CALLED.gives(relative),
        why="products first, then the mean; then the norm of the difference.",
        mistakes=(
            Mistake(_of_norms, CALLED.gives(_of_norms), "you averaged the products' norms, not the products."),
            Mistake(
                _absolute,
                CALLED.gives(_absolute),
                "that is the norm of D itself; divide by the norm of the mean product.",
            ),
            Mistake(
                _to_server,
                CALLED.gives(_to_server),
                "you divided by the server's product; by the mean of the products.",
            ),
            Mistake(_summed, CALLED.gives(_summed), "you summed the products over clients; take their mean."),
            Mistake(_squared, CALLED.gives(_squared), "that is the square: norms, not squared norms."),
        ),
        others=(covariance_form, lambda B, A: np.float64(relative(B, A))),
        difficulty=2,
        minutes=8,
    ),
)
