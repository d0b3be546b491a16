"""The papers' set-ups: each fits its shapes at full size, and trains end to end at a toy size."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import toy_hubs
from commands import call

import fedlora_lab as fl
from fedlora_lab.experiments import presets
from fedlora_lab.federated.records import Round
from fedlora_lab.report.run_folder import read_frame

pytestmark = [pytest.mark.filterwarnings(toy_hubs.NO_PAD), pytest.mark.slow]
# One data set of each paper stands for the others: they differ in columns and classes only.
TRAINED = ("ffa-lora-3-mnli", "fedsvd-6-mnli", "rolora-50-mnli", "la-lora-cifar100")
TRAINED += ("la-lora-20-mnli", "deer-kvasir", "fedlpp-e2e")
# One row for each architecture, and the number of its parameters as published.
FULL = {"rolora-50-mnli": 355e6, "la-lora-tinyimagenet": 86.8e6, "deer-kvasir": 85.8e6}
FULL["fedlpp-e2e"] = 355e6


@pytest.mark.parametrize("name", FULL)
def test_every_architecture_fits_its_shapes(name):
    """At full size on shapes alone; a client moves r (m + n) numbers a layer, and the head."""
    row, found = presets.PRESETS[name], presets.dry_run(name)
    assert abs(found.parameters / FULL[name] - 1) < 0.01
    task = presets.shapes(name)
    ends = tuple(f".{target}" for target in task.targets)
    layers: Any = [m.weight.shape for n, m in task.model.named_modules() if n.endswith(ends)]
    head = found.moving - sum(row.lora.rank * sum(shape) for shape in layers)
    assert layers and (head > 0 if row.head else head == 0)
    assert found.step_flops > found.judge_flops > 2e9, "billions of operations for one example"
    assert len(task.sizes) == row.clients


@pytest.mark.parametrize("name", TRAINED)
def test_every_preset_trains_end_to_end_at_a_toy_size(name, tmp_path):
    row, random = presets.PRESETS[name], np.random.default_rng(0)
    count, words = max(96, 3 * row.clients), [f"w{i}" for i in range(20)]
    data: Any = {} if row.label is None else {row.label: [i % row.classes for i in range(count)]}
    for column in row.text:
        data[column] = [" ".join(random.choice(words, 5)) for _ in range(count)]
    if row.image:
        data[row.image] = list(random.integers(0, 256, (count, 9, 9, 3)).astype(np.uint8))
    model = fl.tasks.tiny(row.architecture, tmp_path / "toy", words if row.text else ())
    options: Any = {"max_length": 24} if row.text else {}
    task = presets.task(row, model, pd.DataFrame(data), test=0.1, public_test=True, **options)
    assert len(task.sizes) == row.clients and (task.head is not None) == row.head
    if row.shares:  # of a pool of equally many labels, up to the rows held out
        mixes = [y.bincount(minlength=row.classes) / len(y) for _, y in task.clients]
        gap = torch.stack(mixes) - torch.tensor(row.shares[str(row.classes)])
        assert gap.abs().max() < 0.06
    plan = row.plan.replace(rounds=2, local_steps=2, batch=2)
    privacy = presets.privacy(row, task, plan)
    assert (privacy is None) == (row.epsilon is None)
    *_, last = fl.run(task, row.method, privacy, plan, lora=row.lora, evaluate_every=2)
    assert last.index == 2 and math.isfinite(last.metrics["loss"])
    assert all(torch.isfinite(factor).all() for pair in last.adapter.values() for factor in pair)
    if row.epsilon is not None and row.plan.participation == 1:
        assert 0.97 * row.epsilon < last.epsilon <= row.epsilon, "the budget is spent, and no more"


@pytest.mark.parametrize("name", ["ffa-lora-3-mnli", "la-lora-tinyimagenet"])
def test_budgets_can_be_met_at_full_size(name):
    """A delta of 1e-5 as published is not below 1 / examples there."""
    row = presets.find_preset(name)
    task: Any = SimpleNamespace(sizes=(row.examples // row.clients,) * row.clients)
    budget = presets.privacy(row, task)
    assert budget is not None and budget.target == row.epsilon
    assert budget.resolve(task, row.plan).delta * row.examples < 1 < 2.1 * row.delta * row.examples


@pytest.mark.parametrize("name", ["deer-kvasir", "deer-oct"])
def test_deer_trains_for_epochs_and_promises_for_clients(name):
    """Five passes over a mean client's data in a phase, two phases in each of 50 rounds; every
    client's two updates a round are counted, and sigma is the one that the preset tells.
    """
    row, literal = (
        presets.find_preset(name),
        presets.find_preset(name.replace("deer", "deer-literal")),
    )
    assert row.plan.local_steps == 5 * math.ceil(row.examples / row.clients / (row.plan.batch or 1))
    assert row.plan.rounds == 2 * 50 and literal.plan == row.plan
    task: Any = SimpleNamespace(sizes=(9,) * row.clients)
    budget: Any = presets.privacy(row, task)
    sigma = budget.noise_multiplier
    assert budget.unit == "client" and budget.releases == 100
    assert f"sigma {'is ' * (name == 'deer-oct')}{sigma:.1f}" in row.assumed
    assert fl.theory.gdp_epsilon(10 / sigma, row.delta) == pytest.approx(row.epsilon)


def test_every_preset_names_its_source():
    rows = presets.PRESETS.values()
    assert {presets.PRESETS[n].architecture for n in FULL} == {row.architecture for row in rows}
    assert all(row.source.startswith("arXiv:") and len(row.assumed) > 10 for row in rows)
    with pytest.raises(ValueError, match="preset='nobody': expected one of ffa-lora-3-sst2"):
        presets.find_preset("nobody")
    with pytest.raises(ValueError, match="dataset=None: expected a folder with a folder of images"):
        presets.task("deer-oct")


def told(words, capsys):
    """Exit status of a command line, and all that it says."""
    return call(*words), "".join(capsys.readouterr())


def test_the_preset_command_lists_and_tells_costs(tmp_path, capsys):
    """Lists; says the formula of the costs with its numbers; refuses data for too few clients."""
    lines = told(["preset"], capsys)[1].splitlines()
    assert len(lines) == len(presets.PRESETS) and lines[0].startswith("ffa-lora-3-sst2")
    found = presets.dry_run("deer-kvasir")
    text = told(["preset", "deer-kvasir", "--dry-run"], capsys)[1]
    assert f"has {found.parameters:,} frozen numbers, a client moves {found.moving:,}" in text
    assert f"100 rounds x 1 x 12 clients x ({found.up:,} up, {found.down:,} down)" in text
    model, data = fl.tasks.tiny("vit", tmp_path / "vit"), toy_hubs.image_folder(tmp_path / "scans")
    words = ["preset", "deer-kvasir", "--model", model, "--data", data, "--rounds", "1"]
    status, said = told([*words, "--out", tmp_path / "out"], capsys)
    assert status == 2 and "clients=12: expected at most 6" in said


@pytest.mark.filterwarnings("ignore:epsilon=:UserWarning")
def test_the_command_goes_on_where_it_was_stopped(tmp_path, monkeypatch, capsys):
    """Ctrl-C says that the same command goes on: it does, states what was spent, and shows no score
    of private data."""
    task = replace(fl.tasks.regression(clients=3), public_test=False)
    plan = fl.Plan(rounds=3, local_steps=1, lr=0.1)
    row = replace(presets.find_preset("rolora-50-mnli"), plan=plan, lora=fl.Lora())
    privacy = fl.Privacy(delta=1e-4).calibrate(epsilon=8, task=task, plan=plan)
    for name, value in (("find_preset", row), ("task", task), ("privacy", privacy)):
        monkeypatch.setattr(presets, name, lambda *parts, value=value, **options: value)
    out, whole = tmp_path / "out", fl.ticks
    words = ["preset", "toy", "--data", "own.csv", "--seed", "none", "--out", out]

    def cut(*parts: Any, **options: Any) -> Any:
        for record in whole(*parts, **options):
            if isinstance(record, Round) and record.index == 2:
                raise KeyboardInterrupt  # round 2 is stored and not told: it is released again
            yield record

    with monkeypatch.context() as patched:
        patched.setattr(fl, "ticks", cut)
        status, text = told(words, capsys)
    assert status == 130 and "the same command goes on" in text and "round    1" in text
    status, text = told(words, capsys)
    assert status == 0, text
    played = [line for line in text.splitlines() if line.startswith("round")]
    assert [line.split()[1:4] for line in played] == [["2", "loss", "–"], ["3", "loss", "–"]]
    assert "against whoever sees the uploads" in played[0]
    ledger = fl.Ledger.load(out / "state" / "ledger.json")
    assert [entry.round for entry in ledger.releases] == [1, 2, 2, 3]
    spent = f"spent: {ledger.statement()}"
    frame: Any = read_frame(out / "frame.csv").query("measure == 'epsilon'")
    assert spent in text and frame["round"].tolist() == [0, 1, 2, 3]
    assert frame["value"].iloc[-1] == ledger.epsilon_or_inf()
    weights = out / "adapter" / "adapter_model.safetensors"
    before = weights.read_bytes()
    status, text = told(words, capsys)
    assert status == 0 and "round" not in text.split("spent:")[0] and spent in text
    assert weights.read_bytes() == before
    (out / "frame.csv").unlink()
    status, text = told(words, capsys)
    assert status == 2 and "expected a folder without rounds of another run" in text
