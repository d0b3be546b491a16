"""The record of a round: what is measured of it, and what of that may be shown."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from fedlora_lab import measures
from fedlora_lab._utils.torch_state import full_precision
from fedlora_lab.federated import exchange, local_training
from fedlora_lab.federated.config import ClientIds, RoundKeys, Visibility
from fedlora_lab.federated.exchange import Received, Traffic
from fedlora_lab.federated.noise_forecast import Curve, NoiseForecast
from fedlora_lab.federated.prepared import Prepared
from fedlora_lab.federated.records import BUILT_IN, NOT_SEEN, Round
from fedlora_lab.federated.store import RunState
from fedlora_lab.lora import per_example
from fedlora_lab.methods import aggregation
from fedlora_lab.methods.quantization import full
from fedlora_lab.methods.state import ServerState, Tensors
from fedlora_lab.privacy.ledger import Ledger
from fedlora_lab.privacy.privatizer import ClipCounts


@dataclass(frozen=True)
class OpenRound:
    """What a round begins with.

    Args:
        started_at: by `time.perf_counter`.
        ids: of the clients that take part.
        before: the server's state, whose ``round`` is its number, from 0.
        broadcast: what goes down of it.
        keys: which tensors move, are sent and stay.
    """

    started_at: float
    ids: ClientIds
    before: ServerState
    broadcast: ServerState
    keys: RoundKeys


@dataclass(frozen=True)
class RoundResult:
    """What a round ends with, from which its record is made.

    Args:
        opened: what it began with.
        received: what the server had in hand at the end.
        steps: what the clip did in the local steps.
        traffic: numbers and bytes, over all clients.
        participants: how many trained; elsewhere, how many of those that were asked answered.
    """

    opened: OpenRound
    received: Received
    steps: ClipCounts = field(default_factory=ClipCounts)
    traffic: Traffic = field(default_factory=Traffic)
    participants: int = 0


@dataclass
class RecordMaker:
    """Makes the records of a run, of which each shows what `Config.visibility` lets it show.

    Args:
        prepared: the checked arguments, the adapted model and the examples.
        remote: the clients train in other processes: what they know is NaN in the records.
        visible: what the records show besides released values.
        foreseen: the noise of each layer that is known before the run, over its rounds.
    """

    prepared: Prepared
    remote: bool = False
    visible: Visibility = field(init=False)
    foreseen: dict[tuple[str, str], Curve] = field(init=False)

    def __post_init__(self) -> None:
        # What no round changes is made here, before the first one.
        self.visible = self.prepared.config.visibility(self.remote)
        self.foreseen = NoiseForecast(self.prepared.config, self.prepared.adapted.weights).table()

    def of_state(self, state: RunState, ledger: Ledger | None) -> Round:
        """Makes a record of a state as it is, as if no round had led to it."""
        server = state.server
        keys = local_training.round_keys(self.prepared.config, server.tensors, 0)
        opened = OpenRound(time.perf_counter(), (), server, server, keys)
        return self.of_round(RoundResult(opened, Received.empty()), state, ledger)

    def of_stored_round(
        self, state: RunState, ledger: Ledger | None, rows: Sequence[Sequence[Any]]
    ) -> Round:
        """Makes the record of the round after which a stored run stands, as it was yielded.

        Args:
            state, ledger: of the run, as restored.
            rows: of the round, from the run's folder.
        Guarantees: test_checkpoint.py::test_a_finished_run_yields_its_last_record_again.
        """
        by_layer = tuple((layer, measure, value) for *_, layer, measure, value in rows)
        whole = {measure: value for layer, measure, value in by_layer if layer == "all"}
        traffic = {name: whole.get(name, NOT_SEEN) for name in Traffic._fields}
        # Epsilon is no field: it follows from the ledger.
        kept = [one.name for one in fields(Round) if one.name in BUILT_IN]
        return replace(
            self.of_state(state, ledger),
            traffic=Traffic(**traffic),
            rows=tuple(row for row in by_layer if row[0] != "all"),
            **{name: whole.get(name, NOT_SEEN) for name in kept},
        )

    def of_round(self, result: RoundResult, state: RunState, ledger: Ledger | None) -> Round:
        """Makes the record of the round that ended in a state.

        Args:
            result: what the round ended with.
            state, ledger: of the run, at its end.
        Guarantees: test_attack_evaluation.py::test_records_do_not_tell_who_took_part,
            ::test_without_a_clip_norm_a_release_does_not_depend_on_the_data.
        """
        config = self.prepared.config
        visible = self.visible
        received = result.received
        rows, deviation = self._layers(result, state.server)
        clip = result.steps if config.releases_steps else received.clip_counts
        nonfinite = result.steps.nonfinite + received.clip_counts.nonfinite
        seconds = time.perf_counter() - result.opened.started_at
        copied = _copied(state.server)
        plain = copied.without_core()
        factors_a = plain.named("A")
        factors_b = plain.named("B")
        unseen = Traffic(*[NOT_SEEN] * len(Traffic._fields))
        done = state.server.round
        foreseen = [(*name, float(curve[done])) for name, curve in self.foreseen.items()]
        return Round(
            index=state.server.round,
            method=config.method.slug,
            task=config.task.name,
            seed=config.streams.seed,
            metrics=self._metrics(state),
            deviation=deviation,
            adapter={x: (factors_a[x], factors_b[x]) for x in factors_b},
            head=copied.named("head"),
            traffic=result.traffic if visible.participants else unseen,
            participants=result.participants if visible.participants else NOT_SEEN,
            clipped=float(clip.scaled) / max(clip.rows, 1) if visible.clips else NOT_SEEN,
            nonfinite=float(nonfinite) if visible.clips else NOT_SEEN,
            seconds=seconds if visible.seconds else NOT_SEEN,
            ledger=None if ledger is None else ledger.snapshot(),
            rows=(*rows, *foreseen),
            source=(config.task, config.lora, copied),
        )

    def _layers(
        self, result: RoundResult, after: ServerState
    ) -> tuple[list[tuple[str, str, float]], float]:
        """Measures of each layer, and the deviation of all where clients' products may be seen."""
        config = self.prepared.config
        received = result.received
        before = result.opened.before
        sent = result.opened.broadcast
        mean = before
        if received.uploads:
            mean = aggregation.mean(before, sent, received.uploads, received.weights)
        clients = None
        # Before training the mean is the server's product; later a round without uploads has none.
        measured = bool(received.uploads) or not after.round
        # Where later rounds measure no deviation, the start does not: 0 would look like a measure.
        if measured and not config.releases_sum and not result.opened.keys.kept:
            clients = {}
            for key, x in before.tensors.items():
                if key.kind.of_the_product:
                    values = aggregation.client_values(before, sent, received.uploads, key)
                    # What the quantised broadcast took is given back: it is no error of the mean.
                    clients[key] = values + (x - sent.tensors[key])
        noise = received.noise if self.visible.clips else None
        seen = measures.Exchange(before, mean, after, clients, received.weights, noise)
        return measures.layer_rows(seen, config.lora.scaling)

    def _metrics(self, state: RunState) -> Mapping[str, float]:
        """The task's metrics of the server's model, or the mean over the models that clients keep.

        NaN in a private run, with a seed or without, where the test examples are not public.
        """
        config = self.prepared.config
        server = state.server
        unseen = dict.fromkeys(config.task.metrics, NOT_SEEN)
        ended = server.round >= config.plan.rounds
        if server.round % self.prepared.execution.evaluate_every and not ended:
            return unseen
        # Elsewhere clients keep factors from the first round in which some were not sent.
        rounds = range(server.round if self.remote else 0)
        if state.personal or any(
            local_training.round_keys(config, server.tensors, t).kept for t in rounds
        ):
            return self._own_metrics(state) if self.visible.own_scores else unseen
        scores = self._evaluate(server.tensors) if self.visible.scores else unseen
        if config.method.broadcast == full:
            return scores
        received = scores
        if self.visible.scores:
            received = self._evaluate(exchange.broadcast(config.method, server).tensors)
        return {**scores, **{f"{name}_received": value for name, value in received.items()}}

    def _own_metrics(self, state: RunState) -> Mapping[str, float]:
        """The task's metrics, the mean over the models with which clients would begin a round."""
        task = self.prepared.config.task
        each = []
        for k in range(len(task.sizes)):
            # Not what it kept alone: what all share comes from the server.
            personal = {key: x[[k]] for key, x in state.personal.items()}
            client = exchange.begin_clients(self.prepared, (k,), state.server, personal)
            each.append(self._evaluate({key: x[0] for key, x in client.params.items()}))
        return {name: sum(x[name] for x in each) / len(each) for name in task.metrics}

    def _evaluate(self, values: Tensors) -> dict[str, float]:
        """The task's metrics of a model on the test examples."""
        prepared = self.prepared
        task = prepared.config.task
        with full_precision():
            return per_example.evaluate(
                task, prepared.adapted, values, task.test, chunk=prepared.chunk
            )


def _copied(server: ServerState) -> ServerState:
    """The server's state in copies, for a record.

    Whoever wrote into the run's own tensors would change a private run past clip and noise.
    Guarantees: test_run.py::test_writing_into_a_record_changes_no_run.
    """
    return server.replace_tensors({key: x.clone() for key, x in server.tensors.items()})
