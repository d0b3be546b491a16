"""Switches telemetry and loggers of Flower and Ray off while they work; restores the process."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

OFF = ("FLWR_TELEMETRY_ENABLED", "RAY_USAGE_STATS_ENABLED", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO")
"""Read by the packages when they are imported, here and in the processes that they start."""
ALSO_SET = ("PYTHONPATH", "OMP_NUM_THREADS", "PYTHONBREAKPOINT", "GRPC_VERBOSITY")
"""Set by Flower and by Ray for their own processes, beside variables of their own names."""


@contextmanager
def telemetry_off() -> Iterator[None]:
    """Switches off Flower's telemetry and Ray's usage reports, unless their own variables are set.

    Guarantees: the environment is then as before
        (test_user_process.py::test_the_process_is_left_as_it_was; after a whole simulation
        test_flower_simulation.py::test_a_client_that_hangs_or_raises_is_left_out).
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
def mute_logger(name: str = "flwr") -> Iterator[None]:
    """Mutes a logger; for a client that fails the server logs one line of its own."""
    logger = logging.getLogger(name)
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.propagate = propagate
