"""Steps whose examples are gradients of 20 numbers: a signal, a noise and a denominator."""

from dataclasses import replace
from functools import wraps

import numpy as np

import dp_review
from dp_review.mistakes import model

NUMBERS = 20
SIGMA = 1.1
MEAN = 8.0
DATA = [(x, 0) for x in np.random.default_rng(0).normal(size=(12, NUMBERS))]
CLAIMS = dp_review.Claims(clip_norm=1.0, noise_multiplier=SIGMA, denominator=MEAN)
NOT_FINITE = replace(CLAIMS, finite=False)
SAMPLED = replace(CLAIMS, sampling="poisson", sample_rate=0.02, dataset_size=400)
Rows = np.ndarray
"""Gradients, (examples, numbers)."""


def normal(seed, size=NUMBERS):
    return SIGMA * np.random.default_rng(seed).normal(size=size)


def finite(rows):
    return np.nan_to_num(rows, nan=0.0, posinf=0.0, neginf=0.0)


def clipped(rows):
    """Each row at a norm of at most 1; zero where it, or its norm, is not finite."""
    return model.clip({"gradient": rows})["gradient"]


def total(rows, weights=1.0):
    """The sum of clipped rows."""
    return (weights * clipped(rows).T).sum(1)


def stack(examples):
    return np.array([x for x, _ in examples], float).reshape(-1, NUMBERS)


def split(vector):
    """A vector as three tensors."""
    return {"weight": vector[:12].reshape(4, 3), "bias": vector[12:15], "head": vector[15:]}


def step_of(signal=total, noise=normal, denominator=MEAN):
    """A step that sums as ``signal`` does, with this noise."""

    def step(examples, seed):
        sums = signal(stack(examples)) if len(examples) else np.zeros(NUMBERS)
        return {"gradient": (sums + noise(seed)) / denominator}

    return step


sound = step_of()


def in_tensors(examples, seed):
    """A sound step of three tensors."""
    return split(sound(examples, seed)["gradient"])


def unseeded(step):
    """The same step, whose noise is new in every call."""
    calls = iter(range(10**9))
    return wraps(step)(lambda examples, seed: step(examples, 10**6 + next(calls)))


UNSEEDED = replace(CLAIMS, seeded=False)
