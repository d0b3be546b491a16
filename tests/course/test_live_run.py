"""The live bench, driven by the messages that its page sends."""

import itertools
import re
from dataclasses import replace
from typing import Any

import pytest
from toy_tasks import with_private_test
from wait_for_thread import WAIT, until

import fedlora_course as course
import fedlora_lab as fl
from fedlora_course.widgets.live_run import Workbench
from fedlora_course.widgets.run_config import RunConfig, knobs
from fedlora_course.widgets.run_row import RunRow, differing_knobs, label_parts
from fedlora_lab.federated.exchange import bytes_of_round
from fedlora_lab.federated.make_config import make_config

PLAN = fl.Plan(rounds=2, local_steps=2, batch=8)
PRIVACY = fl.Privacy(delta=1e-4)
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def task():
    return fl.tasks.digits(clients=3, seed=1)


@pytest.fixture
def make(task):
    """Makes workbenches, and closes them."""
    made = []

    def live(task=task, plan=PLAN, privacy=PRIVACY, **given):
        made.append(course.widgets.live(task, plan=plan, privacy=privacy, **given))
        return made[-1]

    yield live
    for run in made:
        run.close()


def done(bench):
    until(lambda: not bench.alive)
    return bench


def train(bench, **texts):
    bench.act("set", values=texts)
    bench.act("start")
    return done(bench)


# ---- what is known before Start


@slow
def test_the_numbers_before_start_are_those_of_the_run(make, task):
    """Noise multiplier, ρ, v and bytes; they follow the knobs."""
    plan = fl.Plan(rounds=40, local_steps=2, batch=8, lr=0.3)
    privacy = PRIVACY.replace(unit="client")
    config = RunConfig(task, fl.methods.RoLoRA, plan, privacy, 8.0)
    calibrated = privacy.calibrate(epsilon=8.0, task=task, plan=plan)
    facts = dict(config.facts())
    assert facts["noise multiplier σ"].split()[0] == f"{calibrated.noise_multiplier:.3g}"
    number = fl.noise_amplification(task, "rolora", calibrated, plan)
    for fact, value in (
        ("noise that A takes up, ρ", number.mean),
        ("noise on an output, v; predicted end of the range: 0.35", number.output_variance),
    ):
        stated = float(facts[fact].split()[0].replace(",", "").rstrip(";"))
        assert stated == pytest.approx(value, rel=0.06)
    up, _ = bytes_of_round(make_config(task, config.method, None, plan, config.lora, 0))
    assert facts["sent in a round"] == f"{3 * up / 1000:.1f} kB each way"
    bench = make(plan=None)  # so that the rate is the suggested one, on which ρ depends
    on_the_bench = [knob["key"] for knob in bench.setup["knobs"] if not knob["group"]]
    assert on_the_bench == ["method", "epsilon", "lr"]
    assert bench.settle(WAIT)
    before = bench.facts
    assert before == bench.config.facts()
    bench.set(epsilon="1")
    assert bench.settle(WAIT) and bench.facts != before
    bench.set(delta="0.5")
    assert bench.settle(WAIT)
    assert bench.facts[0][0] == "this cannot run" and "delta=0.5" in bench.facts[0][1]


WRITTEN = {
    "method": "ffa-lora",
    "epsilon": "∞",
    "lr": "0.123",
    "lr_ratio": "2",
    "unit": "client",
    "clip_norm": "0.5",
    "delta": "0.001",
    "clients": "5",
    "participation": "0.5",
    "rank": "8",
    "alpha": "16",
    "rounds": "7",
    "local_steps": "3",
    "batch": "all",
    "seed": "11",
    "beta": "∞",
}
REFUSED = {
    "rank": "100000",
    "batch": "1.5",
    "seed": "-1",
    "rounds": "0",
    "epsilon": "0",
    "method": "nobody",
    "clients": "100000",
    "trust": "central",
}


