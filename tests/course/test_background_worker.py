"""The worker and the drawing that keeps up, with real iterators and threads."""

import threading
import time

import pytest
from wait_for_thread import WAIT, until

from fedlora_lab.course.widgets.background_worker import LatestOnly, Worker


def started(steps, handle, changed):
    worker = Worker(steps, handle, changed)
    assert worker.state == "ready"
    worker.start()
    return worker


class Steps:
    """A generator that counts what was taken from it and notices its end."""

    def __init__(self, count=10**9):
        self.count = count
        self.taken, self.closed = 0, False

    def __call__(self):
        try:
            for i in range(self.count):
                self.taken += 1
                time.sleep(0.002)
                yield i
        finally:
            self.closed = True


def test_pause_takes_nothing_and_stop_is_within_one_item():
    steps = Steps()
    seen: list[int] = []
    states: list[str] = []
    worker = started(steps, seen.append, states.append)
    until(lambda: len(seen) > 3)
    worker.pause()
    until(lambda: worker.state == "paused")
    taken = steps.taken
    clock = worker.seconds
    time.sleep(0.2)
    assert steps.taken == taken == len(seen)
    worker.resume()
    until(lambda: len(seen) > taken + 3)
    assert worker.seconds < clock + 0.2  # the pause is not counted
    worker.pause()
    until(lambda: worker.state == "paused")
    taken = steps.taken
    assert worker.stop(WAIT) and steps.closed and steps.taken <= taken + 1
    assert states == ["running", "paused", "running", "paused", "stopped"]
    assert seen == list(range(len(seen)))


def broken():
    raise ValueError("epsilon=0: expected > 0")


def ignore(_):
    pass


def refuse(item):
    if item != "running":
        raise OSError("the screen is gone")


@pytest.mark.parametrize(
    ("steps", "handle", "changed", "state", "line"),
    [
        (broken, ignore, ignore, "failed", "epsilon=0: expected > 0"),
        (Steps(), refuse, ignore, "failed", "OSError: the screen is gone"),
        (Steps(count=2), ignore, refuse, "finished", "OSError: the screen is gone"),
    ],
)
def test_an_iterator_that_raises(steps, handle, changed, state, line):
    """No error escapes from the thread: that would be a warning, and so an error here. One in the
    midst of the items: test_live_shows_an_error.
    """
    worker = started(steps, handle, changed)
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
