"""Tasks: what they hold, what they promise, what they refuse."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fedlora_lab as fl
from fedlora_lab.streams import Streams
from fedlora_lab.tasks import Task, classification, digits, regression
from fedlora_lab.tasks.regression import teachers
from fedlora_lab.tasks.task import REGRESSION, cross_entropy, squared_error
from fedlora_lab.tasks.validate import matched
from fedlora_lab.tasks.vit import TinyViT


def numbers(*shape: int, purpose: str = "test data") -> Tensor:
    return Streams(0).normal(shape, purpose, *shape)


def pair(count: int, classes: int = 3, purpose: str = "test data") -> tuple[Tensor, Tensor]:
    return numbers(count, 4, purpose=purpose), torch.arange(count) % classes


def net() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 3))


def small(**changes) -> Task:
    arguments = {"clients": [pair(5), pair(7)], "test": pair(6), "targets": ["0", "2"]}
    return classification(changes.pop("model", None) or net(), **(arguments | changes))


def mean_scores(task: Task) -> dict[str, float]:
    with torch.no_grad():
        x, y = task.test
        outputs = task.forward(task.model, x)
        return {name: float(score(outputs, y).mean()) for name, score in task.metrics.items()}


# digits


def test_digits_sizes_and_determinism() -> None:
    task, again = digits(clients=10, alpha=0.5, seed=0), digits(clients=10, alpha=0.5, seed=0)
    assert (len(task.clients), sum(task.sizes), len(task.test[1])) == (10, 1257, 360)
    assert task.validation is not None
    assert len(task.validation[1]) == 180
    assert min(task.sizes) >= 8
    assert task.fingerprint == again.fingerprint
    assert task.targets == ("query", "value")
    assert len(matched(task.model, task.targets)) == 8
    assert task.labels == tuple("0123456789")
    for x, y in (*task.clients, task.test, task.validation):
        assert x.shape == (len(y), 8, 8)
        assert x.dtype == torch.float32
        assert y.dtype == torch.int64
        assert 0 <= float(x.min()) <= float(x.max()) == 1


def test_digits_uses_every_scan_once() -> None:
    from sklearn.datasets import load_digits

    task = digits(seed=4)
    assert task.validation is not None
    parts = [*task.clients, task.test, task.validation]
    rows = torch.cat([torch.cat([x.flatten(1) * 16, y[:, None]], 1) for x, y in parts])
    data: Any = load_digits()
    truth = np.concatenate([data.data, data.target[:, None]], 1)
    assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, truth.tolist()))


def test_digits_streams_differ() -> None:
    def rows(x: Tensor) -> set[bytes]:
        return {row.numpy().tobytes() for row in x}

    base, other = digits(seed=0), digits(seed=1)
    assert base.fingerprint != other.fingerprint
    assert len(rows(base.test[0]) & rows(other.test[0])) < 120
    # The split over clients has a stream of its own: it changes nothing about who is in the test set.
    for same in (digits(seed=0, alpha=None), digits(seed=0, clients=3), digits(seed=0, alpha=5.0)):
        assert torch.equal(same.test[0], base.test[0])
        assert same.fingerprint != base.fingerprint
    assert Streams(0).numpy("digits split").random() != Streams(0).numpy("partition dirichlet").random()


def test_digits_alpha_is_felt_and_may_be_absent() -> None:
    def skew(task: Task) -> float:
        return float(np.mean([float(torch.bincount(y).max()) / len(y) for _, y in task.clients]))

    assert skew(digits(alpha=0.1)) > skew(digits(alpha=1.0)) > skew(digits(alpha=None))
    assert digits(alpha=float("inf")).fingerprint == digits(alpha=None).fingerprint
    assert set(digits(alpha=None).sizes) == {125, 126}
    assert min(digits(clients=100, alpha=0.01, min_size=12).sizes) == 12


def test_digits_before_tuning_is_the_public_model() -> None:
    scores = mean_scores(digits())
    assert 0.5 < scores["accuracy"] < 0.75
    assert 0.5 < scores["loss"] < 2.3


def test_info_rebuilds_the_task() -> None:
    built = (
        digits(clients=4, alpha=float("inf"), seed=3, head="head", targets=("key", "up")),
        digits(clients=6, alpha=0.2, seed=2, min_size=20),
        regression(clients=3, seed=2, dtype=torch.float64, heterogeneity=0.25),
    )
    for task in built:
        info = json.loads(json.dumps(dict(task.info), allow_nan=False))
        again = getattr(fl.tasks, info["task"])(**info["arguments"])
        assert again.fingerprint == task.fingerprint
        assert (again.targets, again.head) == (task.targets, task.head)
        assert dict(again.info) == dict(task.info)


def test_vision_transformer_keeps_examples_apart() -> None:
    task = digits()
    x = task.test[0][:6]
    together = task.forward(task.model, x)
    alone = torch.cat([task.forward(task.model, x[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert task.forward(task.model, x[:0]).shape == (0, 10)
    first: Any = torch.autograd.functional.jacobian(task.model, x[:2])
    assert float(first[0, :, 1].abs().max()) == 0
    assert float(first[0, :, 0].abs().max()) > 0


def test_patches_are_neighbouring_pixels() -> None:
    model, seen = TinyViT(), []
    model.patch.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    image = torch.zeros(1, 8, 8)
    image[0, 2:4, 6:8] = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    model(image)
    assert seen[0][0, 7].tolist() == [1, 2, 3, 4]
    assert float(seen[0].sum()) == 10


# regression


@pytest.mark.parametrize("heterogeneity", [0.0, 0.4, 1.0])
def test_regression_loss_is_the_closed_form(heterogeneity: float) -> None:
    task = regression(
        clients=4, heterogeneity=heterogeneity, noise=0.0, whitened=True, dtype="float64", d_in=12, d_out=5, rank=2
    )
    base, factors = teachers(**task.info["arguments"])
    assert np.array_equal(task.model.get_parameter("map.weight").numpy(), base)
    trial = numbers(5, 12).double()
    for k, (x, y) in enumerate(task.clients):
        torch.testing.assert_close(x.T @ x / len(x), torch.eye(12, dtype=torch.float64))
        b, a = factors[k]
        assert (b.shape, a.shape) == ((5, 2), (2, 12))
        wanted = ((trial.numpy() - base - b @ a) ** 2).sum() / 5
        assert float(task.loss(x @ trial.T, y).mean()) == pytest.approx(wanted, rel=1e-12)
    wanted = float(np.mean([((b @ a) ** 2).sum() / 5 for b, a in factors]))
    assert mean_scores(task)["loss"] == pytest.approx(wanted, rel=1e-12)


def test_heterogeneity_moves_the_teachers() -> None:
    def spread(h: float) -> float:
        products = np.stack([b @ a for b, a in teachers(clients=30, heterogeneity=h)[1]])
        return float(((products - products.mean(0)) ** 2).sum() / (products**2).sum())

    assert spread(0.0) == pytest.approx(0, abs=1e-25)
    assert 0.1 < spread(0.3) < spread(0.7) < spread(1.0)
    assert spread(1.0) > 0.9
    for h in (0.0, 0.5, 1.0):  # the knob moves the teachers apart and leaves their size alone
        sizes = [np.mean([((b @ a) ** 2).sum() for b, a in teachers(heterogeneity=h, seed=s)[1]]) for s in range(40)]
        assert np.mean(sizes) == pytest.approx(16, rel=0.15)


def test_regression_noise_and_shapes() -> None:
    task = regression(clients=3, examples=400, heterogeneity=1.0, noise=0.5, seed=7, test=100)
    assert task.sizes == (400,) * 3
    assert len(task.test[1]) == 300
    assert task.clients[0][0].shape == (400, 32)
    assert task.clients[0][1].shape == (400, 16)
    base, factors = teachers(**task.info["arguments"])
    x, y = task.clients[2]
    left = y.numpy() - x.numpy() @ (base + factors[2][0] @ factors[2][1]).T
    assert left.std() == pytest.approx(0.5, rel=0.03)
    scores = squared_error(task.forward(task.model, x), y)
    assert scores.shape == (400,)
    assert set(task.metrics) == set(REGRESSION) == {"loss"}
    assert regression(seed=1).fingerprint != regression(seed=0).fingerprint == regression(seed=0).fingerprint
    inputs = [x for x, _ in regression(clients=2).clients]
    assert not torch.equal(inputs[0], inputs[1])


# any module and tensors


def test_classification_leaves_the_model_alone() -> None:
    model = net().train()
    model[0].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    asked = [p.requires_grad for p in model.parameters()]
    task = small(model=model)
    assert model.training
    assert [p.requires_grad for p in model.parameters()] == asked == [False] + [True] * 5
    assert not task.model.training
    assert not any(p.requires_grad for p in task.model.parameters())
    with torch.no_grad():
        model[4].get_parameter("weight").add_(1.0)
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items())


def test_scores_are_per_example() -> None:
    task = small()
    x, y = task.test
    outputs = task.forward(task.model, x)
    assert torch.equal(cross_entropy(outputs, y), F.cross_entropy(outputs, y, reduction="none"))
    assert task.loss(outputs, y).shape == (6,)
    accuracy = task.metrics["accuracy"](outputs, y)
    assert set(accuracy.tolist()) <= {0.0, 1.0}
    assert torch.equal(accuracy, (outputs.argmax(1) == y).float())
    assert torch.equal(task.metrics["loss"](outputs, y), task.loss(outputs, y))


class Described(nn.Module):
    """Takes keywords, answers with an object that has logits, as the models of Transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.dense, self.head = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> "Answer":
        weight = attention_mask[..., None].to(self.dense.weight.dtype)
        return Answer(self.head((torch.tanh(self.dense(self.table(input_ids))) * weight).sum(1)))


