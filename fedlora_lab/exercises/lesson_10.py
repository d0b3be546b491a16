"""Exercises of notebook 10: can the server be exact with both factors moving?"""

import numpy as np

from fedlora_lab.exercises.exercise import Calls, Exercise, Mistake, near, number

_DRAWS = np.random.default_rng(100)
STACK_B, STACK_A = _DRAWS.standard_normal((5, 9, 2)), _DRAWS.standard_normal((5, 2, 8))
FACTORS, STACKED, WHOLE = 8 * (4096 + 4096), 20 * 8 * (4096 + 4096), 4096 * 4096


def _norm(x: np.ndarray) -> float:
    return float(np.sqrt(np.sum(np.square(x))))


def _lost(product: np.ndarray, rank: int) -> float:
    """Share of a matrix's norm that its best approximation of this rank leaves out."""
    values = np.linalg.svd(product, compute_uv=False)
    return _norm(values[rank:]) / _norm(values)


def lost(B: np.ndarray, A: np.ndarray) -> float:
    """Relative error of the best approximation of rank r to the mean of the products."""
    return _lost((B @ A).mean(0), A.shape[1])


def thin(B: np.ndarray, A: np.ndarray) -> float:
    """The same from thin factors, without the matrix."""
    left, right = np.concatenate(list(B), 1) / len(B), np.concatenate(list(A))
    values = np.linalg.svd(np.linalg.qr(left)[1] @ np.linalg.qr(right.T)[1].T, compute_uv=False)
    return _norm(values[A.shape[1] :]) / _norm(values)


def _factors(B: np.ndarray, A: np.ndarray) -> float:
    mean = (B @ A).mean(0)
    return _norm(B.mean(0) @ A.mean(0) - mean) / _norm(mean)


def _each(B: np.ndarray, A: np.ndarray) -> float:
    return float(np.mean([_lost(b @ a, A.shape[1]) for b, a in zip(B, A, strict=True)]))


def _kept(B: np.ndarray, A: np.ndarray) -> float:
    return float(np.sqrt(1 - lost(B, A) ** 2))


def _squared(B: np.ndarray, A: np.ndarray) -> float:
    return lost(B, A) ** 2


def _absolute(B: np.ndarray, A: np.ndarray) -> float:
    return lost(B, A) * _norm((B @ A).mean(0))


def _next(B: np.ndarray, A: np.ndarray) -> float:
    values = np.linalg.svd((B @ A).mean(0), compute_uv=False)
    return float(values[A.shape[1]] / values[0])


CALLED = Calls("B and A", (STACK_B, STACK_A))

EXERCISES = (
    Exercise(
        key="10.1",
        question=(
            "One layer of 4096 x 4096, rank 8, twenty clients upload. How many numbers does a client of FedEx-LoRA "
            "receive after the round: the mean factors, and the residual, sent as a pair of factors of rank (clients "
            "x rank) or whole, whichever is less?"
        ),
        hint="A pair of factors of rank q for this layer has q (4096 + 4096) numbers. Compare with 4096 · 4096.",
        solution=(
            "Mean factors: 8 · 8192 = 65,536. Residual: rank 160, 160 · 8192 = 1,310,720, less than the 16,777,216 of "
            "the layer. Together 1,376,256: 21 times the factors. On digits (64 x 64, ten clients, rank 4) the whole "
            "matrix is less than the factors, and the whole matrix is sent."
        ),
        answer=lambda: FACTORS + min(STACKED, WHOLE),
        read=number,
        right=near(FACTORS + STACKED),
        why="(clients + 1) times the factors: exactness grows with the number of clients, until the matrix is less.",
        mistakes=(
            Mistake(STACKED, near(STACKED), "that is the residual alone; the mean factors go down as well."),
            Mistake(FACTORS, near(FACTORS), "these are the mean factors; the residual is missing."),
            Mistake(
                FACTORS + WHOLE,
                near(FACTORS + WHOLE),
                "the whole matrix is not the cheaper way here: 160 < 2048 ranks.",
            ),
            Mistake(2 * FACTORS, near(2 * FACTORS), "the residual has the rank of all clients' factors together, 160."),
            Mistake(
                4 * (FACTORS + STACKED), near(4 * (FACTORS + STACKED)), "that is bytes of float32; numbers were asked."
            ),
            Mistake(20 * (FACTORS + STACKED), near(20 * (FACTORS + STACKED)), "one client was asked, not all twenty."),
        ),
        others=("1376256", 168 * 8192),
        difficulty=2,
        minutes=6,
    ),
    Exercise(
        key="10.2",
        question=(
            "Sixteen clients put noise of the same standard deviation on both factors. By which factor must each "
            "client's standard deviation be multiplied, so that a server that averages the products has no more of the "
            "quadratic noise energy than one that averages the factors had before?"
        ),
        hint="The quadratic energy is d_out · d_in · r · std⁴, divided by K for products and by K² for factors.",
        solution=(
            "Products have K = 16 times the energy, and the energy goes with the fourth power of the standard "
            "deviation (once squared for each factor): 16^(−1/4) = 1/2. Half the noise is far less privacy."
        ),
        answer=lambda: 16**-0.25,
        read=number,
        right=near(0.5),
        why="std⁴ / 16 against std⁴ / 256: a fourth root of 1/16.",
        mistakes=(
            Mistake(1 / 16, near(1 / 16), "1/16 is the ratio of the energies; the energy goes with the fourth power."),
            Mistake(
                0.25, near(0.25), "that would do for one noised factor, std²; here noise multiplies noise, std² · std²."
            ),
            Mistake(2.0, near(2.0), "the other way round: averaging products keeps more noise, so each must add less."),
            Mistake(16.0, near(16.0), "16 is how much more energy there is; asked is what undoes it."),
            Mistake(1.0, near(1.0), "the linear terms are equal; the quadratic ones are not."),
        ),
        others=("0.5", 1 / 2),
        difficulty=3,
        minutes=6,
    ),
    Exercise(
        key="10.3",
        question=(
            "Write a function of two NumPy arrays, B (clients, d_out, r) and A (clients, r, d_in), that gives the "
            "relative error of FlexLoRA's server: how much of the mean product's norm the best approximation of rank r "
            "leaves out. All clients count alike. Hand in the function itself."
        ),
        hint="np.linalg.svd(mean, compute_uv=False) gives the singular values; the first r are kept.",
        solution=(
            "def lost(B, A): s = np.linalg.svd((B @ A).mean(0), compute_uv=False); "
            "return np.linalg.norm(s[A.shape[1]:]) / np.linalg.norm(s)"
        ),
        answer=lambda: lost,
        read=CALLED,
        right=CALLED.gives(lost),
        why="the norm of the singular values beyond the first r, over the norm of all: Eckart and Young.",
        mistakes=(
            Mistake(
                _factors, CALLED.gives(_factors), "that is the error of averaging the factors, FedLoRA's deviation."
            ),
            Mistake(
                _each, CALLED.gives(_each), "every single product has rank r already; cut the mean, not the clients'."
            ),
            Mistake(_kept, CALLED.gives(_kept), "that is what the server keeps; asked is what it loses."),
            Mistake(_squared, CALLED.gives(_squared), "that is the share of the energy; take the root for norms."),
            Mistake(
                _absolute,
                CALLED.gives(_absolute),
                "divide by the norm of the mean product: a relative error was asked.",
            ),
            Mistake(
                _next, CALLED.gives(_next), "one singular value is not enough: all those beyond the first r are lost."
            ),
        ),
        others=(thin, lambda B, A: np.float64(lost(B, A))),
        difficulty=3,
        minutes=10,
    ),
)
