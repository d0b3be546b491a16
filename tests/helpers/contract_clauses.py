"""The clauses of the contract on a single release: what it may reveal, what hides it, what is done
to it afterwards; and one on what the server may change.

They look at a release in the coordinates of its noise, where the mechanism is a plain Gaussian one.
A row whose noise does not cover its signal is certified by nobody; that its clip is as published:
test_methods_with_one_state_for_all_equal_their_loops.
"""

import math
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor
from toy_tasks import (
    LORA,
    PLAN,
    anywhere,
    movers,
    opened,
    plain_server,
    play,
    play_round,
    private,
    tokens,
    with_clients,
)

import fedlora_lab as fl
from fedlora_lab.federated import local_training
from fedlora_lab.federated.config import Config
from fedlora_lab.federated.local_training import ClientBatch, local_step
from fedlora_lab.federated.prepared import Prepared
from fedlora_lab.lora import adapters
from fedlora_lab.lora.source import require_source
from fedlora_lab.methods.directions import ALONG
from fedlora_lab.methods.filters import identity
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.preconditioners import Preconditioner
from fedlora_lab.methods.state import ParamKey, ServerState, TensorDict, Tensors
from fedlora_lab.privacy.ledger import PerClient
from fedlora_lab.privacy.privatizer import map_rank_axis, uncertified_reason
from fedlora_lab.tasks.task import Task

CLIP = 0.7


@cache
def adapted(task: Task) -> adapters.AdaptedModel:
    """Injection takes longer than a step; the small models are few."""
    return adapters.adapt(task, LORA)


def prepared(
    task: Task,
    row: Method,
    sigma: PerClient,
    seed: int = 0,
    clip: float = CLIP,
    batch: int | None = None,
) -> tuple[Prepared, ClientBatch]:
    """Clients all at the same random values, about to make a local step with lr = 1."""
    plan = fl.Plan(batch=batch, lr=1.0)
    privacy = private("example", sigma, clip).resolve(task, plan)
    # Without a look at the arguments and the model.
    ready = Prepared(Config(task, row, privacy, plan, LORA, seed), adapted(task), task.clients)
    start = {key: tensor[None] for key, tensor in anywhere(task, row).tensors.items()}
    return ready, ClientBatch(tuple(range(len(task.clients))), dict(start), start)


def released(ready: Prepared, clients: ClientBatch, t: int, s: int) -> TensorDict:
    """What each client releases in the step, key -> (clients, ...), a sum over its examples."""
    before = dict(clients.params)
    count = len(clients.ids)
    local_step(ready, clients, t, s)
    config = ready.config
    expected = torch.tensor([config.unit_counts[k] * config.sample_rates[k] for k in clients.ids])
    moves = {}
    for key, after in clients.params.items():
        if key.kind.trained:
            change = (before[key] - after).expand(count, *after.shape[1:])
            moves[key] = change * expected.view(-1, *[1] * (change.dim() - 1))
    return moves


def in_noise_units(key: ParamKey, rule: Preconditioner, tensor: Tensor) -> Tensor:
    """Maps a release to coordinates in which its noise is white.

    Args: key, rule, tensor: see `map_rank_axis`.
    """
    white = map_rank_axis(key, torch.linalg.pinv(rule.of_noise), tensor)
    if rule.complement is None:
        return white
    own = rule.complement.to(tensor)
    assert (own.mT @ white).norm() <= 1e-9 * white.norm(), "nothing is released in these directions"
    # In a basis of the other directions: there the noise is white.
    complete = torch.linalg.qr(own, mode="complete")[0]
    return complete[..., rule.complement.shape[-1] :].mT @ white


def in_units_of_noise(
    config: Config, change: Tensors, peers: Tensors, t: int, s: int | None = None
) -> TensorDict:
    """A released change seen where its noise is isotropic. What lies beside the directions of a row
    that has some stays under its own key, rounding apart.
    """
    basis = local_training.directions(config, peers, t, s, tuple(change))
    if basis is None:
        maps = local_training.preconditioners(config.method, tuple(change), peers)
        return {k: in_noise_units(k, maps[k], x) if k in maps else x for k, x in change.items()}
    white = basis.along(change)
    inside = basis.tensors(white)
    rest = {key: x - inside.get(key, torch.zeros_like(x)) for key, x in change.items()}
    return white | {key: torch.where(x.abs() < 1e-9, 0.0, x) for key, x in rest.items()}


