"""Studies: declared grids, tuned alike, resumable; a tiny one is run for real."""

from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
from places import ROOT

import fedlora_lab as fl
from fedlora_lab import methods
from studies import runner
from studies.__main__ import continue_study
from studies.declared import STUDIES, Case, Job, Setting, Study

RESULTS = ROOT / "results"
SIZES: dict[str, Any] = {"clients": 3, "examples": 8, "test": 16, "d_in": 6, "d_out": 5, "rank": 2}


def case(slug, epsilon=None):
    plan = {"rounds": 2, "local_steps": 1, "batch": 4}
    privacy = {"delta": 1e-2, "accountant": "rdp"}
    task = ("regression", SIZES)
    return Case(methods.get(slug), {"epsilon": epsilon}, task, epsilon, privacy, plan, {"rank": 2})


def small(*cases, **fields):
    rates = (0.01, 0.1, 0.3, 1e9)
    study = Study("small", "a test", cases, (0, 1), rates, tune_seeds=(7, 8), finalists=2)
    return replace(study, **fields)


@pytest.mark.slow
def test_a_study_goes_on_after_a_kill(tmp_path):
    """A file that was cut within a line ends as the whole one; nothing that is there is run again,
    and the frame is labelled by the declared budget, which what was spent never is exactly."""
    study = small(case("fedlora"), case("ffa-lora", 8.0))
    path = tmp_path / "runs" / "small.jsonl"
    continue_study(study, tmp_path, jobs=1)
    content = path.read_text()
    frame = runner.study_frame(study, path).drop(columns="seconds")
    # Without noise two seeds try four rates and two are reported; with it one, one more for two.
    assert runner.count_runs(study, path) == (10 + 8, 10 + 8)
    cut = content[: int(0.6 * len(content))]
    path.write_text(cut)
    continue_study(study, tmp_path, jobs=1)
    done = cut.count("\n")
    assert path.read_text().splitlines()[:done] == content.splitlines()[:done]
    again = runner.read_study("small", tmp_path).drop(columns="seconds")
    pd.testing.assert_frame_equal(again, frame, rtol=1e-5, check_dtype=False)
    assert len(frame) == 4 and set(frame["seed"]) == {0, 1} and (frame["lr"] < 1).all()
    private = frame.dropna(subset="epsilon")
    assert set(private["epsilon"]) == {8.0} and (private["spent"] != 8.0).all()
    assert private["spent"].tolist() == pytest.approx([8.0] * 2, rel=1e-2)


def test_a_reported_run_is_the_run_that_a_user_would_write():
    asked = case("rolora", 8.0)
    values = runner.run_job(Job(asked, Setting(0.1), 3, tune=False))["values"]
    task, plan = fl.tasks.regression(**SIZES), fl.Plan(**asked.plan, lr=0.1)
    privacy = fl.Privacy(**asked.privacy).calibrate(epsilon=8.0, task=task, plan=plan)
    *_, last = fl.run(task, "rolora", privacy, plan, lora=fl.Lora(rank=2), seed=3)
    assert values["loss"] == last.metrics["loss"]
    tuned = runner.run_job(Job(asked, Setting(0.1), 3, tune=True))["values"]
    assert tuned["loss"] != values["loss"], "tuning reads the validation part"


def test_the_cliff_is_at_a_larger_step_that_fell():
    asked = case("fedlora")
    study = small(asked)
    tried = (Setting(0.1), Setting(0.3))
    # Without noise two seeds screen.
    pairs = zip(study.screening_jobs(asked, tried), (0.9, 0.9, 0.92, 0.76), strict=True)
    done = {job.key: {"values": {"accuracy": score}} for job, score in pairs}
    assert runner.cliff(study, asked, tried[0], tried, done) == pytest.approx(3)


@pytest.mark.slow
def test_committed_runs_belong_to_declared_studies():
    """Every study is finished, and all its runs are known, each stage of the search from the one
    before and the reported ones from the search: another order of stages, another step beyond an
    edge, another choice among equals, or a renamed rule or field would ask for runs that are not
    there. No case that names a budget is of a method without a certified ε, and none is reported at
    a seed that tuned it."""
    for name, study in STUDIES.items():
        there, total = runner.count_runs(study, RESULTS / "runs" / f"{name}.jsonl")
        assert there == total, name
        assert len({case.key for case in study.cases}) == len(study.cases)
        assert not {*study.seeds} & {*study.tune_seeds}
        assert "deer-literal" not in {case.method.slug for case in study.cases if case.epsilon}


def test_the_page_of_results_has_the_rows_without_lora():
    means = runner.read_study("full-model").groupby(["method", "epsilon"])["accuracy"].mean()
    page = (ROOT / "studies" / "logbook.md").read_text("utf-8")
    for words, slug in (("all weights", "all-weights"), ("classifier alone", "head-only")):
        assert f"| {words} | {means[slug, 8]:.3f} | {means[slug, 1]:.3f} |" in page
