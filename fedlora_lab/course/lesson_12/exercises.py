"""Right and wrong answers to exercise 12.1: the chance of so many right guesses under pure ε-DP."""

import math
from typing import Any

from scipy.stats import binom

from fedlora_lab.course.exercise import Calls

CALLS = {
    "12.1": Calls("guesses, correct and epsilon", (100, 75, 0.5), (60, 60, 2.0), (40, 20, 0.0))
}


def _law(guesses, epsilon) -> Any:
    return binom(guesses, 1 / (1 + math.exp(-epsilon)))


def tail(guesses, correct, epsilon):
    return _law(guesses, epsilon).sf(correct - 1)


def strictly_more(guesses, correct, epsilon):
    return _law(guesses, epsilon).sf(correct)


def at_most(guesses, correct, epsilon):
    return _law(guesses, epsilon).cdf(correct)


def fair_coin(guesses, correct, epsilon):
    return binom.sf(correct - 1, guesses, 0.5)


def exactly(guesses, correct, epsilon):
    return _law(guesses, epsilon).pmf(correct)
