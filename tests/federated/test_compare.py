"""Comparisons keep methods apart by their names."""

from functools import partial

from calls import refused
from toy_tasks import LORA, PLAN, regression

import fedlora_lab as fl
from fedlora_lab import methods
from fedlora_lab.federated.compare import Cell
from fedlora_lab.report.cells import run_settings
from fedlora_lab.report.run_folder import Folder


def test_two_rows_of_one_name_are_refused_wherever_names_meet(tmp_path):
    """Before anything is trained: their runs would be taken for seeds of one method. One row does
    not join a folder of another under its name."""
    changed = methods.FedLoRA.replace(train=fl.Cycle(("B",)))
    rows = ["fedlora", changed]
    parts = regression(), None, PLAN
    one, other = (Cell.from_name(row, *parts, LORA, 0) for row in rows)
    folder = Folder(tmp_path)
    compare = partial(fl.compare, regression(), privacy=None, plan=PLAN, seeds=[0], progress=False)
    for call in (
        lambda: compare(rows),
        lambda: methods.table([methods.FedLoRA, changed]),
        lambda: run_settings(folder, *parts[:2], [one, other], ""),
    ):
        with refused(r"^methods='fedlora': expected a name for each row"):
            call()
    # Twice, its seeds would count as twice as many, and its interval be too narrow.
    with refused(r"^methods=\[.*\]: expected each once$"):
        compare(["fedlora", methods.FedLoRA])
    with folder:
        folder.claim(run_settings(folder, *parts[:2], [one], "one"))
        with refused(r"holds a run with other settings \(methods.fedl"):
            folder.claim(run_settings(folder, *parts[:2], [other], "two"))
