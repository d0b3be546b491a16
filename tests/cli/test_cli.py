"""The command line: what it writes, what it keeps, and that a mistake is one line."""

import json
import re
import shutil
import subprocess
import sys
from typing import Any

import pytest
from commands import SMALL, call

import fedlora_lab as fl
from fedlora_lab._utils.files import write_atomically
from fedlora_lab._utils.statistics import COLUMNS
from fedlora_lab.cli import doctor, options as read
from fedlora_lab.cli.training import learning_rates
from fedlora_lab.federated.compare import BASELINES
from fedlora_lab.recipes.tuned_rates import tuned_rate
from fedlora_lab.report.run_folder import Folder, read_frame

ONE = ["--methods=rolora", "--seeds=1"]


def compare(*words, out):
    """The status of a small comparison on regression; of an option given twice the last counts."""
    return call("compare", "regression", *SMALL, *words, "--out", out)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished small comparison; tests read it and leave it as it is."""
    out = tmp_path_factory.mktemp("runs") / "regression"
    assert compare("--methods=rolora,non-private", "--seeds=2", out=out) == 0
    return out


@pytest.fixture
def copied(done, tmp_path):
    """A copy of it, to go on with."""
    shutil.copytree(done, tmp_path / "runs")
    return tmp_path / "runs"


def same(one, two):
    """Equal to the last bit, but for the time it took."""
    parts = [frame[frame["measure"] != "seconds"].reset_index(drop=True) for frame in (one, two)]
    return parts[0].drop(columns="seed").equals(parts[1].drop(columns="seed"))


def settings_of(out) -> dict[str, Any]:
    return json.loads((out / "settings.json").read_text())


def rows_of_cells(out):
    return {path.parent.name: path.read_bytes() for path in out.glob("checkpoints/*/rounds.csv")}


@pytest.mark.slow
def test_a_run_folder_holds_what_reproduces_it(done):
    frame = read_frame(done / "frame.csv")
    assert list(frame.columns) == [*COLUMNS, "lr"] and set(frame["lr"]) == {0.1}
    assert set(frame["method"]) == {"rolora", "non-private"}
    assert set(frame["seed"]) == {0, 1} and set(frame["round"]) == {0, 1, 2}
    rows = frame.query("method == 'rolora' and seed == 1")
    spent = rows.query("measure == 'epsilon'")["value"].max()
    ledger = fl.Ledger.load(done / "checkpoints" / "rolora-1" / "ledger.json")
    assert ledger.epsilon() == spent
    settings = settings_of(done)
    assert settings["commands"][0].startswith("fedlora-lab compare regression --clients=3")
    task = fl.tasks.regression(**settings["task"]["info"]["arguments"])
    with Folder(done) as folder:
        assert folder.ledgers()["non-private-0"] is None
        kept = settings["task"]["fingerprint"]
        assert folder.keyed_fingerprint(task.fingerprint) == kept != task.fingerprint
    privacy = fl.Privacy(**settings["privacy"])
    plan, lora = fl.Plan(**settings["plans"]["rolora"]), fl.Lora(**settings["lora"])
    assert same(
        fl.to_frame(fl.run(task, "rolora", privacy, plan, lora=lora, seed=1)), rows[COLUMNS]
    )


@pytest.mark.slow
def test_finished_cells_are_kept_and_new_ones_join(copied, capsys):
    """And noise that differs in its last bits goes on with the first. Lines and page say against
    whom epsilon holds.
    """
    settings = settings_of(copied)
    for fields in (settings["privacy"], settings["privacies"]["rolora"]):
        fields["noise_multiplier"] *= 1 + 1e-12
    write_atomically(copied / "settings.json", json.dumps(settings))
    before = rows_of_cells(copied)
    assert compare("--methods=rolora,ffa-lora", "--seeds=3", out=copied) == 0
    shown = capsys.readouterr().out
    assert "2 of 6 runs are finished" in shown and "ffa-lora seed 1: " in shown
    seen = "against whoever sees the uploads"
    assert re.search(rf"^rolora seed 2: .*ε \d\.\d+ {seen}, ", shown, re.MULTILINE)
    assert f"ε: {seen}" in shown.splitlines()
    page = (copied / "report.html").read_text(encoding="utf-8")
    assert f"ε: {seen}, the largest over clients and seeds." in page
    after = rows_of_cells(copied)
    assert before.items() <= after.items() and len(after) == len(before) + 4
    assert len(settings_of(copied)["commands"]) == 2
    methods = set(read_frame(copied / "frame.csv")["method"])
    assert methods == {"rolora", "non-private", "ffa-lora"}
    assert settings_of(copied)["privacies"]["rolora"] == settings["privacies"]["rolora"]
    entry = fl.Ledger.load(copied / "checkpoints" / "rolora-2" / "ledger.json").releases[0]
    assert entry.noise_multiplier == settings["privacies"]["rolora"]["noise_multiplier"]


@pytest.mark.slow
def test_other_settings_are_refused_in_one_line(done, capsys):
    """What was changed is named, and not the noise that follows from it."""
    settings = settings_of(done)
    assert compare(*ONE, "--epsilon=5", out=done) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        "holds a run with other settings (privacy.target_epsilon is 8.0 there and 5.0 now)" in line
    )
    assert "expected the same settings, another folder as out (--out), or fresh" in line
    assert settings_of(done) == settings


@pytest.mark.slow
def test_only_what_is_its_own_is_touched(copied, tmp_path, capsys):
    """A fresh start clears a run folder; any other folder is refused."""
    (copied / "notes.txt").write_text("mine")
    assert compare(*ONE, "--fresh", "--rounds=1", out=copied) == 0
    assert (copied / "notes.txt").read_text() == "mine"
    assert set(read_frame(copied / "frame.csv")["round"]) == {0, 1}
    (tmp_path / "thesis.tex").write_text("mine")
    words = "expected an empty or new folder", "expected a folder, not a file"
    for out, expected in zip((tmp_path, tmp_path / "thesis.tex"), words):
        assert compare(*ONE, "--fresh", out=out) == 2
        assert expected in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").read_text() == "mine" and len([*tmp_path.iterdir()]) == 2


MISTAKES = [
    ("compare nothing", "task='nothing': expected one of"),
    ("compare regression --methods rolara", "; did you mean 'rolora'?"),
    ("compare regression --methods fedsa,fedsa", "methods='fedsa,fedsa': expected every name once"),
    ("compare regression --epsilon -1", "epsilon=-1.0: expected a number in (0, 1e+09]"),
    ("compare regression --dirichlet 1", "--dirichlet=1.0: expected not given, since regression"),
    (
        "compare digits --alpha 16",
        "--alpha='16': expected --lora-alpha for the adapter's α, or --d",
    ),
    ("run digits rolora --alpha 1", "--alpha='1': expected --lora-alpha for the adapter's α, or -"),
    ("compare regression --optimizer adamw", "lr=None: expected a number with --optimizer adamw"),
    ("compare regression --trust central", "trust='central': expected 'local' for unit='example'"),
    ("run regression rolora --seed ٣", "seed='٣': expected a whole number, or none"),
    ("report nowhere", "folder='nowhere': expected a run folder"),
    ("comparee digits", "command='comparee': expected one of 'compare', 'run', 'fine"),
    ("compare digits --seeds 3-5", "seeds='3-5': expected a whole number"),
    ("compare digits --seeds 0", "seeds=0: expected a whole number in [1, 1000]"),
    ("compare digits --lr abc", "lr='abc': expected a number"),
    ("compare digits --lr=-1", "lr=-1.0: expected a number in [0, 1e+09]"),
    ("submit rolorra", "row='rolorra': expected one of"),
    ("submit mine.py:Row", "row='mine.py:Row': expected a file mine.py with the row"),
    # In the words of `fl.Privacy`.
    ("compare digits --delta 1", "delta=1.0: expected a number in [1e-12, 1)"),
    ("audit nowhere --canaries 1", "canaries=1: expected a whole number >= 2"),
    ("run regression rolora --epsilon none --unit client", "epsilon=None: expected a number where"),
    (
        "finetune . --model here --epsilon none --unit client --max-epsilon 2",
        "where max_epsilon, unit is",
    ),
    ("finetune . --model here --prompt text", "prompt, answer={'prompt'}: expected both of them"),
    # Its adapter had a B of zeros, and was stated as trained.
    ("finetune . --model here --method fedsa-lora", "method='fedsa-lora': expected one that sends"),
    ("finetune nowhere.csv --model here --text text", "data='nowhere.csv'"),
    ("finetune nowhere.csv --model here --text text --labels a,,b", "labels='a,,b': expected one"),
    (
        "run regression rolora --max-epsilon 1e-6 --out a/b",
        "max_epsilon=1e-06: expected room for one round",
    ),
    ("finetune x.csv --model here --text text --method local", "method='local': expected one of"),
    ("predict nowhere pyproject.toml --out .", "--out='.': expected a new file"),
    ("run digits rolora --out ~nobody-of-this-name/x", "a path begins with ~name"),
]


@pytest.mark.parametrize(("command", "words"), MISTAKES)
def test_mistakes_are_one_line(command, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call(*command.split()) == 2
    shown, error = capsys.readouterr()
    assert error.startswith("fedlora-lab: ") and error.count("\n") == 1, error
    assert words in error
    assert not shown or not words.startswith("method="), "nothing is looked up for a wrong name"
    assert list(tmp_path.iterdir()) == [], "a mistake leaves nothing behind"


def test_a_file_without_the_row_is_told_of_the_argument_that_names_it(
    tmp_path, monkeypatch, capsys
):
    """Fault: `submit`, which has no --methods, said that --methods was wrong."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("")
    for command, argument in (("submit", "row"), ("compare regression --methods", "--methods")):
        assert call(*command.split(), "mine.py:Nope") == 2
        line = f"fedlora-lab: {argument}='mine.py:Nope': expected a row of the file: it has none\n"
        assert capsys.readouterr().err == line


