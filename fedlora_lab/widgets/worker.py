"""Work in the background: an iterator that can be paused and stopped between items, and drawing that keeps up.

Nothing here knows of widgets or of training.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

READY, RUNNING, PAUSED, STOPPED, FINISHED, FAILED = "ready", "running", "paused", "stopped", "finished", "failed"
OVER = (STOPPED, FINISHED, FAILED)


def one_line(error: BaseException, limit: int = 200) -> str:
    """An exception in one readable line: its message, with the class before it unless it is a plain refusal."""
    text = " ".join(str(error).split()) or "no message"
    text = text if type(error) is ValueError else f"{type(error).__name__}: {text}"
    return text if len(text) <= limit else text[: limit - 1] + "…"


class Worker:
    """Takes items from an iterator in a thread of its own, once.

    Args:
        make: gives the iterator; called in the thread, so it may be slow.
        see: called in the thread with every item.
        changed: called with every new state; in the thread, except for the first.
        name: of the thread.

    Guarantees:
        no item is taken while paused (test_pause_takes_nothing); after `stop` at most the item under way is finished
        and the iterator is closed (test_stop_is_within_one_item); an error ends in state "failed" with `error` set to
        one line (test_an_iterator_that_raises).
    """

    def __init__(
        self,
        make: Callable[[], Iterable[Any]],
        see: Callable[[Any], None],
        changed: Callable[[str], None] = lambda state: None,
        name: str = "worker",
    ) -> None:
        self._make, self._see, self._changed = make, see, changed
        self._go, self._halt, self._waiting, self._begun = threading.Event(), threading.Event(), 0.0, 0.0
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self.state, self.error = READY, ""

    @property
    def alive(self) -> bool:
        """Whether the thread is still there."""
        return self._thread.is_alive()

    @property
    def seconds(self) -> float:
        """Time since the start, without pauses that are over."""
        return time.monotonic() - self._begun - self._waiting if self._begun else 0.0

    def start(self) -> None:
        """Begin; a worker starts once."""
        self._begun = time.monotonic()
        self._go.set()
        self._to(RUNNING)
        self._thread.start()

    def pause(self) -> None:
        """Hold after the item under way."""
        self._go.clear()

    def resume(self) -> None:
        """Go on after a pause."""
        self._go.set()

    def stop(self, wait: float | None = None) -> bool:
        """End after the item under way; waits up to ``wait`` seconds. True when the thread has ended."""
        self._halt.set()
        self._go.set()
        if wait is not None and self.alive and threading.current_thread() is not self._thread:
            self._thread.join(wait)
        return not self.alive

    def _to(self, state: str) -> None:
        self.state = state
        self._changed(state)

    def _work(self) -> None:
        try:
            outcome = self._take()
        except BaseException as error:
            self.error, outcome = one_line(error), FAILED
        try:
            self._to(outcome)
        except Exception as error:  # a display that is gone must not bring the thread down with a traceback
            self.error = self.error or one_line(error)

    def _take(self) -> str:
        items = iter(self._make())
        try:
            while not self._halt.is_set():
                if not self._go.is_set():
                    self._hold()
                    continue
                try:
                    item = next(items)
                except StopIteration:
                    return FINISHED
                self._see(item)
            return STOPPED
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                close()

    def _hold(self) -> None:
        begun = time.monotonic()
        self._to(PAUSED)
        self._go.wait()
        self._waiting += time.monotonic() - begun
        if not self._halt.is_set():
            self._to(RUNNING)


class Latest:
    """Answers the newest request and forgets those it overtook. The thread ends when nothing is asked.

    Args:
        answer: request -> result, slow.
        show: called with every result that is still wanted, or that came while the last shown one grew old.
        failed: called with one line when ``answer`` or ``show`` raises.
        rest: seconds before each answer, in which newer requests replace older ones.

    Guarantees: the last request is always answered (test_latest_answers_the_last); a result overtaken by a newer
        request is dropped unless nothing was shown for `STALE` seconds (test_latest_drops_the_overtaken).
    """

    STALE = 0.25

    def __init__(
        self,
        answer: Callable[[Any], Any],
        show: Callable[[Any], None],
        failed: Callable[[str], None] = lambda line: None,
        rest: float = 0.01,
    ) -> None:
        self._answer, self._show, self._failed, self._rest = answer, show, failed, rest
        self._lock, self._wanted, self._thread, self._shown = threading.Lock(), [], None, 0.0
        self.closed = False

    def ask(self, request: Any) -> None:
        """Want an answer to this request, and no longer to the one before."""
        with self._lock:
            if self.closed:
                return
            self._wanted = [request]
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="drawing", daemon=True)
                self._thread.start()

    def settle(self, wait: float) -> bool:
        """Wait until everything asked is answered; True when it is."""
        thread = self._thread
        if thread is not None:
            thread.join(wait)
        return self._thread is None

    def close(self) -> None:
        """Answer nothing more."""
        with self._lock:
            self.closed, self._wanted = True, []

    def _work(self) -> None:
        while True:
            time.sleep(self._rest)
            with self._lock:
                if not self._wanted:
                    self._thread = None
                    return
                request = self._wanted.pop()
            try:
                result = self._answer(request)
                with self._lock:
                    fresh = not self._wanted or time.monotonic() - self._shown > self.STALE
                    fresh = fresh and not self.closed
                if fresh:
                    self._shown = time.monotonic()
                    self._show(result)
            except Exception as error:
                with contextlib.suppress(Exception):  # whoever shows the line may be gone too
                    self._failed(one_line(error))
