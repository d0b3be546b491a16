"""The script that runs the studies on another device, here the processor in bfloat16."""

import contextlib
import json
import runpy
from dataclasses import replace
from time import monotonic
from typing import Any

import pandas as pd
import psutil
import pytest

from fedlora_lab import methods
from fedlora_lab.experiments import runner
from fedlora_lab.experiments.studies import Case, Job, Setting, Study

SCRIPT = runpy.run_path("scripts/gpu_studies.py")


def tiny(*slugs: str) -> Study:
    plan, private = {"rounds": 1, "local_steps": 1, "batch": 4}, {"delta": 1e-4}
    task: Any = ("digits", {"clients": 2})
    parts: Any = {"epsilon": 8.0}, task, 8.0, {**private, "accountant": "rdp"}, plan, {"rank": 1}
    cases = [Case(methods.get(slug), *parts) for slug in slugs]
    how: dict[str, Any] = {"tune_seeds": (97,), "seeds": (0, 1), "finalists": 1}
    return Study("tiny", "a test", tuple(cases), rates=(0.01, 0.02, 0.04, 0.08), **how)


@pytest.mark.slow
def test_another_device_has_its_own_lines_at_the_processor_s_settings(
    tmp_path, monkeypatch, capsys
):
    """What the processor tuned is reported only, what it did not is tuned; its lines are read and
    never written; a call whose time is over runs nothing, and the next one what is missing; a study
    that fails is named and passed over; lines of another torch are refused."""
    monkeypatch.setitem(SCRIPT["passes"].__globals__, "FIRST_SEEDS", 1)  # then the other
    kept = tmp_path / "runs" / "tiny.jsonl"
    tuned = runner.run_study(tiny("rolora"), kept, workers=0, bar=False)
    before, study = kept.read_bytes(), tiny("rolora", "ffa-lora")
    wrong = replace(study, name="wrong", cases=(replace(study.cases[0], privacy={"delta": 0.1}),))
    chosen = [SCRIPT["Part"](one, (8.0,), 1.0, 1.0) for one in (wrong, study)]
    how: dict[str, Any] = {"device": "cpu", "workers": 0, "folder": tmp_path}
    here = SCRIPT["run_all"](chosen, minutes=1e-9, **how)
    assert here.parent == kept.parent and not (here / "tiny.jsonl").exists()
    assert "bfloat16" in here.name and "cpu" in here.name
    SCRIPT["run_all"](chosen, minutes=5, **how)
    assert "wrong was given up for now: ValueError: delta=0.1" in capsys.readouterr().out
    lines = (here / "tiny.jsonl").read_bytes()
    measured = runner.load_results(here / "tiny.jsonl")
    setting = runner.best_setting(study, study.cases[0], tuned)
    assert setting is not None
    first = {job.key for job in study.report_jobs(study.cases[0], setting)}
    assert {key for key in measured if key.startswith(study.cases[0].key)} == first
    assert len(measured) == len(first) + study.tries + len(study.seeds) == lines.count(b"\n")
    # Bfloat16 was used: the same runs, other losses, about the same accuracy.
    pairs = [(measured[key]["values"], tuned[key]["values"]) for key in first]
    assert any(a["loss"] != b["loss"] for a, b in pairs)
    frame = pd.read_csv(here / "comparison.csv").query("study == 'tiny'").set_index("method")
    gap = sum(a["accuracy"] - b["accuracy"] for a, b in pairs) / len(pairs)
    assert frame.loc["rolora", "difference"] == pytest.approx(gap, abs=1e-6)
    assert frame.loc["ffa-lora", "tuned"] == "here" and frame["seeds"].tolist() == [2, 2]
    assert pd.isna(frame.loc["ffa-lora", "difference"])
    SCRIPT["run_all"](chosen, minutes=5, **how)
    assert (here / "tiny.jsonl").read_bytes() == lines and kept.read_bytes() == before
    settings = json.loads((here / "settings.json").read_text())
    settings["versions"]["torch"] = "0.1"
    (here / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"torch='.*': expected 0.1, as the lines in cpu"):
        SCRIPT["run_all"](chosen, minutes=5, **how)


@pytest.mark.slow
def test_workers_end_when_the_time_is_over():
    """In the middle of a run, and without starting what would end too late."""
    case = tiny("fedlora").cases[0]
    with (
        pytest.raises(runner.OutOfTime),
        runner.worker_pool(1, monotonic() + 0.5) as run,
    ):
        list(run([Job(case, Setting(0.1), seed, tune=False) for seed in range(1000)]))
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.ZombieProcess):  # ended, and not yet waited for
            assert "spawn_main" not in " ".join(process.cmdline())


def test_declared_parts_name_what_there_is():
    """Every part has cells, and no key is that of another study's case."""
    keys = [
        case.key
        for part in SCRIPT["parts"]()
        for case in SCRIPT["on_device"](part, {"device": "cpu"}, 5).cases
    ]
    assert len(keys) == len(set(keys)) > 100
