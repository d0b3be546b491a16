"""The command line: what it writes, what it keeps, and that a mistake is one line."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fedlora_lab import __version__
from fedlora_lab.cli import main
from fedlora_lab.cli import options as read
from fedlora_lab.cli.runs import lines
from fedlora_lab.files import write_atomically
from fedlora_lab.folder import Folder, first_difference, read_frame
from fedlora_lab.summary import size, summary, t_interval
from fedlora_lab.summary import words as words_of

SMALL = ["--clients", "3", "--rounds", "2", "--local-steps", "1", "--batch", "8", "--delta", "1e-4", "--lr", "0.1"]


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code if isinstance(stop.value.code, int) else 0


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished small comparison; tests read it and leave it as it is."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    assert (
        call("compare", "digits", "--methods", "fedlora,rolora,non-private", "--seeds", "2", *SMALL, "--out", out) == 0
    )
    return out


def test_a_run_folder_holds_what_it_promises(done):
    frame = read_frame(done / "frame.csv")
    assert list(frame.columns) == ["task", "method", "seed", "round", "layer", "measure", "value"]
    assert set(frame["method"]) == {"fedlora", "rolora", "non-private"}
    assert set(frame["seed"]) == {0, 1} and set(frame["round"]) == {0, 1, 2}
    assert (done / "report.html").stat().st_size > 10_000
    assert {path.name for path in (done / "checkpoints").iterdir()} == {
        f"{slug}-{seed}" for slug in ("fedlora", "rolora", "non-private") for seed in (0, 1)
    }
    assert not [path for path in done.rglob("*") if path.name.startswith(".") and path.name != ".lock"]


def test_settings_reproduce_the_run(done, tmp_path):
    settings = json.loads((done / "settings.json").read_text())
    assert settings["commands"][0].startswith(
        "fedlora-lab compare digits --methods fedlora,rolora,non-private --seeds 2"
    )
    assert settings["versions"]["fedlora-lab"] == __version__
    assert settings["privacy"]["target"] == 8 and len(settings["privacy"]["noise_multiplier"]) == 3
    import fedlora_lab as fl

    task = fl.tasks.digits(
        **{k: v for k, v in settings["task"]["info"]["arguments"].items() if k in ("clients", "alpha", "seed")}
    )
    with Folder(done) as folder:
        assert folder.keyed(task.fingerprint) == settings["task"]["fingerprint"] != task.fingerprint
    privacy = fl.Privacy(**settings["privacy"])
    plan, lora = fl.Plan(**settings["plans"]["rolora"]), fl.Lora(**settings["lora"])
    again = fl.to_frame(fl.run(task, "rolora", privacy, plan, lora=lora, seed=1))
    kept = read_frame(done / "frame.csv").query("method == 'rolora' and seed == 1")
    assert same(again, kept)


def same(one: Any, two: Any) -> bool:
    """Equal to the last bit, but for the time it took."""
    parts = [frame[frame["measure"] != "seconds"].reset_index(drop=True) for frame in (one, two)]
    return bool(np.array_equal(parts[0]["value"], parts[1]["value"], equal_nan=True)) and all(
        parts[0][column].astype(str).equals(parts[1][column].astype(str))
        for column in ("method", "round", "layer", "measure")
    )


def test_ledgers_stand_in_the_folder(done):
    from fedlora_lab.ledger import Ledger

    ledgers = json.loads((done / "ledger.json").read_text())
    assert ledgers["non-private-0"] is None
    ledger = Ledger.from_json(json.dumps(ledgers["rolora-1"], sort_keys=True))
    frame = read_frame(done / "frame.csv")
    spent = frame.query("method == 'rolora' and seed == 1 and measure == 'epsilon'")["value"].max()
    assert ledger.epsilon() == spent <= 8


def test_finished_cells_are_kept_and_new_ones_join(done, tmp_path, capsys):
    import shutil

    out = tmp_path / "digits"
    shutil.copytree(done, out)
    before = {path.name: path.read_bytes() for path in (out / "cells").iterdir()}
    assert call("compare", "digits", "--methods", "rolora,ffa-lora", "--seeds", "2", *SMALL, "--out", out) == 0
    shown = capsys.readouterr().out
    assert "2 of 4 runs are finished" in shown and "ffa-lora, seed 1" in shown
    after = {path.name: path.read_bytes() for path in (out / "cells").iterdir()}
    assert before.items() <= after.items() and len(after) == len(before) + 4
    assert len(json.loads((out / "settings.json").read_text())["commands"]) == 2
    assert set(read_frame(out / "frame.csv")["method"]) == {"fedlora", "rolora", "non-private", "ffa-lora"}


def test_other_settings_are_refused_in_one_line(done, capsys):
    settings = (done / "settings.json").read_bytes()
    changed = [*SMALL[:2], "--rounds", "3", *SMALL[4:]]
    assert call("compare", "digits", "--methods", "rolora", "--seeds", "1", *changed, "--out", done) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "holds a run with other settings (privacy." in line and "--fresh" in line
    assert call("compare", "digits", "--methods", "rolora", "--seeds", "1", *SMALL[:-1], "0.2", "--out", done) == 2
    assert "plans.rolora.lr is 0.1 there and 0.2 now" in capsys.readouterr().err
    assert (done / "settings.json").read_bytes() == settings


def test_fresh_clears_only_what_is_its_own(tmp_path, capsys):
    out = tmp_path / "runs"
    command = ["compare", "digits", "--methods", "ffa-lora", "--seeds", "1", "--epsilon", "none"]
    assert call(*command, *SMALL, "--out", out) == 0
    (out / "notes.txt").write_text("mine")
    changed = [*SMALL[:2], "--rounds", "1", *SMALL[4:]]
    assert call(*command, *changed, "--out", out, "--fresh") == 0
    assert (out / "notes.txt").read_text() == "mine"
    assert set(read_frame(out / "frame.csv")["round"]) == {0, 1}


def test_a_folder_with_other_things_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("mine")
    assert call("compare", "digits", "--methods", "ffa-lora", *SMALL, "--out", tmp_path, "--fresh") == 2
    assert "expected an empty or new folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_two_processes_refuse_each_other(tmp_path, capsys):
    with Folder(tmp_path / "runs"):
        assert call("compare", "digits", "--methods", "ffa-lora", *SMALL, "--out", tmp_path / "runs") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "expected a folder that no other run is using" in error
    assert not (tmp_path / "runs" / "settings.json").exists()


def test_killed_run_is_taken_up(tmp_path, capsys):
    options = ["run", "digits", "rolora", "--clients", "3", "--rounds", "8", "--delta", "1e-4", "--lr", "0.1", "--out"]
    command = [sys.executable, "-c", "from fedlora_lab.cli import main; main()", *options]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert call(*options, str(whole)) == 0
    process = subprocess.Popen([*command, str(killed)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    state = killed / "checkpoints" / "rolora-0" / "round-000003.json"
    end = time.monotonic() + 600
    while not state.exists() and time.monotonic() < end:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert state.exists() and not (killed / "cells" / "rolora-0.csv").exists(), "killed before its end"
    capsys.readouterr()
    assert call(*options, str(killed)) == 0
    last = capsys.readouterr().out
    assert "round 0:" not in last and "round 8:" in last
    frames = [read_frame(path / "frame.csv") for path in (whole, killed)]
    assert same(*frames)
    assert (whole / "ledger.json").read_text() == (killed / "ledger.json").read_text()


def test_a_round_stored_but_not_shown_is_played_again(tmp_path):
    options = ["run", "digits", "ffa-lora", *SMALL, "--out", str(tmp_path / "runs")]
    assert call(*options) == 0
    whole = read_frame(tmp_path / "runs" / "frame.csv")
    # As if the process had died between the loop's checkpoint of round 2 and the rows of round 2.
    kept = tmp_path / "runs" / "checkpoints" / "ffa-lora-0" / "rounds.csv"
    rows = read_frame(kept)
    write_atomically(kept, rows[rows["round"] < 2].to_csv(index=False))
    for ending in ("csv", "json"):
        (tmp_path / "runs" / "cells" / f"ffa-lora-0.{ending}").unlink()
    assert call(*options) == 0
    assert same(whole, read_frame(tmp_path / "runs" / "frame.csv"))


def test_release_run_says_so(tmp_path, capsys):
    out = tmp_path / "runs"
    assert call("run", "digits", "rolora", "--seed", "none", *SMALL, "--out", out) == 0
    assert json.loads((out / "ledger.json").read_text())["rolora-release"]["content"]["reproducible"] is False
    assert "for study and not for release" not in (out / "report.html").read_text()


MISTAKES = [
    (["compare", "nothing"], "task='nothing': expected one of"),
    (["compare", "digits", "--methods", "nope"], "method='nope': expected one of"),
    (["run", "digits", "rolorra"], "method='rolorra': expected one of fedlora, ffa-lora"),
    (["flower", "regression", "--method", "nope"], "method='nope': expected one of fedlora, ffa-lora"),
    (["compare", "digits", "--methods", "rolora,rolora"], "methods='rolora,rolora': expected every name once"),
    (["compare", "digits", "--methods", ","], "methods=',': expected one or more names"),
    (["compare", "digits", "--epsilon", "-1"], "epsilon=-1.0: expected a number in (0, 1e+09]"),
    (["compare", "digits", "--epsilon", "much"], "epsilon='much': expected a number"),
    (["compare", "digits", "--epsilon", "nan"], "epsilon='nan': expected a number"),
    (["compare", "digits", "--delta", "2"], "delta=2.0: expected"),
    (["compare", "digits", "--delta", "0.5"], "delta=0.5: expected < 0.000796 = 1 / 1257 examples"),
    (["compare", "digits", "--unit", "person"], "unit='person': expected one of 'example', 'client'"),
    (["compare", "digits", "--clip", "-1"], "clip_norm=-1.0: expected a number >= 0"),
    (["compare", "digits", "--seeds", "0"], "seeds='0': expected between 1 and 1000"),
    (["compare", "digits", "--seeds", "1,1"], "seeds='1,1': expected every seed once"),
    (["compare", "digits", "--seeds", "-3"], "seeds='-3': expected how many, or whole numbers"),
    (["compare", "digits", "--rounds", "-1"], "rounds=-1: expected a whole number >= 0"),
    (["compare", "digits", "--rounds", "1.5"], "Invalid value for '--rounds'"),
    (["compare", "digits", "--local-steps", "0"], "local_steps=0: expected a whole number >= 1"),
    (["compare", "digits", "--batch", "0"], "batch=0: expected a whole number >= 1"),
    (["compare", "digits", "--batch", "few"], "batch='few': expected a whole number >= 1, or all"),
    (["compare", "digits", "--clients", "0"], "clients=0: expected a whole number"),
    (["compare", "digits", "--clients", "5000"], "clients=5000: expected"),
    (["compare", "digits", "--alpha", "0"], "alpha=0.0: expected a number > 0"),
    (["compare", "regression", "--alpha", "1"], "--alpha=1.0: expected not given, since regression has none"),
    (["compare", "digits", "--rank", "0"], "rank=0: expected a whole number >= 1"),
    (["compare", "digits", "--lora-alpha", "0"], "alpha=0.0: expected a number in (0,"),
    (["compare", "digits", "--lr", "fast"], "lr='fast': expected a number"),
    (["compare", "digits", "--lr", "-1"], "lr=-1.0: expected a number in [0,"),
    (["compare", "digits", "--lr", "A=1"], "lr['B']=None: expected a number"),
    (["compare", "digits", "--lr", "A=1,A=2"], "lr='A=1,A=2': expected A once"),
    (["compare", "digits", "--lr", "A=x,B=1"], "lr['A']='x': expected a number"),
    (["compare", "digits", "--lr", "nope=1"], "lr='nope=1': expected names among"),
    (["compare", "digits", "--participation", "0"], "participation=0.0: expected a number in (0, 1]"),
    (["compare", "digits", "--momentum", "1"], "momentum=1.0: expected a number in [0, 1]"),
    (["compare", "digits", "--trust", "me"], "trust='me': expected one of"),
    (["compare", "digits", "--trust", "central"], "trust='central': expected 'local' for unit='example'"),
    (["compare", "digits", "--accountant", "mine"], "accountant='mine': expected one of 'prv', 'rdp'"),
    (["compare", "digits", "--speed", "9"], "No such option"),
    (["run", "digits"], "Missing argument 'METHOD'"),
    (["run", "digits", "rolora", "--seed", "-1"], "seed='-1': expected a whole number >= 0, or none"),
    (["run", "digits", "rolora", "--seed", "²"], "seed='²': expected a whole number >= 0, or none"),
    (["flower", "regression", "--seed", "٣"], "seed='٣': expected a whole number >= 0, or none"),
    (["preset", "deer-kvasir", "--seed", "²"], "seed='²': expected a whole number >= 0, or none"),
    (["compare", "digits", "--seeds", "1,²"], "seeds='1,²': expected how many, or whole numbers"),
    (["compare", "digits", "--batch", "²"], "batch='²': expected a whole number >= 1, or all"),
    (["report", "nowhere"], "folder='nowhere': expected a run folder"),
    (["nothing"], "No such command 'nothing'"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"), MISTAKES, ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else ""
)
def test_mistakes_are_one_line(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call(*arguments) == 2
    shown, error = capsys.readouterr()
    assert error.startswith("fedlora-lab: ") and error.count("\n") == 1, error
    assert words in error
    assert not shown or not words.startswith("method="), "nothing is looked up for a name that is none"
    assert list(tmp_path.iterdir()) == [], "a mistake leaves nothing behind"


def test_out_may_not_be_a_file(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert call("compare", "digits", *SMALL, "--out", tmp_path / "file") == 2
    assert "expected a folder, not a file" in capsys.readouterr().err


def test_a_cut_frame_or_settings_is_one_line(done, tmp_path, capsys):
    import shutil

    for name in ("settings.json", "ledger.json", "frame.csv"):
        out = tmp_path / name
        shutil.copytree(done, out, ignore=shutil.ignore_patterns("checkpoints", "cells"))
        text = (out / name).read_text()
        (out / name).write_text(text[: 40 if name == "frame.csv" else len(text) // 2])
        assert call("report", out) == 2, name
        assert capsys.readouterr().err.count("\n") == 1


def test_no_command_shows_help(capsys):
    assert call() == 2
    assert "compare" in capsys.readouterr().out


def test_console_script_and_version():
    script = Path(sys.executable).parent / "fedlora-lab"
    shown = subprocess.run([script, "--version"], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == f"fedlora-lab, version {__version__}"


def test_help_loads_nothing_heavy():
    script = "import sys, fedlora_lab.cli; assert not {'torch', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_methods_names_every_row(capsys):
    from fedlora_lab.methods import ALL

    assert call("methods") == 0
    shown = capsys.readouterr().out
    for slug, row in ALL.items():
        line = next(line for line in shown.splitlines() if re.match(rf"{slug}\s", line))
        assert row.source in line
    assert max(map(len, shown.splitlines())) <= 120


def test_doctor_finds_this_machine_healthy(capsys):
    assert call("doctor") == 0
    shown = capsys.readouterr().out
    assert re.search(r"ok +torch +2\.", shown) and re.search(r"ok +digits +ready", shown)


@pytest.mark.parametrize(
    ("load", "cores", "hint"), [(0.1, 2, None), (1.4, 2, 1), (0.7, 1, None), (2.3, 8, 5), (9.0, 8, 1)]
)
def test_doctor_says_when_fewer_threads_may_be_quicker(monkeypatch, load, cores, hint):
    """Threads that share a core with another program hold up all others (benchmarks/results)."""
    from fedlora_lab import doctor

    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    line = next(found for found in doctor.machine() if found.name == "busy").found
    assert line.startswith(f"{load:.1f} of {cores} cores")
    assert re.findall(r"OMP_NUM_THREADS=(\d+)", line) == ([] if hint is None else [str(hint)])


def test_doctor_fails_on_what_is_needed_only():
    from fedlora_lab import doctor

    missing = doctor.Finding("core", "torch", "missing", False, True, "pip install torch")
    extra = doctor.Finding("hub", "datasets", "missing", False, False, "pip install datasets")
    assert not doctor.healthy([missing, extra]) and doctor.healthy([extra])
    assert "pip install torch" in doctor.text([missing, extra])


def test_doctor_sees_a_version_out_of_range():
    from packaging.requirements import Requirement

    from fedlora_lab import doctor

    found = doctor._requirement("core", Requirement("numpy<1"))
    assert not found.ok and found.needed and "out of range <1" in found.found
    assert not doctor._requirement("core", Requirement("no-such-package-here>=1")).ok


def test_learning_rates_in_all_their_forms():
    slugs = ["fedlora", "rolora"]
    assert read.learning_rates("0.5", "digits", slugs) == {"fedlora": 0.5, "rolora": 0.5}
    assert read.learning_rates("A=1,B=2", "digits", slugs) == dict.fromkeys(slugs, {"A": 1.0, "B": 2.0})
    from fedlora_lab import tuned

    assert read.learning_rates("rolora=7", "digits", slugs) == {"fedlora": tuned("digits", "fedlora"), "rolora": 7.0}
    assert read.learning_rates(None, "digits", slugs) == {slug: tuned("digits", slug) for slug in slugs}


def test_default_rates_are_those_of_the_budget_and_unit(tmp_path, capsys):
    """Another ε or unit takes another rate, and says which when it was tuned for something else."""
    from fedlora_lab import tuned

    told = []
    rates = read.learning_rates(None, "digits", ["rolora", "non-private"], 2.0, "example", told.append)
    assert rates == {"rolora": tuned("digits", "rolora", 2.0), "non-private": tuned("digits", "non-private")}
    assert told == [f"rolora: learning rate {rates['rolora']:g}, tuned for RoLoRA at ε = 3, the budget nearest to 2"]
    assert read.learning_rates(None, "digits", ["rolora"], None) == {"rolora": tuned("digits", "rolora", None)}
    assert read.learning_rates(None, "digits", ["deer"], 3.0, "client") == {
        "deer": tuned("digits", "deer", 3, "client")
    }
    small = ["--clients", "3", "--rounds", "1", "--local-steps", "1", "--batch", "4"]
    assert call("run", "digits", "rolora", "--epsilon", "0.5", *small, "--out", tmp_path / "low") == 0
    said = capsys.readouterr().out
    assert "rolora: learning rate 0.05, tuned for RoLoRA at ε = 1, the budget nearest to 0.5" in said
    assert json.loads((tmp_path / "low" / "settings.json").read_text())["plans"]["rolora"]["lr"] == 0.05
    assert re.search(r"\[1/1\] rolora, seed 0: .*ε 0\.\d+ against whoever sees the uploads, ", said)
    assert "ε: against whoever sees the uploads" in said.splitlines()
    page = (tmp_path / "low" / "report.html").read_text(encoding="utf-8")
    assert "ε: against whoever sees the uploads, the largest over clients and seeds." in page


def test_suggested_rates_are_those_of_the_studies():
    """The committed table is what the script makes of the committed studies; a study's rate is its tuned one."""
    import runpy

    from fedlora_lab import tuning

    script = runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "suggest_rates.py"))
    assert json.loads(tuning.SUGGESTED.read_text(encoding="utf-8")) == script["collected"]()
    frame = pd.read_csv(Path(__file__).parents[1] / "results" / "digits.csv")
    for epsilon in (1.0, 3.0):
        rows = frame[(frame["method"] == "rolora") & (frame["epsilon"] == epsilon) & (frame["alpha"] == 0.5)]
        assert set(rows["lr"]) == {tuning.tuned("digits", "rolora", epsilon)}
    assert "la-lora" not in tuning.rates()["digits"]["client"], "waits for new measurement"


