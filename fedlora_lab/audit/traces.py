"""What an auditor sees of canaries: losses under released models, traces in releases."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fedlora_lab.audit.instruments import Recorder, encode_marks
from fedlora_lab.audit.planting import CANARY_LOSS_WEIGHT, Canaries
from fedlora_lab.federated import local_training
from fedlora_lab.federated.local_training import ClientBatch
from fedlora_lab.federated.records import Round, predict
from fedlora_lab.lora import per_example
from fedlora_lab.methods.filters import filter_factors
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.state import TensorDict
from fedlora_lab.privacy.privatizer import clip_sum, map_rank_axis, precondition_rows
from fedlora_lab.tasks.task import take

Indices = Int[Tensor, " n"]


def canary_losses(record: Round, canaries: Canaries) -> Float[Tensor, " m"]:
    """Computes each canary's loss under the released model.

    Args: record: of the round that released the model. canaries: all m.
    """
    x, plain = canaries.examples
    outputs = predict(canaries.task, record, x).cpu()
    return canaries.task.loss(outputs, encode_marks(plain)).detach().double()


def released_steps(run: Recorder, everyone: ClientBatch) -> tuple[TensorDict, TensorDict]:
    """The sum of noised gradients of each client over a round, and where it began.

    Args: run: that made the round. everyone: its clients at the end of the round.
    Returns: key -> (clients, ...), the sums in float64; and key -> (clients or 1, ...).
    """
    rate = {key: run.config.plan.rate(key.name) for key in everyone.params}
    # What clients keep for themselves began where it stood before the round.
    personal = {key: x[list(everyone.ids)] for key, x in run.personal.items()}
    start = {**everyone.start, **personal}
    # In units of the learning rate the steps add up to the sum of noised gradients.
    values = {
        key: (start[key].double() - x) / rate[key]
        for key, x in everyone.params.items()
        if rate[key]
    }
    return values, start


class Trace(NamedTuple):
    """The traces of n canaries in one round.

    Args:
        who, release: (n,), their numbers, and the row of the client whose release holds each.
        signal, seen: key -> (n, ...), in units of the noise: what each would add, clipped; and
            that release.
    """

    who: Indices
    signal: TensorDict
    seen: TensorDict
    release: Indices


def trace_round(run: Recorder, canaries: Canaries) -> Trace | None:
    """Returns the canaries' traces in the round just made; ``None`` if nothing was released."""
    everyone = run.everyone
    if everyone is None:
        return None
    values, start = released_steps(run, everyone)
    place = {k: row for row, k in enumerate(everyone.ids)}
    owners = canaries.owner.tolist()
    who = torch.tensor([i for i, k in enumerate(owners) if k in place], dtype=torch.int64)
    release = torch.tensor([place[owners[i]] for i in who.tolist()], dtype=torch.int64)
    if not len(who) or not values:
        return None
    seen = {key: x[release] for key, x in values.items()}
    # Of each canary's loud loss where the round began, whether it took part or not.
    x, y = canaries.examples
    loud = encode_marks(y[who], torch.full_like(who, CANARY_LOSS_WEIGHT))
    adapted = run.prepared.adapted
    signal = per_example.per_example_gradients(
        canaries.task,
        adapted,
        adapted.on_device(start),
        tuple(seen),
        (take(x, who), loud),
        release.to(adapted.device),
    )
    # What was released lies on the CPU.
    signal = {key: x.cpu() for key, x in signal.items()}
    clipped, white = clip_and_whiten(run.config.method, run.clip_norm, signal, seen, start, release)
    return Trace(who, clipped, white, release)


def clip_and_whiten(
    method: Method,
    clip_norm: float,
    signal: TensorDict,
    seen: TensorDict,
    values: TensorDict,
    owner: Indices,
) -> tuple[TensorDict, TensorDict]:
    """Clips a signal as the mechanism does, and brings both to where the noise is white.

    A row that is not finite is zero, as in the mechanism: nothing of it is in the release. What was
    seen is in double precision, in which no product with a clipped float32 row overflows.

    Args: method, clip_norm: of the audited run. signal, seen: see `Trace`. values: where training
        began. owner: of each row, whose values it has.
    """
    # The public metric of the clip, as the clients had it when the round began.
    maps = local_training.preconditioners(method, tuple(signal), values)
    before = precondition_rows(signal, maps, owner)
    # Each row is the whole of its own sum: the mechanism itself clips it, group by group; in
    # float64, where it takes no scale for zero.
    wide = {key: x.double() for key, x in before.items()}
    alone = torch.arange(len(owner))
    sums, _ = clip_sum(wide, clip_norm, alone, len(alone), method.clip_groups)
    clipped = {key: sums[key].to(x) for key, x in before.items()}
    white = dict(seen)
    for key in maps.keys() & clipped.keys():
        back = _of_owners(torch.linalg.pinv(maps[key].of_noise), owner)
        after = _of_owners(maps[key].after, owner)
        clipped[key] = map_rank_axis(key, back, map_rank_axis(key, after, clipped[key]))
        white[key] = map_rank_axis(key, back.to(seen[key]), seen[key])
    return clipped, white


def _of_owners(matrices: Tensor, owner: Indices) -> Tensor:
    """The matrix of each row's owner; one for all stays one."""
    return matrices if len(matrices) == 1 else matrices[owner]


def decorrelate(signal: TensorDict, release: Indices, clip_norm: float) -> TensorDict:
    """Finds directions (U U^T + C^2)^-1 U that answer to one canary and little to the others.

    Args:
        signal: key -> (n, ...), the clipped gradients U.
        release: (n,), the number of the release that holds each.
        clip_norm: C.
    """
    # Canaries of one class have much in common, which the plain product would count for all.
    flat = torch.cat([x.flatten(1) for x in signal.values()], 1).double()
    for number in release.unique():
        rows = release == number
        # Without it near copies would be told apart by their rounding.
        ridge = max(clip_norm, 1e-12) ** 2 * torch.eye(int(rows.sum()), dtype=flat.dtype)
        flat[rows] = torch.linalg.solve(flat[rows] @ flat[rows].T + ridge, flat[rows])
    split = flat.split([x[0].numel() for x in signal.values()], 1)
    return {
        key: part.view_as(x).to(x) for (key, x), part in zip(signal.items(), split, strict=True)
    }


def trace_scores(run: Recorder, trace: Trace) -> dict[str, Float[Tensor, " n"]]:
    """Scores each canary of a round by its direction's product with the release, side by side."""
    # The release was filtered after the noise: the canary is looked for in what that leaves.
    signal = filter_factors(run.config.method.filter, trace.signal)
    # Where nothing is clipped the ridge is that of a clip norm of 1.
    clip = run.clip_norm if run.clip_norm < math.inf else 1.0
    scores: dict[str, Tensor] = {}
    for key, rows in decorrelate(signal, trace.release, clip).items():
        score = (rows.double() * trace.seen[key]).flatten(1).sum(1)
        scores[key.name] = scores.get(key.name, 0) + score
    return scores
