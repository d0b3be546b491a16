"""Settings every test shares. Seeds and sizes stay in the tests themselves."""

import gc
import importlib
import os
import signal
import threading
import time
from collections import Counter
from functools import cache
from pathlib import Path

import jaxtyping
import pytest
import shapes
from hypothesis import settings

# Figures are drawn without a window, and the workers of pytest-xdist do not fight over the cores.
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples in every run, and no test fails because a machine is slow.
settings.register_profile("same", derandomize=True, deadline=None)
settings.load_profile("same")

# A shell starts what runs in its background deaf to Ctrl-C, and every process below inherits it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Before the package is loaded: only functions that speak of shapes are checked.
jaxtyping.jaxtyped = shapes.sparing(jaxtyping.jaxtyped)

# What is trained here ends at other digits on another processor: `make trained` runs it again.
TRAINING_ROOMS = ("recipes", "federated", "lora", "measures", "methods")

LIBRARIES = ("matplotlib.pyplot", "opacus", "pandas", "peft", "scipy.stats", "seaborn", "torch")


def pytest_addoption(parser):
    """For the author of a method: all clauses of the contract on all rows."""
    words = "run each clause of tests/lab/methods/test_contract.py on every row of the table"
    parser.addoption("--every-row", action="store_true", help=words)


def pytest_configure(config):
    """Load the libraries before jaxtyping's import hook, within which Python reads no cache; a
    process that only hands out tests needs none of them."""
    if config.getoption("dist", "no") == "no":
        gc.disable()
        for library in (*LIBRARIES, "transformers"):
            importlib.import_module(library)


@cache
def shares_a_fixture(path):
    """Whether tests of a file share what one of them has made, by a fixture or in a cache."""
    text = Path(path).read_text("utf-8")
    return 'scope="module"' in text or "mark.together" in text


def pytest_xdist_make_scheduler(config, log):
    """One worker runs all tests in the browser, and one all that share a fixture of their file:
    each worker would make it anew. pytest-xdist's own groups are lost in pytest 9.2
    (github.com/pytest-dev/pytest-xdist/issues/1386)."""
    if config.getoption("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            path = nodeid.partition("::")[0]
            # Cases of one test go together: to hand out each by itself takes longer than most last.
            alone = path if shares_a_fixture(path) else nodeid.partition("[")[0]
            return "browser" if "/browser/" in path else alone

    return Together(config, log)


def pytest_collection_modifyitems(items):
    """Begin with what takes long, so that no worker of pytest-xdist ends alone with a notebook."""
    places = Counter()
    for item in items:
        if item.path.suffix == ".ipynb" or item.path.parent.name in TRAINING_ROOMS:
            item.add_marker("trains")
        if "site" in getattr(
            item, "fixturenames", ()
        ):  # half a minute to build, and `make book` builds it, too
            item.add_marker("further")
        if thinned := item.get_closest_marker("every"):
            (n,) = thinned.args
            test = item.nodeid.partition("[")[0]
            place = places[test]
            places[test] += 1
            # One of each n, and a place later in each next n: where cases are pairs, such as a row
            # in both units of privacy, every n-th would always be the same half.
            if (place + place // n) % n:
                item.add_marker("further")
        if item.get_closest_marker("further"):
            item.add_marker("slow")
    items.sort(
        key=lambda item: (
            not item.get_closest_marker("waits"),
            item.path.suffix != ".ipynb",
            not item.get_closest_marker("slow"),
        )
    )


def pytest_collection_finish():
    """Take half a million objects of the libraries out of the garbage collector's walks."""
    gc.freeze()
    gc.enable()


def pytest_runtest_setup():
    """Every test counts its own calls (shapes.py)."""
    shapes.calls.clear()


def threads_at_work():
    """Those that may compute; tqdm's and joblib's, of classes of their own, keep watch for good."""
    plain = {thread for thread in threading.enumerate() if type(thread) is threading.Thread}
    return {thread for thread in plain if not thread.name.startswith("QueueFeeder")}


@pytest.fixture(autouse=True)
def no_thread_outlives_its_test():
    """A run in another thread would change PyTorch's defaults, the process's, in the next test."""
    before = threads_at_work()
    yield
    end = time.monotonic() + 30
    while left := threads_at_work() - before:
        assert time.monotonic() < end, f"still at work: {left}"
        left.pop().join(0.1)
