"""Runs killed, or not alone: see faults.py."""

import json
import os
from itertools import pairwise
from typing import Any

import faults
import pandas as pd
import pytest
import torch
from calls import refused
from commands import PYTHON, succeeded
from places import ROOT
from toy_tasks import LORA, PLAN, play, private, regression, same_bits

import fedlora_lab as fl
from fedlora_lab._utils.files import lock_folder
from fedlora_lab.federated import store

HERE = ROOT / "tests" / "helpers"
PATHS = f"{HERE}{os.pathsep}{ROOT}"
ENVIRONMENT = {**os.environ, "PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"}
pytestmark = [pytest.mark.waits, pytest.mark.slow]
ROLORA = regression(), "rolora", private("example")


@pytest.mark.skipif(os.name != "posix", reason="forks of POSIX")
def test_kills_of_a_run_lose_nothing(tmp_path):
    """Whenever it was killed: a whole state, and the ledger never behind it.

    And the run that was taken up in the end is the undisturbed one, bit for bit.
    """

    def cells(folder):
        frame: Any = store.stored_frame(folder)
        return frame[frame["measure"] != "seconds"].reset_index(drop=True)

    done = succeeded(PYTHON, HERE / "faults.py", tmp_path, env=ENVIRONMENT)
    seen = json.loads(done.stdout.splitlines()[-1])
    for one in seen:
        assert one["fits"], one
    for one, later in pairwise(seen):
        assert one["done"] < later["done"] and one["rows"] <= later["rows"], (one, later)
    whole = tmp_path / "whole"
    killed = tmp_path / "killed"
    pd.testing.assert_frame_equal(cells(killed), cells(whole), check_exact=True)
    assert (killed / "ledger.json").read_bytes() == (whole / "ledger.json").read_bytes()
    ends = [store.read(home)[0] for home in (killed, whole)]
    assert ends[0].server.round == ends[1].server.round == faults.PLAN.rounds
    for key, x in ends[0].server.tensors.items():
        assert torch.equal(x, ends[1].server.tensors[key])


def test_two_runs_in_one_folder_refuse_each_other(tmp_path):
    """One that is left before its end lets go of the folder; one that was killed: as above."""
    first, second = (fl.run(*ROLORA, PLAN, lora=LORA, seed=0, out=tmp_path) for _ in range(2))
    next(first)
    with refused(r"^out=.*: expected a folder that no other run is using$"):
        next(second)
    same_bits(play(*ROLORA)[1:], list(first))
    left = fl.run(*ROLORA, PLAN, lora=LORA, out=tmp_path / "left")
    next(left)
    left.close()
    with lock_folder(tmp_path / "left"):
        pass
