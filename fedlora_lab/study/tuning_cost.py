"""What the search for a learning rate would have cost, had its looks at private data been counted."""

from typing import Any, NamedTuple

from fedlora_lab.checks import check
from fedlora_lab.study.declared import Case, Study


class TuningCost(NamedTuple):
    """The price of a search, every client's releases composed by the accountant.

    Args:
        runs: training runs of the search, and the one that is reported.
        epsilon: what one run spends.
        all: what all of them spend together.
        left: what each run may spend so that all together spend ``epsilon``.
        noise: by how much the noise multiplier grows for that, the largest over clients.
    """

    runs: int
    epsilon: float
    all: float
    left: float
    noise: float


def tuning_cost(study: Study, case: Case) -> TuningCost:
    """Compose the runs that choose a case's learning rate, and the one that uses it, as releases of one ledger.

    Models alone are counted; the scores on validation data that are compared would have to be released as well.

    Raises: ``ValueError`` for a case without privacy.
    Guarantees: one run alone costs the case's own ε (test_guide.py::test_tuning_cost).
    """
    from fedlora_lab import Plan, Privacy, tasks

    check(case.epsilon is not None, "epsilon", case.epsilon, "a case with privacy")
    name, given = case.task
    task, plan, epsilon = getattr(tasks, name)(**given), Plan(**case.plan), float(case.epsilon or 0)
    runs = study.tries + 1
    privacy = Privacy(**case.privacy)
    one = privacy.calibrate(epsilon=epsilon, task=task, plan=plan)
    careful = privacy.calibrate(epsilon=epsilon, task=task, plan=plan.replace(rounds=runs * plan.rounds))
    releases = plan.rounds * (plan.local_steps if privacy.unit == "example" else 1)
    ratios = [b / a for a, b in zip(_each(one), _each(careful), strict=True)]
    spent = [p.ledger(releases=n).spent() for p, n in ((one, releases), (one, runs * releases), (careful, releases))]
    return TuningCost(runs, spent[0], spent[1], spent[2], max(ratios))


def _each(privacy: Any) -> tuple[float, ...]:
    sigma = privacy.noise_multiplier
    return sigma if isinstance(sigma, tuple) else (sigma,)
