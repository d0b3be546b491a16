"""The one federated loop: an iterator of rounds. Stopping is ``break``; progress, widgets and Flower consume it."""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fedlora_lab import adapters, checkpoint, engine, measures, methods, upload
from fedlora_lab.checkpoint import State
from fedlora_lab.checks import check, check_whole
from fedlora_lab.ledger import Ledger
from fedlora_lab.mechanism import Clipped, uncertified
from fedlora_lab.method import Global, Method, Slot
from fedlora_lab.plan import Lora, Plan
from fedlora_lab.privacy import Privacy
from fedlora_lab.record import Round, Tick

from fedlora_lab.streams import Streams
from fedlora_lab.tasks.task import Task
from fedlora_lab.wire import Traffic, bytes_of, full

NOT_SEEN = float("nan")


def run(task: Task, method: "Method | str", privacy: Privacy | None, plan: Plan, **options: Any) -> Iterator[Round]:
    """Train federated low-rank adapters; yields a `Round` before training (index 0) and after every round.

    Args:
        task: model, clients' data and metric.
        method: a row of the table, or its slug.
        privacy: a plan with its noise set (see `Privacy.calibrate`); ``None`` trains without privacy.
        plan: rounds, local steps, batch, learning rates.
        lora: rank and alpha; default ``Lora()``.
        seed: every random number of the run follows from it, and the ledger says "not for release"; ``None`` takes the
            operating system's entropy and the ledger says "release".
        checkpoint: folder for the state after every round, and for the ledger, which is written before each round.
        resume: folder of checkpoints to go on from; the rounds that follow have the bits they would have had.
        chunk_examples, chunk_clients: at most so many examples (clients) in memory at once; results differ by rounding.

    Raises: ``ValueError`` (name, value, range) at the call, before anything is trained.

    Guarantees: every release stands in the ledger before its value is used; method hooks see noised values only;
        resume equals uninterrupted (tests/test_contract.py).
    """
    return (event for event in ticks(task, method, privacy, plan, **options) if isinstance(event, Round))


def ticks(
    task: Task, method: "Method | str", privacy: Privacy | None, plan: Plan, **options: Any
) -> "Iterator[Round | Tick]":
    """As `run`, with a `Tick` after every local step: a consumer may pause or stop between any two of them."""
    return Federation.open(task, method, privacy, plan, **options).events()


def predict(task: Task, record: Round, x: "Tensor | Mapping[str, Tensor]") -> Float[Tensor, "n ..."]:
    """Outputs of the model with a record's global adapter (and head)."""
    check(record.source is not None, "record", "a copy without its task", "a record as run() yields it")
    _, lora, state = record.source  # type: ignore[misc]
    adapted = adapters.adapt(task.model, task.targets, task.head, lora)
    return engine.predict(task, adapted, state.tensors, x)


