"""Audits of the plainest release, a number plus Gaussian noise; and what a table of audits says."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import brentq

from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.validation import check, check_number, check_whole
from fedlora_lab.audit import bounds
from fedlora_lab.theory.gaussian_dp import gdp_delta, gdp_epsilon

if TYPE_CHECKING:
    import pandas as pd

DELTA = 1e-5


@lru_cache(maxsize=256)
def gaussian_noise_multiplier(epsilon: float, delta: float = DELTA) -> float:
    """Returns the sigma at which one Gaussian release spends exactly epsilon.

    Guarantees: test_lesson_12.py::test_the_game_states_what_it_spends.
    """
    check_number("epsilon", epsilon, 0, 100, open_low=True)
    ends = math.log(1e-4), math.log(60.0)
    log_mu = brentq(lambda x: gdp_delta(math.exp(x), epsilon) - delta, *ends, xtol=1e-12)
    return math.exp(-float(log_mu))  # type: ignore[arg-type]


@dataclass(frozen=True)
class SimulatedAudit:
    """One one-run audit of a release that holds one noised number for each canary.

    Args:
        included: (m,), the coins.
        scores: (m,), the release itself: ``leak`` where the coin fell, plus noise of ``sigma``.
        stated, true: epsilon as the ledger states it, for a canary that adds 1; and as it is, for
            one that adds ``leak``.
        lower, ceiling: what the audit proves, and what so many canaries can prove at most.
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


def simulate_one_run(
    canaries: int, epsilon: float, leak: float = 1.0, confidence: float = 0.95, seed: int = 0
) -> SimulatedAudit:
    """Simulates one audit: fair coins, noised numbers, `default_guesses`; delta is 0.00001.

    Args:
        canaries: m >= 2.
        epsilon: stated, in (0, 100]; it sets the noise.
        leak: how much more than allowed a bug lets a canary add, >= 1; 1 is no bug.
        confidence: of the lower bound, in (0, 1).

    Guarantees: without a bug the bound exceeds the truth as seldom as it says
        (test_the_game_errs_as_seldom_as_it_says).

    >>> simulate_one_run(canaries=200, epsilon=2, leak=4).caught
    True
    """
    check_whole("canaries", canaries, 2)
    check_number("leak", leak, 1, 1e3)
    rng, sigma = Streams(seed).numpy("audit game", canaries), gaussian_noise_multiplier(epsilon)
    included = rng.random(canaries) < 0.5
    scores = leak * included + sigma * rng.standard_normal(canaries)
    lower = bounds.one_run_best_bound(scores, included, DELTA, 1 - confidence)
    true, ceiling = (
        gdp_epsilon(leak / sigma, DELTA),
        cached_ceiling(canaries, DELTA, 1 - confidence),
    )
    return SimulatedAudit(included, scores, sigma, epsilon, true, lower, ceiling)


@lru_cache(maxsize=256)
def cached_ceiling(canaries: int, delta: float, significance: float) -> float:
    """`one_run_ceiling`, kept: widgets ask again. Args: canaries, delta, significance: as there."""
    return bounds.one_run_ceiling(canaries, delta, significance)


def simulate_many_runs(
    runs: int, epsilon: float, repeats: int = 100, seed: int = 0
) -> dict[str, Float[np.ndarray, " repeats"]]:
    """Simulates audits of ``runs`` releases with the canary and as many without, ``repeats`` times.

    Each has one threshold, fixed beforehand: two and a half deviations above zero for the bound
    that holds for any mechanism, the middle for the one that takes the noise for Gaussian.

    Args: runs: >= 2. epsilon: the true one, in (0, 100], at delta = 0.00001.
    Returns: "any mechanism" and "Gaussian noise" -> lower bounds (95 %).
    Guarantees: test_repeated_audits_stay_below_the_truth.

    >>> {kind: len(lower) for kind, lower in simulate_many_runs(50, 3.0, repeats=5).items()}
    {'any mechanism': 5, 'Gaussian noise': 5}
    """
    check_whole("runs", runs, 2)
    check_whole("repeats", repeats, 1)
    rng, sigma = Streams(seed).numpy("repeated audits", runs), gaussian_noise_multiplier(epsilon)
    lower = np.empty((2, repeats))
    for i in range(repeats):
        scores = 1 + sigma * rng.standard_normal(runs), sigma * rng.standard_normal(runs)
        lower[0, i] = bounds.best_threshold_bound(*scores, DELTA, 0.05, [2.5 * sigma])
        lower[1, i] = bounds.threshold_gdp_lower_bound(*scores, 0.5, DELTA, 0.05)
    return {"any mechanism": lower[0], "Gaussian noise": lower[1]}


def summarize_audits(frame: "pd.DataFrame") -> str:
    """Counts the audits that exceed their ledger's epsilon, that are invalid, and that could have
    exceeded it at all: where the ceiling lies above the stated epsilon. Others prove nothing.

    Args:
        frame: one row an audit, columns method, unit, noise_multiplier, epsilon_lower (NaN:
            invalid), ceiling, epsilon_upper, as results/audit.csv.

    Guarantees: test_the_verdict_counts_what_could_have_failed.
    """
    check(len(frame) > 0, "frame", f"{len(frame)} rows", "at least one audit")
    columns = ["method", "unit", "noise_multiplier"]
    could: Any = frame[frame["ceiling"] > frame["epsilon_upper"]]
    above = (frame["epsilon_lower"] > frame["epsilon_upper"]).sum()
    settings, able = (len(part[columns].drop_duplicates()) for part in (frame, could))
    return (
        f"{len(frame):,} audits, {above} above the ledger's epsilon, "
        f"{frame['epsilon_lower'].isna().sum()} invalid; in {able} of {settings} settings "
        f"({len(could):,} audits) the ceiling lies above the stated epsilon: "
        f"{'only' if able else 'none of'} these could have contradicted it"
    )


