"""Lower bounds on epsilon from what a run releases: ``fl.audit(task, method, privacy, plan)``.

The package itself can be called, and then makes one audit.

>>> import fedlora_lab as fl
>>> task, plan = fl.tasks.regression(clients=2, examples=4), fl.Plan(rounds=1)
>>> privacy = fl.Privacy(noise_multiplier=1.0, delta=1e-5)
>>> found = fl.audit(task, "fedlora", privacy, plan, canaries=8)
>>> found.holds, found.epsilon_lower <= found.ceiling
(True, True)
"""

import sys
from types import ModuleType

from fedlora_lab.audit.bounds import (
    attacks_above,
    audit_power,
    canaries_needed,
    gaussian_one_run_lower_bound,
    one_run_ceiling,
    one_run_lower_bound,
    one_run_p_value,
    simulate_many_runs,
    simulate_one_run,
    summarize_audits,
    tabulate_audits,
    threshold_lower_bound,
)
from fedlora_lab.audit.canary_audit import Audit, audit

__all__ = [
    "Audit",
    "attacks_above",
    "audit",
    "audit_power",
    "canaries_needed",
    "gaussian_one_run_lower_bound",
    "one_run_ceiling",
    "one_run_lower_bound",
    "one_run_p_value",
    "simulate_many_runs",
    "simulate_one_run",
    "summarize_audits",
    "tabulate_audits",
    "threshold_lower_bound",
]


class _Callable(ModuleType):
    """A module that is also its main function: ``fl.audit(...)`` and ``fl.audit.bounds``."""

    __call__ = staticmethod(audit)


sys.modules[__name__].__class__ = _Callable
