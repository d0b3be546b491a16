"""The live run, driven through its own buttons."""

import html
import itertools
import math
import re
import threading
import time
from dataclasses import replace

import pandas as pd
import pytest
from patience import WAIT, until

import fedlora_lab as fl
from fedlora_lab.widgets.recipe import Recipe


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


def test_no_privacy_is_a_choice_of_the_menu():
    """It is shown, as a value that is something, and the recipe has none."""
    live = fl.widgets.live(fl.tasks.regression(clients=2), epsilon=None)
    assert live.settings.epsilon.value is not None
    assert live.settings.epsilon.label == "∞ (no privacy)"
    assert live.settings.recipe().epsilon is None
    live.settings.epsilon.value = 4.0
    assert live.settings.recipe().epsilon == 4.0
    live.close()


def test_earlier_runs_stay_until_reset(live):
    first = live.settings.recipe()
    for method in (fl.methods.FFA, fl.methods.FedLoRA):
        live.settings.method.value = method
        live.settings.rounds.value = 1
        live.buttons["start"].click()
        ended(live)
        assert status(live).startswith("finished"), status(live)
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


def test_a_run_keeps_its_own_recipe(live):
    """Controls that move after a run leave its figure, sentence, file and cell alone; the widget says that they did."""
    live.settings.method.value = fl.methods.RoLoRA
    live.buttons["start"].click()
    ended(live)
    shown = status(live), live.chart.value, live.sentence.value, live.cell.value, live.link.value
    assert "controls have changed" not in shown[0]
    live.settings.method.value = fl.methods.FedLoRA
    live.settings.rounds.value = 9
    assert live.settle(WAIT)
    assert status(live).startswith("controls have changed since: press Start · finished · round 3 of 3 ")
    assert (live.chart.value, live.sentence.value, live.cell.value, live.link.value) == shown[1:]
    assert "RoLoRA after round 3 of 3" in live.sentence.value
    assert 'download="digits-rolora.csv"' in live.link.value
    assert "method = 'rolora'" in live.cell.value and "rounds=3" in live.cell.value
    live.settings.method.value, live.settings.rounds.value = fl.methods.RoLoRA, 3
    live.settings.lr.value = live._recipe.plan.lr
    assert status(live) == shown[0], "the controls say again what was run"
    live.settings.method.value = fl.methods.FedLoRA
    live.buttons["start"].click()
    ended(live)
    assert "FedLoRA after round 3 of 3" in live.sentence.value
    assert "controls have changed" not in status(live)


def test_a_control_moved_by_code_during_a_run_is_told(live):
    live.settings.rounds.value = 2
    live.buttons["start"].click()
    live.settings.method.value = fl.methods.FFA
    ended(live)
    assert "RoLoRA after round 2 of 2" in live.sentence.value
    assert status(live).startswith("controls have changed since: press Start · finished")


def test_a_fall_stays_in_sight_and_is_told():
    """A rate far too high: the axis reaches down to the score, and the sentence says from where it fell."""
    run = fl.widgets.live(fl.tasks.digits(clients=3, seed=1), epsilon=None, plan=fl.Plan(rounds=2, local_steps=2, lr=5))
    run.buttons["start"].click()
    ended(run)
    before, after = (run.records[i].metrics["accuracy"] for i in (0, -1))
    assert after < before
    assert f"it fell below its start: {before:.2f} to {after:.2f}" in run.sentence.value
    run.close()


def test_live_shows_a_fall():
    from frames import tidy_frame

    frame = tidy_frame(("rolora",), seeds=1)
    low = (frame["measure"] == "accuracy") & (frame["round"] == 4)
    fallen = frame.assign(value=frame["value"].where(~low, 0.07))
    bottom = [fl.plots.live(one, rounds=4, start=0.61).axes[0].get_ylim()[0] for one in (None, frame, fallen)]
    assert bottom[0] == bottom[1] > 0.07 > bottom[2]
    assert fl.plots.live(frame, start=0.61, past=[fallen]).axes[0].get_ylim()[0] < 0.07
    risen = frame.assign(value=frame["value"].where(~((frame["measure"] == "loss") & (frame["round"] == 4)), 31.0))
    assert fl.plots.live(risen, measure="loss").axes[0].get_ylim()[1] > 31
    unknown = frame.assign(value=frame["value"].where((frame["measure"] != "deviation") | (frame["round"] == 0)))
    texts = [text.get_text() for ax in fl.plots.live(unknown).axes for text in ax.texts]
    assert "not measured" in texts


