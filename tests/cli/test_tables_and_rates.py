"""The table under a run, in numbers and words, and the learning rates that commands suggest."""

import json
import math
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fedlora_lab import methods
from fedlora_lab.cli.runs import summary_lines
from fedlora_lab.experiments import tuned_rates
from fedlora_lab.methods.quantization import bytes_text
from fedlora_lab.report.run_folder import first_difference
from fedlora_lab.report.summary_table import (
    COLUMNS,
    describe_decline,
    display_rows,
    summary,
    t_interval,
)

ROOT = Path(__file__).parents[2]
NAN, INF = math.nan, math.inf


def made(*runs):
    """A tidy frame of one run for each of these mappings: measure -> its values over the rounds."""
    rows = [
        ("t", "m", seed, r, "all", name, x)
        for seed, one in enumerate(runs)
        for name, values in one.items()
        for r, x in enumerate(values)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def told(*runs):
    """The row of the method in words."""
    (row,) = display_rows(summary(made(*runs)))
    return row


def test_t_interval_is_scipys():
    values = np.array([0.71, 0.74, 0.69, 0.73])
    mean, half = t_interval(values)
    low, high = stats.t.interval(0.95, 3, loc=values.mean(), scale=stats.sem(values))
    assert mean - half == pytest.approx(low) and mean + half == pytest.approx(high)
    assert np.isnan(t_interval(values[:1])[1])


def test_summary_counts_a_whole_run():
    first = {"accuracy": [0.0, 0.1, 0.2], "epsilon": [0.0, 1.0, 2.0], "bytes_up": [0.0, 10.0, 20.0]}
    other = {name: [x + 1 for x in values] for name, values in first.items()}
    frame = made(first, other)
    row = summary(frame).iloc[0]
    assert (row["before"], row["score"], row["epsilon"]) == pytest.approx((0.5, 0.7, 3.0))
    assert row["bytes_up"] == pytest.approx(30 + 1.5) and row["seeds"] == 2
    with pytest.raises(ValueError, match="expected columns task, method"):
        summary(frame.drop(columns="layer"))


def test_what_was_not_measured_is_no_number():
    """The last round counts, and a sum with an unknown part is unknown; neither is ever 0 nor an
    earlier value."""
    unknown = {"deviation": [0.0, NAN, NAN], "bytes_up": [0.0, NAN, NAN]}
    unknown |= {"bytes_down": [0.0, 5.0, NAN], "seconds": [0.1, NAN, NAN]}
    row = told({"accuracy": [0.5, 0.6, 0.7], "epsilon": [0.0, 1.0, 2.0], **unknown})
    assert [row[name] for name in ("deviation", "up", "down", "seconds")] == ["–"] * 4
    stopped = told({"accuracy": [0.5, 0.9, NAN]})
    assert stopped["score"] == "–" and stopped["before"] == "0.500"
    accuracy = {"accuracy": [0.5, 0.9]}
    row = told({**accuracy, "deviation": [0.0, 0.2]}, {**accuracy, "deviation": [0.0, NAN]})
    assert row["deviation"] == "–", "the mean over seeds of which one is unknown"


def test_sizes_in_words():
    sizes = "0 B", "999 B", "1.0 kB", "3000.0 GB"
    assert tuple(map(bytes_text, (0, 999, 1000, 3e12))) == sizes


def test_a_run_that_fell_is_told():
    one = told({"accuracy": [0.61, 0.7, 0.29]})
    assert one["fell"] == "fell below its start: 0.61 to 0.29"
    runs = [{"accuracy": [0.61, end]} for end in (0.29, 0.8, 0.61)]
    line = "1 of 3 runs fell below their start; mean 0.61 to 0.57"
    assert told(*runs)["fell"] == line
    assert f"m: {line}" in summary_lines(made(*runs))
    assert told({"loss": [1.0, 2.5]})["fell"] == "rose above its start: 1.00 to 2.50"
    diverged = told(*({"loss": [1.0, end], "deviation": [0.0, INF]} for end in (INF, 0.5)))
    assert (diverged["score"], diverged["deviation"]) == ("∞", "∞")
    assert diverged["fell"] == "1 of 2 runs rose above their start; mean 1.00 to ∞"
    assert describe_decline("accuracy", 0.6111, 0.6094) == "fell below its start: 0.611 to 0.609"
    assert describe_decline("accuracy", 0.5, 0.5) == describe_decline("accuracy", NAN, 0.5) == ""


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ({"a": {"b": 1}}, {"a": {"b": 2}}, "a.b is 1 there and 2 now"),
        ({"a": 1}, {}, "a is 1 there and null now"),
        ([1.0, 2.0], [1.0, 2.0 + 1e-12], None),
        ({"a": [1.0, 2.0]}, {"a": [1.0, 2.1]}, "a is [1.0, 2.0] there and [1.0, 2.1] now"),
    ],
)
def test_first_difference_names_the_place(old, new, line):
    assert first_difference(old, new) == line


