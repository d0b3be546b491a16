"""Costs counted on shapes alone are those of the real model, and the formulas are what they say."""

import pytest
import torch
import toy_hubs

import fedlora_lab as fl
from fedlora_lab.federated.cost import Cost, cost, example_bytes, speed
from fedlora_lab.federated.simulation import Federation
from fedlora_lab.lora import peft
from fedlora_lab.lora.batch_independence import widest_probes

pytestmark = pytest.mark.filterwarnings(toy_hubs.NO_PAD)
LORA, PLAN = fl.Lora(rank=2, alpha=3.0), fl.Plan(rounds=7, local_steps=3, participation=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "vit"])
def test_counts_are_those_of_the_real_model(kind):
    """Parameters and moving numbers against the model with values; traffic against a real round."""
    task, plan = toy_hubs.task(kind), fl.Plan(rounds=1, local_steps=1, batch=2)
    found = cost(task, fl.methods.FedLoRA, LORA, PLAN)
    adapted = peft.adapt(task.model, task.targets, task.head, LORA)
    assert found.parameters == sum(p.numel() for p in task.model.parameters())
    assert found.moving == sum(tensor.numel() for tensor in adapted.initial.values())
    *_, last = fl.run(task, "fedlora", None, plan.replace(rounds=2), lora=LORA)
    assert (last.uploads.bytes_up, last.uploads.bytes_down) == (3 * found.up, 3 * found.down)


def test_operations_are_those_counted_by_hand():
    """A forward pass of the toy ViT: patches, two blocks with attention and factors, the head."""
    tokens, width, inner, rank = 5, 16, 24, 2
    patches = 2 * 4 * width * (3 * 4 * 4)
    maps = 2 * tokens * (4 * width * width + 2 * width * inner)
    attention = 2 * (2 * tokens * tokens * width)
    factors = 2 * (2 * tokens * rank * (width + width))
    found = cost(toy_hubs.task("vit"), fl.methods.FedLoRA, LORA, PLAN)
    assert found.judge_flops == patches + 2 * (maps + attention + factors) + 2 * width * 3
    assert found.step_flops > 1.8 * found.judge_flops, "the way back costs about as much as there"


@pytest.mark.slow
def test_schedules_and_quantised_broadcasts_cost_less():
    rows = map(fl.methods.get, ("fedlora", "rolora", "fedlpp"))
    plain, turns, narrow = (cost(toy_hubs.decoder(), row, LORA, PLAN) for row in rows)
    assert turns.up == plain.up // 2
    assert narrow.up == plain.up and narrow.down < plain.down / 5


def test_cost_formulas_are_those_by_hand():
    found = Cost(1000, 10, 40, 20, 6.0, 2.0, 50, 4)
    assert found.memory(3, 2) == 4 * 1000 + 3 * 50 + 12 * 2 * 10
    assert found.memory(3, 2, width=2) == 2 * 1000 + 3 * 50 + 12 * 2 * 10
    assert found.flops(PLAN, 16) == 7 * 0.5 * 4 * 3 * 16 * 6
    assert found.seconds(2.0, PLAN, 16) == found.flops(PLAN, 16) / 2
    assert found.traffic(PLAN) == (7 * 0.5 * 4 * 40, 7 * 0.5 * 4 * 20)
    assert speed(size=32, seconds=0.01) > 0
    with pytest.raises(ValueError, match="speed=0: expected a number > 0"):
        found.seconds(0, PLAN, 1)


def test_shapes_that_do_not_fit_are_said_in_one_line():
    task, pair = toy_hubs.task("vit"), (torch.zeros(4, 3, 9, 9), torch.zeros(4).long())
    wrong = fl.tasks.Task("wrong", task.model, task.targets, (pair,), pair)
    words = r"^model='ViT\w+': expected one that takes these shapes, but: Input image size[^\n]*$"
    with pytest.raises(ValueError, match=words):
        cost(wrong, fl.methods.FedLoRA, LORA, PLAN)


def test_bytes_of_an_example_grow_with_the_model():
    """Longer texts and more blocks keep more; what is computed again keeps less."""

    def measured(task, **options):
        context = Federation.open(task, "fedlora", None, PLAN, lora=LORA, **options).context
        return example_bytes(context, widest_probes(context.task))

    plain = measured(toy_hubs.task("bert"))
    assert measured(toy_hubs.task("bert"), recompute=True) < 0.7 * plain
    assert measured(toy_hubs.fresh("bert", max_length=4)) < 0.8 * plain
