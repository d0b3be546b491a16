"""Reports on runs: the run folder, tables with intervals, HTML pages, and paired differences.

>>> from fedlora_lab import report
>>> report.PairedDifference(0.02, 0.01, 0.03, seeds=3).holds
'yes'
"""

from fedlora_lab._utils.statistics import PairedDifference, paired_difference
from fedlora_lab.report.page import report
from fedlora_lab.report.run_folder import Folder
from fedlora_lab.report.summary_table import display_table, summary

__all__ = [
    "Folder",
    "PairedDifference",
    "display_table",
    "paired_difference",
    "report",
    "summary",
]
__dir__ = __all__.copy  # completion shows neither imports nor modules
