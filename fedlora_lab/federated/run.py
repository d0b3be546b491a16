"""The federated loop: an iterator of rounds.

Stop it by ``break``. Progress bars, widgets, Flower and audits consume it, or drive a `Run` by its
public steps: `begin_round`, `start_clients`, `finish_round`, `close_round`.

In code ``t`` and ``s`` count rounds and steps from 0; ``round``, ``step`` and ``index`` of local
steps, records and ledgers count from 1. ``ServerState.round``, the rounds done, is the next
round's t.
"""

import time
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import torch

from fedlora_lab._utils.files import JsonObject, lock_folder
from fedlora_lab._utils.torch_state import steps_with_default_modes, with_default_modes
from fedlora_lab._utils.validation import (
    check,
    error_text,
    warn,
)
from fedlora_lab.federated import exchange, local_training, store
from fedlora_lab.federated.config import (
    EXACT,
    ClientIds,
    Config,
    Execution,
)
from fedlora_lab.federated.exchange import Received
from fedlora_lab.federated.local_training import ClientBatch
from fedlora_lab.federated.make_config import make_config
from fedlora_lab.federated.prepared import Prepared, initial_server, prepare_run
from fedlora_lab.federated.recording import OpenRound, RecordMaker, RoundResult
from fedlora_lab.federated.records import Round, rows_of
from fedlora_lab.federated.store import RunState
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.plan import Lora, Plan
from fedlora_lab.methods.state import ServerState
from fedlora_lab.privacy.ledger import Ledger
from fedlora_lab.privacy.plan import Privacy
from fedlora_lab.privacy.privatizer import ClipSum
from fedlora_lab.tasks.task import Task

CLIENTS_AT_ONCE = 512
"""Clients that train together: of more, the tensors no longer lie near the processor."""
MAX_TURNS = 12
"""Rounds looked at before a run: whole periods of schedules of up to four."""


def run(
    task: Task,
    method: Method | str,
    privacy: Privacy | None,
    plan: Plan,
    *,
    lora: "Lora | None" = None,
    seed: int | None = None,
    out: "str | Path | None" = None,
    evaluate_every: int = 1,
    chunk_examples: int | None = None,
    device: "str | torch.device | None" = None,
) -> "Generator[Round, None, None]":
    """Trains low-rank adapters in a federation, and yields a `Round` after every round.

    The first `Round` is the model before training.

    Args:
        task: model, clients' data and metric.
        method: a row of the table, or its slug.
        privacy: with its noise set (see `Privacy.calibrate`); ``None``: without privacy.
        plan: rounds, local steps, batch, learning rates.
        lora: rank and alpha; default ``Lora()``.
        seed: ``None`` takes the operating system's entropy, and the ledger says "release"; from a
            number every random number follows, and the ledger says "not for release".
        out: folder of this run: its state after every round, its rows, and the ledger, which is
            written before each round. A run that is there goes on, and first yields its last
            record again; the rounds that follow have the bits they would have had. Without a seed
            they are new releases, and the ledger counts on. A private run from a seed goes on with
            the same rounds, device, precision and chunks only.
        evaluate_every: score before training, after every so many rounds and the last; NaN between.
        chunk_examples: at most so many go through the model at once; results differ by rounding.
            ``None``: all; on a CPU of texts eight of like length, of short ones more.
        device: of local steps and evaluation; ``None``: where the task's model is. The server's
            part, and the examples that no step needs, stay on the CPU.

    A base in half precision stays so; factors, head, their gradients, the clip and the noise are
    float32 throughout, or float64 over a base of float64.

    Raises: ``ValueError`` (name, value, range) at the call, before anything is trained.
    Guarantees: every release stands in the ledger before its value is used; filters and server
        rules see noised values only; resume equals uninterrupted
        (tests/lab/methods/test_contract.py), or is refused (test_checkpoint.py::
        test_a_round_is_replayed_to_the_same_bits_or_not_at_all); clip, noise and ledger are the
        same whatever device and chunks are
        (test_contract.py::test_chunks_change_nothing).

    >>> import fedlora_lab as fl
    >>> task = fl.tasks.regression(clients=2, examples=4, d_in=3, d_out=3, rank=1, test=4)
    >>> plan = fl.Plan(rounds=2, local_steps=2)
    >>> [record.index for record in fl.run(task, "rolora", None, plan)]
    [0, 1, 2]
    """
    execution = Execution(
        evaluate_every=evaluate_every,
        chunk_examples=chunk_examples,
        device=device,
    )
    opened = Run.open(make_config(task, method, privacy, plan, lora, seed), execution, out=out)
    return opened.records()


