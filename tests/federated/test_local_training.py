"""The local step: who is drawn, how rates and momentum act, empty batches, bad examples, mixing."""

import math
from dataclasses import replace

import contract_clauses
import pytest
import torch
from toy_tasks import PLAN, Tokens, examples, play, private, regression, tokens, with_clients

import fedlora_lab as fl
from fedlora_lab.federated import local_training
from fedlora_lab.methods.published import FedLoRA
from fedlora_lab.privacy import privatizer
from fedlora_lab.tasks.task import Task, frozen_copy


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


def test_steps_are_those_of_torch_sgd():
    """Full batches, no privacy, one client: the walk of torch.optim.SGD, a rate for each side."""
    task = with_clients(tokens("head"), [tokens("head").clients[1]])
    plan = fl.Plan(batch=None, lr={"A": 0.05, "B": 0.2, "head": 0.1}, optimizer=fl.SGD(0.8))
    ready, clients = contract_clauses.prepared(task, FedLoRA, 0.0, clip=math.inf)
    ready = replace(ready, spec=replace(ready.spec, plan=plan))
    weights = {key: rows[0].clone().requires_grad_() for key, rows in clients.params.items()}
    groups = [{"params": [weight], "lr": plan.rate(key.side)} for key, weight in weights.items()]
    optimizer = torch.optim.SGD(groups, momentum=0.8)
    x, y = task.clients[0]
    for s in range(4):
        local_training.local_step(ready, clients, 0, s)
    for _ in range(4):
        for key, weight in weights.items():
            ready.adapted.set_tensor(key, weight)
        optimizer.zero_grad()
        task.loss(task.forward(ready.adapted.model, x), y).mean().backward()
        optimizer.step()
    for key, weight in weights.items():
        torch.testing.assert_close(clients.params[key][0], weight.detach(), rtol=1e-9, atol=1e-12)


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


class Mixes(Tokens):
    """The small model with a map of the hidden numbers in which examples may meet."""

    def __init__(self, mix):
        super().__init__()
        self.mix = mix

    def forward(self, x):
        hidden = self.inner(x)
        if self.mix == "tokens first":  # keeps examples apart, but a linear map sees tokens first
            turned = self.head(self.outer(self.inner(x.transpose(0, 1))).mean(0))
            return super().forward(x.flip(1)) + turned
        if self.mix == "attention":
            hidden = hidden.mean(1)
            return self.head(self.outer(torch.softmax(hidden @ hidden.T, 1) @ hidden))
        centred = hidden - hidden.mean(0)  # a batch of one has no standard deviation
        centred = centred if self.mix == "mean" else centred / hidden.std(0)
        return self.head(self.outer(centred).mean(1))


@pytest.mark.parametrize(
    ("mix", "public"), [("mean", 9), ("deviation", 1), ("tokens first", 9), ("attention", 1)]
)
@pytest.mark.filterwarnings("ignore:std")
def test_models_that_mix_examples_are_refused(mix, public):
    """By the gradients themselves, also when there is one public example only."""
    torch.manual_seed(0)
    model, clients = frozen_copy(Mixes(mix).double()), (examples(5, 1), examples(4, 2))
    task = Task("mixing", model, ("inner", "outer"), clients, examples(public, 3))
    words = r"^model='\w+': expected examples that do not mix, batch first \(they differ by"
    words = "expected a multiple of the 4 examples" if mix == "tokens first" else words
    with pytest.raises(ValueError, match=words):
        fl.run(task, "fedlora", None, PLAN)
