"""What Flower and Ray are told while they are loaded and at work; afterwards the process is as it was."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""Read by the packages when they are imported, here and in the processes that they start."""
ALSO_SET = ("PYTHONPATH", "OMP_NUM_THREADS", "PYTHONBREAKPOINT", "GRPC_VERBOSITY")
"""Set by Flower and by Ray for their own processes, beside variables of their own names."""


@contextmanager
def reporting_nothing() -> Iterator[None]:
    """Telemetry of Flower and usage reports of Ray are off inside, unless their own variables say otherwise.

    Guarantees: the environment is then as before (test_user_process.py::test_flower_leaves_the_process_as_it_was;
        after a whole simulation test_flower_simulation.py::test_a_client_that_hangs_or_raises_is_left_out).
    """
    before = _theirs()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        yield
    finally:
        set_variables({**dict.fromkeys(_theirs()), **before})


def _theirs() -> dict[str, str]:
    """The variables of the environment that Flower and Ray may have set."""
    own = ("FLWR_", "RAY_")
    return {name: value for name, value in os.environ.items() if name.startswith(own) or name in ALSO_SET}


def set_variables(values: Mapping[str, str | None]) -> None:
    """Set variables of the environment; ``None`` takes one away."""
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextmanager
def saying_nothing(name: str = "flwr") -> Iterator[None]:
    """A logger is silent inside; of Flower's, the server writes one line of its own for a client that fails."""
    logger = logging.getLogger(name)
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.propagate = propagate
