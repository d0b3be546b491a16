"""What `make test` keeps from one call to the next."""

import os
import runpy
import time
from importlib.metadata import version
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "warm_kernels.py"


def test_runs_of_one_arithmetic_are_not_taken_for_another_s(tmp_path, monkeypatch):
    kept_runs = runpy.run_path(str(SCRIPT))["kept_runs"]
    folders = {kept_runs(tmp_path)}
    for name in ("ATEN_CPU_CAPABILITY", "MKL_CBWR"):
        monkeypatch.setenv(name, "other")
        folders.add(kept_runs(tmp_path))
    assert len(folders) == 3


def test_finished_runs_are_kept_for_a_week(tmp_path):
    kept_runs = runpy.run_path(str(SCRIPT))["kept_runs"]
    folder = kept_runs(tmp_path)
    assert folder.parent == tmp_path and version("transformers") in folder.name
    folder.mkdir()
    for name, days in (("young", 6), ("old", 8)):
        (folder / name).touch()
        os.utime(folder / name, (0, time.time() - days * 24 * 3600))
    assert kept_runs(tmp_path) == folder
    assert [path.name for path in folder.iterdir()] == ["young"]
