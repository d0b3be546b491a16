"""The local step: who is drawn, how momentum and learning rates act, what empty batches and bad examples do."""

import math
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import steps
import torch
from small import PLAN, Tokens, examples, play, private, regression, somewhere, tokens
from torch import nn

import fedlora_lab as fl
from fedlora_lab import adapters, engine, mechanism, passes
from fedlora_lab.loop import Federation
from fedlora_lab.methods import DEeR, FedLoRA, LALoRA
from fedlora_lab.separable import check_separable
from fedlora_lab.streams import Streams
from fedlora_lab.tasks import Task
from fedlora_lab.tasks.validate import frozen_copy


def draw(batch, t=0, s=0, seed=0, task=None):
    setting, clients = steps.prepared(task or tokens(), FedLoRA, 1.0, seed, batch=batch)
    return engine.poisson_batch(setting, t, s, clients.ids)


def test_a_batch_is_poisson():
    """Every example comes on its own with probability batch / n_k; all of them where n_k is not larger."""
    task = tokens(sizes=(5, 200, 3))
    counts, seen = torch.zeros(200), []
    for s in range(400):
        drawn = draw(10, s=s, task=task)
        assert drawn[0].tolist() == list(range(5))
        assert drawn[2].tolist() == list(range(3))
        counts[drawn[1]] += 1
        seen.append(len(drawn[1]))
    sizes = torch.tensor(seen, dtype=torch.float64)
    assert abs(float(sizes.mean()) - 10) < 5 * math.sqrt(9.5 / 400)
    assert abs(float(sizes.var()) - 9.5) < 5 * 9.5 * math.sqrt(2 / 400)
    assert float(counts.min()) > 2
    assert float(counts.max()) < 45


class Asked(dict[int, Any]):
    """Examples of clients, and whose were looked up."""

    def __getitem__(self, client: int) -> Any:
        self.seen.add(client)
        return super().__getitem__(client)

    seen: set[int]


def test_only_data_of_those_who_take_part_are_touched():
    """So memory does not grow with clients that stay at home."""
    task = tokens(sizes=(4, 7, 3) * 20)
    plan = PLAN.replace(rounds=5, participation=0.1)
    run = Federation.open(task, "fedlora", private("client"), plan)
    data = Asked(enumerate(task.clients))
    data.seen = set()
    run.setting = replace(run.setting, data=data)
    for _ in run.events():
        pass
    took_part = {client for client, last in enumerate(run.state.seen) if last >= 0}
    assert data.seen == took_part and 5 < len(took_part) < 60


def test_examples_lie_one_client_after_the_other():
    """In the order that is asked for; once for the same clients; of one alone without a copy."""
    setting, _ = steps.prepared(tokens(sizes=(5, 2, 3)), FedLoRA, 1.0)
    x, y = setting.examples((2, 0))
    assert torch.equal(y, torch.cat([setting.data[2][1], setting.data[0][1]])) and len(x) == 8
    assert setting.examples((2, 0))[0] is x
    assert setting.examples((1,))[0] is setting.data[1][0]
    assert setting.offsets.tolist() == [0, 5, 7]


def test_texts_go_with_others_of_like_length():
    """Each exactly once; never more padding than any other order has; whatever is asked for is kept to."""
    lengths = torch.tensor([3, 9, 1, 7, 9, 2, 5] * 9)
    x, index = {"attention_mask": (torch.arange(9) < lengths[:, None]).long()}, torch.randperm(63)[:50]

    def padded(parts):
        return sum(len(part) * int(lengths[index[part]].max()) for part in parts)

    cpu, other = torch.device("cpu"), torch.device("meta")
    for chunk, sizes in ((None, [16, 16, 16, 2]), (20, [20, 20, 10]), (50, [50])):
        parts = passes.portions(x, index, cpu, chunk)
        assert [len(part) for part in parts] == sizes
        assert sorted(torch.cat(list(parts)).tolist()) == list(range(50))
        assert padded(parts) <= min(padded(torch.randperm(50).split(sizes[0])) for _ in range(50))
    assert [len(part) for part in passes.portions(x, index, other)] == [50]
    assert [len(part) for part in passes.portions(x, index, other, None, 30)] == [30, 20]
    images = torch.zeros(63, 2)
    assert [part.tolist() for part in passes.portions(images, index[:5], cpu, 3)] == [[0, 1, 2], [3, 4]]
    assert len(passes.portions(images, index, cpu)) == 1 and passes.portions(images, index[:0], cpu)[0].tolist() == []
    square = {"attention_mask": x["attention_mask"][:, None].expand(-1, 9, -1)}
    assert torch.cat(list(passes.portions(square, index, cpu))).shape == (50,)


