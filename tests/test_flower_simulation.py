"""Flower's own simulation engine, with Ray: the run of the loop, faults that take time, and the command."""

import os
import subprocess
import sys
import time

import pandas as pd
import pytest
from filelock import FileLock
from flowers import ROUNDS, apart, protected
from small import LORA, book, play, private, tokens

from fedlora_lab.cli import main
from fedlora_lab.flower import client_app, simulate
from fedlora_lab.flower.server import open_run
from fedlora_lab.flower.simulation import engine, everyone

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


class Failing:
    """The honest app, but for client 1: in round 1 it hangs, in round 2 it raises."""

    def __init__(self, app):
        self.app = app

    def __call__(self, message, context):
        at = context.node_config["partition-id"], message.content["about"].get("round")
        if at == (1, 1):
            time.sleep(LATE + 3)
        if at == (1, 2):
            raise RuntimeError("out of memory")
        return self.app(message, context)


def test_a_client_that_hangs_or_raises_is_left_out(alone, caplog):
    """The run goes on with those who are there; the ledger counts every round for everyone who was asked."""
    task, privacy = tokens("head"), protected("example")
    who, found = everyone(task, "fedlora", privacy, PLAN, LORA, 0), []
    party = who.party()
    waiting = {"timeout": LATE, "patience": 900.0}
    engine(Failing(client_app(who)), party, open_run(party), found.append, 2, **waiting)  # type: ignore[arg-type]
    loop = play(task, "fedlora", privacy, PLAN)
    assert len(found) == 4
    assert apart(found[:2], loop[:2]) <= 1e-5
    whole = loop[1].uploads.numbers_up
    assert [3 * record.uploads.numbers_up // whole for record in found] == [0, 3, 2, 2]
    assert book(found[-1]).to_json() == book(loop[-1]).to_json()
    lines = [line for line in caplog.messages if "is left out" in line]
    assert [line.split(" is left out")[0] for line in lines] == ["round 2, client 1", "round 3, client 1"]
    assert f"one within {LATE:g} s" in lines[0]
    assert lines[1].endswith("out of memory")


def test_mistakes_are_found_before_anything_is_started():
    with pytest.raises(ValueError, match=r"^trust='central'"):
        simulate(tokens(), "fedlora", private("client"), PLAN)
    with pytest.raises(ValueError, match=r"^workers=0"):
        simulate(tokens(), "fedlora", None, PLAN, workers=0)


SAYING = """
import sys
from fedlora_lab.cli import main
try:
    main(sys.argv[1:])
finally:
    loaded = sys.modules["flwr.supercore.telemetry"]
    print("telemetry", loaded.FLWR_TELEMETRY_ENABLED, file=sys.stderr)
"""


def test_the_command(alone, tmp_path):
    """``fedlora-lab flower`` writes the folder that ``run`` writes, with the same numbers; telemetry is off.

    The method is one whose clients keep a factor, and judge themselves, in processes of their own.
    """
    options = ["--rounds", "2", "--clients", "3", "--epsilon", "8", "--out"]
    words = ["flower", "regression", "--method", "fedsa-lora", *options, str(tmp_path / "flower")]
    told = {key: value for key, value in os.environ.items() if key != "FLWR_TELEMETRY_ENABLED"}
    done = subprocess.run(
        [sys.executable, "-c", SAYING, *words], capture_output=True, text=True, timeout=300, env=told, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "round 2: " in done.stdout and "telemetry 0" in done.stderr
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
