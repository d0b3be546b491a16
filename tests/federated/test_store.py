"""Finished runs are found again by their arguments, and by nothing less."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from toy_tasks import LORA, PLAN, other_data, private, regression

import fedlora_lab as fl
from fedlora_lab._utils.files import read_lines
from fedlora_lab.federated.compare import Cell, Store

ROW = fl.methods.FFA


def compare(path, seeds=(0,), **options):
    parts = regression(), [ROW], private("example"), PLAN, list(seeds)
    return fl.compare(*parts, lora=LORA, progress=False, store=path, **options)


def test_a_kept_run_is_read_back_bit_by_bit(tmp_path):
    """Seconds included, which no second training would repeat."""
    path = tmp_path / "store" / "runs.jsonl"
    first = compare(path)
    pd.testing.assert_frame_equal(compare(path), first, check_exact=True)
    [entry] = read_lines(path)
    assert set(entry) == {"key", "settings", "rows", "ledger"} and entry["ledger"] is not None
    assert path.stat().st_mode & 0o077 == 0 and path.parent.stat().st_mode & 0o077 == 0
    path.write_bytes(path.read_bytes()[:200])  # as a kill leaves it
    assert compare(path)["round"].max() == PLAN.rounds
    assert len(read_lines(path)) == 1
    # A release is never stored.
    released = [compare(path.with_name("none"), seeds=[None]) for _ in range(2)]
    assert not released[0].equals(released[1]) and not path.with_name("none").exists()


def test_any_changed_argument_trains_anew(tmp_path):
    base = Cell.from_name(ROW, regression(), private("example"), PLAN, LORA, 0)
    changes: dict[str, Any] = {
        "method": ROW.replace(exact=not ROW.exact),
        "task": other_data(regression()),
        "loss": replace(regression(), loss=lambda x, y: (x - y).square().sum(1)),
        "metrics": replace(regression(), metrics={"loss": lambda x, y: (x - y).abs().sum(1)}),
        "targets": replace(regression(), targets=("map", "map")),
        "privacy": private("example", sigma=1.5),
        "plan": PLAN.replace(rounds=3),
        "lora": fl.Lora(rank=2, alpha=4.0),
        "seed": 1,
    }
    cells = [
        replace(base, **{"task" if name in ("loss", "metrics", "targets") else name: value})
        for name, value in changes.items()
    ]
    store = Store(tmp_path / "runs.jsonl")
    keys = [store.settings(cell, {}) for cell in (base, *cells)]
    keys.append(store.settings(base, {"evaluate_every": 2}))
    # NumPy's numbers are what they stand for.
    plan = PLAN.replace(lr=np.array(PLAN.lr))
    lora = replace(LORA, rank=np.int64(LORA.rank))  # type: ignore[bad-argument-type]
    assert store.settings(replace(base, plan=plan, lora=lora), {}) == keys[0]
    assert all(key not in keys[:i] for i, key in enumerate(keys))
    # Nothing in the file confirms a guess at the data: of the same, two folders hold two digests.
    digest = Store(tmp_path / "other" / "runs.jsonl").settings(base, {})["task"]
    assert digest not in (keys[0]["task"], regression().fingerprint) != keys[0]["task"]
