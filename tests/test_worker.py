"""The worker and the drawing that keeps up, with real iterators and threads."""

import threading
import time

import pytest
from patience import WAIT, until

from fedlora_lab.widgets.worker import Latest, Worker, one_line


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