@dataclasses.dataclass
class Answer:
    logits: Tensor


def words(count: int) -> tuple[dict[str, Tensor], Tensor]:
    ids = torch.arange(count * 5).reshape(count, 5) % 9
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}, torch.arange(count) % 3


def test_mapping_inputs() -> None:
    task = classification(Described(), [words(4), words(6)], test=words(5), targets=["dense"], head="head")
    x, y = task.clients[1]
    outputs = task.forward(task.model, x)
    assert outputs.shape == (6, 3)
    assert task.sizes == (4, 6)
    assert task.pooled().sizes == (10,)
    assert torch.equal(task.pooled().clients[0][0]["input_ids"][4:], x["input_ids"])
    double = task.to(torch.float64)
    assert double.clients[0][0]["input_ids"].dtype == torch.int64
    wide = double.forward(double.model, x)
    assert wide.dtype == torch.float64
    torch.testing.assert_close(wide.float(), outputs)
    assert task.loss(wide, y).dtype == torch.float64


def test_transformers_models_fit() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_layer=1, n_head=2, n_embd=8, vocab_size=9, n_positions=8, num_labels=3, pad_token_id=0
    )
    model = transformers.GPT2ForSequenceClassification(config)
    task = classification(model, [words(4)], test=words(5), targets=["c_attn"], head="score")
    assert task.forward(task.model, task.test[0]).shape == (5, 3)
    assert [type(m).__name__ for m in matched(task.model, task.targets).values()] == ["Conv1D"]