def test_a_suggestion_says_where_it_comes_from():
    from fedlora_lab import methods, tuning

    found = tuning.suggestion("digits", "rolora", 8.0)
    assert found == (tuning.tuned("digits", "rolora"), "tuned for RoLoRA at ε = 8", True)
    assert tuning.suggestion("digits", "rolora", 2.5).words == "tuned for RoLoRA at ε = 3, the budget nearest to 2.5"
    assert tuning.suggestion("digits", "rolora", 3**0.5).words.startswith("tuned for RoLoRA at ε = 1,"), (
        "of two the smaller"
    )
    assert tuning.suggestion("digits", "rolora", None, "client").words == "tuned for RoLoRA without privacy"
    mine = methods.FFA.replace(name="mine", note="another name")
    assert tuning.suggestion("digits", mine, 1.0).words.startswith(
        "tuned for FFA-LoRA at ε = 1; nothing was tuned for mine"
    )
    other = methods.FedLoRA.replace(name="mine", smooth=methods.LALoRA.smooth)
    assert tuning.suggestion("digits", other, 1.0).lr == tuning.tuned("digits", "fedlora", 1.0)
    default = tuning.suggestion("elsewhere", "rolora", 1.0)
    assert default.lr == 0.3 and default.words.startswith("the default; nothing was tuned for RoLoRA on elsewhere")
    wrong: list[Any] = [({"epsilon": 0}, "epsilon=0: expected"), ({"unit": "site"}, "unit='site': expected one of")]
    for bad, line in wrong:
        with pytest.raises(ValueError, match=line):
            tuning.tuned("digits", "rolora", **bad)
    with pytest.raises(ValueError, match="epsilon=None: expected"):
        tuning.tuned("regression", "rolora", None)


