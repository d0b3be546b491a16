"""Exercises of notebook 07: what if they take turns within a round?"""

import math

import numpy as np

from fedlora_lab.exercises.exercise import Calls, Exercise, Mistake, near, number
from fedlora_lab.theory import filter_gain, two_number_descent

POINT = (0.7, 1.9, 0.3)


def turn(b: float, a: float, lr: float) -> tuple[float, float]:
    """A step of b, then a step of a where b now stands, on (b a - 1)^2 / 2."""
    b = b - lr * (b * a - 1) * a
    return b, a - lr * (b * a - 1) * b


def by_theory(b: float, a: float, lr: float) -> np.ndarray:
    """The same from the library."""
    return two_number_descent((b, a), lr, 2, turns=True)[-1]


def _at_once(b: float, a: float, lr: float) -> tuple[float, float]:
    error = b * a - 1
    return b - lr * error * a, a - lr * error * b


def _stale_error(b: float, a: float, lr: float) -> tuple[float, float]:
    error = b * a - 1
    b = b - lr * error * a
    return b, a - lr * error * b


def _a_first(b: float, a: float, lr: float) -> tuple[float, float]:
    a = a - lr * (b * a - 1) * b
    return b - lr * (b * a - 1) * a, a


def _uphill(b: float, a: float, lr: float) -> tuple[float, float]:
    return turn(b, a, -lr)


def _only_b(b: float, a: float, lr: float) -> tuple[float, float]:
    return turn(b, a, lr)[0], a


def _own_factor(b: float, a: float, lr: float) -> tuple[float, float]:
    b = b - lr * (b * a - 1) * b
    return b, a - lr * (b * a - 1) * a


CALLED = Calls("b, a and lr", POINT, shape=(2,), within=1e-9)

EXERCISES = (
    Exercise(
        key="07.1",
        question=(
            "Write turn(b, a, lr): one turn of LA-LoRA on the loss (b·a − 1)²/2, a step of b, then a step of a, each "
            "down its own gradient with learning rate lr. Return b and a."
        ),
        hint="The gradient of b is (b·a − 1)·a. When it is a's turn, which b does the client hold?",
        solution=(
            "b = b - lr * (b * a - 1) * a; a = a - lr * (b * a - 1) * b; return b, a. The second line has the new b in "
            "the error and as the peer."
        ),
        answer=lambda: turn,
        read=CALLED,
        right=CALLED.gives(turn),
        why="a's step sees where b has gone, so the two steps cannot overshoot together.",
        mistakes=(
            Mistake(
                _at_once,
                CALLED.gives(_at_once),
                "both gradients were taken at the old point: that is FedLoRA's step, with the coupling still in it.",
            ),
            Mistake(
                _stale_error,
                CALLED.gives(_stale_error),
                "a multiplies by the new b, but its error b·a − 1 is still the old "
                "one; work it out again after b has moved.",
            ),
            Mistake(
                _a_first,
                CALLED.gives(_a_first),
                "a moved first. LA-LoRA starts with B: at the start B = 0, so A's gradient "
                "is 0 and its step would be pure noise.",
            ),
            Mistake(_uphill, CALLED.gives(_uphill), "both steps go up the hill: subtract the gradients."),
            Mistake(_only_b, CALLED.gives(_only_b), "b has moved; now it is a's turn."),
            Mistake(
                _own_factor, CALLED.gives(_own_factor), "the gradient of b is the error times its peer a, not times b."
            ),
        ),
        others=(by_theory, lambda b, a, lr: list(turn(b, a, lr))),
        difficulty=2,
        minutes=6,
    ),
    Exercise(
        key="07.2",
        question=(
            "A shorter filter: [1, 2, 1]/4. Which share of white noise's variance is left after it, far from the edges?"
        ),
        hint="A weighted sum of independent numbers with variance 1: what happens to each weight?",
        solution="Variances add with squared weights: (1 + 4 + 1)/16 = 6/16 = 0.375.",
        answer=lambda: filter_gain(3),
        read=number,
        right=near(0.375, 1e-4),
        why="0.375 of the variance, 0.612 of the standard deviation; five taps leave 0.273 and 0.523.",
        mistakes=(
            Mistake(
                1.0, near(1.0), "the weights sum to 1, so a constant passes whole; noise passes with squared weights."
            ),
            Mistake(
                math.sqrt(0.375),
                near(math.sqrt(0.375), 1e-3),
                "that is the standard deviation; the question asks for the variance.",
            ),
            Mistake(35 / 128, near(35 / 128, 2e-3), "that is the five-tap filter of the paper."),
            Mistake(0.5, near(0.5), "0.5 is the largest weight; square each weight and add all three."),
            Mistake(0.25, near(0.25), "that is the middle weight squared; the two neighbours add 1/16 each."),
            Mistake(1.5, near(1.5), "6/4: the weights are quarters, their squares sixteenths."),
        ),
        others=("0.375", 3 / 8, np.float64(6 / 16)),
        difficulty=1,
        minutes=4,
    ),
    Exercise(
        key="07.3",
        question=(
            "A client clips to C, adds noise of standard deviation 1.2·C to the sum of its gradients, and filters the "
            "result with five taps, after which the noise's standard deviation is 0.523 times as large. Which noise "
            "multiplier must the accountant use?"
        ),
        hint="What could an attacker who sees the filtered value have worked out from the unfiltered one? And what did "
        "the filter do to the signal?",
        solution=(
            "1.2. Filtering is post-processing: whoever has the noised sum can filter it too, so the filtered value "
            "tells no more than the noised one. The filter shrinks an example's trace as it shrinks noise."
        ),
        answer=lambda: 1.2,
        read=number,
        right=near(1.2),
        why="what is done to an already noised value costs no privacy, and gains none.",
        mistakes=(
            Mistake(
                1.2 * 0.523,
                near(1.2 * 0.523, 5e-3),
                "0.523 shrinks the noise, but the clipped signal passes the same filter: no privacy is lost.",
            ),
            Mistake(
                1.2 * 0.273,
                near(1.2 * 0.273, 5e-3),
                "that shrinks σ by the share of the variance; and σ must not be shrunk at all.",
            ),
            Mistake(
                1.2 / 0.523,
                near(1.2 / 0.523, 5e-3),
                "a filter cannot buy privacy either: the noise did not become stronger.",
            ),
            Mistake(0.0, near(0.0), "there is noise: the filter leaves 27 % of its variance."),
            Mistake(2.4, near(2.4), "B and A move in different steps; each step is one release with the full 1.2."),
        ),
        others=("1.2", 6 / 5, np.float32(1.2)),
        difficulty=2,
        minutes=3,
    ),
)
