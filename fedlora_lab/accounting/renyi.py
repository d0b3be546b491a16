"""Renyi accounting by Opacus' functions; what one release costs is computed once and kept."""

import logging
import math
import warnings
from functools import cache, lru_cache
from typing import Any

import numpy as np

Key = tuple[tuple[float, float, int], ...]
"""A canonical history: (noise multiplier > 0, sample rate > 0, steps >= 1), sorted."""

ORDERS = (*(1 + x / 10 for x in range(1, 100)), *range(12, 64), 80, 96, 128, 192, 256, 512, 1000)
"""Renyi orders: those of Opacus, and larger ones that keep a small epsilon tight."""


@cache
def analysis() -> Any:
    """Opacus' accountants. Its import gives the root logger a handler, which is the user's to give: it is taken back.

    Guarantees: test_user_process.py::test_nothing_is_frozen_where_the_package_loads_the_libraries.
    """
    root = logging.getLogger()
    before = list(root.handlers)
    try:
        from opacus.accountants import analysis as found
        from opacus.accountants.analysis import prv, rdp  # noqa: F401
    finally:
        for handler in [handler for handler in root.handlers if handler not in before]:
            root.removeHandler(handler)
    return found


@lru_cache(maxsize=1024)
def one_release(sigma: float, q: float, orders: tuple[float, ...]) -> np.ndarray:
    """Renyi divergence of one release, shape (orders,); an order at which Opacus overflows counts as infinite."""
    values = []
    for order in orders:
        try:
            values.append(analysis().rdp.compute_rdp(q=q, noise_multiplier=sigma, steps=1, orders=float(order)))
        except (ValueError, ArithmeticError):
            values.append(math.inf)
    known = np.array(values, float)
    return np.where(np.isfinite(known), known, math.inf)


def epsilon(key: Key, delta: float, orders: tuple[float, ...] = ORDERS) -> float:
    """Upper bound on epsilon at ``delta``; the best over ``orders``."""
    total = np.sum([steps * one_release(sigma, q, orders) for sigma, q, steps in key], axis=0)
    with warnings.catch_warnings():  # at the first or last order the bound is valid too, only not the tightest
        warnings.filterwarnings("ignore", message="Optimal order is the", category=UserWarning)
        value, _ = analysis().rdp.get_privacy_spent(orders=list(orders), rdp=total, delta=delta)
    return max(0.0, float(value))
