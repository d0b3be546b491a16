"""A training with Opacus is reviewed as what leaves its step."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from calls import Options, refused
from opacus import PrivacyEngine
from opacus.utils.batch_memory_manager import BatchMemoryManager
from other_device import DEVICE, other_device
from peft import LoraConfig, get_peft_model
from torch import nn

import dp_review

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
OPTIONS: dict[str, Options] = {
    "per_layer": {"clipping": "per_layer", "max_grad_norm": [0.5] * 4},
    "ghost": {"grad_sample_mode": "ghost", "criterion": nn.CrossEntropyLoss()},
    "shuffled": {"poisson_sampling": False},
}


def private_parts(kind="flat", device="cpu"):
    """Module, optimizer, loader, criterion and engine, after one step of training."""
    torch.manual_seed(0)
    x = torch.randn(200, 6)
    data = torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long())
    net: Any = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    if kind == "peft":
        net = get_peft_model(net, LoraConfig(r=2, target_modules=["0", "2"]))
    net = net.to(device)
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
    criterion(module(inputs.to(device)), targets.to(device)).backward()
    optimizer.step()
    return module, optimizer, loader, criterion, engine


@pytest.mark.every(4)
@pytest.mark.parametrize("kind", ["flat", "per_layer", "ghost", "peft"])
def test_opacus_passes(kind):
    """What everybody uses is called sound, whatever it clips by, with its own accountant."""
    *parts, _ = private_parts(kind)
    steps: Options = {"steps": 100, "epsilon": 3.4, "delta": 1e-5}
    found = dp_review.opacus(*parts, **steps, draws=16)
    assert found.sound, found
    told = {one.check for one in found.findings if one.verdict == "sound"}
    assert told >= {"sensitivity", "noise size", "sampling", "empty batch", "accounting"}


@pytest.mark.further
def test_batches_are_moved_to_the_model():
    """A sound training on a GPU was called broken, since its batches lay on the CPU."""
    with other_device():
        *parts, _ = private_parts(device=DEVICE)
        found = dp_review.opacus(*parts, draws=16)
    assert found.sound, found


def test_batches_that_are_cut_to_fit_the_memory_are_read_whole():
    """Pieces of Poisson batches taken for the batches of a wrong sampler."""
    module, optimizer, loader, criterion, _ = private_parts()
    cut = BatchMemoryManager(data_loader=loader, max_physical_batch_size=4, optimizer=optimizer)
    with cut as pieces:
        found = dp_review.opacus(module, optimizer, pieces, criterion, draws=16)
    assert found["sampling"].verdict == "sound" and found.claims.sample_rate == loader.sample_rate


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
    found = dp_review.opacus(*parts, draws=16)
    torch.testing.assert_close(everything(), before, rtol=0, atol=0)
    assert "buffer mean" in found["un-noised output"].words


def test_what_a_script_with_opacus_does_wrong_is_found():
    """Shuffled batches and a logged loss; a clip norm that moves is refused."""
    *parts, _ = private_parts("shuffled")
    log = lambda loss, module, batch: {"loss": loss.item()}  # noqa: E731
    found = dp_review.opacus(*parts, metrics=log, draws=16)
    assert found.broken == {"sampling", "empty batch", "un-noised output"}

    optimizer = parts[1]
    optimizer.target_unclipped_quantile = 0.5  # as that of adaptive clipping has
    with refused("^optimizer=.*: expected .*adaptive"):
        dp_review.opacus(*parts)
