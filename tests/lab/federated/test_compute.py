"""Switches of speed: what each may change, and what none of them may."""

from dataclasses import replace

import pytest
import torch
import toy_hubs
from toy_tasks import LORA, PLAN, anywhere, private, tokens

import fedlora_lab as fl
from fedlora_lab import methods
from fedlora_lab._utils.torch_state import full_precision
from fedlora_lab.federated import exchange, local_training
from fedlora_lab.federated.make_config import make_config
from fedlora_lab.federated.run import Run
from fedlora_lab.lora import adapters

pytestmark = pytest.mark.filterwarnings(toy_hubs.NO_PAD)


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
        with full_precision():
            assert settings() == ("highest", False, False)
        assert settings() == outside


ROWS = ("fedlora", "deer", "la-lora", "fed-sb", "as-lora")


@pytest.mark.slow
@pytest.mark.parametrize("slug", ROWS)
def test_a_local_step_reads_nothing_from_the_device(slug):
    """On the device "meta" there are no values: a step that looked at one would fail."""
    row = methods.get(slug)
    rule = (fl.SGD(momentum=0.5), fl.AdamW())[ROWS.index(slug) % 2]
    task = tokens()
    plan = PLAN.replace(optimizer=rule)
    prepared = Run.open(make_config(task, row, private("example"), plan, LORA, None)).prepared
    prepared = replace(prepared, adapted=adapters.adapt(task, LORA, "meta"))
    clients = exchange.begin_clients(prepared, (0, 1, 2), anywhere(task, row), {})
    for step in range(2):
        local_training.local_step(prepared, clients, 0, step)
    assert any(tensor.device.type == "meta" for tensor in clients.params.values())
    assert clients.clip_counts.rows > 0