def test_a_workbench_opens_with_what_its_page_is_made_of(make, monkeypatch):
    """A notebook may show it before it hears of changes, as Colab's widget manager does."""
    states = []
    opened = Workbench.open

    def record(self):
        states.append(self.get_state())
        opened(self)

    monkeypatch.setattr(Workbench, "open", record)
    bench = make(presets={"one": {"rounds": 3}})
    (state,) = states
    assert state["setup"]["knobs"] == bench.setup["knobs"]
    assert state["status"] == bench.status
    assert state["sweep"] == bench.sweep


def test_every_knob_reads_what_it_wrote(task):
    """Of the page's own stops and of typed values; and only what it is about changes."""
    first = RunConfig(task, fl.methods.RoLoRA, PLAN, PRIVACY, 8.0)
    table = knobs(first, fl.methods.ALL)
    assert {*table} == {*WRITTEN, "trust"}
    for key, typed in WRITTEN.items():
        changed = table[key].write(first, typed)
        assert table[key].read(changed) == typed, key
        moved = {name for name, knob in table.items() if knob.read(changed) != knob.read(first)}
        assert moved == {key} | ({"trust"} if key == "unit" else set()), key
    for key, typed in REFUSED.items():
        with pytest.raises(ValueError, match="expected"):
            table[key].write(first, typed)


@slow
def test_what_is_typed_and_clicked_is_set_or_refused_beside_its_knob(make):
    """Fault: a typed value that stops the page, or a named setting that keeps what was turned."""
    with pytest.raises(ValueError, match="expected"):
        make(presets={"tiny": {"rank": 0}})
    bench = make(presets={"tiny": {"rank": 1, "epsilon": None}})
    bench.act("set", values={"rank": "many", "epsilon": "2"})
    assert bench.errors == {"rank": "typed='many': expected a whole number, at most 1024"}
    assert bench.values["rank"] == "many" and bench.config.epsilon == 2.0
    bench.act("start")
    assert not bench.alive and bench.status["error"]
    bench.set(alpha=3, method="fedlora")
    bench.act("preset", name="tiny")
    assert bench.errors == {} and bench.config.epsilon is None
    assert bench.config.lora == fl.Lora(rank=1) and bench.values["method"] == "fedlora"


# ---- runs, and what is said of them


@slow
def test_a_run_keeps_its_own_recipe(make):
    """Whatever the knobs say after a run or during it: cell and recipe are those it was started
    with.
    """
    bench = make()
    train(bench)
    before = bench.table
    bench.set(method="fedlora", rounds=1, epsilon=2)
    assert bench.table == before
    bench.start()
    bench.set(method="ffa-lora", rounds=7)
    done(bench)
    recipes = [[row["recipe"][k] for k in ("method", "epsilon", "rounds")] for row in bench.table]
    assert recipes == [["rolora", "8", "2"], ["fedlora", "2", "1"]]
    assert "rounds=2" in bench.table[0]["cell"]


@pytest.mark.parametrize(
    ("changes", "differing", "labels"),
    [
        ([{"epsilon": "1"}], [], ["FedLoRA"]),
        ([{}, {}], [], ["FedLoRA (1)", "FedLoRA (2)"]),
        # A rate that followed, or a trust, is no difference of its own.
        ([{"epsilon": "1", "lr": "0.05"}, {}], ["epsilon"], ["FedLoRA ε = 1", "FedLoRA ε = 8"]),
    ],
)
def test_curves_are_labelled_by_what_differs(task, changes, differing, labels):
    base = RunConfig(task, fl.methods.FedLoRA, PLAN, PRIVACY, 8.0)
    table = knobs(base, fl.methods.ALL)
    rows = []
    for i, change in enumerate(changes):
        config = base
        for key, typed in change.items():
            config = table[key].write(config, typed)
        recipe = {key: knob.read(config) for key, knob in table.items()}
        rows.append(RunRow(i, config, recipe, (0,), True))
    assert differing_knobs(rows) == differing
    assert [" ".join(text for _, text in parts) for parts in label_parts(rows, table)] == labels


