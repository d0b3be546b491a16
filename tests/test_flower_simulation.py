"""Flower's own simulation engine, with Ray: the run of the loop, faults that take time, and the command."""

import os
import re
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
from filelock import FileLock
from flowers import ROUNDS, apart, protected
from small import LORA, book, play, private, tokens

from fedlora_lab.cli import main
from fedlora_lab.files import write_atomically
from fedlora_lab.flower import client_app, simulate
from fedlora_lab.flower.client import at_this_site
from fedlora_lab.flower.cluster import private_folder, private_ray
from fedlora_lab.flower.server import open_run
from fedlora_lab.flower.simulation import engine, everyone, placed

PLAN = ROUNDS.replace(participation=1.0, dropout=0.0)
LATE = 10.0
"""Seconds for a round: many times what an honest one takes beside other tests on a slow machine."""
pytestmark = [
    pytest.mark.waits("cluster"),
    # What Ray and its parts leave behind or say of each other.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


@pytest.fixture
def alone(tmp_path_factory):
    """One cluster at a time in all workers of a run: two were seen to get in each other's way."""
    with FileLock(tmp_path_factory.getbasetemp().parent / "cluster.lock"):
        yield


def failing(message, context, call):
    """Around the messages of client 1: in round 1 it hangs, in round 2 it raises an error that tells a label."""
    at = context.node_config["partition-id"], message.content["about"].get("round")
    if at == (1, 1):
        time.sleep(LATE + 3)
    if at == (1, 2):
        with at_this_site("training"):
            raise RuntimeError("Target SECRET-57 is out of bounds.")
    return call(message, context)


@pytest.fixture
def short(monkeypatch):
    """Temporary files go here, under the umask of most accounts; paths of sockets have to be short."""
    before = os.umask(0o022)
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)
    os.umask(before)


def attacked(folder):
    """What another account would find while the simulation runs: modes, private text, ports and what answers there."""
    import grpc
    import ray

    (top,) = folder.iterdir()
    found = [path for path in top.rglob("*") if path.is_file()]
    assert len(found) > 10, "Ray's logs are there"
    assert stat.S_IMODE(top.stat().st_mode) == 0o700
    assert not [path for path in found if b"SECRET" in path.read_bytes()]
    me = psutil.Process()
    ports = [each for one in (me, *me.children(recursive=True)) for each in one.net_connections("inet")]
    places = {port.laddr.ip for port in ports if port.status == psutil.CONN_LISTEN}
    assert places and places <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    with grpc.insecure_channel(ray.get_runtime_context().gcs_address) as channel:
        call = channel.unary_unary("/ray.rpc.JobInfoGcsService/GetAllJobInfo")
        with pytest.raises(grpc.RpcError) as refused:
            call(b"", metadata=(("authorization", f"Bearer {'0' * 64}"),), timeout=30)
        assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"^ray: expected none in this process"), private_ray():
        pass


def test_a_client_that_hangs_or_raises_is_left_out(alone, short, caplog):
    """The run goes on with those who are there; the ledger counts every round for everyone who was asked.

    Nobody else reads what it writes, or talks to it; afterwards nothing of it is there, and the environment as before.
    """
    task, privacy = tokens("head"), protected("example")
    who, found = everyone(task, "fedlora", privacy, PLAN, LORA, 0), []
    party, environment = who.party(), dict(os.environ)

    def each(record):
        found.append(record)
        if record.index == 3:
            attacked(short)

    app = client_app(who, [placed, failing])
    engine(app, party, open_run(party), each, 2, timeout=LATE, patience=900.0)
    assert not list(short.iterdir()) and dict(os.environ) == environment
    loop = play(task, "fedlora", privacy, PLAN)
    assert len(found) == 4
    assert apart(found[:2], loop[:2]) <= 1e-5
    whole = loop[1].uploads.numbers_up
    assert [3 * record.uploads.numbers_up // whole for record in found] == [0, 3, 2, 2]
    assert book(found[-1]).to_json() == book(loop[-1]).to_json()
    lines = [line for line in caplog.messages if "is left out" in line]
    assert [line.split(" is left out")[0] for line in lines] == ["round 2, client 1", "round 3, client 1"]
    assert f"one within {LATE:g} s" in lines[0]
    place = r"training failed at this site; RuntimeError at test_flower_simulation\.py:\d+, in failing$"
    assert re.search(place, lines[1]) and "SECRET" not in caplog.text


def test_the_folder_of_a_simulation_goes_with_it(short, monkeypatch):
    """Also when it fails; where the usual folder is too long for sockets it is a short one."""

    def fail():
        with private_folder() as folder:
            write_atomically(folder / "in" / "file", "text")
            assert folder.parent == short and stat.S_IMODE(folder.stat().st_mode) == 0o700
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not list(short.iterdir())
    (long := short / ("x" * 40)).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with private_folder() as folder:
        assert folder.parent == Path("/tmp") and stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not folder.exists()


def test_mistakes_are_found_before_anything_is_started():
    with pytest.raises(ValueError, match=r"^trust='central'"):
        simulate(tokens(), "fedlora", private("client"), PLAN)
    with pytest.raises(ValueError, match=r"^workers=0"):
        simulate(tokens(), "fedlora", None, PLAN, workers=0)


SAYING = """
import os, sys
from fedlora_lab.cli import main
before = dict(os.environ)
try:
    main(sys.argv[1:])
finally:
    loaded = sys.modules["flwr.supercore.telemetry"]
    print("telemetry", loaded.FLWR_TELEMETRY_ENABLED, file=sys.stderr)
    print("changed", sorted(name for name, _ in before.items() ^ os.environ.items()), file=sys.stderr)
"""


def test_the_command(alone, tmp_path, short):
    """``fedlora-lab flower`` writes the folder that ``run`` writes, with the same numbers, and nothing elsewhere.

    Telemetry is off, and the environment is as before.

    The method is one whose clients keep a factor, and judge themselves, in processes of their own.
    """
    options = ["--rounds", "2", "--clients", "3", "--epsilon", "8", "--out"]
    words = ["flower", "regression", "--method", "fedsa-lora", *options, str(tmp_path / "flower")]
    told = {key: value for key, value in os.environ.items() if key != "FLWR_TELEMETRY_ENABLED"}
    told["TMPDIR"] = str(short)
    done = subprocess.run(
        [sys.executable, "-c", SAYING, *words], capture_output=True, text=True, timeout=300, env=told, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "round 2: " in done.stdout and "telemetry 0" in done.stderr and "changed []" in done.stderr
    assert not list(short.iterdir())
    assert (tmp_path / "flower" / "report.html").exists()
    with pytest.raises(SystemExit, match="0"):
        main(["run", "regression", "fedsa-lora", *options, str(tmp_path / "run")])
    whole = "layer == 'all' and measure in ['loss', 'epsilon', 'bytes_up']"
    found, loop = (pd.read_csv(tmp_path / name / "frame.csv").query(whole) for name in ("flower", "run"))
    assert set(loop["measure"]) == {"loss", "epsilon", "bytes_up"} and set(loop["round"]) == {0, 1, 2}
    assert found["measure"].tolist() == loop["measure"].tolist()
    assert found["value"].tolist() == pytest.approx(loop["value"].tolist(), rel=1e-5)


def test_a_mistake_of_the_command_is_one_line(tmp_path, capsys):
    command = ["flower", "regression", "--method", "ffa-lora", "--unit", "client", "--epsilon", "8"]
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--out", str(tmp_path / "out")])
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("fedlora-lab: trust='central': expected 'local' or 'secagg'")
