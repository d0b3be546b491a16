"""What a federation costs before anything is downloaded or trained: numbers, bytes, memory and time, by formula.

The model is built on the device "meta", where tensors have shapes and no values. One private step over two examples
goes through it there: shapes that do not fit fail here, and what it counts stands in the formulas.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from fedlora_lab import adapters, engine, passes
from fedlora_lab.checks import check, check_number
from fedlora_lab.compute.chunking import example_bytes
from fedlora_lab.compute.placing import place
from fedlora_lab.method import Method, Slot
from fedlora_lab.plan import Lora, Plan
from fedlora_lab.streams import Streams
from fedlora_lab.tasks.task import take
from fedlora_lab.wire import bytes_of

if TYPE_CHECKING:
    from fedlora_lab.tasks import Task

FLOAT = 4
CYCLE = 2
LOOKS = "warn_if_padding_and_no_attention_mask"
"""A warning of Transformers that reads the tokens, of which there are none here."""


@dataclass(frozen=True)
class Cost:
    """Formulas over what was counted on shapes alone.

    Args:
        parameters: of the frozen base.
        moving: numbers of the adapter and the head, of one client.
        up, down: bytes of one client in a round, the mean over two rounds, since schedules take turns.
        step_flops, judge_flops: of one example, in a private step (forward, backward and clip), and forward alone.
        example_bytes: memory of one more example in a step.
        clients: in the federation.
    """

    parameters: int
    moving: int
    up: int
    down: int
    step_flops: float
    judge_flops: float
    example_bytes: int
    clients: int

    def memory(self, examples: int, clients: int, width: int = FLOAT) -> float:
        """Bytes: width * parameters + examples * example_bytes + 3 * 4 * clients * moving.

        Args:
            examples: at once in a step.
            clients: of one round, each with its factors, what it received and its sums.
            width: bytes of a frozen number, 4, or 2 in bfloat16.
        """
        return width * self.parameters + examples * self.example_bytes + 3 * FLOAT * clients * self.moving

    def flops(self, plan: Plan, batch: float, test: int = 0, judged: int = 0) -> float:
        """rounds * participation * clients * local_steps * batch * step_flops + judged * test * judge_flops."""
        steps = plan.rounds * plan.participation * self.clients * plan.local_steps
        return steps * batch * self.step_flops + judged * test * self.judge_flops

    def seconds(self, speed: float, plan: Plan, batch: float, test: int = 0, judged: int = 0) -> float:
        """flops / speed, with the speed in floating-point operations a second."""
        check_number("speed", speed, 0, open_low=True)
        return self.flops(plan, batch, test, judged) / speed

    def traffic(self, plan: Plan) -> tuple[float, float]:
        """Bytes up and down over the whole run, of all clients: rounds * participation * clients * (up, down)."""
        times = plan.rounds * plan.participation * self.clients
        return times * self.up, times * self.down


def cost(task: "Task", method: Method, lora: Lora, plan: Plan) -> Cost:
    """Count one private step of this task on shapes alone.

    Args:
        task: with a model on the device "meta" or anywhere else; its examples are looked at for their shapes.

    Raises: ``ValueError`` where targets, shapes or classes do not fit.
    Guarantees: tests/test_cost.py::test_counts_are_those_of_the_real_model, ::test_formulas_by_hand.
    """
    adapted = place(adapters.adapt(task.model, task.targets, task.head, lora), "meta", "float32")
    for module in adapted.model.modules():
        if hasattr(module, LOOKS):
            setattr(module, LOOKS, lambda *_: None)
    x, y = take(task.clients[0][0], slice(0, CYCLE)), task.clients[0][1][:CYCLE]
    if isinstance(x, Mapping):  # Transformers look into a mask, and here it has no values: every text counts in full
        x = {key: value for key, value in x.items() if key != "attention_mask"}
    check(len(y) == CYCLE, "clients[0]", f"{len(y)} examples", f"at least {CYCLE}")
    four = (take(x, torch.tensor([0, 1, 0, 1])), y[torch.tensor([0, 1, 0, 1])])
    task = replace(task, prepare=None)
    setting = engine.Setting(task, adapted, method, plan, Streams(0), 1.0, (1.0,), (four,))
    bank = {slot: tensor[None] for slot, tensor in adapted.given.items()}
    moving = engine.moving_slots(bank, "ABR")
    one, owner = (take(x, slice(0, 1)), y[:1]), torch.zeros(1, dtype=torch.int64)
    try:
        with FlopCounterMode(display=False) as step:
            passes.per_example_gradients(task, adapted, bank, moving, one, owner)
        with FlopCounterMode(display=False) as judge:
            task.forward(adapted.model, passes.ready(task, one[0], adapted.device))
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        name = type(task.model).__name__
        raise ValueError(f"model={name!r}: expected one that takes these shapes, but: {reason}") from error
    up, down = sent(method, adapted.given, plan)
    return Cost(
        parameters=sum(p.numel() for p in task.model.parameters()),
        moving=sum(tensor.numel() for tensor in adapted.given.values()),
        up=up,
        down=down,
        step_flops=float(step.get_total_flops()),
        judge_flops=float(judge.get_total_flops()),
        example_bytes=example_bytes(setting, four),
        clients=len(task.sizes),
    )


def sent(method: Method, given: "Mapping[Slot, torch.Tensor]", plan: Plan) -> tuple[int, int]:
    """Bytes of one client in a round: what moves and is shared goes up, and comes down as the row broadcasts it.

    Args: given: an adapted model's tensors, for their sizes.
    Returns: up and down, the mean over two rounds.
    """
    up = down = 0
    for t in range(CYCLE):
        slots = engine.sent_slots(given, method, t, plan.local_steps)
        factors = [given[slot].numel() for slot in slots if slot.side != "head"]
        head = [given[slot].numel() for slot in slots if slot.side == "head"]
        up += bytes_of(factors + head)
        down += bytes_of(factors, method.broadcast) + bytes_of(head)
    return up // CYCLE, down // CYCLE


def speed(device: Any = "cpu", size: int = 512, seconds: float = 0.1) -> float:
    """Floating-point operations a second of square products here; a step reaches a share of it."""
    a = torch.ones(size, size, device=device)
    torch.mm(a, a)
    count, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        torch.mm(a, a)
        count += 1
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return 2 * size**3 * count / (time.perf_counter() - begun)
