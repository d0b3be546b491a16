"""A private step beside another program that keeps one core busy: with all of torch's threads, and
with one.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from time import perf_counter

import torch

import fedlora_lab as fl
from benchmarks.peers import stacked

INNER = 10


@contextmanager
def busy() -> Iterator[None]:
    """Within it another process computes without a pause; it ends by itself after ten minutes."""
    code = "import time; end = time.monotonic() + 600\nwhile time.monotonic() < end: pass"
    other = subprocess.Popen([sys.executable, "-c", code])
    try:
        yield
    finally:
        other.kill()
        other.wait()


def beside(turns: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of the clock a step of `digits` 10 x 16: "alone" and "busy" -> "all" and "one"
    (threads) -> turns.
    """
    step, threads = stacked(fl.tasks.digits(clients=10), 16, 4), torch.get_num_threads()
    found: dict[str, dict[str, list[float]]] = {
        "alone": {"all": [], "one": []},
        "busy": {"all": [], "one": []},
    }
    for _ in range(turns):
        for where, around in (("alone", nullcontext()), ("busy", busy())):
            with around:
                for name, count in (("all", threads), ("one", 1)):
                    torch.set_num_threads(count)
                    begun = perf_counter()
                    for _ in range(INNER):
                        step()
                    found[where][name].append((perf_counter() - begun) / INNER)
    torch.set_num_threads(threads)
    return found
