"""Epsilon by the accountants of Opacus, for who compares with a run of Opacus.

Both count a unit that is left out of sampled Gaussian releases. Opacus states what it computes;
here rounding is added, and what its arithmetic does not cover is refused.
"""

import math
import warnings

import numpy as np

from fedlora_lab._utils.validation import check
from fedlora_lab.privacy.pld import MergedHistory
from fedlora_lab.theory.gaussian_dp import rdp_to_epsilon

TRUNCATED = 1e-12
"""How much too small a moment of one release may be: Opacus ends its series at terms of e^-30."""
EPSILON_ERROR = 0.01
"""Error of epsilon for which PRV chooses its grid, the default of Opacus."""
DELTA_SHARE = 1e-3
"""Share of delta that PRV may lose at the ends of its grid, the default of Opacus."""
MAX_POINTS = 2**24
"""Points of PRV's grid; more take minutes and gigabytes."""
MAX_LOSS = 300.0
"""Half the width of PRV's grid: e to this power and its square are floats."""


def rdp_epsilon(key: MergedHistory, delta: float) -> float:
    """Upper bound on epsilon by Opacus' Renyi divergences, at the orders of its accountant.

    Guarantees: the number of Opacus, and never below the exact epsilon
        (test_accounting.py::test_accountants_of_opacus_state_what_opacus_does).
    Source: arXiv:1908.10530, section 3.3; arXiv:1905.09982, theorem 21.
    """
    from opacus.accountants import RDPAccountant
    from opacus.accountants.analysis import rdp

    listed = RDPAccountant.DEFAULT_ALPHAS
    orders = np.array(listed)
    total = np.zeros(len(orders))
    for sigma, q, steps in key:
        divergences = rdp.compute_rdp(q=q, noise_multiplier=sigma, steps=1, orders=listed)
        # Only an upper bound may be stated. Of full batches the divergence has a closed form.
        margin = TRUNCATED / (orders - 1) if q < 1 else 0.0
        total += steps * (np.maximum(divergences, 0.0) + margin)
    return rdp_to_epsilon(orders, total, delta)[0]


def prv_epsilon(key: MergedHistory, delta: float) -> float:
    """Upper end of the interval that Opacus' PRV accountant gives for epsilon.

    The composed loss is computed by Fourier transforms, whose rounding is taken off delta: Opacus'
    own number is too small where delta is as small as that.

    Raises: ``ValueError`` where a grid of so many points, or of so large losses, is not computed
        well, and where delta is less than rounding.
    Guarantees: the number of Opacus but for that rounding, and never below the exact epsilon
        (test_accounting.py::test_accountants_of_opacus_state_what_opacus_does).
    Source: arXiv:2106.02848, theorem 5.5.
    """
    from opacus.accountants import PRVAccountant

    lost = delta * DELTA_SHARE
    steps = sum(count for *_, count in key)
    points = _grid_points(key, lost, steps)
    # Each transform rounds in proportion to the power it is raised to, and to the root of its size.
    rounding = 4 * 2.0**-52 * (points + steps * math.sqrt(points))
    check(rounding < delta / 2, "delta", delta, f"more than {2 * rounding:.1g} for 'opacus-prv'")
    accountant = PRVAccountant()
    accountant.history = [*key]
    # Of full batches it takes the logarithm of 1 - q, and its choice of a grid asks for a Renyi
    # order at the end of a list: neither is a fault of what it states.
    with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
        value = accountant.get_epsilon(delta - rounding, eps_error=EPSILON_ERROR, delta_error=lost)
    return max(0.0, float(value))


def _grid_points(key: MergedHistory, lost: float, steps: int) -> float:
    """The size of the grid that PRV chooses; refused where it is not computed well.

    Args: key: of the releases. lost: share of delta. steps: how many releases there are.
    """
    each = [rdp_epsilon(((sigma, q, 1),), lost / (8 * steps)) for sigma, q, _ in key]
    width = 3 + max(rdp_epsilon(key, lost / 4), *each)
    expected = f"'pld': losses up to {width:.4g} are too large for it (at most {MAX_LOSS:g})"
    check(width <= MAX_LOSS, "accountant", "opacus-prv", expected)
    points = 2 * width * math.sqrt(steps * math.log(12 / lost) / 2) / EPSILON_ERROR
    expected = f"'pld': its grid would have {points:.2g} points (at most {MAX_POINTS})"
    check(points <= MAX_POINTS, "accountant", "opacus-prv", expected)
    return points
