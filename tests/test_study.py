"""Studies: declared grids, tuned alike, resumable; a tiny one is run for real."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from statistics import fmean
from typing import Any

import pandas as pd
import psutil
import pytest
from click.testing import CliRunner

from fedlora_lab import methods, study, tasks
from fedlora_lab.cli import commands
from fedlora_lab.study import work
from fedlora_lab.study.declared import WORDS, Case, Study

TASK: tuple[str, dict[str, Any]] = (
    "regression",
    {"clients": 3, "examples": 8, "test": 16, "d_in": 6, "d_out": 5, "rank": 2},
)


def case(slug, epsilon=None, **labels):
    plan = {"rounds": 2, "local_steps": 1, "batch": 4}
    privacy = {"delta": 1e-2, "accountant": "rdp"}
    return Case(methods.get(slug), {"epsilon": epsilon, **labels}, TASK, epsilon, privacy, plan, {"rank": 2})


def small(*cases):
    return Study("small", "a test", cases, seeds=(0, 1, 2), rates=(0.01, 0.1, 0.3, 1e9), tune_seeds=(7, 8), finalists=2)


def test_a_study_tunes_and_reports(tmp_path, monkeypatch):
    """The rate with the best validation loss that never diverged; last round; one row a reported run."""
    one, path = small(case("fedlora"), case("ffa-lora", 8.0)), tmp_path / "runs" / "small.jsonl"
    monkeypatch.setitem(study.STUDIES, "small", one)
    shown = CliRunner().invoke(commands, ["study", "small", "--workers", "2", "--out", str(tmp_path)])
    assert json.loads(shown.stdout.splitlines()[-1])["cases"] == 2
    done = work.load(path)
    assert len(done) == one.runs == 2 * (4 + 2 + 3)
    kept = json.loads((tmp_path / "small.json").read_text())
    assert (kept["command"], kept["done"], kept["runs"]) == ("fedlora-lab study small", one.runs, one.runs)
    assert study.progress(one, path) == (one.runs, one.runs)
    table: Any = study.frame(one, path)
    assert len(table) == 6
    pd.testing.assert_frame_equal(study.read("small", tmp_path), table, rtol=1e-5, check_dtype=False)
    assert set(table["seed"]) == {0, 1, 2}
    for each in one.cases:
        first = {job.lr: done[job.key]["values"]["loss"] for job in one.screening(each)}
        assert first[1e9] is None or first[1e9] > 1e3
        finite = sorted((lr for lr in first if first[lr] is not None), key=lambda lr: first[lr])
        assert work.finalists(one, each, done) == tuple(finite[:2])
        means = {lr: fmean([first[lr], *(done[job.key]["values"]["loss"] for job in one.finals(each, [lr]))])
                 for lr in finite[:2]}  # fmt: skip
        assert work.best_rate(one, each, done) == min(means, key=lambda lr: means[lr])
    private = table[table["method"] == "ffa-lora"]
    assert private["spent"].iloc[0] == pytest.approx(8.0, rel=1e-3)
    assert (table["loss"] < table["before_loss"]).mean() > 0.5
    lines = path.read_text().splitlines()
    assert study.play(one, path, workers=0, bar=False) == done
    assert path.read_text().splitlines() == lines


def test_labels_are_the_declared_ones(tmp_path):
    """What the ledger states is never exactly the budget: claims look for the budget."""
    one, path = small(case("fedlora"), case("ffa-lora", 8.0), case("ffa-lora", 3.0)), tmp_path / "small.jsonl"
    study.play(one, path, workers=0, bar=False)
    table: Any = study.frame(one, path)
    assert list(table["epsilon"].dropna().unique()) == [8.0, 3.0]
    assert table[table["method"] == "fedlora"]["epsilon"].isna().all()
    spent = table[table["epsilon"] == 3.0]["spent"]
    assert spent.iloc[0] != 3.0
    assert spent.iloc[0] == pytest.approx(3.0, rel=1e-2)


def test_one_seed_screens_and_all_seeds_choose():
    """The first seed's favourite falls apart under another; a rate that diverged comes last, and missing runs wait."""
    each = case("fedlora")
    one, done = small(each), {}
    assert work.finalists(one, each, done) is None
    for job, loss in zip(one.screening(each), (0.5, 0.4, 0.3, None), strict=True):
        done[job.key] = {"values": {"loss": loss}}
    assert work.finalists(one, each, done) == (0.3, 0.1)
    assert work.best_rate(one, each, done) is None
    for job, loss in zip(one.finals(each, (0.3, 0.1)), (None, 0.9), strict=True):
        done[job.key] = {"values": {"loss": loss}}
    assert work.best_rate(one, each, done) == 0.1
    assert one.tries == 4 + 2


def scored(one, jobs, measure, values):
    """Results of jobs, made up."""
    return {job.key: {"values": {measure: value}} for job, value in zip(jobs, values, strict=True)}


