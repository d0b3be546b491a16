"""Memory that ends in the middle of a run, by a real limit, is the machine's and no example's."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from commands import PYTHON, succeeded
from flower_runs import by_messages
from places import ROOT
from torch import nn
from toy_tasks import LORA, PERSONS, book, gap, play, private

import fedlora_lab as fl
from fedlora_lab.federated.local_training import MachineFailure
from fedlora_lab.privacy.ledger import Ledger

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux keeps them")
HERE = ROOT / "tests" / "helpers"
PLAN = fl.Plan(rounds=3, local_steps=2, batch=3, lr=0.2)
ROOM = 2**30
"""Bytes that the limit leaves; a pass with gradients asks for twice as many, and touches none."""
STRANGE = 12345.0
"""In an example for which no machine has memory enough."""


class Hungry(nn.Module):
    """Needs memory where gradients are taken, if it is hungry."""

    def __init__(self, hungry):
        super().__init__()
        self.hungry, self.map = hungry, nn.Linear(4, 3)

    def forward(self, x):
        if torch.is_grad_enabled() and self.hungry:
            torch.empty(2 * ROOM, dtype=torch.uint8)
        if (x[:, 0] == STRANGE).any():
            torch.empty(2**60, dtype=torch.uint8)
        return self.map(x)


def task(hungry=True, strange=False):
    random = torch.Generator().manual_seed(0)
    parts = [
        (torch.randn(n, 4, generator=random).double(), torch.arange(n) % 3) for n in (5, 8, 3, 6)
    ]
    if strange:
        parts[1][0][2, 0] = STRANGE
    model = Hungry(hungry).double()
    test = parts.pop()
    return fl.tasks.classification(model, parts, test=test, targets=["map"], persons=PERSONS)


def interrupted(seed, folder):
    """A run that meets a limit of memory after round 1, and goes on when there is none."""
    import resource

    terms = task(), "fedlora", private("example"), PLAN
    before = resource.getrlimit(resource.RLIMIT_AS)
    records = []
    said = ""
    try:
        for record in fl.run(*terms, lora=LORA, seed=seed, out=folder):
            records.append(record)
            if record.index == 1:
                # What this process holds now stays usable.
                pages = int(Path("/proc/self/statm").read_text().split()[0])
                left = pages * resource.getpagesize() + ROOM
                resource.setrlimit(resource.RLIMIT_AS, (left, before[1]))
    except MachineFailure as error:
        said = str(error)
    resource.setrlimit(resource.RLIMIT_AS, before)
    written = [entry.round for entry in Ledger.load(folder / "ledger.json").releases]
    records += list(fl.run(*terms, lora=LORA, seed=seed, out=folder))[1:]
    return {
        "said": said,
        "ledger": written,
        "spent": [entry.round for entry in book(records[-1]).releases],
        "rounds": [record.index for record in records],
        "nonfinite": [record.nonfinite for record in records],
        "gap": gap(records[-1], play(*terms)[-1]) if seed == 0 else None,
    }


SEEDS = (0, None)
"""Without one the run is for release."""


@pytest.mark.slow
def test_a_run_stops_where_memory_ends_and_goes_on_from_its_ledger(tmp_path):
    """Fault: every drawn example counted as zero, and the budget was spent on noise.

    In a process of its own, where a limit is of no other test.
    """
    paths = os.pathsep.join(filter(None, sys.path))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = succeeded(PYTHON, __file__, tmp_path, env=environment)
    seen = [json.loads(line) for line in done.stdout.splitlines()]
    for one in seen:
        begin = "an example that passed before the run no longer does (RuntimeError: "
        assert one["said"].startswith(begin) and "memory" in one["said"]
        assert one["said"].endswith("; the ledger counts this round")
        assert one["ledger"] == [1, 2] and one["rounds"] == [0, 1, 2, 3]
    # Under fresh noise round 2 is another release; from a seed it is the same one.
    assert [one["spent"] for one in seen] == [[1, 2, 3], [1, 2, 2, 3]]
    assert not any(seen[0]["nonfinite"]) and seen[0]["gap"] == 0


@pytest.mark.parametrize("unit", ["example", "person", "client"])
@pytest.mark.parametrize("engine", [play, by_messages], ids=["loop", "messages"])
def test_an_example_that_asks_for_all_memory_counts_as_zero(engine, unit):
    """Alone: on a machine that works for others the run hangs on no example's value."""
    plan = PLAN.replace(batch=None)
    trust = "local" if unit == "client" else None
    last = engine(task(hungry=False, strange=True), "fedlora", private(unit, trust=trust), plan)[-1]
    assert last.index == 3
    if engine is play:
        assert last.nonfinite == plan.local_steps


if __name__ == "__main__":
    for seed in SEEDS:
        print(json.dumps(interrupted(seed, Path(sys.argv[1]) / str(seed))))