def tabulate_audits(frame: "pd.DataFrame") -> "pd.DataFrame":
    """One row for each method, unit and noise: what its audits could prove, and what they did.

    Args: frame: as of `summarize_audits`, with gaussian_lower.
    Returns: epsilon_upper; ceiling; could_fail, whether the ceiling lies above it; audits; invalid;
        epsilon_lower (median over the seeds), lowest, highest; share, of epsilon_upper that the
        median reaches; gaussian_lower and gaussian_share likewise. NaN where no audit is valid.
    Guarantees: test_the_table_of_audits_states_what_was_reached.
    """
    groups: Any = frame.groupby(["unit", "noise_multiplier", "method"], sort=False)
    lower = groups["epsilon_lower"]
    table: Any = groups["epsilon_upper"].max().to_frame()
    table["ceiling"] = groups["ceiling"].max()
    table["could_fail"] = table["ceiling"] > table["epsilon_upper"]
    table["audits"], table["invalid"] = lower.size(), lower.size() - lower.count()
    table["epsilon_lower"] = lower.median()
    table["lowest"], table["highest"] = lower.min(), lower.max()
    table["share"] = table["epsilon_lower"] / table["epsilon_upper"]
    table["gaussian_lower"] = groups["gaussian_lower"].median()
    table["gaussian_share"] = table["gaussian_lower"] / table["epsilon_upper"]
    return table.reset_index()


def attacks_above(
    frame: "pd.DataFrame", curve: "Callable[[float], float]", significance: float = 0.05
) -> "pd.DataFrame":
    """Finds attacks that lie above a trade-off curve beyond chance: each would refute the ledger.

    Of each attack the share of members found has a lower end, the share of others accused an upper
    one (Clopper-Pearson, together right with a chance of error of ``significance`` over all rows,
    by Bonferroni). Above is one whose lower end exceeds the curve at the upper end. Examples count
    as independent, and the threshold must have been set on others.

    Args:
        frame: one row an attack, columns accused, others, found, members (counts), as
            results/league.csv.
        curve: false positive rate -> the largest share of members found, as `Ledger.tradeoff`.
        significance: in (0, 1).

    Returns: the rows above, with columns lower and bound.
    Guarantees: test_an_attack_above_the_curve_is_found_and_chance_is_not.

    >>> import pandas as pd
    >>> counts = {"accused": [1, 1], "others": [100, 100], "found": [90, 2], "members": [100, 100]}
    >>> list(attacks_above(pd.DataFrame(counts), lambda fpr: min(1.0, 3 * fpr)).index)
    [0]
    """
    check(len(frame) > 0, "frame", f"{len(frame)} rows", "at least one attack")
    check_number("significance", significance, 0, 1, open_low=True)
    share, ends = significance / (2 * len(frame)), []
    for row in frame.to_dict("records"):
        missed = row["members"] - row["found"]
        accused = bounds.clopper_pearson_upper(row["accused"], row["others"], share)
        lower = 1 - bounds.clopper_pearson_upper(missed, row["members"], share)
        ends.append((lower, float(curve(min(accused, 1.0)))))
    found = frame.assign(lower=[low for low, _ in ends], bound=[high for _, high in ends])
    return found[found["lower"] > found["bound"]]


def audit_power(
    epsilon: float,
    canaries: Sequence[int] = (50, 100, 200, 500, 1000),
    leak: float = 4.0,
    confidence: float = 0.99,
    repeats: int = 20,
) -> "pd.DataFrame":
    """Simulates what the best attacker would prove of a sound release, and how often of a broken
    one, over the number of canaries: by `simulate_one_run`.

    Args:
        epsilon: stated, at delta = 0.00001.
        canaries: numbers of canaries.
        leak: how much louder a canary of the broken release is than the noise was made for.
        confidence, repeats: of each bound; simulated audits for each number.

    Returns: canaries; ceiling; could_fail; lower, the median of a sound release; power, the share
        of audits of the broken one that exceed the stated epsilon.
    Guarantees: test_the_power_of_audits_grows_with_the_canaries.
    """
    import pandas as pd

    check_whole("repeats", repeats, 1)
    rows = []
    for m in canaries:
        options: Any = {"canaries": m, "epsilon": epsilon, "confidence": confidence}
        sound = [simulate_one_run(seed=seed, **options) for seed in range(repeats)]
        broken = [simulate_one_run(leak=leak, seed=seed, **options) for seed in range(repeats)]
        ceiling = sound[0].ceiling
        row = {"canaries": m, "ceiling": ceiling, "could_fail": ceiling > epsilon}
        row["lower"] = float(np.median([one.lower for one in sound]))
        rows.append(row | {"power": float(np.mean([one.caught for one in broken]))})
    return pd.DataFrame(rows)