def test_the_suggestion_follows_until_the_reader_sets_the_rate(live):
    settings = live.settings
    settings.epsilon.value = 1.0
    assert settings.lr.value == fl.tuned("digits", "rolora", 1.0)
    settings.epsilon.value = math.inf
    assert settings.lr.value == fl.tuned("digits", "rolora", None)
    assert "without privacy" in settings.hint.value and settings.take.disabled
    settings.lr.value = 2.0
    settings.epsilon.value = 8.0
    assert settings.lr.value == 2.0, "the reader's own"
    assert "suggested learning rate 0.4: tuned for RoLoRA at ε = 8" in html.unescape(settings.hint.value)
    settings.take.click()
    assert settings.lr.value == 0.4
    settings.method.value = fl.methods.FFA
    assert settings.lr.value == fl.tuned("digits", "ffa-lora", 8.0)
    live.buttons["reset"].click()
    assert settings.recipe() == live._recipe
    settings.epsilon.value = 1.0
    assert settings.lr.value == fl.tuned("digits", "rolora", 1.0), "after a reset the rate follows again"


def test_live_begins_with_what_is_suggested(task):
    for unit, epsilon in (("example", 1.0), ("example", None), ("client", 20.0)):
        run = fl.widgets.live(task, epsilon=epsilon, privacy=fl.Privacy(unit=unit, delta=1e-3))
        assert run.settings.lr.value == fl.tuned("digits", "rolora", epsilon, unit)
        assert run.settings.suggestion.exact
        run.close()


def test_the_status_names_the_observer(live):
    live.settings.rounds.value = 1
    live.buttons["start"].click()
    ended(live)
    assert status(live).endswith("of 8 against whoever sees the uploads")
    assert "against whoever sees the uploads." in live.sentence.value


def test_live_calibrates_for_the_plan_that_runs(task):
    """A plan that was calibrated for fewer rounds is calibrated anew: what is spent stays within the promise."""
    short = fl.Plan(rounds=1, local_steps=1, batch=8)
    privacy = fl.Privacy(delta=1e-4).calibrate(epsilon=2.0, task=task, plan=short)
    run = fl.widgets.live(task, privacy=privacy, plan=short, epsilon=2.0)
    run.settings.rounds.value = 4
    run.buttons["start"].click()
    ended(run)
    assert run.records[-1].index == 4
    assert run.records[-1].epsilon <= 2.0
    assert run.records[-1].ledger is not None and run.records[-1].ledger.releases
    run.close()


def test_live_shows_nothing_of_private_test_examples(task):
    """No score, no image, no turned example; without privacy there is nothing to hide."""
    private = replace(task, public_test=False)
    run = fl.widgets.live(private, plan=fl.Plan(rounds=1, local_steps=1), privacy=fl.Privacy(delta=1e-4))
    assert "accuracy –" in run.sentence.value
    run.buttons["start"].click()
    ended(run)
    assert status(run).startswith("finished"), status(run)
    assert "accuracy – (– before); ε spent" in run.sentence.value
    assert "turned" not in run.sentence.value and not run.scene.pictured
    run.settings.epsilon.value = math.inf
    run.buttons["start"].click()
    ended(run)
    assert re.search(r"accuracy 0\.\d+ \(0\.\d+ before\)", run.sentence.value)
    run.close()
    for widget in (fl.widgets.method_composer, lambda t: fl.widgets.duel(t, {None: ("fedlora",)})):
        with pytest.raises(ValueError, match=r"^public_test=False: expected True"):
            widget(private)


def test_live_without_pictures_or_privacy():
    run = fl.widgets.live(fl.tasks.regression(clients=3), epsilon=None, plan=fl.Plan(rounds=2, lr=0.01))
    assert run.examples not in run.children[4].children
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
    for place in (live.status, live.sentence, live.link, live.cell):
        assert re.fullmatch(r"\d+px", place.layout.height)
    for place in (live.chart, live.examples):  # from both the page knows the room before anything is drawn
        assert re.fullmatch(r"\d+ \d+", f"{place.width} {place.height}")
