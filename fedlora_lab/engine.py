"""A federation is one batch: a local step of many clients at once, clip, noise, filter and descent."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from fedlora_lab.adapters import Adapted
from fedlora_lab.checks import check
from fedlora_lab.compute.placing import matmuls
from fedlora_lab.mechanism import Clipped, before_clip, clip_sum, noise, release
from fedlora_lab.method import MODES, TRAINED, Method, Slot
from fedlora_lab.passes import NotPerExample, per_example_gradients, portions
from fedlora_lab.plan import Lora, Plan
from fedlora_lab.ranks import cut
from fedlora_lab.rules import Whitening, identity
from fedlora_lab.separable import check_penalty
from fedlora_lab.streams import Streams
from fedlora_lab.tasks.task import Examples, Task, take, together

if TYPE_CHECKING:
    from fedlora_lab.compute.prefix import Prefix

Bank = dict[Slot, Tensor]


@dataclass(frozen=True)
class Setting:
    """What stays the same over a run, as the engine needs it.

    ``data`` are the examples of the clients that are at work here, by their numbers: everyone's, one's, or nobody's.
    ``clip_norm`` and ``noise_multiplier`` (one number a client) are those of each local step: infinity and zeros where
    the steps themselves are not released. ``filter_steps``: the method's filter acts on each step's noised gradient; in
    the client unit it does not, since the noise is on the update and the filter belongs where the noise is. ``clip``
    clips in steps and in updates; a run with any other than `mechanism.clip_sum` is not certified. ``uncertified``: why
    no epsilon covers what the method's whitening releases, asked once, when the run is prepared. ``private``: nothing
    of a client's examples may be told but by releases, not even that a pass over them raised.
    """

    task: Task
    adapted: Adapted
    method: Method
    plan: Plan
    streams: Streams
    clip_norm: float
    noise_multiplier: tuple[float, ...]
    data: Sequence[Examples] | Mapping[int, Examples]
    chunk: int | None = None
    lora: Lora = field(default=Lora())
    prefix: "Prefix | None" = None
    products: str = "float32"
    filter_steps: bool = True
    uncertified: str | None = None
    private: bool = False
    clip: Callable[..., tuple[Bank, Clipped]] = clip_sum

    @cached_property
    def sample_rate(self) -> tuple[float, ...]:
        """Probability with which each client draws each of its examples in a step."""
        batch = self.plan.batch
        return tuple(1.0 if batch is None else min(1.0, batch / n) for n in self.task.sizes)

    @cached_property
    def examples(self) -> Callable[[tuple[int, ...]], Examples]:
        """Some clients' examples, one's after the other's; asked for the same again, the same tensors."""
        data = self.data
        return lru_cache(maxsize=1)(lambda ids: together([data[k] for k in ids]))

    @cached_property
    def offsets(self) -> Tensor:
        """Where each client's examples begin if all lie one after the other, (clients,)."""
        return torch.tensor([0, *accumulate(self.task.sizes)][:-1])

    def kept(self, part: str, index: Tensor, x: Any) -> AbstractContextManager[None]:
        """Within it the model takes the frozen prefix of these examples from what is kept, if anything is."""
        return nullcontext() if self.prefix is None else self.prefix.reading(part, index, x)

    @property
    def rank(self) -> int:
        """The adapter's rank."""
        return next(len(tensor) for slot, tensor in self.adapted.given.items() if slot.side == "A")


@dataclass
class Clients:
    """The clients of one round that train together: their tensors, and what is known of the noise in them."""

    ids: tuple[int, ...]
    bank: Bank
    start: Bank
    noise: Bank = field(default_factory=dict)
    momentum: Bank = field(default_factory=dict)
    clipped: Clipped = field(default_factory=Clipped)


def ranks_of(setting: Setting, ids: tuple[int, ...]) -> Tensor | None:
    """The ranks of these clients, (clients,); ``None`` where all have the adapter's."""
    ranks = setting.lora.ranks
    return None if ranks is None else torch.tensor([ranks[k] for k in ids])


