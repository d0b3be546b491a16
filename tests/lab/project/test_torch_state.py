"""What a notebook sets at its top, of PyTorch's process or thread, counts for nothing in a run."""

from collections.abc import Callable
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import pytest
import torch
import toy_hubs
from toy_tasks import LORA, private

import fedlora_lab as fl

pytestmark = pytest.mark.slow


@contextmanager
def default(getter, setter, value):
    before = getter()
    setter(value)
    try:
        yield
    finally:
        setter(before)


PRODUCTS: Any = getattr(torch.backends, "mkldnn", None)
PRODUCTS = getattr(PRODUCTS, "matmul", torch.backends)
"""Where newer versions of PyTorch set the type in which a CPU forms products."""


def precision():
    return getattr(PRODUCTS, "fp32_precision", None)


NOTEBOOK: dict[str, Callable[[], Any]] = {
    "the device meta by default": lambda: torch.device("meta"),
    "inference mode": torch.inference_mode,
    "no gradients": lambda: torch.set_grad_enabled(False),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "anomaly mode": lambda: torch.autograd.set_detect_anomaly(True),
    "medium products": lambda: default(
        torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "medium"
    ),
    "deterministic algorithms": lambda: default(
        torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True
    ),
}
if precision() is not None:
    NOTEBOOK["bfloat16 products"] = lambda: default(
        precision, partial(setattr, PRODUCTS, "fp32_precision"), "bf16"
    )


def torch_state():
    return (
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_inference_mode_enabled(),
        torch.is_grad_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.is_anomaly_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        precision(),
    )


def small_run():
    """All numbers of a private run on a task made here, which is told what it leaves behind."""
    task = toy_hubs.fresh("bert", model=toy_hubs.task("bert").model)
    outside = torch_state()
    tensors = []
    plan = fl.Plan(rounds=1, local_steps=1, batch=4)
    for record in fl.run(task, "fedlora", private("example"), plan, lora=LORA, seed=0):
        assert torch_state() == outside, "between two rounds the user's own settings count"
        tensors = [x for pair in record.adapter.values() for x in pair]
        tensors += [*record.head.values(), fl.predict(task, record, task.test[0])]
    assert torch_state() == outside
    return tensors


@cache
def undisturbed():
    return small_run()


@pytest.mark.parametrize("state", NOTEBOOK)
def test_what_a_notebook_sets_changes_no_bit_of_a_run(state):
    """Fault: under autocast a clip was taken in bfloat16, and one example moved the sum by more
    than the clip norm; under others a run died in words about a filter, or about targets.
    """
    expected = undisturbed()
    with NOTEBOOK[state]():
        tensors = small_run()
    for one, other in zip(tensors, expected, strict=True):
        assert one.dtype == torch.float32 and torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_another_default_type_is_refused_and_left_as_it_is(dtype):
    """Fault: it was set to float32 for the block, and so for every other thread. If one was inside
    a block of its own, it put another user's type back, and later tensors had the wrong one.
    """
    task = toy_hubs.fresh("bert")
    rounds = fl.run(task, "fedlora", None, fl.Plan(rounds=2, local_steps=1, batch=4), lora=LORA)
    next(rounds)
    with default(torch.get_default_dtype, torch.set_default_dtype, dtype):
        with pytest.raises(ValueError, match=r"call torch.set_default_dtype\(torch.float32\)"):
            toy_hubs.fresh("bert", model=task.model)
        with pytest.raises(ValueError, match=r"get_default_dtype\(\)=torch"):
            next(rounds)
        assert torch.get_default_dtype() == dtype
