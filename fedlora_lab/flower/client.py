"""The client's side: train on its own examples, clip, noise, send what is shared, keep the rest.

What a client keeps lies in Flower's state of the run or, across runs, in its memory, a folder of
its own: the last answer under each terms, factors that stay, a ledger of all that was released from
these examples, and a digest of the examples under a key that never leaves.
"""

import hashlib
import hmac
import json
import logging
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from torch import Tensor

import fedlora_lab as fl
from fedlora_lab._utils.files import lock_folder, write_atomically
from fedlora_lab._utils.validation import check, check_number
from fedlora_lab.federated import uploads
from fedlora_lab.federated.local_training import local_step
from fedlora_lab.federated.make_spec import make_run_spec
from fedlora_lab.federated.spec import Prepared, RunSpec, initial_server, prepare_run
from fedlora_lab.flower import messages
from fedlora_lab.lora import per_example
from fedlora_lab.methods.state import ServerState, Tensors
from fedlora_lab.tasks.task import Examples, Task, map_inputs, named_tensors, person_numbers

LOG = logging.getLogger("fedlora_lab.flower")
WHY = "its own log says why"
PUBLIC_TEST_NEEDED = "True: scores would tell of private test examples"
ANSWERED = "answered"
REPLY = "reply"
PERSONAL = "personal"
"""Names in a client's state, each followed by the terms that it belongs to."""
EXAMPLES = "examples"
RELEASED = "released"
"""Of all terms: key and digest of the examples, and the ledger of each terms."""
MEMORY = "client"
"""The file in a memory's folder."""


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


