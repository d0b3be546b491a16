"""Calls of the command line within the test's own process, and what other processes start with."""

import os
import subprocess
import sys
from typing import Any

import pytest

from fedlora_lab.cli import main

SMALL = ["--clients=3", "--rounds=2", "--local-steps=1", "--batch=8", "--delta=1e-4", "--lr=0.1"]
"""Options of a run of a second."""

WARM = os.environ.get("FEDLORA_WARM")
PYTHON = f"{WARM}/python" if WARM else sys.executable
"""Under scripts/warm_kernels.py an interpreter that has loaded the libraries. Not for a test of
what a first import does."""


def succeeded(*command: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own that has ended well, with what it said."""
    limited: Any = {"timeout": 1200, "capture_output": True, "text": True} | options
    done = subprocess.run([*map(str, command)], **limited)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done


def call(*arguments: object) -> int:
    """The status with which ``fedlora-lab arguments`` leaves."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code if isinstance(stop.value.code, int) else 0
