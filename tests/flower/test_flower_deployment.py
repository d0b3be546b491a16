"""A deployment on the loopback: TLS, known nodes, every site in processes of its own with its own
file of examples.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pandas as pd
import pytest
from hospitals.hospitals.app import SIZES
from tls_certificates import authority, node
from toy_tasks import LORA, book, play, private, tokens
from wait_for_thread import until

import fedlora_lab as fl
from fedlora_lab.flower import deployment

APP = Path(__file__).resolve().parents[1] / "hospitals"
BIN = Path(sys.executable).parent
PLAN = fl.Plan(rounds=2, local_steps=2, batch=3, lr=0.2)


def free_port():
    with socket.socket() as here:
        here.bind(("127.0.0.1", 0))
        return here.getsockname()[1]


class Deployment:
    """Folders, certificates and ports of a deployment, and the processes started in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.address = f"127.0.0.1:{self.port}"
        for place in (folder, folder / "stranger"):
            authority(place)
        for name in ("0", "1", "unknown"):
            node(folder, name)
        (folder / "home").mkdir()
        lines = f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "{self.address}"\n'
        lines += f'root-certificates = "{folder / "ca.pem"}"\n'
        (folder / "home" / "config.toml").write_text(lines)
        own = {"FLWR_TELEMETRY_ENABLED": "0", "OMP_NUM_THREADS": "1"}
        self.env = {**os.environ, "FLWR_HOME": str(folder / "home"), **own}
        self.env["PATH"] = f"{BIN}{os.pathsep}{self.env['PATH']}"

    @contextmanager
    def process(self, name: str, program: str, options: dict, *flags: str):
        """A process in a group of its own, its words in NAME.log; ended with all it started."""
        command = [BIN / program, *flags, *(str(word) for pair in options.items() for word in pair)]
        options = {"env": self.env, "stderr": subprocess.STDOUT, "start_new_session": True}
        with open(self.folder / f"{name}.log", "wb") as log:
            running = subprocess.Popen(command, stdout=log, **options)
        try:
            yield running
        finally:
            for sign in (signal.SIGTERM, signal.SIGKILL):
                with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                    os.killpg(running.pid, sign)
                    running.wait(10)

    def superlink(self):
        files = {"certfile": "server.pem", "keyfile": "server.key", "ca-certfile": "ca.pem"}
        options = {f"--ssl-{name}": self.folder / file for name, file in files.items()}
        flags = "--enable-supernode-auth", "--disable-runtime-dependency-installation"
        options["--port"] = self.port
        return self.process("superlink", "flower-superlink", options, *flags)

    def supernode(self, name: str, key: str, folder: Path, client: int = 0):
        paths = {"terms": "terms.json", "data": f"data{client}.safetensors", "memory": f"m-{name}"}
        config = " ".join(f"{key}='{self.folder / path}'" for key, path in paths.items())
        options = {
            "--superlink": self.address,
            "--port": free_port(),
            "--root-certificates": folder / "ca.pem",
            "--auth-supernode-private-key": self.folder / f"{key}.key",
            "--node-config": f"client={client} {config}",
            "--max-retries": 2,
        }
        return self.process(name, "flower-supernode", options)

    def flwr(self, *command: str) -> str:
        options = {"env": self.env, "capture_output": True, "text": True, "timeout": 600}
        done = subprocess.run([BIN / "flwr", *command], check=False, **options)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def listens(self) -> bool:
        with socket.socket() as there:
            return there.connect_ex(("127.0.0.1", self.port)) == 0


@pytest.mark.slow
@pytest.mark.waits("cluster")
def test_a_deployment_gives_the_run_of_the_loop_without_a_killed_site(tmp_path):
    """The run of the loop through SuperLink and SuperNodes; who is not known, or trusts another
    authority, stays out.

    In the second round one site is killed. The run goes on without it; the ledger counts it all the
    same.
    """
    here, privacy, out = Deployment(tmp_path), private("example"), tmp_path / "out"
    task = tokens("head", SIZES)
    deployment.write_terms(tmp_path / "terms.json", "la-lora", privacy, PLAN, lora=LORA, seed=0)
    for k, pair in enumerate(task.clients):
        deployment.write_examples(tmp_path / f"data{k}.safetensors", pair)
    with ExitStack() as stack:
        stack.enter_context(here.superlink())
        until(here.listens)
        unknown = stack.enter_context(here.supernode("unknown", "unknown", tmp_path))
        stack.enter_context(here.supernode("wary", "0", tmp_path / "stranger"))
        begun = time.monotonic()
        with ThreadPoolExecutor() as pool:
            keys = [str(tmp_path / f"{k}.pub") for k in range(2)]
            list(pool.map(lambda key: here.flwr("supernode", "register", key, "here"), keys))
        # For a reply: many times what two processes need to start, on a machine as busy as it is.
        timeout = max(30.0, 10 * (time.monotonic() - begun))
        sites = [here.supernode(f"site{k}", str(k), tmp_path, k) for k in range(2)]
        _, killed = map(stack.enter_context, sites)
        until(lambda: here.log("superlink").count("Activated node_id") == 2)
        until(lambda: unknown.poll() is not None)
        assert "No SuperNode found with the given public key" in here.log("superlink")
        config = f"terms='{tmp_path / 'terms.json'}' out='{out}' timeout={timeout:.1f}"
        here.flwr("run", str(APP), "here", "--run-config", config)
        until(lambda: (out / "round-000001.json").exists(), 240)
        os.killpg(killed.pid, signal.SIGKILL)
        until(lambda: (out / "round-000002.json").exists(), 240)
        until(lambda: "Finished task" in here.log("superlink"), 60)
        (run,) = json.loads(here.flwr("list", "here", "--format", "json"))["runs"]
        assert run["status"] == "finished:completed"
        assert here.log("superlink").count("Activated node_id") == 2
        assert "Connection attempt failed" in here.log("wary")
        assert "SuperNode ID" in here.log("site0") and "SuperNode ID" not in here.log("wary")
    loop = play(task, "la-lora", privacy, PLAN)
    rows = pd.read_csv(out / "frame-000000.csv").query("layer == 'all'")
    frame = rows.pivot(index="round", columns="measure", values="value")
    for name in ("loss", "deviation"):
        expected = [record.measures()[name] for record in loop[:2]]
        assert frame[name][:2].tolist() == pytest.approx(expected, rel=1e-5)
    up = [record.uploads.numbers_up for record in loop]
    assert frame["numbers_up"].tolist() == [0, up[1], up[2] // 2]
    assert fl.Ledger.load(out / "ledger.json").to_json() == book(loop[-1]).to_json()
    assert not here.listens()
