"""The papers' set-ups: every row fits its shapes at full size, and trains end to end at a toy size."""

import math
from dataclasses import replace
from typing import Any

import hubs
import pytest
import torch
from click.testing import CliRunner

import fedlora_lab as fl
from fedlora_lab import presets
from fedlora_lab.cli import main
from fedlora_lab.cli.preset import preset as command
from fedlora_lab.folder import read_frame

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


@pytest.mark.filterwarnings("ignore:epsilon=:UserWarning")
def test_the_command_goes_on_where_it_was_stopped(tmp_path, monkeypatch, capsys):
    """Ctrl-C says that the same command goes on: it does, states what was spent, and shows no score it has not."""
    task = replace(fl.tasks.regression(clients=3), public_test=False)
    row = replace(presets.get("rolora-50-mnli"), plan=fl.Plan(rounds=3, local_steps=1, lr=0.1), lora=fl.Lora())
    monkeypatch.setattr(presets, "get", lambda name: row)
    monkeypatch.setattr(presets, "task", lambda *parts, **options: task)
    monkeypatch.setattr(
        presets, "privacy", lambda *parts: fl.Privacy(delta=1e-4).calibrate(epsilon=8, task=task, plan=row.plan)
    )
    whole, words = fl.run, ["preset", "toy", "--data", "own.csv", "--seed", "none", "--out", str(tmp_path / "out")]

    def cut(*parts: Any, **options: Any) -> Any:
        for record in whole(*parts, **options):
            if record.index == 2:
                raise KeyboardInterrupt  # round 2 is stored and not told: it is released again
            yield record

    def called() -> tuple[int, str]:
        with pytest.raises(SystemExit) as stopped:
            main(words)
        found = capsys.readouterr()
        return int(stopped.value.code or 0), found.out + found.err

    with monkeypatch.context() as patched:
        patched.setattr(fl, "run", cut)
        status, text = called()
    assert status == 130 and "the same command goes on" in text and "round    1" in text
    status, text = called()
    assert status == 0, text
    played = [line for line in text.splitlines() if line.startswith("round")]
    assert [line.split()[1:4] for line in played] == [["2", "loss", "–"], ["3", "loss", "–"]]
    ledger = fl.Ledger.load(tmp_path / "out" / "state" / "ledger.json")
    assert [entry.round for entry in ledger.releases] == [1, 2, 2, 3]
    assert f"spent: {ledger.statement()}" in text and "against whoever sees the uploads" in played[0]
    frame: Any = read_frame(tmp_path / "out" / "frame.csv").query("measure == 'epsilon'")
    assert frame["round"].tolist() == [0, 1, 2, 3] and frame["value"].iloc[-1] == ledger.spent()
    before = (tmp_path / "out" / "adapter" / "adapter_model.safetensors").read_bytes()
    status, text = called()
    assert status == 0 and "round" not in text.split("spent:")[0] and f"spent: {ledger.statement()}" in text
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").read_bytes() == before
    (tmp_path / "out" / "frame.csv").unlink()
    status, text = called()
    assert status == 2 and "expected a folder without rounds of another run" in text


def test_the_command_says_that_a_run_fell(tmp_path, monkeypatch, capsys):
    task = fl.tasks.regression(clients=3)
    row = replace(presets.get("rolora-50-mnli"), lora=fl.Lora(), plan=fl.Plan(rounds=2, local_steps=8, lr=1e9))
    for name, value in (("get", row), ("task", task), ("privacy", None)):
        monkeypatch.setattr(presets, name, lambda *parts, value=value, **options: value)
    with pytest.raises(SystemExit) as stopped:
        main(["preset", "toy", "--out", str(tmp_path / "out")])
    assert stopped.value.code == 0
    assert "rolora: rose above its start: " in capsys.readouterr().out
