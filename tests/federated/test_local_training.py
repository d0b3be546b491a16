"""The local step: who is drawn, how rates and momentum act, empty batches, bad examples, mixing."""

import math
from dataclasses import replace
from typing import Any

import contract_clauses
import pytest
import torch
from toy_tasks import PLAN, Tokens, examples, play, private, regression, tokens, with_clients

import fedlora_lab as fl
from fedlora_lab.federated import local_training
from fedlora_lab.federated.run import Run
from fedlora_lab.lora import peft, per_example
from fedlora_lab.methods import state
from fedlora_lab.methods.published import FedLoRA
from fedlora_lab.privacy import privatizer
from fedlora_lab.tasks.task import Task, frozen_copy


def draw(batch, t=0, s=0, seed=0, task=None):
    ready, clients = contract_clauses.prepared(task or tokens(), FedLoRA, 1.0, seed, batch=batch)
    return local_training.poisson_batch(ready, t, s, clients.ids)


def test_a_batch_is_poisson():
    """Every example on its own with probability batch / n_k; all where n_k is not larger."""
    task = tokens(sizes=(5, 200, 3))
    drawn = [draw(10, s=s, task=task) for s in range(400)]
    assert all([len(one[0]), len(one[2])] == [5, 3] for one in drawn)
    sizes = torch.tensor([len(one[1]) for one in drawn], dtype=torch.float64)
    assert abs(float(sizes.mean()) - 10) < 5 * math.sqrt(9.5 / 400)
    assert abs(float(sizes.var()) - 9.5) < 5 * 9.5 * math.sqrt(2 / 400)
    counts = torch.cat([one[1] for one in drawn]).bincount(minlength=200)
    assert int(counts.min()) > 2 and int(counts.max()) < 45


def test_draws_belong_to_round_client_and_step():
    task = tokens(sizes=(50, 50, 50))
    one = draw(10, task=task)
    assert all(map(torch.equal, one, draw(10, task=task)))
    others = [draw(10, t=1, task=task), draw(10, s=1, task=task), draw(10, seed=1, task=task)]
    assert not any(torch.equal(one[0], other) for other in (one[1], *(draw[0] for draw in others)))
    ready, _ = contract_clauses.prepared(task, FedLoRA, 1.0, batch=10)
    assert torch.equal(local_training.poisson_batch(ready, 0, 0, (2,))[0], one[2])


def test_only_data_of_those_who_take_part_are_touched():
    """So memory does not grow with clients that stay at home."""
    seen = set()

    class Asked(dict[int, Any]):
        def __getitem__(self, client: int) -> Any:
            seen.add(client)
            return super().__getitem__(client)

    task, plan = tokens(sizes=(4, 7, 3) * 20), PLAN.replace(rounds=5, participation=0.1)
    run = Run.open(task, "fedlora", private("client"), plan)
    run.prepared = replace(run.prepared, data=Asked(enumerate(task.clients)))
    assert list(run.events())
    assert seen == {client for client, last in enumerate(run.state.seen) if last >= 0}
    assert 5 < len(seen) < 60


def test_examples_lie_one_client_after_the_other():
    """In the order that is asked for; once for the same clients; of one alone without a copy."""
    ready, _ = contract_clauses.prepared(tokens(sizes=(5, 2, 3)), FedLoRA, 1.0)
    x, y = ready.examples((2, 0))
    assert torch.equal(y, torch.cat([ready.data[2][1], ready.data[0][1]])) and len(x) == 8
    assert ready.examples((2, 0))[0] is x
    assert ready.examples((1,))[0] is ready.data[1][0]


