"""The clauses of the contract on a single release: what it may reveal, what hides it, what is done to it afterwards.

They look at a release in the coordinates of its noise, where the mechanism is a plain Gaussian one. A row whose noise
does not cover its signal is certified by nobody; its clip is looked at where the row says it stands.
"""

import math
from collections.abc import Callable, Mapping
from functools import cache
from itertools import pairwise

import torch
from contract import with_clients
from small import LORA, anywhere, movers, one_round, opened, plain_server, private, regression, tokens
from torch import Tensor, nn

import fedlora_lab as fl
from fedlora_lab import adapters, engine, upload
from fedlora_lab.mechanism import rank_map, uncertified
from fedlora_lab.method import TRAINED, Method, Slot
from fedlora_lab.rules import identity
from fedlora_lab.streams import Streams
from fedlora_lab.tasks import Task


@cache
def adapted(model: nn.Module, targets: tuple[str, ...], head: str | None) -> adapters.Adapted:
    """Injection takes longer than a step; the small models are few."""
    return adapters.adapt(model, targets, head, LORA)


Step = Callable[[engine.Setting, engine.Clients, int, int], None]
CLIP = 0.7


def prepared(
    task: Task, row: Method, sigma: float, seed: int = 0, clip: float = CLIP, batch: int | None = None
) -> tuple[engine.Setting, engine.Clients]:
    """A federation at random values, every client at the same ones, about to make a local step with lr = 1."""
    model = adapted(task.model, task.targets, task.head)
    count, plan = len(task.clients), fl.Plan(batch=batch, lr=1.0)
    setting = engine.Setting(
        task, model, row, plan, Streams(seed), clip, (sigma,) * count, task.clients, uncertified=uncertified(row.whiten)
    )
    start = {slot: tensor[None] for slot, tensor in anywhere(task, row).tensors.items()}
    return setting, engine.Clients(tuple(range(count)), dict(start), start)


def released(setting: engine.Setting, clients: engine.Clients, t: int, s: int, step: Step) -> dict[Slot, Tensor]:
    """Make the step; gives what each client released, slot -> (clients, ...), a sum over its examples."""
    before, count = dict(clients.bank), len(clients.ids)
    step(setting, clients, t, s)
    expected = torch.tensor([setting.task.sizes[k] * setting.sample_rate[k] for k in clients.ids])
    moves = {}
    for slot, after in clients.bank.items():
        if slot.side not in TRAINED:
            continue
        change = (before[slot] - after).expand(count, *after.shape[1:])
        moves[slot] = change * expected.view(-1, *[1] * (change.dim() - 1))
    return moves


def in_units_of_noise(row: Method, change: Mapping[Slot, Tensor], peers: Mapping[Slot, Tensor]) -> dict[Slot, Tensor]:
    """A released change seen where its noise is isotropic."""
    maps = engine.whitenings(row, tuple(change), peers)
    return {
        slot: rank_map(slot, torch.linalg.pinv(maps[slot].noise), x) if slot in maps else x
        for slot, x in change.items()
    }


def in_units_of_clip(row: Method, change: Mapping[Slot, Tensor], peers: Mapping[Slot, Tensor]) -> dict[Slot, Tensor]:
    """A released change where its clip has to hold: there too, unless nobody certifies the row."""
    if uncertified(row.whiten) is None:
        return in_units_of_noise(row, change, peers)
    maps = engine.whitenings(row, tuple(change), peers)
    return {slot: rank_map(slot, maps[slot].before, x) if slot in maps else x for slot, x in change.items()}


def norm(change: Mapping[Slot, Tensor]) -> float:
    """Euclidean norm of all tensors together."""
    return math.sqrt(sum(float(x.square().sum()) for x in change.values()))


def outliers(task: Task) -> Task:
    """The first client's data with examples that try to be heard: huge, infinite, not a number."""
    x, y = task.clients[0]
    x = x.clone()
    x[0], x[1], x[2], x[3] = x[0] * 1e30, x[1] * 1e8, math.nan, math.inf
    return with_clients(task, [(x, y)])


def leaving_out_one_example(row: Method, step: Step = engine.local_step) -> None:
    """Without noise, leaving out any one example, outliers included, moves the clipped sum by at most C."""
    for task in (outliers(regression()), outliers(tokens("head"))):
        x, y = task.clients[0]
        for t, s in ((0, 0), (0, 1), (1, 0)):
            sums = []
            for left_out in (None, *range(len(y))):
                stay = torch.tensor([i for i in range(len(y)) if i != left_out])
                setting, clients = prepared(with_clients(task, [(x[stay], y[stay])]), row, 0.0)
                change = released(setting, clients, t, s, step)
                sums.append(in_units_of_clip(row, change, clients.start))
            shifts = [norm({slot: sums[0][slot] - one[slot] for slot in one}) for one in sums[1:]]
            assert max(shifts) <= CLIP * (1 + 1e-6), f"round {t}, step {s}: {shifts}"
            assert max(shifts) >= 0.1 * CLIP, f"round {t}, step {s}: nothing arrives at all"