def test_draws_belong_to_round_client_and_step():
    task = tokens(sizes=(50, 50, 50))
    one = draw(10, task=task)
    assert all(torch.equal(a, b) for a, b in zip(one, draw(10, task=task)))
    others = [draw(10, t=1, task=task), draw(10, s=1, task=task), draw(10, seed=1, task=task)]
    assert all(not torch.equal(one[0], other[0]) for other in others)
    assert not torch.equal(one[0], one[1])
    setting, _ = steps.prepared(task, FedLoRA, 1.0, batch=10)
    assert torch.equal(engine.poisson_batch(setting, 0, 0, (2,))[0], one[2])


def test_an_empty_batch_still_adds_noise():
    """The release of a client who draws nothing is noise alone, over the expected batch."""
    for seed in range(60):
        setting, clients = steps.prepared(tokens(), FedLoRA, 2.0, seed, batch=1)
        drawn = engine.poisson_batch(setting, 0, 0, clients.ids)
        if not len(drawn[1]):
            break
    else:
        raise AssertionError("no empty batch among 60 seeds")
    released = steps.released(setting, clients, 0, 0, engine.local_step)
    shapes = setting.adapted.shapes
    xi = mechanism.noise(shapes, [2.0 * steps.CLIP], setting.streams, [(0, 1, 0)])
    for slot in shapes:
        torch.testing.assert_close(released[slot][1], xi[slot][0].double(), rtol=1e-9, atol=1e-9)


def test_everyone_empty_is_a_step_as_well():
    task = tokens(sizes=(40, 40))
    for seed in range(300):
        setting, clients = steps.prepared(task, FedLoRA, 1.0, seed, batch=1)
        if not any(len(drawn) for drawn in engine.poisson_batch(setting, 0, 0, clients.ids)):
            break
    before = dict(clients.bank)
    engine.local_step(setting, clients, 0, 0)
    assert clients.clipped.rows == 0
    assert all(not torch.equal(before[slot][0], rows[0]) for slot, rows in clients.bank.items())


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_steps_are_those_of_torch_sgd(momentum):
    """Full batches without privacy, one client: the trajectory of torch.optim.SGD with a rate for each side."""
    task = tokens("head").only(1)
    plan = fl.Plan(batch=None, lr={"A": 0.05, "B": 0.2, "head": 0.1}, momentum=momentum)
    setting, clients = steps.prepared(task, FedLoRA, 0.0, clip=math.inf)
    setting = replace(setting, plan=plan)
    weights = {slot: rows[0].clone().requires_grad_() for slot, rows in clients.bank.items()}
    groups = [{"params": [weight], "lr": plan.rate(slot.side)} for slot, weight in weights.items()]
    optimizer = torch.optim.SGD(groups, momentum=momentum)
    x, y = task.clients[0]
    for s in range(4):
        engine.local_step(setting, clients, 0, s)
    for _ in range(4):
        for slot, weight in weights.items():
            setting.adapted.put(slot, weight)
        optimizer.zero_grad()
        task.loss(task.forward(setting.adapted.model, x), y).mean().backward()
        optimizer.step()
    for slot, weight in weights.items():
        torch.testing.assert_close(clients.bank[slot][0], weight.detach(), rtol=1e-9, atol=1e-12)


def test_the_rate_decays_from_round_to_round():
    plan = fl.Plan(lr={"A": 1.0, "B": 2.0}, lr_decay=0.5)
    assert [plan.rate("A", t) for t in range(3)] == [1.0, 0.5, 0.25]
    assert plan.rate("head", 1) == plan.rate("B", 1) == 1.0
    runs = [play(regression(), "ffa-lora", None, PLAN.replace(rounds=2, lr_decay=decay)) for decay in (1.0, 1e-300)]
    assert torch.equal(runs[0][1].adapter["map"][1], runs[1][1].adapter["map"][1])
    assert torch.equal(runs[1][1].adapter["map"][1], runs[1][2].adapter["map"][1])