def test_pool_and_partition() -> None:
    x, y = pool = pair(60)
    given = small(clients=None, pool=pool, partition=[[0, 2], torch.tensor([5, 1, 7])])
    assert given.sizes == (2, 3)
    assert torch.equal(given.clients[1][0], x[[5, 1, 7]])
    assert torch.equal(given.clients[1][1], y[[5, 1, 7]])
    dealt = small(clients=4, pool=pool, alpha=0.5, seed=3, min_size=2)
    split = fl.partition.dirichlet(y, 4, 0.5, seed=3, min_size=2)
    assert all(torch.equal(c[0], x[part]) for c, part in zip(dealt.clients, split, strict=True))
    assert small(clients=None, pool=pool, partition=split).fingerprint == dealt.fingerprint
    assert small(clients=4, pool=pool).sizes == (15,) * 4
    assert small(clients=4, pool=pool, seed=1).fingerprint != small(clients=4, pool=pool).fingerprint
    mapped = classification(Described(), 2, words(5), ["dense"], pool=words(8))
    assert mapped.sizes == (4, 4)


def test_batch_norm_in_evaluation_mode_is_welcome() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).eval()
    task = small(model=model)
    x, _ = task.test
    assert torch.allclose(task.forward(task.model, x)[:1], task.forward(task.model, x[:1]), atol=1e-6)


def test_fused_transformer_layers_do_not_bypass_adapters() -> None:
    peft = pytest.importorskip("peft")
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    stack = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
    model = nn.Sequential(stack, nn.Flatten(), nn.Linear(8, 3))
    data = [(numbers(5, 2, 4), torch.arange(5) % 3)]
    task = classification(model, data, test=data[0], targets=["linear1"])
    with torch.no_grad():
        before = task.forward(task.model, data[0][0])
        torch.testing.assert_close(before, model.eval()(data[0][0]))
        adapted = peft.get_peft_model(task.model, peft.LoraConfig(target_modules=["linear1"], init_lora_weights=False))
        assert not torch.allclose(adapted.eval()(data[0][0]), before, atol=1e-4)


