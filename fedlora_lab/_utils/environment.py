"""Where the package runs: how it is installed, and a block in which Flower's telemetry is off."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = "0.2.0"
SOURCE = Path(__file__).resolve().parents[2]
IN_CHECKOUT = (SOURCE / "pyproject.toml").exists()


def install_command(extra: str = "") -> str:
    """The command that installs the package, with an extra, into the Python that runs; in a
    checkout from there, since it is on no index yet."""
    part = f"[{extra}]" if extra else ""
    what = f"-e '{SOURCE}{part}'" if IN_CHECKOUT else f"'fedlora-lab{part}'"
    return f"{sys.executable} -m pip install {what}"


def require(module: str, extra: str) -> Any:
    """Imports a module that belongs to an extra.

    Raises: ``ImportError`` in one line that says how to install the extra.
    """
    try:
        return import_module(module)
    except ImportError as error:
        advice = f"{module} is not installed: run `{install_command(extra)}`"
        raise ImportError(advice) from error


SET_BY_FLOWER = ("FLWR_TELEMETRY_ENABLED", "GRPC_VERBOSITY")
"""Variables that change while Flower is imported."""


@contextmanager
def telemetry_off() -> Iterator[None]:
    """Switches off Flower's telemetry while it is imported, unless its own variable is set.

    Guarantees: the environment is then as before
        (test_user_process.py::test_the_process_is_left_as_it_was_and_asks_no_network).
    """
    before = {name: os.environ[name] for name in SET_BY_FLOWER if name in os.environ}
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    try:
        yield
    finally:
        for name in SET_BY_FLOWER:
            os.environ.pop(name, None)
        os.environ.update(before)
