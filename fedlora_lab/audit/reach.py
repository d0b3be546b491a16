"""How far one example, or one client, reaches: nothing without a clip norm, at most C with one."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from fedlora_lab import engine
from fedlora_lab.audit.bench import CLIENTS, EXAMPLES, Bench, certified, finite, flat, step, update, words
from fedlora_lab.audit.found import Found
from fedlora_lab.audit.marks import OUT, given
from fedlora_lab.record import Round
from fedlora_lab.tasks.task import Task

SHOUT, SLACK, DRAWS = 1_000_000, 1e-3, 4
ROUNDING = 1e-5
"""In units of C: another batch is multiplied in other blocks, and on some processors rounded otherwise (float32)."""


def disturbed(task: Task) -> Task:
    """Other data of the same sizes, some of it not a number."""

    def other(x: Tensor) -> Tensor:
        x = x.flip(0)
        if x.is_floating_point():
            x = 3 * x + 1
            x[0], x[1] = math.nan, math.inf
        return x

    clients = [
        ({k: other(v) for k, v in x.items()} if not isinstance(x, Tensor) else other(x), y.roll(1, 0))
        for x, y in task.clients
    ]
    return replace(task, clients=tuple(clients))


def invariance(bench: Bench) -> list[Found]:
    """With C = 0 nothing that is released depends on the data: two rounds on other data, bit for bit the same."""
    privacy = bench.run.asked.privacy
    found: list[list[Tensor]] = []
    finite_all = True  # what is not a number in both would look alike, whatever it was made of
    for task in (bench.task, disturbed(bench.task)):
        run, seen = bench.before(0, task=task, clip=0.0, rounds=2, batch=EXAMPLES // 2), []
        for event in run.events():
            if isinstance(event, Round) and run.outcome is not None and run.everyone is not None:
                sent = run.outcome.received.uploads.values()
                finite_all = finite_all and all(bool(x.isfinite().all()) for x in sent)
                seen += [*run.state.server.tensors.values(), *sent]
                seen += run.everyone.bank.values() if privacy is not None and privacy.unit == "example" else ()
        found.append(seen)
    alike = (
        torch.equal(one.isnan(), other.isnan()) and torch.equal(one.nan_to_num(), other.nan_to_num())
        for one, other in zip(*found, strict=True)
    )
    same = finite_all and len(found[0]) == len(found[1]) and all(alike)
    return [Found("no clip norm, no trace", "tensors that depend on the data", 0.0 if same else 1.0, 0.0)]


def outliers(task: Task) -> Task:
    """Floating inputs in which some examples try to be heard: huge, infinite, not a number."""
    x, y = task.clients[0]
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return task
    x = x.clone()
    x[1], x[2], x[3] = x[1] * 1e30, math.nan, math.inf
    return replace(task, clients=((x, y), *task.clients[1:]))


def sensitivity_of_steps(bench: Bench) -> list[Found]:
    """Leaving out one example moves one client's sum by at most C, and a sampled batch is the sum of its examples."""
    task, found = outliers(bench.task), []
    clip = bench.run.setting.clip_norm
    for t, s in words(bench.run.setting.method, bench.run.setting.plan.local_steps):
        loud = given(task)
        loud[0][0] = SHOUT

        def release(marks: list[Tensor], batch: int | None = None, draw: int = 0) -> Tensor:
            run = bench.before(t, task=task, marks=marks, sigma=0.0, batch=batch, draw=draw)  # noqa: B023
            return flat(certified(run, *step(run, s)))  # noqa: B023

        whole, parts = release(loud), []
        for i in range(EXAMPLES):
            marks = [mark.clone() for mark in loud]
            marks[0][i] = OUT
            parts.append(whole - release(marks))
        shifts = [finite(float(part[0].norm())) for part in parts]
        others = finite(float(torch.stack(parts)[:, 1:].abs().max()))
        where = f"round {t + 1}, step {s + 1}"
        found.append(Found("sensitivity", f"{where}: one example, in units of C", max(shifts) / clip, 1 + SLACK))
        found.append(Found("sensitivity", f"{where}: 0.1 / loudest example", 0.1 * clip / max(max(shifts), 1e-30), 1.0))
        found.append(
            Found("sensitivity", f"{where}: one client's example moves another client", others / clip, ROUNDING)
        )
        for draw in range(DRAWS):
            run = bench.before(t, task=task, marks=loud, sigma=0.0, batch=EXAMPLES // 2, draw=draw)
            drawn = engine.poisson_batch(run.setting, t, s, (0,))[0].tolist()
            sampled = release(loud, EXAMPLES // 2, draw)[0]
            gap = finite(float((sampled - sum((parts[i][0] for i in drawn), torch.zeros_like(sampled))).norm()))
            found.append(
                Found("sensitivity", f"{where}: batch less its examples, in units of C", gap / clip, SLACK * 6)
            )
    return found


def sensitivity_of_updates(bench: Bench) -> list[Found]:
    """Leaving out one client moves the sum of updates by at most C, and the sum is the sum of its clients."""
    privacy, found = bench.run.asked.privacy, []
    assert privacy is not None
    clip, task = privacy.clip_norm, outliers(bench.task)
    marks = given(task)
    marks[0][:], marks[1][:] = 10_000, 1_000
    for t in (0, 1):

        def release(absent: frozenset[int] = frozenset()) -> Tensor:
            run = bench.before(t, task=task, marks=marks, sigma=0.0, absent=absent)  # noqa: B023
            return flat(certified(run, *update(run)))

        whole = release()
        if not whole.numel():
            continue
        if privacy.trust == "local":
            shifts = whole.norm(dim=1)
        else:
            parts = torch.stack([whole[0] - release(frozenset({k}))[0] for k in range(CLIENTS)])
            shifts = parts.norm(dim=1)
            gap = finite(float((parts.sum(0) - whole[0]).norm()))
            found.append(
                Found("sensitivity", f"round {t + 1}: sum less its clients, in units of C", gap / clip, SLACK * 3)
            )
        largest = max(finite(float(x)) for x in shifts)
        found.append(Found("sensitivity", f"round {t + 1}: one client, in units of C", largest / clip, 1 + SLACK))
        found.append(
            Found("sensitivity", f"round {t + 1}: 0.1 / loudest client", 0.1 * clip / max(largest, 1e-30), 1.0)
        )
    return found