def test_the_tuning_seeds_choose_and_no_other():
    """Screening and finals together meet every finalist with each tuning seed once; reported runs take none of them."""
    one = replace(small(case("fedlora")), tune_seeds=(7, 8, 9))
    each = one.cases[0]
    tuned = [*one.screening(each), *one.finals(each, (0.1, 0.3))]
    assert all(job.tune for job in tuned)
    for lr in one.rates:
        assert [job.seed for job in tuned if job.lr == lr] == ([7, 8, 9] if lr in (0.1, 0.3) else [7])
    assert [(job.seed, job.tune) for job in one.reported(each, 0.1)] == [(0, False), (1, False), (2, False)]


@pytest.mark.parametrize("sign", [1, -1], ids=["loss", "accuracy"])
def test_the_first_seed_counts_in_the_mean_too(sign):
    """Losses or accuracies that rank alike choose alike; of two that are equal the smaller rate is taken."""
    each, measure = case("fedlora"), "loss" if sign == 1 else "accuracy"
    one = small(each)

    def chosen(first, finals):
        done = scored(one, one.screening(each), measure, [sign * value for value in first])
        rates = work.finalists(one, each, done)
        assert rates is not None
        done |= scored(one, one.finals(each, rates), measure, [sign * value for value in finals])
        return rates, work.best_rate(one, each, done)

    assert chosen((0.5, 0.375, 0.125, 0.75), (0.5, 0.375)) == ((0.3, 0.1), 0.3)
    assert chosen((0.5, 0.375, 0.125, 0.75), (0.5, 0.125)) == ((0.3, 0.1), 0.1)
    assert chosen((0.5, 0.5, 0.5, 0.5), (0.25, 0.25)) == ((0.01, 0.1), 0.01)
    assert chosen((0.5, 0.375, 0.125, 0.75), (0.5, 0.25)) == ((0.3, 0.1), 0.1), "equal means"


def test_the_result_is_that_of_the_run():
    """A job's values are the last record of the run that a user would write."""
    import fedlora_lab as fl

    one = case("rolora")
    found = work.result(work.Job(one, 0.1, 3, tune=False))["values"]
    plan = fl.Plan(**one.plan, lr=0.1)
    task = fl.tasks.regression(**TASK[1])
    last = list(fl.run(task, "rolora", None, plan, lora=fl.Lora(rank=2), seed=3))[-1]
    assert found["loss"] == last.metrics["loss"]
    tuned = work.result(work.Job(one, 0.1, 3, tune=True))["values"]
    assert tuned["loss"] != found["loss"]


def test_switches_of_speed_reach_the_run():
    """They are no part of what names a run, and a wrong one is refused by the run."""
    one = case("fedlora")
    assert replace(one, compute={"chunk_examples": 2}).key == one.key
    with pytest.raises(ValueError, match="chunk_examples"):
        work.result(work.Job(replace(one, compute={"chunk_examples": 0}), 0.1, 3, tune=False))


def test_noise_and_curvature_of_a_reported_run():
    """The last round's noise, summed over the layers, and the curvature where the study asks for it."""
    import fedlora_lab as fl

    one = case("fedlora", 8.0)
    found = work.result(work.Job(one, 0.1, 3, tune=False, flat=True))["values"]
    task, plan = fl.tasks.regression(**TASK[1]), fl.Plan(**one.plan, lr=0.1)
    privacy = fl.Privacy(**one.privacy).calibrate(epsilon=8.0, task=task, plan=plan)
    last = list(fl.run(task, "fedlora", privacy, plan, lora=fl.Lora(rank=2), seed=3))[-1]
    for name in ("noise_A", "noise_B", "noise_BA"):
        assert found[name] == sum(value for _, measure, value in last.rows if measure == name) > 0
    assert found["sharpness"] == fl.measures.flatness(task, last).top > 0
    assert "sharpness" not in work.result(work.Job(one, 0.1, 3, tune=False))["values"]
    assert all(job.flat for job in study.STUDIES["digits-flat"].reported(one, 0.1))


def test_a_killed_study_goes_on(tmp_path):
    """kill -9 in the middle: workers end, what was finished stays, a torn line is passed over, nothing is run twice."""
    path = tmp_path / "small.jsonl"
    code = (
        "import sys; sys.path[:0] = ['tests']\n"
        "from pathlib import Path; import test_study as t; from fedlora_lab import study\n"
        "if __name__ == '__main__':\n"
        "    study.play(t.small(t.case('fedlora'), t.case('rolora')), Path(sys.argv[1]), bar=False)"
    )
    script = tmp_path / "play.py"
    script.write_text(code)
    process = subprocess.Popen([sys.executable, str(script), str(path)], start_new_session=True)
    until = time.monotonic() + 600
    while not (path.exists() and path.read_text().count("\n") >= 3):
        assert time.monotonic() < until
        assert process.poll() is None or path.exists()
        time.sleep(0.05)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert psutil.wait_procs(workers, timeout=300)[1] == [], "a worker goes on without its parent"
    before = path.read_text()
    with open(path, "a") as file:
        file.write('{"key": "half a li')
    one = small(case("fedlora"), case("rolora"))
    study.play(one, path, bar=False)
    after = path.read_text()
    assert after.startswith(before)
    keys = [json.loads(line)["key"] for line in after.splitlines() if line.endswith("}")]
    assert len(keys) == len(set(keys)) == one.runs