def placeholder_persons(sizes: tuple[int, ...]) -> tuple[list[int], ...]:
    """Makes a person of every placeholder example, for terms that protect persons: then the sizes
    are numbers of persons.

    >>> placeholder_persons((2, 3))
    ([0, 1], [2, 3, 4])
    """
    numbers = iter(range(sum(sizes)))
    return tuple(list(islice(numbers, n)) for n in sizes)


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
    def spec(self) -> RunSpec:
        """The checked terms of the run."""
        return self.prepared.spec

    @classmethod
    def of(
        cls,
        task: Task,
        method: "fl.Method | str",
        privacy: fl.Privacy | None,
        plan: fl.Plan,
        *,
        lora: Any = None,
        seed: int | None = 0,
    ) -> "Participant":
        """Checks the terms and prepares the model. The examples of the task's clients are not read.

        Args: as of `fl.run`.
        Raises: ``ValueError`` (name, value, range), also for trust="central": clients on Flower
            clip and noise for themselves, and no un-noised value reaches the server.
        """
        trust = None if privacy is None else privacy.trust
        expected = "'local' or 'secagg': on Flower clients clip and noise for themselves"
        check(trust != "central", "trust", trust, expected)
        sizes = task.sizes
        persons = None
        if privacy is not None and privacy.unit == "person":
            # Public is how many persons a client has, and not how many examples: one for each.
            sizes = privacy.units(task)
            persons = placeholder_persons(sizes)
        task = replace(task, clients=placeholder_examples(sizes, task.test), persons=persons)
        spec = make_run_spec(task, method, privacy, plan, lora, seed)
        prepared = prepare_run(spec, {})
        server = initial_server(prepared)
        keys = {str(key): [list(x.shape), str(x.dtype)] for key, x in server.tensors.items()}
        rules = [getattr(rule, "__qualname__", repr(rule)) for rule in (task.forward, task.loss)]
        model = {"slots": keys, "targets": task.targets, "head": task.head, "rules": rules}
        terms = {**spec.settings(), **model, "rounds": plan.rounds}
        digest = hashlib.sha256(json.dumps(terms, sort_keys=True).encode()).hexdigest()
        return cls(prepared, server, digest)

    def with_data(self, client: int, data: Any) -> Prepared:
        """Returns the run as one client prepares it: its own examples and nobody else's.

        Args:
            client: its number.
            data: (x, y), in the person unit (x, y, persons), the person of each example.
        Raises: ``ValueError`` unless there are as many examples, or persons, as the terms say, of
            the types and shapes of the public ones; none of their values is named.
        Guarantees: test_flower.py::test_persons_travel_with_the_examples_of_their_client.
        """
        sizes = self.spec.task.sizes
        by_person = self.spec.by_person
        check(0 <= client < len(sizes), "client", client, f"a number in [0, {len(sizes) - 1}]")
        (x, y), people, what = data[:2], data[2:], ""
        if by_person:
            try:
                people = person_numbers(people, (len(y),))
                what = " persons"
            except ValueError:
                words = "(x, y, persons), a whole number for each example: persons are protected"
                raise ValueError(f"examples: expected {words}") from None
        if (int(people[0].max()) + 1 if by_person else len(y)) != sizes[client]:
            agreed = f"{sizes[client]}{what}, as agreed for client {client}"
            raise ValueError(f"examples: expected {agreed}")
        kinds = [
            {name: (x.dtype, x.shape[1:]) for name, x in named_tensors(part).items()}
            for part in ((x, y), self.spec.task.test)
        ]
        if kinds[0] != kinds[1]:
            expected = "inputs and labels of the types and shapes of the public test examples"
            raise ValueError(f"examples: expected {expected}")
        persons = {client: people[0]} if by_person else {}
        return replace(self.prepared, data={client: (x, y)}, persons=persons)

    def name(self, what: str) -> str:
        """Returns the name of something that a client keeps under these terms."""
        return f"{what} {self.terms}"

    def broadcast(self, values: ServerState) -> Tensors:
        """Encodes the server's tensors for messages, by the method's broadcast rule."""
        return messages.encode_broadcast(_sent_down(values), self.spec.method.broadcast)

    def received(self, message: Message, t: int) -> ServerState:
        """Returns the tensors that the server sent for round t."""
        arrays = messages.get_arrays(message)
        codes = messages.unpack_arrays(arrays, self.broadcast(self.begin))
        rule = self.spec.method.broadcast
        like = _sent_down(self.begin)
        return ServerState(messages.decode_broadcast(codes, rule, like), t)

    def round_of(self, message: Message, beyond: int = 0) -> int:
        """Returns the round that a message is about, under the terms of this client."""
        messages.check_about(message, {"terms": self.terms})
        t: Any = message.content.config_records[messages.ABOUT].get("round")
        most = self.spec.plan.rounds - 1 + beyond
        check(isinstance(t, int) and 0 <= t <= most, "round", t, f"a whole number in [0, {most}]")
        return t


def _sent_down(values: ServerState) -> Tensors:
    return {key: tensor for key, tensor in values.tensors.items() if key.kind.sent_down}


ParticipantLoader = Callable[[Context], tuple[Participant, int, Any]]
"""The third are examples (x, y); where persons are protected (x, y, persons)."""


@dataclass(frozen=True)
class _Owner:
    """Whose examples they are: what `client_app` was given."""

    load: ParticipantLoader
    memory: "Callable[[Context], str | Path | None] | None"
    most_epsilon: float | None
    patience: float


