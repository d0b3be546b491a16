"""Bugs planted where they would be made: a broken clip is given as ``bug``, other functions of the
engine, the upload and the loop are replaced. Nothing of the self-check itself is replaced.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from broken_rows import leaves_one_tensor_without_noise, smuggles

import fedlora_lab as fl
from fedlora_lab.course.sharp_edges import BUGS
from fedlora_lab.federated import local_training, spec, uploads
from fedlora_lab.federated.run import Run
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.published import DEeRLiteral, FedLoRA
from fedlora_lab.privacy import mechanism
from fedlora_lab.privacy.mechanism import clip_sum, gaussian_noise, row_norms

Plant = Callable[[pytest.MonkeyPatch], Method]
"""Replaces something, and gives the row to check; a clip is not replaced but given, see `CLIPS`."""
PLAN = fl.Plan(rounds=3, local_steps=2, batch=4, lr=0.2, participation=0.7)
true_preconditioners, true_send = local_training.preconditioners, uploads.release_round
true_step, true_batch = local_training.local_step, local_training.poisson_batch
true_charge = Run.charge_ledger


def replaced(place: Any, name: str, broken: Callable) -> Plant:
    def plant(patch: pytest.MonkeyPatch) -> Method:
        patch.setattr(place, name, broken)
        return FedLoRA

    return plant


# clips


def twice_too_far(rows: Any, c: float, owner: Any, owners: int, *rest: Any) -> Any:
    """Clips to 2 C."""
    return clip_sum(rows, 2 * c, owner, owners, *rest)


def lets_infinities_through(rows: Any, c: float, owner: Any, owners: int, *rest: Any) -> Any:
    """Clips by the norm and does not look whether there is one."""
    scale = (c / row_norms(rows).clamp(min=1e-300)).clamp(max=1.0)
    sums = {}
    for key, x in rows.items():
        scaled = x * scale.to(x).view(-1, *[1] * (x.dim() - 1))
        sums[key] = x.new_zeros(owners, *x.shape[1:]).index_add_(0, owner, scaled)
    return sums, mechanism.ClipCounts(len(owner))


# steps


def scaled_step(context: Any, clients: Any, t: int, s: int, factor: Callable) -> None:
    """The true step, each client's change of a matrix times factor(k, size of its batch)."""
    drawn, before = true_batch(context, t, s, clients.ids), dict(clients.params)
    true_step(context, clients, t, s)
    scales = torch.tensor([factor(k, len(d)) for k, d in zip(clients.ids, drawn, strict=True)])
    for key, after in clients.params.items():
        if after is not before[key]:
            scale = scales.to(after).view(-1, *[1] * (after.dim() - 1))
            clients.params[key] = before[key] + scale * (after - before[key])


def over_the_real_batch(context: Any, clients: Any, t: int, s: int) -> None:
    """Divides by the number of examples drawn instead of the expected one."""

    def factor(k: int, size: int) -> float:
        return context.task.sizes[k] * context.sample_rate[k] / max(size, 1)

    scaled_step(context, clients, t, s, factor)


def without_empty_batches(context: Any, clients: Any, t: int, s: int) -> None:
    """Skips a client whose batch is empty, and its noise with it."""
    scaled_step(context, clients, t, s, lambda k, size: float(size > 0))


def fixed_batches(context: Any, t: int, s: int, ids: tuple[int, ...]) -> list[torch.Tensor]:
    """Shuffles and takes the expected number."""
    found = []
    for k in ids:
        size, rate = context.task.sizes[k], context.sample_rate[k]
        order = torch.from_numpy(context.streams.numpy("sampling", t, k, s).permutation(size))
        found.append(order[: max(1, round(size * rate))].sort().values)
    return found


def one_draw_for_all(context: Any, t: int, s: int, ids: tuple[int, ...]) -> list[torch.Tensor]:
    """Every client draws with the first one's numbers."""
    (index,) = true_batch(context, t, s, ids[:1])
    return [index[index < context.task.sizes[k]] for k in ids]


def the_same_every_step(context: Any, t: int, s: int, ids: tuple[int, ...]) -> list[torch.Tensor]:
    """The batch of a round is drawn once."""
    return true_batch(context, t, 0, ids)


# noise


def shared_by_clients(shapes: Any, std: Any, streams: Any, where: Any) -> Any:
    """Every client's noise from the first one's stream."""
    return gaussian_noise(shapes, std, streams, [where[0]] * len(where))


def shared_by_rounds(shapes: Any, std: Any, streams: Any, where: Any) -> Any:
    """One noise for all rounds and steps."""
    return gaussian_noise(shapes, std, streams, [(0, k, 0) for _, k, _ in where])


def shared_by_layers(shapes: Any, std: Any, streams: Any, where: Any) -> Any:
    """Every layer's noise from the beginning of the same stream."""
    each = ({key: shape} for key, shape in shapes.items())
    return {k: x for one in each for k, x in gaussian_noise(one, std, streams, where).items()}


def over_the_root(shapes: Any, std: Any, streams: Any, where: Any) -> Any:
    """Divides by the root of the number of clients as if only a sum were seen."""
    return gaussian_noise(shapes, [level / 3**0.5 for level in std], streams, where)


