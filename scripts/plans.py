"""Writes what the ledger says of every plan of notebook 03's planner: python scripts/plans.py"""

import itertools
import json

import numpy as np

from fedlora_lab.course.lesson_03 import dials
from fedlora_lab.privacy.plan import Privacy


def plan(sigma: float, rate: float, releases: int) -> dict[str, object]:
    """Returns ε of a plan, and the largest share of members that an attacker finds."""
    privacy = Privacy(noise_multiplier=sigma, sample_rate=rate, delta=dials.PLAN_DELTA)
    ledger = privacy.ledger(releases)
    shares = ledger.tradeoff(np.array(dials.PLAN_FALSE_ALARMS))
    return {
        "epsilon": float(f"{ledger.epsilon():.4g}"),
        "found": [float(f"{share:.3g}") for share in shares],
    }


def main() -> None:
    """Computes every stop of the dial."""
    stops = itertools.product(dials.PLAN_NOISES, dials.PLAN_RATES, dials.PLAN_RELEASES)
    plans = {f"{sigma:g} {rate:g} {n}": plan(sigma, rate, n) for sigma, rate, n in stops}
    dials.PLANS.write_text(json.dumps(plans, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
