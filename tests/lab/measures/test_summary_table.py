"""The table under a run, in numbers and in words."""

import math

import pandas as pd
from calls import refused

from fedlora_lab.measures.runs import COLUMNS
from fedlora_lab.report import display_table

NAN, INF = math.nan, math.inf


def made(*runs):
    """A tidy frame of one run for each of these mappings: measure -> its values over the rounds."""
    rows = [
        ("t", "m", seed, r, "all", name, x)
        for seed, one in enumerate(runs)
        for name, values in one.items()
        for r, x in enumerate(values)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def told(*runs):
    """The row of the method in words."""
    return display_table(made(*runs)).iloc[0]


def test_a_row_counts_whole_runs():
    first = {"accuracy": [0.0, 0.1, 0.2], "epsilon": [0.0, 1.0, 2.0], "bytes_up": [0.0, 10.0, 20.0]}
    other = {name: [x + 1 for x in values] for name, values in first.items()}
    frame = made(first, other)
    row = display_table(frame).iloc[0]
    assert (row["accuracy before"], row["ε"], row["seeds"]) == ("0.500", "3.00", "2")
    assert row["accuracy after"].startswith("0.700 ± ")
    assert row["sent up"] == "32 B", "the mean of 30 and 33, rounded to the even number"
    with refused("expected also layer"):
        display_table(frame.drop(columns="layer"))
    line = r"^measure='acuracy': expected a measure of .* which has .*; did you mean 'accuracy'\?$"
    with refused(line):
        display_table(frame, "acuracy")


def test_what_was_not_measured_is_no_number():
    """The last round counts, and a sum with an unknown part is unknown; neither is ever 0 nor an
    earlier value."""
    unknown = {"deviation": [0.0, NAN, NAN], "bytes_up": [0.0, NAN, NAN]}
    unknown |= {"bytes_down": [0.0, 5.0, NAN], "seconds": [0.1, NAN, NAN]}
    row = told({"accuracy": [0.5, 0.9, NAN], "epsilon": [0.0, 1.0, 2.0], **unknown})
    names = ("accuracy after", "deviation", "sent up", "sent down", "seconds")
    assert [row[name] for name in names] == ["–"] * 5
    accuracy = {"accuracy": [0.5, 0.9]}
    row = told({**accuracy, "deviation": [0.0, 0.2]}, {**accuracy, "deviation": [0.0, NAN]})
    assert row["deviation"] == "–", "the mean over seeds of which one is unknown"
    assert row["accuracy after"] == "0.900", "two seeds that agree are no interval of ± 0.000"


def test_runs_that_collapsed_are_told():
    """Fault: a mean that hides them."""
    runs = [{"accuracy": [0.61, end]} for end in (0.29, 0.8, 0.61)]
    assert display_table(made(*runs))["accuracy after"].item().endswith(" (1 collapsed)")
    diverged = told(*({"loss": [1.0, end]} for end in (INF, 0.5)))
    assert diverged["loss after"].startswith("∞")