def uniform(shapes: Any, std: Any, streams: Any, where: Any) -> Any:
    """Noise of the right standard deviation and the wrong law."""
    drawn, level = gaussian_noise(shapes, [1.0] * len(std), streams, where), torch.tensor(std)
    return {
        key: (torch.special.ndtr(x) - 0.5) * 12**0.5 * level.to(x).view(-1, *[1] * (x.dim() - 1))
        for key, x in drawn.items()
    }


# ledger, upload, participation


def one_round_only(self: Any, t: int, ids: Any) -> None:
    """A new ledger every round."""
    self.ledger = self.spec.privacy.ledger()
    true_charge(self, t, ids)


def one_release_a_round(self: Any, t: int, ids: Any) -> None:
    """Counts a round of several steps as one release."""
    self.ledger.record(t + 1, ids, 1, **self.spec.privacy.entry(ids))


def more_noise_than_there_is(self: Any, t: int, ids: Any) -> None:
    """Writes down twice the noise."""
    fields = self.spec.privacy.entry(ids)
    fields["noise_multiplier"] *= 2
    steps = self.context.plan.local_steps if self.spec.privacy.unit == "example" else 1
    self.ledger.record(t + 1, ids, steps, **fields)


def certifies_anything(patch: pytest.MonkeyPatch) -> Method:
    """The ledger is not told that noise and clipped value pass other maps; no step asks."""

    def unasked(*parts: Any) -> Any:
        return true_preconditioners(*parts[:3])

    patch.setattr(spec, "uncertified_reason", lambda *rules: None)
    patch.setattr(local_training, "preconditioners", unasked)
    return DEeRLiteral


def over_those_who_came(context: Any, clients: Any, arrived: Any, *parts: Any) -> Any:
    """The mean over the uploads that arrived, a count that depends on who is there."""
    found = true_send(context, clients, arrived, *parts)
    scale, start = len(context.task.sizes) / max(len(arrived), 1), found.sent.tensors
    moved = {key: start[key] + scale * (x - start[key]) for key, x in found.uploads.items()}
    return replace(found, uploads=moved)


def everyone_every_round(self: Any, t: int) -> tuple[int, ...]:
    """Takes all clients although the ledger counts on a draw."""
    return tuple(range(len(self.context.task.sizes)))


LEDGER = Run, "charge_ledger"
DRAW = Run, "participants"
STEP, BATCH = (local_training, "local_step"), (local_training, "poisson_batch")
SENT, NOISE, SENT_NOISE = (
    (uploads, "release_round"),
    (local_training, "gaussian_noise"),
    (uploads, "gaussian_noise"),
)
REPLACED: list[tuple[str, str, tuple[Any, str], Callable, str]] = [
    ("divides by the real batch", "example", STEP, over_the_real_batch, "sensitivity"),
    ("skips empty batches", "example", STEP, without_empty_batches, "noise law"),
    ("one tensor without noise", "example", STEP, leaves_one_tensor_without_noise, "noise law"),
    ("noise shared by clients", "example", NOISE, shared_by_clients, "noise law"),
    ("noise shared by rounds", "example", NOISE, shared_by_rounds, "noise law"),
    ("noise shared by layers", "example", NOISE, shared_by_layers, "noise law"),
    ("noise over the root of the clients", "example", NOISE, over_the_root, "noise law"),
    ("uniform noise", "example", NOISE, uniform, "noise law"),
    ("ledger claims twice the noise", "example", LEDGER, more_noise_than_there_is, "noise law"),
    ("fixed batches", "example", BATCH, fixed_batches, "sampling law"),
    ("one draw for all clients", "example", BATCH, one_draw_for_all, "sampling law"),
    ("one draw for all steps", "example", BATCH, the_same_every_step, "sampling law"),
    ("a new ledger every round", "example", LEDGER, one_round_only, "ledger"),
    ("one release a round", "example", LEDGER, one_release_a_round, "ledger"),
    ("client: mean over those who came", "client", SENT, over_those_who_came, "sensitivity"),
    ("client: noise over the root", "client", SENT_NOISE, over_the_root, "noise law"),
    ("client: noise shared by rounds", "client", SENT_NOISE, shared_by_rounds, "noise law"),
    ("client: takes everyone", "client", DRAW, everyone_every_round, "sampling law"),
    ("client: a new ledger every round", "client", LEDGER, one_round_only, "ledger"),
]
PLANTED: list[tuple[str, str, Plant, str]] = [
    ("certifies shaped noise", "example", certifies_anything, "sensitivity"),
    ("smuggles", "example", lambda patch: smuggles(), "no clip norm, no trace"),
    *((bug, unit, replaced(*place, by), trial) for bug, unit, place, by, trial in REPLACED),
]
"""Name, unit, what to plant, and the trial that must fail."""

CLIPS: list[tuple[str, str, Callable]] = [
    ("clips at 2 C", "example", twice_too_far),
    ("lets infinities through", "example", lets_infinities_through),
    ("client: clips each tensor", "client", BUGS["clips each tensor"]),
    ("client: clips at 2 C", "client", twice_too_far),
]
"""Name, unit, and what clips; the sensitivity must fail. `BUGS` are tried in test_lesson_12.py."""
