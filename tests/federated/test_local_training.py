"""The local step: who is drawn, empty batches, examples without a finite gradient."""

import math
from dataclasses import replace

import contract_clauses
import pytest
import torch
from toy_tasks import PLAN, play, private, regression, tokens

import fedlora_lab as fl
from fedlora_lab.federated import local_training
from fedlora_lab.methods.published import FedLoRA
from fedlora_lab.privacy import privatizer


def test_a_batch_is_poisson():
    """Every example on its own with probability batch / n_k; all where n_k is not larger."""
    task = tokens(sizes=(5, 200, 3))
    ready, clients = contract_clauses.prepared(task, FedLoRA, 1.0, batch=10)
    drawn = [local_training.poisson_batch(ready, 0, s, clients.ids) for s in range(400)]
    assert all([len(one[0]), len(one[2])] == [5, 3] for one in drawn)
    sizes = torch.tensor([len(one[1]) for one in drawn], dtype=torch.float64)
    assert abs(float(sizes.mean()) - 10) < 5 * math.sqrt(9.5 / 400)
    assert abs(float(sizes.var()) - 9.5) < 5 * 9.5 * math.sqrt(2 / 400)
    counts = torch.cat([one[1] for one in drawn]).bincount(minlength=200)
    assert int(counts.min()) > 2 and int(counts.max()) < 45


def test_draws_belong_to_round_client_and_step():
    task = tokens(sizes=(50, 50, 50))

    def draw(t=0, s=0, seed=0, ids=(0, 1, 2)):
        ready, _ = contract_clauses.prepared(task, FedLoRA, 1.0, seed, batch=10)
        return local_training.poisson_batch(ready, t, s, ids)

    first = draw()
    assert all(map(torch.equal, first, draw()))
    others = [first[1], draw(t=1)[0], draw(s=1)[0], draw(seed=1)[0]]
    assert not any(torch.equal(first[0], other) for other in others)
    assert torch.equal(draw(ids=(2,))[0], first[2])


@pytest.mark.parametrize("clients", [(1,), (0, 1)], ids=["one", "all"])
def test_an_empty_batch_still_adds_noise(clients):
    """The release of a client who draws nothing is noise alone, over the expected batch."""
    seed = -1
    while True:
        seed += 1
        ready, group = contract_clauses.prepared(
            tokens(sizes=(40, 40)), FedLoRA, 2.0, seed, batch=1
        )
        drawn = local_training.poisson_batch(ready, 0, 0, group.ids)
        if not any(len(drawn[k]) for k in clients):
            break
    released = contract_clauses.released(ready, group, 0, 0, local_training.local_step)
    assert group.clipped.rows == sum(len(index) for index in drawn)
    shapes = ready.adapted.shapes
    for k in clients:
        xi = privatizer.gaussian_noise(
            shapes, [2.0 * contract_clauses.CLIP], ready.spec.streams, [(0, k, 0)]
        )
        for key in shapes:
            expected = xi[key][0].double()
            torch.testing.assert_close(released[key][k], expected, rtol=1e-9, atol=1e-9)


def test_the_rate_decays_from_round_to_round():
    _, once, still = play(regression(), "ffa-lora", None, PLAN.replace(lr_decay=1e-300))
    assert torch.equal(once.adapter["map"][1], still.adapter["map"][1])


@pytest.mark.parametrize(
    ("bad", "unit"), [(math.nan, None), (math.inf, "example"), (-math.inf, "client")]
)
def test_a_bad_example_counts_as_zero_and_is_counted(bad, unit):
    """The run is that of a client whose example has no gradient."""
    task = tokens("head")
    x, y = task.clients[1]
    spoilt = x.clone()
    spoilt[0, 0, 0] = bad
    keep = torch.ones(sum(task.sizes), dtype=torch.float64)
    keep[task.sizes[0]] = 0

    def loss(outputs, labels):
        losses = task.loss(outputs, labels)
        return losses * keep if len(labels) == len(keep) else losses

    plan = fl.Plan(rounds=1, local_steps=3, batch=None, lr=0.3)
    broken = replace(task, clients=(task.clients[0], (spoilt, y), task.clients[2]))
    last = play(broken, FedLoRA, unit and private(unit), plan)[-1]
    expected = play(replace(task, loss=loss), FedLoRA, unit and private(unit), plan)[-1]
    assert last.nonfinite == 3
    for layer, pair in last.adapter.items():
        torch.testing.assert_close(pair, expected.adapter[layer], rtol=1e-12, atol=1e-14)
