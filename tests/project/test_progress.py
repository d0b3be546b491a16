"""What one sees while a command works: a first line, epsilon so far and the time left."""

import re
import sys

from commands import call
from tqdm import tqdm

import fedlora_lab as fl
from fedlora_lab.federated.compare import BAR, show_progress
from fedlora_lab.federated.records import Tick


def test_a_command_on_a_terminal_says_that_it_works(capsys, monkeypatch):
    """Before its imports, which take seconds; and nothing in a pipe."""
    for terminal, shown in ((False, ""), (True, "fedlora-lab methods …\n")):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
        assert call("methods") == 0
        assert capsys.readouterr().err == shown


def test_a_bar_counts_steps_and_shows_epsilon(capsys):
    """Finds a bar that jumps by rounds, forgets epsilon, or overshoots where runs share it."""
    task = fl.tasks.regression(clients=2, examples=4, d_in=3, d_out=3, rank=1, test=4)
    plan = fl.Plan(rounds=2, local_steps=3, batch=None)
    privacy = fl.Privacy(delta=1e-3, noise_multiplier=2.0, accountant="rdp")
    with tqdm(total=4, **BAR) as bar:
        for name in ("first", "second"):
            before = bar.n
            events = fl.ticks(task, "rolora", privacy, plan)
            for event in show_progress(bar, plan, name, events):
                if isinstance(event, Tick):
                    place = event.round
                    assert before + place - 1 < bar.n < before + place
                    assert f"round {place} of 2, step {event.step}" in bar.postfix
                    assert "ε 0" in bar.postfix if place == 1 else re.search("ε [1-9]", bar.postfix)
                else:
                    assert bar.n == before + event.index
        assert bar.n == 4
    assert "second" in capsys.readouterr().err