class Diverged(ValueError):
    """Raised where a server rule decomposes matrices that are not finite."""


@dataclass
class Run:
    """One run: what was asked and prepared, and the state that a round moves on.

    Args:
        prepared: the checked arguments, the adapted model and the examples.
        ledger: of what was released; ``None`` without privacy.
        state: between two rounds.
        folder: of state, rows and ledger; ``None``: nothing is stored.
        resumed: the state was read from a folder, so that the first record was made before.
        remote: the clients train in other processes: what they know is NaN in the records.
        config: the checked arguments.
        recording: makes the records.
    """

    prepared: Prepared
    ledger: Ledger | None
    state: RunState
    folder: Path | None = None
    resumed: bool = False
    remote: bool = False
    config: Config = field(init=False)
    recording: RecordMaker = field(init=False)

    def __post_init__(self) -> None:
        # What no round changes is made here, before the first one.
        self.config = self.prepared.config
        self.recording = RecordMaker(self.prepared, self.remote)
        for t in range(min(self.config.plan.rounds, MAX_TURNS)):
            keys = local_training.round_keys(self.config, self.state.server.tensors, t)
            schedule = self.config.method.schedule
            expected = "a tensor that moves at each step"
            check(all(keys.steps), f"schedule, round {t + 1}", schedule, expected)
        self._settings = {}
        if self.folder is not None:
            self._settings = {**store.settings_of(self.config), **self._replay_settings()}

    @classmethod
    @with_default_modes
    def open(
        cls,
        config: Config,
        execution: Execution = EXACT,
        *,
        out: "str | Path | None" = None,
        bug: ClipSum | None = None,
    ) -> Self:
        """Prepares a run; nothing is trained yet.

        Args:
            config: by `make_config`.
            execution: how it is computed.
            out: see `run`.
            bug: clips in the place of `privatizer.clip_sum`, with its signature: to
                see whether it is found. The ledger then certifies no epsilon, also on disk.
        """
        prepared = prepare_run(config, config.task.clients, execution)
        return cls.from_prepared(replace(prepared, clip=bug), out)

    @classmethod
    @with_default_modes
    def from_prepared(
        cls, prepared: Prepared, out: "str | Path | None" = None, remote: bool = False
    ) -> Self:
        """Opens a prepared run, here or on a server; one that is in its folder goes on.

        Args:
            prepared: by `prepare_run`.
            out: see `run`.
            remote: see `Run`.
        """
        config = prepared.config
        folder = store.run_folder(out)
        # Before the first release: no ledger on disk ever states an epsilon that does not hold.
        ledger = config.ledger(prepared.uncertified)
        begin = initial_server(prepared)
        fresh = RunState(begin, {}, exchange.changed_at_start(config.method, begin.tensors))
        self = cls(prepared, ledger, fresh, folder, remote=remote)
        # Now, so that a folder of another run is refused before anything is trained.
        self._restore()
        return self

    def _restore(self) -> None:
        """Goes on from what lies in the folder, if anything does."""
        if self.folder is not None and store.has_run(self.folder):
            self.state, self.ledger = store.restore(
                self.folder, self.config, self._settings, self.state, self.ledger
            )
            self.resumed = True

    def _replay_settings(self) -> JsonObject:
        """Settings that must be the same only where a round may be run again under one noise."""
        if not self.config.replays_noise:
            return {}
        return {
            # A server rule may read the planned rounds, and so choose what the next one releases.
            "rounds": self.config.plan.rounds,
            # The others decide how a round is rounded.
            "device": self.prepared.adapted.device.type,
            "chunk_examples": self.prepared.chunk,
        }

    @property
    def ended(self) -> bool:
        """Whether no round is left."""
        return self.state.server.round >= self.config.plan.rounds

    # ---- the loop

    @steps_with_default_modes
    def records(self) -> "Generator[Round, None, None]":
        """A record of the start, or of where a stored run stands; then each round's."""
        with self.lock():
            if not self.resumed:
                yield self.record_start()
            elif self.folder is not None:
                done = self.state.server.round
                expected = f"at least {done}, the rounds in {self.folder}"
                check(done <= self.config.plan.rounds, "rounds", self.config.plan.rounds, expected)
                yield self.stored_record()
            while not self.ended:
                yield self.close_round(self._round())

    @contextmanager
    def lock(self) -> "Iterator[None]":
        """Locks the folder, and goes on from what lies there now.

        Guarantees: no release of a run that wrote there meanwhile is forgotten
            (test_attack_spending.py::test_what_another_run_wrote_meanwhile_is_not_forgotten).
        """
        with lock_folder(self.folder):
            self._restore()
            yield

    def record_start(self) -> Round:
        """Makes the first record, and stores the initial state alone in its folder."""
        record = self.recording.of_state(self.state, self.ledger)
        self._store(record)
        return record

    def stored_record(self) -> Round:
        """Makes the record of the round after which a stored run stands, as it was yielded."""
        assert self.folder is not None
        rows = store.stored_rows(self.folder).get(self.state.server.round, [])
        return self.recording.of_stored_round(self.state, self.ledger, rows)

    def close_round(self, result: RoundResult) -> Round:
        """Makes the record of a round and stores both, before anybody sees the record."""
        record = self.recording.of_round(result, self.state, self.ledger)
        self._store(record)
        return record

    def _store(self, record: Round) -> None:
        """Writes rows and state into the run's folder, if it has one."""
        if self.folder is not None:
            # The state last: a run that is killed in between makes the round again, and its rows.
            store.append_rows(self.folder, record.index, rows_of(record))
            store.write(self.folder, self.state, self._settings)

    def _round(self) -> RoundResult:
        """Trains one round."""
        opened = self.begin_round()
        t = opened.before.round
        batches = []
        # Chunks bound the memory and change no draw: each client draws from its own streams.
        for i in range(0, len(opened.ids), CLIENTS_AT_ONCE):
            ids = opened.ids[i : i + CLIENTS_AT_ONCE]
            clients = self.start_clients(ids, opened.broadcast)
            for step in range(self.config.plan.local_steps):
                local_training.local_step(self.prepared, clients, t, step)
            batches.append(clients)
        keys = opened.keys
        sent = opened.broadcast
        everyone = exchange.stack_clients(batches, keys.moved, sent)
        # The one way from clients to the server: in the client unit clip and noise are in here.
        received = exchange.release_round(self.prepared, everyone, keys.uploaded, sent)
        return self.finish_round(opened, received, everyone)

    def begin_round(self) -> OpenRound:
        """Draws who takes part; the round stands in the ledger when this returns."""
        started_at = time.perf_counter()
        before = self.state.server
        ids = self.participants(before.round)
        keys = local_training.round_keys(self.config, before.tensors, before.round)
        sent = exchange.broadcast(self.config.method, before)
        # Nothing above reads private values. All that follows does, so the ledger comes first.
        self.charge_ledger(before.round, ids)
        return OpenRound(started_at, ids, before, sent, keys)

    def participants(self, t: int) -> ClientIds:
        """Draws who takes part: each client on its own with the plan's probability."""
        count = len(self.config.task.sizes)
        # Each client on its own: accountants do not cover the draw of a fixed number of clients.
        uniform = self.config.streams.uniform((count,), "participation", t)
        return tuple((uniform < self.config.plan.participation).nonzero().squeeze(1).tolist())

    def charge_ledger(self, t: int, ids: ClientIds) -> None:
        """Writes the round's releases into the ledger, on disk too, before any of them exists."""
        ledger = self.ledger
        if ledger is None:
            return
        charge = self.config.charge
        assert charge is not None  # as the ledger, it is there under privacy
        # From a seed a round that was cut short releases the same bits again, under the same noise:
        # `_replay_settings` see to that, and its entry stands there already.
        stands = any(entry.round == t + 1 for entry in ledger.releases)
        if self.config.replays_noise and stands:
            return
        ledger.append(charge.at(t + 1, ids))
        # A run that is cut short in this round has released what it sent: the disk comes first.
        if self.folder is not None:
            ledger.save(self.folder / store.LEDGER)

    def start_clients(self, ids: ClientIds, sent: ServerState) -> ClientBatch:
        """Prepares clients for a round, from what they received and their own tensors."""
        # Only their own rows: a client never reads what another one keeps.
        personal = {key: x[list(ids)] for key, x in self.state.personal.items()}
        return exchange.begin_clients(self.prepared, ids, sent, personal)

    def finish_round(
        self,
        opened: OpenRound,
        received: Received,
        everyone: ClientBatch,
    ) -> RoundResult:
        """Applies the server's rule to what it has in hand, and moves the state on.

        Args:
            opened, received: from `begin_round`, and `exchange.release_round` or `receive_uploads`.
            everyone: the clients that trained and sent, with what is known of their tensors here.

        Raises: `Diverged` where the rule decomposes matrices that are not finite.
        Guarantees:
            test_contract.py::test_a_seed_decides_every_bit_of_a_run_and_of_a_resumed_one.
        """
        state = self.state
        before = opened.before
        count = len(everyone.ids)
        # Before the state moves on: it says what has changed.
        traffic = exchange.count_traffic(
            self.config, state, len(opened.ids), count, opened.keys.uploaded
        )
        after = before
        if received.uploads:
            # Everything from here on is a function of released values and costs no privacy.
            after = self._aggregate(opened, received)
        self._keep_personal(opened, everyone)
        self._advance(opened, after, received)
        return RoundResult(opened, received, everyone.clip_counts, traffic, count)

    def _advance(self, opened: OpenRound, after: ServerState, received: Received) -> None:
        """Moves the state on to the next round.

        Args:
            opened: the round that ends.
            after: the server's state at its end.
            received: what the server had in hand.
        """
        state = self.state
        # The rank by which a round changes a residual: of each row, and of the old product, which
        # stays with the weights that did not arrive; of one product where a factor is common.
        weights = received.weights
        absent = not torch.isclose(weights.sum(), weights.new_ones(()))
        both = {"A", "B"} <= {key.name for key in received.uploads}
        products = len(weights) + int(absent) if both else 1
        before = opened.before
        changed = {}
        for key, x in after.tensors.items():
            # A tensor that no rule replaced costs no bytes on the way down.
            if x is not before.tensors[key]:
                changed[key] = self.config.lora.rank * products if key.name == "W" else 0
        if self.config.plan.participation < 1:
            # Who takes part by chance is taken to keep nothing from one time to the next.
            ranks = Counter(state.changed)
            ranks.update(changed)
            changed = dict(ranks)
        state.changed = changed
        # In memory as a loaded state: transposed tensors multiply to other last bits on some CPUs.
        tensors = {key: x.contiguous() for key, x in after.tensors.items()}
        state.server = replace(after, tensors=tensors, round=before.round + 1)

    def _aggregate(self, opened: OpenRound, received: Received) -> ServerState:
        """What the server's rule makes of the uploads."""
        method = self.config.method
        before = opened.before
        sent = opened.broadcast
        try:
            after = method.aggregate(before, sent, received.uploads, received.weights)
        except torch.linalg.LinAlgError as error:
            part = f"{method.slug} cannot do the server's part of round {before.round + 1}"
            text = f"lr={self.config.plan.lr}: expected a smaller one; {part}"
            raise Diverged(f"{text} ({error_text(error)})") from error
        for key, x in received.uploads.items():
            kept = before.tensors[key]
            made = after.tensors[key]
            form = f"{made.dtype} {tuple(made.shape)}"
            expected = f"{kept.dtype} {tuple(kept.shape)}, as it was before the round"
            fits = made.dtype == kept.dtype and made.shape == kept.shape
            check(fits, f"{key} after the rule of {method.slug}", form, expected)
            # Of steps that are too long the uploads are not finite, and no rule is to blame.
            if x.isfinite().all() and not made.isfinite().all():
                warn(f"{key} is not finite after the rule of {method.slug}, though its uploads are")
                break
        return after

    def _keep_personal(self, opened: OpenRound, everyone: ClientBatch) -> None:
        """Stores what moved and was not sent, of those who took part."""
        personal = self.state.personal
        count = len(self.config.task.sizes)
        index = torch.tensor(everyone.ids, dtype=torch.int64)
        for key in opened.keys.kept:
            if key in everyone.params:  # on Flower it is with the client, and not here
                # Who has not taken part yet would begin from the server's tensor.
                common = opened.before.tensors[key]
                earlier = personal.get(key, common.expand(count, *common.shape))
                # Not in place: an observer may still hold what was kept before the round.
                personal[key] = earlier.index_copy(0, index, everyone.params[key])