@pytest.mark.parametrize("row", [FedLoRA, LALoRA, DEeR], ids=lambda row: row.slug)
@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_the_noise_that_a_client_holds_is_known(row, momentum):
    """Where signal vanishes (C -> 0, sigma C kept) all that moves is noise, and it is what the diagnostics hold."""
    setting, clients = steps.prepared(tokens("head"), row, 1e12, clip=1e-12)
    setting = replace(setting, plan=fl.Plan(batch=2, lr=0.1, momentum=momentum))
    before = dict(clients.bank)
    for s in range(4):
        engine.local_step(setting, clients, 0, s)
    for slot, noise in clients.noise.items():
        change = clients.bank[slot] - before[slot]
        if slot in engine.moving_slots(setting.adapted.given, row.moved(0, 4)):
            torch.testing.assert_close(change, noise.expand_as(change), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("unit", [None, "example", "client"])
def test_a_bad_example_counts_as_zero_and_is_counted(bad, unit):
    """A value that is not finite adds nothing: the run is that of a client whose example has no gradient."""
    task = tokens("head")
    x, y = task.clients[1]
    spoilt, silent = x.clone(), x.clone()
    spoilt[0, 0, 0] = bad
    plan = fl.Plan(rounds=1, local_steps=3, batch=None, lr=0.3)
    broken = replace(task, clients=(task.clients[0], (spoilt, y), task.clients[2]))
    (_, record) = play(broken, FedLoRA, unit and private(unit), plan)
    assert record.nonfinite == 3
    assert all(x.isfinite().all() for pair in record.adapter.values() for x in pair)

    def loss(outputs, labels):  # the same example without any gradient
        return (
            task.loss(outputs, labels) * keep[: len(labels)] if len(labels) == len(keep) else task.loss(outputs, labels)
        )

    keep = torch.ones(sum(task.sizes), dtype=torch.float64)
    keep[task.sizes[0]] = 0
    quiet = replace(task, clients=(task.clients[0], (silent, y), task.clients[2]), loss=loss)
    (_, expected) = play(quiet, FedLoRA, unit and private(unit), plan)
    for layer, (a, b) in record.adapter.items():
        torch.testing.assert_close(a, expected.adapter[layer][0], rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(b, expected.adapter[layer][1], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("size", [1e19, 1e38])
def test_huge_gradients_in_single_precision_stay_within_the_clip(size):
    """The norm is taken in double precision, and a scale that single precision cannot hold becomes zero."""
    slot = adapters.Slot("B", "x")
    rows = {slot: torch.full((1, 4, 2), size)}
    for clip in (1.0, 1e-3, 1e-6):
        total, counts = mechanism.clip_sum(rows, clip, torch.zeros(1, dtype=torch.int64), 1)
        norm = float(total[slot].double().norm())
        assert norm <= clip * (1 + 1e-6)
        assert norm >= 0.99 * clip or norm == 0
        assert counts == (1, 1, 0)


@pytest.mark.parametrize("spoilt", [False, True])
def test_how_rows_lie_in_memory_changes_nothing(spoilt):
    """Sums and counts of rows, of their copies that lie as transposes do, and by hand."""
    random, slot = torch.Generator().manual_seed(0), adapters.Slot("B", "x")
    rows, owner = torch.randn(7, 5, 3, generator=random, dtype=torch.float64), torch.tensor([2, 0, 2, 2, 0, 0, 2])
    if spoilt:
        rows[4, 1, 1] = math.nan
    lying = rows.mT.contiguous().mT
    assert not lying.is_contiguous()
    found = [mechanism.clip_sum({slot: x}, 4.0, owner, 4) for x in (rows, lying)]
    norms = rows.flatten(1).norm(dim=1).nan_to_num(math.inf)
    clipped = (rows * (4.0 / norms).clamp(max=1).view(-1, 1, 1)).nan_to_num(0)
    expected = torch.stack([clipped[owner == k].sum(0) for k in range(4)])
    for sums, counts in found:
        torch.testing.assert_close(sums[slot], expected, rtol=1e-12, atol=1e-12)
        assert counts == (7, int(((norms > 4) & norms.isfinite()).sum()), int(spoilt))
    assert 0 < found[0][1].scaled < 7, "some rows are within the clip, some are not"


def test_small_examples_are_judged_many_at_once():
    """Up to 512 of a few numbers each, 128 of large ones; never more than is asked for; the metrics are the same."""
    task = fl.tasks.digits(clients=2)
    adapted = adapters.adapt(task.model, task.targets, task.head, fl.Lora())

    def judged(data, chunk=None, task=task):
        seen = []

        def kept(index, x):
            seen.append(len(index))
            return nullcontext()

        return passes.evaluate(task, adapted, adapted.given, data, kept, chunk), seen

    whole, sizes = judged(task.test)
    assert sizes == [360]
    again, parts = judged(task.test, 100)
    assert parts == [100, 100, 100, 60] and again == pytest.approx(whole, rel=1e-5)
    thrice = (task.test[0].repeat(3, 1, 1), task.test[1].repeat(3))
    assert judged(thrice)[1] == judged(thrice, 1000)[1] == [512, 512, 56]
    large = (task.test[0][:, None].repeat(1, 2, 4, 4), task.test[1])
    cut, parts = judged(large, task=replace(task, prepare=lambda x: x[:, 0, :8, :8]))
    assert parts == [128, 128, 104] and cut == pytest.approx(whole, rel=1e-5)


def test_chunks_of_any_size_add_up():
    setting, clients = steps.prepared(tokens("head"), FedLoRA, 0.0)
    whole = steps.released(setting, clients, 0, 0, engine.local_step)
    for chunk in (1, 2, 5, 100):
        setting, clients = steps.prepared(tokens("head"), FedLoRA, 0.0)
        parts = steps.released(replace(setting, chunk=chunk), clients, 0, 0, engine.local_step)
        assert clients.clipped.rows == 16
        assert all(torch.allclose(parts[slot], whole[slot], rtol=1e-12, atol=1e-12) for slot in whole)


class MinusMean(Tokens):
    """Subtracts the mean over the batch."""

    def forward(self, x):
        hidden = self.inner(x)
        return self.head(self.outer(hidden - hidden.mean(0)).mean(1))


class Standardised(Tokens):
    """Divides by the batch's standard deviation, which a batch of one does not have."""

    def forward(self, x):
        hidden = self.inner(x)
        return self.head(self.outer((hidden - hidden.mean(0)) / hidden.std(0)).mean(1))


class TokensFirst(Tokens):
    """Keeps examples apart, but its linear maps see the tokens in the first dimension."""

    def forward(self, x):
        return super().forward(x.flip(1)) + self.head(self.outer(self.inner(x.transpose(0, 1))).mean(0))


class Attends(Tokens):
    """Examples attend to each other."""

    def forward(self, x):
        hidden = self.inner(x).mean(1)
        return self.head(self.outer(torch.softmax(hidden @ hidden.T, 1) @ hidden))


MIXING = [MinusMean, Standardised, TokensFirst, Attends]


@pytest.mark.parametrize("kind", MIXING)
@pytest.mark.parametrize("public", [9, 1])
@pytest.mark.filterwarnings("ignore:std")
def test_models_that_mix_examples_are_refused(kind, public):
    """By the gradients themselves, also when there is one public example only."""
    torch.manual_seed(0)
    model = frozen_copy(kind().double())
    task = Task("mixing", model, ("inner", "outer"), (examples(5, 1), examples(4, 2)), examples(public, 3))
    apart = r"^model='\w+': expected examples that do not mix, batch first \(they differ by"
    with pytest.raises(ValueError, match="expected a multiple of the 4 examples" if kind is TokensFirst else apart):
        fl.run(task, "fedlora", None, PLAN)


@pytest.mark.parametrize("tokens_in_a_row", [3, 5])
def test_a_layout_that_cannot_be_told_apart_is_refused(tokens_in_a_row):
    """Tokens first, and no multiple of the examples."""
    x, y = torch.randn(6, tokens_in_a_row, 5, dtype=torch.float64), torch.zeros(6, dtype=torch.int64)
    task = Task("mixing", frozen_copy(TokensFirst().double()), ("inner",), ((x, y),), (x, y))
    with pytest.raises(ValueError, match="expected a multiple of the 4 examples"):
        fl.run(task, "fedlora", None, PLAN)


@pytest.mark.parametrize("kind", [MinusMean, Attends])
def test_mixing_is_refused_when_the_task_is_made(kind):
    with pytest.raises(ValueError, match="keeps examples apart"):
        fl.tasks.classification(kind().double(), [examples(5, 1)], test=examples(5, 2), targets=["inner"])


def test_batch_norm_and_convolutions_are_refused_with_the_reason():
    norm = nn.Sequential(nn.Flatten(), nn.Linear(15, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    pair = examples(6, 1)
    with pytest.raises(ValueError, match="BatchNorm in training mode mixes examples"):
        fl.tasks.classification(norm, [pair], test=pair, targets=["1"])
    task = fl.tasks.classification(norm.eval(), [pair], test=pair, targets=["1"])
    assert len(play(task, "fedlora", None, PLAN)) == 3
    conv = nn.Sequential(nn.Conv1d(3, 4, 1), nn.Flatten(), nn.Linear(20, 3)).double()
    with pytest.raises(ValueError, match=r"targets='0: Conv1d': expected nn.Linear or Transformers' Conv1D"):
        fl.tasks.classification(conv, [pair], test=pair, targets=["0"])


def test_a_sound_model_is_asked_once():
    task = tokens("head", sizes=(4, 4))
    adapted = adapters.adapt(task.model, task.targets, task.head, fl.Lora(rank=2))
    check_separable(task, adapted)
    with torch.random.fork_rng(devices=[]):
        check_separable(task, adapted)
    assert adapters.start(adapted, Streams(0)).keys() == somewhere(adapted.shapes).keys()
