"""What a unit of privacy costs: larger batches under more noise, so epsilon falls and the mean is
as noisy as before.

The noise in the mean of a step has standard deviation sigma C / (b sqrt(K)). With sigma
proportional to the batch b it stays the same, so does what it does to learning, while epsilon
falls: what is paid for it is time.
"""

import math

import pandas as pd

from fedlora_lab.privacy.accounting import epsilon, noise_multiplier

CLIENTS, RANK, STEPS, DELTA = 10, 4, 100, 1e-4
BATCHES = (8, 16, 32, 64)
ANCHOR = 16, 8.0
"""The batch at which the run of `digits` is calibrated, and to which epsilon."""


def noises(batches: tuple[int, ...], examples: int) -> list[tuple[float, float]]:
    """(sigma, epsilon) of each batch after all steps; sigma over batch is that of the anchor.

    Args: examples: that a client has.
    """
    batch, target = ANCHOR
    anchor = noise_multiplier(target, DELTA, batch / examples, STEPS)
    sigmas = [anchor * b / batch for b in batches]
    return [
        (s, epsilon(((s, b / examples, STEPS),), DELTA))
        for s, b in zip(sigmas, batches, strict=True)
    ]


def priced(seconds: dict[str, list[float]], examples: int) -> pd.DataFrame:
    """Columns batch, sigma, epsilon, seconds (of a run, median), halving (seconds more for each
    halving of epsilon).

    Args:
        seconds: batch, as text -> seconds of a private step, one number a turn.
        examples: that a client has.
    """
    batches = tuple(map(int, seconds))
    table = pd.DataFrame(noises(batches, examples), columns=["sigma", "epsilon"]).assign(
        batch=batches
    )
    table["seconds"] = [STEPS * float(pd.Series(seconds[str(b)]).median()) for b in batches]
    halvings = -table["epsilon"].map(math.log2).diff()
    return table.assign(halving=table["seconds"].diff() / halvings)