def test_a_case_is_known_by_what_it_does():
    """A note written anew, or a composed row that is a published one, is the same case; a rule or a number is not."""
    one = case("fedlora")
    words = one.method.replace(name="mine", source="composed", note="other words")
    assert replace(one, method=words, labels={"kind": "same"}).key == one.key
    for name in methods.Method.__dataclass_fields__:
        assert (name in WORDS) == (name in ("name", "source", "note", "exact"))
    keys = {case(slug).key for slug in (*methods.ALL, *methods.VARIANTS)}
    assert len(keys) == len(methods.ALL) + len(methods.VARIANTS)
    others = [replace(one, epsilon=3.0), replace(one, plan={**one.plan, "rounds": 3}), replace(one, lora={"rank": 1})]
    assert one.key not in {other.key for other in others}


def test_what_another_study_measured_is_not_run_again(tmp_path, monkeypatch):
    """The same case, rate and seed: taken over as it is. Curvature that nobody measured is measured."""
    first = small(case("fedlora"), case("rolora"))
    done = study.play(first, tmp_path / "first.jsonl", workers=0, bar=False)
    ran, result = [], work.result
    monkeypatch.setattr(work, "result", lambda job: ran.append(job) or result(job))
    second = replace(small(case("rolora", label="other"), case("ffa-lora")), name="second", seeds=(0, 1, 2, 3))
    found = study.play(second, tmp_path / "second.jsonl", workers=0, bar=False)
    assert {job.case.method.slug for job in ran if job.seed != 3} == {"ffa-lora"}
    assert len(ran) == second.runs - first.runs // 2
    assert found == work.load(tmp_path / "second.jsonl") and len(found) == second.runs
    assert all(found[key] == done[key] for key in found.keys() & done.keys())
    ran.clear()
    flat = replace(small(case("rolora")), name="flat", flat=True)
    curved = study.play(flat, tmp_path / "flat.jsonl", workers=0, bar=False)
    assert [job.seed for job in ran] == [0, 1, 2] and all(job.flat for job in ran)
    assert sum("sharpness" in entry["values"] for entry in curved.values()) == 3


@pytest.mark.parametrize("name", study.STUDIES)
def test_declared_studies(name):
    """Equal tuning for all, reported seeds of their own, every case a run that could start."""
    one = study.STUDIES[name]
    assert len(one.rates) >= 4
    assert one.seeds[0] not in one.tune_seeds
    labels = {tuple(each.labels) for each in one.cases}
    assert len(labels) == 1
    slugs = [each.method.slug for each in one.cases]
    settings = len({json.dumps(dict(each.labels)) for each in one.cases})
    assert len(slugs) <= settings * len(set(slugs))
    assert all(each.method.slug != "deer-literal" for each in one.cases)
    for maker, arguments in {json.dumps(each.task): each.task for each in one.cases}.values():
        assert getattr(tasks, maker)(**arguments).clients


def test_the_main_study_is_what_was_asked():
    """All methods at four budgets; eight at two more splits; ten seeds and more."""
    one = study.STUDIES["digits"]
    whole = [each for each in one.cases if each.labels["alpha"] == 0.5]
    assert {each.epsilon for each in whole} == {1.0, 3.0, 8.0, None}
    assert {each.method.slug for each in whole} >= set(methods.ALL) - {"deer-literal"}
    other = [each for each in one.cases if each.labels["alpha"] != 0.5]
    assert len(other) == 16
    assert len(one.seeds) >= 10


def test_mistakes_in_a_study():
    one = small(case("fedlora"))
    with pytest.raises(ValueError, match="cases"):
        replace(one, cases=one.cases * 2)
    with pytest.raises(ValueError, match="rates"):
        replace(one, rates=(0.1, 0.2))
    with pytest.raises(ValueError, match="rates"):
        replace(one, rates=(0.3, 0.1, 0.2, 0.4))
    for wrong in (0, 5):
        with pytest.raises(ValueError, match="finalists"):
            replace(one, finalists=wrong)
    with pytest.raises(ValueError, match=r"seeds=.*tuning"):
        replace(one, seeds=(7,))


def test_the_command(tmp_path):
    """Without a name the list; a wrong name is one line that says what there is."""
    shown = CliRunner().invoke(commands, ["study", "--out", str(tmp_path)])
    assert shown.exit_code == 0
    assert all(name in shown.output for name in study.STUDIES)
    wrong = CliRunner().invoke(commands, ["study", "nothing", "--out", str(tmp_path)])
    assert isinstance(wrong.exception, ValueError)
    assert "one of digits" in str(wrong.exception)


def test_a_committed_frame_is_read(tmp_path):
    pd.DataFrame({"method": ["fedlora"]}).to_csv(tmp_path / "digits.csv", index=False)
    assert study.read("digits", tmp_path)["method"].tolist() == ["fedlora"]
    with pytest.raises(ValueError, match="`fedlora-lab study rank` makes it"):
        study.read("rank", tmp_path)
