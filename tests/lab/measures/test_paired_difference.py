"""Pairs of methods: only runs that spent the same epsilon are compared."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from calls import refused

import fedlora_lab as fl
from fedlora_lab.measures.runs import COLUMNS, t_interval

NAN, INF = math.nan, math.inf
PAIR = "one", "other"
UNEQUAL = [
    # (of one in each of two seeds, of the other, what the line says of both)
    ([35.4, 35.4], [NAN, NAN], "one spent 35.4 and other spent none that is certified"),
    ([35.4, 35.4], [8.0, 8.0], "one spent 35.4 and other spent 8"),
    ([8.0, 8.0], [INF, INF], "one spent 8 and other spent infinity, it is not private"),
    ([NAN, NAN], [INF, INF], "one spent none that is certified and other spent infinity"),
    ([8.0, 8.0], [8.0, 9.0], "one spent 8 and other spent 9"),
]
EQUAL = [([8.0, 7.0], [8.01, 7.0]), ([INF, INF], [INF, INF]), ([NAN, NAN], [NAN, NAN])]


def by_run(one, other, column="spent"):
    """A row a run, as the studies have it."""
    return pd.DataFrame(
        {
            "method": ["one", "one", "other", "other"],
            "seed": [0, 1, 0, 1],
            "accuracy": [0.8, 0.9, 0.7, 0.85],
            "before_accuracy": 0.5,
            column: [*one, *other],
        }
    )


def tidy(one, other):
    """The same as `fl.compare` gives it: epsilon grows from round to round."""
    rows = []
    rows_by_run: Any = by_run(one, other).itertuples(index=False)
    for row in rows_by_run:
        for index in range(3):
            key = ("task", row.method, row.seed, index, "all")
            rows.append((*key, "accuracy", row.accuracy))
            rows.append((*key, "epsilon", row.spent * index / 2 if index else 0.0))
    return pd.DataFrame(rows, columns=COLUMNS)


FORMS = {"spent": by_run, "epsilon": lambda *x: by_run(*x, column="epsilon"), "tidy": tidy}


@pytest.mark.parametrize("form", FORMS)
def test_pairs_of_unequal_epsilon_are_refused(form):
    for one, other, line in UNEQUAL:
        with refused(f"^epsilon='{line}.*: expected the same epsilon on both sides"):
            fl.report.paired_difference(FORMS[form](one, other), "one", "other")
    for one, other in EQUAL:
        gap = fl.report.paired_difference(FORMS[form](one, other), "one", "other")
        assert gap.mean == pytest.approx(0.075)


def test_a_difference_has_student_s_interval_which_decides():
    scores = {"method": ["one"] * 3 + ["other"] * 3, "seed": [0, 1, 2] * 2}
    frame = pd.DataFrame({**scores, "accuracy": [0.60, 0.70, 0.80, 0.65, 0.76, 0.84]})
    found, turned = (fl.report.paired_difference(frame, *x) for x in (PAIR[::-1], PAIR))
    mean, half = t_interval(np.array([0.05, 0.06, 0.04]))
    assert found[:3] == pytest.approx((mean, mean - half, mean + half)) and found.seeds == 3
    few = fl.report.paired_difference(frame[frame["seed"] < 2], *PAIR[::-1])
    assert [x.holds for x in (found, turned, few)] == ["yes", "no", "cannot tell"]
    with refused(r"^seeds=1: expected at least two"):
        fl.report.paired_difference(frame[frame["seed"] == 0], *PAIR)


def test_a_frame_of_several_budgets_pairs_methods_that_ran_at_all_of_them():
    both = pd.concat([by_run([8.0, 8.0], [8.0, 8.0]), by_run([1.0, 1.0], [1.0, 1.0])])
    assert fl.report.paired_difference(both, "one", "other").seeds == 2
    with refused("^epsilon='one spent 1, 8 and other spent 8'"):
        fl.report.paired_difference(both[:-2], "one", "other")


def test_figures_say_that_methods_spent_unequal_epsilon():
    """A baseline of another privacy may stand beside the rest, but not without a word; nor may the
    best of several budgets, of which one method is better at the larger one.
    """
    small, large = (tidy([e, e], [e, e]).assign(budget=e) for e in (1.0, 8.0))
    large["value"] *= large["method"].map({"one": 1.1, "other": 0.9})
    best = fl.best(pd.concat([small, large]), "budget")
    for frame in (*(tidy(one, other) for one, other, _ in UNEQUAL[:4]), best):
        for figure in (fl.plots.curves(frame), fl.plots.lines(frame.query("layer == 'all'"))):
            assert "the methods spent unequal ε" in figure.get_supxlabel()
    for one, other in EQUAL[:2]:
        assert "unequal" not in fl.plots.curves(tidy(one, other)).get_supxlabel()