@pytest.mark.slow
def test_a_folder_of_several_runs_is_no_run_folder(done, tmp_path, capsys):
    """Fault: the line spoke of a frame with rows of the same method, seed and round."""
    for name in "ab":
        shutil.copytree(done, tmp_path / name)
    assert call("report", tmp_path) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fedlora-lab: folder=") and line.endswith(
        "expected a run folder, as compare and run write it; it holds several: a, b"
    )
    assert not (tmp_path / "report.html").exists()


HEAVY = {"torch", "numpy", "pandas", "matplotlib", "peft", "transformers"}
LIGHT = [
    "--help",
    "compare --help",
    "review --help",
    "finetune --help",
    "compar",
    "run digits rolorra",
]


@pytest.mark.slow
def test_nothing_heavy_is_loaded_before_a_command_is_read():
    """Not for help, nor for a mistyped command, option or value."""
    program = (
        "import sys\nfrom fedlora_lab.cli import main, pytest_plugin\n"
        "for line in sys.argv[1:]:\n"
        "    try:\n        main(line.split())\n    except SystemExit:\n        pass\n"
        "print(sorted(sys.modules.keys() & set(sys.stdin.read().split())))"
    )
    command = [sys.executable, "-c", program, *LIGHT]
    done = subprocess.run(command, input=" ".join(HEAVY), capture_output=True, text=True)
    assert "compare" in done.stdout and done.stdout.splitlines()[-1] == "[]", done.stderr


