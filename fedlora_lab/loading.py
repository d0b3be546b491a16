"""Libraries without the garbage collector: what they bring stays, and need not be looked through again and again."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

MANY = 300


@contextmanager
def undisturbed() -> Iterator[None]:
    """Within it nothing is collected; if it loaded many modules, what is alive then is never looked at (``gc.freeze``).

    PEFT and what it stands on are half a million objects. Walks through them took two of the first seven
    seconds of a program that trains (decision 0023). What was in cycles and of no use at that moment stays in memory.
    """
    on, before = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) - before >= MANY:
            gc.freeze()
        if on:
            gc.enable()
