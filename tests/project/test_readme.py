"""README.md: its code runs, its tables are the package's, its commands exist."""

import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import click
import pandas as pd
import pytest
import toy_hubs
from calls import Options
from places import ROOT

import fedlora_lab as fl
from fedlora_lab.cli.commands import commands

README = (ROOT / "README.md").read_text(encoding="utf-8")
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "readme.py"))

FIRST, MORE, TEN_LINES = re.findall(r"```python\n(.*?)```", README, re.S)


# PEFT asks Transformers for it.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
def test_ten_lines_on_your_own_model_run_as_written(tmp_path, monkeypatch, capsys):
    """With a toy BERT in the place of the reader's model."""
    assert len(TEN_LINES.splitlines()) <= 12 and "fl.tasks.hub(" in TEN_LINES
    monkeypatch.chdir(tmp_path)
    frame = toy_hubs.texts(160).rename(columns={"site": "hospital"})
    frame[:120].to_csv("reviews.csv", index=False)
    frame[120:].to_csv("public.csv", index=False)
    fl.tasks.tiny("bert", "my-model", frame["text"])
    names: Options = {}
    exec(compile(TEN_LINES, "README.md", "exec"), names)
    lines = capsys.readouterr().out.splitlines()
    index, accuracy, epsilon = map(float, lines[-1].split())
    assert len(lines) == 11 and index == 10
    assert 0 <= accuracy <= 1, "judged on public rows"
    assert 7.9 < epsilon <= 8
    assert names["record"].ledger.mode == "release"
    assert Path("adapter/adapter_config.json").exists()


@pytest.mark.slow
def test_the_example_runs_as_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: Options = {}
    # One seed in place of three, and fewer rounds: the others run the same code again.
    sentences = (FIRST + MORE).replace("range(3)", "range(1)").replace("rounds=20", "rounds=3")
    exec(compile(sentences, "README.md", "exec"), names)
    told = re.findall(r"^round (\d): accuracy (.+), ε (.+)$", capsys.readouterr().out, re.M)
    assert [index for index, *_ in told] == ["0", "1", "2", "3"]
    assert told[3][1] > told[0][1], "better than before training"
    assert 7.9 < float(told[3][2]) <= 8
    assert names["record"].deviation < 1e-6, "RoLoRA's mean is exact"
    assert set(names["frame"]["method"]) == {"fedlora", "ffa-lora", "rolora"}
    assert (tmp_path / "out" / "adapter_config.json").exists()


def test_methods_table_is_the_package_s():
    assert f"<!-- methods -->\n{SCRIPT['methods_table']()}\n<!-- /methods -->" in README


def test_the_results_are_those_of_the_committed_table():
    table: Any = pd.read_csv(ROOT / "docs" / "figures" / "digits.csv")
    table.attrs["measure"] = "accuracy"
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert f"<!-- results -->\n{SCRIPT['results_table'](table)}\n<!-- /results -->" in page
    assert f"reaches {table['before'].mean():.3f}." in " ".join(page.split())
    assert (table["score"] > table["before"]).all() and (table["epsilon"] <= 8).all()


def test_commands_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    shell = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.S)).splitlines()
    for line in shell:
        program, *arguments = shlex.split(line, comments=True) or [""]
        if program == "make":
            assert arguments[0] in targets
        elif program == "fedlora-lab":
            command: Any = commands.get_command(click.Context(commands), arguments[0])
            if "--help" not in arguments:
                command.make_context(arguments[0], arguments[1:])  # parses, and runs nothing
        else:
            assert program == "", line
