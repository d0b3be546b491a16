"""Accuracy over the learning rate: plateaus of made-up curves, and the committed prediction."""

import numpy as np
import pandas as pd
import pytest

from studies import rates

GRID = np.array([0.1, 0.2, 0.4, 0.8])


@pytest.mark.parametrize(
    ("scores", "ends"),
    [
        # Half of what is lost to the next rate is lost half an octave on.
        ((0.5, 0.9, 0.9, 0.84), (0.2 * 2 ** (-0.03 / 0.4), 0.4 * 2**0.5)),
        # Beyond an end of the grid nothing is known; a second hill is not part of the plateau.
        ((0.9, 0.89, 0.5, 0.9), (0.1, 0.2 * 2 ** (0.02 / 0.39))),
    ],
)
def test_a_plateau_ends_where_three_points_are_lost(scores, ends):
    assert rates.plateau(GRID, np.array(scores)) == pytest.approx(ends)


def test_a_lead_is_taken_at_one_rate_and_at_each_method_s_own():
    """At the claimant's best rate, 0.4, the other is 50 points behind; at its own best it is level;
    the claimant's plateau has one more rate."""
    curves = {"one": (0.5, 0.88, 0.9, 0.2), "other": (0.7, 0.9, 0.4, 0.1)}
    parts = [
        pd.DataFrame({"method": method, "lr": GRID, "seed": seed, "accuracy": scores})
        for method, scores in curves.items()
        for seed in (0, 1)
    ]
    leads = rates.shared_and_own(pd.concat(parts), "one", "other")
    assert leads == ("+50.0 [+50.0, +50.0]", "−2.0 to +50.0", "+0.0 [+0.0, +0.0]")


def test_the_prediction_is_that_of_its_rule():
    """Noise goes with the square of the rate, and every plateau ends inside the grid."""
    table = pd.read_csv(rates.PREDICTED)
    limits = table["method"].eq("ffa-lora").map({True: rates.A_AT_REST, False: rates.BOTH_NOISED})
    assert table["on_plateau"].equals(table["taken_up"] <= limits)
    for _, part in table.groupby(["unit", "epsilon", "method"]):
        growth = part["taken_up"] / part["lr"] ** 2
        assert growth.max() / growth.min() < 1.01 and len(set(part["on_plateau"])) == 2
