"""The check of what comes before the step: the batches that a loader draws."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from scipy import stats

from dp_review._validation import check, printable
from dp_review.claims import Claims, Finding, Loader

LEAST_BATCHES = 300
LEVEL = 0.01
"""The error budget of a whole review, of which each p-value has a part: above it nothing is
broken."""


def draw_epochs(loader: Loader, n: int, seed: int) -> list[list[list[int]]]:
    """Draws epochs until there are enough batches. Args: see `check_sampling`."""
    epochs: list[list[list[int]]] = []
    while sum(map(len, epochs)) < LEAST_BATCHES and len(epochs) < LEAST_BATCHES:
        try:
            drawn = loader(seed * 1_000_003 + len(epochs))
            epochs.append([[int(i) for i in batch] for batch in drawn])
        except (TypeError, ValueError) as error:
            check(False, "loader", printable(str(error)), "seed -> batches, each a list of indices")
    batches = [batch for epoch in epochs for batch in epoch]
    check(len(batches) > 1, "loader", len(batches), "more than one batch")
    inside = all(0 <= i < n for batch in batches for i in batch)
    check(inside, "loader", "an index outside", f"indices from 0 to {n - 1}")
    return epochs


def check_sampling(loader: Loader | None, claims: Claims, seed: int) -> Iterator[Finding]:
    """Compares the batches that a loader draws with Poisson sampling.

    Args:
        loader: seed -> batches, each of indices into the data set.
        claims: with sampling, sample_rate and dataset_size.
        seed: of the seeds that the loader is given.
    """
    name = "sampling"
    q = claims.sample_rate
    n = claims.dataset_size
    if loader is None or claims.sampling is None or q is None or n is None:
        text = "needs a loader, and sampling, sample_rate and dataset_size among the claims"
        yield Finding(name, text, verdict="cannot tell")
        return
    epochs = draw_epochs(loader, n, seed)
    batches = [batch for epoch in epochs for batch in epoch]
    # Rows: batches; columns: examples. Poisson sampling makes all of them independent coins.
    here = np.zeros((len(batches), n), bool)
    for row, batch in zip(here, batches):
        row[batch] = True
    sizes = here.sum(1)
    each = here.sum(0)
    rate = float(here.mean()) / q
    seen = f"{len(batches)} batches of {sizes.min()} to {sizes.max()} examples"
    # An example that is drawn twice counts twice, and moves a sum by two clip norms.
    if sum(map(len, batches)) != int(sizes.sum()):
        yield Finding(name, "a batch holds the same example twice", rate, seen, "broken")
    if q == 1:
        full = "sound" if here.all() else "broken"
        yield Finding(name, "every batch should hold all examples", rate, seen, full)
        return
    if len(epochs) > 1 and all(epoch == epochs[0] for epoch in epochs):
        yield Finding(name, "every seed draws the same batches", rate, seen, "broken")
        return
    alike = binomial_p_value(sizes, n, q, np.random.default_rng(seed))
    # What is called sound is not described as a fault.
    tied = "examples are not drawn independently of each other: "
    p_values = {
        f"examples are drawn at {rate:.4g} times the claimed rate": stats.binomtest(
            int(here.sum()), here.size, q
        ).pvalue,
        f"{tied}{seen} do not vary as they would" if alike < LEVEL else seen: alike,
        f"an example is drawn {each.min()} to {each.max()} times in {len(batches)} batches": (
            equal_shares_p_value(each, len(batches), q)
        ),
    }
    for text, p in p_values.items():
        yield Finding(name, text, rate, seen, p=float(p))


def binomial_p_value(
    counts: np.ndarray, trials: int, rate: float, rng: np.random.Generator
) -> float:
    """Tests against Binomial(trials, rate) (Kolmogorov-Smirnov), randomised to be exact.

    Args: counts: (n,), each of so many trials at this rate; rng: for the places in the atoms.
    """
    # A number drawn uniformly within its atom makes a discrete law continuous, hence exact.
    low = stats.binom.cdf(counts - 1, trials, rate)
    atom = stats.binom.pmf(counts, trials, rate)
    return float(stats.kstest(low + rng.random(len(counts)) * atom, "uniform").pvalue)


def equal_shares_p_value(each: np.ndarray, batches: int, q: float) -> float:
    """Tests that examples are drawn independently for every batch, by how often each one was.

    Where epochs are cut from a shuffle all are drawn equally often; where a batch comes again, they
    differ too much.

    Args: each: (examples,), how often. batches: drawn. q: the claimed rate, below 1.
    """
    variance = batches * q * (1 - q)
    total = float(np.sum((each - batches * q) ** 2) / variance)
    # Squares of a binomial number: mean 1, variance as for a normal one and a little more.
    spread = 2 + (1 - 6 * q * (1 - q)) / variance
    law = stats.gamma(len(each) / spread, scale=spread)
    return 2 * float(min(law.cdf(total), law.sf(total)))


def most_participations(batches: Sequence[list[int]], steps: int, n: int) -> int:
    """How many of so many steps the example that is drawn most often takes part in.

    Args: batches: as drawn. steps: of the whole training. n: examples.
    """
    # Without amplification the example that comes most often decides. One that is k times in a
    # batch moves its sum k times as far, as k² steps would together.
    first = batches[:steps]
    often = sum(np.bincount(np.array(batch, int), minlength=n) ** 2 for batch in first)
    return math.ceil(float(np.max(often)) * steps / len(first) - 1e-9)