@pytest.mark.parametrize(
    "change",
    [
        {"plan": fl.Plan(lr={"A": 0.1, "B": 0.2}, optimizer=fl.SGD(0.5)), "epsilon": None},
        {"method": fl.methods.FedLoRA.replace(name="mine"), "epsilon": 2.0},
        {"privacy": fl.Privacy(unit="client", clip_norm=0.5, delta=1e-2)},
    ],
)
def test_the_cell_is_complete(task, change):
    base = RunConfig(task, fl.methods.FFA, fl.Plan(rounds=1), PRIVACY, 8.0, fl.Lora(), 0)
    config = replace(base, **change)
    cell = config.cell().replace("...  # your row 'mine'", "row")
    assert ("row" in cell) == ("method" in change)
    room: dict[str, Any] = {"row": config.method}
    exec(cell.split("privacy = ")[0], room)
    assert room["plan"] == config.plan and room["task"].fingerprint == task.fingerprint
    privacy = eval(cell.split("privacy = ")[1].split("\n")[0], {"fl": fl})
    assert privacy == (None if config.epsilon is None else config.privacy)


# ---- sweeps, pauses, errors


@slow
def test_a_sweep_has_rows_with_seeds_and_their_intervals(make):
    """Each value at the rate suggested for it, two runs at once."""
    bench = make(sweep={"epsilon": (2, None)}, epsilon=8.0, plan=None)
    bench.set(rounds=1, local_steps=1, batch=8)
    assert bench.sweep == {"key": "epsilon", "values": "2, ∞", "seeds": 3}
    seen = []
    bench.send = seen.append
    bench.act("run_sweep", key="epsilon", values="2, ∞", seeds=2)
    done(bench)
    assert sorted(message["row"] for message in seen) == [0] * 4 + [1] * 4
    _, mean, low, high = seen[-1]["series"]["accuracy"][-1]
    assert low < mean < high
    assert {row["sweep"] for row in bench.table} == {0}
    for row, epsilon in zip(bench.table, (2.0, None), strict=True):
        asked = replace(bench.config, epsilon=epsilon)
        assert float(row["recipe"]["lr"]) == public_rate(asked)
    assert set(bench.rows[0].points) == {0, 1}


@slow
@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("method", "mine, ffa-lora"),
        ("epsilon", "2, ∞"),
        ("unit", "example, client"),
        ("lr_ratio", "1, 2"),
        ("clients", "2, 3"),
    ],
)
def test_a_sweep_trains_what_its_rows_say(make, key, values):
    """Whether a grid varies it, a plan of each method, or data that are dealt anew; a row of one's
    own, which no other process could import, among them."""
    mine = fl.methods.FedLoRA.replace(name="mine", aggregate=lambda state, *_: state)
    toy = fl.tasks.regression(clients=2, examples=40, d_in=3, d_out=3, rank=1, test=4)
    bench = make(toy, plan=None, privacy=fl.Privacy(delta=1e-3), method=mine, epsilon=8.0)
    bench.set(rounds=1, local_steps=2, batch=8)
    bench.run_sweep(key, values, seeds=1)
    assert done(bench).status["state"] == "finished", bench.status
    assert [row.recipe[key] for row in bench.rows] == values.split(", ")
    for row in bench.rows:
        config = row.config
        alone = fl.run(
            config.task, config.method, config.calibrated(), config.plan, lora=config.lora, seed=0
        )
        *_, last = alone
        measured = last.measures()
        for name in ("epsilon", "loss", "deviation"):
            assert row.points[0][-1][name] == pytest.approx(measured[name], rel=1e-3, nan_ok=True)


@slow
def test_a_value_that_cannot_be_run_is_refused_before_any_run(make):
    """The last of them too, and one value typed twice."""
    bench = make(epsilon=8.0)
    for key, values, line in (
        ("delta", "1e-4, 0.05", "delta=0.05: expected"),
        ("rank", "2, 0", "rank=0: expected"),
        ("epsilon", "8, 8.0", "two to eight values"),
    ):
        bench.act("run_sweep", key=key, values=values, seeds=1)
        assert line in bench.status["error"] and not bench.rows and not bench.alive


