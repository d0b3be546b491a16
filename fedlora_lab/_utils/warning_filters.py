"""Blocks in which some warnings are ignored, one thread at a time."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_LOCK = threading.RLock()


@contextmanager
def ignored_warnings(category: type[Warning] = Warning, message: str = "") -> Iterator[None]:
    """Ignores warnings in a block, and leaves the filters as they were.

    The filters belong to the process: of two threads that change them at once, one would see its
    warning after all, and the other could leave its filters behind. So threads take turns.

    Args: category: of what is ignored; message: how it begins, a pattern; empty for any.
    Guarantees: test_threads_that_ignore_warnings_leave_the_filters_as_they_were.
    """
    with _LOCK, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=message, category=category)
        yield
