"""Differential privacy: the plan, the clip and the noise, the ledger, the accountants."""

from fedlora_lab.privacy.accounting import ACCOUNTANTS, Accountant
from fedlora_lab.privacy.config import NoiseLevels, Privacy
from fedlora_lab.privacy.ledger import Ledger, LedgerEntry, Uncertified

__all__ = [
    "ACCOUNTANTS",
    "Accountant",
    "Ledger",
    "LedgerEntry",
    "NoiseLevels",
    "Privacy",
    "Uncertified",
]
