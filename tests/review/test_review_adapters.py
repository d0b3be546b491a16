"""Adapters: Opacus' private parts and Flower's clients are reviewed as what leaves them."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from calls import Options, refused
from opacus import PrivacyEngine
from opacus.utils.batch_memory_manager import BatchMemoryManager
from peft import LoraConfig, get_peft_model
from torch import nn

import fedlora_lab as fl

OPTIONS: dict[str, Options] = {
    "per_layer": {"clipping": "per_layer", "max_grad_norm": [0.5] * 4},
    "ghost": {"grad_sample_mode": "ghost", "criterion": nn.CrossEntropyLoss()},
    "shuffled": {"poisson_sampling": False},
}


def private_parts(kind="flat"):
    """Module, optimizer, loader, criterion and engine, after one step of training."""
    torch.manual_seed(0)
    x = torch.randn(200, 6)
    data = torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long())
    net: Any = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    if kind == "peft":
        net = get_peft_model(net, LoraConfig(r=2, target_modules=["0", "2"]))
    options: Options = {"max_grad_norm": 1.0} | OPTIONS.get(kind, {})
    engine = PrivacyEngine()
    parts: Any = engine.make_private(
        module=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9),
        data_loader=torch.utils.data.DataLoader(data, batch_size=10, shuffle=True),
        noise_multiplier=1.1,
        **options,
    )
    module, optimizer, loader = parts[0], parts[1], parts[-1]
    criterion: Any = parts[2] if kind == "ghost" else nn.CrossEntropyLoss()
    inputs, targets = next(iter(loader))
    optimizer.zero_grad()
    criterion(module(inputs), targets).backward()
    optimizer.step()
    return module, optimizer, loader, criterion, engine


@pytest.mark.every(4)
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["flat", "per_layer", "ghost", "peft"])
def test_opacus_passes(kind):
    """What everybody uses is called sound, whatever it clips by, with its own accountant."""
    *parts, _ = private_parts(kind)
    steps: Options = {"steps": 100, "epsilon": 3.4, "delta": 1e-5}
    found = fl.review.opacus(*parts, **steps, draws=16)
    assert found.sound, found
    told = {one.check for one in found.findings if one.verdict == "sound"}
    assert told >= {"sensitivity", "noise size", "sampling", "empty batch", "accounting"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_batches_that_are_cut_to_fit_the_memory_are_read_whole():
    """Pieces of Poisson batches taken for the batches of a wrong sampler."""
    module, optimizer, loader, criterion, _ = private_parts()
    cut = BatchMemoryManager(data_loader=loader, max_physical_batch_size=4, optimizer=optimizer)
    with cut as pieces:
        found = fl.review.opacus(module, optimizer, pieces, criterion, draws=16)
    assert found["sampling"].verdict == "sound" and found.claims.sample_rate == loader.sample_rate


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_review_leaves_no_trace():
    """A review in the middle of training that changed it, or was counted by the accountant."""
    *parts, engine = private_parts()
    module, optimizer, loader, *_ = parts
    collate = loader.collate_fn
    loader.collate_fn = lambda examples: (torch.rand(1), collate(examples))[1]
    module.register_buffer("mean", torch.zeros(6))
    module.register_forward_pre_hook(lambda layer, x: setattr(layer, "mean", x[0].sum(0)))

    def everything():
        states = module.state_dict(), optimizer.state_dict(), engine.accountant.history
        generators = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]  # noqa: NPY002
        return copy.deepcopy([states, generators])

    before = everything()
    found = fl.review.opacus(*parts, draws=16)
    torch.testing.assert_close(everything(), before, rtol=0, atol=0)
    assert "buffer mean" in found["un-noised output"].words


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_a_script_with_opacus_does_wrong_is_found():
    """Shuffled batches and a logged loss; a clip norm that moves is refused."""
    *parts, _ = private_parts("shuffled")
    log = lambda loss, module, batch: {"loss": loss.item()}  # noqa: E731
    found = fl.review.opacus(*parts, metrics=log, draws=16)
    assert found.broken == {"sampling", "empty batch", "un-noised output"}

    optimizer = parts[1]
    optimizer.target_unclipped_quantile = 0.5  # as that of adaptive clipping has
    with refused("^optimizer=.*: expected .*adaptive"):
        fl.review.opacus(*parts)


def sent_by_a_client(examples):
    noise = 1.5 * np.random.normal(size=13)  # noqa: NPY002
    sums = sum((x / max(1.0, np.linalg.norm(x)) for x in examples), np.zeros(13))
    change = 0.1 * (sums + noise) / 8
    return [change[:10].reshape(5, 2), change[10:]]


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
def test_a_flower_client_is_reviewed_as_its_server_sees_it():
    """Changes of the parameters in clip norms, and the number of examples beside them."""
    data = list(np.random.default_rng(0).normal(size=(16, 13)))
    claims = fl.review.Claims(clip_norm=1.0, noise_multiplier=1.5, denominator=80.0)
    start = [np.zeros((5, 2)), np.zeros(3)]
    found = fl.review.flower(client_app, data, claims, parameters=start, draws=16)
    assert (
        found.broken == {"un-noised output"} and "num-examples" in found["un-noised output"].words
    )
    claims = replace(claims, public=("m num-examples",))
    found = fl.review.flower(client_app, data, claims, parameters=start, draws=16)
    assert found.sound and found["sensitivity"].number == pytest.approx(1.0)
