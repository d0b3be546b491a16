"""Right and wrong answers to the exercises of notebook 08: a code, a copy, a step, an attack."""

from functools import partial

import numpy as np
from scipy.special import ndtri

from fedlora_lab.course.exercises import Calls, vary
from fedlora_lab.methods.quantization import normal_levels


def _draw_code(rng):
    """Small widths: to find what went wrong other widths are tried, up to the square of these, and
    a code has 2 to this power levels.
    """
    return int(rng.integers(3, 5)), rng.uniform(0.85, 0.99), ndtri


def _draw_numbers(rng):
    """Blocks of several sizes, the largest of each below zero, and a short one at the end."""
    block = int(rng.integers(5, 9))
    width = int(rng.integers(2, 4))
    blocks = int(rng.integers(2, 5))
    size = blocks * block - int(rng.integers(1, 4))
    x = rng.uniform(0.1, 0.9, size) * rng.choice([-1, 1], size)
    x[::block] = -1
    scales = np.repeat(rng.permutation([0.5, 1.7, 3.1, 6.0])[:blocks], block)[:size]
    return x * scales, np.array(normal_levels(width)), block


def _draw_step(rng):
    """Weights that sum to less than one: some clients did not answer."""
    clients = int(rng.integers(3, 7))
    size = int(rng.integers(4, 9))
    psi = rng.normal(size=size)
    uploads = rng.normal(size=(clients, size))
    sent = psi + rng.normal(0, 0.3, size)
    weights = rng.uniform(0.4, 0.9, clients) / clients
    return psi, sent, uploads, weights, rng.uniform(0.3, 0.9)


def _draw_copies(rng):
    """More rounds than are kept, and more than two of them, where a median is a mean."""
    shape = int(rng.integers(7, 11)), int(rng.integers(3, 8))
    return rng.normal(size=shape), int(rng.integers(3, 6))


# Calls of few numbers, which a difference is shown at.
FEW_NUMBERS = np.array([-2.0, 0.9, 0.6, 0.15, 3.0]), np.array([-1.0, 0.0, 0.4, 1.0]), 2
TWO_CLIENTS = (
    np.array([1.0, 2.0]),
    np.array([1.5, 1.5]),
    np.array([[2.0, 1.0], [3.0, 4.0]]),
    np.array([0.5, 0.3]),
    0.5,
)
FIVE_ROUNDS = np.array([[3.0, 1.0], [4.0, 1.0], [0.0, 2.0], [1.0, 4.0], [5.0, 9.0]]), 3

CALLS = {
    "08.1": Calls("width, reach and quantile", draw=_draw_code),
    "08.2": Calls("x, levels and block", FEW_NUMBERS, draw=_draw_numbers),
    "08.4": Calls("psi, sent, uploads, weights and eta", TWO_CLIENTS, draw=_draw_step),
    "08.5": Calls("copies and m", FIVE_ROUNDS, draw=_draw_copies),
}


# ---- 08.1: the levels


def levels(width, reach, quantile):
    half = 2 ** (width - 1)
    above = quantile(np.linspace(0.5, reach, half + 1))  # from zero up
    below = quantile(np.linspace(0.5, reach, half))[1:]  # without zero
    return np.concatenate([-below[::-1], above]) / above[-1]


# Levels beyond one: the largest entry of a block has no level of its own.
def unscaled_levels(width, reach, quantile):
    return levels(width, reach, quantile) * quantile(reach)


# Most entries lie near zero, where even levels are far apart.
def even_levels(width, reach, quantile):
    return np.linspace(-1, 1, 2**width)


# The side with a level more is the one above zero.
def more_below(width, reach, quantile):
    return -levels(width, reach, quantile)[::-1]


# With the steps of the upper side the lowest level would not reach −1.
def one_step_for_both_sides(width, reach, quantile):
    return alike_on_both_sides(width, reach, quantile)[1:]


# Zero is a level, so one side has a level more.
def alike_on_both_sides(width, reach, quantile):
    above = quantile(np.linspace(0.5, reach, 2 ** (width - 1) + 1))
    return np.concatenate([-above[:0:-1], above]) / above[-1]


# An even number of levels that mirror each other leaves out zero.
def zero_left_out(width, reach, quantile):
    return quantile(np.linspace(1 - reach, reach, 2**width)) / quantile(reach)


# Each side begins at zero, with a step too few above it.
def zero_twice(width, reach, quantile):
    side = quantile(np.linspace(0.5, reach, 2 ** (width - 1)))
    return np.concatenate([-side[::-1], side]) / quantile(reach)


