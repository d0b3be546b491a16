"""Right and wrong answers to the exercises of notebook 08: a code, a copy, and a server's step."""

from functools import partial

import numpy as np
import torch
from scipy.special import ndtri

from fedlora_lab import theory
from fedlora_lab.course.exercises import Calls, vary
from fedlora_lab.methods.aggregation import MeanUpdate
from fedlora_lab.methods.quantization import normal_float, normal_levels
from fedlora_lab.methods.state import ParamKey, ServerState


def _draw_code(rng):
    return int(rng.integers(3, 7)), rng.uniform(0.85, 0.99), ndtri


def _draw_numbers(rng):
    """Blocks of several sizes, the largest of each below zero, and a short one at the end."""
    block, width = int(rng.integers(5, 9)), int(rng.integers(2, 4))
    x = rng.uniform(0.1, 0.9, 4 * block - 2) * rng.choice([-1, 1], 4 * block - 2)
    x[::block] = -1
    scales = np.repeat(rng.permutation([0.5, 1.7, 3.1, 6.0]), block)[: len(x)]
    return x * scales, np.array(normal_levels(width)), block


def _draw_step(rng):
    psi, uploads = rng.normal(size=6), rng.normal(size=(4, 6))
    sent = psi + rng.normal(0, 0.3, 6)
    return psi, sent, uploads, rng.uniform(0.1, 0.23, 4), rng.uniform(0.3, 0.9)


CALLS = {
    "08.1": Calls("width, reach and quantile", draw=_draw_code),
    "08.2": Calls("x, levels and block", draw=_draw_numbers, within=1e-9),
    "08.4": Calls("psi, sent, uploads, weights and eta", draw=_draw_step),
}


# ---- 08.1: the levels


def levels(width, reach, quantile):
    half = 2 ** (width - 1)
    above = quantile(np.linspace(0.5, reach, half + 1))  # from zero up
    below = quantile(np.linspace(0.5, reach, half))[1:]  # without zero
    return np.concatenate([-below[::-1], above]) / above[-1]


def even_steps(width, reach, quantile):
    half = 2 ** (width - 1)
    return np.concatenate([np.linspace(-1, 0, half)[:-1], np.linspace(0, 1, half + 1)])


def alike_on_both_sides(width, reach, quantile):
    above = quantile(np.linspace(0.5, reach, 2 ** (width - 1) + 1))
    return np.concatenate([-above[:0:-1], above]) / above[-1]


def zero_twice(width, reach, quantile):
    half = 2 ** (width - 1)
    above, below = (quantile(np.linspace(0.5, reach, n)) for n in (half + 1, half))
    return np.concatenate([-below[::-1], above]) / above[-1]


levels_by_library = lambda width, reach, quantile: theory.normal_float_levels(width, reach)
unscaled_levels = lambda width, reach, quantile: levels(width, reach, quantile) * quantile(reach)
even_levels = lambda width, reach, quantile: np.linspace(-1, 1, 2**width)


# ---- 08.2: the copy


def receive(x, levels, block):
    copy = np.empty(len(x))
    for start in range(0, len(x), block):
        part = x[start : start + block]
        scale = np.abs(part).max()
        nearest = np.abs(part[:, None] / scale - levels).argmin(1)
        copy[start : start + block] = levels[nearest] * scale
    return copy


def receive_by_library(x, levels, block):
    return normal_float(int(np.log2(len(levels))), block)(torch.from_numpy(x))


def _by_block(x, levels, block, rule):
    return np.concatenate([rule(x[i : i + block], levels) for i in range(0, len(x), block)])


def _nearest(x, levels):
    return np.abs(x[:, None] - levels).argmin(1)


def rounds_down(x, levels, block):
    def rule(p, v):
        scale = np.abs(p).max()
        return v[np.searchsorted(v, p / scale, side="right") - 1] * scale

    return _by_block(x, levels, block, rule)


one_scale = lambda x, levels, block: receive(x, levels, len(x))
unscaled = lambda x, levels, block: levels[_nearest(x, levels)]
not_scaled_back = partial(_by_block, rule=lambda p, v: v[_nearest(p / np.abs(p).max(), v)])
largest_signed = partial(_by_block, rule=lambda p, v: v[_nearest(p / p.max(), v)] * p.max())
places = partial(_by_block, rule=lambda p, v: _nearest(p / np.abs(p).max(), v))


# ---- 08.4: the server's step


def server_step(psi, sent, uploads, weights, eta):
    movement = weights @ (uploads - sent)  # of those that answered, at their planned weights
    return psi + eta * movement


def step_by_library(psi, sent, uploads, weights, eta):
    key = ParamKey("A", "one")
    held, copy = (ServerState({key: torch.from_numpy(x)[None]}) for x in (psi, sent))
    arrived = {key: torch.from_numpy(uploads)[:, None]}
    return MeanUpdate(eta)(held, copy, arrived, torch.from_numpy(weights)).tensors[key][0]


from_the_copy = lambda psi, sent, uploads, weights, eta: sent + eta * weights @ (uploads - sent)
towards_the_mean = lambda psi, sent, uploads, weights, eta: psi + eta * weights @ (uploads - psi)
without_rate = vary(server_step, eta=1)
copy_taken_once = lambda psi, sent, uploads, weights, eta: psi + eta * (weights @ uploads - sent)
weights_made_to_sum = vary(server_step, weights=lambda weights: weights / weights.sum())
against_it = vary(server_step, eta=np.negative)
