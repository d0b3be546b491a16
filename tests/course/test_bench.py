"""The live bench, driven by the messages that its page sends."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
from wait_for_thread import until

import fedlora_course as course
import fedlora_lab as fl
from fedlora_course.widgets.bench import Workbench

PLAN = fl.Plan(rounds=2, local_steps=2, batch=8)
PRIVACY = fl.Privacy(delta=1e-3)


@pytest.fixture(scope="module")
def toy():
    return fl.tasks.regression(clients=2, examples=40, d_in=3, d_out=3, rank=1, test=4)


@pytest.fixture
def make(toy):
    """Makes benches, and closes them."""
    made = []

    def live(task=toy, plan=PLAN, privacy=PRIVACY, **given):
        made.append(course.widgets.live(task, plan=plan, privacy=privacy, **given))
        return made[-1]

    yield live
    for bench in made:
        bench.close()


def done(bench):
    until(lambda: not bench.alive)
    return bench


def turn(bench, **values):
    bench.values = {**bench.values, **values}
    bench._foreseer.join()  # until what is known before a run is shown
    return bench.facts


def test_a_bench_opens_with_what_its_page_is_made_of(make, monkeypatch):
    """A notebook may show it before it hears of changes, as Colab's widget manager does."""
    states = []
    opened = Workbench.open

    def record(self):
        states.append(self.get_state())
        opened(self)

    monkeypatch.setattr(Workbench, "open", record)
    bench = make()
    (state,) = states
    assert state["setup"] == bench.setup and state["values"] == bench.values
    assert {knob["key"] for knob in bench.setup["knobs"]} >= bench.values.keys()


@pytest.mark.slow
def test_what_is_shown_before_a_run_is_what_the_library_computes(make):
    """It follows the knobs, and says in one line what cannot run."""
    task = fl.tasks.digits(clients=3, seed=1)
    bench = make(task, privacy=fl.Privacy(delta=1e-4))
    calibrated = fl.Privacy(delta=1e-4).calibrate(epsilon=1, task=task, plan=PLAN)
    for shown in turn(bench, epsilon="1", method="rolora", beside="ffa-lora")["methods"]:
        known = fl.noise_amplification(task, shown["slug"], calibrated, PLAN)
        rate = fl.suggest_lr(task, shown["slug"], calibrated, PLAN).lr
        expected = {"ρ": known.mean, "v": known.output_variance}
        words = {term: f"{value:.2g}" for term, value in expected.items()}
        assert shown["known"] == {**words, "suggested": f"η = {rate:.2g}"}
    assert turn(bench, protection="clip")["methods"][0]["known"] == {}
    assert "rank=0: expected" in turn(bench, rank="0")["problem"]
    bench.act("train")
    assert "rank=0: expected" in bench.status["text"] and not bench.alive


TURNED: dict[str, dict[str, Any]] = {
    "method": {"method": "rolora"},
    "no second method": {"beside": ""},
    "clip, no noise": {"protection": "clip"},
    "no clip": {"protection": "none"},
    "unit": {"unit": "client", "epsilon": "50"},
    "clip norm": {"clip_norm": "0.5"},
    "rank": {"rank": "1"},
    "rate": {"lr": "1.6"},
    "rounds": {"rounds": "1"},
}


def expected_records(task, slug, values):
    """The run that the words of the knobs name, by the library alone."""
    plan = PLAN.replace(lr=float(values["lr"]), rounds=int(values["rounds"]))
    privacy = PRIVACY.replace(unit=values["unit"], clip_norm=float(values["clip_norm"]))
    protection = {
        "none": lambda: None,
        "clip": lambda: privacy.replace(noise_multiplier=0.0),
        "noise": lambda: privacy.calibrate(epsilon=float(values["epsilon"]), task=task, plan=plan),
    }[values["protection"]]()
    lora = fl.Lora(rank=int(values["rank"]))
    return list(fl.run(task, slug, protection, plan, lora=lora, seed=0))


