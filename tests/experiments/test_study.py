"""Studies: declared grids, tuned alike, resumable; a tiny one is run for real."""

import json
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner

import fedlora_lab as fl
from fedlora_lab import experiments as study
from fedlora_lab import methods, tasks
from fedlora_lab.cli import commands
from fedlora_lab.experiments import runner
from fedlora_lab.experiments.studies import Case, Job, Setting, Stage, Study

SIZES: dict[str, Any] = {"clients": 3, "examples": 8, "test": 16, "d_in": 6, "d_out": 5, "rank": 2}


def case(slug, epsilon=None, **labels):
    plan = {"rounds": 2, "local_steps": 1, "batch": 4}
    privacy, labels = {"delta": 1e-2, "accountant": "rdp"}, {"epsilon": epsilon, **labels}
    task = ("regression", SIZES)
    return Case(methods.get(slug), labels, task, epsilon, privacy, plan, {"rank": 2})


def small(*cases, **fields):
    rates = (0.01, 0.1, 0.3, 1e9)
    one = Study("small", "a test", cases, (0, 1, 2), rates, tune_seeds=(7, 8), finalists=2)
    return replace(one, **fields)


@pytest.mark.slow
def test_a_study_tunes_and_reports(tmp_path, monkeypatch):
    """One row a reported run, labelled by the declared budget, which what the ledger states never
    is exactly; a rate that diverged is not taken."""
    one = small(case("fedlora"), case("ffa-lora", 8.0), case("ffa-lora", 3.0))
    path = tmp_path / "runs" / "small.jsonl"
    monkeypatch.setitem(study.STUDIES, "small", one)
    call = ["study", "small", "--workers", "0", "--out", str(tmp_path)]
    shown = CliRunner().invoke(commands, call)
    assert json.loads(shown.stdout.splitlines()[-1])["cases"] == 3
    done, lines = runner.load_results(path), path.read_text()
    assert len(done) == one.runs == 3 * (4 + 2 + 3)
    assert study.count_runs(one, path) == (one.runs, one.runs)
    kept = json.loads((tmp_path / "small.json").read_text())
    assert kept["command"] == "fedlora-lab study small" and kept["done"] == kept["runs"] == one.runs
    for each in one.cases:
        first = [done[job.key]["values"]["loss"] for job in one.screening_jobs(each)]
        assert first[-1] is None or first[-1] > 1e3
        best = runner.best_setting(one, each, done)
        assert best is not None and best.lr in one.rates[:-1]
    table: Any = study.study_frame(one, path)
    assert len(table) == 9 and set(table["seed"]) == {0, 1, 2}
    pd.testing.assert_frame_equal(
        study.read_study("small", tmp_path), table, rtol=1e-5, check_dtype=False
    )
    assert table[table["method"] == "fedlora"]["epsilon"].isna().all()
    private = table.dropna(subset="epsilon")
    assert list(private["epsilon"].unique()) == [8.0, 3.0]
    assert (private["spent"] != private["epsilon"]).all()
    assert private["spent"].tolist() == pytest.approx(private["epsilon"].tolist(), rel=1e-2)
    assert (table["loss"] < table["before_loss"]).mean() > 0.5
    assert study.run_study(one, path, workers=0, bar=False) == done
    assert path.read_text() == lines


@pytest.mark.slow
def test_a_study_of_given_settings_tunes_nothing(tmp_path):
    """Only the reported runs are made, at the rate and the clip that each case was given."""
    cases = case("fedlora", 8.0), case("ffa-lora", 8.0)
    given = {each.key: Setting(0.1 * i, 0.5) for i, each in enumerate(cases, 1)}
    one, path = small(*cases, settings=given), tmp_path / "small.jsonl"
    study.run_study(one, path, workers=0, bar=False)
    assert study.count_runs(one, path) == (one.runs, 6)
    table = study.study_frame(one, path)
    assert table.groupby("method")["lr"].unique().map(list).to_dict() == {
        "fedlora": [0.1],
        "ffa-lora": [0.2],
    }
    assert set(table["clip_norm"]) == {0.5} and len(table) == 6
    assert runner.study_settings(one, "", path)["tuning"]["settings"][cases[1].key] == [0.2, 0.5, 1]


