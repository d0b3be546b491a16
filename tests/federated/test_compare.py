"""Comparisons keep methods apart by their names."""

from dataclasses import replace

import pytest
from toy_tasks import LORA, PLAN, private, regression

import fedlora_lab as fl
from fedlora_lab import methods
from fedlora_lab.federated.compare import Cell
from fedlora_lab.report.run_folder import Folder, run_settings

LINE = r"""^methods='{}': expected a name for each row, as by row.replace\(name="..."\)$"""


CHANGED = methods.FedLoRA.replace(train=fl.Cycle(("B",)))


def test_two_rows_of_one_name_are_refused_wherever_names_meet(tmp_path):
    """Before anything is trained: their runs would be taken for seeds of one method."""
    task = regression()
    privacy = private("example")
    rows = ["fedlora", CHANGED]
    calls = {
        "compare": lambda: fl.compare(task, rows, privacy, PLAN, [0], progress=False),
        "table": lambda: methods.table([methods.FedLoRA, CHANGED]),
        "a folder": lambda: run_settings(
            Folder(tmp_path),
            task,
            privacy,
            [Cell.from_name(x, task, privacy, PLAN, LORA, 0) for x in rows],
            "",
        ),
    }
    for call in calls.values():
        with pytest.raises(ValueError, match=LINE.format("fedlora")):
            call()
    row = methods.FFA.replace(name="central")
    with pytest.raises(ValueError, match=LINE.format("central")):
        fl.compare(regression(), ["central", row], None, PLAN, [0], progress=False)


def test_a_method_is_compared_once():
    """Twice, its seeds would count as twice as many, and its interval be too narrow."""
    with pytest.raises(ValueError, match=r"^methods=\[.*\]: expected each once$"):
        fl.compare(regression(), ["fedlora", methods.FedLoRA], None, PLAN, [0], progress=False)


def test_another_row_does_not_join_a_folder_under_the_same_name(tmp_path):
    task = regression()
    cell = Cell.from_name("fedlora", task, None, PLAN, LORA, 0)
    with Folder(tmp_path) as folder:
        folder.claim(run_settings(folder, task, None, [cell], "one"))
        settings = run_settings(folder, task, None, [replace(cell, method=CHANGED)], "two")
        with pytest.raises(ValueError, match=r"holds a run with other settings \(methods.fedl"):
            folder.claim(settings)
