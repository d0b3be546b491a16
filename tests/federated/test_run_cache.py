"""Runs are found again by their content, and by nothing less."""

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn
from toy_tasks import LORA, PLAN, private, regression

import fedlora_lab as fl
from fedlora_lab.federated import comparison, simulation
from fedlora_lab.federated.comparison import Cell

ROW = fl.methods.FFA


def own_filter(x, side):
    return 0.5 * x


@pytest.fixture
def trained(monkeypatch):
    """How many runs were opened."""
    count, true = [], simulation.ticks

    def counted(*args, **options):
        count.append(args)
        return true(*args, **options)

    monkeypatch.setattr(simulation, "ticks", counted)
    return count


def compare(folder, task=None, row=ROW, privacy=None, plan=PLAN, lora=LORA, seeds=(0,), **options):
    parts = task or regression(), [row], privacy or private("example"), plan, list(seeds)
    return fl.compare(*parts, lora=lora, progress=False, cache=folder, **options)


def test_a_second_call_trains_nothing_and_gives_the_same_frame(tmp_path, trained, monkeypatch):
    first = compare(tmp_path)
    assert len(trained) == 1
    pd.testing.assert_frame_equal(compare(tmp_path), first, check_exact=True)
    monkeypatch.setenv(comparison.VARIABLE, str(tmp_path))
    pd.testing.assert_frame_equal(compare(None), first, check_exact=True)
    assert len(trained) == 1
    compare(False)
    assert len(trained) == 2


def test_any_changed_ingredient_trains_anew(monkeypatch):
    x, y = regression().clients[0]
    moved = replace(regression(), clients=((x + 1e-9, y), *regression().clients[1:]))
    renamed = replace(regression(), name="other")
    base: list[Any] = [ROW, regression(), private("example"), PLAN, LORA, 0]
    others: list[dict[int, Any]] = [
        {0: ROW.replace(exact=not ROW.exact)}, {0: ROW.replace(share="B")}, {0: fl.methods.RoLoRA},
        {1: moved}, {1: renamed}, {1: replace(regression(), public_test=False)},
        {2: private("client")}, {2: private("example", sigma=1.5)}, {2: None},
        {3: PLAN.replace(rounds=3)}, {3: PLAN.replace(optimizer="sgd:momentum=0.1")},
        {3: PLAN.replace(server_lr=0.5)}, {4: fl.Lora(rank=2, alpha=4.0)}, {5: 1},
    ]  # fmt: skip
    keys = [
        comparison.run_key(Cell.from_name(*[change.get(i, x) for i, x in enumerate(base)]), {})
        for change in ({}, *others)
    ]
    cell = Cell.from_name(*base)
    keys += [comparison.run_key(cell, {"evaluate_every": 2})]
    assert comparison.run_key(cell, {}) == keys[0]
    monkeypatch.setattr(comparison, "code_version", lambda: "another")
    keys += [comparison.run_key(cell, {})]
    assert None not in keys
    assert len(set(keys)) == len(keys)


def test_settings_of_a_model_that_are_no_weights_count():
    """A model of as many weights, printed alike, was given the frame of another."""

    def key_of(hook: Any = None, **settings: Any) -> str | None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layer = nn.TransformerEncoderLayer(8, batch_first=True, dim_feedforward=8, **settings)
            model = nn.Sequential(layer, nn.Flatten(), nn.Linear(16, 2))
        if hook is not None:
            layer.register_forward_hook(hook)
        pair = torch.zeros(4, 2, 8), torch.arange(4) % 2
        task = fl.tasks.classification(model, [pair], pair, ["linear1"])
        return comparison.run_key(Cell.from_name(ROW, task, None, PLAN, LORA, 0), {})

    changes: list[dict[str, Any]] = [{"nhead": 4}, {"nhead": 2, "norm_first": True}]
    changes += [{"nhead": 2, "activation": "gelu"}]
    keys = [key_of(nhead=2), *(key_of(**change) for change in changes)]
    assert None not in keys and len(set(keys)) == 4 and key_of(nhead=2) == keys[0]
    assert key_of(lambda module, given, out: 2 * out, nhead=2) is None, "a user's own code"


def test_a_place_that_holds_no_frames_is_named(tmp_path):
    compare(tmp_path)
    [stored] = tmp_path.glob("*.csv")
    stored.write_text(stored.read_text()[:100])
    with pytest.raises(ValueError, match=f"^cache='{stored}': expected a frame as it was stored;"):
        compare(tmp_path)
    for wrong in (stored, 3):
        with pytest.raises(ValueError, match=r"^cache=.*: expected a folder"):
            compare(wrong)


def test_the_code_of_every_room_that_a_run_imports_counts():
    """Of a room left out a change would be missed, and a frame found that it no longer gives."""
    home, rooms, left = Path(comparison.__file__).parents[1], set(), {"federated"}
    while left:
        rooms |= left
        text = "".join(p.read_text() for room in left for p in (home / room).rglob("*.py"))
        found = re.findall(r"^ *from fedlora_lab(?:\.| import )(\w+)", text, re.MULTILINE)
        left = set(found) - rooms
    assert rooms == set(comparison.ROOMS)


@pytest.mark.parametrize("run", [{"seeds": (None,)}, {"row": ROW.replace(filter=own_filter)}])
def test_a_release_is_never_stored(run, tmp_path, trained):
    """Nor is code that cannot be read: a user's own rule has its name after it is changed too."""
    for _ in range(2):
        compare(tmp_path, **run)
    assert len(trained) == 2 and not list(tmp_path.iterdir())


def test_a_folder_is_its_owner_s(tmp_path):
    compare(tmp_path / "cache")
    assert (tmp_path / "cache").stat().st_mode & 0o077 == 0
    with pytest.raises(ValueError, match="cache=True: expected a folder, None or False"):
        compare(True)


def test_who_asks_for_a_run_in_training_waits_for_it(tmp_path):
    """As notebooks that run at once and compare the same runs."""
    cell = Cell.from_name("fedlora", regression(), None, PLAN, LORA, 0)
    begun, opened = threading.Event(), []

    def train():
        opened.append(cell)
        begun.set()
        time.sleep(0.2)
        return cell.frame(list(cell.run()))

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(comparison.cached_frame, tmp_path, cell, {}, train)
        assert begun.wait(60)
        second = pool.submit(comparison.cached_frame, tmp_path, cell, {}, train)
        pd.testing.assert_frame_equal(first.result(), second.result(), check_exact=True)
    assert len(opened) == 1
