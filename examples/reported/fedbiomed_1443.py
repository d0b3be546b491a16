"""Noise at two places, and a clip for each tensor: https://github.com/fedbiomed/fedbiomed/issues/1443

The report, of central DP: "noise is added both after local training and central aggregation", and
"the clip is not applied as a global norm of gradient but per-parameter". Rebuilt small; nothing of
Fed-BioMed is imported.

    dp-review fedbiomed_1443.py:reported     status 1
    dp-review fedbiomed_1443.py:mended       status 0
"""

import numpy as np

import dp_review

CLIP, NOISE, CLIENTS = 1.0, 1.0, 16
SHAPES = {"weight": (3, 4), "bias": (3,)}
rng = np.random.default_rng(0)
data = [{name: rng.normal(size=shape) for name, shape in SHAPES.items()} for _ in range(CLIENTS)]
claims = dp_review.Claims(
    clip_norm=CLIP, noise_multiplier=NOISE, denominator=CLIENTS, steps=10, delta=1e-5
)


def clipped(update):
    """The update at a norm of at most CLIP over all that it holds; zero where it has no norm."""
    with np.errstate(all="ignore"):
        length = np.sqrt(sum(np.square(x).sum() for x in update.values()))
    if not np.isfinite(length):
        return {name: np.zeros_like(x) for name, x in update.items()}
    return {name: x * min(1.0, CLIP / max(length, 1e-12)) for name, x in update.items()}


def noised(tensors, seed):
    random = np.random.default_rng(seed)
    return {name: x + NOISE * CLIP * random.normal(size=x.shape) for name, x in tensors.items()}


def summed(updates, clip):
    total = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    for update in updates:
        for name, x in clip(update).items():
            total[name] += x
    return total


def reported(updates, seed):
    each = summed(updates, lambda update: {k: clipped({k: x})[k] for k, x in update.items()})
    twice = noised(noised(each, seed), seed + 10**9)
    return {name: x / CLIENTS for name, x in twice.items()}


def mended(updates, seed):
    return {name: x / CLIENTS for name, x in noised(summed(updates, clipped), seed).items()}
