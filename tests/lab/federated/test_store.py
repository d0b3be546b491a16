"""Runs in the folder of a comparison are found again by their arguments; files are sealed."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from calls import refused
from toy_tasks import LORA, PLAN, other_data, private, regression

import fedlora_lab as fl
from fedlora_lab._utils.files import Damaged, read_sealed, write_sealed
from fedlora_lab.federated.compare import Cell, folder_name
from fedlora_lab.federated.config import EXACT, Execution
from fedlora_lab.federated.make_config import make_config
from fedlora_lab.tasks.task import Layers

ROW = fl.methods.FFA


def compare(path, seeds):
    parts = regression(), [ROW], private("example"), PLAN, seeds
    return fl.compare(*parts, lora=LORA, progress=False, out=path)


def test_a_kept_release_is_read_back_bit_by_bit(tmp_path):
    """Seconds included, which no second training would repeat; nothing is released again."""
    first = compare(tmp_path, [None])
    pd.testing.assert_frame_equal(compare(tmp_path, [None]), first, check_exact=True)
    [folder] = tmp_path.glob("ffa-lora-None-*")
    assert len(fl.Ledger.load(folder / "ledger.json").releases) == PLAN.rounds


def test_any_changed_argument_trains_anew():
    base = {
        "method": ROW,
        "task": regression(),
        "privacy": private("example"),
        "plan": PLAN,
        "lora": LORA,
        "seed": 0,
    }
    changes: list[dict[str, Any]] = [
        {"method": ROW.replace(exact=not ROW.exact)},
        {"task": regression(clients=4)},
        {"task": replace(regression(), loss=other_loss)},
        {"task": replace(regression(), metrics={"loss": other_loss})},
        {"task": replace(regression(), layers=Layers(("map", "map")))},
        {"plan": PLAN.replace(rounds=3)},
    ]

    def name(change, execution=EXACT):
        return folder_name(Cell(make_config(**base | change)), execution)

    names = [*map(name, [{}, *changes]), name({}, execution=Execution(evaluate_every=2))]
    assert len({*names}) == len(names)
    # NumPy's numbers are what they stand for.
    lora = replace(LORA, rank=np.int64(LORA.rank))  # type: ignore[bad-argument-type]
    assert name({"plan": PLAN.replace(lr=np.array(PLAN.lr)), "lora": lora}) == names[0]
    # Nothing in a name confirms a guess at the data.
    assert name({"task": other_data(regression())}) == names[0]


def other_loss(outputs, y):
    return (outputs - y).abs().sum(1)


def test_a_sealed_file_is_what_was_written_or_refused(tmp_path):
    """Any changed byte, any missing one, and a file that is gone."""
    path = tmp_path / "file"
    write_sealed(path, b"content")
    assert read_sealed(path, "it") == b"content"
    whole = path.read_bytes()
    for i in range(len(whole)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
        with pytest.raises(Damaged, match=r"^it: expected a whole one"):
            read_sealed(path, "it")
        path.write_bytes(whole[:i])
        with pytest.raises(Damaged):
            read_sealed(path, "it")
    path.unlink()
    with pytest.raises(Damaged, match="a file is missing"):
        read_sealed(path, "it")
    path.mkdir()
    with refused("^it: expected one that can be read"):
        read_sealed(path, "it")
