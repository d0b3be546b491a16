"""What a client and the server both begin with; a client's half of a round: what moves, and what of that leaves it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from fedlora_lab import adapters, engine, upload
from fedlora_lab.aggregate import Rule
from fedlora_lab.agreement import Agreement
from fedlora_lab.checks import check
from fedlora_lab.compute import Compute
from fedlora_lab.compute.blocks import wrap
from fedlora_lab.compute.chunking import chunk
from fedlora_lab.compute.placing import place
from fedlora_lab.compute.prefix import prefix
from fedlora_lab.mechanism import uncertified
from fedlora_lab.method import Global, Slot
from fedlora_lab.passes import TEXTS
from fedlora_lab.ranks import AXES, joined, shared_rank
from fedlora_lab.separable import check_separable
from fedlora_lab.tasks.task import Examples, mask_of


def prepared(
    asked: Agreement, data: Sequence[Examples] | Mapping[int, Examples], compute: Compute | None = None
) -> engine.Setting:
    """The engine's setting of an agreement.

    Args:
        data: clients' examples by their numbers: everyone's, one client's, or none.
        compute: how the work is done; default: as `Compute` has it.

    Raises: ``ValueError`` for a model in which examples touch each other, or that PEFT cannot adapt, and where a switch
        does not suit the model.
    """
    task, compute = asked.task, compute or Compute()
    adapted = adapters.adapt(task.model, task.targets, task.head, asked.lora)
    adapted = place(adapted, compute.device, compute.products)
    shells = compute.recompute or compute.frozen_prefix
    lists = wrap(adapted.model, compute.recompute) if shells else []
    check(bool(lists) or not compute.recompute, "recompute", True, "a model whose blocks are in an nn.ModuleList")
    for slot, tensor in adapted.given.items():
        why = "float32 or float64: in half precision a sum of clipped gradients may move by more than the clip norm"
        check(tensor.dtype in (torch.float32, torch.float64), f"dtype of {slot}", tensor.dtype, why)
    clip, sigma = upload.step_privacy(asked.privacy, len(task.sizes))
    kept = prefix(task, adapted, lists, (compute.products, str(adapted.device))) if compute.frozen_prefix else None
    setting = engine.Setting(
        task, adapted, asked.method, asked.plan, asked.streams, clip, sigma, data,
        lora=asked.lora, prefix=kept, products=compute.products,
        filter_steps=asked.privacy is None or asked.privacy.unit == "example",
        uncertified=uncertified(asked.method.whiten), private=asked.privacy is not None,
    )  # fmt: skip
    setting = replace(setting, chunk=chunk(compute, setting))
    check_separable(task, adapted, compute.products, asked.method, asked.plan, _at_once(setting))
    return setting


def _at_once(setting: engine.Setting) -> int:
    """Examples that pass the model together in a step with everyone: half as many again as are expected."""
    expected = sum(n * q for n, q in zip(setting.task.sizes, setting.sample_rate, strict=True))
    texts = setting.adapted.device.type == "cpu" and mask_of(setting.task.test[0]) is not None
    return math.ceil(min(1.5 * expected, setting.chunk or (TEXTS if texts else math.inf)))


def opening(asked: Agreement, setting: engine.Setting) -> Global:
    """The server's tensors before the first round, with what the method's rule keeps there."""
    start = adapters.start(setting.adapted, asked.streams, asked.method.start)
    server = Global(start, planned=asked.plan.rounds, streams=asked.streams)
    rule = asked.method.aggregate
    return rule.open(server) if isinstance(rule, Rule) else server


class Moves(NamedTuple):
    """The slots of a round: what moves, what is sent of it, and what stays with its client, in part or as a whole."""

    moved: tuple[Slot, ...]
    sent: tuple[Slot, ...]
    kept: tuple[Slot, ...]


def moves(setting: engine.Setting, values: Mapping[Slot, Tensor], t: int) -> Moves:
    """What moves in round t, read from the schedule and from the modes in what the clients received."""
    method, steps = setting.method, setting.plan.local_steps
    moved = engine.moving_slots(values, method.moved(t, steps))
    sent = engine.sent_slots(values, method, t, steps)
    kept = tuple(slot for slot in moved if slot not in sent or (method.own_ranks and slot.side in AXES))
    return Moves(moved, sent, kept)


def begin(
    setting: engine.Setting, ids: tuple[int, ...], sent: Global, personal: Mapping[Slot, Tensor]
) -> engine.Clients:
    """Clients at the start of a round: what they received, and what they kept, slot -> (clients, ...)."""
    method, start = setting.method, upload.received(setting, ids, sent)
    bank = dict(start)
    for slot, own in personal.items():
        split = method.own_ranks and slot.side in AXES and slot.side in (method.share or "ABR")
        bank[slot] = joined(slot, start[slot], own, shared_rank(setting.rank, method.own_ranks)) if split else own
    return engine.Clients(ids, _placed(setting, bank), _placed(setting, start))


def _placed(setting: engine.Setting, values: Mapping[Slot, Tensor]) -> dict[Slot, Tensor]:
    """On the model's device; a layer's mode, by which a schedule decides, stays where it can be read."""
    there = setting.adapted.device
    return {slot: x if slot.side == "mode" else x.to(there, non_blocking=True) for slot, x in values.items()}
