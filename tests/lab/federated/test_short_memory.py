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
    """Needs memory, or a file, where gradients are taken."""

    def __init__(self, needs="memory"):
        super().__init__()
        self.needs, self.map = needs, nn.Linear(4, 3)

    def forward(self, x):
        if torch.is_grad_enabled() and self.needs == "memory":
            torch.empty(2 * ROOM, dtype=torch.uint8)
        if torch.is_grad_enabled() and self.needs == "file":
            os.close(os.open(__file__, os.O_RDONLY))
        if (x[:, 0] == STRANGE).any():
            torch.empty(2**60, dtype=torch.uint8)
        return self.map(x)


def task(needs="memory", strange=False):
    random = torch.Generator().manual_seed(0)
    parts = [
        (torch.randn(n, 4, generator=random).double(), torch.arange(n) % 3) for n in (5, 8, 3, 6)
    ]
    if strange:
        parts[1][0][2, 0] = STRANGE
    model = Hungry(needs).double()
    test = parts.pop()
    return fl.tasks.classification(model, parts, test=test, targets=["map"], persons=PERSONS)


def use_up(needs):
    """Takes from this process what such a model needs; what it holds now stays usable."""
    import resource

    kind = resource.RLIMIT_AS if needs == "memory" else resource.RLIMIT_NOFILE
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    left = pages * resource.getpagesize() + ROOM if needs == "memory" else 3
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (left, before[1]))
    return lambda: resource.setrlimit(kind, before)


def interrupted(needs, unit, seed, folder):
    """A run for which the machine fails after round 1, and which goes on when it has recovered."""
    # Without a folder where no file can be opened, so that the model alone meets the limit.
    place = {"out": folder} if needs == "memory" else {}
    terms = task(needs), "fedlora", private(unit), PLAN
    records = []
    restore = bool
    said = []
    try:
        for record in fl.run(*terms, lora=LORA, seed=seed, **place):
            records.append(record)
            if record.index == 1:
                restore = use_up(needs)
    except MachineFailure as error:
        said = [str(error)]
    restore()
    written = []
    if place:
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


CASES = [("memory", "example", 0), ("memory", "example", None), ("file", "example", 0)]
"""What the machine is short of, the unit, and the seed; without one the run is for release."""


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """All cases in a process of their own, where a limit is of no other test."""
    paths = os.pathsep.join(filter(None, sys.path))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = succeeded(PYTHON, __file__, tmp_path_factory.mktemp("runs"), env=environment)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(2), ids=["seed", "release"])
def test_a_run_stops_where_memory_ends_and_goes_on_from_its_ledger(number, seen):
    """Fault: every drawn example counted as zero, and the budget was spent on noise."""
    one = seen[number]
    (line,) = one["said"]
    assert line.startswith("an example that passed before the run no longer does (RuntimeError: ")
    assert "memory" in line and line.endswith("; the ledger counts this round")
    assert one["ledger"] == [1, 2] and one["rounds"] == [0, 1, 2, 3]
    is_release = CASES[number][2] is None
    # Under fresh noise round 2 is another release; from a seed it is the same one.
    assert one["spent"] == ([1, 2, 2, 3] if is_release else [1, 2, 3])
    assert is_release or (not any(one["nonfinite"]) and one["gap"] == 0)


@pytest.mark.slow
def test_a_failure_of_the_machine_stops_a_run_whatever_class_its_error_has(seen):
    """Here an ``OSError``: no file can be opened any more."""
    assert [line.split(" (")[1].split(":")[0] for line in seen[2]["said"]] == ["OSError"]
    assert seen[2]["rounds"] == [0, 1]


@pytest.mark.parametrize("unit", ["example", "person", "client"])
@pytest.mark.parametrize("engine", [play, by_messages], ids=["loop", "messages"])
def test_an_example_that_asks_for_all_memory_counts_as_zero(engine, unit):
    """Alone: on a machine that works for others the run hangs on no example's value."""
    plan = PLAN.replace(batch=None)
    trust = "local" if unit == "client" else None
    last = engine(task("nothing", strange=True), "fedlora", private(unit, trust=trust), plan)[-1]
    assert last.index == 3
    if engine is play:
        assert last.nonfinite == plan.local_steps


if __name__ == "__main__":
    for number, case in enumerate(CASES):
        print(json.dumps(interrupted(*case, Path(sys.argv[1]) / str(number))))
