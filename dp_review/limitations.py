"""What a review did not look at: what its number of calls could not have shown, and why."""

import math
from collections.abc import Iterator

from scipy import stats

from dp_review._validation import first_of, round_up
from dp_review.neighbours import TRIED, holds_floats
from dp_review.noise_size import NOISE_SLACK
from dp_review.sensitivity import REACHED
from dp_review.trials import Trials

POWER = 0.9
"""Chance with which a fault of the stated size would have been found."""


def limitations(trials: Trials, level: float) -> Iterator[str]:
    """Sentences, each of one thing that may be wrong all the same.

    Args: trials: of the step. level: of each p-value.
    """
    draws = trials.draws
    yield (
        "Anything that the step does not return, other states of training, and batches of more "
        f"than {4 * len(trials.batch)}."
    )
    if not trials.names or trials.processed:
        return
    yield from limitations_of_rows(trials)
    if not trials.coupled:
        yield (
            "Noise that the data choose, such as the better of two draws: equal seeds do not give "
            "equal noise for all data here, or could not be asked for it."
        )
    numbers = len(trials.chosen)
    total = int(trials.kept.sum())
    if numbers < total:
        yield f"Noise of {total - numbers:,} of {total:,} numbers: {numbers:,} were measured."
    z = float(stats.norm.isf(level / 2) + stats.norm.ppf(POWER))
    less = z / math.sqrt(2 * (draws - 1) * numbers) + NOISE_SLACK
    yield f"Noise that is up to {round_up(100 * less, '.1f')} % too small altogether."
    law = stats.chi2(draws - 1)
    alone = 1 - math.sqrt(law.ppf(level / (2 * numbers)) / law.ppf(POWER))
    yield f"Noise of a single number that is up to {round_up(100 * alone, '.1f')} % too small."
    yield (
        "Weak correlations of two numbers, noise that is now larger and now smaller, noise that "
        f"repeats after {draws} calls or more, or that comes from a large pool of draws."
    )
    yield (
        "Who knows the seed: noise that somebody can draw again, from a number that is known or "
        "guessed, looks like any other."
    )
    if not trials.exact:
        yield (
            "Moves that hide in the noise: equal seeds do not give equal noise here, so that moves "
            f"are estimated, in {TRIED} changes of single examples whose copies moved farthest, "
            "and pairs of examples are not looked at."
        )


def limitations_of_rows(trials: Trials) -> Iterator[str]:
    """Which examples were varied, and how: all others, and other ways, were not looked at."""
    count = len(trials.data)
    tried = len(trials.left_out)
    which = (
        f"these {count}, of which each was" if tried == count else f"{tried} of {count} that were"
    )
    yield f"Other examples than {which} left out."
    if not all(map(holds_floats, trials.data)):
        yield "Larger examples: not all hold floating-point numbers, which could be scaled."
    short = [i for i, moved in trials.loudest.items() if moved < REACHED]
    if short:
        names = first_of([trials.name(i) for i in sorted(short, key=lambda i: trials.places[i])], 4)
        yield (
            f"What {len(short)} of the examples ({names}) move where the clip cuts them: in every "
            f"size that was tried it was less than {REACHED:g} clip norms."
        )
    yield (
        f"NaN, infinity and overflow in other examples than {trials.name(0)}, and a rule of the "
        "batch that shows only where other than two different examples are mixed."
    )
