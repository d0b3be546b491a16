"""Tables of notebook 05: rates compared with the best one, and the spread over seeds."""

import math
from typing import Any

import pandas as pd
from scipy.stats import chi2

PAIR = ("fedlora", "ffa-lora")


def from_best_rate(trials: pd.DataFrame) -> pd.DataFrame:
    """Aligns settings at each method's best learning rate.

    Args: trials: columns method, knob, value, lr, accuracy, as results/rate-trials.csv.
    Returns: columns method, knob, value, step (on the grid of rates, 0: the best one), loss
        (accuracy minus that at the best rate). The common centre of the knobs is counted once.
    Guarantees: test_settings_are_lined_up_at_their_best_rate.
    """
    rows = []
    for keys, part in trials.groupby(["method", "knob", "value"]):
        part = part.sort_values("lr")
        accuracy = part["accuracy"].to_numpy()
        best = int(accuracy.argmax())
        rows += [(*keys, i - best, x - accuracy[best]) for i, x in enumerate(accuracy)]
    table = pd.DataFrame(rows, columns=["method", "knob", "value", "step", "loss"])
    curves = table.groupby(["method", "knob", "value"])["loss"].agg(tuple).reset_index()
    once = curves.drop_duplicates(["method", "loss"])[["method", "knob", "value"]]
    return table.merge(once)


def spreads(runs: pd.DataFrame, slugs: "tuple[str, ...]" = PAIR) -> Any:
    """Computes the spread of final accuracies over seeds, with 95 % intervals of normal samples.

    Args: runs: columns setting, method, seed, accuracy; slugs: of the methods.
    Returns: columns setting, method, mean (the standard deviation), low, high, seeds.
    Guarantees: test_a_spread_has_its_interval.
    """
    rows = []
    for setting in dict.fromkeys(runs["setting"]):
        for slug in slugs:
            values = runs[(runs["setting"] == setting) & (runs["method"] == slug)]["accuracy"]
            n = len(values)
            std = float(values.std())
            # The sample's variance is χ² distributed about the true one.
            ends = (math.sqrt((n - 1) / chi2.ppf((1 + s * 0.95) / 2, n - 1)) for s in (1, -1))
            rows.append((setting, slug, std, *(std * end for end in ends), n))
    return pd.DataFrame(rows, columns=["setting", "method", "mean", "low", "high", "seeds"])