def test_texts_go_with_others_of_like_length():
    """Each exactly once; never more padding than another order has, or more than asked for."""
    lengths, index = torch.tensor([3, 9, 1, 7, 9, 2, 5] * 9), torch.randperm(63)[:50]
    x = {"attention_mask": (torch.arange(9) < lengths[:, None]).long()}
    cpu, other, images = torch.device("cpu"), torch.device("meta"), torch.zeros(63, 2)

    def padded(parts):
        return sum(len(part) * int(lengths[index[part]].max()) for part in parts)

    for chunk, sizes in ((None, [16, 16, 16, 2]), (20, [20, 20, 10]), (50, [50])):
        parts = per_example.split_batch(x, index, cpu, chunk)
        assert [len(part) for part in parts] == sizes
        assert sorted(torch.cat(list(parts)).tolist()) == list(range(50))
        assert padded(parts) <= min(padded(torch.randperm(50).split(sizes[0])) for _ in range(50))
    for given, most, sizes in (
        ((x, index, other), (), [50]),
        ((x, index, other), (None, 30), [30, 20]),
        ((images, index[:5], cpu), (3,), [3, 2]),
        ((images, index[:0], cpu), (), [0]),
    ):
        parts = per_example.split_batch(*given, *most)
        assert [len(part) for part in parts] == sizes


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
    plan = fl.Plan(lr={"A": 1.0, "B": 2.0}, lr_decay=0.5)
    assert [plan.rate("A", t) for t in range(3)] == [1.0, 0.5, 0.25]
    assert plan.rate("head", 1) == plan.rate("B", 1) == 1.0
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
        found = task.loss(outputs, labels)
        return found * keep if len(labels) == len(keep) else found

    plan = fl.Plan(rounds=1, local_steps=3, batch=None, lr=0.3)
    broken = replace(task, clients=(task.clients[0], (spoilt, y), task.clients[2]))
    found = play(broken, FedLoRA, unit and private(unit), plan)[-1]
    expected = play(replace(task, loss=loss), FedLoRA, unit and private(unit), plan)[-1]
    assert found.nonfinite == 3
    for layer, pair in found.adapter.items():
        torch.testing.assert_close(pair, expected.adapter[layer], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("spoilt", [False, True])
def test_how_rows_lie_in_memory_changes_nothing(spoilt):
    """Sums and counts of rows, of their copies that lie as transposes do, and by hand."""
    random, key = torch.Generator().manual_seed(0), state.ParamKey("B", "x")
    rows = torch.randn(7, 5, 3, generator=random, dtype=torch.float64)
    owner = torch.tensor([2, 0, 2, 2, 0, 0, 2])
    if spoilt:
        rows[4, 1, 1] = math.nan
    found = [privatizer.clip_sum({key: x}, 4.0, owner, 4) for x in (rows, rows.mT.contiguous().mT)]
    norms = rows.flatten(1).norm(dim=1).nan_to_num(math.inf)
    clipped = (rows * (4.0 / norms).clamp(max=1).view(-1, 1, 1)).nan_to_num(0)
    expected = torch.stack([clipped[owner == k].sum(0) for k in range(4)])
    for sums, counts in found:
        torch.testing.assert_close(sums[key], expected, rtol=1e-12, atol=1e-12)
        assert counts == (7, int(((norms > 4) & norms.isfinite()).sum()), int(spoilt))
    assert 0 < found[0][1].scaled < 7, "some rows are within the clip, some are not"


@pytest.mark.slow
def test_small_examples_are_scored_many_at_once():
    """Up to 512 of a few numbers, 128 of large ones; the metrics are the same."""
    task, sizes = fl.tasks.digits(clients=2), []
    adapted = peft.adapt(task.model, task.targets, task.head, fl.Lora())

    def counted(x):
        sizes.append(len(x))
        return x

    (x, y), found = task.test, []
    large = x[:, None].repeat(1, 2, 4, 4)
    shrunk = replace(task, prepare=lambda x: counted(x)[:, 0, :8, :8])
    task = replace(task, prepare=counted)
    thrice = x.repeat(3, 1, 1), y.repeat(3)
    for one, data, chunk in (
        (task, (x, y), None), (task, (x, y), 200), (task, thrice, 1000), (shrunk, (large, y), None)
    ):  # fmt: skip
        found.append(per_example.evaluate(one, adapted, adapted.initial, data, chunk))
        assert found[-1] == pytest.approx(found[0], rel=1e-5)
    assert sizes == [360, *(200, 160), *(512, 512, 56), *(128, 128, 104)]


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


@pytest.mark.parametrize("mix", ["mean", "deviation", "tokens first", "attention"])
@pytest.mark.parametrize("public", [9, 1])
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
