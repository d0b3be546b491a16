"""Runs many independent works at once by joblib: in worker processes here, or on a cluster.

A work is a call that knows nothing of the others. What it returns does not depend on how many run
at once, on their order, or on the worker that it meets.
"""

import os
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle
from joblib import Parallel, delayed
from joblib.parallel import get_active_backend

from fedlora_lab._utils.torch_state import torch_threads
from fedlora_lab._utils.validation import check, error_text, few, warn

LOKY = "LokyBackend"
"""Name of joblib's own backend: processes of this machine, which wait for the next call."""


class Unfinished(ChildProcessError):
    """Raised where some of many works failed, and all others are done; its line names each.

    Where in a row of one's own an error was raised is seen without workers, by ``jobs=None``.
    """


@dataclass(frozen=True)
class Work:
    """One of many independent calls.

    Args:
        name: in messages.
        act: called with ``shared``, in a worker. Lambdas, local functions and what a notebook has
            defined travel with it.
        shared: what many works read, such as a task. A worker loads it once.
    """

    name: str
    act: Callable[[Any], Any]
    shared: Any = None


def workers_for(jobs: int | None) -> int | None:
    """Decides how many workers there are; ``None``: works run one by one in this process.

    Args: jobs: as of `compare`.
    Raises: ``ValueError`` for anything but ``None``, -1 or a whole number >= 1.
    """
    is_count = isinstance(jobs, int) and not isinstance(jobs, bool) and (jobs > 0 or jobs == -1)
    check(jobs is None or is_count, "jobs", jobs, "how many runs at once, or -1: one for each core")
    active: Any = get_active_backend()
    backend, count = active
    # In a worker of anybody's, workers of its own would take the cores from the others.
    if backend.nesting_level:
        return None
    count = count if jobs is None else jobs
    if type(backend).__name__ == LOKY:
        return None if count in (None, 1) else count
    return -1 if count is None else count


def run_works(works: Sequence[Work], jobs: int | None) -> Generator[tuple[int, Any], None, None]:
    """Runs works at once; yields the number of each that ends, and what it returned.

    Args: works: independent of each other. jobs: as of `compare`.
    Raises: `Unfinished` after all others have ended, where a work raised an error or its worker
        died twice; a ``KeyboardInterrupt`` that names what is missing.
    Guarantees: test_jobs.py::test_a_killed_worker_is_told_and_its_run_repeated,
        ::test_an_error_in_a_worker_names_its_run_and_stops_no_other,
        ::test_an_interrupt_loses_no_finished_run_and_says_what_is_missing.
    """
    missing = {number: work.name for number, work in enumerate(works)}
    try:
        for number, value in _run(works, jobs):
            del missing[number]
            yield number, value
    except KeyboardInterrupt:
        done = f"{len(works) - len(missing)} of {len(works)} runs are finished"
        raise KeyboardInterrupt(f"{done}, missing: {few(missing.values(), 8)}") from None


def _run(works: Sequence[Work], jobs: int | None) -> Iterator[tuple[int, Any]]:
    """What `run_works` does until it is interrupted."""
    count = workers_for(jobs)
    if count is None:
        # As many threads as in a worker, so that sums are rounded alike.
        with nullcontext() if jobs is None else torch_threads(1):
            yield from ((i, work.act(work.shared)) for i, work in enumerate(works))
        return
    failures: dict[int, str] = {}
    waiting = list(range(len(works)))
    suspects: list[int] = []
    with tempfile.TemporaryDirectory(prefix="fedlora-") as folder, ExitStack() as stack:
        calls = list(_calls(works, folder))
        while waiting:
            # What was at work when a worker died may have killed it: each runs once more, alone.
            alone = suspects[:1]
            begun: list[int] = []
            passing = closing(_pass(calls, alone or list(waiting), begun, count))
            outcomes = stack.enter_context(passing)
            while True:
                try:
                    number, outcome = next(outcomes)
                except StopIteration:
                    break
                except Exception as error:  # of joblib or its backend: a worker is gone
                    reason = error_text(error, 400)
                    lost = [i for i in begun if i in waiting]
                    check(bool(lost), "jobs", count, f"workers that start, but: {reason}")
                    if alone:
                        waiting.remove(lost[0])
                        failures[lost[0]] = f"its worker died twice ({reason})"
                    else:
                        names = few((works[i].name for i in lost), 8)
                        text = "a worker died, and what it may have run is repeated"
                        warn(f"{text}: {names} ({reason})")
                    suspects += lost
                    break
                waiting.remove(number)
                if outcome.error:
                    failures[number] = outcome.error
                else:
                    yield number, outcome.value
                # After the value is out: whoever makes warnings errors must not lose it.
                for message, category in outcome.warned:
                    warnings.warn(message, category)
            suspects = [i for i in suspects if i in waiting]
    if failures:
        lines = few((f"{works[i].name}: {failures[i]}" for i in sorted(failures)), 8)
        done = len(works) - len(failures)
        raise Unfinished(f"{done} of {len(works)} runs are finished; {lines}")


