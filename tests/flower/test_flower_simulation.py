"""Flower's own simulation engine, with Ray: the run of the loop, faults that take time, and what
others on the machine could see.
"""

import os
import re
import stat
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from filelock import FileLock
from toy_tasks import PLAN, private, tokens

import fedlora_lab as fl
from fedlora_lab._utils.files import write_atomically
from fedlora_lab.flower import simulate, simulators
from fedlora_lab.flower.client import client_app, private_errors
from fedlora_lab.flower.simulators import private_ray, run_engine, temporary_private_folder

LATE = 10.0
"""Seconds for a round: many times what an honest one takes beside other tests on a slow machine."""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.waits("cluster"),
    # What Ray and its parts leave behind or say of each other.
    pytest.mark.filterwarnings(
        "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
    ),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


def failing(message, context, call):
    """Around client 1's messages: in round 2 it hangs, in round 3 an error of it tells a label."""
    at = context.node_config["partition-id"], message.content["about"].get("round")
    if message.metadata.message_type == "train" and at == (1, 2):
        time.sleep(LATE + 1)
    if message.metadata.message_type == "train" and at == (1, 3):
        with private_errors("training"):
            raise RuntimeError("Target SECRET-57 is out of bounds.")
    return call(message, context)


@pytest.fixture
def short(monkeypatch, tmp_path):
    """Other temporary files go here, under the umask of most accounts; sockets need short paths."""
    before = os.umask(0o022)
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)
    os.umask(before)


def attacked(folder):
    """What another account would find while the simulation runs: modes, private text, ports and
    what answers there.
    """
    import grpc
    import ray

    (top,) = folder.iterdir()
    found = [path for path in top.rglob("*") if path.is_file()]
    assert len(found) > 10, "Ray's logs are there"
    assert stat.S_IMODE(top.stat().st_mode) == 0o700
    assert not [path for path in found if b"SECRET" in path.read_bytes()]
    family = psutil.Process(), *psutil.Process().children(recursive=True)
    ports = [port for one in family for port in one.net_connections("inet")]
    places = {port.laddr.ip for port in ports if port.status == psutil.CONN_LISTEN}
    assert places and places <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    with grpc.insecure_channel(ray.get_runtime_context().gcs_address) as channel:
        ask = channel.unary_unary("/ray.rpc.JobInfoGcsService/GetAllJobInfo")
        with pytest.raises(grpc.RpcError) as refused:
            ask(b"", metadata=(("authorization", f"Bearer {'0' * 64}"),), timeout=30)
        assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
    with pytest.raises(ValueError, match=r"^ray: expected none in this process"), private_ray():
        pass
    telemetry = sys.modules["flwr.supercore.telemetry"].FLWR_TELEMETRY_ENABLED
    assert telemetry == os.environ.get("FLWR_TELEMETRY_ENABLED", "0")


def test_a_client_that_hangs_or_raises_is_left_out(
    tmp_path, tmp_path_factory, short, caplog, monkeypatch
):
    """With a factor that clients keep and models that they judge two rounds are those of `fl.run`.
    Then the run goes on with those who are there; the ledger counts every
    round for everyone who was asked.

    Nobody else reads what it writes, or talks to it; telemetry is off; afterwards nothing of it is
    there, and the environment as before.
    """
    environment = dict(os.environ)
    looked: list[int] = []
    task = fl.tasks.regression(clients=2)
    rule = fl.SGD(momentum=0.5)
    plan = fl.Plan(rounds=4, local_steps=2, batch=3, lr=0.1, optimizer=rule)
    privacy = fl.Privacy(delta=1e-4, accountant="rdp", noise_multiplier=1.0)
    terms: Any = (task, "fedsa-lora", privacy, plan)

    def engine(app, participant, run, each, workers):
        def look(record):
            each(record)
            if record.index == 4:
                attacked(short)
                looked.append(workers)

        run_engine(app, participant, run, look, 1, timeout=LATE, patience=900.0)

    monkeypatch.setattr(
        simulators, "client_app", lambda who, mods: client_app(who, [*mods, failing])
    )
    monkeypatch.setattr(simulators, "run_engine", engine)
    # One cluster at a time in all workers of a run: two were seen to get in each other's way.
    with FileLock(tmp_path_factory.getbasetemp().parent / "cluster.lock"):
        records = list(simulate(*terms, checkpoint=tmp_path))
    assert looked and not list(short.iterdir()) and dict(os.environ) == environment
    loop: Any = list(fl.run(*terms))
    frame = fl.to_frame(records)
    keys = ["round", "layer", "measure"]
    both: Any = fl.to_frame(loop).merge(frame, on=keys).query("round <= 2 and measure != 'seconds'")
    both = both[~both["measure"].isin(["clipped", "nonfinite"])]  # what only clients know
    assert {"loss", "deviation", "epsilon", "bytes_up"} <= set(both["measure"])
    assert np.allclose(both["value_x"], both["value_y"], rtol=1e-5, atol=1e-9, equal_nan=True)
    sent = frame.query("layer == 'all' and measure == 'numbers_up'")["value"]
    assert [2 * x // loop[1].uploads.numbers_up for x in sent] == [0, 2, 2, 1, 1]
    assert fl.Ledger.load(tmp_path / "ledger.json").to_json() == loop[-1].ledger.to_json()
    late, raised = (line for line in caplog.messages if "is left out" in line)
    assert late == f"round 3, client 1 is left out: reply=None: expected one within {LATE:g} s"
    assert raised.startswith("round 4, client 1 is left out: client failed: ")
    place = r"RuntimeError at test_flower_simulation\.py:\d+, in failing$"
    assert re.search(rf"training failed at this site; {place}", raised)
    assert "SECRET" not in caplog.text


def test_the_folder_of_a_simulation_goes_with_it(short, monkeypatch):
    """Also when it fails; where the usual folder is too long for sockets it is a short one."""

    def fail():
        with temporary_private_folder() as folder:
            write_atomically(folder / "in" / "file", "text")
            assert folder.parent == short and stat.S_IMODE(folder.stat().st_mode) == 0o700
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not list(short.iterdir())
    (long := short / ("x" * 40)).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with temporary_private_folder() as folder:
        assert folder.parent == Path("/tmp") and stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not folder.exists()


def test_mistakes_are_found_before_anything_is_started():
    with pytest.raises(ValueError, match=r"^workers=0: expected a whole number >= 1$"):
        simulate(tokens(), "fedlora", None, PLAN, workers=0)
    words = r"^trust='central': expected 'local' or 'secagg'"
    with pytest.raises(ValueError, match=words):
        simulate(tokens(), "fedlora", private("client"), PLAN)