def test_the_names_of_the_command_line_are_those_of_the_tables():
    """It has a copy of them, since the tables load PyTorch."""
    assert set(read.LOOKS) == {*fl.methods.ALL, *BASELINES}
    assert set(read.BASELINES) == set(BASELINES)
    assert set(read.TASKS) == set(fl.tasks.TASKS)


def test_doctor_fails_on_what_is_needed_only(monkeypatch, capsys):
    assert call("doctor") == 0
    shown = capsys.readouterr().out
    assert re.search(r"ok +torch +2\.", shown) and re.search(r"ok +digits +ready", shown)
    for needed, status in (("numpy<1; extra == 'hub'", 0), ("no-such-package-here>=1", 1)):
        monkeypatch.setattr(doctor, "requires", lambda name, needed=needed: [needed])
        assert call("doctor") == status
        shown = capsys.readouterr().out
        assert re.search(r"--  (numpy \[hub\] .*needs <1|no-such-package-here +missing)", shown)
        assert re.search(rf"pip install .*{'.hub' if status == 0 else ''}", shown)


def test_a_learning_rate_is_asked_for_or_suggested(capsys):
    """Another ε or unit takes another rate, and says which when it was tuned for something else."""
    rate = tuned_rate("digits", "deer", 2.0, "client")
    asked: Any = {"epsilon": 2.0, "unit": "client"}
    assert learning_rates(asked, "digits", ["deer"]) == {"deer": rate}
    assert capsys.readouterr().out.startswith(f"deer: learning rate {rate:g}, tuned for DEeR at")
    learning_rates({"batch": 3}, "digits", ["fedlora"])
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("fedlora: learning rate") and "ε = 8" in shown[0]
    assert re.search(r"tuned for other work \(batch=3, not \d+\): --lr tries others", shown[1])


