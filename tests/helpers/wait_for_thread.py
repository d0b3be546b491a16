"""Waiting for what happens in another thread: a widget that trains."""

import time

WAIT = 300.0


def until(condition, seconds=WAIT):
    """Wait for a condition; fails when it does not come true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        time.sleep(0.005)
