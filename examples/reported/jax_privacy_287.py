"""The rate of a part of the batch: https://github.com/google-deepmind/jax_privacy/pull/287

The report: with gradient accumulation the noise was checked at the rate of the physical batch,
where every noised update takes all accumulated ones. Its numbers are those below: epsilon 0.72 by
the physical batch, 5.6 by the effective one. Only claims are looked at, and no step.

    dp-review jax_privacy_287.py:reported    status 1
    dp-review jax_privacy_287.py:mended      status 2: no step was looked at
"""

import dp_review

BATCH, ACCUMULATED, EXAMPLES = 10, 8, 1000


def stated(epsilon):
    claims = dp_review.Claims(
        clip_norm=1.0,
        noise_multiplier=1.0,
        sampling="poisson",
        sample_rate=BATCH * ACCUMULATED / EXAMPLES,
        dataset_size=EXAMPLES,
        steps=100,
        delta=1e-5,
        epsilon=epsilon,
    )
    return dp_review.step(None, (), claims)


def reported():
    return stated(epsilon=1.1)


def mended():
    return stated(epsilon=5.62)