@pytest.mark.parametrize(("sign", "measure"), [(1, "loss"), (-1, "accuracy")])
@pytest.mark.parametrize(
    ("first", "finals", "rates", "best"),
    [
        ((0.5, 0.375, 0.125, 0.75), (0.5, 0.375), (0.3, 0.1), 0.3),
        ((0.5, 0.375, 0.125, 0.75), (0.5, 0.125), (0.3, 0.1), 0.1),
        ((0.5, 0.5, 0.5, 0.5), (0.25, 0.25), (0.01, 0.1), 0.01),
        ((0.5, 0.375, 0.125, 0.75), (0.5, 0.25), (0.3, 0.1), 0.1),
        ((0.5, 0.4, 0.3, None), (None, 0.9), (0.3, 0.1), 0.1),
    ],
)
def test_all_tuning_seeds_choose(sign, measure, first, finals, rates, best):
    """And no other: the first seed screens and counts in the mean too; of equal means the smaller
    rate is taken; a run that diverged comes last; missing runs wait; reported runs take others."""
    each, done = case("fedlora"), {}
    one = small(each)
    rates, best = tuple(map(Setting, rates)), Setting(best)
    tuned = [*one.screening_jobs(each), *one.final_jobs(each, rates)]
    assert all(job.tune for job in tuned) and one.tries == len(tuned)
    assert sorted((job.setting, job.seed) for job in tuned if job.setting in rates) == sorted(
        (x, seed) for x in rates for seed in one.tune_seeds
    )
    assert [(job.seed, job.tune) for job in one.report_jobs(each, best)] == [
        (s, False) for s in one.seeds
    ]
    assert runner.finalists(one, each, done) is None
    for jobs, values in ((one.screening_jobs(each), first), (one.final_jobs(each, rates), finals)):
        assert runner.best_setting(one, each, done) is None
        for job, value in zip(jobs, values, strict=True):
            done[job.key] = {"values": {measure: None if value is None else sign * value}}
        assert runner.finalists(one, each, done) == rates
    assert runner.best_setting(one, each, done) == best


def test_a_search_goes_through_its_stages_and_beyond_an_edge():
    """A grid whose best is its last rate goes on; the clip is turned at equal noise; a knob that
    does nothing for a case becomes further rates, so that all have as many tries."""
    stages = Stage("clip, lr", (0.25, 4.0), 1, (0.75, 1.5)), Stage("ratio", (0.5,), 2, (0.8,))
    rates = (0.125, 0.25, 0.5, 1.0)
    tried = {}
    for slug, epsilon in (("fedlora", 8.0), ("ffa-lora", 8.0), ("fedlora", None)):
        each, done = case(slug, epsilon), {}
        one = small(each, rates=rates, stages=stages, tune_seeds=(7,), extends=True)
        while not (found := runner.screen(one, each, done))[1]:
            for job in one.screening_jobs(each, found[0]):  # best: rate x clip 4, ratio 1, clip 2
                lr, clip, ratio = job.setting
                loss = abs(lr * clip - 4) + abs(ratio - 1) + abs(clip - 2) / 100
                done[job.key] = {"values": {"loss": loss}}
        tried[slug, epsilon] = found[0]
        assert found[0][:7] == [Setting(x) for x in (*rates, 2.0, 4.0, 8.0)]
        assert len(found[0]) == one.tries + 3
    assert {Setting(16.0, 0.25), Setting(1.0, 4.0)} <= set(tried["fedlora", 8.0])
    assert Setting(4.0, 1.0, 0.5) in tried["fedlora", 8.0]
    assert Setting(3.2) in tried["ffa-lora", 8.0] and all(
        x.ratio == 1 for x in tried["ffa-lora", 8.0]
    )
    assert all(x.clip == 1 for x in tried["fedlora", None])


