"""How much a run looks as if a canary had taken part: its loss under the released model, its trace in the updates.

Black box: how far the loss of the canary fell. White box: inner products of the canary's own clipped gradient, less
what it shares with the other canaries, with what was released, in the coordinates in which the noise is the same in
every direction; one sum for each side (A, B, head), so that phases of a schedule that takes turns do not mix.
"""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fedlora_lab import engine, passes
from fedlora_lab.audit.canaries import LOUD, Planted
from fedlora_lab.audit.marks import coded
from fedlora_lab.audit.watch import Watched
from fedlora_lab.loop import predict
from fedlora_lab.mechanism import rank_map, row_norms
from fedlora_lab.method import Slot
from fedlora_lab.record import Round
from fedlora_lab.rules import identity

Rows = dict[Slot, Tensor]
Scores = dict[str, Float[Tensor, " m"]]


def losses(run: Watched, record: Round, planted: Planted) -> Float[Tensor, " m"]:
    """Plain loss of each canary under the released model; of the example unit also with what its client keeps."""
    x, y = planted.examples
    code, task = coded(y, torch.zeros(len(y), dtype=torch.int64)), planted.task
    privacy = run.asked.privacy
    personal = run.state.personal if privacy is None or privacy.unit == "example" else {}
    if not personal:
        return task.loss(predict(task, record, x), code).detach().double()
    found, server = torch.zeros(len(y), dtype=torch.float64), run.state.server.tensors
    for k in planted.owner.unique().tolist():
        mine = (planted.owner == k).nonzero().squeeze(1)
        values = {**server, **{slot: own[k] for slot, own in personal.items()}}
        part = {key: value[mine] for key, value in x.items()} if isinstance(x, Mapping) else x[mine]
        found[mine] = task.loss(passes.predict(task, run.setting.adapted, values, part), code[mine]).double()
    return found


def traces(run: Watched, planted: Planted) -> Scores:
    """Each canary's trace in what the last round released, by side; empty where nothing was released.

    Args: run: stands after a round.
    """
    if run.outcome is None or run.everyone is None:
        return {}
    privacy = run.asked.privacy
    found = _of_steps(run, planted) if privacy is None or privacy.unit == "example" else of_updates(run, planted)
    if found is None:
        return {}
    who, template, seen, release = found
    method = run.setting.method
    if method.smooth is not identity:
        template = {slot: x if slot.side == "head" else method.smooth(x, slot.side) for slot, x in template.items()}
    clip = 1.0 if privacy is None or math.isinf(privacy.clip_norm) else privacy.clip_norm
    template = apart(template, release, clip)
    scores: Scores = {}
    for slot, rows in template.items():
        trace = (rows.double() * seen[slot]).flatten(1).sum(1)
        scores.setdefault(slot.side, torch.zeros(len(planted.owner), dtype=torch.float64))[who] += trace
    return scores


def apart(template: Rows, release: Int[Tensor, " n"], clip_norm: float) -> Rows:
    """Directions that answer to one canary and little to the others in the same release: (U U^T + C^2)^-1 U.

    Args: template: slot -> (n, ...), the canaries' clipped gradients U; release: (n,), which release holds each.
    """
    flat = torch.cat([rows.flatten(1) for rows in template.values()], 1).double()
    for one in release.unique():
        mine = (release == one).nonzero().squeeze(1)
        gram = flat[mine] @ flat[mine].T + max(clip_norm, 1e-12) ** 2 * torch.eye(len(mine), dtype=flat.dtype)
        flat[mine] = torch.linalg.solve(gram, flat[mine])
    parts = flat.split([rows[0].numel() for rows in template.values()], 1)
    return {slot: part.view_as(rows).to(rows) for (slot, rows), part in zip(template.items(), parts, strict=True)}


def _of_steps(run: Watched, planted: Planted) -> tuple[Tensor, Rows, Rows, Tensor] | None:
    """The round's sum of noised gradients of each canary's client."""
    everyone, t = run.everyone, run.state.round - 1
    assert everyone is not None
    place = {k: i for i, k in enumerate(everyone.ids)}
    who = torch.tensor([i for i, k in enumerate(planted.owner.tolist()) if k in place], dtype=torch.int64)
    slots = tuple(slot for slot in everyone.bank if run.setting.plan.rate(slot.side, t))
    if not len(who) or not slots:
        return None
    ids = list(everyone.ids)
    bank = dict(everyone.start) | {slot: kept[ids] for slot, kept in run.kept.items()}
    owner = torch.tensor([place[k] for k in planted.owner[who].tolist()])
    rate = {slot: run.setting.plan.rate(slot.side, t) for slot in slots}
    seen = {slot: (bank[slot].double() - everyone.bank[slot])[owner] / rate[slot] for slot in slots}
    gradients = _gradients(run, planted, who, bank, slots, owner)
    return who, *_in_units_of_noise(run, gradients, seen, bank, owner), owner