def test_fingerprint_sees_data_and_weights() -> None:
    base = small().fingerprint
    assert small().fingerprint == base
    assert len(base) == 64
    x, y = pair(5)
    nudged, swapped = x.clone(), y.clone()
    nudged[2, 1] = torch.nextafter(nudged[2, 1], torch.tensor(9.0))
    swapped[0] = 1
    model = net()
    with torch.no_grad():
        model[2].get_parameter("bias")[3] += 1e-6
    others = {
        small(clients=[(nudged, y), pair(7)]).fingerprint,
        small(clients=[(x, swapped), pair(7)]).fingerprint,
        small(clients=[pair(7), pair(5)]).fingerprint,
        small(test=pair(5)).fingerprint,
        small(validation=pair(5)).fingerprint,
        small(model=model).fingerprint,
        small().to(torch.float64).fingerprint,
    }
    assert len(others | {base}) == 8


def test_pooled_and_only() -> None:
    task = small(client_names=["left", "right"], validation=pair(4))
    together, alone = task.pooled(), task.only(1)
    assert together.sizes == (12,)
    assert torch.equal(together.clients[0][0], torch.cat([x for x, _ in task.clients]))
    assert torch.equal(together.clients[0][1], torch.cat([y for _, y in task.clients]))
    assert alone.sizes == (7,)
    assert alone.client_names == ("right",)
    assert torch.equal(alone.clients[0][0], task.clients[1][0])
    for other in (together, alone):
        assert other.model is task.model
        assert other.test is task.test
        assert other.validation is task.validation


def test_other_precision_is_a_copy() -> None:
    task = small(head="4", validation=pair(4))
    double = task.to(torch.float64)
    assert {p.dtype for p in double.model.parameters()} == {torch.float64}
    assert {p.dtype for p in task.model.parameters()} == {torch.float32}
    assert double.clients[0][0].dtype == double.test[0].dtype == torch.float64
    assert double.clients[0][1].dtype == torch.int64
    assert double.head == "4"
    torch.testing.assert_close(mean_scores(double)["loss"], mean_scores(task)["loss"], atol=1e-6, rtol=0)
    plain = regression(clients=2).to(torch.float64)
    assert plain.clients[0][1].dtype == torch.float64


def test_a_task_is_frozen_and_says_what_it_is() -> None:
    task = small()
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.name = "other"  # type: ignore[misc]
    assert task.client_names == ("0", "1")
    assert repr(task).startswith("Task('classification': clients 2 of 5 to 7 examples, test 6, frozen parameters 139")
    assert hash(task) != hash(small())


def test_small_integers_become_labels() -> None:
    x, y = pair(5)
    assert small(clients=[(x, y.to(torch.uint8))]).clients[0][1].dtype == torch.int64


