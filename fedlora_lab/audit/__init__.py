"""Audits: lower bounds on epsilon from what a run releases, by ``fl.audit.run_audit``.

>>> import fedlora_lab as fl
>>> task, plan = fl.tasks.regression(clients=2, examples=4), fl.Plan(rounds=1)
>>> privacy = fl.Privacy(noise_multiplier=1.0, delta=1e-5)
>>> result = fl.audit.run_audit(task, "fedlora", privacy, plan, canaries=8)
>>> result.holds, result.epsilon_lower <= result.ceiling
(True, True)
"""

from fedlora_lab.audit.bounds import (
    one_run_ceiling,
    one_run_lower_bound,
    one_run_p_value,
)
from fedlora_lab.audit.canary_audit import Audit, run_audit

__all__ = [
    "Audit",
    "one_run_ceiling",
    "one_run_lower_bound",
    "one_run_p_value",
    "run_audit",
]
__dir__ = __all__.copy  # completion shows neither imports nor modules
