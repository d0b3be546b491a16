"""Memory that one step frees and the next one asks for again, kept in between where the allocator can be told to."""

import ctypes

TRIM, MMAP = -1, -3
"""The numbers of glibc's parameters M_TRIM_THRESHOLD and M_MMAP_THRESHOLD (mallopt(3))."""
LARGE, SPARE = 32 << 20, 256 << 20


def keep_freed() -> bool:
    """Have glibc keep up to 256 MiB of what this process frees, and hand tensors up to 32 MiB out of it again.

    Left alone it gives the memory of a step's activations back to the system, which clears every page of it for the
    next step: some 200,000 pages in a run on `digits`. It concerns the whole process, so it is for processes of our own
    (commands, workers of a study), not for a user's program. Decision 0024.

    Returns: whether the allocator took it; ``False`` where there is another one (macOS, Windows, musl).

    Guarantees: tests/test_heap.py::test_what_is_freed_is_kept.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(MMAP, LARGE)) and bool(mallopt(TRIM, SPARE))
