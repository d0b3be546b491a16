"""The terms that the server and every client of a federation prepare alike."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import torch
from flwr.app import Message

from fedlora_lab._utils.torch_state import with_default_modes
from fedlora_lab._utils.validation import check
from fedlora_lab.federated.config import EXACT, Config
from fedlora_lab.federated.make_config import check_parts, make_config
from fedlora_lab.federated.prepared import Prepared, initial_server, prepare_run
from fedlora_lab.federated.store import settings_of
from fedlora_lab.flower import messages
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.plan import Lora, Plan
from fedlora_lab.methods.state import ServerState, Tensors
from fedlora_lab.privacy.plan import Privacy
from fedlora_lab.tasks.ragged import Ragged
from fedlora_lab.tasks.task import Task, map_inputs


def placeholder_task(task: Task, sizes: Sequence[int], by_person: bool = False) -> Task:
    """Puts zeros in the place of all private examples, for those who agree and hold none.

    Numbers of examples, or of persons, are public: they decide the sample rates, which the ledger
    holds.

    Args:
        task: whose model and public examples are kept.
        sizes: how many examples each client has; where persons are protected, how many persons.
        by_person: persons are protected.

    >>> import fedlora_lab as fl
    >>> placeholder_task(fl.tasks.regression(clients=2), (5, 8, 3)).sizes
    (5, 8, 3)
    """
    x, y = task.test

    def zeros(count: int, column: Any) -> Any:
        if isinstance(column, Ragged):
            none = torch.zeros(count, dtype=torch.int64)
            return Ragged(column.values[:0], none, column.padding)
        return column.new_zeros(()).expand(count, *column.shape[1:])  # takes no memory

    ends = accumulate(sizes, initial=0)
    return replace(
        task,
        clients=[(map_inputs(partial(zeros, n), x), zeros(n, y)) for n in sizes],
        persons=[range(*both) for both in pairwise(ends)] if by_person else None,
    )


@dataclass(frozen=True)
class Participant:
    """What server and every client prepare from the agreed terms: the run and the adapted model.

    Args:
        prepared: the run, on a task without examples, and the adapted model.
        begin: the server's tensors before training, for their names, shapes and types.
        terms: a digest of everything that must be the same for all; seed, privacy and base model
            included.

    >>> import fedlora_lab as fl
    >>> task, plan = fl.tasks.regression(clients=2, examples=8), fl.Plan(rounds=1, batch=4)
    >>> privacy = fl.Privacy(noise_multiplier=1.0, delta=1e-3)
    >>> participant = fl.flower.Participant.of(task, "rolora", privacy, plan)
    >>> participant.prepared.data, len(participant.terms)
    ({}, 64)
    """

    prepared: Prepared
    begin: ServerState
    terms: str

    @property
    def config(self) -> Config:
        """The checked terms of the run."""
        return self.prepared.config

    @classmethod
    @with_default_modes
    def of(
        cls,
        task: Task,
        method: "Method | str",
        privacy: Privacy,
        plan: Plan,
        *,
        lora: "Lora | None" = None,
        seed: int | None = None,
    ) -> "Participant":
        """Checks the terms and prepares the model. The examples of the task's clients are not read.

        Args: see `fl.run`.
        Raises: ``ValueError`` (name, value, range), also without privacy, and for trust="central"
            and "secagg": the server receives every upload, so each must be protected alone.
        """
        check_parts(task, privacy, plan)
        check(privacy is not None, "privacy", privacy, "a Privacy: uploads leave their sites")
        expected = "'local': on Flower the server receives every upload: each is noised alone"
        check(privacy.trust_model.uploads_are_seen, "trust", privacy.trust, expected)
        # No example of anybody, the server's own included: terms and digest cannot depend on one.
        task = placeholder_task(task, privacy.unit_counts(task), privacy.unit == "person")
        config = make_config(task, method, privacy, plan, lora, seed)
        prepared = prepare_run(config, {}, EXACT)
        begin = initial_server(prepared)
        terms = {
            **settings_of(config),
            "rounds": plan.rounds,
            "tensors": {str(key): str(x.shape) for key, x in begin.tensors.items()},
        }
        digest = hashlib.sha256(json.dumps(terms, sort_keys=True).encode()).hexdigest()
        return cls(prepared, begin, digest)

    def with_data(self, client: int, own: Task) -> Prepared:
        """Returns the run as one client prepares it: its own examples and nobody else's.

        Args:
            client: its number.
            own: a task of this client alone, whose examples are read.
        Raises: ``ValueError`` unless there are as many examples, or persons, as the terms say, of
            the types and shapes of the public ones; none of their values is named.
        Guarantees: test_flower.py::test_persons_travel_with_the_examples_of_their_client.
        """
        agreed = self.config.task
        last = len(agreed.sizes) - 1
        check(0 <= client <= last, "client", client, f"a number in [0, {last}]")
        # Examples of other types or shapes than the public ones are refused here.
        task = replace(agreed, clients=own.clients, persons=own.persons)
        privacy = self.config.privacy
        assert privacy is not None  # refused by `of`
        if privacy.unit_counts(task) != agreed.sizes[client : client + 1]:
            # Without the number that lies here, which is the site's.
            unit = "persons" if self.config.by_person else "examples"
            raise ValueError(f"{unit}: expected {agreed.sizes[client]}, as agreed for {client}")
        persons = {client: task.local_persons[0]} if self.config.by_person else {}
        return replace(self.prepared, data={client: task.clients[0]}, persons=persons)

    def received(self, message: Message, t: int) -> ServerState:
        """Returns the tensors that the server sent for round t."""
        received = messages.unpack_tensors(messages.get_arrays(message))
        return ServerState(messages.check_tensors(received, sent_down(self.begin)), t)


def sent_down(values: ServerState) -> Tensors:
    """The tensors that clients receive; what else the server keeps stays with it."""
    return {key: tensor for key, tensor in values.tensors.items() if key.kind.sent_down}
