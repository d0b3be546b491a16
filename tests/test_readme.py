"""README.md keeps its word: its sentences run, its tables are the package's, its commands exist, its links lead on."""

import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import hubs
import numpy as np
import pandas as pd
import pytest
import torch
from peft import PeftModel

import fedlora_lab as fl
from fedlora_lab import adapters

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "readme.py"))

SENTENCES = """\
import fedlora_lab as fl

task    = fl.tasks.digits(clients=10, alpha=0.5, seed=0)          # embedded, real, offline
plan    = fl.Plan(rounds=20, local_steps=5, batch=16, lr=0.3)     # lr: one number or {"A": .., "B": ..}
privacy = fl.Privacy(unit="example", clip_norm=1.0, delta=1e-4).calibrate(epsilon=8, task=task, plan=plan)

for record in fl.run(task, fl.methods.RoLoRA, privacy, plan, lora=fl.Lora(rank=4, alpha=8), seed=0):
    print(record.index, record.metrics["accuracy"], record.epsilon, record.deviation)

frame = fl.compare(task, ["fedlora", "ffa-lora", "rolora"], privacy, plan, seeds=range(3))   # tidy pandas frame
fl.plots.curves(frame); fl.plots.deviation(frame); fl.plots.noise(frame)
fl.methods.table()                                   # every method as a frame: fields, claims, source
fl.show(fl.methods.LALoRA)                           # the row and the source of its rules
mine = fl.methods.FedLoRA.replace(name="mine", train=fl.Cycle(("B", "B", "A")))
fl.theory.noise_terms(B, A, std_B, std_A)            # NumPy in, NumPy out; no torch needed
fl.Privacy(unit="client", clip_norm=0.3, noise_multiplier=1.1, sample_rate=0.2, delta=1e-3).ledger(releases=50).epsilon()
fl.widgets.live(task)                                # in a notebook
fl.save_adapter(record, "out/")                       # a PEFT adapter folder: PeftModel.from_pretrained reads it
"""  # noqa: E501  # as they stand in the README

TEN_LINES = """\
import pandas as pd
import fedlora_lab as fl

data    = pd.read_csv("reviews.csv")                                 # columns text, label, hospital
public  = pd.read_csv("public.csv")                                  # columns text, label: judged on, not protected
task    = fl.tasks.hub("my-model", data, text="text", label="label", by="hospital", test=public, public_test=True)
plan    = fl.Plan(rounds=10, local_steps=5, batch=16, lr=0.3)
privacy = fl.Privacy(clip_norm=1.0, delta=1e-4).calibrate(epsilon=8, task=task, plan=plan)
for record in fl.run(task, "rolora", privacy, plan, lora=fl.Lora(rank=4, alpha=8), seed=None):
    print(record.index, record.metrics["accuracy"], record.epsilon)
fl.save_adapter(record, "adapter")                                   # PEFT reads it, without us
"""


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # PEFT asks Transformers for it
def test_ten_lines_on_your_own_model_run_as_written(tmp_path, monkeypatch, capsys):
    """With a toy BERT in the place of the reader's model."""
    assert f"```python\n{TEN_LINES}```\n" in README
    monkeypatch.chdir(tmp_path)
    frame = hubs.texts(120).rename(columns={"site": "hospital"})
    frame.to_csv("reviews.csv", index=False)
    hubs.texts(40).iloc[::-1].to_csv("public.csv", index=False)
    fl.tasks.tiny("bert", "my-model", frame["text"])
    names: dict[str, Any] = {}
    exec(compile(TEN_LINES, "README.md", "exec"), names)
    lines = capsys.readouterr().out.splitlines()
    assert [int(line.split()[0]) for line in lines] == list(range(11))
    assert all(0 <= float(line.split()[1]) <= 1 for line in lines), "judged on public rows"
    assert 7.9 < float(lines[-1].split()[2]) <= 8
    assert names["record"].ledger.mode == "release"
    base = names["task"].model
    loaded = PeftModel.from_pretrained(adapters.structure_copy(base), "adapter").eval()
    x = names["task"].test[0]
    torch.testing.assert_close(loaded(**x).logits, fl.predict(names["task"], names["record"], x), rtol=1e-4, atol=1e-5)


def test_sentences_stand_in_the_readme():
    assert f"```python\n{SENTENCES}```\n" in README


@pytest.mark.slow
def test_sentences_run_as_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    names = {"B": draw.normal(size=(8, 4)), "A": draw.normal(size=(4, 6)), "std_B": 0.1, "std_A": 0.2}
    sentences = SENTENCES.replace("seeds=range(3)", "seeds=range(1)")  # else as they are: the same again twice
    assert sentences != SENTENCES
    exec(compile(sentences, "README.md", "exec"), names)
    lines = capsys.readouterr().out.splitlines()
    assert [int(line.split()[0]) for line in lines[:21]] == list(range(21))
    index, accuracy, epsilon, deviation = map(float, lines[20].split())
    assert index == 20
    assert accuracy > float(lines[0].split()[1]), "better than before training"
    assert 7.9 < epsilon <= 8
    assert deviation < 1e-6, "RoLoRA's mean is exact"
    assert set(names["frame"]["method"]) == {"fedlora", "ffa-lora", "rolora"}
    assert (tmp_path / "out" / "adapter_config.json").exists()


def test_methods_table_is_the_package_s():
    assert f"<!-- methods -->\n{SCRIPT['methods_table']()}\n<!-- /methods -->" in README


def test_speed_is_what_was_measured():
    part = SCRIPT["speed_part"]()
    assert f"<!-- speed -->\n{part}\n<!-- /speed -->" in README
    assert "digits 10 x 16" in part and "10,000 clients" in part


def test_results_table_and_figure_belong_together():
    table: Any = pd.read_csv(ROOT / "docs" / "figures" / "digits.csv")
    table.attrs["measure"] = "accuracy"
    assert f"<!-- results -->\n{SCRIPT['results_table'](table)}\n<!-- /results -->" in README
    assert f"reaches {table['before'].mean():.3f}." in README
    assert list(table["method"]) == ["fedlora", "ffa-lora", "rolora", "deer", "la-lora", "fedlpp"]
    assert (table["score"] > table["before"]).all(), "every method beats the model before training"
    assert (table["epsilon"] <= 8).all()
    assert 20_000 < (ROOT / "docs" / "figures" / "digits.png").stat().st_size < 500_000


def test_commands_exist():
    from fedlora_lab.cli import commands

    shell = [
        line.split("#")[0].strip()
        for block in re.findall(r"```sh\n(.*?)```", README, re.S)
        for line in block.splitlines()
    ]
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    for line in filter(None, shell):
        program, *arguments = shlex.split(line)
        if program == "make":
            assert arguments[0] in targets
            continue
        assert program == "fedlora-lab"
        command = commands.commands[arguments[0]]
        if "--help" not in arguments:
            command.make_context(arguments[0], arguments[1:])  # parses the options and runs nothing


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    for target in re.findall(r"`((?:fedlora_lab|tests|scripts|docs|notebooks|benchmarks)/[\w./]*)`", README):
        assert (ROOT / target).exists(), target


def test_five_minutes():
    prose = re.sub(r"```.*?```|\|.*?\|\n|<!--.*?-->", "", README, flags=re.S)
    assert len(prose.split()) <= 5 * 220
