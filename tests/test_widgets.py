"""The worker with real iterators, the dial, and the live run driven through its own buttons."""

import html
import itertools
import re
import threading
import time
from dataclasses import replace

import ipywidgets as w
import numpy as np
import pandas as pd
import pytest

import fedlora_lab as fl
from fedlora_lab.plots.style import paper, picture
from fedlora_lab.widgets import controls
from fedlora_lab.widgets.recipe import Recipe
from fedlora_lab.widgets.worker import Latest, Worker, one_line

WAIT = 60.0


def until(condition, seconds=WAIT):
    """Wait for a condition; fails when it does not come true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        time.sleep(0.005)


class Steps:
    """An iterator that counts what was taken from it and notices its end."""

    def __init__(self, count=10**9, rest=0.002, fails_at=None):
        self.count, self.rest, self.fails_at, self.taken, self.closed = count, rest, fails_at, 0, False

    def __call__(self):
        try:
            for i in range(self.count):
                if i == self.fails_at:
                    raise RuntimeError("planted\nfailure")
                self.taken += 1
                time.sleep(self.rest)
                yield i
        finally:
            self.closed = True


# the worker -------------------------------------------------------------------------------------------------------


def test_a_worker_sees_every_item_in_order():
    steps, seen, states = Steps(count=20, rest=0), [], []
    worker = Worker(steps, seen.append, states.append)
    assert worker.state == "ready"
    worker.start()
    until(lambda: not worker.alive)
    assert seen == list(range(20))
    assert states == ["running", "finished"]
    assert steps.closed


def test_pause_takes_nothing():
    steps, seen, states = Steps(), [], []
    worker = Worker(steps, seen.append, states.append)
    worker.start()
    until(lambda: len(seen) > 3)
    worker.pause()
    until(lambda: worker.state == "paused")
    taken, clock = steps.taken, worker.seconds
    time.sleep(0.2)
    assert steps.taken == taken == len(seen)
    worker.resume()
    until(lambda: len(seen) > taken + 3)
    assert worker.seconds < clock + 0.2  # the pause is not counted
    assert worker.stop(WAIT)
    assert states == ["running", "paused", "running", "stopped"]
    assert seen == list(range(len(seen)))


def test_stop_is_within_one_item():
    steps, seen = Steps(rest=0.05), []
    worker = Worker(steps, seen.append)
    worker.start()
    until(lambda: len(seen) >= 2)
    taken = steps.taken
    worker.stop()
    until(lambda: not worker.alive)
    assert steps.taken <= taken + 1
    assert steps.closed
    assert worker.state == "stopped"


def test_stop_ends_a_pause():
    steps = Steps()
    worker = Worker(steps, lambda item: None)
    worker.start()
    worker.pause()
    until(lambda: worker.state == "paused")
    assert worker.stop(WAIT)
    assert worker.state == "stopped"
    assert steps.closed


@pytest.mark.parametrize("fails_at", [0, 3])
def test_an_iterator_that_raises(fails_at, recwarn):
    seen, states = [], []
    worker = Worker(Steps(rest=0, fails_at=fails_at), seen.append, states.append)
    worker.start()
    until(lambda: not worker.alive)
    assert seen == list(range(fails_at))
    assert states == ["running", "failed"]
    assert worker.error == "RuntimeError: planted failure"


def test_errors_around_the_iterator():
    def broken():
        raise ValueError("epsilon=0: expected > 0")

    def refuse(item):
        raise OSError("the screen is gone")

    for make, see, line in (
        (broken, print, "epsilon=0: expected > 0"),
        (Steps(), refuse, "OSError: the screen is gone"),
    ):
        worker = Worker(make, see)
        worker.start()
        until(lambda worker=worker: not worker.alive)
        assert (worker.state, worker.error) == ("failed", line)


def test_a_display_that_is_gone_brings_no_traceback():
    def changed(state):
        if state != "running":
            raise RuntimeError("closed")

    worker = Worker(Steps(count=2), lambda item: None, changed)
    worker.start()
    until(lambda: not worker.alive)  # an exception that escaped would be a warning, and so an error here
    assert worker.error == "RuntimeError: closed"


def test_one_line():
    assert one_line(ValueError("a=1: expected b")) == "a=1: expected b"
    assert one_line(KeyError("a")) == "KeyError: 'a'"
    assert one_line(RuntimeError("")) == "RuntimeError: no message"
    assert len(one_line(RuntimeError("x\n" * 500))) == 200


# drawing that keeps up ---------------------------------------------------------------------------------------------


def test_latest_answers_the_last():
    asked, shown = [], []

    def answer(request):
        asked.append(request)
        time.sleep(0.03)
        return -request

    latest = Latest(answer, shown.append)
    for i in range(50):
        latest.ask(i)
        time.sleep(0.002)
    assert latest.settle(WAIT)
    assert shown[-1] == -49
    assert len(asked) < 25
    assert asked == sorted(asked)
    latest.ask(7)
    assert latest.settle(WAIT)
    assert shown[-1] == -7


def test_latest_drops_the_overtaken():
    gate, shown = threading.Event(), []

    def answer(request):
        if request == "slow":
            gate.wait(WAIT)
        return request

    latest = Latest(answer, shown.append)
    latest.ask("first")
    assert latest.settle(WAIT)
    latest.ask("slow")
    time.sleep(0.05)
    latest.ask("new")
    gate.set()
    assert latest.settle(WAIT)
    assert shown == ["first", "new"]


def test_latest_survives_errors_and_leaves_no_thread():
    failures, shown, threads = [], [], threading.active_count()
    latest = Latest(lambda request: 1 / request, shown.append, failures.append)
    latest.ask(0)
    assert latest.settle(WAIT)
    latest.ask(2)
    assert latest.settle(WAIT)
    assert failures == ["ZeroDivisionError: division by zero"]
    assert shown == [0.5]
    latest.close()
    latest.ask(4)
    assert latest.settle(WAIT)
    assert shown == [0.5]
    until(lambda: threading.active_count() <= threads)


# dials ------------------------------------------------------------------------------------------------------------


def plot(width=1.0, shape="line", bold=False):
    if width > 2:
        raise ValueError(f"width={width}: expected at most 2")
    with paper():
        figure = picture(3, 2)
        ax = figure.add_axes((0.1, 0.1, 0.8, 0.8))
        ax.plot([0, width], lw=4 if bold else 1, marker="o" if shape == "dots" else "")
        ax.set_ylim(0, 3)
    return figure, f"The line ends at {width:g}."


def test_a_dial_draws_at_once():
    dial = fl.widgets.dial(plot, width=(1.0, 0.0, 3.0), shape=["line", "dots"], bold=False)
    assert bytes(dial.picture.value).startswith(b"\x89PNG")
    assert (dial.picture.width, dial.picture.height) == ("300", "200")
    assert "The line ends at 1." in dial.sentence.value
    assert [type(knob) for knob in dial.knobs.values()] == [w.FloatSlider, w.Dropdown, w.Checkbox]


def test_a_dial_draws_the_last():
    dial, calls = fl.widgets.dial(plot, width=(1.0, 0.0, 2.0)), []
    dial.plot = lambda **values: (calls.append(values), plot(**values))[1]
    first = dial.picture.value
    for value in np.linspace(1, 2, 41):
        dial.knobs["width"].value = value
    assert dial.settle(WAIT)
    assert calls[-1] == {"width": 2.0}
    assert len(calls) < 20
    assert dial.picture.value != first
    assert "ends at 2." in dial.sentence.value
    dial.children[0].children[-1].click()  # Reset
    assert dial.settle(WAIT)
    assert dial.picture.value == first


def test_a_dial_shows_an_error():
    dial = fl.widgets.dial(plot, width=(1.0, 0.0, 3.0))
    dial.knobs["width"].value = 2.5
    assert dial.settle(WAIT)
    assert 'role="alert"' in dial.sentence.value
    assert "width=2.5: expected at most 2" in dial.sentence.value
    dial.knobs["width"].value = 1.5
    assert dial.settle(WAIT)
    assert 'role="status"' in dial.sentence.value


@pytest.mark.parametrize("given", [(1, 2), (5, 0, 3), [], "text", None, ("a", 0, 1)])
def test_a_dial_refuses_unknown_controls(given):
    with pytest.raises(ValueError, match=r"^width=.*: expected"):
        fl.widgets.dial(plot, width=given)


def test_words_are_escaped():
    place = controls.words()
    controls.say(place, "<script>alert(1)</script>", error=True)
    assert "<script>" not in place.value
    assert html.escape("<script>") in place.value


# the live run -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def task():
    return fl.tasks.digits(clients=3, seed=1)


@pytest.fixture
def live(task):
    made = fl.widgets.live(task, plan=fl.Plan(rounds=3, local_steps=2, batch=8), privacy=fl.Privacy(delta=1e-4))
    yield made
    made.close()
    assert not any(thread.name == "live run" for thread in threading.enumerate())


def status(run):
    return html.unescape(re.sub("<[^>]*>", "", run.status.value))


def ended(run):
    until(lambda: not run.worker.alive)
    assert run.settle(WAIT)


def test_live_waits_for_start(live):
    assert live.worker is None
    assert bytes(live.chart.value).startswith(b"\x89PNG")
    assert bytes(live.examples.value).startswith(b"\x89PNG")
    assert status(live) == "ready"
    assert not any(thread.name == "live run" for thread in threading.enumerate())
    assert not live.buttons["start"].disabled
    assert [live.buttons[name].disabled for name in ("pause", "resume", "stop")] == [True, True, True]


def test_live_runs_to_the_end(live):
    empty = live.chart.value, live.examples.value
    live.buttons["start"].click()
    assert live.settings.method.disabled
    ended(live)
    assert status(live).startswith("finished · round 3 of 3 · ε spent ")
    assert live.progress.value == live.progress.max == 6
    assert live.chart.value != empty[0]
    assert live.examples.value != empty[1]
    assert "after round 3 of 3" in live.sentence.value
    assert f"accuracy {live.records[-1].metrics['accuracy']:.3f}" in live.sentence.value
    assert not live.settings.method.disabled
    assert 'download="digits-rolora.csv"' in live.link.value


def test_the_cell_repeats_the_run(live):
    live.settings.method.value = fl.methods.LALoRA
    live.settings.epsilon.value = 4.0
    live.settings.rounds.value = 2
    live.settings.seed.value = 5
    live.buttons["start"].click()
    ended(live)
    room: dict = {}
    exec(live.cell.value, room)
    measured = ~room["frame"]["measure"].isin(["seconds"])
    pd.testing.assert_frame_equal(room["frame"][measured], live.frame[measured])
    assert set(live.frame["method"]) == {"la-lora"}
    assert live.frame["round"].max() == 2


@pytest.mark.parametrize(
    "recipe",
    [
        {"plan": fl.Plan(lr={"A": 0.1, "B": 0.2}, momentum=0.5), "epsilon": None},
        {"method": fl.methods.FedLoRA.replace(name="mine"), "epsilon": 2.0},
        {"privacy": fl.Privacy(unit="client", clip_norm=0.5, delta=1e-2)},
    ],
)
def test_the_cell_is_complete(task, recipe):
    base = Recipe(task, fl.methods.FFA, fl.Plan(rounds=1), fl.Privacy(delta=1e-4), 8.0, fl.Lora(), 0)
    wanted, room = replace(base, **recipe), {}
    text = wanted.cell().replace("...  # your row 'mine'", "row")
    assert ("row" in text) == ("method" in recipe)
    lines = [line for line in text.splitlines() if not line.startswith(("records", "frame", "privacy"))]
    exec("\n".join(lines), room | {"row": wanted.method}, room)
    assert room["plan"] == wanted.plan
    assert room["task"].fingerprint == task.fingerprint
    before_noise = text.split("privacy = ")[1].split("\n")[0]
    assert eval(before_noise, {"fl": fl}) == (None if wanted.epsilon is None else wanted.privacy)


def test_live_pauses_and_resumes(live):
    live.settings.rounds.value = 100
    live.buttons["start"].click()
    until(lambda: live._ticks > 2)
    live.buttons["pause"].click()
    until(lambda: live.worker.state == "paused")
    ticks = live._ticks
    time.sleep(0.3)
    assert live._ticks == ticks
    assert status(live).startswith("paused")
    assert [live.buttons[name].disabled for name in ("pause", "resume", "stop")] == [True, False, False]
    live.buttons["resume"].click()
    until(lambda: live._ticks > ticks)
    live.buttons["stop"].click()
    until(lambda: not live.worker.alive)


def test_live_stops_within_a_step(live):
    live.settings.rounds.value = 100
    live.buttons["start"].click()
    until(lambda: live._ticks > 2)
    ticks = live._ticks
    live.buttons["stop"].click()
    until(lambda: not live.worker.alive)
    assert live._ticks <= ticks + 1
    assert status(live).startswith("stopped")
    assert live.progress.value == live._ticks


def test_live_shows_an_error(task):
    calls = itertools.count()

    def loss(outputs, y):
        if next(calls) >= 3:
            raise RuntimeError("planted\nfailure")
        return task.loss(outputs, y)

    run = fl.widgets.live(replace(task, loss=loss), plan=fl.Plan(rounds=3), privacy=fl.Privacy(delta=1e-4))
    run.buttons["start"].click()
    ended(run)
    assert status(run) == "RuntimeError: planted failure"
    assert 'role="alert"' in run.status.value
    assert not run.buttons["start"].disabled
    run.close()


def test_a_setting_that_cannot_be_is_one_line(task):
    run = fl.widgets.live(task, privacy=fl.Privacy(delta=0.5))
    run.buttons["start"].click()
    ended(run)
    assert re.match(r"delta=0.5: expected", status(run))
    run.close()


def test_a_new_live_ends_the_old(live, task):
    live.settings.rounds.value = 100
    live.buttons["start"].click()
    until(lambda: live._ticks > 0)
    newer = fl.widgets.live(task)
    assert not live.worker.alive
    assert live.worker.state == "stopped"
    newer.close()


def test_earlier_runs_stay_until_reset(live):
    first = live.settings.recipe()
    for method in (fl.methods.FFA, fl.methods.FedLoRA):
        live.settings.method.value = method
        live.settings.rounds.value = 1
        live.buttons["start"].click()
        ended(live)
    assert [frame["method"].iloc[0] for frame in live._past] == ["ffa-lora"]
    live.buttons["reset"].click()
    assert live.settings.recipe() == first
    assert (live.records, live._past, live.progress.value) == ([], [], 0)
    assert live.settle(WAIT)
    assert "Press Start" in live.sentence.value


def test_a_method_brings_its_tuned_rate(live):
    for slug in ("ffa-lora", "la-lora"):
        live.settings.method.value = fl.methods.get(slug)
        try:
            expected = fl.tuned("digits", slug)
        except ValueError:
            expected = 0.3
        assert live.settings.lr.value == expected


def test_live_without_pictures_or_privacy():
    run = fl.widgets.live(fl.tasks.regression(clients=3), epsilon=None, plan=fl.Plan(rounds=2, lr=0.01))
    assert run.examples not in run.children[3].children
    run.buttons["start"].click()
    ended(run)
    assert status(run).endswith("ε spent ∞")
    assert "loss" in run.sentence.value
    run.close()


def test_every_control_is_labelled(live):
    knobs = [*live.settings.children, *live.buttons.values(), live.progress, live.cell]
    for knob in knobs:
        assert knob.description, knob
        assert knob.tooltip, knob


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "nobody"}, "^method='nobody': expected one of"),
        ({"seed": -1}, "^seed=-1: expected"),
        ({"epsilon": 0}, "^epsilon=0: expected"),
        ({"plan": fl.Plan(rounds=0)}, r"^plan.rounds=0: expected a whole number in \[1, 100\]"),
    ],
)
def test_live_refuses_what_no_run_could_have(task, given, message):
    with pytest.raises(ValueError, match=message):
        fl.widgets.live(task, **given)


def test_nothing_can_move_the_page(live):
    for place in (live.chart, live.examples, live.status, live.sentence, live.link, live.cell):
        assert re.fullmatch(r"\d+px", place.layout.height)
