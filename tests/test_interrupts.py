"""Ctrl-C is heard where a library swallows the exception it raised."""

import os
import subprocess
import sys

SWALLOWED = """
import signal, sys
from contextlib import suppress
from fedlora_lab.cli import cells, main

real = cells.write_atomically

def swallowing(path, content):
    if path.name == "rounds.csv" and "\\n" in content:
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    real(path, content)

cells.write_atomically = swallowing
main(sys.argv[1:])
"""
WORDS = ["run", "regression", "rolora", "--clients", "3", "--local-steps", "1", "--lr", "0.01", "--rounds", "6"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def script(text: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", text, *(str(one) for one in arguments)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=600, check=False)


def test_a_swallowed_ctrl_c_stops_at_the_next_round(tmp_path):
    found = script(SWALLOWED, *WORDS, "--delta", "1e-3", "--accountant", "rdp", "--out", tmp_path / "out")
    assert (found.returncode, found.stderr.strip()) == (
        130,
        "fedlora-lab: stopped; the same command goes on from the last finished round",
    )
    assert "round 0" in found.stdout and "round 1" not in found.stdout


HEARD = """
import signal
from contextlib import suppress
from fedlora_lab import interrupts

def lost():
    with suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)

def stopped():
    try:
        interrupts.check()
    except KeyboardInterrupt:
        return True
    return False

seen = [stopped()]
with interrupts.heard():
    seen.append(stopped())
    lost()
    seen.append(stopped())
seen.append(stopped())
lost()
seen.append(stopped())
before = signal.signal(signal.SIGINT, signal.SIG_IGN)
with interrupts.heard():
    lost()
    seen.append(stopped())
    seen.append(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)
print(seen, before is signal.default_int_handler)
"""


def test_heard_inside_only_and_never_where_ctrl_c_is_ignored():
    assert script(HEARD).stdout.split("\n")[0] == "[False, False, True, False, False, False, True] True"


def test_other_threads_hear_nothing():
    text = "import threading; from fedlora_lab.interrupts import heard\ndef act():\n    with heard(): print('in')\n"
    found = script(text + "thread = threading.Thread(target=act); thread.start(); thread.join()")
    assert (found.stdout.strip(), found.stderr) == ("in", "")
