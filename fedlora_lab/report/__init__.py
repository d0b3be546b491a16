"""The folder of a run, its summary table and HTML page; paired differences.

>>> from fedlora_lab import report
>>> report.PairedDifference(0.02, 0.01, 0.03, seeds=3).holds
'yes'
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedlora_lab._utils.statistics import PairedDifference, paired_difference
    from fedlora_lab.report.page import report
    from fedlora_lab.report.run_folder import Folder
    from fedlora_lab.report.summary_table import claims_table, summary

# Loaded when first used: a table is made without what draws pages.
_HOMES = {
    "fedlora_lab._utils.statistics": ("PairedDifference", "paired_difference"),
    "fedlora_lab.report.page": ("report",),
    "fedlora_lab.report.run_folder": ("Folder",),
    "fedlora_lab.report.summary_table": ("claims_table", "summary"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "Folder",
    "PairedDifference",
    "claims_table",
    "paired_difference",
    "report",
    "summary",
]
