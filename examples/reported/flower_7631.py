"""A client whose update is zero stops the round: https://github.com/flwrlabs/flower/pull/7631

The report: `min(1, clipping_norm / input_norm)` raises ZeroDivisionError where a client sends the
model back unchanged, "and crashes the entire round". Rebuilt small; nothing of Flower is imported.

    dp-review flower_7631.py:reported        status 1
    dp-review flower_7631.py:mended          status 0
"""

import math

import numpy as np

import dp_review

CLIP, NOISE, CLIENTS = 1.0, 1.0, 16
rng = np.random.default_rng(0)
data = [rng.normal(size=12) for _ in range(CLIENTS)]
data[3] = np.zeros(12)  # a client whose optimiser made no update
claims = dp_review.Claims(
    clip_norm=CLIP, noise_multiplier=NOISE, denominator=CLIENTS, steps=10, delta=1e-5
)


def released(updates, factors, seed):
    """What the server makes of the round: the noised mean of the clipped updates."""
    total = np.zeros(12)
    for update, factor in zip(updates, factors):
        total += factor * np.nan_to_num(update)
    noise = NOISE * CLIP * np.random.default_rng(seed).normal(size=12)
    return {"update": (total + noise) / CLIENTS}


def norm(update):
    return math.sqrt(float(np.square(np.nan_to_num(update)).sum()))


def reported(updates, seed):
    # Python's own floats refuse to divide by zero, as NumPy's do not.
    return released(updates, [min(1, CLIP / norm(x)) for x in updates], seed)


def mended(updates, seed):
    # What has no length has nothing to clip.
    return released(updates, [CLIP / max(norm(x), CLIP) for x in updates], seed)
