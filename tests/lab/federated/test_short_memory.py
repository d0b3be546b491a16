"""Memory that ends in the middle of a run is the machine's failure, and no example's."""

import pytest
import torch
from torch import nn
from toy_tasks import LORA, PERSONS, book, gap, play, private

import fedlora_lab as fl
from fedlora_lab.federated.local_training import MachineFailure
from fedlora_lab.privacy.ledger import Ledger

PLAN = fl.Plan(rounds=3, local_steps=2, batch=3, lr=0.2)
STRANGE = 12345.0
"""In an example for which no machine has memory enough."""


class Hungry(nn.Module):
    """Finds no memory where gradients are taken, once it is full."""

    full = False

    def __init__(self):
        super().__init__()
        self.map = nn.Linear(4, 3)

    def forward(self, x):
        if torch.is_grad_enabled() and Hungry.full:
            # What PyTorch raises on a CPU.
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        if (x[:, 0] == STRANGE).any():
            torch.empty(2**60, dtype=torch.uint8)
        return self.map(x)


def task(strange=False):
    random = torch.Generator().manual_seed(0)
    parts = [
        (torch.randn(n, 4, generator=random).double(), torch.arange(n) % 3) for n in (5, 8, 3, 6)
    ]
    if strange:
        parts[1][0][2, 0] = STRANGE
    model = Hungry().double()
    test = parts.pop()
    return fl.tasks.classification(model, parts, test=test, targets=["map"], persons=PERSONS)


@pytest.mark.parametrize("seed", [0, None])
def test_a_run_stops_where_memory_ends_and_goes_on_from_its_ledger(seed, tmp_path, monkeypatch):
    """Fault: every drawn example counted as zero, and the budget was spent on noise.

    Without a seed the run is for release.
    """
    terms = task(), "fedlora", private("example"), PLAN
    records = fl.run(*terms, lora=LORA, seed=seed, out=tmp_path)
    assert [next(records).index for _ in range(2)] == [0, 1]
    monkeypatch.setattr(Hungry, "full", True)
    words = r"^an example that passed before the run no longer does \(RuntimeError: .*memory\)"
    with pytest.raises(MachineFailure, match=f"{words}.*; the ledger counts this round$"):
        next(records)
    monkeypatch.setattr(Hungry, "full", False)
    counted = [entry.round for entry in Ledger.load(tmp_path / "ledger.json").releases]
    assert counted == [1, 2]
    _, *later = fl.run(*terms, lora=LORA, seed=seed, out=tmp_path)
    assert [record.index for record in later] == [2, 3]
    spent = [entry.round for entry in book(later[-1]).releases]
    # Under fresh noise round 2 is another release; from a seed it is the same one.
    assert spent == ([1, 2, 3] if seed == 0 else [1, 2, 2, 3])
    if seed == 0:
        assert gap(later[-1], play(*terms)[-1]) == 0 and not later[-1].nonfinite


def test_an_example_that_asks_for_all_memory_counts_as_zero():
    """On a machine that works for others the run hangs on no example's value; here of a person.
    Other units: test_no_example_stops_a_run.
    """
    plan = PLAN.replace(batch=None)
    last = play(task(strange=True), "fedlora", private("person"), plan)[-1]
    assert last.index == 3 and last.nonfinite == plan.local_steps
