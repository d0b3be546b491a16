"""Differential privacy: settings, clip and noise, the ledger, and the accountants behind it.

>>> from fedlora_lab.privacy import Privacy
>>> plan = Privacy(noise_multiplier=2.0, sample_rate=0.1)
>>> round(plan.ledger(releases=100).epsilon(), 1)
2.3
"""

from fedlora_lab._utils.rounding import round_up
from fedlora_lab.privacy.accounting import ACCOUNTANTS
from fedlora_lab.privacy.ledger import BudgetExceeded, Ledger, LedgerEntry, Uncertified
from fedlora_lab.privacy.plan import Privacy
from fedlora_lab.privacy.statement import privacy_page, statement

__all__ = [
    "ACCOUNTANTS",
    "BudgetExceeded",
    "Ledger",
    "LedgerEntry",
    "Privacy",
    "Uncertified",
    "privacy_page",
    "round_up",
    "statement",
]
