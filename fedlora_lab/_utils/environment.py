"""Where the package runs: how it is installed, and blocks in which others' warnings, loggers and
telemetry are off, after which the process is as before.
"""

import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__version__ = "0.1.0"
SOURCE = Path(__file__).resolve().parents[2]
IN_CHECKOUT = (SOURCE / "pyproject.toml").exists()


def install_command(extra: str = "") -> str:
    """The command that installs the package, with an extra, into the Python that runs; in a
    checkout from there, since it is on no index yet."""
    part = f"[{extra}]" if extra else ""
    what = f"-e '{SOURCE}{part}'" if IN_CHECKOUT else f"'fedlora-lab{part}'"
    return f"{sys.executable} -m pip install {what}"


_LOCK = threading.RLock()


@contextmanager
def ignore_warnings(category: type[Warning] = Warning, message: str = "") -> Iterator[None]:
    """Ignores warnings in a block, and leaves the filters as they were.

    The filters belong to the process: of two threads that change them at once, one would see its
    warning after all, and the other could leave its filters behind. So threads take turns.

    Args: category: of what is ignored; message: how it begins, a pattern; empty for any.
    Guarantees: test_threads_that_ignore_warnings_leave_the_filters_as_they_were.
    """
    with _LOCK, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=message, category=category)
        yield


OFF = ("FLWR_TELEMETRY_ENABLED", "RAY_USAGE_STATS_ENABLED", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO")
"""Read by the packages when they are imported, here and in the processes that they start."""
ALSO_SET = ("PYTHONPATH", "OMP_NUM_THREADS", "PYTHONBREAKPOINT", "GRPC_VERBOSITY")
"""Set by Flower and by Ray for their own processes, beside variables of their own names."""


@contextmanager
def telemetry_off() -> Iterator[None]:
    """Switches off Flower's telemetry and Ray's usage reports, unless their own variables are set.

    Guarantees: the environment is then as before
        (test_user_process.py::test_the_process_is_left_as_it_was_and_asks_no_network; after a
        whole simulation test_flower_simulation.py::test_a_client_that_hangs_or_raises_is_left_out).
    """
    before = _variables()
    os.environ.update({name: os.environ.get(name, "0") for name in OFF})
    try:
        yield
    finally:
        for name in _variables():
            del os.environ[name]
        os.environ.update(before)


def _variables() -> dict[str, str]:
    """The environment variables that Flower and Ray may have set."""
    return {k: v for k, v in os.environ.items() if k.startswith(("FLWR_", "RAY_")) or k in ALSO_SET}


@contextmanager
def mute_logger(name: str = "flwr", below: int = logging.CRITICAL) -> Iterator[None]:
    """Mutes a logger; for a client that fails the server logs one line of its own.

    Args: name: of the logger. below: the level of the first messages that are shown.
    """
    logger = logging.getLogger(name)
    level, propagate = logger.level, logger.propagate
    logger.setLevel(below)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.propagate = propagate