def client_app(
    load: ParticipantLoader,
    mods: "list[Mod] | None" = None,
    *,
    memory: "Callable[[Context], str | Path | None] | None" = None,
    most_epsilon: float | None = None,
    patience: float = 600.0,
) -> ClientApp:
    """Builds the ClientApp of a federation.

    Under the same terms a round that was answered is answered again with the same bits: a lost
    reply, or a server that was restarted, costs no further privacy. Rounds before it are refused.
    Under other terms a round is another release of the same examples: the client counts all of them
    in a ledger of its own (`client_ledger`), and refuses where its own limit is reached. Examples
    other than those that were used first are refused.

    Args:
        load: context -> the terms that this client agreed to, its number, its examples. The terms
            are the client's own copy: a message decides neither its clip nor its noise, and a
            server with other terms is refused. Its errors, as those of the training, reach the
            coordinator without their words.
        mods: Flower's, around every message.
        memory: context -> a folder, by its whole path, for what the client keeps across runs, of
            these examples alone; ``None``: Flower's state of the run, which ends with it. In
            another folder the client would answer anew: keep it as long as the examples.
        most_epsilon: the client's own limit over all terms, > 0: a round that would exceed it is
            refused, at the delta and against the observer of the terms.
        patience: seconds that a message waits for another run's message to the same memory, > 0.
    Raises: ``ValueError`` (name, value, range).
    Guarantees: with C = 0 two data sets give the same messages bit for bit, and replies hold what
        is shared and nothing else (tests/flower/test_flower_wire.py);
        tests/flower/test_client_memory.py.
    """
    if most_epsilon is not None:
        check_number("most_epsilon", most_epsilon, 0, open_low=True)
    check_number("patience", patience, 0, open_low=True)
    app = ClientApp(mods=mods)
    owner = _Owner(load, memory, most_epsilon, patience)
    for register, answer in ((app.query, _introduce), (app.train, _train), (app.evaluate, _score)):
        register()(partial(answer, owner))  # of a function that other processes find by its name
    return app


@contextmanager
def private_errors(what: str) -> Iterator[None]:
    """Logs an error of work on private examples here, and raises it in words without values.

    A message of torch can hold a label, and Flower sends an error's text to the coordinator.

    Guarantees: tests/flower/test_attack_flower.py::test_an_error_tells_the_coordinator_no_value.
    """
    try:
        yield
    except Exception:
        LOG.exception("%s failed", what)
        raise ValueError(f"{what} failed at this site; {WHY}") from None


def _load(owner: _Owner, context: Context) -> tuple[Participant, int, Any]:
    with private_errors("reading its examples"):
        return owner.load(context)


def _introduce(owner: _Owner, message: Message, context: Context) -> Message:
    own, number, _ = _load(owner, context)
    content = messages.make_content({"client": number, "terms": own.terms})
    return Message(content, reply_to=message)


def _train(owner: _Owner, message: Message, context: Context) -> Message:
    own, number, data = _load(owner, context)
    t = own.round_of(message)  # no memory is touched under other terms
    with _remembered(owner, context) as state:
        prepared = own.with_data(number, data)
        _check_examples(state, prepared, number)
        answered: Any = state.config_records.get(own.name(ANSWERED), {})
        last = answered.get("round", -1)
        first = answered.get("client", number)
        # One answer counted as that of two clients would have the noise of one.
        check(number == first, "client", number, f"{first}, as which these examples answered")
        check(t >= last, "round", t, f"{last}, which was answered last, or a later one")
        # A round is trained once: a second answer with fresh noise would be a second release.
        if t > last:
            books = _charged(own, number, state, t)
            _check_limit(own, owner.most_epsilon, books)
            sent = own.received(message, t)
            with private_errors("training"):
                parts = number, sent, _personal(own, state)
                reply, kept = _upload(own, prepared, *parts, t)
                packed = map(messages.pack_arrays, (reply, kept))
                state[own.name(REPLY)], state[own.name(PERSONAL)] = packed
            # In the memory before the reply leaves: the release is counted or was never made.
            state[RELEASED] = ConfigRecord({**books})
            state[own.name(ANSWERED)] = ConfigRecord({"round": t, "client": number})
        about = {"client": number, "terms": own.terms, "round": t}
        arrays = state.array_records[own.name(REPLY)]
        return Message(messages.make_content(about, arrays), reply_to=message)


# ---- what a client keeps


@contextmanager
def _remembered(owner: _Owner, context: Context) -> Iterator[RecordDict]:
    """The client's state as its memory holds it; what was changed is on the disk afterwards.

    Locked from reading it to writing it: two runs that ask at once would get two answers, each with
    new noise.
    """
    folder = None if owner.memory is None else owner.memory(context)
    if folder is None:
        yield context.state
        return
    folder = Path(folder)
    # A node that is started somewhere else would find another, empty one, and answer again.
    whole = "the folder's whole path, the same wherever the node is started"
    check(folder.is_absolute(), "memory", str(folder), whole)
    with lock_folder(folder, patience=owner.patience, what=f"memory={str(folder)!r}"):
        if (folder / MEMORY).exists():
            context.state = read_memory(folder)
        yield context.state
        content = recorddict_to_proto(context.state).SerializeToString()
        write_atomically(folder / MEMORY, _with_digest(content))


