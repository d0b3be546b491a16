"""Lower bounds on epsilon from what can be seen of a run: ``fl.audit(task, method, privacy, plan)``.

The module itself can be called, and then makes one audit. Its parts: `one_run` (many canaries in one run), `threshold`
(many independent runs), `gaussian` (the sharper claim of Gaussian DP), `estimate` (canary clients; no bound), `game`
(the plainest release), `table` (what many audits say together).
"""

import sys
from types import ModuleType
from typing import Any

from fedlora_lab.audit import estimate, game, gaussian, one_run, threshold
from fedlora_lab.audit.canary_audit import Audit, audit
from fedlora_lab.audit.self_check import SelfCheck, self_check
from fedlora_lab.audit.table import verdict

__all__ = [
    "Audit",
    "SelfCheck",
    "audit",
    "estimate",
    "game",
    "gaussian",
    "one_run",
    "self_check",
    "threshold",
    "verdict",
]


class _Callable(ModuleType):
    """A module that is also its main function, so that ``fl.audit(...)`` and ``fl.audit.one_run`` both read well."""

    def __call__(self, *parts: Any, **options: Any) -> Audit:
        return audit(*parts, **options)


sys.modules[__name__].__class__ = _Callable