def test_the_result_is_that_of_the_run():
    """A reported run's values are those of the last record of the run that a user would write:
    loss, noise summed over the layers, and curvature where the study asks for it."""
    one = case("rolora", 8.0)
    found = runner.run_job(Job(one, Setting(0.1), 3, tune=False, measure_curvature=True))["values"]
    task, plan = fl.tasks.regression(**SIZES), fl.Plan(**one.plan, lr=0.1)
    privacy = fl.Privacy(**one.privacy).calibrate(epsilon=8.0, task=task, plan=plan)
    *_, last = fl.run(task, "rolora", privacy, plan, lora=fl.Lora(rank=2), seed=3)
    assert found["loss"] == last.metrics["loss"]
    for name in ("noise_A", "noise_B"):
        assert found[name] == sum(value for _, measure, value in last.rows if measure == name)
    assert found["noise_A"] + found["noise_B"] > 0
    assert found["sharpness"] == fl.measures.flatness(task, last).top > 0
    tuned = runner.run_job(Job(one, Setting(0.1), 3, tune=True))["values"]
    assert tuned["loss"] != found["loss"] and "sharpness" not in tuned
    flat = study.STUDIES["digits-flat"]
    assert all(job.measure_curvature for job in flat.report_jobs(flat.cases[0], Setting(0.1)))


def test_a_case_is_known_by_what_it_does():
    """A note written anew, a composed row that is a published one, or a switch of speed is the same
    case; a rule or a number is not."""
    one = case("fedlora")
    words = one.method.replace(name="mine", source="composed", note="other words")
    speed = {"chunk_examples": 2}
    assert replace(one, method=words, labels={"kind": "same"}, compute=speed).key == one.key
    keys = {case(slug).key for slug in methods.ALL}
    assert len(keys) == len(methods.ALL)
    others: Any = {"epsilon": 3.0}, {"plan": {**one.plan, "rounds": 3}}, {"lora": {"rank": 1}}
    assert one.key not in {replace(one, **other).key for other in others}
    with pytest.raises(ValueError, match="chunk_examples=0: expected"):
        runner.run_job(
            Job(replace(one, compute={"chunk_examples": 0}), Setting(0.1), 3, tune=False)
        )


@pytest.mark.slow
def test_what_another_study_measured_is_not_run_again(tmp_path, monkeypatch):
    """The same case, rate and seed is taken over as it is; curvature that nobody measured is
    measured, and so is a run that began from another model."""
    first = small(case("fedlora"), case("rolora"))
    done = study.run_study(first, tmp_path / "first.jsonl", workers=0, bar=False)
    ran, result = [], runner.run_job
    monkeypatch.setattr(runner, "run_job", lambda job: ran.append(job) or result(job))
    cases = case("rolora", label="other"), case("ffa-lora")
    second = small(*cases, name="second", seeds=(0, 1, 2, 3))
    found = study.run_study(second, tmp_path / "second.jsonl", workers=0, bar=False)
    assert {job.case.method.slug for job in ran if job.seed != 3} == {"ffa-lora"}
    assert len(ran) == second.runs - first.runs // 2
    assert found == runner.load_results(tmp_path / "second.jsonl") and len(found) == second.runs
    assert all(found[key] == done[key] for key in found.keys() & done.keys())
    ran.clear()
    flat = small(case("rolora"), name="flat", measure_curvature=True)
    curved = study.run_study(flat, tmp_path / "flat.jsonl", workers=0, bar=False)
    assert [(job.seed, job.measure_curvature) for job in ran] == [(0, True), (1, True), (2, True)]
    assert sum("sharpness" in entry["values"] for entry in curved.values()) == 3
    (other := tmp_path / "older").mkdir()
    older, key = [json.loads(json.dumps(x)) for x in done.values()], next(iter(done))
    older[0]["values"]["before_loss"] *= 1.01
    (other / "first.jsonl").write_text("\n".join(map(json.dumps, older)) + "\n")
    ran.clear()
    again = study.run_study(first, other / "again.jsonl", workers=0, bar=False)
    assert [job.key for job in ran] == [key] and older[0]["key"] == key
    assert again[key]["values"]["before_loss"] == done[key]["values"]["before_loss"]


