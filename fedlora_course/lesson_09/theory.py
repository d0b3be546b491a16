"""Closed forms of lesson 09: noise where the server averages factors, and products."""

import math

from fedlora_lab._utils.validation import check_symbols
from fedlora_lab.theory.products import FactorA, FactorB, NoiseTerms, noise_terms


def factor_average_terms(
    B: FactorB, A: FactorA, std_B: float, std_A: float, clients: int
) -> NoiseTerms:
    """Energy in B A when K clients noise the same factors and the server averages the FACTORS.

    `noise_terms` at std / sqrt(K), so the quadratic term falls with K^2.

    Args: B, A: the factors; std_B, std_A: of one client's noise; clients: K >= 1.
    Guarantees: the mean over drawn copies of an adapter (test_product_average_terms).
    Source: derived.
    """
    check_symbols(clients=clients)
    return noise_terms(B, A, std_B / math.sqrt(clients), std_A / math.sqrt(clients))


def product_average_terms(
    B: FactorB, A: FactorA, std_B: float, std_A: float, clients: int
) -> NoiseTerms:
    """Energy when the server averages the PRODUCTS instead (exact aggregation).

    The quadratic term falls only with K, so it is K times that of averaged factors.

    Args: as `factor_average_terms`.
    Guarantees: the mean over drawn copies of an adapter (test_product_average_terms).
    Source: derived.
    """
    check_symbols(clients=clients)
    return NoiseTerms(*(term / clients for term in noise_terms(B, A, std_B, std_A)))
