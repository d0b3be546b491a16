"""What one sees while a command works: a first line, epsilon so far and the time left."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from tqdm import tqdm

import fedlora_lab as fl
from fedlora_lab.federated.compare import BAR, Progress
from fedlora_lab.federated.records import Tick


def on_a_terminal(command: list[str]) -> list[str]:
    """What a command writes on a terminal of 120 columns, as it comes."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    seen = []
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    while process.poll() is None or select.select([ours], [], [], 0)[0]:
        if select.select([ours], [], [], 0.1)[0]:
            try:
                text = os.read(ours, 65536).decode(errors="replace")
            except OSError:  # the other end was closed
                break
            seen.append(text)
    os.close(ours)
    assert process.wait() == 0, "".join(seen)
    return seen


@pytest.mark.slow
def test_a_command_on_a_terminal_shows_what_it_does(tmp_path):
    """Finds an import or a set-up before which nothing is shown, and a round without a sign."""
    script = Path(sys.executable).parent / "fedlora-lab"
    words = [str(script), "compare", "digits", "--methods=rolora,deer", "--seeds=1"]
    words += ["--clients=3", "--rounds=3", "--out", str(tmp_path / "out")]
    seen = on_a_terminal(words)
    text = "".join(seen)
    assert "fedlora-lab compare" in text.split("round 1 of 3")[0]
    assert re.search(r"rolora, seed 0: +\d+%.*\d\d:\d\d<\d\d:\d\d, round 2 of 3.*ε \d", text)


def test_a_bar_counts_steps_and_shows_epsilon(capsys):
    """Finds a bar that jumps by rounds, forgets epsilon, or overshoots where runs share it."""
    task = fl.tasks.regression(clients=2, examples=4, d_in=3, d_out=3, rank=1, test=4)
    plan = fl.Plan(rounds=2, local_steps=3, batch=None)
    privacy = fl.Privacy(delta=1e-3, noise_multiplier=2.0, accountant="rdp")
    with tqdm(total=4, **BAR) as bar:
        for name in ("first", "second"):
            shown, before = Progress(bar, plan, name), bar.n
            for event in fl.ticks(task, "rolora", privacy, plan):
                shown.show(event)
                if isinstance(event, Tick):
                    place = event.round
                    assert before + place - 1 < bar.n < before + place
                    assert f"round {place} of 2, step {event.step}" in bar.postfix
                    assert "ε 0" in bar.postfix if place == 1 else re.search("ε [1-9]", bar.postfix)
                else:
                    assert bar.n == before + event.index
            shown.end()
        assert bar.n == 4
    assert "second" in capsys.readouterr().err
