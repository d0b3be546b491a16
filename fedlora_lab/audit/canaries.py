"""Canaries: examples, or clients with one example, of which a fair coin each decides whether they take part."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from fedlora_lab.audit.marks import GIVEN, OUT, joined, marked, some
from fedlora_lab.checks import check_whole
from fedlora_lab.method import Slot
from fedlora_lab.plan import Plan
from fedlora_lab.streams import Streams
from fedlora_lab.tasks.task import Examples, Task

LOUD = 10_000
SHARE = 0.2


@dataclass(frozen=True)
class Planted:
    """A task with its canaries inside.

    Args:
        task: targets carry marks (`marks`); canaries that lost their coin are marked out.
        examples: all m canaries (x, y), targets plain.
        owner: (m,), the client that holds each canary.
        included: (m,), the coins.
        weights: (m,), how loud each canary's loss is.
        directions: slot -> (m, ...), what canary clients send instead of what they trained; ``None``: nothing else.
    """

    task: Task
    examples: Examples
    owner: Int[Tensor, " m"]
    included: Bool[Tensor, " m"]
    weights: Int[Tensor, " m"]
    directions: dict[Slot, Tensor] | None = None


def affordable(task: Task, plan: Plan, unit: str) -> int:
    """A number of canaries that costs about a fifth of the run: in [16, 100].

    An example costs one more gradient a round, a client with a single example one more gradient a step.
    """
    batch = sum(n if plan.batch is None else min(plan.batch, n) for n in task.sizes)
    steps = plan.local_steps if unit == "example" else 1
    return min(100, max(16, int(SHARE * batch * steps)))


def mislabelled(task: Task, count: int, streams: Streams) -> Examples:
    """Public examples with wrong targets: other classes at random, or the answer to another example's question."""
    check_whole("canaries", count, 2)
    public = task.validation or task.test
    rng, size = streams.numpy("audit canaries"), len(public[1])
    order = [rng.permutation(size) for _ in range(-(-count // size))]
    x, y = some(public, torch.from_numpy(torch.cat([torch.from_numpy(part) for part in order]).numpy()[:count]))
    classes = int(task.test[1].max()) + 1 if not y.is_floating_point() else 0
    if y.dim() == 1 and classes > 1:
        return x, (y + torch.from_numpy(rng.integers(1, classes, count))) % classes
    return x, y.roll(1, 0)


def plant(task: Task, unit: str, examples: Examples, weights: Int[Tensor, " m"], streams: Streams) -> Planted:
    """Deal canaries to the clients in turn (example unit), or make each a client of its own (client unit).

    Guarantees: test_canaries_are_dealt_evenly, test_coins_are_fair_and_follow_the_seed.
    """
    count = len(examples[1])
    included = torch.from_numpy(streams.numpy("audit coins").random(count) < 0.5)
    marks = torch.where(included, weights, OUT)
    old, clients = len(task.clients), list(task.clients)
    plain = [torch.full((n,), GIVEN) for n in task.sizes]
    if unit == "client":
        owner = old + torch.arange(count)
        clients += [some(examples, torch.tensor([i])) for i in range(count)]
        plain += [marks[i : i + 1] for i in range(count)]
    else:
        owner = torch.arange(count) % old
        for k in range(old):
            mine = (owner == k).nonzero().squeeze(1)
            clients[k] = joined(clients[k], some(examples, mine))
            plain[k] = torch.cat([plain[k], marks[mine]])
    names = (*task.client_names, *(f"canary {i}" for i in range(len(clients) - old)))
    info: Any = {**task.info, "canaries": count}
    full = replace(task, clients=tuple(clients), client_names=names, info=info)
    return Planted(marked(full, plain), examples, owner, included, weights)
