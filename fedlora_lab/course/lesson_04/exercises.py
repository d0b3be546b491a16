"""Right and wrong answers to exercise 04.1: energy of noise on both factors in their product."""

import numpy as np

from fedlora_lab.course.exercise import Calls
from fedlora_lab.theory.noise_amplification import noise_terms

FACTORS = np.arange(10.0).reshape(5, 2) / 10, np.arange(14.0).reshape(2, 7) / 20
CALLS = {"04.1": Calls("B, A and s", (*FACTORS, 0.3), within=1e-9)}


def linear(B, A, s):
    return s**2 * len(B) * np.sum(A**2) + s**2 * A.shape[1] * np.sum(B**2)


def quadratic(B, A, s):
    return s**4 * B.size * A.shape[1]


def energy(B, A, s):
    return linear(B, A, s) + quadratic(B, A, s)


def by_theory(B, A, s):
    return noise_terms(B, A, s, s).total


def swapped(B, A, s):
    terms = s**2 * A.shape[1] * np.sum(A**2) + s**2 * len(B) * np.sum(B**2)
    return terms + quadratic(B, A, s)


def squared_once(B, A, s):
    return linear(B, A, s) + quadratic(B, A, s) / s**2


def without_rank(B, A, s):
    return linear(B, A, s) + quadratic(B, A, s) / len(A)


def norms(B, A, s):
    terms = len(B) * np.linalg.norm(A) + A.shape[1] * np.linalg.norm(B)
    return s**2 * terms + quadratic(B, A, s)


def root(B, A, s):
    return energy(B, A, s) ** 0.5
