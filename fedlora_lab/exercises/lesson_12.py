"""Exercises of notebook 12: can the promise be checked from outside?"""

import math

from scipy.stats import binom

from fedlora_lab.audit import one_run, threshold
from fedlora_lab.exercises.exercise import Calls, Exercise, Mistake, near, number

CASES = ((100, 75, 0.5), (60, 60, 2.0), (40, 20, 0.0))


def tail(guesses: int, correct: int, epsilon: float) -> float:
    """Chance of at least so many right guesses under pure epsilon."""
    return float(binom.sf(correct - 1, guesses, 1 / (1 + math.exp(-epsilon))))


def _strict(guesses: int, correct: int, epsilon: float) -> float:
    return float(binom.sf(correct, guesses, 1 / (1 + math.exp(-epsilon))))


def _lower(guesses: int, correct: int, epsilon: float) -> float:
    return float(binom.cdf(correct, guesses, 1 / (1 + math.exp(-epsilon))))


def _coin(guesses: int, correct: int, epsilon: float) -> float:
    return float(binom.sf(correct - 1, guesses, 0.5))


def _exact(guesses: int, correct: int, epsilon: float) -> float:
    return float(binom.pmf(correct, guesses, 1 / (1 + math.exp(-epsilon))))


def all_right(m: int = 100, p: float = 0.05) -> float:
    """The ceiling without delta: p^(1/m) is the largest chance of a right guess that is not refuted."""
    return one_run.epsilon_lower(m, m, m, 0.0, p)


def counted() -> float:
    """Epsilon from 25 of 500 false alarms and 200 of 500 misses at delta 1e-5."""
    return threshold.epsilon_lower(25, 500, 200, 500, 1e-5, 0.05)


CALLED = Calls("guesses, correct and epsilon", *CASES)

EXERCISES = (
    Exercise(
        key="12.1",
        question=(
            "Write tail(guesses, correct, epsilon): the chance that somebody who guesses `guesses` canaries gets at "
            "least `correct` of them right, if each guess is right with the largest probability that ε-DP (δ = 0) "
            "allows, independently. This chance is the p-value of an audit."
        ),
        hint="A fair coin was tossed; seen through ε-DP, the odds of heads are at most e^ε to 1. Then count.",
        solution=(
            "The probability is q = e^ε / (1 + e^ε). So: from scipy.stats import binom; return binom.sf(correct - 1, "
            "guesses, 1 / (1 + math.exp(-epsilon))). sf(v − 1) is P[W ≥ v]."
        ),
        answer=lambda: tail,
        read=CALLED,
        right=CALLED.gives(tail),
        why="at least as many, at odds of e^ε: when this chance is below 5 %, ε is refuted with 95 % confidence.",
        mistakes=(
            Mistake(
                _strict, CALLED.gives(_strict), "that is more than `correct`; what was seen belongs to the tail itself."
            ),
            Mistake(
                _lower, CALLED.gives(_lower), "that is the other tail: the chance of at most so many right guesses."
            ),
            Mistake(_coin, CALLED.gives(_coin), "that is guessing blindly; ε-DP allows odds of e^ε to 1."),
            Mistake(
                _exact, CALLED.gives(_exact), "that is the chance of exactly so many; a test asks for at least so many."
            ),
        ),
        difficulty=2,
        minutes=8,
    ),
    Exercise(
        key="12.2",
        question=(
            "A run holds 100 canaries, and an attacker guesses all of them right. Which ε does that refute with 95 % "
            "confidence (δ = 0)? It is the largest that 100 canaries can ever show."
        ),
        hint="All 100 right has probability q^100. Which q makes that 5 %, and which ε goes with this q?",
        solution="q = 0.05^(1/100) = 0.9705, and ε = ln(q / (1 − q)) = 3.49. Perfect attacks prove finite things.",
        answer=all_right,
        read=number,
        right=near(all_right(), 2e-3),
        why="3.49, whatever the mechanism. A ledger that states 8 cannot be contradicted by 100 canaries.",
        mistakes=(
            Mistake(math.inf, lambda value: math.isinf(value), "a hundred right guesses may be luck: q^100 is not 0."),
            Mistake(
                0.9705,
                near(0.05 ** (1 / 100), 1e-3),
                "that is the chance of one right guess; turn it into odds, and take the logarithm.",
            ),
            Mistake(math.log(100), near(math.log(100), 2e-3), "ln 100 is what 99 of 100 suggest, without confidence."),
            Mistake(
                all_right(p=0.025),
                near(all_right(p=0.025), 2e-3),
                "one side suffices: nobody is refuted by too few right guesses.",
            ),
            Mistake(
                all_right(p=0.95), near(all_right(p=0.95), 2e-3), "95 % confidence means a chance of 5 %, not 95 %."
            ),
        ),
        others=(3.49, "3.4937"),
        difficulty=2,
        minutes=8,
    ),
    Exercise(
        key="12.3",
        question=(
            "You train 500 models with a canary and 500 without. At a threshold fixed beforehand the attacker misses "
            "200 of the first and accuses 25 of the second. Which ε do you prove at δ = 0.00001 with 95 % confidence? "
            "Use fl.audit.threshold.epsilon_lower."
        ),
        hint="Both rates are estimates. The function puts an upper end on each, and shares the 5 % between the two.",
        solution="fl.audit.threshold.epsilon_lower(25, 500, 200, 500, 1e-5, 0.05): about 2.03.",
        answer=counted,
        read=number,
        right=near(counted(), 2e-3),
        why="2.03; the rates themselves say 2.48, and the difference is the price of being sure.",
        mistakes=(
            Mistake(
                math.log(0.6 / 0.05),
                near(math.log(0.6 / 0.05), 2e-3),
                "you took the rates as they were seen; 500 runs do not pin them down, so nothing is proved yet.",
            ),
            Mistake(
                threshold.ceiling(500, 1e-5, 0.05),
                near(threshold.ceiling(500, 1e-5, 0.05), 2e-3),
                "that is what so many runs show when no guess is wrong; here some are.",
            ),
            Mistake(
                threshold.epsilon_lower(25, 500, 300, 500, 1e-5, 0.05),
                near(threshold.epsilon_lower(25, 500, 300, 500, 1e-5, 0.05), 2e-3),
                "300 are the found ones; misses are 200.",
            ),
            Mistake(
                threshold.epsilon_lower(25, 500, 200, 500, 1e-5, 0.1),
                near(threshold.epsilon_lower(25, 500, 200, 500, 1e-5, 0.1), 1e-4),
                "each rate may only err with half of the 5 %: your bound is 90 % sure.",
            ),
        ),
        others=(round(counted(), 3), str(counted())),
        difficulty=2,
        minutes=6,
    ),
)
