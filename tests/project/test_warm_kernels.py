"""What `make test` keeps from one call to the next, and the processes that it forks."""

import os
import runpy
import select
import signal
import socket
import subprocess
import sys
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


def test_a_fork_that_ends_before_it_is_heard_of_gives_its_status(tmp_path, monkeypatch):
    """On a busy machine its process number and its status are read late, both at once: a command
    that had done its work was said to have failed."""
    become = runpy.run_path(str(SCRIPT))["become"]
    monkeypatch.chdir(tmp_path)
    words = [sys.executable, "-S", SCRIPT, "--interpret", "socket", "-c", "raise SystemExit(3)"]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        listener.listen()
        stand_in = subprocess.Popen(words)
        connection, _ = listener.accept()
        select.select([connection], [], [])  # it has asked, and is told nothing yet
        stand_in.send_signal(signal.SIGSTOP)
        fork = os.fork()
        if fork == 0:
            become(connection)
        os.waitpid(fork, 0)
        stand_in.send_signal(signal.SIGCONT)
        connection.close()
        assert stand_in.wait() == 3
