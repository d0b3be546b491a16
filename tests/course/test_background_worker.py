"""The worker and the drawing that keeps up, with real threads."""

import contextlib
import threading
import time

import pytest
from wait_for_thread import WAIT, until

from fedlora_lab.course.widgets.background_worker import LatestOnly, Worker


class Work:
    """Items of work in threads of its own, which are counted."""

    def __init__(self, act, changed=lambda state: None):
        self.items = [0, 0]
        self.worker = Worker(lambda: act(self), changed)
        assert self.worker.state == "ready"
        self.worker.start()

    def forever(self, which=0):
        while True:
            self.items[which] += 1
            time.sleep(0.002)
            self.worker.gate()


def in_two_threads(work):
    """As a comparison has them: the second's stop ends its thread alone."""

    def second():
        with contextlib.suppress(KeyboardInterrupt):
            work.forever(1)

    thread = threading.Thread(target=second)
    thread.start()
    try:
        work.forever()
    finally:
        thread.join()


def test_pause_and_stop_are_within_one_item_of_every_thread():
    states: list[str] = []
    work = Work(in_two_threads, states.append)
    worker = work.worker
    until(lambda: min(work.items) > 3)
    worker.pause()
    until(lambda: worker.state == "paused")
    asked = list(work.items)
    clock = worker.seconds
    time.sleep(0.2)
    paused = list(work.items)
    assert all(now <= then + 1 for now, then in zip(paused, asked, strict=True))
    worker.resume()
    until(lambda: all(now > then + 3 for now, then in zip(work.items, paused, strict=True)))
    assert worker.seconds < clock + 0.2  # the pause is not counted
    worker.pause()
    until(lambda: worker.state == "paused")
    asked = list(work.items)
    assert worker.stop(WAIT)
    assert all(now <= then + 1 for now, then in zip(work.items, asked, strict=True))
    assert states == ["running", "paused", "running", "paused", "stopped"]


def broken(_):
    raise ValueError("epsilon=0: expected > 0")


def ignore(_):
    pass


def refuse(state):
    if state != "running":
        raise OSError("the screen is gone")


@pytest.mark.parametrize(
    ("act", "changed", "state", "line"),
    [
        (broken, ignore, "failed", "epsilon=0: expected > 0"),
        (ignore, refuse, "finished", "OSError: the screen is gone"),
    ],
)
def test_work_that_raises(act, changed, state, line):
    """No error escapes from the thread: that would be a warning, and so an error here. One in the
    midst of the work: test_live_shows_an_error.
    """
    worker = Work(act, changed).worker
    until(lambda: not worker.alive)
    assert (worker.state, worker.error) == (state, line)


def test_the_last_request_is_answered_and_an_overtaken_result_dropped():
    gate = threading.Event()
    asked: list[str] = []
    shown: list[str] = []

    def answer(request):
        asked.append(request)
        if request == "slow":
            gate.wait(WAIT)
        return request

    latest = LatestOnly(answer, shown.append)
    latest.request("first")
    assert latest.settle(WAIT)
    latest.request("slow")
    until(lambda: "slow" in asked)
    for request in ("new", "newer", "newest"):
        latest.request(request)
    gate.set()
    assert latest.settle(WAIT)
    assert shown == ["first", "newest"] and asked == ["first", "slow", "newest"]


def test_errors_of_a_drawing_are_reported_and_no_thread_is_left():
    """Nobody need close it: a widget whose cell was run again is not closed."""
    failures, shown, threads = [], [], threading.active_count()
    latest = LatestOnly(lambda request: 1 / request, shown.append, failures.append)
    for request in (0, 2, 4):
        if request == 4:
            latest.close()
        latest.request(request)
        assert latest.settle(WAIT)
        until(lambda: threading.active_count() <= threads)
    assert failures == ["ZeroDivisionError: division by zero"] and shown == [0.5]
