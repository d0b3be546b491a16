"""The limits on B's noise from which rates were suggested once, kept for the committed studies."""

import pandas as pd

from studies.noise_limits import FRAME, NOISE_LIMITS, fit_noise_limits


def test_the_limits_of_noise_are_those_fitted_on_digits():
    fitted = fit_noise_limits(pd.read_csv(FRAME))
    assert fitted["limit"].to_dict() == NOISE_LIMITS
    assert (fitted["lost"] < 0.03).all()
