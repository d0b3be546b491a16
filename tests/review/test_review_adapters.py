"""Adapters: Opacus' private parts and Flower's clients are reviewed as what leaves them."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from opacus import PrivacyEngine
from opacus.utils.batch_memory_manager import BatchMemoryManager
from peft import LoraConfig, get_peft_model
from torch import nn

import fedlora_lab as fl


def private_parts(kind="flat", poisson=True):
    """Engine, module, optimizer, loader and criterion, after one step of training."""
    torch.manual_seed(0)
    x = torch.randn(200, 6)
    data = torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long())
    net: Any = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    if kind == "peft":
        net = get_peft_model(net, LoraConfig(r=2, target_modules=["0", "2"]))
    criterion: Any = nn.CrossEntropyLoss()
    loader: Any = torch.utils.data.DataLoader(data, batch_size=10, shuffle=True)
    options: dict[str, Any] = {"max_grad_norm": 1.0, "poisson_sampling": poisson}
    if kind == "per_layer":
        options |= {"clipping": kind, "max_grad_norm": [0.5] * 4}
    if kind == "ghost":
        options |= {"grad_sample_mode": kind, "criterion": criterion}
    engine = PrivacyEngine()
    optimizer: Any = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    parts: Any = engine.make_private(
        module=net, optimizer=optimizer, data_loader=loader, noise_multiplier=1.1, **options
    )
    module, optimizer, loader = parts[0], parts[1], parts[-1]
    criterion = parts[2] if kind == "ghost" else criterion
    inputs, targets = next(iter(loader))
    optimizer.zero_grad()
    criterion(module(inputs), targets).backward()
    optimizer.step()
    return engine, module, optimizer, loader, criterion


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["flat", "per_layer", "ghost", "peft"])
def test_opacus_passes(kind):
    """What everybody uses is called sound, whatever it clips by, with its own accountant."""
    _, *parts = private_parts(kind)
    steps: dict[str, Any] = {"steps": 100, "epsilon": 3.4, "delta": 1e-5}
    found = fl.review.opacus(*parts, **steps, draws=32)
    assert found.sound, found
    told = {one.check for one in found.findings if one.verdict == "sound"}
    assert told >= {"sensitivity", "noise size", "sampling", "empty batch", "accounting"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_batches_that_are_cut_to_fit_the_memory_are_read_whole():
    """Pieces of Poisson batches taken for the batches of a wrong sampler."""
    _, module, optimizer, loader, criterion = private_parts()
    cut = BatchMemoryManager(data_loader=loader, max_physical_batch_size=4, optimizer=optimizer)
    with cut as pieces:
        found = fl.review.opacus(module, optimizer, pieces, criterion, draws=16)
    assert found["sampling"].verdict == "sound" and found.claims.sample_rate == loader.sample_rate


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_review_leaves_no_trace():
    """A review in the middle of training that changed it, or was counted by the accountant."""
    engine, module, optimizer, loader, criterion = private_parts()
    history = engine.accountant.history
    before: Any = copy.deepcopy((module.state_dict(), optimizer.state_dict(), history))
    numpys: Any = np.random.get_state
    random = torch.get_rng_state(), numpys()[1].copy()
    fl.review.opacus(module, optimizer, loader, criterion, draws=16)
    after = module.state_dict(), optimizer.state_dict(), engine.accountant.history
    assert all(torch.equal(x, after[0][name]) for name, x in before[0].items())
    states = zip(before[1]["state"].values(), after[1]["state"].values(), strict=True)
    assert all(torch.equal(a["momentum_buffer"], b["momentum_buffer"]) for a, b in states)
    assert after[2] == before[2] and torch.equal(torch.get_rng_state(), random[0])
    assert np.array_equal(numpys()[1], random[1])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_a_script_with_opacus_does_wrong_is_found():
    """Shuffled batches, a logged loss, and an optimiser that adds what nobody clipped."""
    _, module, optimizer, loader, criterion = private_parts(poisson=False)
    log = lambda loss, module, batch: {"loss": loss.item()}  # noqa: E731
    found = fl.review.opacus(module, optimizer, loader, criterion, metrics=log, draws=16)
    assert found.broken == {"sampling", "empty batch", "un-noised output"}

    _, module, optimizer, loader, criterion = private_parts()
    plain = optimizer.original_optimizer.step

    def step(*args):
        first = next(module.parameters())
        if first.grad_sample is not None:
            with torch.no_grad():
                first.add_(first.grad_sample.sum(0), alpha=1e-3)
        return plain(*args)

    optimizer.original_optimizer.step = step
    found = fl.review.opacus(module, optimizer, loader, criterion, draws=16)
    assert found.broken == {"un-noised output"}
    assert "besides the gradient" in found["un-noised output"].words


def sent_by_a_client(examples):
    noise = 1.5 * np.random.normal(size=13)  # noqa: NPY002
    sums = sum((x / max(1.0, np.linalg.norm(x)) for x in examples), np.zeros(13))
    change = 0.1 * (sums + noise) / 8
    return [change[:10].reshape(5, 2), change[10:]]


def numpy_client(examples):
    assert fl.flower  # imports Flower without its warnings
    from flwr.client import NumPyClient

    class Client(NumPyClient):
        def fit(self, parameters, config):
            arrays = [a - b for a, b in zip(parameters, sent_by_a_client(examples))]
            return arrays, len(examples), {}

    return Client()


def client_app(examples):
    assert fl.flower
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp

    app = ClientApp()

    @app.train()
    def _(message, context):
        sent: Any = message.content["arrays"]
        start = sent.to_numpy_ndarrays()
        arrays = [a - b for a, b in zip(start, sent_by_a_client(examples))]
        count = MetricRecord({"num-examples": len(examples)})
        return Message(RecordDict({"a": ArrayRecord(arrays), "m": count}), reply_to=message)

    return app


@pytest.mark.slow
@pytest.mark.parametrize(
    ("client", "count"), [(numpy_client, "num_examples"), (client_app, "m num-examples")]
)
def test_a_flower_client_is_reviewed_as_its_server_sees_it(client, count):
    """Changes of the parameters in clip norms, and the number of examples beside them."""
    data = list(np.random.default_rng(0).normal(size=(16, 13)))
    claims: dict[str, Any] = {"clip_norm": 1.0, "noise_multiplier": 1.5, "denominator": 80.0}
    start: Any = [np.zeros((5, 2)), np.zeros(3)]
    found = fl.review.flower(client, data, fl.review.Claims(**claims), parameters=start, draws=32)
    assert found.broken == {"un-noised output"} and count in found["un-noised output"].words
    claims["public"] = (count,)
    found = fl.review.flower(client, data, fl.review.Claims(**claims), parameters=start, draws=32)
    assert found.sound and found["sensitivity"].number == pytest.approx(1.0)