def test_suggested_rates_are_those_of_the_studies():
    """The committed table is what the script makes of the committed studies; a study's rate is its
    tuned one."""
    script = runpy.run_path(str(ROOT / "scripts" / "suggest_rates.py"))
    assert json.loads(tuned_rates.SUGGESTED.read_text(encoding="utf-8")) == script["collected"]()
    frame = pd.read_csv(ROOT / "results" / "digits.csv").query(
        "method == 'rolora' and alpha == 0.5"
    )
    for epsilon in (1.0, 3.0):
        rates = {*frame[frame["epsilon"] == epsilon]["lr"]}
        assert rates == {tuned_rates.tuned_rate("digits", "rolora", epsilon)}
    assert "la-lora" not in tuned_rates.rates()["digits"]["client"], "waits for new measurement"


MINE = methods.FFA.replace(name="mine", note="another name")
LIKE = methods.FedLoRA.replace(name="mine", filter=methods.LALoRA.filter)


@pytest.mark.parametrize(
    ("method", "epsilon", "unit", "line", "exact"),
    [
        ("rolora", 8.0, "example", "tuned for RoLoRA at ε = 8", True),
        ("rolora", 2.5, "example", "tuned for RoLoRA at ε = 3, the budget nearest to 2.5", False),
        ("rolora", 3**0.5, "example", "tuned for RoLoRA at ε = 1,", False),  # of two the smaller
        ("rolora", None, "client", "tuned for RoLoRA without privacy", True),
        (MINE, 1.0, "example", "tuned for FFA-LoRA at ε = 1; nothing was tuned for mine", False),
        (LIKE, 1.0, "example", "tuned for FedLoRA at ε = 1; nothing was tuned for mine", False),
    ],
)
def test_a_suggestion_says_where_it_comes_from(method, epsilon, unit, line, exact):
    found = tuned_rates.suggestion("digits", method, epsilon, unit)
    assert found.words.startswith(line) and found.exact == exact
    default = tuned_rates.suggestion("elsewhere", "rolora", 1.0)
    words = "the default; nothing was tuned for RoLoRA on elsewhere"
    assert default.lr == 0.3 and default.words.startswith(words)


@pytest.mark.parametrize(
    ("task", "method", "options", "line"),
    [
        ("digits", "rolora", {"epsilon": 0}, "epsilon=0: expected a number > 0"),
        ("regression", "rolora", {"epsilon": None}, "epsilon=None: expected a budget of the kind"),
        ("digits", "nope", {}, "method='nope': expected one of"),
        ("nothing", "fedlora", {}, "task='nothing': expected one of"),
    ],
)
def test_what_was_not_tuned_is_refused(task, method, options: dict[str, Any], line):
    with pytest.raises(ValueError, match=f"^{line}"):
        tuned_rates.tuned_rate(task, method, **options)


def test_tuned_is_the_best_of_its_grid():
    for task, found in tuned_rates.table().items():
        sizes = {len(row["grid"]) for row in found["methods"].values()}
        assert len(sizes) == 1, "every method had the same number of tries"
        seeds = set(found["setting"]["seeds"])
        assert not seeds & set(range(100)), "tuned with seeds that no report uses"
        best = min if found["setting"]["measure"] == "loss" else max
        for slug, row in found["methods"].items():
            first = {lr: score for lr, score in row["grid"].items() if score is not None}
            ranked = sorted(first, key=first.__getitem__, reverse=best is max)
            assert set(row["finalists"]) == set(ranked[:3])
            scores = {float(lr): x for lr, x in row["finalists"].items() if x is not None}
            assert scores[row["lr"]] == best(scores.values())
            assert tuned_rates.tuned_rate(task, slug) == row["lr"]