def test_tuned_is_the_best_of_its_grid():
    from fedlora_lab import tuning

    for task, found in tuning.table().items():
        sizes = {len(row["grid"]) for row in found["methods"].values()}
        assert len(sizes) == 1, "every method had the same number of tries"
        assert not set(found["setting"]["seeds"]) & set(range(100)), "tuned with seeds that no report uses"
        best = min if found["setting"]["measure"] == "loss" else max
        for slug, row in found["methods"].items():
            first = {lr: score for lr, score in row["grid"].items() if score is not None}
            assert set(row["finalists"]) == set(sorted(first, key=first.__getitem__, reverse=best is max)[:3])
            scores = {float(lr): score for lr, score in row["finalists"].items() if score is not None}
            assert scores[row["lr"]] == best(scores.values())
            assert tuning.tuned(task, slug) == row["lr"]
    with pytest.raises(ValueError, match="method='nope': expected one of"):
        tuning.tuned("digits", "nope")


def test_t_interval_is_scipys():
    values = np.array([0.71, 0.74, 0.69, 0.73])
    mean, half = t_interval(values)
    low, high = stats.t.interval(0.95, 3, loc=values.mean(), scale=stats.sem(values))
    assert mean - half == pytest.approx(low) and mean + half == pytest.approx(high)
    assert np.isnan(t_interval(values[:1])[1])


