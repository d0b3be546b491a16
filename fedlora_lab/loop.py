"""The one federated loop: an iterator of rounds. Stopping is ``break``; progress, widgets and Flower consume it."""

import time
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fedlora_lab import adapters, agreement, checkpoint, engine, local, observe, passes, upload
from fedlora_lab.agreement import Agreement
from fedlora_lab.checkpoint import State
from fedlora_lab.checks import check, check_number, check_whole
from fedlora_lab.compute import Compute
from fedlora_lab.files import held
from fedlora_lab.ledger import Ledger
from fedlora_lab.mechanism import injected
from fedlora_lab.method import Global, Method, Slot
from fedlora_lab.observe import Outcome
from fedlora_lab.plan import Lora, Plan
from fedlora_lab.privacy import Privacy
from fedlora_lab.record import Round, Tick, origin
from fedlora_lab.release import Release
from fedlora_lab.resuming import taken_up
from fedlora_lab.tasks.task import Task
from fedlora_lab.traffic import traffic


def run(
    task: Task, method: "Method | str", privacy: Privacy | None, plan: Plan, **options: Any
) -> "Generator[Round, None, None]":
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
        resume: folder of checkpoints to go on from; the rounds that follow have the bits they would have had. Without
            a seed they are new releases, the ledger counts on, and ``checkpoint`` may be no other folder.
        chunk_examples, chunk_clients: at most so many examples (clients) in memory at once; results differ by rounding.
            chunk_examples="auto" takes as many as half of the free memory holds.
        device, products, frozen_prefix, recompute: where and how the work is done (see `compute.Compute`).
        evaluate_every: judge the model before training, after every so many rounds and after the last; NaN between.
        stop_at: an epsilon; the run ends before the round that would spend more, if everyone took part in it.
        bug: for tests and lesson 12 only, see `Federation.open`: the ledger of such a run certifies no epsilon.

    Raises: ``ValueError`` (name, value, range) at the call, before anything is trained.

    Guarantees: every release stands in the ledger before its value is used; method hooks see noised values only;
        resume equals uninterrupted (tests/test_contract.py).
    """
    return (event for event in ticks(task, method, privacy, plan, **options) if isinstance(event, Round))


def ticks(
    task: Task, method: "Method | str", privacy: Privacy | None, plan: Plan, **options: Any
) -> "Generator[Round | Tick, None, None]":
    """As `run`, with a `Tick` after every local step: a consumer may pause or stop between any two of them."""
    return Federation.open(task, method, privacy, plan, **options).events()


def predict(task: Task, record: Round, x: "Tensor | Mapping[str, Tensor]") -> Float[Tensor, "n ..."]:
    """Outputs of the model with a record's global adapter (and head)."""
    _, lora, state = origin(record)
    adapted = adapters.adapt(task.model, task.targets, task.head, lora)
    return passes.predict(task, adapted, state.tensors, x)


class Diverged(ValueError):
    """A round that the server cannot do: what it has in hand is not finite."""


@dataclass(frozen=True)
class Opened:
    """A round that has begun: its number from 0, who takes part, the server's tensors and what goes down of them."""

    begun: float
    t: int
    ids: tuple[int, ...]
    before: Global
    sent: Global


