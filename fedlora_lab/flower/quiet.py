"""What Flower and Ray are told while they are loaded and at work; afterwards the process is as it was."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""Read by the packages when they are imported, here and in the processes that they start."""
ALSO_SET = ("PYTHONPATH", "OMP_NUM_THREADS")
"""Set by Flower and by Ray for their own processes."""


@contextmanager
def reporting_nothing() -> Iterator[None]:
    """Telemetry of Flower and usage reports of Ray are off inside, unless their own variables say otherwise.

    Guarantees: the environment is then as before (test_user_process.py::test_flower_leaves_the_process_as_it_was).
    """
    before = {name: os.environ.get(name) for name in (*ENVIRONMENT, *ALSO_SET)}
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def saying_nothing() -> Iterator[None]:
    """Flower's logger is silent inside: the server writes one line of its own for a client that fails."""
    logger = logging.getLogger("flwr")
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.propagate = propagate
