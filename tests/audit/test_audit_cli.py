"""`fedlora-lab audit RUN` and the committed table of audits; mistakes in one line."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from commands import SMALL, call
from places import ROOT

import fedlora_lab as fl
from fedlora_lab.report.run_folder import read_json


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished comparison of a method and two baselines."""
    out = tmp_path_factory.mktemp("runs") / "regression"
    methods = "deer,central,non-private"
    assert (
        call("compare", "regression", "--methods", methods, *SMALL, "--seeds=1", "--out", out) == 0
    )
    return out


@pytest.mark.slow
def test_every_method_of_the_folder_is_audited(done, capsys):
    """Fault: a method left out, or an audit that states another epsilon than the run's."""
    assert call("audit", done, "--canaries", 24) == 0
    assert len(re.findall(r"shown is epsilon >= \S+ at delta", capsys.readouterr().out)) == 3
    audits = read_json(done / "private" / "audit.json")["audits"]
    assert [entry["slug"] for entry in audits] == ["deer", "central", "non-private"]
    *stated, unpromised = (entry["epsilon_upper"] for entry in audits)
    assert unpromised is None and all(0 < value < 8.01 for value in stated)
    for entry in audits:
        assert entry["holds"] and entry["epsilon_lower"] <= entry["ceiling"]
        assert entry["canaries"] == len(entry["included"]) == len(entry["scores"]["loss"]) == 24


@pytest.mark.slow
def test_a_sweep_is_audited_setting_by_setting(tmp_path, capsys):
    """Fault: a folder of which only the parts could be audited."""
    rates = [*(x for x in SMALL if not x.startswith("--lr")), "--lr=0.1,0.2"]
    sweep = ["regression", "--methods=rolora", *rates, "--seeds=1", "--out", tmp_path / "runs"]
    assert call("compare", *sweep) == 0
    assert call("audit", tmp_path / "runs", "--canaries", 8) == 0
    assert re.findall(r"^lr=.*(?=:$)", capsys.readouterr().out, re.M) == ["lr=0.1", "lr=0.2"]
    assert len([*tmp_path.glob("runs/lr=*/private/audit.json")]) == 2


def copied(done, folder, path, value):
    """A copy of a run in which one of its settings was changed."""
    shutil.copytree(done, folder, ignore=shutil.ignore_patterns("audit.json"))
    settings = part = json.loads((folder / "settings.json").read_text())
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    (folder / "settings.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.slow
def test_a_release_that_is_not_finite_is_a_failure(done, tmp_path, capsys):
    """Fault: exit status 0 although an audit is invalid."""
    run = copied(done, tmp_path / "clip", ("privacies", "deer", "noise_multiplier"), 1e34)
    run = copied(run, tmp_path / "rate", ("plans", "deer", "lr"), 1e9)
    assert call("audit", run, "--canaries", 4) == 1
    assert "deer: deer, example: invalid: the release of round" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("task", "fingerprint"), "0" * 64, "have changed"),
        (("methods", "deer", "uploaded_factors"), "A", "the row of the table as it is now"),
        (("methods",), {}, "the settings of a run"),
    ],
)
def test_changed_settings_are_one_line(done, tmp_path, path, value, message, capsys):
    """Fault: an audit of another run than the one in the folder."""
    run = copied(done, tmp_path / "run", path, value)
    assert call("audit", run) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and not (run / "private" / "audit.json").exists()


def test_no_committed_audit_exceeds_its_ledger():
    """Several seeds of every method in both units, at 99 %, each of which could have failed."""
    table = pd.read_csv(ROOT / "results" / "audit.csv", keep_default_na=False)
    assert table.groupby(["method", "unit", "target"]).size().min() >= 5
    assert len({*table["method"]} & {*fl.methods.ALL}) >= 20
    lower = table["epsilon_lower"]
    assert lower.le(table["ceiling"]).all() and lower.le(table["epsilon_upper"]).all()
    # DEeR literal's epsilon is not certified: nothing is stated that could be exceeded.
    stated = table[np.isfinite(table["epsilon_upper"])]
    assert stated["ceiling"].gt(stated["epsilon_upper"]).all() and len(stated) > 0.9 * len(table)
    assert table["confidence"].eq(0.99).all() and table["invalid"].eq("").all()
    assert lower.max() > 0.5
