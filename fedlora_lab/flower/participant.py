"""The terms that the server and every client of a federation prepare alike."""

import hashlib
import json
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import Any

from flwr.app import Message
from torch import Tensor

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
from fedlora_lab.tasks.task import (
    Clients,
    Examples,
    Task,
    map_inputs,
    named_tensors,
    person_numbers,
)


def placeholder_examples(sizes: tuple[int, ...], test: Examples) -> tuple[Examples, ...]:
    """Makes as many zero examples as each client has, shaped like the public ones; no memory.

    Numbers of examples are public: they decide the sample rates, which the ledger holds.

    >>> import torch
    >>> test = torch.ones(2, 4), torch.ones(2, dtype=torch.int64)
    >>> [tuple(x.shape) for x, _ in placeholder_examples((5, 8), test)]
    [(5, 4), (8, 4)]
    """

    def zeros(count: int, tensor: Tensor) -> Tensor:
        return tensor.new_zeros(()).expand(count, *tensor.shape[1:])

    x, y = test
    return tuple((map_inputs(partial(zeros, n), x), zeros(n, y)) for n in sizes)


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
    >>> participant = fl.flower.Participant.of(task, "rolora", None, plan)
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
        privacy: Privacy | None,
        plan: Plan,
        *,
        lora: "Lora | None" = None,
        seed: int | None = None,
    ) -> "Participant":
        """Checks the terms and prepares the model. The examples of the task's clients are not read.

        Args: see `fl.run`.
        Raises: ``ValueError`` (name, value, range), also for trust="central": clients on Flower
            clip and noise for themselves, and no un-noised value reaches the server.
        """
        check_parts(task, privacy, plan)
        trust = None if privacy is None else privacy.trust
        expected = "'local' or 'secagg': on Flower clients clip and noise for themselves"
        check(trust != "central", "trust", trust, expected)
        sizes = task.sizes
        persons = None
        if privacy is not None and privacy.unit == "person":
            # Public is how many persons a client has, and not how many examples: one for each.
            sizes = privacy.unit_counts(task)
            ends = accumulate(sizes)
            persons = tuple(list(range(end - n, end)) for n, end in zip(sizes, ends, strict=True))
        clients = Clients(placeholder_examples(sizes, task.test), task.client_names, persons)
        task = replace(task, clients=clients)
        # No example of anybody, the server's own included: terms and digest cannot depend on one.
        config = make_config(task, method, privacy, plan, lora, seed)
        prepared = prepare_run(config, {}, EXACT)
        begin = initial_server(prepared)
        terms = {
            **settings_of(config),
            "rounds": plan.rounds,
            "slots": {str(key): [list(x.shape), str(x.dtype)] for key, x in begin.tensors.items()},
            "loss": getattr(task.loss, "__qualname__", repr(task.loss)),
        }
        digest = hashlib.sha256(json.dumps(terms, sort_keys=True).encode()).hexdigest()
        return cls(prepared, begin, digest)

    def with_data(self, client: int, data: Any) -> Prepared:
        """Returns the run as one client prepares it: its own examples and nobody else's.

        Args:
            client: its number.
            data: (x, y), in the person unit (x, y, persons), the person of each example.
        Raises: ``ValueError`` unless there are as many examples, or persons, as the terms say, of
            the types and shapes of the public ones; none of their values is named.
        Guarantees: test_flower.py::test_persons_travel_with_the_examples_of_their_client.
        """
        task = self.config.task
        last = len(task.sizes) - 1
        check(0 <= client <= last, "client", client, f"a number in [0, {last}]")
        x, y = data[:2]
        unit = "examples"
        count = len(y)
        persons = {}
        if self.config.by_person:
            try:
                (persons[client],) = person_numbers(data[2:], (count,))
            except ValueError:
                # Without the error's own words, which name a person.
                expected = "(x, y, persons), a whole number for each example: persons are protected"
                raise ValueError(f"examples: expected {expected}") from None
            unit = "persons"
            count = int(persons[client].max()) + 1
        if count != task.sizes[client]:
            agreed = f"{task.sizes[client]}, as agreed for client {client}"
            raise ValueError(f"{unit}: expected {agreed}")
        kinds, public_kinds = (
            {name: (tensor.dtype, tensor.shape[1:]) for name, tensor in named_tensors(part).items()}
            for part in ((x, y), task.test)
        )
        if kinds != public_kinds:
            expected = "inputs and labels of the types and shapes of the public test examples"
            raise ValueError(f"examples: expected {expected}")
        return replace(self.prepared, data={client: (x, y)}, persons=persons)

    def broadcast(self, values: ServerState) -> Tensors:
        """Encodes the server's tensors for messages, by the method's broadcast rule."""
        return messages.encode_broadcast(_sent_down(values), self.config.method.broadcast)

    def received(self, message: Message, t: int) -> ServerState:
        """Returns the tensors that the server sent for round t."""
        arrays = messages.get_arrays(message)
        codes = messages.unpack_arrays(arrays, self.broadcast(self.begin))
        rule = self.config.method.broadcast
        return ServerState(messages.decode_broadcast(codes, rule, _sent_down(self.begin)), t)


def _sent_down(values: ServerState) -> Tensors:
    return {key: tensor for key, tensor in values.tensors.items() if key.kind.sent_down}
