"""Comparisons keep methods apart by their names."""

from dataclasses import replace

import pytest
from toy_tasks import LORA, PLAN, private, regression

import fedlora_lab as fl
from fedlora_lab import methods
from fedlora_lab.federated.compare import Cell
from fedlora_lab.report.run_folder import Folder, run_settings

CHANGED = {
    "a changed row": methods.FedLoRA.replace(train=fl.Cycle(("B",))),
    "a name that differs in letters": methods.FFA.replace(name="FEDLORA"),
    "a row of one's own": fl.Method("fed-lora", "here").replace(name="FedLoRA "),
}
LINE = r"""^methods='{}': expected a name for each row, as by row.replace\(name="..."\)$"""


@pytest.mark.parametrize("row", CHANGED.values(), ids=CHANGED)
def test_two_rows_of_one_name_are_refused_wherever_names_meet(row, tmp_path):
    """Before anything is trained: their runs would be taken for seeds of one method."""
    task, privacy, rows = regression(), private("example"), ["fedlora", row]
    calls = {
        "compare": lambda: fl.compare(task, rows, privacy, PLAN, [0], progress=False),
        "table": lambda: methods.table([methods.FedLoRA, row]),
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
    assert set(fl.compare(task, [methods.FedLoRA, row.replace(name="mine")], None, PLAN, [0],
                          progress=False)["method"]) == {"fedlora", "mine"}  # fmt: skip


@pytest.mark.parametrize("baseline", ["central", "non-private", "local"])
def test_a_row_does_not_take_a_baseline_s_name(baseline):
    row = methods.FFA.replace(name=baseline)
    with pytest.raises(ValueError, match=LINE.format(baseline)):
        fl.compare(regression(), [baseline, row], None, PLAN, [0], progress=False)


def test_a_method_is_compared_once():
    """Twice, its seeds would count as twice as many, and its interval be too narrow."""
    for which in (["fedlora", "fedlora"], ["fedlora", methods.FedLoRA], ["local", methods.Local]):
        with pytest.raises(ValueError, match=r"^methods=\[.*\]: expected each once$"):
            fl.compare(regression(), which, None, PLAN, [0], progress=False)


def test_another_row_does_not_join_a_folder_under_the_same_name(tmp_path):
    """Neither while the folder has cells of the first, nor when it has none yet."""
    task = regression()
    cell = Cell.from_name("fedlora", task, None, PLAN, LORA, 0)
    for row in CHANGED.values():
        with Folder(tmp_path) as folder:
            folder.claim(run_settings(folder, task, None, [cell], "one"))
            other = replace(cell, method=row)
            settings = run_settings(folder, task, None, [other], "two")
            with pytest.raises(ValueError, match=r"holds a run with other settings \(methods.fedl"):
                folder.claim(settings)
