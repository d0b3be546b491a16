"""Runs many independent calls at once by joblib, each in a process.

What a call is given, such as a task with everyone's examples, travels to a process through a pipe.
It lies in no file, so that of a comparison that is killed no example stays on the disk.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any, TypeVar

from joblib import Parallel, delayed, effective_n_jobs
from joblib.parallel import get_active_backend

from fedlora_lab._utils.torch_state import torch_threads

T = TypeVar("T")


def run_calls(calls: Mapping[int, Callable[[], T]], jobs: int | None) -> Iterator[tuple[int, T]]:
    """Runs calls at once; yields the number of each that ends, and what it returned.

    Args: calls: by number, independent of each other. jobs: see `compare`.
    Guarantees: test_jobs.py::test_no_example_is_put_into_a_file.
    """
    backend, _ = get_active_backend()
    # In a worker of anybody's, workers of its own would take the cores from the others.
    if jobs is None or backend.nesting_level or effective_n_jobs(jobs) == 1:
        # As many threads as in a worker, so that sums are rounded alike.
        with nullcontext() if jobs is None else torch_threads(1):
            yield from ((number, call()) for number, call in calls.items())
        return
    parallel = Parallel(
        jobs,
        return_as="generator_unordered",
        # One by one, so that no more calls have begun than there are workers.
        batch_size=1,
        pre_dispatch="n_jobs",
        # Above a limit of bytes joblib would put an array into a file.
        max_nbytes=None,
    )
    yield from parallel(delayed(_on_one_thread)(*item) for item in calls.items())


def _on_one_thread(number: int, call: Callable[[], Any]) -> tuple[int, Any]:
    with torch_threads(1):
        return number, call()
