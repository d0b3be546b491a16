"""What a review did not look at: what its number of calls could not have shown, and why."""

import math
from collections.abc import Iterator

from scipy import stats

from fedlora_lab.review.noise_size import NOISE_SLACK
from fedlora_lab.review.trials import Trials

POWER = 0.9
"""Chance with which a fault of the stated size would have been found."""


def not_looked_at(trials: Trials, level: float) -> Iterator[str]:
    """Sentences, each of one thing that may be wrong all the same.

    Args: trials: of the step. level: of each p-value.
    """
    draws = trials.draws
    outputs = trials.out
    yield (
        "Anything that the step does not return, other states of training, other examples than "
        f"these {len(trials.data)}, and batches of more than {4 * len(trials.batch)}."
    )
    if not trials.names:
        return
    numbers = len(trials.chosen)
    total = int(trials.kept.sum())
    if numbers < total:
        yield f"Noise of {total - numbers:,} of {total:,} numbers: {numbers:,} were measured."
    z = float(stats.norm.isf(level / 2) + stats.norm.ppf(POWER))
    less = z / math.sqrt(2 * (draws - 1) * numbers) + NOISE_SLACK
    yield f"Noise that is up to {round_up(100 * less)} % too small altogether."
    law = stats.chi2(draws - 1)
    alone = 1 - math.sqrt(law.ppf(level / (2 * numbers)) / law.ppf(POWER))
    yield f"Noise of a single number that is up to {round_up(100 * alone)} % too small."
    pairs = max(2, numbers) ** 2 / 2
    tie = float(stats.norm.isf(level / (2 * pairs)) + stats.norm.ppf(POWER)) / math.sqrt(draws)
    yield f"Correlations below {round_up(min(1.0, tie), 2)} of two numbers: they need more draws."
    pool = math.floor(draws**2 / (-2 * math.log(1 - POWER)))
    yield (
        f"Noise that repeats after {draws} calls or more, or comes from a pool of more than "
        f"{pool:,} draws."
    )
    law = stats.chi2(draws - 1)
    spread = 2 * (law.isf(level / 2) / law.ppf(1 - POWER) - 1) / max(1, numbers)
    text = "Noise that is now larger and now smaller, from call to call, by up to"
    yield f"{text} {round_up(100 * min(1.0, math.sqrt(spread) / 2))} %."
    yield (
        "Who knows the seed: noise that somebody can draw again, from a number that is known or "
        "guessed, looks like any other."
    )
    if not trials.exact:
        yield (
            "Moves that hide in the noise: equal seeds do not give equal noise here, so that moves "
            "are estimated, few examples are changed, and no pairs of examples are searched."
        )
    if outputs.watched is not None:
        yield f"Batches of another size than {outputs.watched}."


def round_up(value: float, digits: int = 1) -> float:
    """Rounds a bound from above, so that what is printed still holds."""
    scale = 10**digits
    return math.ceil(value * scale) / scale
