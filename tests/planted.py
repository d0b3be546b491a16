"""Bugs planted where they would be made: a broken clip is given as ``bug``, other functions of the engine, the upload
and the loop are replaced.

Each is (name, unit, what to plant, the trial that is there for it). Nothing of the self-check itself is replaced.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import broken_rows
import pytest
import torch

import fedlora_lab as fl
from fedlora_lab import engine, local, loop, mechanism, upload
from fedlora_lab.edges import BUGS
from fedlora_lab.mechanism import clip_sum, noise, row_norms
from fedlora_lab.method import Method
from fedlora_lab.methods import DEeRLiteral, FedLoRA

Plant = Callable[[pytest.MonkeyPatch], Method]
"""Replaces something, and gives the row to check; a clip is not replaced but given, see `CLIPS`."""
true_whitenings = engine.whitenings
true_step, true_batch, true_spend = engine.local_step, engine.poisson_batch, loop.Federation._spend


def step(broken: Callable) -> Plant:
    """The local step replaced; the broken one may call the true one."""

    def around(*parts: Any) -> None:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(engine, "local_step", true_step)
            broken(*parts)

    def plant(patch: pytest.MonkeyPatch) -> Method:
        patch.setattr(engine, "local_step", around)
        return FedLoRA

    return plant


def noised(module: Any, broken: Callable) -> Plant:
    """The noise of local steps or of updates replaced."""

    def plant(patch: pytest.MonkeyPatch) -> Method:
        patch.setattr(module, "noise", broken)
        return FedLoRA

    return plant


def batches(broken: Callable) -> Plant:
    """The draw of batches replaced."""

    def plant(patch: pytest.MonkeyPatch) -> Method:
        patch.setattr(engine, "poisson_batch", broken)
        return FedLoRA

    return plant


def spent(broken: Callable) -> Plant:
    """What is written into the ledger replaced."""

    def plant(patch: pytest.MonkeyPatch) -> Method:
        patch.setattr(loop.Federation, "_spend", broken)
        return FedLoRA

    return plant


def twice_too_far(rows: Any, c: float, owner: Any, owners: int, *rest: Any) -> Any:
    """Clips to 2 C."""
    return clip_sum(rows, 2 * c, owner, owners)


def lets_infinities_through(rows: Any, c: float, owner: Any, owners: int, *rest: Any) -> Any:
    """Clips by the norm and does not look whether there is one."""
    scale = (c / row_norms(rows).clamp(min=1e-300)).clamp(max=1.0)
    scaled = {slot: x * scale.to(x).view(-1, *[1] * (x.dim() - 1)) for slot, x in rows.items()}
    sums = {slot: x.new_zeros(owners, *x.shape[1:]).index_add_(0, owner, x) for slot, x in scaled.items()}
    return sums, mechanism.Clipped(len(owner))


def over_the_real_batch(setting: Any, clients: Any, t: int, s: int) -> None:
    """Divides by the number of examples drawn instead of the expected one."""
    drawn = engine.poisson_batch(setting, t, s, clients.ids)
    before = dict(clients.bank)
    true_step(setting, clients, t, s)
    for slot, after in clients.bank.items():
        if after is not before[slot]:
            factor = torch.tensor([setting.task.sizes[k] * setting.sample_rate[k] / max(len(d), 1)
                                   for k, d in zip(clients.ids, drawn, strict=True)])  # fmt: skip
            clients.bank[slot] = before[slot] + factor.to(after).view(-1, 1, 1) * (after - before[slot]) \
                if after.dim() == 3 else after  # fmt: skip


def without_empty_batches(setting: Any, clients: Any, t: int, s: int) -> None:
    """Skips a client whose batch is empty, and its noise with it."""
    drawn = engine.poisson_batch(setting, t, s, clients.ids)
    before = dict(clients.bank)
    true_step(setting, clients, t, s)
    for slot, after in clients.bank.items():
        if after is not before[slot]:
            empty = torch.tensor([len(d) == 0 for d in drawn]).view(-1, *[1] * (after.dim() - 1))
            clients.bank[slot] = torch.where(empty, before[slot], after)


def fixed_batches(setting: Any, t: int, s: int, ids: tuple[int, ...]) -> list[torch.Tensor]:
    """Shuffles and takes the expected number."""
    found = []
    for k in ids:
        size, rate = setting.task.sizes[k], setting.sample_rate[k]
        order = torch.from_numpy(setting.streams.numpy("sampling", t, k, s).permutation(size))
        found.append(order[: max(1, round(size * rate))].sort().values)
    return found


def one_draw_for_all(setting: Any, t: int, s: int, ids: tuple[int, ...]) -> list[torch.Tensor]:
    """Every client draws with the first one's numbers."""
    return [index[index < setting.task.sizes[k]] for k in ids for index in true_batch(setting, t, s, ids[:1])]


def the_same_every_step(setting: Any, t: int, s: int, ids: tuple[int, ...]) -> list[torch.Tensor]:
    """The batch of a round is drawn once."""
    return true_batch(setting, t, 0, ids)


def shared_by_clients(shapes: Any, std: Any, streams: Any, where: Any) -> Any:
    """Every client's noise from the first one's stream."""
    return noise(shapes, std, streams, [where[0]] * len(where))


def shared_by_rounds(shapes: Any, std: Any, streams: Any, where: Any) -> Any:
    """One noise for all rounds and steps."""
    return noise(shapes, std, streams, [(0, k, 0) for _, k, _ in where])


def shared_by_layers(shapes: Any, std: Any, streams: Any, where: Any) -> Any:
    """Every layer's noise from the beginning of the same stream."""
    return {slot: noise({slot: shape}, std, streams, where)[slot] for slot, shape in shapes.items()}


