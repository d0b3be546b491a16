"""Runs killed, out of space, or not alone: see faults.py."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import faults
import pandas as pd
import pytest
from toy_tasks import LORA, PLAN, play, private, regression, same_bits

import fedlora_lab as fl
from fedlora_lab._utils.files import lock_folder, write_atomically
from fedlora_lab.report.run_folder import SPENT, Folder, read_frame

HERE = Path(__file__).parents[1]
PATHS = f"{HERE}{os.pathsep}{HERE.parent}"
ENVIRONMENT = {**os.environ, "PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"}
pytestmark = [pytest.mark.waits("kills"), pytest.mark.slow]
posix = pytest.mark.skipif(os.name != "posix", reason="forks and limits of POSIX")
ROLORA = regression(), "rolora", private("example")


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """A folder, and what the scenarios of faults.py found there, each in a folder of its name."""
    folder = tmp_path_factory.mktemp("faults")
    command = [sys.executable, str(HERE / "faults.py"), str(folder)]
    options: Any = {"capture_output": True, "text": True, "timeout": 1200, "check": False}
    done = subprocess.run(command, env=ENVIRONMENT, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, json.loads(done.stdout.splitlines()[-1])


@posix
def test_kills_of_a_run_lose_nothing(scenarios):
    """Whenever it was killed: a whole state, and the ledger never behind it.

    And the run that was taken up in the end is the undisturbed one, bit for bit.
    """

    def cells(folder: Path) -> pd.DataFrame:
        frame: Any = read_frame(folder / "checkpoints" / "fedlora-0" / "rounds.csv")
        return frame[frame["measure"] != "seconds"].reset_index(drop=True)

    home = scenarios[0] / "runs"
    seen = scenarios[1]["runs"]
    for one in seen:
        assert one["fits"], one
    for one, later in pairwise(seen):
        assert one["done"] < later["done"] and one["rows"] <= later["rows"], (one, later)
    last = f"round-{faults.PLAN.rounds:06d}.safetensors"
    whole = home / "whole"
    killed = home / "killed"
    pd.testing.assert_frame_equal(cells(killed), cells(whole), check_exact=True)
    for name in ("ledger.json", last):
        ends = [home / "checkpoints" / "fedlora-0" / name for home in (killed, whole)]
        assert ends[0].read_bytes() == ends[1].read_bytes()


@posix
def test_a_full_disk_is_one_line_and_the_state_before_it(scenarios):
    """The ledger that could not be written stops the round that it was for."""
    seen = scenarios[1]["full"]
    assert seen["code"] == 2 and seen["said"].count("\n") == 1, seen["said"]
    assert seen["said"].startswith("fedlora-lab: ") and "File too large" in seen["said"]
    assert seen["fits"] and seen["done"] >= 1, seen
    assert seen["drafts"] == []


def test_two_runs_in_one_folder_refuse_each_other(tmp_path):
    """One that is left before its end lets go of the folder; one that was killed: as above."""
    first, second = (fl.run(*ROLORA, PLAN, lora=LORA, checkpoint=tmp_path) for _ in range(2))
    next(first)
    with pytest.raises(ValueError, match=r"^out=.*: expected a folder that no other run is using$"):
        next(second)
    same_bits(play(*ROLORA)[1:], list(first))
    left = fl.run(*ROLORA, PLAN.replace(rounds=4), lora=LORA, resume=tmp_path)
    next(left)
    left.close()
    with lock_folder(tmp_path):
        pass


def test_a_clearing_that_was_killed_leaves_no_cell_of_another_run(tmp_path, monkeypatch):
    """Killed before any removal: a cell that is still there has its settings, and its ledger."""
    ledger = fl.Ledger(reproducible=False).to_json() + "\n"
    contents = {f"checkpoints/fedlora-0/{name}": "null" for name in ("rounds.csv", "ledger.json")}
    contents |= dict.fromkeys(["frame.csv", "settings.json", "private/key"], "null")
    contents["checkpoints/fedlora-0/ledger.json"] = ledger
    originals = {(Path, "unlink"): Path.unlink, (shutil, "rmtree"): shutil.rmtree}
    for removals in range(10):
        out = tmp_path / str(removals)
        for name, content in contents.items():
            write_atomically(out / name, content)
        left = iter(range(removals))

        def mortal(remove: Any, left: Any = left) -> Any:
            def removing(*args: Any, **options: Any) -> None:
                if next(left, None) is None:
                    raise KeyboardInterrupt
                remove(*args, **options)

            return removing

        with Folder(out) as folder, monkeypatch.context() as patched, suppress(KeyboardInterrupt):
            for (owner, name), remove in originals.items():
                patched.setattr(owner, name, mortal(remove))
            folder.clear()
        for cell in out.glob("checkpoints/*/rounds.csv"):
            assert (out / "settings.json").exists() and cell.with_name("ledger.json").exists()
        assert list(out.glob(SPENT)), "the ledger is kept before anything is removed"
        with Folder(out) as folder:
            folder.clear()
        assert all(path.name == ".lock" or path.match(SPENT) for path in out.iterdir())
