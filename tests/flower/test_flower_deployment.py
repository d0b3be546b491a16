"""A walk through docs/deployment.md: its shell, line by line, on the loopback. TLS, known nodes,
three sites in processes of their own, one of them killed and back, a run that stops and goes on.
"""

import os
import re
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pandas as pd
import psutil
import pytest
from test_flower_apps import imported
from tls_certificates import authority, node
from wait_for_thread import until

import fedlora_lab as fl
from fedlora_lab.flower import deployment

PAGE = Path(__file__).resolve().parents[2] / "docs" / "deployment.md"
BIN = Path(sys.executable).parent
SITES = 3
LATE = 3600
"""Seconds after which a machine, however busy, is taken to have failed."""


def free_ports(count):
    """Ports that nobody uses now, each another one."""
    taken = [socket.socket() for _ in range(count)]
    for one in taken:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in taken]
    for one in taken:
        one.close()
    return ports


def script():
    """The shell blocks of the page as they stand, which end at the first failure."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S)
    assert len(blocks) > 12
    return "set -eu\n" + "\n".join(blocks)


def seconds(env):
    """For the replies of a round: many times what a client needs to start, on a machine as busy as
    it is. A killed site is waited for as long.
    """
    begun = time.monotonic()
    words = [BIN / "python", "-c", "import fedlora_lab.flower.deployment"]
    subprocess.run(words, env=env, check=True)
    return f"{max(60, 20 * (time.monotonic() - begun)):.0f}"


@contextmanager
def ended(folder):
    """Afterwards nothing runs that was started with this folder as Flower's, whoever started it."""
    try:
        yield
    finally:
        for one in psutil.process_iter():
            with suppress(psutil.Error):
                if one.environ().get("FLWR_HOME") == str(folder):
                    one.kill()


def stranger(place, name, superlink, env, port):
    """A SuperNode with a key of its own that trusts the authority in ``place``."""
    words = [BIN / "flower-supernode", "--superlink", superlink, "--max-retries", "2"]
    words += ["--root-certificates", place / "ca.pem", "--port", str(port)]
    words += ["--auth-supernode-private-key", place / f"{name}.key"]
    with open(place / f"{name}.log", "wb") as log:
        return subprocess.Popen(words, stdout=log, stderr=log, env=env)


@pytest.mark.slow
@pytest.mark.waits("cluster")
def test_the_page_of_a_deployment_walks(tmp_path):
    """Every line runs. The rounds are those of the loop, the killed site is missed in one round and
    there in the next, the stopped run goes on, the adapter loads and its certificate holds. Who is
    not known, or trusts another authority, stays out.
    """
    home, app = tmp_path / "flower", tmp_path / "clinics"
    port, rehearsal, *ports = free_ports(4 + SITES)
    env = {k: v for k, v in os.environ.items() if not k.startswith(("FLWR_", "RAY_"))}
    env |= {"FLWR_HOME": str(home), "OMP_NUM_THREADS": "1", "TMPDIR": "/tmp"}
    path = [*filter(None, [os.environ.get("FEDLORA_WARM")]), str(BIN), env["PATH"]]
    env |= {"PATH": os.pathsep.join(path), "SEED": "--seed 0", "TIMEOUT": seconds(env)}
    env |= {"PORT": str(port), "REHEARSAL_PORT": str(rehearsal)}
    env |= {"NODE_PORTS": " ".join(map(str, ports[:SITES]))}
    log, superlink = tmp_path / "walk.log", app / "superlink.log"

    def said(path, words):
        return path.exists() and words in path.read_text(errors="replace")

    # `ended` comes last, so that it kills what still runs before `children` waits for it.
    with open(log, "wb") as words, ExitStack() as children, ended(home):
        options = {"stdout": words, "stderr": subprocess.STDOUT, "start_new_session": True}
        command = ["bash", "-c", script()]
        walk = children.enter_context(subprocess.Popen(command, cwd=tmp_path, env=env, **options))
        until(lambda: walk.poll() is not None or said(superlink, "Activated node_id"), LATE)
        assert walk.poll() is None, log.read_text()[-4000:]
        outside = []
        for name, own, last in (("unknown", False, ports[-1]), ("wary", True, ports[-2])):
            place = tmp_path / name
            place.mkdir()
            authority(place) if own else (place / "ca.pem").write_bytes(
                (app / "keys" / "ca.pem").read_bytes()
            )
            node(place, name)
            outside.append(
                children.enter_context(stranger(place, name, f"127.0.0.1:{port}", env, last))
            )
        code = walk.wait(LATE)
        assert code == 0, log.read_text()[-4000:]
        assert "No SuperNode found with the given public key" in superlink.read_text()
        assert "Connection attempt failed" in (tmp_path / "wary" / "wary.log").read_text()
        for one in outside:
            one.wait(LATE)
    text = log.read_text()
    assert "round 10 of 10: 2 of 2 sites" in text and "PeftModel" in text
    assert "Sound, and not for release" in text
    assert "round 1 of 3: 3 of 3 sites" in text and "round 2 of 3: 2 of 3 sites" in text
    assert "round 3 of 3: 3 of 3 sites" in text
    # Flower logs what is deprecated in how it is called.
    lines = [x for path in tmp_path.rglob("*.log") for x in path.read_text("utf-8").splitlines()]
    others = re.compile(
        "GitWildMatchPattern|is_gradient_checkpointing"
    )  # Flower's, PEFT's own calls
    assert [x for x in lines if re.search("deprecat", x, re.I) and not others.search(x)] == []
    with imported(app, "clinics") as clinics:
        data = [tmp_path / f"site-{k}" / "data.safetensors" for k in range(SITES)]
        examples = [deployment.read_examples(path) for path in data]
        party = deployment.read_terms(app / "terms.json", clinics.public).spec
        task = clinics.model.task(tuple(examples), party.task.test)
        loop = fl.run(task, party.method, party.privacy, party.plan, lora=party.lora, seed=0)
        first = [next(loop).measures() for _ in range(2)]
    rows = pd.read_csv(app / "out" / "frame-000000.csv").query("layer == 'all'")
    frame = rows.pivot(index="round", columns="measure", values="value")
    for name in ("loss", "deviation"):
        expected = [record[name] for record in first]
        assert frame[name][:2].tolist() == pytest.approx(expected, rel=1e-5)
    sent = frame["numbers_up"].tolist()
    assert sent[0] == 0 and sent[2] == sent[1] * 2 // SITES
    ledger = fl.Ledger.load(app / "out" / "ledger.json")
    assert ledger.reproducible and len({entry.round for entry in ledger.releases}) == SITES
    with socket.socket() as there:
        assert there.connect_ex(("127.0.0.1", port)) != 0
