"""Runs in a folder are found again by their arguments, and by nothing less; files are sealed."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from calls import refused
from toy_tasks import LORA, PLAN, other_data, private, regression, tokens

import fedlora_lab as fl
from fedlora_lab import methods
from fedlora_lab._utils.files import Damaged, read_sealed, write_sealed
from fedlora_lab.federated.compare import ROWS, Cell, run_settings
from fedlora_lab.tasks.task import Layers

ROW = fl.methods.FFA


def compare(path, seeds=(0,), row=ROW, **options):
    parts = regression(), [row], private("example"), PLAN, list(seeds)
    return fl.compare(*parts, lora=LORA, progress=False, out=path, **options)


@pytest.mark.parametrize("seed", [0, None])
def test_a_kept_run_is_read_back_bit_by_bit(seed, tmp_path):
    """Seconds included, which no second training would repeat; a release is not released again."""
    out = tmp_path / "runs"
    first = compare(out, [seed])
    pd.testing.assert_frame_equal(compare(out, [seed]), first, check_exact=True)
    [folder] = [path for path in out.iterdir() if path.name != "private"]
    ledger = fl.Ledger.load(folder / "ledger.json")
    assert len(ledger.releases) == PLAN.rounds
    lines = folder / ROWS
    lines.write_bytes(lines.read_bytes()[:-9])  # as a kill leaves it
    again = compare(out, [seed])
    assert again["round"].max() == PLAN.rounds
    if seed == 0:
        kept = first["measure"] != "seconds"
        pd.testing.assert_frame_equal(again[kept], first[kept], check_exact=True)
    # Without a seed the round that has no row was released twice.
    count = len(fl.Ledger.load(folder / "ledger.json").releases)
    assert count == PLAN.rounds + (seed is None)


def test_a_comparison_goes_on_where_it_was_stopped(tmp_path):
    """Whatever was trained is not trained again, and the frame is that of one call."""

    def stop(run, events):
        for event in events:
            yield event
            if run.seed == 1 and getattr(event, "index", 0) == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as stopped:
        compare(tmp_path, [0, 1], watch=stop)
    error: Any = stopped.value
    assert set(error.frame["seed"]) == {0}
    trained = []

    def watch(run, events):
        for event in events:
            trained.append((run.seed, getattr(event, "index", None)))
            yield event

    frame = compare(tmp_path, [0, 1], watch=watch)
    assert {seed for seed, _ in trained} == {1} and 0 not in {index for _, index in trained}
    kept = frame["measure"] != "seconds"
    alone = compare(None, [0, 1])
    pd.testing.assert_frame_equal(frame[kept], alone[kept], check_exact=True)


class Even:
    """A rule that is a plain object: it is shown by where it lies in memory."""

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def __call__(self, *given):
        return fl.methods.aggregation.mean(*given)


def start(weight, rank, gain):
    return {"A": gain * weight.new_ones(rank, weight.shape[1])}


def row_with(**rules):
    return methods.FedLoRA.replace(name="mine", source="", note="", **rules)


def changed_rules(c: float) -> dict[str, Any]:
    """Rules of a row and of a task whose names are equal for every number."""
    return {
        "filter": lambda tensor, name: c * tensor,
        "schedule": lambda t, s: "B" if t < c else "AB",
        "clip_groups": lambda key: key.name if c < 1 else None,
        "initial_factors": lambda weight, rank: start(weight, rank, c),
        "penalty": lambda rows, start: c,
        "aggregate": Even(c),
        "loss": lambda outputs, y: c * outputs.square().sum(1),
        "metrics": {"score": lambda outputs, y: c * outputs.sum(1)},
        "layers": Layers(("inner", "outer"), "head") if c < 1 else Layers(("inner",)),
    }


def with_rule(task, name, rule):
    """A task and a row of which one has this rule."""
    of_row = name in fl.Method.__dataclass_fields__
    return (task, row_with(**{name: rule})) if of_row else (replace(task, **{name: rule}), "fedsa")


@pytest.mark.parametrize("name", changed_rules(1.0))
def test_rules_of_one_name_are_told_apart_by_what_they_hold(name, tmp_path):
    """Fault: rules of one name were one rule, and the numbers of the old one came back; and a rule
    that is an object was another one for lying elsewhere in memory."""

    def settings(c):
        task, row = with_rule(tokens("head"), name, changed_rules(c)[name])
        return run_settings(Cell.from_name(row, task, None, PLAN, LORA, 0), {}, tmp_path)

    assert settings(0.5) == settings(0.5) != settings(2.0)


def test_any_changed_argument_trains_anew(tmp_path):
    base = Cell.from_name(ROW, regression(), private("example"), PLAN, LORA, 0)
    changes: dict[str, Any] = {
        "method": ROW.replace(exact=not ROW.exact),
        "task": other_data(regression()),
        "loss": replace(regression(), loss=lambda x, y: (x - y).square().sum(1)),
        "metrics": replace(regression(), metrics={"loss": lambda x, y: (x - y).abs().sum(1)}),
        "layers": replace(regression(), layers=Layers(("map", "map"))),
        "privacy": private("example", sigma=1.5),
        "plan": PLAN.replace(rounds=3),
        "lora": fl.Lora(rank=2, alpha=4.0),
        "seed": 1,
    }
    cells = [
        replace(base, **{"task" if name in ("loss", "metrics", "layers") else name: value})
        for name, value in changes.items()
    ]
    keys = [run_settings(cell, {}, tmp_path) for cell in (base, *cells)]
    keys.append(run_settings(base, {"evaluate_every": 2}, tmp_path))
    # NumPy's numbers are what they stand for.
    plan = PLAN.replace(lr=np.array(PLAN.lr))
    lora = replace(LORA, rank=np.int64(LORA.rank))  # type: ignore[bad-argument-type]
    assert run_settings(replace(base, plan=plan, lora=lora), {}, tmp_path) == keys[0]
    assert all(key not in keys[:i] for i, key in enumerate(keys))
    # Nothing in the file confirms a guess at the data: of the same, two folders hold two digests.
    digest = run_settings(base, {}, tmp_path / "other")["task"]
    assert digest not in (keys[0]["task"], regression().fingerprint) != keys[0]["task"]


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
