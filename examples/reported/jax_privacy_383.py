"""Noise for the sum, on the mean: https://github.com/google-deepmind/jax_privacy/issues/383

The report, of an example script: "noise calibrated for the sum is applied to the mean, so the
example over-noises by about `batch_size`". No leak, but not the training that was meant. Rebuilt
small; nothing of JAX Privacy is imported.

    dp-review jax_privacy_383.py:reported --strict      status 1
    dp-review jax_privacy_383.py:mended --strict        status 0
"""

import numpy as np

import dp_review

CLIP, NOISE, BATCH = 1.0, 1.0, 16
rng = np.random.default_rng(0)
data = [rng.normal(size=12) for _ in range(2 * BATCH)]
claims = dp_review.Claims(
    clip_norm=CLIP, noise_multiplier=NOISE, denominator=BATCH, steps=10, delta=1e-5
)


def clipped_sum(gradients):
    total = np.zeros(12)
    for gradient in gradients:
        length = np.linalg.norm(gradient)
        # What is not finite counts as zero.
        total += gradient * min(1.0, CLIP / length) if np.isfinite(length) else 0.0
    return total


def noise(seed):
    return NOISE * CLIP * np.random.default_rng(seed).normal(size=12)


def reported(gradients, seed):
    return {"gradient": clipped_sum(gradients) / BATCH + noise(seed)}


def mended(gradients, seed):
    return {"gradient": (clipped_sum(gradients) + noise(seed)) / BATCH}
