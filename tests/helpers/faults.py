"""Runs in processes of their own that are killed; called by test_killed_runs.py."""

import json
import os
import signal
import sys
import time
import warnings
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path

from toy_tasks import LORA, private, tokens

import fedlora_lab as fl
from fedlora_lab.federated import store
from fedlora_lab.privacy.ledger import Ledger

KILLED_AT = (1, 4, 9)
"""Rounds that are done when a run is killed."""
PLAN = fl.Plan(rounds=14, local_steps=1, batch=3, lr=0.05)


def played(out):
    """Makes a private run in a folder to its end."""
    for _ in fl.run(
        tokens("head"), "fedlora", private("example"), PLAN, lora=LORA, seed=0, out=out
    ):
        pass


def child(act, ripe=None):
    """Forks and acts there; kills the child once it is ``ripe``, if given; its status.

    Moments are told by what has been done, not by the clock alone: a busy machine then comes as far
    as an idle one. The status is negative for a signal.
    """
    pid = os.fork()
    if not pid:
        status = 1
        signal.alarm(600)  # whatever becomes of the parent
        try:
            act()
            status = 0
        finally:  # nothing of the parent's work goes on in the child
            os._exit(status)
    while ripe is not None and not ripe():
        over, status = os.waitpid(pid, os.WNOHANG)
        if over:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    if ripe is not None:
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def warm_up(act, root):
    """Imports here what some work imports, so that no child spends its time on that.

    The work itself is done in children only: PyTorch takes no gradient in a child of a process that
    took some.
    """
    names = root / "names"
    child(lambda: (act(root / "first"), names.write_text("\n".join(sys.modules))))
    for name in names.read_text().splitlines():
        with suppress(Exception):
            import_module(name)


def reached(state):
    """The newest round that stands in a folder of checkpoints; -1: none."""
    return max(store.rounds_in(state), default=-1) if state.is_dir() else -1


def left(state):
    """What a run left: the rounds done, those in its table, and whether ledger and table fit."""
    done = store.read(state)[0].server.round
    book = state / "ledger.json"
    ledger = Ledger.load(book) if book.exists() else Ledger()
    charged = [entry.round for entry in ledger.releases]
    last = max(store.stored_rows(state), default=-1)
    fits = charged in (list(range(1, done + 1)), list(range(1, done + 2))) and last - done in (0, 1)
    return {"done": done, "rows": last, "fits": fits}


def runs(root):
    """Kills a run in its folder three times, each some rounds further; what it left each time.

    The run is then taken up to its end, and another that nobody kills is made beside it.
    """
    out = root / "killed"
    warm_up(played, root)
    seen = []
    for goal in KILLED_AT:
        code = child(partial(played, out), lambda goal=goal: reached(out) >= goal)
        assert code == -signal.SIGKILL
        seen.append(left(out))
    for path in (out, root / "whole"):
        assert child(partial(played, path)) == 0
    return seen


if __name__ == "__main__":
    warnings.simplefilter("error", UserWarning)
    print(json.dumps(runs(Path(sys.argv[1]))))
