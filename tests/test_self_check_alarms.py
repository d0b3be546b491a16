"""The self-check fails on no row of the table, and on none of twenty repetitions."""

import planted
import pytest
from scipy import stats
from small import LORA, UNITS, private, tokens

from fedlora_lab import methods
from fedlora_lab.audit import self_check

ROWS = list(methods.ALL.values())
TASK = tokens("head", (9, 7, 5))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.slug)
@pytest.mark.parametrize("unit", UNITS)
def test_no_row_fails(row, unit):
    checked = self_check(TASK, row, private(unit), planted.PLAN, lora=LORA)
    assert checked.ok, str(checked)
    assert {one.trial for one in checked.found} >= {"no clip norm, no trace", "sampling law", "ledger"}


@pytest.mark.parametrize(("slug", "unit"), [("fedlora", "example"), ("deer", "client")])
def test_twenty_repetitions_raise_no_alarm(slug, unit):
    """At 1 in 1000 for each repetition; the chances themselves are spread evenly, not merely large."""
    least, chances = 1.0, []
    for seed in range(20, 40):
        checked = self_check(TASK, slug, private(unit), planted.PLAN, lora=LORA, seed=seed)
        assert checked.ok, f"seed {seed}:\n{checked}"
        least = min(least, *(one.value for one in checked.found if one.limit is None))
        chances += [one.value for one in checked.found if one.what.startswith(("spread", "normal"))]
    assert least < 0.05
    assert stats.kstest(chances, "uniform").pvalue > 1e-4
