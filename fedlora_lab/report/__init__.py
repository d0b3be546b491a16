"""The folder of a run, its summary table and its HTML page; paired differences of methods.

>>> from fedlora_lab import report
>>> report.PairedDifference(0.02, 0.01, 0.03, seeds=3).holds
'yes'
"""

from fedlora_lab.measures.statistics import PairedDifference, paired_difference
from fedlora_lab.report.html_page import report
from fedlora_lab.report.run_folder import Folder
from fedlora_lab.report.summary_table import claims_table, final_difference, summary

__all__ = [
    "Folder",
    "PairedDifference",
    "claims_table",
    "final_difference",
    "paired_difference",
    "report",
    "summary",
]
