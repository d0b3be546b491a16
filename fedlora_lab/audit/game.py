"""The plainest things to audit: one noised number for each canary, and one noised number for each of many runs."""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import brentq

from fedlora_lab.audit import gaussian, one_run, threshold
from fedlora_lab.checks import check_number, check_whole
from fedlora_lab.streams import Streams
from fedlora_lab.theory import gdp_delta, gdp_epsilon

DELTA = 1e-5


@lru_cache(maxsize=256)
def multiplier(epsilon: float, delta: float = DELTA) -> float:
    """The sigma at which one Gaussian release spends exactly epsilon.

    Guarantees: test_lesson_12.py::test_the_game_states_what_it_spends.
    """
    check_number("epsilon", epsilon, 0, 100, open_low=True)
    log_mu = brentq(lambda x: gdp_delta(math.exp(x), epsilon) - delta, math.log(1e-4), math.log(60.0), xtol=1e-12)
    return math.exp(-float(log_mu))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Game:
    """One one-run audit of a release that holds one noised number for each canary.

    Args:
        included: (m,), the coins.
        scores: (m,), the release itself: ``leak`` where the coin fell, plus noise of ``sigma``.
        stated: epsilon as the ledger states it, for a canary that adds 1.
        true: epsilon as it is, for a canary that adds ``leak``.
        lower: what the audit proves. ceiling: what so many canaries can prove at most.
    """

    included: Bool[np.ndarray, " m"]
    scores: Float[np.ndarray, " m"]
    sigma: float
    stated: float
    true: float
    lower: float
    ceiling: float

    @property
    def caught(self) -> bool:
        """The audit refutes the ledger."""
        return self.lower > self.stated


def game(
    canaries: int, epsilon: float, leak: float = 1.0, delta: float = DELTA, confidence: float = 0.95, seed: int = 0
) -> Game:
    """Play once: fair coins, noised numbers, guesses as `one_run.plans` fixes them.

    Args:
        canaries: m >= 2.
        epsilon: stated, in (0, 100]; it sets the noise.
        leak: how much louder than allowed a bug lets a canary be, >= 1; 1 is no bug.
        confidence: of the lower bound, in (0, 1).

    Guarantees: without a bug the bound exceeds the truth as seldom as it says
        (test_the_game_errs_as_seldom_as_it_says).
    """
    check_whole("canaries", canaries, 2)
    check_number("leak", leak, 1, 1e3)
    rng, sigma = Streams(seed).numpy("audit game", canaries), multiplier(epsilon, delta)
    included = rng.random(canaries) < 0.5
    scores = leak * included + sigma * rng.standard_normal(canaries)
    lower = one_run.best(scores, included, delta, 1 - confidence)
    true = gdp_epsilon(leak / sigma, delta)
    return Game(included, scores, sigma, epsilon, true, lower, most(canaries, delta, 1 - confidence))


@lru_cache(maxsize=256)
def most(canaries: int, delta: float, significance: float) -> float:
    """`one_run.ceiling` with the usual guesses, remembered."""
    return one_run.ceiling(canaries, delta, significance)


def repeated(
    runs: int, epsilon: float, repeats: int = 100, delta: float = DELTA, seed: int = 0
) -> dict[str, Float[np.ndarray, " repeats"]]:
    """Audits by independent draws: ``runs`` releases with the canary and as many without, ``repeats`` times over.

    One threshold each, fixed beforehand: two and a half deviations above nothing for the bound that holds for any
    mechanism, the middle for the one that takes the noise for Gaussian.

    Returns: "any mechanism" and "Gaussian noise" -> lower bounds (95 %), see `threshold` and `gaussian`.
    Guarantees: test_repeated_audits_stay_below_the_truth.
    """
    check_whole("runs", runs, 2)
    check_whole("repeats", repeats, 1)
    rng, sigma = Streams(seed).numpy("repeated audits", runs), multiplier(epsilon, delta)
    found: dict[str, list[float]] = {"any mechanism": [], "Gaussian noise": []}
    for _ in range(repeats):
        inside, outside = 1 + sigma * rng.standard_normal(runs), sigma * rng.standard_normal(runs)
        found["any mechanism"].append(threshold.best(inside, outside, delta, 0.05, [2.5 * sigma]))
        found["Gaussian noise"].append(gaussian.threshold_lower(inside, outside, 0.5, delta, 0.05))
    return {name: np.array(values) for name, values in found.items()}