def read_memory(folder: "str | Path") -> RecordDict:
    """Reads what a client keeps in its memory.

    Raises: ``ValueError`` for a memory that is damaged: what was answered and spent is then lost.
    Guarantees: test_client_memory.py::test_no_answer_comes_from_a_damaged_memory.
    """
    found = (Path(folder) / MEMORY).read_bytes()
    content = found[hashlib.sha256().digest_size :]
    expected = "what this client wrote there; it is damaged, and nothing is answered from it"
    check(found == _with_digest(content), "memory", str(folder), expected)
    with private_errors("reading its memory"):
        return recorddict_from_proto(ProtoRecordDict.FromString(content))


def _with_digest(content: bytes) -> bytes:
    """A memory behind a digest of its content, which finds damage, not forgery."""
    return hashlib.sha256(content).digest() + content


def _check_examples(state: RecordDict, prepared: Prepared, number: int) -> None:
    """Binds a state to the examples that it was first used with, and refuses others.

    The ledger counts what was released from these: of others it would say too little, or too much.
    """
    known: Any = state.config_records.get(EXAMPLES)
    # A plain digest would confirm a guess at a label; the key stays in the client's own state.
    key = secrets.token_bytes(32) if known is None else known["key"]
    digest = hmac.new(key, digestmod="sha256")
    persons = {"person": prepared.persons[number]} if number in prepared.persons else {}
    for name, x in sorted({**named_tensors(prepared.data[number]), **persons}.items()):
        digest.update(f"{name} {x.dtype} {tuple(x.shape)}\n".encode())
        flat = x.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    if known is None:
        state[EXAMPLES] = ConfigRecord({"key": key, "digest": digest.digest()})
    elif not hmac.compare_digest(known["digest"], digest.digest()):
        words = "those of which this client keeps a memory; others have a memory of their own"
        raise ValueError(f"examples: expected {words}")


SAME = ("unit", "delta")
"""What the terms of one client's runs must share, so that their releases add up."""


def client_ledger(kept: "RecordDict | str | Path") -> "fl.Ledger | None":
    """Adds up what a client has released from its examples under all terms; ``None`` for nothing.

    A run without privacy makes epsilon infinite.

    Args: kept: its state, or the folder of its memory.
    Raises: ``ValueError`` for a memory that is damaged, or of terms whose releases do not add up.
    Guarantees: test_client_memory.py::test_a_client_counts_its_releases_under_all_terms.
    """
    if not isinstance(kept, RecordDict):
        kept = read_memory(kept) if (Path(kept) / MEMORY).exists() else RecordDict()
    texts: Any = kept.config_records.get(RELEASED, {})
    return _composed(texts)


def _composed(texts: Any) -> "fl.Ledger | None":
    """One ledger of those of each terms, where an empty text is a run without privacy."""
    books = [fl.Ledger.from_json(text) for text in texts.values() if text]
    if len(books) < len(texts):
        terms = ("unit", "delta", "accountant", "reproducible", "trust")
        like = {name: getattr(books[0], name) for name in terms} if books else {}
        books.append(fl.Ledger(**like))
        # In whatever unit: what left without noise protects nobody.
        books[-1].record(0, None, sample_rate=1.0, noise_multiplier=0.0)
    return fl.Ledger.compose(*books) if books else None


