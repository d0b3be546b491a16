"""The papers' set-ups: every row fits its shapes at full size, and trains end to end at a toy size."""

import math
from typing import Any

import hubs
import pytest
import torch
from click.testing import CliRunner

import fedlora_lab as fl
from fedlora_lab import presets
from fedlora_lab.cli import main
from fedlora_lab.cli.preset import preset as command

pytestmark = pytest.mark.filterwarnings(hubs.NO_PAD)
# One task of GLUE stands for the others in what is slow: they differ in columns and classes only.
SLOW = [name for name in presets.PRESETS if not name.startswith(("ffa", "fedsvd", "rolora")) or name.endswith("mnli")]
# At full size one row for each architecture: a second one has the same shapes.
FULL = ("rolora-50-mnli", "la-lora-tinyimagenet", "deer-kvasir", "fedlpp-e2e")
SIZES = {"roberta": 355_000_000, "swin": 86_800_000, "vit": 85_800_000, "gpt2": 355_000_000}  # as published


def test_every_architecture_is_tried_at_full_size():
    assert {presets.PRESETS[n].architecture for n in FULL} == {row.architecture for row in presets.PRESETS.values()}


@pytest.mark.parametrize("name", FULL)
def test_every_preset_fits_its_shapes(name):
    """At full size on shapes alone; the model has the size that its paper states, a client moves r (m + n)."""
    row, found = presets.PRESETS[name], presets.dry_run(name)
    assert abs(found.parameters / SIZES[row.architecture] - 1) < 0.01
    task = presets.shapes(name)
    pairs: Any = [
        m.weight.shape for n, m in task.model.named_modules() if n.endswith(tuple(f".{t}" for t in task.targets))
    ]
    assert pairs, task.targets
    factors = sum(row.lora.rank * sum(shape) for shape in pairs)
    head = found.moving - factors
    assert head > 0 if row.head else head == 0
    assert found.step_flops > found.judge_flops > 2e9, "billions of operations for one example"
    assert len(task.sizes) == row.clients


@pytest.mark.parametrize("name", SLOW)
def test_every_preset_trains_end_to_end_at_a_toy_size(name, tmp_path):
    row = presets.PRESETS[name]
    task = presets.toy(name, tmp_path / "toy")
    assert len(task.sizes) == row.clients and (task.head is not None) == row.head
    plan = row.plan.replace(rounds=2, local_steps=2, batch=2)
    privacy = presets.privacy(row, task, plan)
    assert (privacy is None) == (row.epsilon is None)
    records = list(fl.run(task, row.method, privacy, plan, lora=row.lora, evaluate_every=2))
    assert records[-1].index == 2 and math.isfinite(records[-1].metrics["loss"])
    assert all(torch.isfinite(tensor).all() for pair in records[-1].adapter.values() for tensor in pair)
    if row.epsilon is not None and row.plan.participation == 1:
        assert 0.97 * row.epsilon < records[-1].epsilon <= row.epsilon, "the budget is spent, and no more"


def test_the_table_names_its_sources():
    table = presets.table()
    assert set(table["clients"]) == {3, 6, 50, 8, 12, 10}
    assert all(source.startswith("arXiv:") for source in table["source"])
    assert all(table["assumed"].str.len() > 10)
    with pytest.raises(ValueError, match="preset='nobody': expected one of ffa-lora-3-sst2"):
        presets.get("nobody")
    with pytest.raises(ValueError, match="dataset=None: expected a folder with a folder of images for each class"):
        presets.task("deer-oct")


def test_the_command(tmp_path, capsys):
    """Lists; checks on shapes and says the formula with its numbers; trains on a folder of images."""
    lines = CliRunner().invoke(command, []).output.splitlines()
    assert len(lines) == len(presets.PRESETS) and lines[0].startswith("ffa-lora-3-sst2")
    found = presets.dry_run("deer-kvasir")
    text = CliRunner().invoke(command, ["deer-kvasir", "--dry-run"]).output
    assert f"has {found.parameters:,} frozen numbers, a client moves {found.moving:,}" in text
    assert f"100 rounds x 1 x 12 clients x ({found.up:,} up, {found.down:,} down)" in text
    data = tmp_path / "animals"
    for part in range(3):
        hubs.image_folder(data / "more" if part else data)
    model = fl.tasks.tiny("vit", tmp_path / "vit")
    call = ["preset", "deer-kvasir", "--model", str(model), "--data", str(hubs.image_folder(tmp_path / "scans"))]
    with pytest.raises(SystemExit) as stopped:
        main([*call, "--rounds", "1", "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2 and "clients=12: expected at most 6" in capsys.readouterr().err