def poisson_batch(setting: Setting, t: int, s: int, ids: tuple[int, ...]) -> list[Int[Tensor, " n"]]:
    """The examples each client draws in round t at step s: every one on its own with the client's rate."""
    drawn = []
    for k in ids:
        size, rate = setting.task.sizes[k], setting.sample_rate[k]
        if rate >= 1:
            drawn.append(torch.arange(size))
            continue
        drawn.append((setting.streams.uniform((size,), "sampling", t, k, s) < rate).nonzero().squeeze(1))
    return drawn


def whitenings(
    method: Method, moving: tuple[Slot, ...], bank: Mapping[Slot, Tensor], certified: bool = False
) -> dict[Slot, Whitening]:
    """Each moving factor's whitening by its peer, (1 or clients, r, r); empty where the method has none.

    Args: certified: the run's ledger states an epsilon, so noise and signal must pass the same map.
    Raises: ``ValueError`` where they do not, whatever the rule answers when it is asked again.
    """
    if method.whiten is None:
        return {}
    found = {}
    for slot in moving:
        if slot.side == "B":
            peer = bank[Slot("A", slot.layer)].double()
            found[slot] = method.whiten(_finite((peer @ peer.mT).to(bank[slot].dtype)))
        elif slot.side == "A":
            peer = bank[Slot("B", slot.layer)].double()
            found[slot] = method.whiten(_finite((peer.mT @ peer).to(bank[slot].dtype)))
    sound = all(rule.noise is rule.after for rule in found.values())
    check(
        sound or not certified,
        "whiten",
        method.whiten,
        "a rule that treats every peer as it treated the one it was asked about",
    )
    return found


def _finite(gram: Tensor) -> Tensor:
    """The matrices, with the identity for one that is not finite: its client alone has lost its way.

    In the client unit these factors are not yet noised, and a rule that raises would tell of one client's data.

    Guarantees: test_attack_clip.py::test_one_client_s_data_cannot_stop_a_run.
    """
    sound = gram.isfinite().flatten(1).all(1).view(-1, 1, 1)
    return torch.where(sound, gram, torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device))


def moving_slots(values: Mapping[Slot, Tensor], word: str) -> tuple[Slot, ...]:
    """The slots of these sides, and the head's; for "*" of every layer the factor that its mode names."""
    modes = {slot.layer: MODES[int(mode)] for slot, mode in values.items() if slot.side == "mode"}

    def moves(slot: Slot) -> bool:
        return slot.side == "head" or slot.side in word or ("*" in word and modes.get(slot.layer) == slot.side)

    return tuple(slot for slot in values if slot.side in TRAINED and moves(slot))


def sent_slots(values: Mapping[Slot, Tensor], method: Method, t: int, steps: int) -> tuple[Slot, ...]:
    """What goes up at the end of round t: the shared factors among those that moved, and the head; or nothing."""
    moved = moving_slots(values, method.moved(t, steps))
    share = "ABR" if method.share is None else method.share
    return tuple(slot for slot in moved if slot.side in share or (share and slot.side == "head"))


def local_step(setting: Setting, clients: Clients, t: int, s: int) -> None:
    """One step of every client of the group: draw, differentiate, clip, add up, noise, filter, step. In place.

    On a GPU nothing in it waits for the device: what is drawn is drawn on the processor, and what was counted is read
    at the end of the round.

    Guarantees: frozen factors get neither gradient nor noise; an empty batch still adds noise; the chunk size changes
    nothing beyond rounding (tests/test_contract.py, tests/test_engine.py); no value is read from the device
    (tests/test_compute.py::test_a_local_step_reads_nothing_from_the_device).
    """
    moving = moving_slots(clients.bank, setting.method.moves(t, s))
    check_penalty(setting.task, setting.adapted, setting.products, setting.method, moving)
    maps = whitenings(setting.method, moving, clients.bank, setting.uncertified is None)
    with matmuls(setting.products):  # what comes after the clip is computed in full: its rounding nobody bounds
        sums = _clipped_sums(setting, clients, moving, maps, poisson_batch(setting, t, s, clients.ids))
    shapes = {slot: clients.bank[slot].shape[1:] for slot in moving}
    std = [setting.noise_multiplier[k] * setting.clip_norm if setting.noise_multiplier[k] else 0.0 for k in clients.ids]
    drawn = noise(shapes, std, setting.streams, [(t, k, s) for k in clients.ids])
    # A lower rank is cut after the maps: before them it would take the noise from ranks that a map fills with signal.
    released, alone = (cut(part, ranks_of(setting, clients.ids)) for part in release(sums, drawn, maps))
    expected = torch.tensor([setting.task.sizes[k] * setting.sample_rate[k] for k in clients.ids])
    for slot in moving:
        per_client = expected.to(released[slot]).view(-1, *[1] * (released[slot].dim() - 1))
        gradient, noised = released[slot] / per_client, alone[slot] / per_client
        if slot.side in "AB" and setting.filter_steps and setting.method.smooth is not identity:
            gradient, noised = (setting.method.smooth(tensor, slot.side) for tensor in (gradient, noised))
        _descend(setting.plan, clients, slot, gradient, noised, t)