def over_the_root(shapes: Any, std: Any, streams: Any, where: Any) -> Any:
    """Divides by the root of the number of clients as if only a sum were seen."""
    return noise(shapes, [level / 3**0.5 for level in std], streams, where)


def uniform(shapes: Any, std: Any, streams: Any, where: Any) -> Any:
    """Noise of the right standard deviation and the wrong law."""
    drawn = noise(shapes, [1.0] * len(std), streams, where)
    level = torch.tensor(std)
    return {slot: (torch.special.ndtr(x) - 0.5) * 12**0.5 * level.to(x).view(-1, *[1] * (x.dim() - 1))
            for slot, x in drawn.items()}  # fmt: skip


def one_round_only(self: Any, t: int, ids: Any) -> None:
    """A new ledger every round."""
    self.ledger = self.asked.privacy.ledger()
    true_spend(self, t, ids)


def one_release_a_round(self: Any, t: int, ids: Any) -> None:
    """Counts a round of several steps as one release."""
    self.ledger.record(t + 1, ids, 1, **self.asked.privacy.entry(ids))


def more_noise_than_there_is(self: Any, t: int, ids: Any) -> None:
    """Writes down twice the noise."""
    fields = self.asked.privacy.entry(ids)
    steps = self.setting.plan.local_steps if self.asked.privacy.unit == "example" else 1
    self.ledger.record(t + 1, ids, steps, **{**fields, "noise_multiplier": 2 * fields["noise_multiplier"]})


def certifies_anything(patch: pytest.MonkeyPatch) -> Method:
    """The ledger is not told that the noise passes another map than the clipped value, and the step does not ask."""
    patch.setattr(local, "uncertified", lambda whiten: None)
    patch.setattr(engine, "whitenings", lambda *parts: true_whitenings(*parts[:3]))
    return DEeRLiteral


def over_those_who_came(setting: Any, privacy: Any, *parts: Any) -> Any:
    """The mean over the uploads that arrived, a count that depends on who is there."""
    found = true_send(setting, privacy, *parts)
    came = len(parts[1])
    scale = len(setting.task.sizes) / max(came, 1)
    moved = {
        slot: found.sent.tensors[slot] + scale * (x - found.sent.tensors[slot]) for slot, x in found.uploads.items()
    }
    return replace(found, uploads=moved)


true_send = upload.send


def sends(broken: Callable) -> Plant:
    """The upload replaced."""

    def plant(patch: pytest.MonkeyPatch) -> Method:
        patch.setattr(upload, "send", broken)
        return FedLoRA

    return plant


def smuggled(patch: pytest.MonkeyPatch) -> Method:
    """A filter that tells what a penalty saw."""
    return broken_rows.smuggles()


def everyone_every_round(self: Any, t: int) -> tuple[int, ...]:
    """Takes all clients although the ledger counts on a draw."""
    return tuple(range(len(self.setting.task.sizes)))


def takes_everyone(patch: pytest.MonkeyPatch) -> Method:
    """Participation replaced."""
    patch.setattr(loop.Federation, "_participants", everyone_every_round)
    return FedLoRA


PLANTED: list[tuple[str, str, Plant, str]] = [
    ("clips nothing", "example", step(broken_rows.clips_nothing), "sensitivity"),
    ("divides by the real batch", "example", step(over_the_real_batch), "sensitivity"),
    ("certifies shaped noise", "example", certifies_anything, "sensitivity"),
    ("smuggles", "example", smuggled, "no clip norm, no trace"),
    ("skips empty batches", "example", step(without_empty_batches), "noise law"),
    ("one tensor without noise", "example", step(broken_rows.leaves_one_tensor_without_noise), "noise law"),
    ("noise shared by clients", "example", noised(engine, shared_by_clients), "noise law"),
    ("noise shared by rounds", "example", noised(engine, shared_by_rounds), "noise law"),
    ("noise shared by layers", "example", noised(engine, shared_by_layers), "noise law"),
    ("noise over the root of the clients", "example", noised(engine, over_the_root), "noise law"),
    ("uniform noise", "example", noised(engine, uniform), "noise law"),
    ("ledger claims twice the noise", "example", spent(more_noise_than_there_is), "noise law"),
    ("fixed batches", "example", batches(fixed_batches), "sampling law"),
    ("one draw for all clients", "example", batches(one_draw_for_all), "sampling law"),
    ("one draw for all steps", "example", batches(the_same_every_step), "sampling law"),
    ("a new ledger every round", "example", spent(one_round_only), "ledger"),
    ("one release a round", "example", spent(one_release_a_round), "ledger"),
    ("client: mean over those who came", "client", sends(over_those_who_came), "sensitivity"),
    ("client: noise over the root", "client", noised(upload, over_the_root), "noise law"),
    ("client: noise shared by rounds", "client", noised(upload, shared_by_rounds), "noise law"),
    ("client: takes everyone", "client", takes_everyone, "sampling law"),
    ("client: a new ledger every round", "client", spent(one_round_only), "ledger"),
]
"""Name, unit, plant, and the trial that must fail."""

CLIPS: list[tuple[str, str, Callable]] = [
    *((name, "example", bug) for name, bug in BUGS.items()),
    ("clips at 2 C", "example", twice_too_far),
    ("lets infinities through", "example", lets_infinities_through),
    ("client: clips each tensor", "client", BUGS["clips each tensor"]),
    ("client: clips at 2 C", "client", twice_too_far),
]
"""Name, unit, and what clips; the sensitivity must fail."""

PLAN = fl.Plan(rounds=3, local_steps=2, batch=4, lr=0.2, participation=0.7)
