"""The client's side: train on its own examples, clip, noise, send what is shared, keep the rest."""

from collections.abc import Callable
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedlora_lab._utils.torch_state import with_default_modes
from fedlora_lab._utils.validation import check, check_whole
from fedlora_lab.federated import exchange
from fedlora_lab.federated.local_training import local_step, round_keys
from fedlora_lab.federated.prepared import Prepared
from fedlora_lab.flower import messages
from fedlora_lab.flower.memory import (
    RELEASED,
    Memory,
    check_examples,
    count_release,
    open_memory,
)
from fedlora_lab.flower.participant import Participant
from fedlora_lab.methods.state import ServerState, Tensors

ANSWERED = "answered"
REPLY = "reply"
PERSONAL = "personal"
"""Names in a client's state, each followed by the terms that it belongs to."""

Loader = Callable[[Context], tuple[Participant, int, Any]]
"""The third are examples (x, y); where persons are protected (x, y, persons)."""


def client_app(load: Loader, *, memory: Memory | None = None) -> ClientApp:
    """Builds the ClientApp of a federation.

    Under the same terms a round is answered once. Asked again from the same broadcast, because a
    reply was lost or a server restarted, a client sends the same bits, which costs no further
    privacy. It refuses another broadcast and earlier rounds. Under secure aggregation it refuses
    every repetition: a share of noise protects one sum, and of two sums over different clients the
    difference would be the upload of one. Under other terms a round is another release of the same
    examples: the client counts all of them in a ledger of its own (`client_ledger`). Examples other
    than those that were used first are refused.

    Args:
        load: context -> the terms that this client agreed to, its number, its examples. The terms
            are the client's own copy: a message decides neither its clip nor its noise, and a
            server with other terms is refused. Its errors, as those of the memory and of the
            training, reach the coordinator without their words.
        memory: context -> a folder, by its whole path, for what the client keeps across runs, of
            these examples alone; ``None``: Flower's state of the run, which ends with it and which
            two messages at once may both read as it was. In another folder the client would answer
            anew: keep it as long as the examples.
    Guarantees: with C = 0 two data sets give the same messages bit for bit, and replies hold what
        is shared and nothing else (tests/lab/flower/test_flower_wire.py); no two answers tell more
        than the client's ledger counts (tests/lab/flower/test_attack_asked_twice.py);
        tests/lab/flower/test_client_memory.py.
    """
    app = ClientApp()

    @app.query()
    def introduce(message: Message, context: Context) -> Message:
        participant, client, _ = _load(load, context)
        content = messages.make_content({"client": client, "terms": participant.terms})
        return Message(content, reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        participant, client, data = _load(load, context)
        # First the terms: no memory is touched under others.
        t = _round_of(message, participant)
        with open_memory(memory, context) as state:
            prepared = participant.with_data(client, data)
            check_examples(state, prepared, client)
            return _answer(participant, client, prepared, message, state, t)

    return app


def _load(load: Loader, context: Context) -> tuple[Participant, int, Any]:
    with messages.private_errors("reading its examples"):
        return load(context)


def _round_of(message: Message, participant: Participant) -> int:
    """The round that a message is about, under the terms of this client."""
    messages.check_about(message, {"terms": participant.terms})
    t: Any = message.content.config_records[messages.ABOUT].get("round")
    last = participant.config.plan.rounds - 1
    check_whole("round", t, 0, last)
    return t


def _answer(
    participant: Participant,
    client: int,
    prepared: Prepared,
    message: Message,
    state: RecordDict,
    t: int,
) -> Message:
    """The client's answer for round t, trained now or the one that it gave before.

    Args:
        participant, client: its terms and number.
        prepared: the run with its examples.
        message, t: what is answered, and its round.
        state: what the client keeps; changed.
    """
    answered, reply_name, personal_name = (
        f"{name} {participant.terms}" for name in (ANSWERED, REPLY, PERSONAL)
    )
    before: Any = state.config_records.get(answered, {"round": -1, "client": client})
    asked = messages.arrays_digest(messages.get_arrays(message))
    # One answer counted as that of two clients would have the noise of one.
    first = before["client"]
    check(client == first, "client", client, f"{first}, as which these examples answered")
    last = before["round"]
    check(t >= last, "round", t, f"{last}, which was answered last, or a later one")
    # A round is trained once: a second answer with fresh noise would be a second release.
    if t == last:
        _check_repetition(participant, t, asked, before.get("asked"))
    else:
        released = count_release(participant, client, state, t)
        sent = participant.received(message, t)
        personal = _personal(participant, state.array_records.get(personal_name, ArrayRecord()))
        with messages.private_errors("training"):
            reply, personal = _upload(prepared, client, sent, personal, t)
            # The very bits that are sent: what is asked again is answered from here.
            state[reply_name] = messages.pack_arrays(reply)
            state[personal_name] = messages.pack_arrays(personal)
        # In the memory before the reply leaves: the release is counted or was never made.
        state[RELEASED] = released
        state[answered] = ConfigRecord({"round": t, "client": client, "asked": asked})
    about = {"client": client, "terms": participant.terms, "round": t}
    content = messages.make_content(about, state.array_records[reply_name])
    return Message(content, reply_to=message)


def _check_repetition(participant: Participant, t: int, asked: str, before: str | None) -> None:
    """Refuses to answer a round again, unless the same bits tell nothing new.

    Args:
        participant, t: its terms, and the round.
        asked, before: digests of the broadcast, now and when the round was answered.
    """
    # The same upload in two sums over different clients: their difference is one client's upload,
    # under its own share of the noise.
    once = f"{t + 1} or later: under trust='secagg' a round is answered once, and {t} was answered"
    check(not participant.config.is_secagg, "round", t, once)
    # What was trained from the one is no upload from the other, and new noise a second release.
    same = f"{before}, to which it was answered: resume that run, or go on with a later round"
    check(asked == before, f"broadcast of round {t}", asked, same)


def _personal(participant: Participant, kept: ArrayRecord) -> Tensors:
    """The tensors that this client kept in earlier rounds; they carry no noise and never leave.

    Those of other terms are others: there they may have been kept without noise.
    """
    like = {key: participant.begin.tensors[key] for key in map(messages.parse_key, kept)}
    return messages.unpack_arrays(kept, like, finite=False)


@with_default_modes
def _upload(
    prepared: Prepared, client: int, sent: ServerState, personal: Tensors, t: int
) -> tuple[Tensors, Tensors]:
    """The client's half of a round: what it sends, and what it keeps until the next.

    Args:
        prepared, client: the run with the client's examples, and its number.
        sent: what the server sent.
        personal: what the client kept.
        t: the round.
    """
    config = prepared.config
    # The functions of the loop take a row for each client; here there is one.
    before = {key: tensor[None] for key, tensor in personal.items()}
    clients = exchange.begin_clients(prepared, (client,), sent, before)
    for step in range(config.plan.local_steps):
        local_step(prepared, clients, t, step)
    keys = round_keys(config, sent.tensors, t)
    trained = exchange.stack_clients(prepared, [clients], keys.moved, sent)
    # Clipped and noised here, before anything is put into a message.
    reply = exchange.privatize(prepared, trained, keys.uploaded, sent)
    # What moved and is not shared: it has no noise where only the upload is noised.
    personal = {**personal, **{key: trained.params[key][0] for key in keys.kept}}
    return messages.take_ranks(reply, config.sent_ranks[client]), personal
