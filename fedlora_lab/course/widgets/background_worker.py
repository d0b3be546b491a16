"""Threads for widgets: work that can be paused and stopped, and drawings that keep up."""

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

from fedlora_lab._utils.validation import error_text

READY = "ready"
RUNNING = "running"
PAUSED = "paused"
STOPPED = "stopped"
FINISHED = "finished"
FAILED = "failed"
OVER = (STOPPED, FINISHED, FAILED)


def one_line(error: BaseException) -> str:
    """Formats an exception as one line: its message, with the class name unless a `ValueError`."""
    text = error_text(error) or "no message"
    text = text if type(error) is ValueError else f"{type(error).__name__}: {text}"
    return text if len(text) <= 200 else text[:199] + "…"


class Worker:
    """Works in a thread of its own, once.

    Args:
        act: the work; called in the thread. It, and threads that it starts, call `gate` after every
            item of work.
        changed: called with every new state; in a thread of the work, except for the first.
        name: of the thread.

    Guarantees: after `pause` and `stop` at most the item under way is finished, in every thread of
        the work (test_pause_and_stop_are_within_one_item_of_every_thread); an error becomes the
        state "failed" and one line in ``error`` (test_work_that_raises).
    """

    def __init__(
        self,
        act: Callable[[], Any],
        changed: Callable[[str], None] = lambda state: None,
        name: str = "worker",
    ) -> None:
        self._act = act
        self._changed = changed
        self._go = threading.Event()
        self._halt = threading.Event()
        self._pausing = threading.Lock()
        self._begun = 0.0
        self._waited = 0.0
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self.state = READY
        self.error = ""

    @property
    def alive(self) -> bool:
        """Whether the thread is still running."""
        return self._thread.is_alive()

    @property
    def seconds(self) -> float:
        """Seconds since the start, without the pauses that are over."""
        return time.monotonic() - self._begun - self._waited if self._begun else 0.0

    def start(self) -> None:
        """Starts the thread; a worker starts once."""
        self._begun = time.monotonic()
        self._go.set()
        self._enter(RUNNING)
        self._thread.start()

    def pause(self) -> None:
        """Pauses after the item under way."""
        self._go.clear()

    def resume(self) -> None:
        """Goes on after a pause."""
        self._go.set()

    def stop(self, wait: float | None = None) -> bool:
        """Ends after the item under way; waits ``wait`` seconds; returns whether it has ended."""
        self._halt.set()
        self._go.set()
        if wait is not None and self.alive and threading.current_thread() is not self._thread:
            self._thread.join(wait)
        return not self.alive

    def gate(self) -> None:
        """Waits while paused. Raises ``KeyboardInterrupt`` after `stop`."""
        if not self._go.is_set():
            # The first thread that comes here says so, and the others wait for it.
            with self._pausing:
                self._wait()
        if self._halt.is_set():
            raise KeyboardInterrupt("stopped")

    def _enter(self, state: str) -> None:
        self.state = state
        self._changed(state)

    def _work(self) -> None:
        outcome = FINISHED
        try:
            self._act()
        except BaseException as error:
            outcome = STOPPED if self._halt.is_set() else FAILED
            self.error = "" if outcome == STOPPED else one_line(error)
        try:
            self._enter(outcome)
        except Exception as error:  # the display may be gone: no traceback from a thread
            self.error = self.error or one_line(error)

    def _wait(self) -> None:
        if self._go.is_set():
            return
        begun = time.monotonic()
        self._enter(PAUSED)
        self._go.wait()
        self._waited += time.monotonic() - begun
        if not self._halt.is_set():
            self._enter(RUNNING)


class LatestOnly:
    """Answers the newest request in a thread of its own, which ends when nothing is left to answer.

    Args:
        answer: request -> result, slow.
        show: called with every result that no newer request has overtaken.
        failed: called with one line when ``answer`` or ``show`` raises.
        rest: seconds before each answer, in which newer requests replace older ones.

    Guarantees: the last request is always answered, and overtaken results are dropped
        (test_the_last_request_is_answered_and_an_overtaken_result_dropped).
    """

    def __init__(
        self,
        answer: Callable[[Any], Any],
        show: Callable[[Any], None],
        failed: Callable[[str], None] = lambda line: None,
        rest: float = 0.01,
    ) -> None:
        self._answer = answer
        self._show = show
        self._failed = failed
        self._rest = rest
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._request: Any = None
        self._newest = 0
        self._closed = False

    def request(self, request: Any) -> None:
        """Asks for an answer to this request, and no longer to the one before."""
        with self._lock:
            self._newest += 1
            self._request = request
            if self._thread is None:
                # Not a daemon: a process that ends in the midst of a computation aborts.
                self._thread = threading.Thread(target=self._work, name="drawing")
                self._thread.start()

    def settle(self, wait: float) -> bool:
        """Waits until every request is answered; returns whether that is so."""
        thread = self._thread
        if thread is not None:
            thread.join(wait)
        return self._thread is None

    def close(self) -> None:
        """Answers nothing more."""
        with self._lock:
            self._closed = True
            self._newest += 1

    def _work(self) -> None:
        answered = 0
        while True:
            # Under the lock, so that a request finds either this thread at work or none.
            with self._lock:
                if self._closed or answered == self._newest:
                    self._thread = None
                    return
                number = self._newest
                request = self._request
            time.sleep(self._rest)
            if number == self._newest:
                answered = number
                self._answer_one(number, request)

    def _answer_one(self, number: int, request: Any) -> None:
        try:
            result = self._answer(request)
            if number == self._newest:
                self._show(result)
        except Exception as error:
            with contextlib.suppress(Exception):  # the place for the line may be gone too
                self._failed(one_line(error))
