"""Runs at once yield what one after the other does, and what becomes of a worker loses nothing."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from functools import partial
from importlib.util import find_spec

import joblib
import pandas as pd
import psutil
import pytest
import torch
from calls import refused
from commands import PYTHON, succeeded
from toy_tasks import LORA, PLAN, private, regression

import fedlora_lab as fl
from fedlora_lab._utils.files import read_lines
from fedlora_lab.federated.jobs import Unfinished, Work, run_works

pytestmark = [pytest.mark.waits, pytest.mark.slow]
OWN = fl.methods.FedLoRA.replace(name="own", aggregate=lambda state, *_: state)
"""A row that no other process can import."""


def compare(jobs, rows=("fedlora", OWN), seeds=(0, 1), **options):
    parts = regression(), rows, private("example"), PLAN, seeds
    frame = fl.compare(*parts, lora=LORA, lr=[0.1, 0.2], jobs=jobs, progress=False, **options)
    return frame[frame["measure"] != "seconds"].reset_index(drop=True)


def run_at_once(works, jobs=2):
    return dict(run_works(works, jobs))


@pytest.fixture(scope="module")
def one_by_one():
    return compare(None)


@pytest.mark.parametrize("jobs", [1, 2, 4])
def test_frames_do_not_depend_on_the_number_of_jobs(jobs, one_by_one, tmp_path, monkeypatch):
    """To the last bit; several writers share the store, and what it has is not run again. It lies
    in the folder of the call, and not in that of a worker that was there before."""
    monkeypatch.chdir(tmp_path)
    frame = compare(jobs, store="runs.jsonl")
    pd.testing.assert_frame_equal(frame, one_by_one, check_exact=True)
    kept = (tmp_path / "runs.jsonl").read_bytes()
    back = compare(jobs, store=tmp_path / "runs.jsonl", rows=(OWN, "fedlora"))
    assert (tmp_path / "runs.jsonl").read_bytes() == kept
    order = ["method", "lr", "seed"]
    one, other = (x.sort_values(order, kind="stable") for x in (back, one_by_one))
    pd.testing.assert_frame_equal(one.reset_index(drop=True), other.reset_index(drop=True))


CLUSTER = """
import multiprocessing, os, sys
from importlib import import_module
import joblib
from commands import PYTHON
from test_jobs import Work, compare, run_at_once

backend, path = sys.argv[1:]
if backend == "dask":
    multiprocessing.set_executable(PYTHON)
    kept = import_module("distributed").Client(n_workers=2, threads_per_worker=1)
if backend == "ray":
    sys.executable = PYTHON  # by which it starts workers
    ray = import_module("ray")
    try:  # it gives itself thirty seconds, which a busy machine may not have
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    except Exception:
        sys.exit("no cluster")
    import_module("ray.util.joblib").register_ray()
with joblib.parallel_config(backend, n_jobs=2):
    pids = set(run_at_once([Work(str(i), lambda _: os.getpid()) for i in range(2)]).values())
    compare(None).to_pickle(path)
assert (os.getpid() in pids) == (backend == "threading"), pids
"""
"""Runs as one after the other under a backend of joblib, and keeps the frame."""
PATHS = os.pathsep.join(filter(None, sys.path))
ENVIRONMENT = {**os.environ, "PYTHONPATH": PATHS, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


@pytest.mark.parametrize(
    ("backend", "package"),
    [
        ("threading", "joblib"),
        pytest.param("ray", "ray", marks=pytest.mark.further),
        pytest.param("dask", "distributed", marks=pytest.mark.further),
    ],
)
def test_a_backend_of_joblib_around_a_call_is_used(backend, package, one_by_one, tmp_path):
    """Without another word: threads of this process, or a cluster, here of two workers."""
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    script = tmp_path / "script.py"
    script.write_text(f"if __name__ == '__main__':\n{textwrap.indent(CLUSTER, '    ')}")
    command = [PYTHON, script, backend, tmp_path / "frame"]
    done = subprocess.run([*map(str, command)], env=ENVIRONMENT, capture_output=True, text=True)
    if done.stderr.endswith("no cluster\n"):
        pytest.skip(f"{backend} did not start within its own limit")
    assert done.returncode == 0, done.stderr[-4000:]
    frame = pd.read_pickle(tmp_path / "frame")
    pd.testing.assert_frame_equal(frame, one_by_one, check_exact=True)


def test_an_error_in_a_worker_names_its_run_and_stops_no_other():
    def act(number, shared):
        if number == 1:
            raise KeyError("no such layer")
        return number + shared

    works = [Work(f"run {i}", partial(act, i), 10) for i in range(4)]
    done = {}
    with pytest.raises(Unfinished, match=r"^3 of 4 runs are finished; run 1: KeyError.*layer'$"):
        done.update(run_works(works, 2))
    results = []
    with pytest.raises(Unfinished):
        results.extend(run_works(works, 2))
    assert dict(results) == {0: 10, 2: 12, 3: 13}


def test_a_killed_worker_is_told_and_its_run_repeated(tmp_path):
    """The second time alone, so that no other run is blamed: one that kills each worker that it
    meets is named, and stops nothing."""

    def act(number, deadly, _):
        mark = tmp_path / str(number)
        if number == deadly or (number == 2 and not mark.exists()):
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    def works(deadly):
        return [Work(f"run {i}", partial(act, i, deadly)) for i in range(4)]

    with pytest.warns(UserWarning, match=r"a worker died.*repeated: .*run 2"):
        assert sorted(run_at_once(works(None)).values()) == [0, 1, 2, 3]
    results = []
    with (
        pytest.warns(UserWarning, match="a worker died"),
        pytest.raises(Unfinished, match=r"^3 of 4 runs are finished; run 1: its worker died twice"),
    ):
        results.extend(run_works(works(1), 2))
    assert sorted(dict(results)) == [0, 2, 3]


def test_workers_have_one_thread_unless_asked_and_start_no_workers():
    def look(_):
        inner = run_at_once([Work(str(i), lambda _: os.getpid()) for i in range(3)], 4)
        return torch.get_num_threads(), set(inner.values()) == {os.getpid()}

    works = [Work("look", look)] * 2
    assert run_at_once(works) == {0: (1, True), 1: (1, True)}
    with joblib.parallel_config("loky", inner_max_num_threads=2):
        assert run_at_once(works) == {0: (2, True), 1: (2, True)}


def test_what_works_share_is_loaded_once_a_worker_and_warnings_come_back():
    class Shared:
        def __reduce__(self):
            return _load_and_count, ()

    def act(shared):
        warnings.warn("told in a worker", stacklevel=1)
        return os.getpid(), shared

    shared = Shared()
    with pytest.warns(UserWarning, match="told in a worker"):
        seen = list(run_at_once([Work(str(i), act, shared) for i in range(6)]).values())
    assert all(loads == 1 for _, loads in seen)


LOADS = []


def _load_and_count():
    LOADS.append(1)
    return len(LOADS)


def test_what_cannot_travel_is_refused_before_anything_is_run(tmp_path):
    def act(_):
        (tmp_path / "ran").touch()

    with refused(r"^second: expected what can travel to a worker, but: .*lock"):
        run_at_once([Work("first", act), Work("second", partial(act, threading.Lock()))])
    assert not any(tmp_path.iterdir())
    for jobs in (0, -2, 1.5, True):
        with refused(rf"^jobs={jobs}: expected how many runs at once"):
            compare(jobs)


STOPPED = """
import os, signal, sys, threading, time
from pathlib import Path
import psutil
from test_jobs import compare

