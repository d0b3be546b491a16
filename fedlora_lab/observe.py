"""The record of a round: what may be seen of it, and by whom. Values that read private data are NaN in release mode."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from fedlora_lab import aggregate, engine, measures, passes
from fedlora_lab.aggregate import rule
from fedlora_lab.agreement import Agreement
from fedlora_lab.checkpoint import State
from fedlora_lab.compute.placing import matmuls
from fedlora_lab.ledger import Ledger
from fedlora_lab.mechanism import Clipped
from fedlora_lab.method import Global, Slot
from fedlora_lab.ranks import AXES
from fedlora_lab.record import Round
from fedlora_lab.tasks.task import Task
from fedlora_lab.upload import Received
from fedlora_lab.wire import Traffic, full

NOT_SEEN = float("nan")


@dataclass(frozen=True)
class Outcome:
    """What a round did.

    Args:
        before, sent: the server's tensors at its start, and what the clients received of them.
        received: what the server had in hand at its end.
        steps: what the clip of the local steps did.
        kept: something that moved stayed with its client.
        metrics: of the models that clients keep, judged by themselves; ``None``: judged here.
        shown: what the clips did and the noise that was drawn are known here, as in a run on one machine.
    """

    begun: float
    before: Global
    sent: Global
    received: Received
    steps: Clipped = field(default_factory=Clipped)
    traffic: Traffic = field(default_factory=Traffic)
    participants: int = 0
    kept: bool = False
    metrics: Mapping[str, float] | None = None
    shown: bool = True


def broadcast(setting: engine.Setting, server: Global) -> Global:
    """What the clients receive of the server's tensors; a head goes down as it is."""
    rule = setting.method.broadcast
    return server.with_({slot: rule(x) for slot, x in server.tensors.items() if slot.side in AXES})


def record(asked: Agreement, setting: engine.Setting, ledger: Ledger | None, state: State, outcome: Outcome) -> Round:
    """The record of a round that ended in ``state``."""
    after, task, privacy = state.server, asked.task, asked.privacy
    shown = outcome.shown and (privacy is None or asked.streams.seed is not None)
    rows, deviation = _layers(asked, outcome, after, shown)
    per_client = privacy is not None and privacy.unit == "client"
    own = outcome.received.clipped if per_client else outcome.steps
    counts = outcome.steps + outcome.received.clipped
    plain = after.factored()
    a, b = plain.side("A"), plain.side("B")
    counted = not amplified_by_secrecy(asked)
    return Round(
        index=state.round,
        method=asked.method.slug,
        task=task.name,
        seed=asked.streams.seed,
        metrics=outcome.metrics or _metrics(asked, setting, state, shown),
        deviation=deviation,
        adapter={layer: (a[layer], b[layer]) for layer in after.layers},
        head=after.side("head"),
        uploads=outcome.traffic if counted else Traffic(*[NOT_SEEN] * len(Traffic._fields)),
        participants=outcome.participants if counted else NOT_SEEN,
        clipped=float(own.scaled) / max(own.rows, 1) if shown else NOT_SEEN,
        nonfinite=float(counts.nonfinite) if shown else NOT_SEEN,
        seconds=time.perf_counter() - outcome.begun if counted else NOT_SEEN,
        ledger=None if ledger is None else ledger.snapshot(),
        rows=tuple(rows),
        source=(task, asked.lora, after),
    )


def amplified_by_secrecy(asked: Agreement) -> bool:
    """Whether an epsilon of this run counts on nobody knowing who took part: then no record says how many did.

    So it is in a release of the client unit under trust "central" whose clients take part by chance. Time tells of
    them, as bytes do. Under "local" and "secagg" no epsilon counts on it.

    Guarantees: tests/test_attack_evaluation.py::test_records_do_not_tell_who_took_part.
    """
    privacy = asked.privacy
    if privacy is None or privacy.unit == "example" or privacy.trust != "central":
        return False
    return asked.plan.participation < 1 and asked.streams.seed is None


def _layers(
    asked: Agreement, outcome: Outcome, after: Global, shown: bool
) -> tuple[list[tuple[str, str, float]], float]:
    """Measures of each layer and the deviation of all.

    No deviation where the server sees a sum, where no product is formed, or in a round in which nothing arrived.
    """
    got, before = outcome.received, outcome.before
    arrived = bool(got.uploads) or not after.round  # before training the mean is the server's product
    clients = _as_received(outcome) if got.alone and arrived and not outcome.kept else None
    mean = aggregate.mean(before, got.sent, got.uploads, got.weights) if got.uploads else before
    seen = measures.Exchange(before, mean, after, clients, got.weights, got.noise if shown else None)
    return measures.layer_rows(seen, asked.lora.scaling)


def _as_received(outcome: Outcome) -> Mapping[Slot, Tensor]:
    """The clients' factors in the server's coordinates: what a quantised broadcast took away is given back.

    The deviation then speaks of the aggregation alone; what quantising does is seen in the clients' metrics.
    """
    before, got = outcome.before, outcome.received
    found = {}
    for slot in (slot for slot in before.tensors if slot.side in AXES):
        rows = rule.held(before, got.sent, got.uploads, slot)
        found[slot] = rows + (before.tensors[slot] - outcome.sent.tensors[slot])
    return found


def _metrics(asked: Agreement, setting: engine.Setting, state: State, shown: bool) -> dict[str, float]:
    """The task's metrics on test examples, of the server's model or, where clients keep factors, of their own ones.

    NaN in a private run, with a seed or without, where the test examples are not public. What clients keep in the
    client unit carries no noise: metrics of it are NaN in release mode.

    Guarantees: tests/test_attack_evaluation.py::test_private_test_examples_are_never_judged_under_privacy.
    """
    task, server = setting.task, state.server.tensors
    private = asked.privacy is not None
    hidden = private and not task.public_test
    if not state.personal:
        found = _hidden(task) if hidden else _judged(setting, server)
        if setting.method.broadcast != full:
            copy = broadcast(setting, state.server).tensors
            received = _hidden(task) if hidden else _judged(setting, copy)
            found |= {f"{k}_received": v for k, v in received.items()}
        return found
    if hidden or (private and asked.privacy.unit == "client" and not shown):  # type: ignore[union-attr]
        return _hidden(task)
    each = [
        _judged(setting, {**server, **{s: own[k] for s, own in state.personal.items()}}) for k in range(len(task.sizes))
    ]
    return {name: sum(m[name] for m in each) / len(each) for name in task.metrics}


def _hidden(task: Task) -> dict[str, float]:
    return dict.fromkeys(task.metrics, NOT_SEEN)


def _judged(setting: engine.Setting, values: Mapping[Slot, Tensor]) -> dict[str, float]:
    task = setting.task
    with matmuls(setting.products):
        return passes.evaluate(task, setting.adapted, values, task.test, partial(setting.kept, "test"), setting.chunk)


def nothing(asked: Agreement, state: State, kept: bool) -> Outcome:
    """The outcome before the first round.

    Args: kept: what moves in the first round stays in part with its client. Then, and where the server sees a sum only,
        no deviation is measured here either: a 0 would be read as one that was.
    """
    alone = asked.privacy is None or asked.privacy.unit == "example" or asked.privacy.trust == "local"
    received = Received({}, torch.zeros(0), {}, state.server, alone)
    return Outcome(time.perf_counter(), state.server, state.server, received, kept=kept)
