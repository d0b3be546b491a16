"""Parts of batches counted as updates: https://github.com/google-deepmind/jax_privacy/issues/234

The report: two trainings with batches of 1024, added up from parts of different sizes, were given
different noise for the same epsilon of 4. The number of parts had been given where the accountant
counts noised updates. It is no leak: far less is spent than is stated, and the model pays for it.
The noise multiplier 7.69 is that of pull request 267, where this is explained.

    dp-review jax_privacy_234.py:reported    prints ε = 3.997
    dp-review jax_privacy_234.py:spent       prints ε = 0.1856
"""

import dp_review

EXAMPLES, EPOCHS, PART, ACCUMULATED = 14_732, 3, 4, 256


def with_updates(steps):
    claims = dp_review.Claims(
        clip_norm=1.0,
        noise_multiplier=7.69,
        sampling="poisson",
        sample_rate=PART * ACCUMULATED / EXAMPLES,
        dataset_size=EXAMPLES,
        steps=steps,
        delta=2e-5,
        epsilon=4.0,
    )
    return dp_review.step(None, (), claims)


def reported():
    return with_updates(EPOCHS * (EXAMPLES // PART))


def spent():
    return with_updates(EPOCHS * (EXAMPLES // (PART * ACCUMULATED)))
