"""Runs killed, or not alone: see faults.py."""

import json
import os
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import faults
import pandas as pd
import pytest
from calls import refused
from commands import PYTHON, succeeded
from toy_tasks import LORA, PLAN, play, private, regression, same_bits

import fedlora_lab as fl
from fedlora_lab._utils.files import lock_folder, write_atomically
from fedlora_lab.report.run_folder import SPENT, Folder, read_frame

HERE = Path(__file__).parents[1]
PATHS = f"{HERE}{os.pathsep}{HERE.parent}"
ENVIRONMENT = {**os.environ, "PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"}
pytestmark = [pytest.mark.waits, pytest.mark.slow]
ROLORA = regression(), "rolora", private("example")


@pytest.mark.skipif(os.name != "posix", reason="forks of POSIX")
def test_kills_of_a_run_lose_nothing(tmp_path):
    """Whenever it was killed: a whole state, and the ledger never behind it.

    And the run that was taken up in the end is the undisturbed one, bit for bit.
    """

    def cells(folder):
        frame: Any = read_frame(folder / "checkpoints" / "fedlora-0" / "rounds.csv")
        return frame[frame["measure"] != "seconds"].reset_index(drop=True)

    done = succeeded(PYTHON, HERE / "faults.py", tmp_path, env=ENVIRONMENT)
    seen = json.loads(done.stdout.splitlines()[-1])
    for one in seen:
        assert one["fits"], one
    for one, later in pairwise(seen):
        assert one["done"] < later["done"] and one["rows"] <= later["rows"], (one, later)
    last = f"round-{faults.PLAN.rounds:06d}.safetensors"
    whole = tmp_path / "whole"
    killed = tmp_path / "killed"
    pd.testing.assert_frame_equal(cells(killed), cells(whole), check_exact=True)
    for name in ("ledger.json", last):
        ends = [home / "checkpoints" / "fedlora-0" / name for home in (killed, whole)]
        assert ends[0].read_bytes() == ends[1].read_bytes()


def test_two_runs_in_one_folder_refuse_each_other(tmp_path):
    """One that is left before its end lets go of the folder; one that was killed: as above."""
    first, second = (
        fl.run(*ROLORA, PLAN, lora=LORA, seed=0, checkpoint=tmp_path) for _ in range(2)
    )
    next(first)
    with refused(r"^checkpoint=.*: expected a folder that no other run is using$"):
        next(second)
    same_bits(play(*ROLORA)[1:], list(first))
    left = fl.run(*ROLORA, PLAN, lora=LORA, checkpoint=tmp_path / "left")
    next(left)
    left.close()
    with lock_folder(tmp_path / "left"):
        pass


def test_a_clearing_that_was_killed_leaves_no_cell_of_another_run(tmp_path, monkeypatch):
    """Looked at before every removal, where a kill may come: the ledger is kept, and a cell that is
    still there has its settings and its own ledger.
    """
    cell = tmp_path / "checkpoints" / "fedlora-0"
    for name in ("frame.csv", "settings.json", "private/key"):
        write_atomically(tmp_path / name, "null")
    write_atomically(cell / "rounds.csv", "null")
    write_atomically(cell / "ledger.json", fl.Ledger(reproducible=False).to_json() + "\n")
    removed = []

    def watched(remove) -> Any:
        def removing(path, **options):
            removed.append(path)
            assert list(tmp_path.glob(SPENT))
            if (cell / "rounds.csv").exists():
                assert (tmp_path / "settings.json").exists() and (cell / "ledger.json").exists()
            remove(path, **options)

        return removing

    with Folder(tmp_path) as folder:
        monkeypatch.setattr(Path, "unlink", watched(Path.unlink))
        monkeypatch.setattr(shutil, "rmtree", watched(shutil.rmtree))
        folder.clear()
    assert tmp_path / "settings.json" in removed
    assert all(path.name == ".lock" or path.match(SPENT) for path in tmp_path.iterdir())
