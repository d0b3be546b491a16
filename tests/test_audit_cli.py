"""`fedlora-lab audit RUN`: the run's settings played again, what it proves and states, and mistakes in one line."""

import json
import re
import shutil
from typing import Any

import pytest
from test_cli import call

from fedlora_lab.cli.audit import folder_holds
from fedlora_lab.edges import BUGS
from fedlora_lab.folder import read_json

SMALL = ["--clients", "3", "--rounds", "2", "--local-steps", "1", "--batch", "8", "--delta", "1e-5", "--lr", "0.1"]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished comparison of a method and two baselines."""
    out = tmp_path_factory.mktemp("runs") / "regression"
    assert (
        call("compare", "regression", "--methods", "deer,central,non-private", "--seeds", "1", *SMALL, "--out", out)
        == 0
    )
    return out


def test_every_method_of_the_folder_is_audited(done, capsys):
    assert call("audit", done, "--canaries", 24) == 0
    text = capsys.readouterr().out
    assert len(re.findall(r"ε proved \S+ ≤ ε stated", text)) == 3
    assert text.count("self-check: ok") == 2
    found = read_json(done / "private" / "audit.json")["audits"]
    assert [one["slug"] for one in found] == ["deer", "central", "non-private"]
    stated = [one["epsilon_upper"] for one in found]
    assert stated[2] is None
    assert all(0 < value < 8.01 for value in stated[:2])
    for one in found:
        assert one["epsilon_lower"] <= one["ceiling"]
        assert one["canaries"] == len(one["included"]) == len(one["scores"]["loss"]) == 24
        assert one["holds"] is True


def test_a_bug_is_found_in_the_folder(done, capsys):
    assert not folder_holds(done, 8, 0.99, 1, 0, True, bug=BUGS["clips each tensor"])
    text = capsys.readouterr().out
    assert "FAILED sensitivity" in text
    assert text.count("an injected bug: clips each tensor") == 3
    alone, both = (one["self_check"] for one in read_json(done / "private" / "audit.json")["audits"][:2])
    assert alone["ok"]  # one layer and one factor a step: there is nothing to clip apart
    assert {one[0] for one in both["failed"]} == {"sensitivity"}


def test_the_self_check_can_be_left_out(done, capsys):
    assert call("audit", done, "--canaries", 8, "--rounds", 1, "--no-check") == 0
    assert "self-check" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--canaries", 1], "canaries=1"),
        (["--confidence", 1], "confidence=1"),
        (["--rounds", 0], "rounds=0"),
        (["--seed", -1], "seed=-1"),
    ],
)
def test_bad_options_are_one_line(done, options, message, capsys):
    assert call("audit", done, *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def change(settings: dict[str, Any], *path: str, to: Any) -> dict[str, Any]:
    twin = json.loads(json.dumps(settings))
    part = twin
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = to
    return twin


@pytest.mark.parametrize(
    ("path", "to", "message"),
    [
        (("task", "fingerprint"), "0" * 64, "have changed"),
        (("task", "info", "task"), "mine", "can be built again"),
        (("methods", "deer", "share"), "A", "the row of the table as it is now"),
        (("plans",), {}, "settings of a run"),
        (("plans", "deer", "rounds"), -1, "rounds=-1"),
        (("lora",), 3, "settings of a run"),
        (("methods",), {}, "the settings of a run"),
    ],
)
def test_changed_settings_are_one_line(done, tmp_path, path, to, message, capsys):
    settings = json.loads((done / "settings.json").read_text())
    (tmp_path / "settings.json").write_text(json.dumps(change(settings, *path, to=to)))
    shutil.copytree(done / "private", tmp_path / "private", ignore=shutil.ignore_patterns("audit.json"))
    assert call("audit", tmp_path) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "private" / "audit.json").exists()


def test_a_folder_without_a_run_is_one_line(tmp_path, capsys):
    assert call("audit", tmp_path / "nowhere") == 2
    assert "run folder" in capsys.readouterr().err