def noised(row: Method, moving: set[ParamKey]) -> set[ParamKey]:
    """Where the noise of what moves is: in its directions, if it has some."""
    return moving if row.differences is None else {ALONG}


def _moved_by_at_most_c(sums: list[TensorDict], where: str) -> None:
    """Between the first sum and each other one; and by something."""
    shifts = []
    for one in sums[1:]:
        squares = [float((sums[0][key] - x).square().sum()) for key, x in one.items()]
        shifts.append(sum(squares) ** 0.5)
    assert max(shifts) <= CLIP * (1 + 1e-6), f"{where}: {shifts}"
    assert max(shifts) >= 0.1 * CLIP, f"{where}: nothing arrives at all"


def leaving_out_one_example(row: Method) -> None:
    """Without noise, any one example less, outliers included, moves the sum by at most C. Where the
    noise hides nothing of that size no epsilon is certified.
    """
    if uncertified_reason(row.precondition, row.clip_groups) is not None:
        return
    task = tokens("head")
    x = task.clients[0][0].clone()
    y = task.clients[0][1]
    # examples that try to be heard
    x[0], x[1], x[2], x[3] = x[0] * 1e30, x[1] * 1e8, math.nan, math.inf
    start = anywhere(task, row)
    # A clip knows no round and no step, only what moves.
    words = {frozenset(movers(row, t, s, start)): (t, s) for t, s in ((1, 0), (0, 1), (0, 0))}
    for t, s in words.values():
        sums = []
        for left_out in (None, *range(len(y))):
            stay = torch.tensor([i for i in range(len(y)) if i != left_out])
            ready, clients = prepared(with_clients(task, [(x[stay], y[stay])]), row, 0.0)
            change = released(ready, clients, t, s)
            sums.append(in_units_of_noise(ready.config, change, clients.start, t, s))
        _moved_by_at_most_c(sums, f"round {t}, step {s}")


def noise_draws(row: Method, t: int, s: int, sigma: float, draws: int) -> TensorDict:
    """A step's noise where it is isotropic, (draws, clients, numbers): with noise less without."""
    found: dict[ParamKey, list[Tensor]] = {}
    for seed in range(draws):
        pair = []
        for level in (sigma, 0.0):
            ready, clients = prepared(tokens("head"), row, level, seed, batch=2)
            change = released(ready, clients, t, s)
            pair.append(in_units_of_noise(ready.config, change, clients.start, t, s))
        for key, noisy in pair[0].items():
            found.setdefault(key, []).append((noisy - pair[1][key]).flatten(1))
    return {key: torch.stack(parts) for key, parts in found.items()}


def _deviates_by(expected: float, xi: Tensor, what: object) -> None:
    std = float(xi.square().mean().sqrt())
    error = 5 / math.sqrt(2 * xi.numel())
    assert abs(std / expected - 1) < error, f"{what}: {std:.3f} instead of {expected:.3f}"


def noise_is_sigma_c_on_what_moves(row: Method, draws: int = 12) -> None:
    """Each client's noise deviates by sigma C in every number that moves, and is nowhere else.

    Five standard errors, fixed seeds. No two clients, steps or layers share any of it.
    """
    row = row.replace(filter=identity)
    sigma = 1.7
    seen = {}
    for t, s in ((0, 0), (0, 1), (1, 0)):
        moving = noised(row, movers(row, t, s, anywhere(tokens("head"), row)))
        seen[t, s] = noise_draws(row, t, s, sigma, draws)
        for key, xi in seen[t, s].items():
            if key not in moving:
                assert not xi.any(), f"{key} does not move and is noised"
                continue
            _deviates_by(sigma * CLIP, xi, key)
            for k in range(1, xi.shape[1]):
                unrelated(xi[:, 0], xi[:, k], f"{key}, clients 0 and {k}")
        noises = [xi for xi in seen[t, s].values() if xi.any()]
        short = min(xi.shape[2] for xi in noises)
        for one, other in pairwise(noises):
            unrelated(one[..., :short], other[..., :short], "two tensors")
    for other in ((0, 1), (1, 0)):
        for key, xi in seen[0, 0].items():
            if xi.any() and seen[other][key].any():
                unrelated(xi, seen[other][key], f"{key}, steps (0, 0) and {other}")