def test_summary_counts_a_whole_run():
    rows = [("t", "m", seed, r, "all", measure, value + seed)
            for seed in (0, 1) for r in (0, 1, 2)
            for measure, value in (("accuracy", r / 10), ("deviation", 0.0), ("epsilon", r), ("bytes_up", 10.0 * r),
                                   ("bytes_down", 1.0), ("seconds", 1.0))]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["task", "method", "seed", "round", "layer", "measure", "value"])
    row = summary(frame).iloc[0]
    assert (row["before"], row["score"], row["epsilon"]) == pytest.approx((0.5, 0.7, 3.0))
    assert row["bytes_up"] == pytest.approx(30 + 1.5) and row["seeds"] == 2
    with pytest.raises(ValueError, match="expected columns task, method"):
        summary(frame.drop(columns="layer"))


def test_sizes_in_words():
    assert [size(value) for value in (0, 999, 1000, 2.5e6, 3e12)] == ["0 B", "999 B", "1.0 kB", "2.5 MB", "3000.0 GB"]


def test_first_difference_names_the_place():
    assert first_difference({"a": {"b": 1}}, {"a": {"b": 1}}) is None
    assert first_difference({"a": {"b": 1}}, {"a": {"b": 2}}) == "a.b is 1 there and 2 now"
    assert first_difference({"a": 1}, {}) == "a is 1 there and null now"
    assert first_difference([1.0, 2.0], [1.0, 2.0 + 1e-12]) is None
    assert first_difference({"a": [1.0, 2.0]}, {"a": [1.0, 2.1]}) == "a is [1.0, 2.0] there and [1.0, 2.1] now"