@slow
def test_a_sweep_pauses_and_a_new_workbench_ends_it(make):
    """What has not begun leaves the table."""
    bench = make(plan=PLAN.replace(rounds=100))
    bench.run_sweep("rank", "2, 4, 8", seeds=3)
    until(lambda: bench._ticks > 2)
    bench.act("pause")
    until(lambda: bench.worker.state == "paused")
    ticks = bench._ticks
    bench.act("resume")
    until(lambda: bench._ticks > ticks)
    make()
    assert not bench.worker.alive and bench.worker.state == "stopped"
    assert len(bench.table) == 1
    assert re.match(r"stopped at round \d+ of 100", bench.table[0]["note"])


@slow
def test_live_shows_an_error(make, task):
    """In a sweep the other values are trained all the same."""
    calls = itertools.count()

    def loss(outputs, y):
        if next(calls) == 3:
            raise RuntimeError("planted\nfailure")
        return task.loss(outputs, y)

    bench = make(replace(task, loss=loss), epsilon=None)
    bench.run_sweep("rank", "2, 4", seeds=1)
    done(bench)
    assert bench.status["state"] == "failed"
    assert sorted(row.state for row in bench.rows) == ["failed", "finished"]
    told = [row["note"] for row in bench.table if "planted" in row["note"]]
    assert told == [bench.status["error"]]
    assert told[0].endswith("RuntimeError: planted failure")


# ---- the learning rate, and the promise


def public_rate(config):
    """The rate that the library suggests for a configuration; without privacy the plan's own."""
    privacy = config.calibrated()
    if privacy is None:
        return fl.Plan().lr
    lr = fl.suggest_lr(config.task, config.method, privacy, config.plan, config.lora).lr
    return float(f"{lr:.2g}")


@slow
def test_the_rate_follows_method_budget_and_unit_until_the_reader_sets_it(make):
    bench = make(plan=None)

    def rate(**changes):
        bench.set(**changes)
        assert bench.settle(WAIT)
        return bench.config.plan.rate("B")

    eight = rate()
    assert eight == public_rate(bench.config)
    assert rate(method="ffa-lora", epsilon=None) == fl.Plan().lr
    assert rate(epsilon=20, unit="client", method="rolora") == fl.Plan().lr
    assert rate(unit="example", lr=2) == rate(epsilon=8) == 2.0, "the reader's own"
    assert f"suggested: {eight:g}, from public numbers, by " in bench.advice["words"]
    bench.act("suggest")
    assert rate() == eight
    assert rate(epsilon=1) == public_rate(bench.config) < eight, "it follows again"
    given = make(plan=PLAN.replace(lr=0.3))
    assert given.settle(WAIT) and given.config.plan.rate("B") == 0.3, "a plan's rate stays at first"


@slow
def test_live_calibrates_for_the_plan_that_runs(make, task):
    """A plan that was calibrated for fewer rounds is calibrated anew: what is spent stays within
    the promise.
    """
    short = fl.Plan(rounds=1, local_steps=1, batch=8)
    privacy = PRIVACY.calibrate(epsilon=2.0, task=task, plan=short)
    bench = train(make(privacy=privacy, plan=short, epsilon=2.0), rounds=4)
    spent = bench.rows[0].points[0][4]["epsilon"]
    assert 1.9 < spent <= 2.0 and bench.table[0]["spent"] == "2.00"


@slow
def test_live_shows_nothing_of_private_test_examples(make, task):
    """Neither before the run nor in any round of it."""
    bench = make(with_private_test(task), plan=fl.Plan(rounds=1, local_steps=1))
    assert "accuracy –" in bench.say and bench.setup["start"] is None
    seen = []
    bench.send = seen.append
    train(bench)
    assert "accuracy – (– before)" in bench.say and bench.table[0]["score"] == "–"
    points = [point for message in seen for point in message["series"]["accuracy"]]
    assert points and all(point[1:] == [None] * 3 for point in points)
