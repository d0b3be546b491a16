"""Runs at once yield what one after the other does, and put no example into a file."""

import os
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from toy_tasks import LORA, PLAN, private, regression

import fedlora_lab as fl
from fedlora_lab.federated.jobs import run_calls

pytestmark = [pytest.mark.waits, pytest.mark.slow, pytest.mark.together]
OWN = fl.methods.FedLoRA.replace(name="own", aggregate=lambda state, *_: state)
"""A row that no other process can import."""


def compare(jobs, rows=("fedlora", OWN), **options):
    parts = regression(), rows, private("example"), PLAN, (0, 1)
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


@pytest.mark.parametrize("jobs", [1, 2])
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


def test_workers_have_one_thread_and_start_no_processes():
    def look(_):
        inner = run_at_once(lambda _: os.getpid(), 3, 4)
        return torch.get_num_threads(), set(inner.values()) == {os.getpid()}

    assert run_at_once(look, 2) == {0: (1, True), 1: (1, True)}


def test_no_example_is_put_into_a_file():
    """Fault: whoever killed a comparison left a readable file with the whole private task. Above a
    megabyte joblib hands arrays over in files."""
    rows = np.ones((500, 500))
    calls = {i: partial(isinstance, rows, np.memmap) for i in range(2)}
    assert dict(run_calls(calls, 2)) == {0: False, 1: False}
