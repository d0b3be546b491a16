"""Runs at once yield what one after the other does, and one that is killed leaves no example."""

import os
import signal
import struct
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import joblib
import pandas as pd
import psutil
import pytest
import torch
from toy_tasks import LORA, PLAN, private, regression

import fedlora_lab as fl
from fedlora_lab.federated.jobs import run_calls
from fedlora_lab.federated.store import ROWS, rounds_in

pytestmark = [pytest.mark.waits, pytest.mark.slow]
OWN = fl.methods.FedLoRA.replace(name="own", aggregate=lambda state, *_: state)
"""A row that no other process can import."""


def compare(jobs, rows=("fedlora", OWN), seeds=(0, 1), task=None, **options):
    parts = task or regression(), rows, private("example"), PLAN, seeds
    frame = fl.compare(*parts, lora=LORA, lr=[0.1, 0.2], jobs=jobs, progress=False, **options)
    return frame[frame["measure"] != "seconds"].reset_index(drop=True)


def run_at_once(act, count, jobs=2):
    """What ``act`` returns of each number."""
    return dict(run_calls({i: partial(act, i) for i in range(count)}, jobs))


def contents(folder):
    """Every file of the runs in a folder, by its place."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def one_by_one():
    return compare(None)


@pytest.mark.parametrize("jobs", [1, 2, 4])
def test_frames_do_not_depend_on_the_number_of_jobs(jobs, one_by_one, tmp_path, monkeypatch):
    """To the last bit; several writers share the folder, and what it has is not run again. It lies
    in the folder of the call, and not in that of a worker that was there before."""
    monkeypatch.chdir(tmp_path)
    frame = compare(jobs, out="runs")
    pd.testing.assert_frame_equal(frame, one_by_one, check_exact=True)
    kept = contents(tmp_path / "runs")
    back = compare(jobs, out=tmp_path / "runs", rows=(OWN, "fedlora"))
    assert contents(tmp_path / "runs") == kept
    order = ["method", "lr", "seed"]
    one, other = (x.sort_values(order, kind="stable") for x in (back, one_by_one))
    pd.testing.assert_frame_equal(one.reset_index(drop=True), other.reset_index(drop=True))


PATHS = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
ENVIRONMENT = {**os.environ, "PYTHONPATH": PATHS}


def test_a_backend_of_joblib_around_a_call_is_used(one_by_one):
    """Here threads of this process; a cluster is named in the same way."""
    with joblib.parallel_config("threading", n_jobs=2):
        pids = set(run_at_once(lambda _: os.getpid(), 2, None).values())
        pd.testing.assert_frame_equal(compare(None), one_by_one, check_exact=True)
    assert pids == {os.getpid()}


def test_workers_have_one_thread_unless_asked_and_start_no_processes():
    def look(_):
        inner = run_at_once(lambda _: os.getpid(), 3, 4)
        return torch.get_num_threads(), set(inner.values()) == {os.getpid()}

    assert run_at_once(look, 2) == {0: (1, True), 1: (1, True)}
    with joblib.parallel_config("loky", inner_max_num_threads=2):
        assert run_at_once(look, 2) == {0: (2, True), 1: (2, True)}


STOPPED = """
import os, signal, sys, threading, time
from pathlib import Path
import psutil, torch
from test_jobs import CANARY, compare, finished
from toy_tasks import regression, with_clients

def stop():
    while len(finished(out)) < 3:
        time.sleep(0.01)
    print(*(child.pid for child in psutil.Process().children()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    out = Path(sys.argv[1])
    x, y = torch.full((600, 6), CANARY).double(), torch.zeros(600, 5).double()
    task = with_clients(regression(), [(x, y), *regression().clients[1:]])
    threading.Thread(target=stop, daemon=True).start()
    compare(2, out=out, seeds=range(20), task=task)
"""
CANARY = 31337.53125


def finished(out):
    """The folders of a comparison's runs that have all their rounds."""
    folders = [path.parent for path in out.glob(f"*/{ROWS}")]
    return [folder for folder in folders if max(rounds_in(folder), default=-1) == PLAN.rounds]


@pytest.mark.skipif(sys.platform != "linux", reason="where joblib keeps files on Linux")
def test_no_example_stays_on_the_disk_after_a_kill(tmp_path):
    """Fault: a readable file with the whole private task. Runs that were finished are whole."""
    script, out, temporary = tmp_path / "script.py", tmp_path / "runs", tmp_path / "tmp"
    script.write_text(STOPPED)
    temporary.mkdir()
    command = [sys.executable, str(script), str(out)]
    environment = {**ENVIRONMENT, "TMPDIR": str(temporary)}
    # Into a file: workers that outlive the process keep a pipe open until they end.
    with open(tmp_path / "said", "w") as said:
        done = subprocess.run(command, env=environment, stdout=said, stderr=subprocess.STDOUT)
    said = (tmp_path / "said").read_text()
    assert done.returncode == -signal.SIGKILL, said[:6000]
    # Workers would finish what they have begun, and write and remove files meanwhile.
    for pid in map(int, said.splitlines()[0].split()):
        with suppress(psutil.NoSuchProcess):
            worker = psutil.Process(pid)
            worker.kill()
            worker.wait(30)
    rows = struct.pack("<3d", CANARY, CANARY, CANARY)
    folders = [tmp_path, Path("/dev/shm")]
    files = [path for folder in folders for path in folder.rglob("*") if readable(path)]
    assert len(files) > 3 and not [path for path in files if rows in path.read_bytes()]
    assert len(finished(out)) >= 3


def readable(path):
    return path.is_file() and os.access(path, os.R_OK)
