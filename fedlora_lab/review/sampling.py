"""Checks of what comes before the step: batches that a loader draws, examples that are prepared."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from scipy import stats

from fedlora_lab._utils.validation import check
from fedlora_lab.review.claims import Claims, Evidence, Loader, Verdict
from fedlora_lab.review.examples import LOUD, same_numbers, scale
from fedlora_lab.review.p_values import binomial_p_value, total_p_value

LEAST_BATCHES = 300


def sampling_evidence(loader: Loader | None, claims: Claims, seed: int) -> Iterator[Evidence]:
    """Compares the batches that a loader draws with the claimed law.

    Args:
        loader: seed -> batches, each of indices into the data set.
        claims: with sampling, sample_rate and dataset_size.
        seed: of the seeds that the loader is given.
    """
    check_, q, n = "sampling", claims.sample_rate, claims.dataset_size
    if loader is None or claims.sampling is None or q is None or n is None:
        words = "needs a loader, and sampling, sample_rate and dataset_size among the claims"
        yield Evidence(check_, words, verdict="cannot tell")
        return
    epochs: list[list[list[int]]] = []
    while sum(map(len, epochs)) < LEAST_BATCHES and len(epochs) < LEAST_BATCHES:
        drawn = loader(seed * 1_000_003 + len(epochs))
        words = "to return batches, lists of indices"
        check(hasattr(drawn, "__iter__"), "loader", type(drawn).__name__, words)
        epochs.append([[int(i) for i in batch] for batch in drawn])
    batches = [batch for epoch in epochs for batch in epoch]
    check(len(batches) > 1, "loader", len(batches), "more than one batch")
    inside = all(0 <= i < n for batch in batches for i in batch)
    check(inside, "loader", "an index outside", f"indices from 0 to {n - 1}")
    here = np.zeros((len(batches), n), bool)
    for row, batch in zip(here, batches):
        row[batch] = True
    sizes = here.sum(1)
    rate = float(here.mean()) / q
    told = f"{len(batches)} batches of {sizes.min()} to {sizes.max()} examples"
    if sum(map(len, batches)) != int(sizes.sum()):
        words = "a batch holds the same example twice"
        yield Evidence(check_, words, rate, told, verdict="broken")
    if len(epochs) > 1 and all(epoch == epochs[0] for epoch in epochs) and q < 1:
        words = "every seed draws the same batches"
        yield Evidence(check_, words, rate, told, verdict="broken")
        return
    often = here[: len(epochs[0])].sum(0)
    pattern = ""
    if len(epochs[0]) > 1 and (often <= 1).all() and often.mean() > 0.5:
        pattern = ": an epoch holds no example twice, as if shuffled and cut"
    if claims.sampling == "shuffle":
        twice = any(
            max(np.bincount([i for batch in epoch for i in batch], minlength=n)) > 1
            for epoch in epochs
        )
        words = "an epoch holds an example twice" if twice else "an epoch holds no example twice"
        yield Evidence(check_, words, rate, told, verdict="broken" if twice else "sound")
        p = float(abs(sizes.mean() - q * n) > 0.02 * q * n + 1)
        words = f"batches hold {rate:.3g} times the claimed share of the data"
        yield Evidence(check_, words, rate, told, verdict="broken" if p else "sound")
        return
    rng, count = np.random.default_rng(seed), len(batches)
    together = int((here[0 : count // 2 * 2 : 2] & here[1 : count // 2 * 2 : 2]).sum())
    trials = count // 2 * n
    if claims.sampling == "fixed":
        size = round(q * n)
        right: Verdict = "sound" if (sizes == size).all() else "broken"
        words = f"batches of {sizes.min()} to {sizes.max()} examples, claimed {size}"
        yield Evidence(check_, words, rate, told, verdict=right)
        # Of one batch and the next: the variance of a hypergeometric number.
        variance = size * size / n * (1 - size / n) ** 2 * n / max(1, n - 1)
        spread = math.sqrt(count // 2 * variance) or math.inf
        gap = abs(together - count // 2 * size * size / n) / spread
        words = f"{together} examples stand in a batch and in the next one{pattern}"
        yield Evidence(check_, words, rate, told, float(2 * stats.norm.sf(gap)))
    elif q < 1:
        words = f"examples are drawn at {rate:.4g} times the claimed rate"
        yield Evidence(check_, words, rate, told, total_p_value(int(here.sum()), here.size, q))
        words = f"sizes from {sizes.min()} to {sizes.max()} do not vary as those of Poisson batches"
        p = binomial_p_value(sizes, n, q, rng)
        yield Evidence(check_, words + pattern, rate, told, p)
        words = f"{together} examples stand in a batch and in the next one"
        words += f", expected {trials * q * q:.0f}{pattern}"
        yield Evidence(check_, words, rate, told, total_p_value(together, trials, q * q))
    mean = claims.sample_rate or 1.0
    each = here.sum(0)
    variance = count * mean * (1 - mean)
    if variance > 0:
        # Squares of a binomial number: mean 1, variance as for a normal one and a little more.
        total = float(np.sum((each - count * mean) ** 2) / variance)
        spread = n * (2 + (1 - 6 * mean * (1 - mean)) / variance)
        law = stats.gamma(n * n / spread, scale=spread / n)
        p = min(1.0, 2 * float(min(law.cdf(total), law.sf(total))))
        words = f"an example is drawn {each.min()} to {each.max()} times in {count} batches"
        yield Evidence(check_, words + pattern, rate, told, p)


def most_participations(loader: Loader, steps: int, n: int, seed: int) -> int:
    """How many of so many steps the example that a loader draws most often takes part in.

    Args: loader, n, seed: see `sampling_evidence`. steps: of the whole training.
    """
    often, seen = np.zeros(n), 0
    for epoch in range(LEAST_BATCHES):
        batches = loader(seed * 1_000_003 + epoch)
        for batch in batches:
            often[np.unique(np.asarray(batch, dtype=int))] += 1
        seen += len(batches)
        if seen >= min(steps, LEAST_BATCHES):
            break
    return math.ceil(float(often.max()) * steps / max(seen, 1) - 1e-9)


def preparation_evidence(prepare: Any, data: Sequence[Any]) -> Iterator[Evidence]:
    """Checks that leaving out a raw example changes no other prepared one.

    Args: prepare: raw examples -> examples. data: raw examples.
    """
    check_ = "preparation"
    if prepare is None:
        yield Evidence(check_, "no prepare function was given", verdict="cannot tell")
        return
    whole, most, where = [*prepare([*data])], 0, ""
    for i in sorted({0, len(data) // 2, len(data) - 1}):
        for words, raw in (("left out", None), ("scaled by 1e6", scale(data[i], LOUD))):
            changed = [*data[:i], *([] if raw is None else [raw]), *data[i + 1 :]]
            others, after = whole[:i] + whole[i + 1 :], [*prepare(changed)]
            after = after if raw is None else after[:i] + after[i + 1 :]
            moved = abs(len(after) - len(others)) + sum(
                not same_numbers(a, b) for a, b in zip(others, after)
            )
            if moved > most:
                most, where = moved, f"raw example {i} {words}"
    words = "every example is prepared alone"
    words = f"{most} of {len(whole) - 1} other examples change with {where}" if most else words
    yield Evidence(check_, words, float(most), where, verdict="broken" if most else "sound")
