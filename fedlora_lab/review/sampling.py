"""Checks of what comes before the step: batches that a loader draws, examples that are prepared."""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from scipy import stats

from fedlora_lab._utils.validation import check
from fedlora_lab.review.claims import Claims, Evidence, Loader, Verdict
from fedlora_lab.review.neighbours import LOUD, Batch, Example, same_numbers, scale
from fedlora_lab.review.p_values import binomial_p_value, total_p_value, two_sided

LEAST_BATCHES = 300


def draw_epochs(loader: Loader, n: int, seed: int) -> list[list[list[int]]]:
    """Draws epochs until there are enough batches. Args: as of `sampling_evidence`."""
    epochs: list[list[list[int]]] = []
    while sum(map(len, epochs)) < LEAST_BATCHES and len(epochs) < LEAST_BATCHES:
        drawn = loader(seed * 1_000_003 + len(epochs))
        expected = "to return batches, lists of indices"
        check(hasattr(drawn, "__iter__"), "loader", type(drawn).__name__, expected)
        epochs.append([[int(i) for i in batch] for batch in drawn])
    batches = [batch for epoch in epochs for batch in epoch]
    check(len(batches) > 1, "loader", len(batches), "more than one batch")
    inside = all(0 <= i < n for batch in batches for i in batch)
    check(inside, "loader", "an index outside", f"indices from 0 to {n - 1}")
    return epochs


def sampling_evidence(loader: Loader | None, claims: Claims, seed: int) -> Iterator[Evidence]:
    """Compares the batches that a loader draws with the claimed law.

    Args:
        loader: seed -> batches, each of indices into the data set.
        claims: with sampling, sample_rate and dataset_size.
        seed: of the seeds that the loader is given.
    """
    check_ = "sampling"
    q = claims.sample_rate
    n = claims.dataset_size
    if loader is None or claims.sampling is None or q is None or n is None:
        text = "needs a loader, and sampling, sample_rate and dataset_size among the claims"
        yield Evidence(check_, text, verdict="cannot tell")
        return
    epochs = draw_epochs(loader, n, seed)
    batches = [batch for epoch in epochs for batch in epoch]
    # Rows: batches; columns: examples. Poisson sampling makes all of them independent coins.
    here = np.zeros((len(batches), n), bool)
    for row, batch in zip(here, batches):
        row[batch] = True
    sizes = here.sum(1)
    rate = float(here.mean()) / q
    seen = f"{len(batches)} batches of {sizes.min()} to {sizes.max()} examples"

    def broken(text: str) -> Evidence:
        return Evidence(check_, text, rate, seen, verdict="broken")

    # An example that is drawn twice counts twice, and moves a sum by two clip norms.
    if sum(map(len, batches)) != int(sizes.sum()):
        yield broken("a batch holds the same example twice")
    if len(epochs) > 1 and all(epoch == epochs[0] for epoch in epochs) and q < 1:
        yield broken("every seed draws the same batches")
        return
    if claims.sampling == "fixed" and (sizes != round(q * n)).any():
        yield broken(f"{seen}, claimed {round(q * n)}")
    if claims.sampling == "poisson" and q < 1:
        text = f"examples are drawn at {rate:.4g} times the claimed rate"
        yield Evidence(check_, text, rate, seen, total_p_value(int(here.sum()), here.size, q))
        text = f"{seen} do not vary as Poisson batches do"
        p = binomial_p_value(sizes, n, q, np.random.default_rng(seed))
        yield Evidence(check_, text, rate, seen, p)
    each = here.sum(0)
    text = f"an example is drawn {each.min()} to {each.max()} times in {len(batches)} batches"
    yield Evidence(check_, text, rate, seen, equal_shares_p_value(each, len(batches), q))


def equal_shares_p_value(each: np.ndarray, batches: int, q: float) -> float:
    """Tests that examples are drawn independently for every batch, by how often each one was.

    Where epochs are cut from a shuffle all are drawn equally often; where a batch comes again, they
    differ too much.

    Args: each: (examples,), how often. batches: drawn. q: the claimed rate.
    """
    variance = batches * q * (1 - q)
    if not variance > 0:
        return 1.0
    n = len(each)
    # Squares of a binomial number: mean 1, variance as for a normal one and a little more.
    total = float(np.sum((each - batches * q) ** 2) / variance)
    spread = n * (2 + (1 - 6 * q * (1 - q)) / variance)
    law = stats.gamma(n * n / spread, scale=spread / n)
    return two_sided(float(law.cdf(total)), float(law.sf(total)))


def most_participations(loader: Loader, steps: int, n: int, seed: int) -> int:
    """How many of so many steps the example that a loader draws most often takes part in.

    Args: loader, n, seed: see `sampling_evidence`. steps: of the whole training.
    """
    # Without amplification the example that comes most often decides.
    often = np.zeros(n)
    seen = 0
    for epoch in range(LEAST_BATCHES):
        drawn = loader(seed * 1_000_003 + epoch)
        batches = [np.array([int(i) for i in batch], int) for batch in drawn]
        for batch in batches:
            often[np.unique(batch)] += 1
        seen += len(batches)
        if seen >= min(steps, LEAST_BATCHES):
            break
    return math.ceil(float(often.max()) * steps / max(seen, 1) - 1e-9)


def preparation_evidence(
    prepare: "Callable[[Batch], Sequence[Example]] | None", data: Batch
) -> Iterator[Evidence]:
    """Checks that leaving out a raw example changes no other prepared one.

    Args: prepare: raw examples -> examples. data: raw examples.
    """
    check_ = "preparation"
    if prepare is None:
        yield Evidence(check_, "no prepare function was given", verdict="cannot tell")
        return
    prepared = [*prepare([*data])]
    changes = []
    for i in sorted({0, len(data) // 2, len(data) - 1}):
        expected = prepared[:i] + prepared[i + 1 :]
        # What was computed from all examples changes the prepared form of the others.
        without = [*prepare([*data[:i], *data[i + 1 :]])]
        loud = [*prepare([*data[:i], scale(data[i], LOUD), *data[i + 1 :]])]
        beside = loud[:i] + loud[i + 1 :]
        for text, after in (("left out", without), ("scaled by 1e6", beside)):
            moved = sum(not same_numbers(a, b) for a, b in zip(expected, after))
            moved += abs(len(after) - len(expected))
            changes.append((moved, f"raw example {i} {text}"))
    most, where = max(changes)
    text = "every example is prepared alone"
    if most:
        text = f"{most} of {len(prepared) - 1} other examples change with {where}"
    verdict: Verdict = "broken" if most else "sound"
    yield Evidence(check_, text, float(most), where, verdict=verdict)
