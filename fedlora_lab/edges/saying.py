"""Edges of saying: the number may be true and the sentence about it is not."""

from collections.abc import Callable

import numpy as np

from fedlora_lab.audit import threshold
from fedlora_lab.edges.edge import Edge

DELTA = 1e-5


def best_round(curve: np.ndarray) -> float:
    """Reports the best round."""
    return float(curve.max())


def last_round(curve: np.ndarray) -> float:
    """Reports the last round."""
    return float(curve[-1])


def flattery(report: Callable[[np.ndarray], float]) -> float:
    """Reported less true accuracy, in points: 1,000 runs of 20 rounds that stand at 80 %, 100 test examples."""
    curves = np.random.default_rng(24).binomial(100, 0.8, (1000, 20)) / 100
    return 100 * (float(np.mean([report(curve) for curve in curves])) - 0.8)


def best_of_twenty(scores: np.ndarray) -> np.ndarray:
    """Publishes the best of twenty private scores."""
    return scores.max(1)


def the_one_chosen_before(scores: np.ndarray) -> np.ndarray:
    """Publishes the score of the setting that was fixed beforehand."""
    return scores[:, 0]


def proved_of_a_choice(publish: Callable[[np.ndarray], np.ndarray]) -> float:
    """What 2 x 20,000 runs prove about epsilon (95 %); each of twenty scores is 1-GDP, epsilon 4.38 at 1e-5."""
    rng = np.random.default_rng(27)
    inside, outside = (publish(there + rng.standard_normal((20_000, 20))) for there in (1.0, 0.0))
    return threshold.split(inside, outside, DELTA, 0.05)


def scaled_by_the_data(values: np.ndarray) -> np.ndarray:
    """Publishes mean and spread of the private values, to normalise with."""
    return np.array([values.mean(), values.std()])


def scaled_by_constants(values: np.ndarray) -> np.ndarray:
    """Publishes the constants that were known before: pixels go from 0 to 16."""
    return np.array([8.0, 16.0])


def shown_by_statistics(publish: Callable[[np.ndarray], np.ndarray]) -> float:
    """How far leaving out one of 20 values moves what is published without noise."""
    values = np.random.default_rng(28).uniform(0, 16, 20)
    whole = publish(values)
    return max(float(np.abs(whole - publish(np.delete(values, i))).max()) for i in range(20))


SAID = "Saying what was found"
EDGES = (
    Edge(
        number=24, title="The best round reported as the result", severity="honesty", group=SAID,
        wrong="That is a choice on the data it is judged by, and with private data a release.",
        library="**Tells.** Tables and reports take the last round. A frame holds all rounds, and nothing stops you "
        "from taking the best.",
        what="reported less true accuracy in points, runs of 20 rounds that stand at 80 %, 100 test examples",
        broken=best_round, fixed=last_round, measure=flattery, line=1.0,
    ),
    Edge(
        number=27, title="Rates, clips and ranks chosen by the best private result", severity="serious", group=SAID,
        wrong="Every look at private data is a release ([arXiv:2110.03620](https://arxiv.org/abs/2110.03620)). Count "
        "it, or tune on public data.",
        library="**Tells.** `Ledger.compose` adds up the runs on the same data, each try with its own releases "
        "(`test_compose_adds_up`); *no check exists yet* that you hand it all of them, for no ledger sees the others. "
        "The shipped rates were found on validation data with equally many tries for each method, and the README says "
        "so.",
        what="ε that an audit proves of a published score, where each of 20 tries has 4.38",
        broken=best_of_twenty, fixed=the_one_chosen_before, measure=proved_of_a_choice, line=4.38,
    ),
    Edge(
        number=28, title="Private statistics used as if public", severity="serious", group=SAID,
        wrong="Normalisation, vocabulary, class weights, numbers of examples.",
        library="**Tells.** The embedded tasks scale by constants. `weights=\"size\"`, and q = b/n in the example "
        "unit, take the numbers of examples as public: `Privacy`, ledger and report name the relation of neighbours "
        "for which ε holds, and others are refused (`test_privacy_refuses_bad_values`). Under privacy a "
        "test set that is not declared public is not looked at "
        "(`test_private_test_examples_are_never_judged_under_privacy`). *No check exists yet* of what you did to your "
        "data before it came here.",
        what="how far one of 20 values moves what is published without noise (values from 0 to 16)",
        broken=scaled_by_the_data, fixed=scaled_by_constants, measure=shown_by_statistics, line=0.0,
    ),
)  # fmt: skip
