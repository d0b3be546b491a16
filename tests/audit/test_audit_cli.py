"""`fedlora-lab audit RUN` and the committed table of audits; mistakes in one line."""

import csv
import json
import re
import shutil
from collections import Counter
from pathlib import Path
from shlex import split

import pytest
from commands import call

import fedlora_lab as fl
from fedlora_lab.report.run_folder import read_json

ROOT = Path(__file__).resolve().parents[2]
SMALL = split("--clients 3 --rounds 2 --local-steps 1 --batch 8 --delta 1e-5 --lr 0.1 --seeds 1")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished comparison of a method and two baselines."""
    out = tmp_path_factory.mktemp("runs") / "regression"
    methods = "deer,central,non-private"
    assert call("compare", "regression", "--methods", methods, *SMALL, "--out", out) == 0
    return out


@pytest.mark.slow
def test_every_method_of_the_folder_is_audited(done, capsys):
    assert call("audit", done, "--canaries", 24) == 0
    text = capsys.readouterr().out
    assert len(re.findall(r"epsilon \S+ <= \S+ at delta", text)) == 3
    audits = read_json(done / "private" / "audit.json")["audits"]
    assert [entry["slug"] for entry in audits] == ["deer", "central", "non-private"]
    stated = [entry["epsilon_upper"] for entry in audits]
    assert stated[2] is None
    assert all(0 < value < 8.01 for value in stated[:2])
    for entry in audits:
        assert entry["epsilon_lower"] <= entry["ceiling"]
        assert entry["canaries"] == len(entry["included"]) == len(entry["scores"]["loss"]) == 24
        assert entry["holds"] is True


@pytest.mark.slow
def test_a_release_that_is_not_finite_is_a_failure(done, tmp_path, capsys):
    shutil.copytree(done, tmp_path / "run")
    path = tmp_path / "run" / "settings.json"
    settings = json.loads(path.read_text())
    settings["plans"]["deer"]["lr"] = 1e9
    settings["privacies"]["deer"]["clip_norm"] = 1e36
    path.write_text(json.dumps(settings))
    assert call("audit", tmp_path / "run", "--canaries", 4) == 1
    assert "deer: deer, example: invalid: the release of round" in capsys.readouterr().out


def test_bad_options_are_one_line(tmp_path, capsys):
    assert call("audit", tmp_path, "--canaries", 1) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "1 is not in the range x>=2" in line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "to", "message"),
    [
        (("task", "fingerprint"), "0" * 64, "have changed"),
        (("methods", "deer", "share"), "A", "the row of the table as it is now"),
        (("methods",), {}, "the settings of a run"),
    ],
)
def test_changed_settings_are_one_line(done, tmp_path, path, to, message, capsys):
    settings = part = json.loads((done / "settings.json").read_text())
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = to
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    key = shutil.ignore_patterns("audit.json")
    shutil.copytree(done / "private", tmp_path / "private", ignore=key)
    assert call("audit", tmp_path) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "private" / "audit.json").exists()


def test_no_committed_audit_exceeds_its_ledger():
    """Several seeds of every method in both units, at 99 %, each of which could have failed."""
    with open(ROOT / "results" / "audit.csv", newline="", encoding="utf-8") as file:
        rows = [*csv.DictReader(file)]
    seeds = Counter((row["method"], row["unit"], row["target"]) for row in rows)
    assert min(seeds.values()) >= 5
    assert len({method for method, *_ in seeds} & set(fl.methods.ALL)) >= 20
    for row in rows:
        assert float(row["epsilon_lower"]) <= float(row["ceiling"]), row
        assert float(row["epsilon_lower"]) <= float(row["epsilon_upper"]), row
        # DEeR literal's epsilon is not certified: nothing is stated that could be exceeded.
        stated = row["epsilon_upper"] != "inf"
        assert not stated or float(row["ceiling"]) > float(row["epsilon_upper"]), row
        assert (float(row["confidence"]), row["invalid"]) == (0.99, "")
    assert max(float(row["epsilon_lower"]) for row in rows) > 0.5