class Mixer(nn.Module):
    """Subtracts the mean over the batch: examples meet."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x - x.mean(0))


class Attentive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.out = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.mix(x[:, None], x[:, None], x[:, None])[0][:, 0])


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    return model


def head_with_norm() -> nn.Module:
    return nn.ModuleDict({"base": nn.Linear(4, 4), "head": nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3))})


X, Y = pair(5)
BATCH_NORM = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
NO_MEMORY = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, 3)).eval()
CONV = nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 2), nn.Flatten())
BAD = {
    "model": (lambda: small(model=len), "model='builtin_function_or_method': expected a torch.nn.Module"),
    "batch norm": (
        lambda: small(model=BATCH_NORM),
        r"model.1='BatchNorm1d': expected evaluation mode: BatchNorm in "
        r"training mode mixes examples; call model.eval\(\) first",
    ),
    "batch norm without memory": (lambda: small(model=NO_MEMORY), "model.1='BatchNorm1d': expected running statistics"),
    "mixing": (
        lambda: small(model=Mixer(), targets=["dense"]),
        "model='Mixer': expected one that keeps examples apart",
    ),
    "no clients": (lambda: small(clients=[]), r"clients=\[\]: expected at least one pair"),
    "clients missing": (lambda: small(clients=None), "clients=None: expected at least one pair"),
    "a number without a pool": (lambda: small(clients=3), "clients=3: expected at least one pair"),
    "clients as tensor": (lambda: small(clients=X), "clients='Tensor': expected at least one pair"),
    "client empty": (
        lambda: small(clients=[(X[:0], Y[:0])]),
        r"clients\[0\]='0 examples': expected at least one example",
    ),
    "not a pair": (lambda: small(clients=[X]), r"clients\[0\]='Tensor': expected a pair \(x, y\)"),
    "lengths": (lambda: small(clients=[(X, Y[:4])]), r"clients\[0\] x='5 rows': expected 4 rows, as many as y"),
    "mapping lengths": (
        lambda: small(model=Described(), clients=[({"a": X, "b": X[:4]}, Y)], targets=["dense"]),
        r"clients\[0\] x\['b'\]='4 rows': expected 5 rows",
    ),
    "empty mapping": (lambda: small(clients=[({}, Y)]), r"clients\[0\] x=\{\}: expected a tensor or a mapping"),
    "array": (lambda: small(clients=[(X.numpy(), Y)]), r"clients\[0\] x='ndarray': expected a torch.Tensor"),
    "labels as list": (lambda: small(clients=[(X, Y.tolist())]), r"clients\[0\] y='list': expected a torch.Tensor"),
    "one number": (lambda: small(clients=[(X, torch.tensor(1))]), r"clients\[0\] y='a single number'"),
    "shapes differ": (
        lambda: small(clients=[pair(5), (numbers(5, 3), Y)]),
        r"clients\[1\]=.*expected what clients\[0\]",
    ),
    "types differ": (
        lambda: small(clients=[pair(5), (X.double(), Y)]),
        r"clients\[1\]=.*expected what clients\[0\] has",
    ),
    "keys differ": (
        lambda: classification(Described(), [words(3)], ({"input_ids": words(3)[0]["input_ids"]}, Y[:3]), ["dense"]),
        r"test=.*expected what clients\[0\] has",
    ),
    "test missing": (lambda: small(test=None), r"test='NoneType': expected a pair"),
    "test empty": (lambda: small(test=(X[:0], Y[:0])), "test='0 examples': expected at least one example"),
    "validation empty": (lambda: small(validation=(X[:0], Y[:0])), "validation='0 examples'"),
    "label too large": (lambda: small(clients=[(X, Y + 1)]), r"clients\[0\] y=3: expected labels in \[0, 2\]"),
    "label too large in test": (lambda: small(test=(X, Y + 1)), r"test y=3: expected labels in \[0, 2\]"),
    "label too large in validation": (lambda: small(validation=(X, Y + 1)), "validation y=3: expected labels in"),
    "label negative": (lambda: small(clients=[(X, Y - 1)]), r"clients\[0\] y=-1: expected labels >= 0"),
    "labels not whole": (
        lambda: small(clients=[(X, Y.float())], test=(X, Y.float())),
        r"y='torch.float32 \(5,\)': expected one whole number per example",
    ),
    "labels two-dimensional": (
        lambda: small(clients=[(X, F.one_hot(Y))], test=(X, F.one_hot(Y))),
        r"y='torch.int64 \(5, 3\)': expected one whole number",
    ),
    "names of labels": (lambda: small(labels=["a", "b"]), r"labels=\('a', 'b'\): expected 3 names"),
    "names of clients": (lambda: small(client_names=["a"]), r"client_names=\('a',\): expected 2 names"),
    "no target": (lambda: small(targets=[]), r"targets=\[\]: expected one or more module names"),
    "target as word": (lambda: small(targets="0"), "targets='0': expected one or more module names"),
    "target unknown": (lambda: small(targets=["0", "query"]), "targets='query': expected the end of a module's name"),
    "target part of a word": (lambda: small(model=Mixer(), targets=["ense"]), "targets='ense': expected the end"),
    "target activation": (lambda: small(targets=["1"]), "targets='1: GELU': expected nn.Linear"),
    "target convolution": (lambda: small(model=CONV, targets=["1"]), "targets='1: Conv2d': expected nn.Linear"),
    "target embedding": (
        lambda: classification(Described(), [words(4)], words(4), ["table"]),
        "targets='table: Embedding': expected nn.Linear",
    ),
    "target attention": (lambda: small(model=Attentive(), targets=["mix"]), "targets='mix: MultiheadAttention'"),
    "target in attention": (
        lambda: small(model=Attentive(), targets=["out_proj"]),
        "targets='mix.out_proj': expected a linear map outside nn.MultiheadAttention",
    ),
    "target in head": (lambda: small(head="2"), "targets='2': expected a module outside the head '2'"),
    "head unknown": (lambda: small(head="classifier"), "head='classifier': expected the full name of a module"),
    "head empty": (lambda: small(head=""), "head='': expected the full name of a module"),
    "head without weights": (lambda: small(head="3"), "head='3': expected a module with nn.Linear inside"),
    "head with a norm": (
        lambda: small(model=head_with_norm(), targets=["base"], head="head"),
        "head='head': expected a module whose parameters all belong to nn.Linear",
    ),
    "head tied": (
        lambda: small(model=tied(), targets=["0"], head="1"),
        "head='1': expected a module that shares no weight with the frozen base",
    ),
    "model refuses": (lambda: small(model=nn.Linear(7, 3), targets=["0"]), "targets='0': expected the end"),
    "model raises": (
        lambda: small(model=nn.Sequential(nn.Linear(7, 3)), targets=["0"]),
        "model='Sequential': expected to accept the test inputs, but it says: mat1 and mat2",
    ),
    "outputs": (
        lambda: small(model=nn.Sequential(nn.Linear(4, 3), nn.Flatten(0)), targets=["0"]),
        r"model output=\(12,\): expected a floating tensor \(4, classes\) for 4 examples",
    ),
    "partition without pool": (
        lambda: small(partition=[[0]]),
        "partition='index vectors': expected no partition without",
    ),
    "alpha without pool": (lambda: small(alpha=1.0), "alpha=1.0: expected no alpha without pool"),
    "pool and pairs": (lambda: small(pool=pair(9)), "clients='pairs': expected a number of clients"),
    "pool, number and partition": (lambda: small(clients=2, pool=pair(9), partition=[[0]]), "clients=2: expected None"),
    "alpha and partition": (
        lambda: small(clients=None, pool=pair(9), partition=[[0]], alpha=1.0),
        "alpha=1.0: expected",
    ),
    "pool too small": (lambda: small(clients=10, pool=pair(9)), "clients=10: expected at most 9"),
    "index twice": (lambda: small(clients=None, pool=pair(9), partition=[[0, 0]]), r"partition\[0\]='an index again'"),
    "digits clients": (lambda: digits(clients=158), "clients=158: expected at most 157: 1257 examples, 8 each"),
    "digits clients, iid": (lambda: digits(clients=158, alpha=None), "clients=158: expected at most 157"),
    "digits no clients": (lambda: digits(clients=0), "clients=0: expected a whole number >= 1"),
    "digits alpha": (lambda: digits(alpha=-1), "alpha=-1: expected a number > 0"),
    "digits alpha word": (lambda: digits(alpha="big"), "alpha='big': expected a number > 0"),  # type: ignore[arg-type]
    "digits seed": (lambda: digits(seed=-1), "seed=-1: expected a whole number >= 0"),
    "digits no seed": (lambda: digits(seed=None), "seed=None: expected a whole number >= 0"),  # type: ignore[arg-type]
    "digits targets": (
        lambda: digits(targets=("query", "heads")),
        "targets='heads': expected the end of a module's name",
    ),
    "digits head": (lambda: digits(head="norm"), "head='norm': expected a module with nn.Linear inside"),
    "rank": (lambda: regression(rank=17), r"rank=17: expected a whole number in \[1, 16\]"),
    "heterogeneity": (lambda: regression(heterogeneity=1.5), r"heterogeneity=1.5: expected a number in \[0, 1\]"),
    "noise": (lambda: regression(noise=-1), "noise=-1: expected a number"),
    "whitened": (lambda: regression(examples=31, whitened=True), "examples=31: expected a whole number >= 32"),
    "examples": (lambda: regression(examples=0), "examples=0: expected a whole number >= 1"),
    "dtype": (lambda: regression(dtype="float16"), "dtype='float16': expected one of float32, float64"),
    "regression clients": (lambda: regression(clients=0), "clients=0: expected a whole number >= 1"),
    "precision": (lambda: small().to(torch.int64), "dtype=torch.int64: expected a floating torch.dtype"),
    "only": (lambda: small().only(2), r"client=2: expected a whole number in \[0, 1\]"),
    "live model": (
        lambda: dataclasses.replace(small(), model=net()),
        "model='Sequential': expected a frozen copy in evaluation mode",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_calls(name: str) -> None:
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
