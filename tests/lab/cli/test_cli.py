"""The command line: what it trains and keeps, and that a mistake is one line."""

import re
import runpy
import subprocess
import sys

import pandas as pd
import pytest
from commands import SMALL, call

import fedlora_lab as fl
from fedlora_lab import cli
from fedlora_lab.measures.runs import COLUMNS


def compare(*words, out):
    """The status of a small comparison on regression; of an option given twice the last counts."""
    return call("compare", "regression", *SMALL, *words, "--out", out)


def read(folder):
    """The frame of a comparison, bit by bit."""
    return pd.read_csv(folder / "frame.csv", converters={"value": lambda x: float(x or "nan")})


@pytest.mark.slow
def test_the_command_compares_as_the_library_does(tmp_path, capsys):
    """To the last bit; called again it trains nothing, and says against whom ε holds."""
    words = "--methods=rolora,fedlora", "--seeds=2", "--lr=0.1,0.2", "--jobs=1"
    assert compare(*words, out=tmp_path) == 0
    frame = read(tmp_path)
    shown = capsys.readouterr().out
    assert "ε: against whoever sees the uploads" in shown.splitlines()
    assert re.search(r"^RoLoRA +0.2 +2 ", shown, re.M)
    task, plan = fl.tasks.regression(clients=3), fl.Plan(rounds=2, local_steps=1, batch=8)
    privacy = fl.Privacy(delta=1e-4).calibrate(epsilon=8, task=task, plan=plan)
    options = {"seeds": [0, 1], "lr": [0.1, 0.2], "progress": False}
    alone = fl.compare(task, ["rolora", "fedlora"], privacy, plan, **options)
    values = [x[x["measure"] != "seconds"]["value"].to_numpy() for x in (frame, alone)]
    assert values[0].tolist() == values[1].tolist() and list(frame) == [*COLUMNS, "lr"]
    assert compare(*words, out=tmp_path) == 0
    pd.testing.assert_frame_equal(read(tmp_path), frame, check_exact=True)


MISTAKES = [
    ("compare nothing", "task='nothing': expected one of"),
    ("compare regression --methods rolara", "; did you mean 'rolora'?"),
    ("compare regression --dirichlet 1", "--dirichlet=1.0: expected not given, since regression"),
    ("comparee digits", "No such command 'comparee'"),
    ("compare digits --seeds 3-5", "'3-5' is not a valid integer"),
    ("compare digits --lr abc", "lr='abc': expected numbers joined by commas"),
]


@pytest.mark.parametrize(("command", "words"), MISTAKES)
def test_mistakes_are_one_line(command, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call(*command.split()) == 2
    _, error = capsys.readouterr()
    assert error.startswith("fedlora-lab: ") and error.count("\n") == 1, error
    assert words in error
    assert list(tmp_path.iterdir()) == [], "a mistake leaves nothing behind"


HEAVY = {"torch", "numpy", "pandas", "matplotlib", "peft", "transformers"}
LIGHT = ["--help", "compare --help", "compar", "compare digits --seeds none"]


@pytest.mark.slow
def test_nothing_heavy_is_loaded_before_a_command_is_read():
    """Not for help, nor for a mistyped command or option."""
    program = (
        "import sys\nfrom fedlora_lab.cli import main\n"
        "for line in sys.argv[1:]:\n"
        "    try:\n        main(line.split())\n    except SystemExit:\n        pass\n"
        "print(sorted(sys.modules.keys() & set(sys.stdin.read().split())))"
    )
    command = [sys.executable, "-c", program, *LIGHT]
    done = subprocess.run(command, input=" ".join(HEAVY), capture_output=True, text=True)
    assert "compare" in done.stdout and done.stdout.splitlines()[-1] == "[]", done.stderr


def test_doctor_fails_on_what_is_needed_only(monkeypatch, capsys):
    assert call("doctor") == 0
    shown = capsys.readouterr().out
    assert re.search(r"ok +torch +2\.", shown) and re.search(r"ok +digits +ready", shown)
    for needed, status in (("numpy<1; extra == 'hub'", 0), ("no-such-package-here>=1", 1)):
        monkeypatch.setattr(cli, "requires", lambda name, needed=needed: [needed])
        assert call("doctor") == status
        shown = capsys.readouterr().out
        assert re.search(r"--  (numpy \[hub\] .*needs <1|no-such-package-here +missing)", shown)
        assert re.search(rf"pip install .*{'.hub' if status == 0 else ''}", shown)


def test_a_learning_rate_that_was_not_asked_for_is_suggested_and_said(capsys):
    task, privacy, plan, lora = cli.build_parts("regression", {"epsilon": 2.0})
    plans = cli.suggested_plans(["fedlora"], task, privacy, plan, lora)
    suggested = fl.suggest_lr(task, "fedlora", privacy, plan, lora)
    assert plans["fedlora"].lr == float(f"{suggested.lr:.2g}") != plan.lr
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == f"fedlora: learning rate {plans['fedlora'].lr:g}, {suggested.origin}"


ONE = "--methods=la-lora", "--seeds=1"


@pytest.mark.filterwarnings("default")
def test_a_warning_is_one_line(tmp_path, capsys):
    assert compare(*ONE, out=tmp_path) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [x for x in lines if x.startswith("warning: local_steps=1: la-lora never moves A")]


@pytest.mark.slow
def test_a_new_method_is_a_row_a_test_and_a_comparison_that_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call("new", "my-method") == 0
    assert "compare_my_method.py" in capsys.readouterr().out
    folder = tmp_path / "my-method"
    # Fewer seeds and rounds: the others run the same code again.
    file = folder / "compare_my_method.py"
    short = file.read_text().replace("rounds=5", "rounds=1").replace("range(4)", "range(2)")
    file.write_text(short.replace("evaluate_every=5", "evaluate_every=1"))
    monkeypatch.syspath_prepend(folder)
    tests = runpy.run_path(str(folder / "test_my_method.py"))
    [test] = [tests[name] for name in tests if name.startswith("test_")]
    test()
    runpy.run_path(str(file), run_name="__main__")
    assert "my-method" in capsys.readouterr().out
    assert call("new", "my-method") == 2, "it is there"
    assert call("new", "3 methods") == 2