@pytest.mark.parametrize(
    "name",
    ["digits-example", "digits-client", "mnist-example", "mnist-client", "sentiment-example"],
)
def test_main_comparisons_are_tuned_finely_and_reported_with_many_seeds(name):
    """Twenty seeds; five others choose among rates a factor of two apart, over an edge if need be;
    each case has as many tries."""
    one = study.STUDIES[name]
    assert len(one.seeds) >= 20 and len(one.tune_seeds) >= 5 and one.extends
    assert max(b / a for a, b in pairwise(one.rates)) <= 2
    for each, stage in product(one.cases, one.stages):
        assert len(stage.line(each)[1]) == len(stage.factors)


@pytest.mark.parametrize("name", ["digits-client", "mnist-client", "regime-client"])
def test_the_rate_is_tried_again_at_the_clip_norm_that_was_chosen(name):
    """In the client unit a larger clip norm needs a larger rate: a search that tries the one at the
    best of the other keeps from their best the methods that need both."""
    knobs = [stage.knob for stage in study.STUDIES[name].stages]
    assert "lr" in knobs[knobs.index("clip") + 1 :]


@pytest.mark.slow
@pytest.mark.parametrize("name", study.STUDIES)
def test_committed_runs_belong_to_declared_studies(name):
    """Every committed run is known, and all are there of a study that says it is whole; every case
    that names a budget is of a certified ε, on data that can be split so (for sentiment and mnist
    see tests/tasks)."""
    one, results = study.STUDIES[name], Path(__file__).parents[2] / "results"
    done = runner.load_results(results / "runs" / f"{name}.jsonl")
    there, total = study.count_runs(one, results / "runs" / f"{name}.jsonl")
    settings = results / f"{name}.json"
    kept = json.loads(settings.read_text()) if settings.is_file() else {"done": 0, "runs": 1}
    whole = kept["done"] == kept["runs"]
    words = "a renamed rule or field has made the committed runs unknown"
    assert there == (total if whole else len(done)), words
    assert len({tuple(each.labels) for each in one.cases}) == 1
    assert "deer-literal" not in {each.method.slug for each in one.cases if each.epsilon}
    for maker, arguments in {json.dumps(each.task): each.task for each in one.cases}.values():
        offline = maker not in ("sentiment", "mnist")
        assert not offline or getattr(tasks, maker)(**arguments).clients


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cases": (case("fedlora"),) * 2}, "cases='1 twice': expected each case once"),
        ({"cases": ()}, r"cases=\(\): expected at least one"),
        ({"rates": (0.1, 0.2)}, r"rates=\(0.1, 0.2\): expected four or more, rising"),
        ({"finalists": 5}, "finalists=5: expected 1 to as many as there are rates"),
        ({"seeds": (7,)}, r"seeds=\(7,\): expected none of the tuning seeds"),
    ],
)
def test_mistakes_in_a_study_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        small(case("fedlora"), **fields)


def test_the_study_command_lists_and_names_what_there_is(tmp_path):
    """Without a name the list; a wrong name is one line that says what there is."""
    shown = CliRunner().invoke(commands, ["study", "--out", str(tmp_path)])
    assert shown.exit_code == 0 and all(name in shown.output for name in study.STUDIES)
    wrong = CliRunner().invoke(commands, ["study", "nothing", "--out", str(tmp_path)])
    assert "study='nothing': expected one of digits" in str(wrong.exception)