def leaving_out_one_client(row: Method) -> None:
    """In the client unit: leaving out any one client, however it misbehaves, moves the sum of updates by at most C."""
    full, row = tokens("head"), plain_server(row)
    wild = [
        full.clients[0],
        (full.clients[1][0] * 1e6, full.clients[1][1]),
        (full.clients[2][0] * math.nan, full.clients[2][1]),
    ]
    for t in (0, 1):
        sums = []
        for left_out in (None, 0, 1, 2):
            task = with_clients(full, [pair for k, pair in enumerate(wild) if k != left_out])
            start, count = anywhere(task, row), len(task.clients)
            plan = fl.Plan(local_steps=2, batch=None, lr=5.0)
            run = opened(task, row, private("client", sigma=0.0, clip=CLIP), plan, t, start)
            one_round(run)
            held = {slot: x for slot, x in start.tensors.items() if slot.side in TRAINED}
            moved = {slot: run.state.server.tensors[slot] for slot in held}
            moving = {slot for slot in held if not torch.equal(moved[slot], held[slot])}
            change = {slot: (moved[slot] - row.clips(held[slot]))[None] * count for slot in moving}
            sums.append(in_units_of_clip(row, change, {slot: x[None] for slot, x in held.items()}))
        shifts = [norm({slot: sums[0][slot] - one[slot] for slot in one}) for one in sums[1:]]
        assert max(shifts) <= CLIP * (1 + 1e-6), f"round {t}: {shifts}"
        assert max(shifts) >= 0.1 * CLIP or row.share == "", f"round {t}: nothing arrives at all"


def noise_draws(row: Method, step: Step, t: int, s: int, sigma: float, draws: int) -> dict[Slot, Tensor]:
    """The noise of a step in its own coordinates, slot -> (draws, clients, numbers): with noise minus without."""
    found: dict[Slot, list[Tensor]] = {}
    for seed in range(draws):
        pair = []
        for level in (sigma, 0.0):
            setting, clients = prepared(tokens("head"), row, level, seed, batch=2)
            pair.append(in_units_of_noise(row, released(setting, clients, t, s, step), clients.start))
        for slot, noisy in pair[0].items():
            found.setdefault(slot, []).append((noisy - pair[1][slot]).flatten(1))
    return {slot: torch.stack(parts) for slot, parts in found.items()}


def noise_is_sigma_c_on_what_moves(row: Method, step: Step = engine.local_step, draws: int = 12) -> None:
    """Each client's noise has standard deviation sigma C in every number that moves, and is nowhere else.

    Five standard errors, fixed seeds. No two clients, steps or layers share any of it.
    """
    row, sigma = row.replace(smooth=identity), 1.7
    seen = {}
    for t, s in ((0, 0), (0, 1), (1, 0)):
        moving = movers(row, t, s, anywhere(tokens("head"), row))
        seen[t, s] = noise_draws(row, step, t, s, sigma, draws)
        for slot, xi in seen[t, s].items():
            if slot not in moving:
                assert not xi.any(), f"{slot} does not move and is noised"
                continue
            std = float(xi.square().mean().sqrt())
            error = 5 / math.sqrt(2 * xi.numel())
            assert abs(std / (sigma * CLIP) - 1) < error, f"{slot}: {std:.3f} instead of {sigma * CLIP:.3f}"
            for k in range(1, xi.shape[1]):
                unrelated(xi[:, 0], xi[:, k], f"{slot}, clients 0 and {k}")
        noises = [xi for slot, xi in seen[t, s].items() if xi.any()]
        short = min(xi.shape[2] for xi in noises)
        for one, other in pairwise(noises):
            unrelated(one[..., :short], other[..., :short], "two tensors")
    for one, other in (((0, 0), (0, 1)), ((0, 0), (1, 0))):
        for slot, xi in seen[one].items():
            if xi.any() and seen[other][slot].any():
                unrelated(xi, seen[other][slot], f"{slot}, steps {one} and {other}")


