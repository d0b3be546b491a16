"""Privacy loss distributions of dp-accounting, rounded to the pessimistic side: where no PRV grid is fine enough."""

import math

from fedlora_lab.accounting.renyi import Key

_POINTS = 2e5  # of the composed distribution, about: a call takes a fraction of a second


def epsilon(key: Key, delta: float, scale: float) -> float:
    """An upper bound on epsilon; close where ``scale``, an epsilon known to be no smaller, is not far above.

    Raises:
        RuntimeError, ValueError, ArithmeticError, MemoryError: where the distribution of one release is too wide.

    Source: arXiv:2207.04380 (connect the dots).
    """
    from dp_accounting.pld import privacy_loss_distribution as pld

    total = sum(steps for *_, steps in key)
    # the rounding of one release is of second order in the interval, and adds up over the releases
    interval = min(1e-3, max(scale / _POINTS, 1e-3 / math.sqrt(total), 1e-5))
    interval = max(interval, scale / (5 * _POINTS))
    whole = None
    for sigma, q, steps in key:
        if (0.5 / sigma**2 + 12 / sigma) / interval > 5 * _POINTS:
            raise MemoryError("one release has too many points")
        one = pld.from_gaussian_mechanism(sigma, value_discretization_interval=interval, sampling_prob=q)
        part = one.self_compose(steps)
        whole = part if whole is None else whole.compose(part)
    assert whole is not None
    value = float(whole.get_epsilon_for_delta(delta))
    if not math.isfinite(value):
        raise RuntimeError("no finite epsilon at this delta")
    return max(0.0, value)
