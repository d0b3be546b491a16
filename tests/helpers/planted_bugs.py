"""Bugs planted in the engine, where they would be made, by replacing one of its functions.

Each is a function in the place of the true one; a broken clip is given as ``bug`` instead.
"""

import math
from dataclasses import replace

import torch
from broken_rows import leaves_one_tensor_without_noise

from fedlora_lab.federated import local_training
from fedlora_lab.federated.run import Run
from fedlora_lab.privacy import privatizer
from fedlora_lab.privacy.privatizer import clip_sum, gaussian_noise, row_norms

true_step, true_batch = local_training.local_step, local_training.poisson_batch
true_charge = Run.charge_ledger

# ---- clips


def twice_too_far(rows, clip, owner, owners, *rest):
    return clip_sum(rows, 2 * clip, owner, owners, *rest)


def lets_infinities_through(rows, clip, owner, owners, *rest):
    sums, counts = clip_sum(rows, clip, owner, owners, *rest)
    lost = (~row_norms(rows).isfinite()).any()
    return {key: torch.where(lost, math.inf, x) for key, x in sums.items()}, counts


# ---- steps and batches


def without_empty_batches(prepared, clients, t, s):
    """Leaves a client where it is, without its noise, when its batch is empty."""
    drawn = true_batch(prepared, t, s, clients.ids)
    before = dict(clients.params)
    true_step(prepared, clients, t, s)
    some = torch.tensor([float(len(index) > 0) for index in drawn])
    for key, after in clients.params.items():
        if after is not before[key]:
            moved = some.to(after).view(-1, *[1] * (after.dim() - 1))
            clients.params[key] = before[key] + moved * (after - before[key])


def fixed_batches(prepared, t, s, ids):
    drawn = true_batch(prepared, t, s, ids)
    # As many as are expected, from a place that is drawn.
    sizes = [round(prepared.config.task.sizes[k] * prepared.config.sample_rates[k]) for k in ids]
    return [torch.arange(size) + len(batch) for size, batch in zip(sizes, drawn)]


def one_draw_for_all(prepared, t, s, ids):
    return true_batch(prepared, t, s, ids[:1]) * len(ids)


def the_same_every_step(prepared, t, s, ids):
    return true_batch(prepared, t, 0, ids)


# ---- noise


def shared_by_clients(shapes, std, streams, where, like=None):
    return gaussian_noise(shapes, std, streams, [where[0]] * len(where), like)


def shared_by_rounds(shapes, std, streams, where, like=None):
    return gaussian_noise(shapes, std, streams, [(0, *place[1:]) for place in where], like)


def shared_by_layers(shapes, std, streams, where, like=None):
    each = ({key: shape} for key, shape in shapes.items())
    return {k: x for one in each for k, x in gaussian_noise(one, std, streams, where, like).items()}


def over_the_root(shapes, std, streams, where, like=None):
    return gaussian_noise(shapes, [level / 3**0.5 for level in std], streams, where, like)


# ---- ledger and participation


def one_round_only(self, t, ids):
    """A new ledger every round."""
    self.ledger = self.config.privacy.ledger()
    true_charge(self, t, ids)


def more_noise_than_there_is(self, t, ids):
    """Writes down twice the noise."""
    entry = self.config.charge.at(t + 1, ids)
    self.ledger.append(replace(entry, noise_multiplier=2 * entry.noise_multiplier))


def everyone_every_round(self, t):
    """Takes all clients although the ledger counts on a draw."""
    return tuple(range(len(self.prepared.config.task.sizes)))


LEDGER = Run, "charge_ledger"
DRAW = Run, "participants"
STEP = local_training, "local_step"
BATCH = local_training, "poisson_batch"
NOISE = privatizer, "gaussian_noise"

PLANTED = {
    "skips empty batches": ("example", STEP, without_empty_batches, "empty batch"),
    "one tensor bare": ("example", STEP, leaves_one_tensor_without_noise, "un-noised output"),
    "noise shared by clients": ("example", NOISE, shared_by_clients, "noise independence"),
    "noise shared by rounds": ("example", NOISE, shared_by_rounds, "noise independence"),
    "noise shared by layers": ("example", NOISE, shared_by_layers, "noise independence"),
    "noise over the root": ("example", NOISE, over_the_root, "noise size"),
    "twice the noise claimed": ("example", LEDGER, more_noise_than_there_is, "noise size"),
    "fixed batches": ("example", BATCH, fixed_batches, "sampling"),
    "one draw for all clients": ("example", BATCH, one_draw_for_all, "sampling"),
    "one draw for all steps": ("example", BATCH, the_same_every_step, "sampling"),
    "a new ledger every round": ("example", LEDGER, one_round_only, "accounting"),
    "client: takes everyone": ("client", DRAW, everyone_every_round, "sampling"),
}
"""Name -> unit, what is replaced, by what, and the check that must call it broken."""
