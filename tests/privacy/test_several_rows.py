"""A person with several rows where rows are protected: what an attack finds, and what is stated."""

import math

import numpy as np
import pytest
from calls import refused
from scipy.optimize import brentq
from scipy.stats import binom, norm

import fedlora_lab as fl
from fedlora_lab.privacy.accounting import epsilon

DELTA = 1e-5


@pytest.mark.parametrize(
    "entry", [(2.0, 0.1, 50), (0.7, 0.02, 100), (1.5, 1.0, 3), (1.0, 0.2, 1), (5, 0.9, 1)], ids=str
)
@pytest.mark.parametrize("rows", [2, 7])
def test_no_attack_on_a_sum_finds_more(entry, rows):
    """It accuses where the sum is large, or acquits where it is small; on one release no attack is
    better. How many rows were drawn in all releases is binomial."""
    sigma, q, steps = entry
    spread = sigma * math.sqrt(steps)
    drawn = np.arange(rows * steps + 1)
    chances = binom.pmf(drawn, rows * steps, q)
    at = np.linspace(-9 * spread, rows * steps * q + 9 * spread, 1001)
    shifted = (at[:, None] - drawn) / spread

    def attack_delta(e):
        accused = norm.sf(shifted) @ chances - math.exp(e) * norm.sf(at / spread)
        acquitted = norm.cdf(at / spread) - math.exp(e) * norm.cdf(shifted) @ chances
        return max(*accused, *acquitted)

    stated = epsilon((entry,), DELTA, rows=rows)
    assert attack_delta(stated) <= DELTA * (1 + 1e-6)
    assert steps > 1 or attack_delta(0.99 * stated) > DELTA


@pytest.mark.parametrize("rows", [2, 3])
def test_no_more_is_stated_than_for_a_group(rows):
    """One row after the other is replaced by nothing: k epsilon at delta (e^(k epsilon) - 1) /
    (e^epsilon - 1), by the relation of the ledger in both directions."""
    history = ((2.0, 0.1, 50),)

    def excess(one):
        return epsilon(history, DELTA * math.expm1(one) / math.expm1(rows * one)) - one

    group = rows * brentq(excess, 1e-3, 5.0)
    assert epsilon(history, DELTA) < epsilon(history, DELTA, rows=rows) <= group


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_a_ledger_counts_several_rows_with_the_client_who_spends_most(accountant):
    book = fl.Ledger(accountant=accountant)
    book.record(1, [0, 1], 30, sample_rate=[0.1, 0.2], noise_multiplier=[2.0, 3.0])
    stated = [book.epsilon(rows_per_person=k) for k in (1, 2, 3, 5)]
    assert stated == sorted({*stated}) and stated[0] == book.epsilon()
    assert stated[2] == max(book.epsilon(k, rows_per_person=3) for k in range(2))


@pytest.mark.parametrize("rows", [(1, 1), (2, 1), (1, 3)], ids=str)
@pytest.mark.parametrize(
    "clients", [((2.0, 0.1, 30), (3.0, 0.2, 30)), ((1.5, 0.9, 1), (1.5, 0.9, 1))], ids=str
)
def test_what_is_stated_for_everyone_holds_for_rows_at_several_clients(clients, rows):
    """An attack weighs each client's sum by its noise; one row at each client is one mechanism
    after the other, whose composition is known.
    """
    sigmas, rates, (steps, _) = zip(*clients, strict=True)
    book = fl.Ledger(delta=DELTA)
    book.record(1, [0, 1], steps, sample_rate=rates, noise_multiplier=sigmas)
    k = sum(rows)
    stated = book.for_everyone().epsilon(rows_per_person=k)
    assert stated >= max(book.epsilon(client, rows_per_person=k) for client in range(2))
    assert rows != (1, 1) or stated >= epsilon(clients, DELTA)

    precisions = [sigma**-2 for sigma in sigmas]
    drawn = [np.arange(n * steps + 1) for n in rows]
    chances = np.outer(*(binom.pmf(i, i[-1], q) for i, q in zip(drawn, rates, strict=True)))
    moved = np.add.outer(*(i * w for i, w in zip(drawn, precisions, strict=True))).ravel()
    spread = math.sqrt(steps * sum(precisions))
    at = np.linspace(-9 * spread, moved[-1] + 9 * spread, 301)
    shifted = (at[:, None] - moved) / spread
    accused = norm.sf(shifted) @ chances.ravel() - math.exp(stated) * norm.sf(at / spread)
    acquitted = norm.cdf(at / spread) - math.exp(stated) * norm.cdf(shifted) @ chances.ravel()
    assert max(*accused, *acquitted) <= DELTA * (1 + 1e-6)


@pytest.mark.parametrize("rows", [0, 2.5, True, "3", 10**7, 2])
@pytest.mark.parametrize("unit", ["example", "person", "client"])
def test_numbers_of_rows_are_refused_in_one_line(rows, unit):
    """What is no number of rows; and several in units in which a person is one."""
    if rows != 2 or unit != "example":
        several = f"1: unit='{unit}' already protects a person"
        expected = several if rows == 2 else r"a whole number in \[1, 1000000\]"
        with refused(f"^rows_per_person={rows!r}: expected {expected}"):
            fl.Ledger(unit=unit).epsilon(rows_per_person=rows)
