"""Settings every test shares. Seeds and sizes stay in the tests themselves."""

import gc
import importlib
import os
import signal

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

# Before anything of the package is loaded: shapes are held where they are spoken of, and cost nothing elsewhere.
jaxtyping.jaxtyped = shapes.sparing(jaxtyping.jaxtyped)


def pytest_configure(config: pytest.Config) -> None:
    """What the package loads is loaded before it: within the import hook of jaxtyping no cache of Python's is read.

    A process that only hands out tests needs none of it.
    """
    if config.getoption("numprocesses", None):
        return
    gc.disable()
    for library in ("matplotlib.pyplot", "opacus", "pandas", "peft", "scipy.stats", "seaborn", "torch", "transformers"):
        importlib.import_module(library)


def pytest_collection_finish() -> None:
    """Half a million objects of the libraries, and the tests, leave the garbage collector's walks."""
    gc.freeze()
    gc.enable()


def pytest_runtest_setup() -> None:
    """Every test counts its own calls (shapes.py)."""
    shapes.calls.clear()