def _charged(own: Participant, number: int, state: RecordDict, t: int) -> dict[str, str]:
    """The client's ledgers by terms, as texts, with the release of round t."""
    books: dict[str, Any] = dict(state.config_records.get(RELEASED, {}))
    privacy = own.spec.privacy
    if privacy is None:
        return books | {own.terms: ""}
    fresh = privacy.ledger(reproducible=own.spec.streams.seed is not None)
    for book in (fl.Ledger.from_json(text) for text in books.values() if text):
        for name in SAME:
            one = getattr(fresh, name)
            other = getattr(book, name)
            words = f"{other!r}, as in all releases of these examples: others do not add up"
            check(one == other, name, one, words)
    if own.terms in books:
        book = fl.Ledger.from_json(books[own.terms])
    else:
        book = fresh
        book.uncertified = own.spec.uncertified
    entry = own.spec.entry((number,))
    one = {name: x[0] if isinstance(x, tuple) else x for name, x in entry.items()}
    # For everybody: in other terms the client has another number, and its examples are the same.
    book.record(t + 1, None, **one)
    return books | {own.terms: book.to_json()}


def _check_limit(own: Participant, most: float | None, books: dict[str, str]) -> None:
    """Refuses a round with which the client would have released more than it allows."""
    if most is None:
        return
    book = _composed(books)
    spent = 0.0 if book is None else book.epsilon_or_inf()
    if spent > most:
        # What the client has released to others is told to its own log alone.
        LOG.warning("a round is refused: epsilon would be %.4g over all terms", spent)
        words = f"at most {most:g}, the client's own limit for all terms together"
        raise ValueError(f"epsilon: expected {words}")


def _upload(
    own: Participant,
    prepared: Prepared,
    number: int,
    sent: ServerState,
    personal: Tensors,
    t: int,
) -> tuple[Any, Tensors]:
    """The client's half of a round: what it sends, and what it keeps until the next."""
    spec = own.spec
    before = {key: tensor[None] for key, tensor in personal.items()}
    clients = uploads.begin_clients(prepared, (number,), sent, before)
    for step in range(spec.plan.local_steps):
        local_step(prepared, clients, t, step)
    keys = uploads.round_keys(spec, sent.tensors, t)
    whole = uploads.stack_clients(prepared, [clients], keys.moved, sent)
    # Clipped and noised here, before anything is put into a message.
    reply = uploads.privatize(prepared, whole, keys.sent, sent)
    kept = {**personal, **{key: whole.params[key][0] for key in keys.kept}}
    rank = uploads.rank_sent(spec, number)
    return messages.take_ranks(reply, rank), kept


def _personal(own: Participant, state: RecordDict) -> Tensors:
    """The tensors that this client kept in earlier rounds; they carry no noise and never leave.

    Those of other terms are others: there they may have been kept without noise.
    """
    kept = state.array_records.get(own.name(PERSONAL), ArrayRecord())
    like = {key: own.begin.tensors[key] for key in map(messages.parse_key, kept)}
    return messages.unpack_arrays(kept, like, finite=False)


def _score(owner: _Owner, message: Message, context: Context) -> Message:
    own, number, _ = _load(owner, context)
    own.round_of(message, beyond=1)
    with _remembered(owner, context) as state:
        return answer_evaluation(own, number, message, state)


def answer_evaluation(
    own: Participant, number: int, message: Message, state: RecordDict
) -> Message:
    """Answers with the metrics, on public examples, of the model that this client holds.

    Args: own, number: the client's terms and number. message: as Flower hands it over. state: what
        the client keeps.
    Raises: ``ValueError`` in the client unit: what a client keeps carries no noise there, and
        neither would its score; and in a private run on test examples that are not public.
    """
    if own.spec.privacy is not None:
        public = own.spec.task.public_test
        unit = own.spec.privacy.unit
        check(public, "public_test", public, PUBLIC_TEST_NEEDED)
        by_step = own.spec.privacy.by_step
        check(by_step, "unit", unit, "'example' or 'person': scores would tell what is kept")
    t = own.round_of(message, beyond=1)
    task = own.spec.task
    sent = own.received(message, t).tensors
    with private_errors("judging"):
        values = {**sent, **_personal(own, state)}
        scores = per_example.evaluate(task, own.prepared.adapted, values, task.test)
    about = {"client": number, "terms": own.terms, "round": t}
    return Message(messages.make_content(about, None, **scores), reply_to=message)