def of_updates(run: Watched, planted: Planted) -> tuple[Tensor, Rows, Rows, Tensor] | None:
    """The round's noised update: of all together, or each canary's own where uploads are seen alone."""
    outcome, everyone, t = run.outcome, run.everyone, run.state.round - 1
    assert outcome is not None and everyone is not None
    uploads = outcome.received.uploads
    if not uploads:
        return None
    bank = {slot: tensor[None] for slot, tensor in outcome.sent.tensors.items()}
    who, row = torch.arange(len(planted.owner)), torch.zeros(len(planted.owner), dtype=torch.int64)
    if outcome.received.alone:
        arrived = run._arrived(t, everyone.ids).tolist()
        place = {everyone.ids[i]: r for r, i in enumerate(arrived)}
        who = torch.tensor([i for i, k in enumerate(planted.owner.tolist()) if k in place], dtype=torch.int64)
        row[who] = torch.tensor([place[k] for k in planted.owner[who].tolist()], dtype=torch.int64)
    if not len(who):
        return None
    owner = torch.zeros(len(who), dtype=torch.int64)
    clips = run.setting.method.clips
    seen = {slot: (upload.double() - clips(bank[slot]))[row[who]] for slot, upload in uploads.items()}
    if planted.directions is None:
        gradients = _gradients(run, planted, who, bank, tuple(uploads), owner)
        updates = {slot: -run.setting.plan.rate(slot.side, t) * x for slot, x in gradients.items()}
    else:
        updates = {slot: LOUD * planted.directions[slot][who] for slot in uploads}
    return who, *_in_units_of_noise(run, updates, seen, bank, owner), row[who]


def _gradients(
    run: Watched, planted: Planted, who: Tensor, bank: Mapping[Slot, Tensor], slots: tuple[Slot, ...], owner: Tensor
) -> Rows:
    """Gradient of each canary's loud loss where the round began, whether it took part or not."""
    x, y = planted.examples
    part = {key: value[who] for key, value in x.items()} if isinstance(x, Mapping) else x[who]
    data = (part, coded(y[who], planted.weights[who]))
    setting = run.setting
    return passes.per_example_gradients(
        planted.task, setting.adapted, bank, slots, data, owner, setting.method, run.everyone and run.everyone.start
    )


def _in_units_of_noise(
    run: Watched, signal: Rows, seen: Rows, bank: Mapping[Slot, Tensor], owner: Tensor
) -> tuple[Rows, Rows]:
    """Signal clipped as the mechanism clips, and what was seen, both where the noise is white.

    A row that is not finite is zero, as in the mechanism: nothing of it is in the release. What was seen is in double
    precision, in which no product with a clipped float32 row overflows.
    """
    maps = engine.whitenings(run.setting.method, tuple(signal), bank)

    def of(matrices: Tensor) -> Tensor:
        return matrices if len(matrices) == 1 else matrices[owner]

    clipped = {slot: rank_map(slot, of(maps[slot].before), x) if slot in maps else x for slot, x in signal.items()}
    norms = row_norms(clipped)
    privacy = run.asked.privacy
    finite, clip = torch.isfinite(norms), 1.0 if privacy is None else privacy.clip_norm
    scale = torch.where(finite & (norms > 0), clip / norms, 0.0).clamp(max=1.0)
    for slot, x in clipped.items():
        shape = (-1, *[1] * (x.dim() - 1))
        x = torch.where(finite.view(shape), x, torch.zeros_like(x)) * scale.to(x).view(shape)
        if slot in maps:
            back = of(torch.linalg.pinv(maps[slot].noise))
            x, seen[slot] = (
                rank_map(slot, back, rank_map(slot, of(maps[slot].after), x)),
                rank_map(slot, back.to(seen[slot]), seen[slot]),
            )
        clipped[slot] = x
    return clipped, seen
