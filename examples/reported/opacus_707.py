"""A sum that is no copy: https://github.com/meta-pytorch/opacus/pull/707

The report, of ghost clipping in pieces of a batch: `p.summed_grad += p.grad` "wasn't working as
expected, since `p.grad` is modified in every iteration"; it was mended by a copy. Here both names
are one array, so that the second piece takes the first one's place and counts twice. Rebuilt small;
nothing of Opacus is imported.

    dp-review opacus_707.py:reported         status 1
    dp-review opacus_707.py:mended           status 0
"""

import numpy as np

import dp_review

CLIP, NOISE, BATCH, PIECE = 1.0, 1.0, 16, 8
rng = np.random.default_rng(0)
data = [rng.normal(size=12) for _ in range(2 * BATCH)]
claims = dp_review.Claims(
    clip_norm=CLIP, noise_multiplier=NOISE, denominator=BATCH, steps=10, delta=1e-5
)


def clipped(gradient):
    length = np.linalg.norm(gradient)
    # What is not finite counts as zero.
    return gradient * min(1.0, CLIP / length) if np.isfinite(length) else np.zeros(12)


def step(gradients, seed, keep):
    """One release. Args: keep: what is done with the first piece's gradient to remember it."""
    grad = sum(map(clipped, gradients[:PIECE]), np.zeros(12))
    summed = keep(grad)
    for start in range(PIECE, len(gradients), PIECE):
        grad[:] = sum(map(clipped, gradients[start : start + PIECE]), np.zeros(12))
        summed += grad
    noise = NOISE * CLIP * np.random.default_rng(seed).normal(size=12)
    return {"gradient": (summed + noise) / BATCH}


def reported(gradients, seed):
    return step(gradients, seed, keep=lambda grad: grad)


def mended(gradients, seed):
    return step(gradients, seed, keep=np.copy)