@dataclass
class Federation:
    """One run: what is fixed, and the state that a round moves on."""

    asked: Agreement
    setting: engine.Setting
    ledger: Ledger | None
    state: State
    folder: Path | None
    chunk_clients: int | None
    evaluate_every: int = 1
    stop_at: float | None = None
    resumed: bool = False
    found: list[int] = field(default_factory=list)
    book: bytes | None = None

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
        chunk_clients: int | None = None,
        evaluate_every: int = 1,
        stop_at: float | None = None,
        bug: "Callable[..., Any] | None" = None,
        **compute: Any,
    ) -> "Federation":
        """Validate everything and prepare the run; nothing is trained yet.

        Args: as `run`; ``bug``, for tests and lesson 12 only: a function that clips in the place of
            `mechanism.clip_sum`, one of `fl.edges.BUGS` or of the same signature. The ledger then certifies no
            epsilon, from the first moment and on disk.
        """
        check(bug is None or callable(bug), "bug", bug, "one of fl.edges.BUGS (a function), or None")
        how = Compute(**compute)
        asked = agreement.agreed(task, method, privacy, plan, lora, seed)
        agreement.chunks(chunk_clients=chunk_clients)
        check_whole("evaluate_every", evaluate_every, 1)
        folder = agreement.folder(checkpoint, resume, asked)
        setting = local.prepared(asked, task.clients, how)
        setting = setting if bug is None else replace(setting, clip=bug)
        return cls.over(asked, setting, folder, resume, chunk_clients, evaluate_every, stop_at)

    @classmethod
    def over(
        cls,
        asked: Agreement,
        setting: engine.Setting,
        folder: Path | None = None,
        resume: "str | Path | None" = None,
        chunk_clients: int | None = None,
        evaluate_every: int = 1,
        stop_at: float | None = None,
    ) -> "Federation":
        """The run of an agreement whose model is prepared; of the setting's examples a server needs none."""
        if stop_at is not None:
            check(asked.privacy is not None, "stop_at", stop_at, "None without privacy: no epsilon is spent")
            check_number("stop_at", stop_at, 0, open_low=True)
        ledger = None if asked.privacy is None else asked.privacy.ledger(reproducible=asked.streams.seed is not None)
        if ledger is not None:
            reasons = (injected(setting.clip), setting.uncertified)
            ledger.uncertified = "; ".join(reason for reason in reasons if reason) or None
        self = cls(asked, setting, ledger, _begun(asked, setting), folder, chunk_clients, evaluate_every, stop_at)
        if folder is not None:  # looked at before it is read: whoever writes in between is found in `alone`
            same = resume is not None and folder.resolve() == Path(resume).resolve()
            # A new run was promised a folder without rounds but the start, and without a ledger (`agreement.folder`).
            self.found = [t for t in checkpoint.rounds_in(folder) if same or not t]
            self.book = _book(folder) if same else None
        if resume is not None:
            fresh = self.state
            self.state, self.ledger = taken_up(Path(resume), asked, fresh, ledger)
            self.resumed = self.state is not fresh
            self._foresee()
        return self

    def begin_again(self) -> None:
        """Train from the beginning; what stands in the ledger stays spent."""
        self.state, self.resumed = _begun(self.asked, self.setting), False
        self._foresee()

    def _foresee(self) -> None:
        """Warn where rounds that were released twice carry a run past the epsilon that it was calibrated for."""
        target = None if self.asked.privacy is None else self.asked.privacy.target
        if target is None or (self.stop_at is not None and self.stop_at <= target * (1 + 1e-9)):
            return
        if self.ledger is None or self.ledger.uncertified is not None:
            return  # no epsilon is stated in any case
        spent = self._spent_after(self.setting.plan.rounds - self.state.round)
        if spent > target * (1 + 1e-6):
            why = f"at most target={target:g}; rounds were released twice, stop_at={target:g} ends the run in time"
            warnings.warn(f"epsilon={spent:.4g} after the last round: expected {why}", stacklevel=2)

    def _spent_after(self, rounds: int) -> float:
        """Epsilon after so many further rounds in which everyone takes part."""
        assert self.ledger is not None
        everyone = None if self.ledger.unit == "client" else tuple(range(len(self.asked.task.sizes)))
        ahead = range(self.state.round + 1, self.state.round + 1 + rounds)
        known = {entry.round for entry in self.ledger.releases} if self.ledger.reproducible else set()
        fields = self.asked.entry(everyone)
        return self.ledger.foreseen([Release.of(t, everyone, **fields) for t in ahead if t not in known])

    @property
    def ended(self) -> bool:
        """No round is left, or the next could spend more than ``stop_at``; who would take part does not matter."""
        if self.state.round >= self.setting.plan.rounds:
            return True
        return self.stop_at is not None and self._spent_after(1) > self.stop_at

    def events(self) -> "Generator[Round | Tick, None, None]":
        """The run: a record of the start unless resumed, then ticks and a record for every round.

        Raises: ``ValueError`` when another run holds the folder, or has written in it since this one was opened.
        """
        with self.alone():
            if not self.resumed:
                yield self.begin(self.start())
            while not self.ended:
                outcome = yield from self._round()
                self._store()
                yield self._record(outcome)

    def start(self) -> Outcome:
        """The outcome before the first round."""
        kept = local.moves(self.setting, self.state.server.tensors, 0).kept
        return observe.nothing(self.asked, self.state, bool(kept))

    def begin(self, outcome: Outcome) -> Round:
        """Keep the state before the first round, in the place of whatever rounds the folder holds; its record."""
        self._store()
        if self.folder is not None:
            for round in self.found:
                if round != self.state.round:
                    checkpoint.remove(self.folder, round)
        return self._record(outcome)

    @contextmanager
    def alone(self) -> "Iterator[None]":
        """Hold the folder, as it was when this run was opened: the same rounds, and byte for byte the same ledger.

        Guarantees: test_attack_spending.py::test_a_run_that_was_opened_before_another_wrote_is_refused.
        """
        with held(self.folder):
            as_it_was = self.folder is None or (
                checkpoint.rounds_in(self.folder) == self.found and _book(self.folder) == self.book
            )
            check(as_it_was, "checkpoint", str(self.folder), "a folder in which no other run has written meanwhile")
            yield

    def _round(self) -> "Generator[Tick, None, Outcome]":
        """Train one round, a tick after every local step; returns its outcome."""
        setting, opened = self.setting, self.open_round()
        groups = []
        for group in self._groups(opened.ids):
            clients = self._clients(group, opened.sent)
            for step in range(setting.plan.local_steps):
                engine.local_step(setting, clients, opened.t, step)
                yield Tick(opened.t + 1, step + 1)
            groups.append(clients)
        moves = local.moves(setting, opened.before.tensors, opened.t)
        everyone = upload.join(setting, groups, moves.moved, opened.sent)
        arrived = self._arrived(opened.t, opened.ids)
        received = upload.send(setting, self.asked.privacy, everyone, arrived, moves.sent, opened.sent, opened.t)
        there = tuple(opened.ids[i] for i in arrived.tolist())
        return self.close_round(opened, received, everyone, moves.kept, there)

    def open_round(self) -> Opened:
        """Who takes part and what they receive; the round stands in the ledger when this returns."""
        begun, before, t = time.perf_counter(), self.state.server, self.state.round
        ids, sent = self._participants(t), observe.broadcast(self.setting, before)
        self._spend(t, ids)
        return Opened(begun, t, ids, before, sent)

    def close_round(
        self,
        opened: Opened,
        received: upload.Received,
        everyone: engine.Clients,
        kept: tuple[Slot, ...],
        there: tuple[int, ...],
    ) -> Outcome:
        """The server's rule on what it has in hand, and the state after it.

        Args:
            everyone: the clients that took part; of their tensors ``kept`` are looked at, and stay theirs.
            there: those whose upload was not lost.
        """
        before, method = opened.before, self.setting.method
        after = before
        if received.uploads:
            after = self._ruled(opened, received)
        moves = local.moves(self.setting, before.tensors, opened.t)
        load = traffic(method, self.asked.lora, self.state, opened.ids, there, moves.sent, self.asked.privacy)
        self._advance(everyone, kept, after, len(received.weights))
        return Outcome(
            opened.begun, before, opened.sent, received, everyone.clipped, load, len(opened.ids), bool(moves.kept)
        )

    def _ruled(self, opened: Opened, received: upload.Received) -> Global:
        """What the server's rule makes of a round.

        Raises: `Diverged` where it decomposes matrices and cannot: values grew until they were not finite.
        """
        method = self.setting.method
        try:
            return method.aggregate(opened.before, received.sent, received.uploads, received.weights)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            words = f"a smaller one; {method.slug} cannot do the server's part of round {opened.t + 1}"
            raise Diverged(f"lr={self.setting.plan.lr}: expected {words} ({' '.join(str(error).split())})") from error

    def _record(self, outcome: Outcome) -> Round:
        if self.state.round % self.evaluate_every and not self.ended:
            outcome = replace(outcome, metrics=dict.fromkeys(self.asked.task.metrics, observe.NOT_SEEN))
        return observe.record(self.asked, self.setting, self.ledger, self.state, outcome)

    def _participants(self, t: int) -> tuple[int, ...]:
        """Who takes part: each client on its own with the plan's probability."""
        count, share = len(self.setting.task.sizes), self.setting.plan.participation
        if share >= 1:
            return tuple(range(count))
        uniform = self.setting.streams.uniform((count,), "participation", t)
        return tuple((uniform < share).nonzero().squeeze(1).tolist())

    def _arrived(self, t: int, ids: tuple[int, ...]) -> Tensor:
        """Positions of the clients whose upload is not lost on the way."""
        if not self.setting.plan.dropout:
            return torch.arange(len(ids))
        uniform = self.setting.streams.uniform((len(self.setting.task.sizes),), "dropout", t)
        return (uniform[list(ids)] >= self.setting.plan.dropout).nonzero().squeeze(1)

    def _spend(self, t: int, ids: tuple[int, ...]) -> None:
        """Write the round's releases into the ledger, on disk as well, before any of them exists."""
        if self.ledger is None:
            return
        self.ledger.record(t + 1, ids, **self.asked.entry(ids), repeats=self.ledger.reproducible)
        if self.folder is not None:
            self.ledger.save(self.folder / checkpoint.LEDGER)
            self.book = _book(self.folder)

    def _groups(self, ids: tuple[int, ...]) -> list[tuple[int, ...]]:
        size = self.chunk_clients or max(len(ids), 1)
        return [ids[i : i + size] for i in range(0, len(ids), size)]

    def _clients(self, ids: tuple[int, ...], sent: Global) -> engine.Clients:
        """Clients at the start of a round: what they received, and what they kept."""
        return local.begin(self.setting, ids, sent, {slot: own[list(ids)] for slot, own in self.state.personal.items()})

    def _advance(self, everyone: engine.Clients, kept: tuple[Slot, ...], after: Global, rows: int) -> None:
        """Move the state on by a round; of the clients' tensors those that moved and were not sent stay theirs."""
        own = {slot: everyone.bank[slot] for slot in kept}
        self.state.advance(everyone.ids, own, after, rows * self.asked.lora.rank)

    def _store(self) -> None:
        if self.folder is not None:
            checkpoint.store(self.folder, self.state, self.asked.settings())


def _begun(asked: Agreement, setting: engine.Setting) -> State:
    """The state before the first round."""
    return State(0, local.opening(asked, setting), {}, [-1] * len(asked.task.sizes))


def _book(folder: Path) -> bytes | None:
    """The ledger in a folder as it lies there; ``None`` without one."""
    path = folder / checkpoint.LEDGER
    return path.read_bytes() if path.exists() else None
