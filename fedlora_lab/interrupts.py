"""Ctrl-C that is not lost: compiled code now and then drops an exception that a signal raised while it ran."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_heard = threading.Event()


def _hear(number: int, frame: FrameType | None) -> None:
    _heard.set()
    raise KeyboardInterrupt


@contextmanager
def heard() -> Iterator[None]:
    """Inside, Ctrl-C raises ``KeyboardInterrupt`` as ever, and is remembered until :func:`check` or the end.

    Does nothing in other threads than the main one, which never hear signals, nor where Ctrl-C is ignored.
    """
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not usual or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, _hear)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _heard.clear()


def check() -> None:
    """Raise ``KeyboardInterrupt`` if one was heard and lost; for the end of a round.

    Guarantees: a Ctrl-C that a library swallowed ends the command at the next round
        (test_interrupts.py::test_a_swallowed_ctrl_c_stops_at_the_next_round).
    """
    if _heard.is_set():
        raise KeyboardInterrupt