@pytest.mark.slow
def test_a_row_of_a_file_is_compared_at_several_rates(tmp_path, capsys, monkeypatch):
    """In workers, which cannot import the file. A row that is not there is named with those that
    are, before anything is trained."""
    monkeypatch.chdir(tmp_path)
    text = "from fedlora_lab import methods\nmine = methods.FFA.replace(name='Own', note='mine')\n"
    (tmp_path / "rows.py").write_text(text + "mine = mine.replace(filter=lambda x, *_: 0 * x)\n")
    rates = ["--lr=0.1,0.2", "--seeds=1", *(x for x in SMALL if not x.startswith("--lr"))]
    names = "--methods=rows.py:mine,fedlora"
    assert call("compare", "regression", names, *rates, "--jobs=2", "--out=runs") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("4 runs of own, fedlora, 2 at once; each is kept in runs\n")
    assert re.search(r"^Own +0.2 +1 ", shown, re.M) and "own lr=0.1 seed 0: loss" in shown
    frame = read_frame(tmp_path / "runs" / "frame.csv")
    assert list(frame.columns) == [*COLUMNS, "lr"] and set(frame["lr"]) == {0.1, 0.2}
    ends = frame.query("method == 'own' and measure == 'loss'")["value"]
    assert ends.nunique() == 1, "its filter leaves the model as it was"
    for bad, line in (("rows.py:other", "a row of the file: mine"), ("no.py:x", "a file no.py")):
        assert call("compare", "regression", f"--methods={bad}", *rates, "--out=runs") == 2
        assert line in capsys.readouterr().err


@pytest.mark.filterwarnings("default")
def test_a_warning_is_one_line(tmp_path, capsys):
    assert call("run", "regression", "la-lora", *SMALL, "--out", tmp_path) == 0
    assert capsys.readouterr().err.startswith("warning: local_steps=1: la-lora never moves A")


TOO_FAST = ["--lr=1e9", "--local-steps=8", "--epsilon=none", "--rounds=4", "--clients=3"]


def test_a_rule_that_cannot_be_applied_is_one_line(tmp_path, capsys):
    """Values grew until they were not finite, and the server decomposes them."""
    assert call("run", "regression", "flexlora", *TOO_FAST, "--out", tmp_path) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fedlora-lab: lr=1000000000.0: expected a smaller one; ")
    assert re.search(r"flexlora cannot do the server's part of round \d \(", line)