def noise_of_the_update(row: Method, trust: str = "central", draws: int = 40) -> None:
    """In the client unit: the noise in the server's new state has the standard deviation of its trust model.

    On the mean over K clients: sigma C / K where only a sum is seen, sigma C / sqrt(K) where each upload stands alone.
    """
    row, sigma, task = plain_server(row).replace(smooth=identity), 1.3, tokens("head")
    ids, model = tuple(range(len(task.clients))), adapted(task.model, task.targets, task.head)
    start, end = anywhere(task, row), anywhere(task, row, seed=1)
    sent, plan = (
        start.with_({slot: row.broadcast(x) for slot, x in start.tensors.items() if slot.side in "AB"}),
        fl.Plan(),
    )
    bank = {slot: torch.stack([x + 0.1 * k * end.tensors[slot] for k in ids]) for slot, x in sent.tensors.items()}
    clients = engine.Clients(ids, bank, {slot: x[None] for slot, x in sent.tensors.items()})
    expected = sigma * CLIP / len(ids) ** (0.5 if trust == "local" else 1)
    for t in (0, 1):
        slots, found = engine.sent_slots(start.tensors, row, t, 2), []
        for seed in range(draws if slots else 0):
            states = []
            for level in (sigma, 0.0):
                privacy = private("client", sigma=level, clip=CLIP, trust=trust)
                setting = engine.Setting(
                    task, model, row, plan, Streams(seed), math.inf, (0.0,) * len(ids), task.clients,
                    uncertified=uncertified(row.whiten),
                )  # fmt: skip
                received = upload.send(setting, privacy, clients, torch.arange(len(ids)), slots, sent, t)
                states.append(row.aggregate(start, sent, received.uploads, received.weights).tensors)
            held = [slot for slot in start.tensors if slot.side in TRAINED]
            change = {slot: (states[0][slot] - states[1][slot])[None] for slot in held}
            found.append(in_units_of_noise(row, change, clients.start))
        for slot in found[0] if found else ():
            xi = at_home_cut(row, slot, torch.stack([change[slot] for change in found]))
            if slot not in slots:
                assert not xi.any(), f"{slot} is not sent and is noised"
                continue
            std, error = float(xi.square().mean().sqrt()), 5 / math.sqrt(2 * xi.numel())
            assert abs(std / expected - 1) < error, f"{slot}: {std:.3f} instead of {expected:.3f}"


def at_home_cut(row: Method, slot: Slot, xi: Tensor) -> Tensor:
    """The noise in the ranks that are sent, after a look that there is none in the others."""
    axis = {"A": -2, "B": -1}.get(slot.side)
    if not row.own_ranks or axis is None:
        return xi
    sent = math.ceil((1 - row.own_ranks) * LORA.rank)
    assert not xi.narrow(axis, sent, LORA.rank - sent).any(), f"{slot}: ranks that stay at home are noised"
    return xi.narrow(axis, 0, sent)


def unrelated(left: Tensor, right: Tensor, what: str) -> None:
    """Assert that two samples are not correlated, within five standard errors."""
    found = float(torch.corrcoef(torch.stack([left.flatten(), right.flatten()]))[0, 1])
    assert abs(found) < 5 / math.sqrt(left.numel()), f"{what}: correlation {found:.3f}"


def smoothing_is_linear(row: Method) -> None:
    """Smoothing is linear, keeps the mean along a factor's long axis and never grows the norm, whatever the shape."""
    random = torch.Generator().manual_seed(0)
    for side, axis, shapes in (("A", -1, ((2, 1), (2, 3), (3, 2, 40))), ("B", -2, ((1, 2), (3, 2), (3, 40, 2)))):
        for shape in shapes:
            x, y = (torch.randn(*shape, generator=random, dtype=torch.float64) for _ in range(2))
            smooth = row.smooth(x, side)
            assert smooth.shape == x.shape
            torch.testing.assert_close(row.smooth(2 * x - 3 * y, side), 2 * smooth - 3 * row.smooth(y, side))
            torch.testing.assert_close(smooth.mean(axis), x.mean(axis))
            assert smooth.norm() <= x.norm() * (1 + 1e-12)


def smoothing_comes_after_the_noise(row: Method, step: Step = engine.local_step) -> None:
    """A step with the filter is the filter on the noised release of the step without it; a head is never filtered."""
    for t, s in ((0, 0), (0, 1)):
        pair = []
        for smooth in (row.smooth, identity):
            setting, clients = prepared(tokens("head"), row.replace(smooth=smooth), 1.0)
            pair.append(released(setting, clients, t, s, step))
        for slot, plain in pair[1].items():
            expected = plain if slot.side == "head" else row.smooth(plain, slot.side)
            torch.testing.assert_close(pair[0][slot], expected, rtol=1e-9, atol=1e-9)
