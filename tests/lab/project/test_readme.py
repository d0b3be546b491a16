"""README.md and docs/first_steps.md: their code runs, what they show is the package's."""

import re
import runpy
import shlex
from typing import Any

import click
import pytest
from calls import Options
from places import ROOT

import fedlora_lab as fl
from fedlora_lab.cli import commands

README = (ROOT / "README.md").read_text(encoding="utf-8")
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "readme.py"))

STEPS = (ROOT / "docs" / "first_steps.md").read_text(encoding="utf-8")

EIGHT_LINES, OWN_MODEL = re.findall(r"```python\n(.*?)```", README, re.S)
SENTENCES = re.findall(r"```python\n(.*?)```", STEPS, re.S)


@pytest.mark.further
def test_the_eight_lines_print_what_stands_below_them(capsys):
    """Four kinds of arithmetic print the same digits. The ranges are wide, since a fifth may not:
    FedLoRA at the large rate ends anywhere below the untrained model."""
    assert len([line for line in EIGHT_LINES.splitlines() if line.strip()]) == 8
    (shown,) = re.findall(r"```text\n(.*?)```", README, re.S)
    exec(compile(EIGHT_LINES, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    pattern = r"^rate (\S+)  (\S+) +accuracy (\S+)$"
    runs = [re.findall(pattern, text, re.M) for text in (shown, printed)]
    assert [run[:2] for run in runs[0]] == [run[:2] for run in runs[1]] and len(runs[0]) == 4
    for _, method, accuracy in (run for text in runs for run in text if run[0] == "0.4"):
        assert 0.78 < float(accuracy) < 0.92, method
    for text in runs:
        broken, unbroken = (float(accuracy) for rate, _, accuracy in text if rate == "1.6")
        assert broken < 0.6 < 0.66 < 0.72 < unbroken


def test_the_second_example_is_that_of_the_script():
    """Which test_finetune.py runs: the same calls, with the same names of arguments."""
    script = (ROOT / "examples" / "finetune.py").read_text("utf-8")
    assert len(script.splitlines()) <= 70
    for called in ("fl.tasks.from_trainer", "fl.finetune(task, epsilon=8)", "merged=True"):
        assert called in OWN_MODEL and called in script, called
    for name in re.findall(r"(\w+)=", OWN_MODEL.split(")")[0]):
        assert f"{name}=" in script, name


@pytest.mark.slow
def test_the_example_runs_as_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: Options = {}
    # One seed in place of three, and fewer rounds: the others run the same code again.
    sentences = "".join(SENTENCES).replace("range(3)", "range(1)").replace("rounds=20", "rounds=3")
    exec(compile(sentences, "first_steps.md", "exec"), names)
    told = re.findall(r"^round (\d): (.+), ε (.+)$", capsys.readouterr().out, re.M)
    assert [index for index, *_ in told] == ["0", "1", "2", "3"]
    assert told[3][1] > told[0][1], "better than before training"
    assert 7.9 < float(told[3][2]) <= 8
    assert names["last"].deviation < 1e-6, "RoLoRA's mean is exact"
    assert set(names["frame"]["method"]) == {"fedlora", "ffa-lora", "rolora"}
    assert (tmp_path / "out" / "adapter_config.json").exists()


def test_every_question_of_the_course_is_linked():
    assert f"<!-- course -->\n{SCRIPT['course_table']()}\n<!-- /course -->" in README


def test_the_six_methods_have_their_names():
    table: Any = fl.methods.table()
    rows = re.findall(r"^\| (\S+) `(\S+)` \| .+ \|$", STEPS, re.M)
    assert [(table.loc[slug, "name"], slug) for _, slug in rows] == rows and len(rows) == 6


def test_commands_exist_and_the_version_is_stated():
    assert f"version {fl.__version__}" in README
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    shell = "\n".join(re.findall(r"```sh\n(.*?)```", README + STEPS, re.S)).splitlines()
    for line in shell:
        program, *arguments = shlex.split(line, comments=True) or [""]
        if program == "make":
            assert arguments[0] in targets
        elif program == "fedlora-lab":
            command: Any = commands.get_command(click.Context(commands), arguments[0])
            if "--help" not in arguments:
                command.make_context(arguments[0], arguments[1:])  # parses, and runs nothing
        elif program == "python":
            # From a checkout, of which test_packaging.py builds and installs the wheel.
            assert arguments == ["-m", "pip", "install", "."]
        else:
            assert program == "", line
