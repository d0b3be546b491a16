"""What counts as a collapsed run, and what a table says of it."""

import math

import numpy as np
import pytest
from frames import tidy_frame

from fedlora_lab.measures.runs import find_collapsed, run_ends

NAN = math.nan
INF = math.inf


@pytest.mark.parametrize(
    ("gains", "low"),
    [
        ((0.3, 0.004, 0.004, 0.28, 0.29), (1, 2)),  # two learned nothing
        ((0.3, 0.2, 0.16, 0.28), ()),  # slower, but more than half of the median
        ((0.3, 0.004), ()),  # of two runs none is the median
        ((0.3, -0.001), (1,)),  # below its start it has collapsed in any company
        ((-0.2, -0.1, -0.15, 0.0), (0, 1, 2)),  # and so have all that lost
        ((0.3, NAN, 0.3, -INF), (3,)),  # not measured is no verdict; diverged is one
    ],
)
def test_what_counts_as_collapsed(gains, low):
    assert tuple(np.flatnonzero(find_collapsed(np.array(gains)))) == low


def test_each_method_and_seed_is_judged_by_its_own_ends():
    """Of loss and perplexity less is better; of anything else more."""
    frame = tidy_frame().query("measure == 'accuracy'")
    last = frame.eval("method == 'rolora' and seed == 1 and round == 4")
    ends = run_ends(frame.assign(value=frame["value"].mask(last, 0.0)))
    assert ends.index[ends["collapsed"]].tolist() == [("rolora", 1)]
    for measure in ("loss", "perplexity", "loss_received"):
        renamed = frame.assign(measure=measure)
        assert run_ends(renamed, measure)["fell"].all(), "all rise"
    assert not run_ends(frame.assign(measure="f1"), "f1")["fell"].any()