def _clipped_sums(
    setting: Setting, clients: Clients, moving: tuple[Slot, ...], maps: dict[Slot, Whitening], drawn: list[Tensor]
) -> Bank:
    """Each client's sum of clipped per-example gradients, slot -> (clients, ...), chunk by chunk."""
    owner = torch.repeat_interleave(torch.arange(len(drawn)), torch.tensor([len(index) for index in drawn]))
    sums = {slot: clients.bank[slot].new_zeros(len(drawn), *clients.bank[slot].shape[1:]) for slot in moving}
    if not len(owner):
        return sums
    nothing = {slot: torch.full_like(total[:1], torch.nan) for slot, total in sums.items()}
    begins = torch.tensor([0, *accumulate(setting.task.sizes[k] for k in clients.ids)])
    index, places = (torch.cat(drawn) + at[owner] for at in (begins, setting.offsets[list(clients.ids)]))
    x, y = setting.examples(clients.ids)
    for part in portions(x, index, setting.adapted.device, setting.chunk):
        who = owner[part]

        def gradients(these: Tensor, part: Tensor = part, who: Tensor = who) -> Bank:
            data = take(x, index[part[these]]), y[index[part[these]]]
            with setting.kept("clients", places[part[these]], data[0]):
                return per_example_gradients(
                    setting.task, setting.adapted, clients.bank, moving, data, who[these], setting.method, clients.start
                )

        everyone = torch.arange(len(part))
        rows = _gradients_or_nan(gradients, everyone, nothing) if setting.private else gradients(everyone)
        who = who.to(setting.adapted.device, non_blocking=True)
        rows = before_clip(rows, maps, who)
        added, counts = setting.clip(rows, setting.clip_norm, who, len(drawn), setting.method.parts)
        clients.clipped = clients.clipped + counts
        for slot in moving:
            sums[slot] += added[slot]
    return sums


def _gradients_or_nan(gradients: Callable[[Tensor], Bank], these: Tensor, nothing: Bank) -> Bank:
    """The gradients of these examples; not a number, which counts as zero, for one whose pass raises.

    Whether a run goes on, or a client sends, must not hang on one example: no noise hides it. Where the pass of some
    together raises, each passes alone, so that the others are what they would be without the one that raises.

    Args: nothing: what stands for one example, slot -> (1, ...).
    Raises: ``NotPerExample``, and where memory runs out: the code and the machine decide that, and no example.
    Guarantees: test_attack_evaluation.py::test_no_example_stops_a_run.
    """
    try:
        return gradients(these)
    except (NotPerExample, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception:
        if len(these) == 1:
            return nothing
    parts = [_gradients_or_nan(gradients, one, nothing) for one in these.split(1)]
    return {slot: torch.cat([part[slot] for part in parts]) for slot in nothing}


def _descend(plan: Plan, clients: Clients, slot: Slot, gradient: Tensor, noised: Tensor, t: int) -> None:
    """A step of SGD with momentum for one slot, and the same linear map on the noise that the slot holds."""
    rate = plan.rate(slot.side, t)
    zero = gradient.new_zeros(1)
    if plan.momentum:
        gradient = clients.momentum[slot] = plan.momentum * clients.momentum.get(slot, zero) + gradient
        key = Slot(f"noise {slot.side}", slot.layer)
        noised = clients.momentum[key] = plan.momentum * clients.momentum.get(key, zero) + noised
    clients.bank[slot] = clients.bank[slot] - rate * gradient
    clients.noise[slot] = clients.noise.get(slot, zero) - rate * noised