def noise_of_the_update(row: Method, draws: int = 10) -> None:
    """In the client unit: the noise in the server's new state deviates by sigma C / K, on the mean
    over K clients. Seen as the difference to the same round without noise. Other trust models:
    test_exchange.py.
    """
    row = plain_server(row).replace(filter=identity)
    sigma = 1.3
    task = tokens("head")
    start = anywhere(task, row)
    expected = sigma * CLIP / len(task.clients)
    plan = fl.Plan(local_steps=2, batch=None, lr=0.1)
    peers = {
        key: row.broadcast(x)[None] if key.name in "AB" else x[None]
        for key, x in start.tensors.items()
    }
    for t in (0, 1):
        moved = movers(row, t, 0, start) | movers(row, t, 1, start)
        sent = noised(row, {key for key in moved if row.is_uploaded(key)})
        noises: dict[ParamKey, list[Tensor]] = {}

        def end(seed: int, level: float, t: int = t) -> tuple[Config, Tensors]:
            # Everybody takes part with all examples: a seed decides the noise, and directions.
            privacy = private("client", level, CLIP, trust="central")
            run = opened(task, row, privacy, plan, t, start, seed)
            play_round(run)
            return run.config, run.state.server.tensors

        silent = end(0, 0.0)
        for seed in range(draws):
            _, before = silent if row.differences is None else end(seed, 0.0)
            config, after = end(seed, sigma)
            noise = {k: (x - before[k])[None] for k, x in after.items() if k.kind.trained}
            for key, xi in in_units_of_noise(config, noise, peers, t).items():
                noises.setdefault(key, []).append(xi)
        for key, parts in noises.items():
            xi = torch.stack(parts)
            if key in sent:
                _deviates_by(expected, xi, key)
            else:
                assert not xi.any(), f"{key} is not sent and is noised"


def unrelated(left: Tensor, right: Tensor, what: str) -> None:
    """Assert that two samples are not correlated, within five standard errors."""
    found = float(torch.corrcoef(torch.stack([left.flatten(), right.flatten()]))[0, 1])
    assert abs(found) < 5 / math.sqrt(left.numel()), f"{what}: correlation {found:.3f}"


def smoothing_is_linear(row: Method) -> None:
    """Smoothing is linear, keeps the mean along a factor's long axis and never grows the norm."""
    random = torch.Generator().manual_seed(0)
    for size in (1, 3, 40):
        x, y = torch.randn(2, 3, 2, size, generator=random, dtype=torch.float64)
        smooth = row.filter(x, "A")
        torch.testing.assert_close(row.filter(x.mT, "B"), smooth.mT)
        both = row.filter(2 * x - 3 * y, "A")
        torch.testing.assert_close(both, 2 * smooth - 3 * row.filter(y, "A"))
        torch.testing.assert_close(smooth.mean(-1), x.mean(-1))
        assert smooth.norm() <= x.norm() * (1 + 1e-12)


def smoothing_comes_after_the_noise(row: Method) -> None:
    """A step's filter acts on the noised release of the step without it; never on a head."""
    for t, s in ((0, 0), (0, 1)):
        pair = []
        for smooth in (row.filter, identity):
            ready, clients = prepared(tokens("head"), row.replace(filter=smooth), 1.0)
            pair.append(released(ready, clients, t, s))
        expected = {k: row.filter(x, k.name) if k.name in "AB" else x for k, x in pair[1].items()}
        torch.testing.assert_close(pair[0], expected, rtol=1e-9, atol=1e-9)


def _sent_up(row: Method, t: int, steps: int, state: ServerState) -> set[ParamKey]:
    """What goes up in round t: what moves, read from the schedule, as far as the row shares it."""
    moved = set().union(*(movers(row, t, s, state) for s in range(steps)))
    shared = (*row.uploaded_factors, "head") if row.uploaded_factors else ()
    return {key for key in moved if row.uploaded_factors is None or key.name in shared}


def frozen_and_unsent_factors_never_change(row: Method, unit: str) -> None:
    """A factor that does not move, or is not sent, never changes on the server; unless the server's
    rule says that it writes it.
    """
    task = tokens("head")
    written = getattr(row.aggregate, "writes", ())
    plan = PLAN.replace(rounds=4)
    records = play(task, row, private(unit), plan)
    for t, (before, after) in enumerate(pairwise(records)):
        old, new = (require_source(record)[2] for record in (before, after))
        up = _sent_up(row, t, plan.local_steps, old)
        for key, tensor in old.tensors.items():
            same = torch.equal(tensor.nan_to_num(), new.tensors[key].nan_to_num())
            assert same == (key not in up) or key.name in written, f"{key} in round {t + 1}"
