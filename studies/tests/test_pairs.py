"""Pairs of methods in the studies: equal epsilons, and equality within a margin."""

import math

import numpy as np
import pandas as pd
import pytest
from calls import refused
from scipy.stats import t

from fedlora_lab.measures.runs import check_equal_privacy
from studies.claims import Comparison, compare
from studies.declared import STUDIES
from studies.rates import equivalence
from studies.runner import read_study

INF = math.inf
UNEQUAL = [([35.4, 35.4], [8.0, 8.0]), ([8.0, 8.0], [INF, INF]), ([8.0, 8.0], [8.0, 9.0])]
EQUAL = [([8.0, 7.0], [8.01, 7.0]), ([INF, INF], [INF, INF])]


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


@pytest.mark.parametrize(("margin", "verdict"), [(1.999, "cannot tell"), (2.001, "equal")])
def test_equality_is_an_interval_within_the_margin(margin, verdict):
    """Differences whose 90 % interval is 0.5 to 2."""
    spread = np.array([-1.0, 0.0, 1.0])
    test = equivalence(1.25 + spread * 0.75 * math.sqrt(3) / t.ppf(0.95, 2), margin)
    assert test[:4] == pytest.approx((margin, 1.25, 0.5, 2.0)) and test.verdict == verdict


def test_claims_refuse_pairs_of_unequal_epsilon_unless_they_are_about_it():
    judge = Comparison("any", {}, {"method": "one"}, {"method": "other"})
    for one, other in UNEQUAL:
        with refused("^epsilon='one side spent .* and the other spent"):
            compare(by_run(one, other), judge, 0.5, 1.0)
    for one, other in EQUAL:
        assert len(compare(by_run(one, other), judge, 0.5, 1.0).values) == 2
    table = by_run([1.0, 1.0], [8.0, 8.0]).assign(method="one", epsilon=[1.0, 1.0, 8.0, 8.0])
    about = Comparison("any", {"method": "one"}, {"epsilon": 1.0}, {"epsilon": 8.0})
    assert len(compare(table, about, 0.5, 1.0).values) == 2


@pytest.mark.slow
def test_methods_at_one_setting_of_a_study_spent_one_epsilon():
    """In every committed frame, so that each can be compared; or none that is certified."""
    for name, study in STUDIES.items():
        frame = read_study(name)
        for _, part in frame.groupby([*study.cases[0].labels], dropna=False):
            first, *others = part["method"].unique()
            for slug in others:
                check_equal_privacy(part, first, slug)