def stop():
    while not store.exists() or store.read_bytes().count(b"\\n") < 3:
        time.sleep(0.01)
    if how == "kill":
        print(*(child.pid for child in psutil.Process().children()), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    os.killpg(os.getpgrp(), signal.SIGINT)  # as a terminal does: workers get it too

if __name__ == "__main__":
    store, how = Path(sys.argv[1]), sys.argv[2]
    threading.Thread(target=stop, daemon=True).start()
    try:
        compare(2, store=store, seeds=range(200))
    except KeyboardInterrupt as error:
        runs = error.frame[["method", "lr", "seed"]].drop_duplicates()
        print(len(runs), error)
"""


@pytest.mark.further
def test_an_interrupt_loses_no_finished_run_and_says_what_is_missing(tmp_path):
    script, store = tmp_path / "script.py", tmp_path / "runs.jsonl"
    script.write_text(STOPPED)
    command = sys.executable, script, store, "interrupt"
    done = succeeded(*command, env=ENVIRONMENT, start_new_session=True)
    line = r"(\d+) (\d+) of 800 runs are finished, missing: fedlora lr=.* and \d+ more\n"
    found = re.fullmatch(line, done.stdout)
    assert found is not None, done.stdout
    assert 1 <= int(found[1]) == int(found[2]) <= len(store.read_bytes().splitlines())


def runs_on(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.further
def test_workers_end_with_a_comparison_that_is_killed(tmp_path):
    """Nothing tells them; what is in the store is whole."""
    script, store = tmp_path / "script.py", tmp_path / "runs.jsonl"
    script.write_text(STOPPED)
    command = [sys.executable, str(script), str(store), "kill"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL
    children = [int(pid) for pid in done.stdout.split()]
    assert len(children) >= 2
    until = time.monotonic() + 120
    while (left := [pid for pid in children if runs_on(pid)]) and time.monotonic() < until:
        time.sleep(0.1)
    assert not left
    assert len(read_lines(store)) >= 3


def test_a_full_disk_loses_no_finished_run(tmp_path):
    """Here a limit on the size of files: it stops what is written as a full disk does."""
    resource = pytest.importorskip("resource", reason="limits of POSIX")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.warns(UserWarning, match=r"could not keep .* seed [01], which .*too large$"):
            frame = compare(None, store=tmp_path / "runs.jsonl")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert frame["seed"].nunique() == 2
    # What was cut short is no run, and the next line does not continue it.
    assert compare(None, store=tmp_path / "runs.jsonl").equals(frame)


def test_a_warning_that_is_made_an_error_loses_no_result_silently():
    """Fault: it was taken for a dead worker, and its work neither returned nor named."""

    def act(number, _):
        if number == 0:
            warnings.warn("overflow", RuntimeWarning)
        return number

    runs = run_works([Work(f"run {i}", partial(act, i)) for i in range(3)], 2)
    done = []
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        with pytest.raises(RuntimeWarning, match=r"^overflow$"):
            for_each(runs, done.append)
    assert 0 in done


def test_who_stops_early_is_told_nothing_of_joblib():
    """Fault: it advised to adjust the input task iterator; as an error, from the collector."""
    runs = run_works([Work(f"run {i}", partial(echo, i)) for i in range(3)], 2)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        next(runs)
        runs.close()
    assert not seen


def echo(number, _):
    return number


def for_each(runs, act):
    for number, _ in runs:
        act(number)
