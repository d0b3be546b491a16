"""The processes that `make test` forks."""

import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "warm_kernels.py"


def test_a_fork_that_ends_before_it_is_heard_of_gives_its_status(tmp_path, monkeypatch):
    """On a busy machine its process number and its status are read late, both at once: a command
    that had done its work was said to have failed."""
    become = runpy.run_path(str(SCRIPT))["become"]
    monkeypatch.chdir(tmp_path)
    words = [sys.executable, "-S", SCRIPT, "--interpret", "socket", "-c", "raise SystemExit(3)"]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        listener.listen()
        stand_in = subprocess.Popen(words)
        connection, _ = listener.accept()
        select.select([connection], [], [])  # it has asked, and is told nothing yet
        stand_in.send_signal(signal.SIGSTOP)
        fork = os.fork()
        if fork == 0:
            become(connection)
        os.waitpid(fork, 0)
        stand_in.send_signal(signal.SIGCONT)
        connection.close()
        assert stand_in.wait() == 3
