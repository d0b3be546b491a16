"""A user's set-up cut down to a few examples and put at a random state, to be tried again and again."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fedlora_lab import engine, observe
from fedlora_lab.audit.marks import given, marked
from fedlora_lab.audit.watch import Watched
from fedlora_lab.mechanism import rank_map, uncertified
from fedlora_lab.method import Method, Slot
from fedlora_lab.plan import Lora, Plan
from fedlora_lab.privacy import Privacy
from fedlora_lab.record import Round
from fedlora_lab.rules import identity
from fedlora_lab.streams import Streams
from fedlora_lab.tasks.task import Task, take

CLIENTS, EXAMPLES, SPREAD = 3, 6, 0.1
Rows = dict[Slot, Tensor]


def small(task: Task) -> Task:
    """The first few clients with a few examples each, again and again the same where there are fewer."""

    def few(pair: Any, count: int) -> Any:
        index = torch.arange(count) % len(pair[1])
        return take(pair[0], index), pair[1][index]

    clients = [few(task.clients[k % len(task.clients)], EXAMPLES) for k in range(CLIENTS)]
    return replace(task, clients=tuple(clients), client_names=(), test=few(task.test, 4), validation=None)


@dataclass(frozen=True)
class Bench:
    """What all trials have in common: a run of the small task, its marks, and a random state of what is trained."""

    task: Task
    run: Watched
    seed: int

    @classmethod
    def of(
        cls,
        task: Task,
        row: Method,
        privacy: Privacy,
        plan: Plan,
        lora: Lora | None,
        seed: int,
        smooth: bool = False,
        spread: float = SPREAD,
        bug: "Callable[..., Any] | None" = None,
    ) -> "Bench":
        """Open the small run; every client takes part, learning rates are 1, filters are left out unless wanted.

        Args: spread: standard deviation of what is added to every trained tensor. bug: as of `self_check`.
        """
        task = small(task)
        row = row if smooth else row.replace(smooth=identity)
        privacy = privacy.replace(sample_rate=None, honest=None, colluding=0)
        if isinstance(privacy.noise_multiplier, tuple):
            sigmas = privacy.noise_multiplier
            privacy = privacy.replace(noise_multiplier=tuple(sigmas[k % len(sigmas)] for k in range(CLIENTS)))
        if lora is not None and getattr(lora, "ranks", None):
            lora = replace(lora, ranks=None)
        plan = plan.replace(batch=None, lr=1.0, lr_decay=1.0, momentum=0.0, participation=1.0, dropout=0.0,
                            weights="uniform", local_steps=min(plan.local_steps, 2))  # fmt: skip
        run = Watched.opened(marked(task, given(task)), row, privacy, plan, lora=lora, seed=seed, bug=bug)
        streams, server = Streams(seed), run.state.server
        values = {
            slot: server.tensors[slot] + (spread * streams.normal(shape, "bench", i)).to(server.tensors[slot])
            for i, (slot, shape) in enumerate(run.setting.adapted.shapes.items())
        }
        core = {slot: x + (spread * streams.normal(x.shape, "bench core", i)).to(x)
                for i, (slot, x) in enumerate(server.tensors.items()) if slot.side == "R"}  # fmt: skip
        run.state.server = server.with_({**values, **core})
        return cls(task, run, seed)

    def before(
        self,
        t: int,
        *,
        marks: "list[Tensor] | None" = None,
        task: Task | None = None,
        sigma: float | None = None,
        clip: float | None = None,
        draw: int = 0,
        batch: int | None = None,
        rounds: int = 1,
        absent: frozenset[int] = frozenset(),
    ) -> Watched:
        """The run before round t, other things being as said: all of them leave the bench as it is."""
        base, privacy = self.run, self.run.asked.privacy
        assert privacy is not None
        changes: dict[str, Any] = {} if sigma is None else {"noise_multiplier": sigma}
        changes |= {} if clip is None else {"clip_norm": clip}
        changes |= {"honest": 1} if absent and privacy.trust == "secagg" else {}
        privacy = replace(privacy, **{"sample_rate": None, **changes})
        there = self.task if task is None else task
        there = marked(there, given(there) if marks is None else marks)
        plan = base.setting.plan.replace(rounds=t + rounds, batch=batch)
        streams = Streams(self.seed * 1000 + draw)
        setting = replace(base.setting, task=there, plan=plan, data=there.clients, streams=streams)
        if privacy.unit == "example":
            level = setting.noise_multiplier if sigma is None else (sigma,) * CLIENTS
            setting = replace(setting, noise_multiplier=level, clip_norm=privacy.clip_norm)
        run = copy.copy(base)
        run.setting, run.resumed, run.absent = setting, True, absent
        run.asked = base.asked._replace(task=there, plan=plan, privacy=privacy.resolve(there, plan))
        run.state = replace(base.state, round=t, personal={}, seen=[-1] * CLIENTS, changed=[{}] * t)  # type: ignore[list-item]
        run.state.server = replace(base.state.server, **({"round": t} if hasattr(base.state.server, "round") else {}))
        run.ledger = privacy.ledger()
        run.ledger.uncertified = None if base.ledger is None else base.ledger.uncertified
        return run


def step(run: Watched, s: int = 0) -> tuple[Rows, Rows]:
    """What each client releases in step s, a sum over its examples: slot -> (clients, ...); and where it stood."""
    t, ids = run.state.round, tuple(range(CLIENTS))
    clients = run._clients(ids, observe.broadcast(run.setting, run.state.server))
    start = dict(clients.bank)
    engine.local_step(run.setting, clients, t, s)
    expected = torch.tensor([n * q for n, q in zip(run.setting.task.sizes, run.setting.sample_rate, strict=True)])
    found = {}
    for slot, after in clients.bank.items():
        if after is not start[slot]:
            change = (start[slot] - after).expand(CLIENTS, *after.shape[1:])
            found[slot] = change * expected.to(change).view(-1, *[1] * (change.dim() - 1))
    return found, start


def update(run: Watched) -> tuple[Rows, Rows]:
    """What the server has in hand after a round, a sum where it sees a sum: slot -> (rows, ...); and what was sent."""
    for event in run.events():
        if isinstance(event, Round):
            break
    assert run.outcome is not None
    received, sent = run.outcome.received, run.outcome.sent
    start = {slot: x[None] for slot, x in sent.tensors.items()}
    scale = 1 if received.alone else CLIENTS
    return {
        slot: scale * (rows - run.setting.method.clips(start[slot])) for slot, rows in received.uploads.items()
    }, start


def white(run: Watched, change: Rows, start: Rows, own: bool = False) -> Rows:
    """A release where its noise is white; ``own``: where its clip stands, which may be elsewhere."""
    maps = engine.whitenings(run.setting.method, tuple(change), start)
    chosen = {slot: rule.before if own else torch.linalg.pinv(rule.noise) for slot, rule in maps.items()}
    return {slot: rank_map(slot, chosen[slot], x) if slot in chosen else x for slot, x in change.items()}


def certified(run: Watched, change: Rows, start: Rows) -> Rows:
    """Where the clip must hold: in units of the noise, unless the ledger knows that the noise is shaped otherwise."""
    told = run.ledger is not None and run.ledger.uncertified is not None
    return white(run, change, start, own=told and uncertified(run.setting.method.whiten) is not None)


def flat(change: Rows) -> Tensor:
    """(rows, numbers) in double precision; NaN stays."""
    return (
        torch.cat([x.flatten(1) for x in change.values()], 1).double() if change else torch.zeros(CLIENTS, 0).double()
    )


def words(row: Method, steps: int) -> list[tuple[int, int]]:
    """One (round, step) for each thing that the schedule moves, in the first four rounds."""
    found: dict[str, tuple[int, int]] = {}
    for t in range(4):
        for s in range(min(steps, 2)):
            found.setdefault(row.moves(t, s), (t, s))
    return list(found.values())


def finite(value: float) -> float:
    """NaN counts as infinite."""
    return math.inf if math.isnan(value) else value
