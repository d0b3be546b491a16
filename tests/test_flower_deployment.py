"""A deployment on the loopback: TLS, known nodes, every site in processes of its own with its own file of examples."""

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pandas as pd
import pytest
from certified import authority, node
from patience import until
from small import LORA, book, private, tokens

import fedlora_lab as fl
from fedlora_lab.flower import deployment
from fedlora_lab.ledger import Ledger

HERE = Path(__file__).resolve().parent
APP = HERE / "hospitals"
BIN = Path(sys.executable).parent
PLAN = fl.Plan(rounds=2, local_steps=2, batch=3, lr=0.2)
SITES = range(3)


def free_port():
    with socket.socket() as here:
        here.bind(("127.0.0.1", 0))
        return here.getsockname()[1]


class Site:
    """Folders, certificates and ports of a deployment, and the processes that were started in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        authority(folder)
        authority(folder / "stranger")
        for name in ("0", "1", "2", "wary", "unknown"):
            node(folder, name)
        home = folder / "home"
        home.mkdir()
        self.address = f"127.0.0.1:{self.port}"
        lines = f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "{self.address}"\n'
        (home / "config.toml").write_text(lines + f'root-certificates = "{folder / "ca.pem"}"\n')
        self.env = {**os.environ, "FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0", "OMP_NUM_THREADS": "1"}
        self.env["PATH"] = f"{BIN}{os.pathsep}{self.env['PATH']}"

    @contextmanager
    def process(self, name: str, *command: str):
        """A process in a group of its own, its words in NAME.log; ended with all that it started."""
        with open(self.folder / f"{name}.log", "wb") as log:
            running = subprocess.Popen(
                [BIN / command[0], *command[1:]], stdout=log, stderr=log, env=self.env, start_new_session=True
            )
        try:
            yield running
        finally:
            for sign in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(running.pid, sign)
                    running.wait(10)
                except (ProcessLookupError, subprocess.TimeoutExpired):
                    continue

    def superlink(self):
        keys = {"certfile": "server.pem", "keyfile": "server.key", "ca-certfile": "ca.pem"}
        tls = [word for name, file in keys.items() for word in (f"--ssl-{name}", str(self.folder / file))]
        options = ["--port", str(self.port), "--enable-supernode-auth", "--disable-runtime-dependency-installation"]
        return self.process("superlink", "flower-superlink", *tls, *options)

    def supernode(self, name: str, key: str, authority: Path, client: int = 0):
        settings = {
            "terms": self.folder / "terms.json",
            "data": self.folder / f"data{client}.safetensors",
            "memory": self.folder / f"memory-{name}",
        }
        config = f"client={client} " + " ".join(f"{key}='{path}'" for key, path in settings.items())
        return self.process(
            name, "flower-supernode", "--superlink", self.address, "--port", str(free_port()),
            "--root-certificates", str(authority), "--auth-supernode-private-key", str(self.folder / f"{key}.key"),
            "--node-config", config, "--max-retries", "2",
        )  # fmt: skip

    def flwr(self, *command: str) -> str:
        done = subprocess.run(
            [BIN / "flwr", *command], env=self.env, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def listens(self) -> bool:
        with socket.socket() as there:
            return there.connect_ex(("127.0.0.1", self.port)) == 0


def prepared(folder: Path):
    """Terms for everyone, and of the data for each site its own."""
    site, privacy = Site(folder), private("example")
    deployment.write_terms(folder / "terms.json", "la-lora", privacy, PLAN, lora=LORA, seed=0)
    for k, pair in enumerate(tokens("head").clients):
        deployment.write_examples(folder / f"data{k}.safetensors", pair)
    return site, privacy


def started(site: Site) -> str:
    """A run of the app; returns its number."""
    config = f"terms='{site.folder / 'terms.json'}' out='{site.folder / 'out'}' timeout=30.0"
    return json.loads(site.flwr("run", str(APP), "here", "--run-config", config, "--format", "json"))["run-id"]


def status(site: Site, run: str) -> str:
    (found,) = [r for r in json.loads(site.flwr("list", "here", "--format", "json"))["runs"] if r["run-id"] == run]
    return found["status"]


@pytest.mark.waits("cluster")
def test_a_deployment(tmp_path):
    """The run of the loop through SuperLink and SuperNodes; who is not known, or trusts another authority, stays out.

    In the second round one site is killed. The run goes on without it; the ledger counts it all the same.
    """
    site, privacy = prepared(tmp_path)
    with ExitStack() as stack:
        stack.enter_context(site.superlink())
        until(site.listens)
        for name in (*SITES, "wary"):
            site.flwr("supernode", "register", str(tmp_path / f"{name}.pub"), "here")
        ca = tmp_path / "ca.pem"
        sites = [stack.enter_context(site.supernode(f"site{k}", str(k), ca, k)) for k in SITES]
        unknown = stack.enter_context(site.supernode("unknown", "unknown", ca))
        stack.enter_context(site.supernode("wary", "wary", tmp_path / "stranger" / "ca.pem"))
        until(lambda: site.log("superlink").count("Activated node_id") == 3)
        until(lambda: unknown.poll() is not None)
        assert "No SuperNode found with the given public key" in site.log("superlink")
        run = started(site)
        out = tmp_path / "out"
        until(lambda: (out / "round-000001.json").exists(), 240)
        os.killpg(sites[2].pid, signal.SIGKILL)
        until(lambda: (out / "round-000002.json").exists(), 240)
        until(lambda: status(site, run).startswith("finished"), 60)
        assert status(site, run) == "finished:completed"
        assert site.log("superlink").count("Activated node_id") == 3
        assert "Connection attempt failed" in site.log("wary")
        assert "SuperNode ID" in site.log("site0")
        assert "SuperNode ID" not in site.log("wary")
    loop = list(fl.run(tokens("head"), "la-lora", privacy, PLAN, lora=LORA, seed=0))
    frame = (
        pd.read_csv(out / "frame-000000.csv")
        .query("layer == 'all'")
        .pivot(index="round", columns="measure", values="value")
    )
    for name in ("loss", "deviation"):
        assert frame[name][:2].tolist() == pytest.approx([record.measures()[name] for record in loop[:2]], rel=1e-5)
    assert frame["numbers_up"].tolist()[1] == loop[1].uploads.numbers_up
    assert frame["numbers_up"].tolist()[2] == loop[2].uploads.numbers_up * 2 // 3
    assert Ledger.load(out / "ledger.json").to_json() == book(loop[-1]).to_json()
    assert not site.listens()
