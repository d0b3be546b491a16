"""Switches of speed: what each may change, and what none of them may."""

from dataclasses import replace

import pytest
import torch
import toy_hubs
from torch.utils._python_dispatch import TorchDispatchMode
from toy_tasks import LORA, PLAN, anywhere, book, gap, play, private, tokens

import fedlora_lab as fl
from fedlora_lab import methods
from fedlora_lab.federated import exchange, local_training
from fedlora_lab.federated.make_config import make_config
from fedlora_lab.federated.run import Run
from fedlora_lab.lora import adapters
from fedlora_lab.methods.state import ParamKey
from fedlora_lab.privacy import privatizer
from fedlora_lab.tasks.task import Layers

pytestmark = pytest.mark.filterwarnings(toy_hubs.NO_PAD)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"matmul_precision": "bfloat16"}, {"chunk_examples": 2}], ids=str
)
def test_epsilon_and_noise_are_the_same_under_every_switch(options):
    """With nothing to learn from, the two runs hold the same noise, bit for bit."""
    silent = private("example", sigma=1e30, clip=1e-30)
    run = toy_hubs.task("bert"), "fedlora", silent, PLAN.replace(rounds=1)
    plain, switched = (play(*run, lora=LORA, **given)[-1] for given in ({}, options))
    assert gap(plain, switched) == 0
    assert book(plain).to_json() == book(switched).to_json()
    assert all(x.dtype == torch.float32 for pair in switched.adapter.values() for x in pair)


def test_what_the_process_allows_does_not_count():
    """Products are float32, and the process keeps its own setting."""

    def settings():
        backends = torch.backends
        matmul = torch.get_float32_matmul_precision()
        return matmul, backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32

    before = torch.get_float32_matmul_precision()
    for allowed in ("medium", "high", "highest", before):
        torch.set_float32_matmul_precision(allowed)
        outside = settings()
        with adapters.full_precision():
            assert settings() == ("highest", False, False)
        assert settings() == outside


ROWS = ("fedlora", "deer", "la-lora", "fedsa-lora", "hetlora", "fed-sb", "ravan", "as-lora")


@pytest.mark.slow
@pytest.mark.parametrize("slug", ROWS)
def test_a_local_step_reads_nothing_from_the_device(slug):
    """On the device "meta" there are no values: a step that looked at one would fail."""
    row = methods.get(slug)
    rule = (fl.SGD(momentum=0.5, weight_decay=0.1), fl.AdamW())[ROWS.index(slug) % 2]
    task = tokens()
    plan = PLAN.replace(optimizer=rule)
    prepared = Run.open(make_config(task, row, private("example"), plan, LORA, None)).prepared
    prepared = replace(prepared, adapted=adapters.adapt(task, LORA, "meta"))
    clients = exchange.begin_clients(prepared, (0, 1, 2), anywhere(task, row), {})
    for step in range(2):
        local_training.local_step(prepared, clients, 0, step)
    assert any(tensor.device.type == "meta" for tensor in clients.params.values())
    assert clients.clip_counts.rows > 0


class CopiesToDevice(TorchDispatchMode):
    """Counts what is copied from the CPU to the device "meta"."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.device.type == "meta":
            self.count += any(isinstance(x, torch.Tensor) and x.is_cpu and x.dim() for x in args)
        return result


@pytest.mark.slow
@pytest.mark.parametrize("slug", ["fedlora", "la-lora"])
def test_a_local_step_sends_the_device_as_much_at_once_however_many_layers_there_are(slug):
    """Fault: the noise and the divisor of each tensor were a copy of their own."""

    def copies(targets):
        task = replace(tokens(), layers=Layers(targets))
        prepared = Run.open(make_config(task, slug, private("example"), PLAN, LORA, None)).prepared
        prepared = replace(prepared, adapted=adapters.adapt(task, LORA, "meta"))
        start = anywhere(task, methods.get(slug))
        clients = exchange.begin_clients(prepared, (0, 1, 2), start, {})
        with CopiesToDevice() as copied:
            local_training.local_step(prepared, clients, 0, 0)
        return copied.count

    assert 0 < copies(("inner",)) == copies(("inner", "outer"))


def test_noise_that_travels_has_the_numbers_of_noise_that_stays():
    keys = ParamKey("A", "x"), ParamKey("B", "x")
    shapes = {keys[0]: torch.Size([2, 3]), keys[1]: torch.Size([4])}
    drawn = torch.arange(30.0).view(3, 10)
    there = privatizer._on_device(drawn, shapes, [6, 4], torch.device("cpu"))
    for k in range(3):
        assert torch.equal(torch.cat([there[key][k].flatten() for key in keys]), drawn[k])
    assert all(x.is_contiguous() for x in there.values())
