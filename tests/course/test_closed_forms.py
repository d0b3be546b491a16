"""The figure of a closed form beside what was measured."""

import numpy as np
import pandas as pd

from fedlora_course import figures
from fedlora_lab.plots import style


def test_a_closed_form_counts_what_lies_inside():
    """Three of ten means beside x² miss it."""
    x = np.arange(1.0, 11.0)
    table = pd.DataFrame({"x": x, "closed": x**2, "mean": x**2})
    table.loc[:2, "mean"] *= 3
    table = table.assign(low=table["mean"] * 0.9, high=table["mean"] * 1.1)
    figure = figures.closed_form(table, x="x", y="y", title="t")
    assert "inside: 70%" in figure.get_supxlabel()
    red = [line for line in figure.axes[0].lines if line.get_color() == style.WRONG]
    assert sum(np.size(line.get_xdata()) for line in red) == 3