def test_noise_that_differs_in_its_last_bits_goes_on_with_the_first(done, tmp_path):
    import shutil

    out = tmp_path / "runs"
    shutil.copytree(done, out)
    settings = json.loads((out / "settings.json").read_text())
    for fields in (settings["privacy"], settings["privacies"]["rolora"]):
        fields["noise_multiplier"] = [sigma * (1 + 1e-12) for sigma in fields["noise_multiplier"]]
    write_atomically(out / "settings.json", json.dumps(settings))
    options = ["compare", "digits", "--methods", "rolora", "--seeds", "3", *SMALL, "--out", out]
    assert call(*options) == 0
    assert json.loads((out / "settings.json").read_text())["privacies"]["rolora"] == settings["privacies"]["rolora"]
    ledger = json.loads((out / "ledger.json").read_text())["rolora-2"]["content"]["releases"][0]
    assert ledger["noise_multiplier"] == settings["privacies"]["rolora"]["noise_multiplier"]


def test_nothing_half_written(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \udcff")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


def whole_run(measures, method="m", seed=0):
    """A tidy frame of one run: measure -> its values over the rounds."""
    rows = [("t", method, seed, r, "all", name, value) for name, values in measures.items()
            for r, value in enumerate(values)]  # fmt: skip
    return pd.DataFrame(rows, columns=["task", "method", "seed", "round", "layer", "measure", "value"])


def test_what_was_not_measured_is_no_number():
    """The last round counts, and a sum with an unknown part is unknown; neither is ever 0 nor an earlier value."""
    from fedlora_lab.summary import words

    nan = float("nan")
    frame = whole_run({
        "accuracy": [0.5, 0.6, 0.7], "deviation": [0.0, nan, nan], "epsilon": [0.0, 1.0, 2.0],
        "bytes_up": [0.0, nan, nan], "bytes_down": [0.0, 5.0, nan], "seconds": [0.1, nan, nan],
    })  # fmt: skip
    row = summary(frame).iloc[0]
    for name in ("deviation", "bytes_up", "bytes_down", "seconds"):
        assert math.isnan(row[name]), name
    shown = words(summary(frame))[0]
    assert [shown[name] for name in ("deviation", "up", "down", "seconds")] == ["–"] * 4
    stopped = summary(whole_run({"accuracy": [0.5, 0.9, nan]})).iloc[0]
    assert math.isnan(stopped["score"]) and stopped["before"] == 0.5
    seeds = pd.concat([whole_run({"accuracy": [0.5, 0.9], "deviation": [0.0, 0.2]}),
                       whole_run({"accuracy": [0.5, 0.9], "deviation": [0.0, nan]}, seed=1)])  # fmt: skip
    assert math.isnan(summary(seeds).iloc[0]["deviation"]), "the mean over seeds of which one is unknown"


def test_the_lines_of_a_run_say_that_it_fell(tmp_path, capsys):
    """A rate far too high: the line of the run, the table under it and the report say what became of it."""
    out = tmp_path / "fell"
    options = ["--lr", "5", "--epsilon", "none", "--rounds", "2", "--local-steps", "2", "--clients", "3"]
    assert call("run", "digits", "fedlora", *options, "--out", out) == 0
    told = capsys.readouterr().out
    frame: Any = read_frame(out / "frame.csv")
    before, after = frame[(frame["layer"] == "all") & (frame["measure"] == "accuracy")]["value"].iloc[[0, -1]]
    assert after < before
    words = f"fell below its start: {before:.2f} to {after:.2f}"
    assert re.search(rf"\[1/1\] fedlora, seed 0: accuracy .*, {words} \(", told)
    assert f"fedlora: {words}" in told.splitlines()
    assert words in (out / "report.html").read_text(encoding="utf-8")


def test_a_run_that_diverged_says_so(tmp_path, capsys):
    """A loss that is not a number was measured: it is worse than any other."""
    options = ["--lr", "1e9", "--local-steps", "8", "--epsilon", "none", "--rounds", "4", "--clients", "3"]
    assert call("run", "regression", "rolora", *options, "--out", tmp_path) == 0
    told = capsys.readouterr().out
    (words,) = re.findall(r"^rolora: (rose above its start: \S+ to ∞)$", told, re.MULTILINE)
    assert f", {words} (" in told and words in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "not private, deviation not private" not in told and "loss ∞" in told
    frames = [whole_run({"loss": [1.0, end], "deviation": [0.0, math.inf]}, seed=seed) for seed, end in
              enumerate((math.inf, 0.5))]  # fmt: skip
    row = words_of(summary(pd.concat(frames)))[0]
    assert (row["score"], row["deviation"]) == ("∞", "∞")
    assert row["fell"] == "1 of 2 runs rose above their start; mean 1.00 to ∞"


def test_a_round_without_uploads_has_no_deviation(tmp_path, capsys):
    """Nobody took part: there is no mean of products that the server's could be far from."""
    few = ["--participation", "0.01", "--clients", "2", "--rounds", "2", "--local-steps", "1", "--lr", "0.1"]
    assert call("run", "regression", "fedlora", *few, "--out", tmp_path) == 0
    frame: Any = (
        read_frame(tmp_path / "frame.csv").query("layer == 'all'").pivot(columns="measure", index="round")["value"]
    )
    assert frame["participants"].tolist() == [0, 0, 0] and frame["bytes_up"].tolist() == [0, 0, 0]
    assert frame["deviation"].isna().tolist() == [False, True, True] and frame["deviation"][0] == 0
    assert "round 2: " in (told := capsys.readouterr().out) and told.count("deviation –") == 3


@pytest.mark.parametrize("method", ["fedask", "fedsvd", "flexlora"])
def test_a_rule_that_cannot_be_applied_is_one_line(method, tmp_path, capsys):
    """Values grew until they were not finite, and the server decomposes them."""
    options = ["--lr", "1e9", "--local-steps", "8", "--epsilon", "none", "--rounds", "4", "--clients", "3"]
    assert call("run", "regression", method, *options, "--out", tmp_path) == 2
    error = capsys.readouterr().err
    assert error.startswith("fedlora-lab: lr=1000000000.0: expected a smaller one; ") and error.count("\n") == 1
    assert re.search(rf"{method} cannot do the server's part of round \d \(", error)


def test_a_run_that_fell_is_told():
    from fedlora_lab.summary import fall, words

    one = words(summary(whole_run({"accuracy": [0.61, 0.7, 0.29]})))[0]
    assert one["fell"] == "fell below its start: 0.61 to 0.29"
    frames = [whole_run({"accuracy": [0.61, end]}, seed=seed) for seed, end in enumerate((0.29, 0.8, 0.61))]
    assert words(summary(pd.concat(frames)))[0]["fell"] == "1 of 3 runs fell below their start; mean 0.61 to 0.57"
    assert words(summary(whole_run({"loss": [1.0, 2.5]})))[0]["fell"] == "rose above its start: 1.00 to 2.50"
    assert fall("accuracy", 0.6111, 0.6094) == "fell below its start: 0.611 to 0.609"
    assert fall("accuracy", 0.5, 0.5) == fall("accuracy", float("nan"), 0.5) == ""
    shown = "\n".join(lines(pd.concat(frames)))
    assert "m: 1 of 3 runs fell below their start; mean 0.61 to 0.57" in shown
