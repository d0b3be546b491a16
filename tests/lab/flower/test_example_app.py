"""The example app by the commands of its own page: in Flower's simulation, then between a server
and two sites in processes of their own, over TLS.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from commands import WARM
from peft import PeftModel
from places import ROOT

import fedlora_lab as fl

EXAMPLE = ROOT / "examples" / "flower_app"
LATE = 1800
"""Seconds after which a machine, however busy, is taken to have failed."""


def free_ports(count):
    """Ports that nobody uses now, each another one."""
    with ExitStack() as taken:
        servers = (socket.create_server(("127.0.0.1", 0)) for _ in range(count))
        sockets = [taken.enter_context(server) for server in servers]
        return [str(one.getsockname()[1]) for one in sockets]


@contextmanager
def ended(home):
    """Afterwards nothing runs that was started with this folder as Flower's, whoever started it."""
    try:
        yield
    finally:
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("FLWR_HOME") == str(home):
                    process.kill()


@pytest.mark.further
@pytest.mark.slow
@pytest.mark.waits
def test_the_page_of_the_example_app_walks(tmp_path):
    """Every command runs: the app ends in a simulation and between sites, the adapter loads in
    PEFT, and server and sites count the same releases.
    """
    home, app = tmp_path / "flower", tmp_path / "app"
    shutil.copytree(EXAMPLE, app)
    page = (app / "README.md").read_text("utf-8")
    # Flower starts a process for each message to a site, which loads PyTorch: one round, not three.
    agreed = app / "flower_app" / "terms.py"
    agreed.write_text(agreed.read_text("utf-8").replace("rounds=3", "rounds=1"), "utf-8")
    own, control, *ports = free_ports(5)
    for written, free in zip(("8443", "9094", "9095"), ports, strict=True):
        page = page.replace(written, free)
    simulate, *prepare, server, first, second, play, tell = re.findall(
        r"^```sh\n(.*?)^```$", page, re.M | re.S
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith(("FLWR_", "RAY_"))}
    env |= {"FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    env |= {"FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": own, "FLWR_LOCAL_CONTROL_API_PORT": control}
    # Flower finds what it starts in the path: there where the libraries are loaded, if somewhere.
    programs = [folder for folder in (WARM, str(Path(sys.executable).parent)) if folder]
    if WARM:  # Ray starts its workers there too, and none in advance
        job = {"runtime_env": {"py_executable": str(Path(WARM, "python"))}}
        env |= {
            "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(job),
            "RAY_prestart_worker_first_driver": "0",
        }
    # Ray's sockets need a short path.
    env |= {"TMPDIR": "/tmp", "PATH": os.pathsep.join([*programs, env["PATH"]])}

    def walk(script):
        command = ["bash", "-c", f"set -eu\n{script}"]
        with open(tmp_path / "walk.log", "w+b") as log:
            options = {"cwd": app, "env": env, "stdout": log, "stderr": subprocess.STDOUT}
            code = subprocess.run(command, timeout=LATE, check=False, **options).returncode
            log.seek(0)
            said = log.read().decode()
        assert code == 0, said[-4000:]
        return said

    # `ended` kills what still runs before `terminals` waits for it.
    with ExitStack() as terminals, ended(home):

        def open_terminal(script):
            log = terminals.enter_context(open(tmp_path / "terminals.log", "ab"))
            command = ["bash", "-c", f"exec {script}"]
            options = {"cwd": app, "env": env, "stdout": log, "stderr": log}
            terminals.enter_context(subprocess.Popen(command, **options))

        def wait_for(port):
            walk(f"until (echo > /dev/tcp/127.0.0.1/{port}) 2> /dev/null; do sleep 0.2; done")

        # `flwr` gives a local server 15 seconds to start, too few on a busy machine, and 0.4 to
        # answer. So one stands there already, as `flwr` would start it, and is asked again.
        flags = f"--insecure --simulation --isolation subprocess --host 127.0.0.1 --port {own}"
        open_terminal(f"flower-superlink {flags} --database {home}/state.db")
        wait_for(own)
        # Ray gives up on a busy machine as well, and `flwr` ends as if all were well.
        asked = f"{simulate.strip()} | tee told; grep -q finished: told && break"
        walk(f"for _ in 1 2 3 4; do {asked}; done")
        walk("\n".join(prepare))
        for script in (server, first, second):
            open_terminal(script)
        # `flwr` does not wait for a server, sites do.
        wait_for(ports[0])
        said = walk(f"{play}\n{tell}")
    assert "round 1: " in said and "finished: " in said and "Ledger(unit='example'" in said
    PeftModel.from_pretrained(fl.tasks.digits(clients=1).model, str(app / "between" / "adapter"))
    counted = fl.Ledger.load(app / "between" / "ledger.json")
    assert not counted.reproducible and counted.epsilon() == pytest.approx(8, abs=0.05)
    spent = [fl.flower.client_ledger(app / "private" / f"memory-{site}") for site in range(2)]
    assert max(book.epsilon() for book in spent if book) == pytest.approx(counted.epsilon())