# At the probabilities 0 and 1 the quantile is infinite.
up_to_one = vary(levels, reach=1.0)


# ---- 08.2: the copy


def receive(x, levels, block):
    copy = np.empty(len(x))
    for start in range(0, len(x), block):
        part = x[start : start + block]
        scale = np.abs(part).max()
        nearest = np.abs(part[:, None] / scale - levels).argmin(1)
        copy[start : start + block] = levels[nearest] * scale
    return copy


def scale_of_each(x, block):
    scales = [np.abs(x[i : i + block]).max() for i in range(0, len(x), block)]
    return np.repeat(scales, block)[: len(x)]


# One large entry makes all others coarse.
one_scale = vary(receive, block=2**40)


# The copy stays in units of each block.
def not_scaled_back(x, levels, block):
    return receive(x, levels, block) / scale_of_each(x, block)


# A level's number says nothing to who multiplies it.
def level_numbers(x, levels, block):
    return np.abs((x / scale_of_each(x, block))[:, None] - levels).argmin(1)


# A large number lies outside of the levels.
def not_divided(x, levels, block):
    return levels[np.abs(x[:, None] - levels).argmin(1)]


def _scaled_by(x, levels, block, scale_of):
    """`receive` with another scale of a block, a function of its numbers."""
    parts = [x[i : i + block] for i in range(0, len(x), block)]
    scaled = [scale_of(part) * not_divided(part / scale_of(part), levels, block) for part in parts]
    return np.concatenate(scaled)


# Where the largest magnitude is a negative number's, the levels do not reach it.
largest_with_its_sign = partial(_scaled_by, scale_of=np.max)


# A negative scale puts a block on mirrored levels, which are not the same ones.
signed_scale = partial(_scaled_by, scale_of=lambda part: part[np.abs(part).argmax()])
# The length of a block is more than its largest number.
by_the_length = partial(_scaled_by, scale_of=np.linalg.norm)


# The level above is as far away as the level below.
def rounds_up(x, levels, block):
    scale = scale_of_each(x, block)
    return levels[np.searchsorted(levels, x / scale).clip(0, len(levels) - 1)] * scale


# The level below is up to a whole step away.
def rounds_down(x, levels, block):
    scales = scale_of_each(x, block)
    return levels[np.searchsorted(levels, x / scales, side="right") - 1] * scales


# A block has this many numbers; there are as many blocks as that takes.
def as_many_blocks(x, levels, block):
    parts = np.array_split(x, block)
    return np.concatenate([receive(part, levels, len(part)) for part in parts])


# The difference that is farthest below zero is that of the highest level.
def highest_level(x, levels, block):
    return levels[-1] * scale_of_each(x, block)


# ---- 08.4: the server's step


def server_step(psi, sent, uploads, weights, eta):
    movement = weights @ (uploads - sent)  # of those that answered, at their planned weights
    return psi + eta * movement


# More clients would then move the server farther.
movements_added_up = vary(server_step, weights=np.ones_like)


# The server's exact factors are lost to the rounding.
def from_the_copy(psi, sent, uploads, weights, eta):
    return sent + eta * weights @ (uploads - sent)


# Takes the rounding error for movement.
def towards_the_mean(psi, sent, uploads, weights, eta):
    return psi + eta * weights @ (uploads - psi)


# The server's exact factors are thrown away.
def mean_upload(psi, sent, uploads, weights, eta):
    return weights @ uploads


# Right only where everybody answers.
def missing_as_zero(psi, sent, uploads, weights, eta):
    return psi + eta * (weights @ uploads - sent)


# The same, and what the rounding took counts as movement.
def towards_the_plain_mean(psi, sent, uploads, weights, eta):
    return psi + eta * (weights @ uploads - psi)


# A client that is missing did not receive the precise factors either.
def missing_at_psi(psi, sent, uploads, weights, eta):
    return psi + eta * (weights @ uploads + (1 - weights.sum()) * psi - sent)


# Who answered then sets how much one client counts.
without_weights = vary(server_step, weights=lambda weights: np.ones_like(weights) / len(weights))
weights_made_to_sum = vary(server_step, weights=lambda weights: weights / weights.sum())


# ---- 08.5: the attack


def attack(copies, m):
    return copies[-m:].mean(0)


def median(copies, m):
    return np.median(copies[-m:], axis=0)


def first_copies(copies, m):
    return copies[:m].mean(0)


def all_copies(copies, m):
    return copies.mean(0)
