"""Tables of what was measured beside a paper's."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from calls import refused

import fedlora_lab as fl

measured = fl.course.papers.measured


def frame(**spent):
    rows = [(m, s, 0.6 + s / 10, e) for m, e in spent.items() for s in range(3)]
    return pd.DataFrame(rows, columns=["method", "seed", "accuracy", "spent"])


@pytest.mark.parametrize(("spent", "said"), [(np.nan, "none"), (7.9913, "8.00"), (8.001, "8.01")])
def test_a_table_has_one_epsilon(spent, said):
    """It is never rounded below the truth, and unequal ones are refused."""
    table: Any = measured(frame(deer=spent, fedlora=spent), ["fedlora", "deer"])
    assert [*table.index] == ["FedLoRA", "DEeR"]
    assert table.loc["DEeR"].tolist() == ["70.0", "45.2 to 94.8", 3, said]
    with refused("35.4"):
        measured(frame(deer=spent, fedlora=35.4), ["deer", "fedlora"])
