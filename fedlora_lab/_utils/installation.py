"""Where this package is installed, and the command that adds an extra of it."""

import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2]
IN_CHECKOUT = (SOURCE / "pyproject.toml").exists()


def install_command(extra: str = "") -> str:
    """The command that installs the package, with an extra, into the Python that runs; in a
    checkout from there, since it is on no index yet."""
    part = f"[{extra}]" if extra else ""
    what = f"-e '{SOURCE}{part}'" if IN_CHECKOUT else f"'fedlora-lab{part}'"
    return f"{sys.executable} -m pip install {what}"
