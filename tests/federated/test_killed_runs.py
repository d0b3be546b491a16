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
from fedlora_lab._utils.files import append_line, lock_folder, write_atomically
from fedlora_lab.report.run_folder import SPENT, Folder, read_frame

HERE = Path(__file__).parents[1]
PATHS = f"{HERE}{os.pathsep}{HERE.parent}"
ENVIRONMENT = {**os.environ, "PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"}
pytestmark = [pytest.mark.waits("kills"), pytest.mark.slow]
posix = pytest.mark.skipif(os.name != "posix", reason="forks and limits of POSIX")
ROLORA = regression(), "rolora", private("example")
PLAIN_ADAPTER = ("PRIVACY.md", "adapter_config.json", "adapter_model.safetensors")


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
    """Whenever it was killed: a whole state, the ledger never behind it, never less epsilon.

    And the run that was taken up in the end is the undisturbed one, bit for bit.
    """

    def cells(folder: Path) -> pd.DataFrame:
        frame: Any = read_frame(folder / "cells" / "fedlora-0.csv")
        return frame[frame["measure"] != "seconds"].reset_index(drop=True)

    home, seen = scenarios[0] / "runs", scenarios[1]["runs"]
    for one in seen:
        assert one["fits"] and one["claimed"] >= one["spent"] * (1 - 1e-12), one
    for one, later in pairwise(seen):
        assert one["done"] < later["done"] and one["rows"] <= later["rows"], (one, later)
    last = f"checkpoints/fedlora-0/round-{faults.PLAN.rounds:06d}.safetensors"
    whole, killed = home / "whole", home / "killed"
    pd.testing.assert_frame_equal(cells(killed), cells(whole), check_exact=True)
    for name in ("cells/fedlora-0.json", last):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


@posix
def test_a_full_disk_is_one_line_and_the_state_before_it(scenarios):
    """The ledger that could not be written stops the round that it was for."""
    seen = scenarios[1]["full"]
    for one in seen:
        assert one["code"] == 2 and one["said"].count("\n") == 1, one["said"]
        assert one["said"].startswith("fedlora-lab: ") and "File too large" in one["said"]
        assert one["fits"] and one["known"] in (max(one["done"], 0), one["done"] + 1), one
        assert one["drafts"] == []
    assert seen[0]["done"] == -1 < 1 <= seen[1]["done"], seen


@posix
def test_a_killed_writer_of_an_adapter_leaves_a_whole_folder_or_none(scenarios):
    """Killed in the middle of its work three times, by kill -9."""
    found, whole = scenarios[1]["writers"], list(PLAIN_ADAPTER)
    assert all(names in (whole, []) for names in found)


def test_a_place_below_a_file_is_one_line(tmp_path):
    """What stands in the way of a folder is named, and stays."""
    taken = tmp_path / "taken"
    taken.write_bytes(b"mine")
    parts = regression(), "rolora", None
    *_, record = play(*parts)
    calls: dict[str, Any] = {
        "checkpoint": lambda: play(*parts, checkpoint=taken / "run"),
        "resume": lambda: play(*parts, resume=taken / "run"),
        "folder": lambda: Folder(taken / "run").__enter__(),
        "adapter": lambda: fl.save_adapter(record, taken / "out"),
        "report": lambda: fl.report.report(taken),
        "list": lambda: append_line(taken / "a.jsonl", {}),
        "file": lambda: write_atomically(taken / "a", b""),
        "ledger": lambda: fl.Ledger().save(taken / "ledger.json"),
    }
    for name, call in calls.items():
        with pytest.raises((ValueError, OSError)) as refusal:
            call()
        assert "\n" not in str(refusal.value) and "taken" in str(refusal.value), name
    assert taken.read_bytes() == b"mine" and list(tmp_path.iterdir()) == [taken]


def test_a_cell_whose_ledger_cannot_be_written_is_not_done(tmp_path):
    """Its frame, which says that it is finished, is written last: else it would never run again."""
    cell = (
        "fedlora",
        0,
        pd.DataFrame({"round": [0], "layer": [""], "measure": ["loss"], "value": [1.0]}),
    )
    with Folder(tmp_path / "run") as folder:
        blocked = tmp_path / "run" / "cells" / "fedlora-0.json"
        blocked.mkdir(parents=True)
        with pytest.raises(OSError):
            folder.save(*cell, fl.Ledger())
        assert not folder.is_done(*cell[:2])
        blocked.rmdir()
        folder.save(*cell, fl.Ledger())
        assert folder.is_done(*cell[:2])


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
    whole, unlink, rmtree, left = tmp_path / "whole", Path.unlink, shutil.rmtree, [0]
    cells = [f"cells/{cell}-0.{kind}" for cell in ("fedlora", "rolora") for kind in ("csv", "json")]
    parts = ["frame.csv", "ledger.json", "settings.json", "report.html", "private/key"]
    for name in (*cells, *parts, "checkpoints/fedlora-0/rounds.csv"):
        write_atomically(whole / name, "null")

    def mortal(remove: Any) -> Any:
        def removing(*args: Any, **options: Any) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            remove(*args, **options)

        return removing

    for removals in range(20):
        shutil.copytree(whole, out := tmp_path / str(removals))
        with Folder(out) as folder, monkeypatch.context() as patched:
            left[0] = removals
            patched.setattr(Path, "unlink", mortal(unlink))
            patched.setattr(shutil, "rmtree", mortal(rmtree))
            with suppress(KeyboardInterrupt):
                folder.clear()
        for cell in out.glob("cells/*.csv"):
            assert (out / "settings.json").exists() and cell.with_suffix(".json").exists(), removals
        with Folder(out) as folder:
            folder.clear()
        assert all(path.name == ".lock" or path.match(SPENT) for path in out.iterdir())
    assert left[0] > 0, "the last one was whole"
