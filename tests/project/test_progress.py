"""What one sees while a run works: epsilon so far and the time left."""

import re

from tqdm import tqdm

import fedlora_lab as fl
from fedlora_lab.federated.compare import BAR, show_progress
from fedlora_lab.federated.records import Tick


def test_a_bar_counts_steps_and_shows_epsilon(capsys):
    """Finds a bar that jumps by rounds, forgets epsilon, or overshoots where runs share it."""
    task = fl.tasks.regression(clients=2, examples=4, d_in=3, d_out=3, rank=1, test=4)
    plan = fl.Plan(rounds=2, local_steps=3, batch=None)
    privacy = fl.Privacy(delta=1e-3, noise_multiplier=2.0, accountant="rdp")
    shown = []
    with tqdm(total=4, **BAR) as bar:
        for name in ("first", "second"):
            done = bar.n
            for event in show_progress(bar, plan, name, fl.ticks(task, "rolora", privacy, plan)):
                if isinstance(event, Tick):
                    assert done + event.round - 1 < bar.n < done + event.round
                    shown.append(bar.postfix)
        assert bar.n == 4
    assert re.search("round 1 of 2, step 1.*ε 0", shown[0])
    assert re.search("round 2 of 2, step 3.*ε [1-9]", shown[-1])
    assert "second" in capsys.readouterr().err