@dataclass
class Federation:
    """One run: what is fixed, and the state that a round moves on."""

    setting: engine.Setting
    privacy: Privacy | None
    lora: Lora
    ledger: Ledger | None
    state: State
    folder: Path | None
    chunk_clients: int | None

    @classmethod
    def open(
        cls,
        task: Task,
        method: "Method | str",
        privacy: Privacy | None,
        plan: Plan,
        *,
        lora: Lora | None = None,
        seed: int | None = 0,
        checkpoint: "str | Path | None" = None,
        resume: "str | Path | None" = None,
        chunk_examples: int | None = None,
        chunk_clients: int | None = None,
    ) -> "Federation":
        """Validate everything and prepare the run; nothing is trained yet."""
        for name, value, kind in (("task", task, Task), ("privacy", privacy, Privacy | None), ("plan", plan, Plan)):
            check(isinstance(value, kind), name, value, f"a {name.capitalize()}")
        check(isinstance(lora, Lora | None), "lora", lora, "a Lora")
        for name, value in (("chunk_examples", chunk_examples), ("chunk_clients", chunk_clients)):
            if value is not None:
                check_whole(name, value, 1)
        method, lora, streams = methods.get(method), lora or Lora(), Streams(seed)
        if privacy is not None:
            privacy = privacy.resolve(task, plan)
            ok = privacy.unit == "example" or plan.weights == "uniform"
            check(ok, "weights", plan.weights, "'uniform' in the client unit: sizes would set the sensitivity")
        adapted = adapters.adapt(task.model, task.targets, task.head, lora)
        engine.check_separable(task, adapted)
        clip, sigma = upload.step_privacy(privacy, len(task.sizes))
        setting = engine.Setting(task, adapted, method, plan, streams, clip, sigma, *engine.pool(task), chunk_examples)
        state = State(0, Global(adapters.start(adapted, streams)), {}, [-1] * len(task.sizes))
        ledger = None if privacy is None else privacy.ledger(reproducible=seed is not None)
        if ledger is not None:
            ledger.uncertified = uncertified(method.whiten)
        folder = Path(checkpoint or resume) if checkpoint or resume else None  # type: ignore[arg-type]
        self = cls(setting, privacy, lora, ledger, state, folder, chunk_clients)
        if resume is not None:
            self._resume(Path(resume))
        return self

    def events(self) -> "Iterator[Round | Tick]":
        """The run: a record of the start unless resumed, then ticks and a record for every round."""
        if self.state.round == 0:
            begun, server = time.perf_counter(), self.state.server
            nothing, equal = upload.Received({}, torch.zeros(0), {}), {s: x[None] for s, x in server.tensors.items()}
            record = self._record(begun, server, server, nothing, equal, Traffic(), Clipped(), 0)
            self._store()
            yield record
        while self.state.round < self.setting.plan.rounds:
            record = yield from self._round()
            self._store()
            yield record

    def _round(self) -> "Iterator[Tick | Round]":  # a generator whose return value is the round's record
        begun, setting, state = time.perf_counter(), self.setting, self.state
        t, before, method, steps = state.round, state.server, setting.method, setting.plan.local_steps
        ids = self._participants(t)
        sent = self._broadcast(before)
        self._spend(t, ids)
        slots = engine.moving_slots(setting.adapted, method.sent(t, steps))
        moved = engine.moving_slots(setting.adapted, method.moved(t, steps))
        groups = []
        for group in self._groups(ids):
            clients = self._clients(group, sent)
            for step in range(steps):
                engine.local_step(setting, clients, t, step)
                yield Tick(t + 1, step + 1)
            groups.append(clients)
        everyone = upload.join(groups, moved, sent)
        arrived = self._arrived(t, ids)
        received = upload.send(setting, self.privacy, everyone, arrived, slots, t)
        after = before
        if received.uploads:
            after = method.aggregate(before, sent, received.uploads, received.weights)
        traffic = self._traffic(ids, len(arrived), slots)
        self._advance(everyone, tuple(s for s in moved if s not in slots), after)
        hands = {slot: received.uploads.get(slot, everyone.bank[slot][arrived]) for slot in moved}
        factors = {slot: hands.get(slot, sent.tensors[slot][None]) for slot in sent.tensors}
        counts = everyone.clipped + received.clipped
        return self._record(begun, before, after, received, factors, traffic, counts, len(ids))

    def _participants(self, t: int) -> tuple[int, ...]:
        """Who takes part: each client on its own with the plan's probability."""
        count, share = len(self.setting.task.sizes), self.setting.plan.participation
        uniform = self.setting.streams.numpy("participation", t).random(count)
        return tuple(k for k in range(count) if share >= 1 or uniform[k] < share)

    def _arrived(self, t: int, ids: tuple[int, ...]) -> Tensor:
        """Positions of the clients whose upload is not lost on the way."""
        uniform = self.setting.streams.numpy("dropout", t).random(len(self.setting.task.sizes))
        return torch.tensor(
            [i for i, k in enumerate(ids) if uniform[k] >= self.setting.plan.dropout], dtype=torch.int64
        )

    def _broadcast(self, server: Global) -> Global:
        rule = self.setting.method.broadcast
        return Global({slot: x if slot.side == "head" else rule(x) for slot, x in server.tensors.items()})

    def _spend(self, t: int, ids: tuple[int, ...]) -> None:
        """Write the round's releases into the ledger, on disk as well, before any of them exists."""
        if self.ledger is None or self.privacy is None:
            return
        steps = self.setting.plan.local_steps if self.privacy.unit == "example" else 1
        self.ledger.record(t + 1, ids, steps, **self.privacy.entry(ids))
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.ledger.save(self.folder / "ledger.json")

    def _groups(self, ids: tuple[int, ...]) -> list[tuple[int, ...]]:
        size = self.chunk_clients or max(len(ids), 1)
        return [ids[i : i + size] for i in range(0, len(ids), size)]

    def _clients(self, ids: tuple[int, ...], sent: Global) -> engine.Clients:
        """Clients at the start of a round: what they received, and what they kept."""
        start = {slot: tensor[None] for slot, tensor in sent.tensors.items()}
        bank = start | {slot: kept[list(ids)] for slot, kept in self.state.personal.items()}
        return engine.Clients(ids, bank, start)

    def _advance(self, everyone: engine.Clients, kept: tuple[Slot, ...], after: Global) -> None:
        """Move the state on by a round: the server's tensors, and what moved and was not sent."""
        state, ids = self.state, list(everyone.ids)
        for slot in kept:
            own = state.personal.get(slot)
            if own is None:
                own = state.server.tensors[slot].expand(len(state.seen), *state.server.tensors[slot].shape)
            state.personal[slot] = own.index_copy(0, torch.tensor(ids, dtype=torch.int64), everyone.bank[slot])
        before = state.server.tensors
        state.changed.append("".join(sorted({s.side for s, x in after.tensors.items() if x is not before[s]})))
        state.seen = [state.round if k in set(ids) else seen for k, seen in enumerate(state.seen)]
        state.server, state.round = after, state.round + 1

    def _traffic(self, ids: tuple[int, ...], arrived: int, slots: tuple[Slot, ...]) -> Traffic:
        """Down: what the server changed since a client last received it; up: what is sent, of the uploads that arrive."""
        shapes, rule = self.setting.adapted.shapes, self.setting.method.broadcast
        up = [shapes[slot].numel() for slot in slots]
        total = Traffic(arrived * sum(up), arrived * bytes_of(up))
        for k in ids:
            seen = self.state.seen[k]
            sides = set("".join(self.state.changed[max(seen, 0) :]))
            new = seen < 0 and rule is not full and rule != full
            factors = [n.numel() for s, n in shapes.items() if s.side != "head" and (s.side in sides or new)]
            head = [n.numel() for s, n in shapes.items() if s.side == "head" and self.state.round]
            total += Traffic(0, 0, sum(factors + head), bytes_of(factors, rule) + bytes_of(head))
        return total

    def _record(
        self,
        begun: float,
        before: Global,
        after: Global,
        received: upload.Received,
        factors: Mapping[Slot, Tensor],
        traffic: Traffic,
        counts: Clipped,
        participants: int,
    ) -> Round:
        task, method, streams = self.setting.task, self.setting.method, self.setting.streams
        open_ = self.privacy is None or streams.seed is not None
        seen, noise = (factors if received.alone else None), (received.noise if open_ else None)
        rows, total = measures.layer_rows(before, after, seen, received.weights, noise, self.lora.scaling)
        a, b = after.side("A"), after.side("B")
        return Round(
            index=self.state.round,
            method=method.slug,
            task=task.name,
            seed=streams.seed,
            metrics=self._metrics(open_),
            deviation=total,
            adapter={layer: (a[layer], b[layer]) for layer in after.layers},
            head=after.side("head"),
            uploads=traffic,
            participants=participants,
            clipped=(counts.scaled / counts.rows if counts.rows else 0.0) if open_ else NOT_SEEN,
            nonfinite=float(counts.nonfinite) if open_ else NOT_SEEN,
            seconds=time.perf_counter() - begun,
            ledger=None if self.ledger is None else self.ledger.snapshot(),
            rows=tuple(rows),
            source=(task, self.lora, after),
        )

    def _metrics(self, open_: bool) -> dict[str, float]:
        """The task's metrics on public examples, of the server's model or of the clients' own ones."""
        task, adapted, server = self.setting.task, self.setting.adapted, self.state.server.tensors
        personal = self.state.personal
        if not personal:
            found = engine.evaluate(task, adapted, server, task.test)
            if self.setting.method.broadcast != full:
                copy = self._broadcast(self.state.server).tensors
                found |= {f"{k}_received": v for k, v in engine.evaluate(task, adapted, copy, task.test).items()}
            return found
        if not open_ and self.privacy is not None and self.privacy.unit == "client":
            return dict.fromkeys(task.metrics, NOT_SEEN)
        each = [
            engine.evaluate(task, adapted, {**server, **{s: own[k] for s, own in personal.items()}}, task.test)
            for k in range(len(task.sizes))
        ]
        return {name: sum(m[name] for m in each) / len(each) for name in task.metrics}

    def _settings(self) -> dict[str, Any]:
        """What a checkpoint must agree on with the run that goes on from it."""
        setting = self.setting
        row = {name: methods.rule_name(getattr(setting.method, name)) for name in Method.__dataclass_fields__}
        plan = {key: value for key, value in asdict(setting.plan).items() if key != "rounds"}
        parts = {"method": row, "plan": plan, "lora": asdict(self.lora), "seed": setting.streams.seed}
        parts["privacy"] = None if self.privacy is None else asdict(self.privacy)
        parts["task"] = setting.task.fingerprint
        return json.loads(json.dumps(parts, default=str))

    def _store(self) -> None:
        if self.folder is not None:
            checkpoint.store(self.folder, self.state, self._settings())

    def _resume(self, folder: Path) -> None:
        state, theirs = checkpoint.latest(folder)
        for name, ours in self._settings().items():
            check(theirs.get(name) == ours, "resume", str(folder), f"the same {name} as in this run")
        self.state = checkpoint.ordered(state, tuple(self.setting.adapted.places))
        if self.ledger is not None:
            self.ledger = Ledger.load(folder / "ledger.json") if state.round else self.ledger
            written = {entry.round for entry in self.ledger.releases}
            check(
                written >= set(range(1, state.round + 1)), "ledger", sorted(written), f"all {state.round} rounds done"
            )