# ---- what travels, and what is done in a worker


class _Outcome(NamedTuple):
    """What a work returned, or the text of its error; and what was warned of."""

    value: Any = None
    error: str = ""
    warned: tuple[tuple[str, type[Warning]], ...] = ()


def _calls(works: Iterable[Work], folder: str) -> Iterator[Any]:
    """Packs each work for its worker. What works share goes into a file.

    Raises: ``ValueError`` for what cannot travel, before anything has begun.
    """
    backend, _ = get_active_backend()
    threads = getattr(backend, "inner_max_num_threads", None) or 1
    paths: dict[int, str] = {}
    for number, work in enumerate(works):
        if getattr(backend, "supports_sharedmem", False):
            yield delayed(_call)(number, partial(work.act, work.shared), threads)
            continue
        try:
            if id(work.shared) not in paths:
                path = Path(folder) / str(len(paths))
                path.write_bytes(cloudpickle.dumps(work.shared))
                paths[id(work.shared)] = str(path)
            packed = cloudpickle.dumps(replace(work, shared=None))
        except (TypeError, AttributeError, ValueError) as error:  # as pickles refuse
            expected = f"what can travel to a worker, but: {error_text(error, 160)}"
            raise ValueError(f"{work.name}: expected {expected}") from error
        yield delayed(_unpack_and_call)(number, packed, paths[id(work.shared)], threads)


def _pass(
    calls: Sequence[Any], numbers: Iterable[int], begun: list[int], count: int
) -> Generator[tuple[int, _Outcome], None, None]:
    """Hands calls to workers, and yields what comes back, in any order.

    Args: calls, numbers: all, and which. begun: gets those that were handed on. count: of workers.
    """

    stopped = threading.Event()

    def begin() -> Iterator[Any]:
        for number in numbers:
            if stopped.is_set():
                return
            begun.append(number)
            yield calls[number]

    backend, _ = get_active_backend()
    return_as = "generator_unordered" if backend.supports_return_generator else "list"
    # One by one: no more calls have begun than there are workers.
    options: Any = {"batch_size": 1, "pre_dispatch": "n_jobs", "max_nbytes": None}
    outcomes = iter(Parallel(count, return_as=return_as, **options)(begin()))
    try:
        # Not ``yield from``, which would close joblib's generator before what stands below.
        for outcome in outcomes:  # noqa: UP028
            yield outcome
    except GeneratorExit:
        # joblib's thread would end with an error if a call were on its way to a worker just now.
        stopped.set()
        time.sleep(0.05)
        raise
    finally:
        if isinstance(outcomes, Generator):
            # Who stops early knows it. joblib would warn, and raise where warnings are errors.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                outcomes.close()


@lru_cache(maxsize=1)
def _load(path: str) -> Any:
    """What works share; a worker holds one such thing, however many it has met."""
    return cloudpickle.loads(Path(path).read_bytes())


def _unpack_and_call(number: int, packed: bytes, path: str, threads: int) -> tuple[int, _Outcome]:
    """Calls a work in a process of its own, where nobody would see a warning."""
    _end_with_parent()
    with warnings.catch_warnings(record=True) as seen:
        _, outcome = _call(number, partial(_unpacked, packed, path), threads)
    return number, outcome._replace(warned=tuple((str(x.message), x.category) for x in seen))


@cache
def _end_with_parent() -> None:
    """Lets this worker end when the process that started it is killed, which tells it nothing."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _unpacked(packed: bytes, path: str) -> Any:
    work: Work = cloudpickle.loads(packed)
    return work.act(_load(path))


def _call(number: int, act: Callable[[], Any], threads: int) -> tuple[int, _Outcome]:
    """Calls with so many threads. An error is a result: it stops no other call."""
    try:
        with torch_threads(threads):
            return number, _Outcome(act())
    except Exception as error:
        return number, _Outcome(error=f"{type(error).__name__}: {error_text(error, 300)}")
