"""What is committed of gradients at rounded copies is found again."""

import random

import numpy as np
import pandas as pd
import pytest

from studies import copy_gradients


@pytest.mark.further
@pytest.mark.slow
def test_a_run_of_the_committed_frame_is_found_again():
    """Rounding is a step: a number at its edge may fall to either side on another processor."""
    table = pd.read_csv(copy_gradients.FILE)
    assert len(table) == len(copy_gradients.SEEDS) * 6
    seed = random.Random().choice(copy_gradients.SEEDS)
    again = copy_gradients.of_seed(seed)
    stored = table[table["seed"] == seed].reset_index(drop=True)
    columns = ["cosine", "gradient", "error"]
    np.testing.assert_allclose(again[columns], stored[columns], atol=0.02, err_msg=f"seed {seed}")