@pytest.mark.parametrize("values", TURNED.values(), ids=TURNED)
def test_a_bench_trains_what_its_knobs_say(make, toy, values):
    bench = make(epsilon=50.0)
    bench.values = {**bench.values, **values}
    bench.act("train")
    done(bench)
    slugs = [slug for slug in (bench.values["method"], bench.values["beside"]) if slug]
    assert [row["values"]["method"] for row in bench.table] == slugs
    for row in bench.table:
        records = expected_records(toy, row["values"]["method"], bench.values)
        scores = [record.metrics["loss"] for record in records]
        assert [point[1] for point in row["series"]] == pytest.approx(scores)
        assert row["state"] == "finished"


def test_a_row_keeps_its_own_recipe(make):
    bench = make(epsilon=None)
    bench.act("train")
    done(bench)
    before = bench.table
    turn(bench, method="rolora", rank="1")
    bench.act("train")
    done(bench)
    assert bench.table[:2] == before
    assert bench.table[2]["values"]["rank"] == "1"


def test_a_sweep_has_both_methods_at_every_rate_with_intervals(make):
    """Its rows are no row of a run that was started alone."""
    mine = fl.methods.FedLoRA.replace(name="mine", aggregate=lambda state, *_: state)
    bench = make(method=mine, epsilon=None, rates=(0.1, 0.2))
    bench.act("train")
    turn(done(bench), seeds="2")
    bench.act("sweep")
    done(bench)
    swept = [row for row in bench.table if row["sweep"] is not None]
    assert [(row["values"]["lr"], row["values"]["method"]) for row in swept] == [
        *itertools.product(("0.1", "0.2"), ("mine", "ffa-lora"))
    ]
    assert {row["sweep"] for row in swept} == {2} and bench.table[0]["sweep"] is None
    _, mean, low, high = swept[1]["series"][-1]
    assert low < mean < high
    assert bench.table[0]["series"][-1][2:] == [None, None]


def test_a_sweep_ends_with_stop_and_with_a_new_workbench(make):
    """What has not begun leaves the table."""
    for end in (lambda bench: bench.act("stop"), lambda bench: make(epsilon=None)):
        bench = make(plan=PLAN.replace(rounds=5000), epsilon=None)
        bench.act("sweep")
        until(lambda bench=bench: bench.table)
        bench.act("train")
        assert "under way" in bench.status["text"]
        end(bench)
        done(bench)
        assert [row["state"] for row in bench.table] == ["stopped"]
        assert bench.status["text"] == "stopped"


def test_an_error_is_one_line_of_its_row(make, toy):
    """The other rows are trained all the same."""
    calls = itertools.count()

    def loss(outputs, y):
        if next(calls) == 1:
            raise RuntimeError("planted\nfailure")
        return toy.metrics["loss"](outputs, y)

    bench = make(replace(toy, metrics={"loss": loss}), epsilon=None)
    bench.act("train")
    states = [row["state"] for row in done(bench).table]
    assert states[1] == "finished" and states[0].endswith("RuntimeError: planted failure")


def test_the_bench_shows_nothing_of_private_test_examples(make, toy):
    bench = make(replace(toy, held_out=replace(toy.held_out, public=False)), epsilon=50.0)
    bench.act("train")
    done(bench)
    points = [point for row in bench.table for point in row["series"]]
    assert points and all(point[1:] == [None] * 3 for point in points)


def test_the_shares_of_a_product_are_its_noise_and_the_rest(make):
    """Where A rests no noise meets noise; without noise everything was learned."""
    bench = make(epsilon=50.0)
    bench.act("train")
    done(bench)
    turn(bench, protection="clip")
    bench.act("train")
    fedlora, frozen, plain, _ = [row["parts"] for row in done(bench).table]
    assert sum(fedlora) == pytest.approx(1) and fedlora[1] > 0
    assert frozen[0] > 0 and frozen[1] == 0
    assert plain == pytest.approx((0, 0, 1))
