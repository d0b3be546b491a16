"""The Ray of one simulation: files and ports that no other account can use, and nothing of it afterwards."""

import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from fedlora_lab.flower.quiet import set_variables

SHORT = 24
"""Characters of a folder below which Ray's sockets fit into the 104 to 108 that a system allows to their paths."""


@contextmanager
def private_folder() -> Iterator[Path]:
    """A new temporary folder of mode 0700, gone afterwards with all that is in it; a killed process leaves it."""
    usual = tempfile.gettempdir()
    folder = Path(tempfile.mkdtemp(prefix="fl-", dir=usual if len(usual) <= SHORT or os.name == "nt" else "/tmp"))
    try:
        yield folder
    finally:
        for _ in range(50):  # a process that is just ending may still write a last file
            shutil.rmtree(folder, ignore_errors=True)
            if not folder.exists():
                break
            time.sleep(0.1)


@contextmanager
def private_ray() -> Iterator[dict[str, Any]]:
    """What `ray.init` is to be told for a Ray of this simulation alone, which has ended afterwards.

    Left to itself Ray writes logs that everybody can read, and listens on every address of the machine to whoever
    calls. Here its files lie in a private folder, it listens on the loopback, and it answers whoever has a token that
    only its own processes know; to all others the loopback tells counters of Ray's own.

    To be entered within `reporting_nothing`, which takes the variables back.

    Raises: ``ValueError`` where this process has a Ray already: Flower would use that one, and stop it.
    Guarantees: tests/test_flower_simulation.py::test_a_client_that_hangs_or_raises_is_left_out, ::test_the_command.
    """
    import ray
    from ray._private import ray_constants
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    if ray.is_initialized():
        raise ValueError("ray: expected none in this process, a simulation starts its own; call ray.shutdown() before")

    def read_again() -> None:
        """Ray reads the variables once in a process, and keeps the first token it saw."""
        AuthenticationTokenLoader.instance().reset_cache()
        Config.initialize("")

    before = {name: os.environ.get(name) for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}
    reachable = ray_constants.ENABLE_RAY_CLUSTER
    with ExitStack() as after, private_folder() as folder:
        after.callback(read_again)
        after.callback(set_variables, before)
        after.callback(setattr, ray_constants, "ENABLE_RAY_CLUSTER", reachable)
        set_variables({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)})
        read_again()
        ray_constants.ENABLE_RAY_CLUSTER = False  # else Ray turns 127.0.0.1 into an address that others can reach
        try:
            # Ray opens the folder that it is told to everybody: one below is told.
            yield {"address": "local", "_temp_dir": str(folder / "r"), "include_dashboard": False}
        finally:
            ray.shutdown()
