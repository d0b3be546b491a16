"""What a federation costs before anything is downloaded or trained: bytes, memory and time.

The model is built on the device "meta", where tensors have shapes and no values. One private step
over two examples goes through it there: shapes that do not fit fail here, and what the step counts
stands in the formulas.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.validation import check, check_number
from fedlora_lab.federated.compute import FREE_SHARE, Compute, free_memory
from fedlora_lab.federated.local_training import RunContext, moving_keys
from fedlora_lab.federated.uploads import round_keys
from fedlora_lab.lora import peft
from fedlora_lab.lora.batch_independence import widest_probes
from fedlora_lab.lora.per_example import TEXTS_AT_ONCE, per_example_gradients, prepare_inputs
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.plan import Lora, Plan, lora_of
from fedlora_lab.methods.quantization import bytes_of
from fedlora_lab.tasks.task import Examples, Task, mask_of, take

FLOAT, CYCLE = 4, 2
PADDING_WARNING = "warn_if_padding_and_no_attention_mask"
"""A warning of Transformers that reads the tokens, of which there are none here."""


def example_bytes(context: RunContext, examples: Examples) -> int:
    """Bytes that one more example in a step needs: its factors, and twice what autograd keeps.

    Measured on two and four of these examples, which are as long as the longest.

    Guarantees: tests/federated/test_cost.py::test_bytes_of_an_example_grow_with_the_model.
    """
    (x, y), (few, more) = examples, (2, 4)
    params = {key: tensor[None] for key, tensor in context.adapted.initial.items()}
    moving = moving_keys(params, "ABR")

    def saved(count: int) -> int:
        index, kept = torch.arange(count), {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage  # stored, so that no other storage gets its number
            return tensor

        data, owner = (take(x, index), y[index]), torch.zeros_like(index)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            per_example_gradients(context.task, context.adapted, params, moving, data, owner)
        return sum(storage.nbytes() for storage in kept.values())

    activations = max(saved(more) - saved(few), 0) // (more - few)
    factors = sum(params[key].nbytes for key in moving)
    return max(2 * activations + 4 * factors, 1)


def examples_at_once(how: Compute, context: RunContext) -> int | None:
    """Returns how many examples go through the model at once; ``None`` for all of a step."""
    if how.chunk_examples != "auto":
        return how.chunk_examples  # type: ignore[return-value]  # a number or None
    device, task = context.adapted.device, context.task
    each = example_bytes(context, widest_probes(task))
    most = max(1, int(FREE_SHARE * free_memory(device)) // each)
    texts = device.type == "cpu" and mask_of(task.test[0]) is not None
    return min(most, TEXTS_AT_ONCE) if texts else most


@dataclass(frozen=True)
class Cost:
    """Formulas over what was counted on shapes alone."""

    parameters: int  # of the frozen base
    moving: int  # numbers of the adapter and the head, of one client
    up: int  # bytes of one client in a round, the mean over two: schedules take turns
    down: int
    step_flops: float  # of one example in a private step: forward, backward and clip
    judge_flops: float  # of one example, forward alone
    example_bytes: int  # memory of one more example in a step
    clients: int

    def memory(self, examples: int, clients: int, width: int = FLOAT) -> float:
        """Bytes: width * parameters + examples * example_bytes + 3 * 4 * clients * moving.

        Each client has its factors, what it received and its sums.

        Args:
            examples, clients: how many there are at once in a step.
            width: bytes of a frozen number, 4, or 2 in bfloat16.
        """
        adapters = 3 * FLOAT * clients * self.moving
        return width * self.parameters + examples * self.example_bytes + adapters

    def flops(self, plan: Plan, batch: float) -> float:
        """rounds * participation * clients * local_steps * batch * step_flops."""
        steps = plan.rounds * plan.participation * self.clients * plan.local_steps
        return steps * batch * self.step_flops

    def seconds(self, speed: float, plan: Plan, batch: float) -> float:
        """flops / speed.

        Args:
            speed: floating-point operations a second.
            plan, batch: of the run, and examples of a client in a step.
        """
        check_number("speed", speed, 0, open_low=True)
        return self.flops(plan, batch) / speed

    def traffic(self, plan: Plan) -> tuple[float, float]:
        """Bytes over the whole run: rounds * participation * clients * (up, down)."""
        times = plan.rounds * plan.participation * self.clients
        return times * self.up, times * self.down


def cost(task: Task, method: Method, lora: Any, plan: Plan) -> Cost:
    """Counts one private step of this task on shapes alone; its model may be on the device "meta".

    Args:
        task, method, lora, plan: as of `run`; the task's clients need two examples each.

    Raises: ``ValueError`` where targets, shapes or classes do not fit.
    Guarantees: tests/federated/test_cost.py::test_counts_are_those_of_the_real_model,
        ::test_cost_formulas_are_those_by_hand.
    """
    adapted = peft.adapt(task.model, task.targets, task.head, lora_of(lora))
    adapted = peft.place(adapted, "meta", "float32")
    for module in adapted.model.modules():
        if hasattr(module, PADDING_WARNING):
            setattr(module, PADDING_WARNING, lambda *_: None)
    x, y = take(task.clients[0][0], slice(0, 2)), task.clients[0][1][:2]
    if isinstance(x, Mapping):  # a mask is looked into, and has no values here: texts count in full
        x = {key: value for key, value in x.items() if key != "attention_mask"}
    check(len(y) == 2, "clients[0]", f"{len(y)} examples", "at least 2")
    twice = torch.tensor([0, 1, 0, 1])
    four = (take(x, twice), y[twice])
    task = replace(task, prepare=None)
    context = RunContext(task, adapted, method, plan, Streams(0), 1.0, (1.0,), (four,))
    params = {key: tensor[None] for key, tensor in adapted.initial.items()}
    one, owner = (take(x, slice(0, 1)), y[:1]), torch.zeros(1, dtype=torch.int64)
    try:
        with FlopCounterMode(display=False) as step:
            per_example_gradients(task, adapted, params, moving_keys(params, "ABR"), one, owner)
        with FlopCounterMode(display=False) as judge:
            task.forward(adapted.model, prepare_inputs(task, one[0], adapted.device))
    except (RuntimeError, TypeError, ValueError) as error:
        name, line = type(task.model).__name__, str(error).strip().splitlines()[0]
        text = f"model={name!r}: expected one that takes these shapes, but: {line}"
        raise ValueError(text) from error
    up, down = _bytes_sent(context)
    return Cost(
        parameters=sum(p.numel() for p in task.model.parameters()),
        moving=sum(tensor.numel() for tensor in adapted.initial.values()),
        up=up,
        down=down,
        step_flops=float(step.get_total_flops()),
        judge_flops=float(judge.get_total_flops()),
        example_bytes=example_bytes(context, four),
        clients=len(task.sizes),
    )


def cost_of_layers(of: Callable[[int], Cost], layers: int) -> Cost:
    """Counts the cost of a model of equal layers from that of two and of three of them.

    Every number of `Cost` is linear in the number of layers.

    Args: of: the cost with so many layers. layers: of the model.
    Guarantees: test_doctor.py::test_the_table_follows_from_the_formulas_of_cost.
    """
    if layers <= 3:
        return of(layers)
    pairs = zip(astuple(of(2)), astuple(of(3)), strict=True)
    return Cost(*(two + (layers - 2) * (three - two) for two, three in pairs))


def bytes_of_round(task: Task, method: Method, lora: Lora, plan: Plan) -> tuple[int, int]:
    """Bytes of one client in a round, up and down, as in `cost`, without counting a step.

    Args: task, method, lora, plan: as of `cost`.
    """
    adapted = peft.place(peft.adapt(task.model, task.targets, task.head, lora), "meta", "float32")
    parts: Any = (task, adapted, method, plan, Streams(0), 1.0, (1.0,), task.clients)
    return _bytes_sent(RunContext(*parts))


def _bytes_sent(context: RunContext) -> tuple[int, int]:
    """Bytes of one client in a round, up and down, the mean over two rounds.

    What moves and is shared goes up, and comes down as the method broadcasts it.
    """
    up, down, given = 0, 0, context.adapted.initial
    for t in range(CYCLE):
        keys = round_keys(context, given, t).sent
        factors = [given[key].numel() for key in keys if key.kind.scheduled]
        head = [given[key].numel() for key in keys if not key.kind.scheduled]
        up += bytes_of(factors + head)
        down += bytes_of(factors, context.method.broadcast) + bytes_of(head)
    return up // CYCLE, down // CYCLE


def speed(size: int = 512, seconds: float = 0.1) -> float:
    """Measures the processor's floating-point operations a second; a step reaches a share of it.

    Args: size: of the square matrices that are multiplied. seconds: how long.
    """
    a = torch.ones(size, size)
    torch.mm(a, a)
    count, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        torch.mm(a, a)
        count += 1
    return 2 * size**3 * count / (time.perf_counter() - begun)
