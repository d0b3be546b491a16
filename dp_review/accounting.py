"""The epsilon that a step's noise, sampling and number of steps give: as claimed, as measured."""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import dp_accounting
from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

from dp_review._validation import round_up
from dp_review.claims import Claims, Finding, Loader, Verdict
from dp_review.sampling import draw_epochs, most_participations

EPSILON_SLACK = 0.01
"""Share by which a stated epsilon may lie below that of dp-accounting: the accountants' errors."""
FINENESS = 0.05
"""Interval of the losses over the usual loss of one release."""
COARSEST = 0.03
MOST_LOSSES = 200_000
"""Losses of one release that are told apart."""
LARGEST_LOSS = 1000.0
"""Where one release may lose more, sampling is not counted: there is hardly any noise."""
LAWS = {None: "no amplification by sampling", "poisson": "Poisson batches"}
CHECKS_IN_EPSILON = {"sensitivity", "noise size", "sampling", "empty batch", "accounting", "signal"}
"""Checks that, broken, leave an epsilon: it counts what they measured. No other one does."""


def spent_epsilon(claims: Claims, sigma: float) -> float:
    """Epsilon at the claimed delta of all claimed steps with this noise multiplier."""
    assert claims.delta is not None and claims.steps is not None
    q = (claims.sample_rate or 1.0) if claims.sampling == "poisson" else 1.0
    return gaussian_epsilon(sigma, q, claims.steps, claims.delta)


def gaussian_epsilon(sigma: float, q: float, steps: int, delta: float) -> float:
    """An upper bound on the epsilon of so many releases, by dp-accounting.

    Args: sigma: noise multiplier. q: chance with which an example is in a batch. steps, delta: of
    all releases together.

    Guarantees: test_epsilon_is_that_of_the_ledger.

    >>> round(gaussian_epsilon(2.0, 1.0, 10, 1e-5), 2)
    7.51
    """
    # Sampling never costs privacy, so the smaller of two bounds holds.
    unsampled = float(dp_accounting.get_epsilon_gaussian(sigma / math.sqrt(steps), delta))
    largest = 1 / (2 * sigma**2) + 10 / sigma
    if q == 1 or largest > LARGEST_LOSS:
        return unsampled
    # So fine that rounding adds little to what one release loses, and so coarse that it ends.
    typical = q * math.sqrt(math.expm1(min(1 / sigma**2, 50.0)))
    interval = min(max(FINENESS * min(typical, 1.0), largest / MOST_LOSSES), COARSEST)
    losses = from_gaussian_mechanism(
        sigma, sampling_prob=q, value_discretization_interval=interval
    ).self_compose(steps)
    return min(unsampled, float(losses.get_epsilon_for_delta(delta)))


def check_accounting(claims: Claims) -> Iterator[Finding]:
    """Whether the claimed epsilon follows from the other claims."""
    check = "accounting"
    if claims.delta is None or claims.steps is None:
        text = "needs steps and delta among the claims, and epsilon to compare with"
        yield Finding(check, text, verdict="cannot tell")
        return
    spent = spent_epsilon(claims, claims.noise_multiplier)
    text = f"{claims.steps} steps, {LAWS[claims.sampling]}: ε = {round_up(spent, '.4g')} at "
    text += f"δ = {round_up(claims.delta, 'g')}"
    verdict: Verdict = "cannot tell"
    if claims.epsilon is not None:
        verdict = "sound" if claims.epsilon >= spent * (1 - EPSILON_SLACK) else "broken"
        text += f"; claimed {round_up(claims.epsilon, '.4g')}"
    yield Finding(check, text, spent, "all steps", verdict=verdict)
    if claims.dataset_size is not None and claims.delta * claims.dataset_size >= 1:
        text = f"δ = {claims.delta:g} allows one of {claims.dataset_size} to be published outright"
        yield Finding(check, text, spent, "delta", verdict="broken")


def epsilon_given(
    findings: Mapping[str, Finding], claims: Claims, loader: "Loader | None", seed: int
) -> float | None:
    """The epsilon of what was measured: the claim holds where nothing broken was found; nothing
    where delta or steps are not claimed.

    Args: findings: check -> finding. claims, loader, seed: of the review.
    """
    if claims.delta is None or claims.steps is None:
        return None
    broken = {name: abs(f.number) for name, f in findings.items() if f.verdict == "broken"}
    if broken.keys() - CHECKS_IN_EPSILON:
        return math.inf
    sigma = claims.noise_multiplier
    # Noise that is too large is not counted: one tensor or batch may have less than all together.
    sigma *= min(1.0, broken.get("noise size", 1.0))
    # A sensitivity of r clip norms is as good as noise that is r times smaller.
    sigma /= max(1.0, broken.get("sensitivity", 1.0))
    measured = claims
    never_empty = False
    if "sampling" in broken and loader is not None and claims.dataset_size is not None:
        batches = [*itertools.chain(*draw_epochs(loader, claims.dataset_size, seed))]
        # Batches that are not drawn as claimed are not amplified: an example counts wherever it is.
        most = most_participations(batches, claims.steps, claims.dataset_size)
        measured = replace(claims, sampling=None, sample_rate=None, steps=most)
        # Of batches of one size, but for the last of an epoch, none is empty.
        never_empty = all(batches) and len({*map(len, batches)}) <= 2
    # Elsewhere a step without noise tells that its batch was empty.
    told = "empty batch" in broken and not never_empty
    return math.inf if told or not 0 < sigma < math.inf else spent_epsilon(measured, sigma)
