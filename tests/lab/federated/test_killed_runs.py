"""Runs stopped at each of their writes, or not alone."""

import os
from itertools import count
from typing import Any

import pandas as pd
import pytest
import torch
from calls import refused
from toy_tasks import LORA, PLAN, play, private, regression, same_bits

import fedlora_lab as fl
from fedlora_lab._utils.files import lock_folder
from fedlora_lab.federated import store
from fedlora_lab.privacy.ledger import Ledger

ROLORA = regression(), "rolora", private("example")


class Killed(BaseException):
    """Stands for the end of the process."""


def play_until_write(number, folder):
    """Makes a run in a folder, which ends at its write of this number; whether it came so far."""
    writes = count(1)
    flush = os.fsync

    def end_at(file):
        flush(file)
        if next(writes) == number:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", end_at)
        try:
            play(*ROLORA, out=folder)
        except Killed:
            return True
    return False


def cells(folder):
    frame: Any = store.stored_frame(folder)
    return frame[frame["measure"] != "seconds"].reset_index(drop=True)


@pytest.mark.slow
def test_a_run_that_ends_at_any_write_goes_on_and_loses_nothing(tmp_path):
    """A file is flushed before it takes its name, and the folder after that, so these are all the
    moments that differ. The ledger is never behind what was released, and the run that was taken
    up is the undisturbed one, bit for bit.
    """
    whole = tmp_path / "whole"
    play(*ROLORA, out=whole)
    end, _ = store.read(whole)
    for number in count(1):
        folder = tmp_path / str(number)
        if not play_until_write(number, folder):
            break
        done = max(store.rounds_in(folder), default=0)
        counted = folder / store.LEDGER
        charged = Ledger.load(counted).releases if counted.exists() else []
        assert [entry.round for entry in charged][:done] == list(range(1, done + 1))
        play(*ROLORA, out=folder)
        pd.testing.assert_frame_equal(cells(folder), cells(whole), check_exact=True)
        assert counted.read_bytes() == (whole / store.LEDGER).read_bytes()
        state, _ = store.read(folder)
        for key, x in end.server.tensors.items():
            assert torch.equal(state.server.tensors[key], x)
    assert number > 5 * PLAN.rounds


def test_two_runs_in_one_folder_refuse_each_other(tmp_path):
    """One that is left before its end lets go of the folder."""
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
