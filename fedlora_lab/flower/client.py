"""The client's side: train on its own examples, clip, noise, send what is shared, keep the rest."""

from collections.abc import Callable
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedlora_lab._utils.torch_state import with_default_modes
from fedlora_lab._utils.validation import check, check_whole
from fedlora_lab.federated import exchange
from fedlora_lab.federated.local_training import local_step, round_keys
from fedlora_lab.federated.prepared import Prepared
from fedlora_lab.flower import messages
from fedlora_lab.flower.memory import RELEASED, Memory, count_release, open_memory
from fedlora_lab.flower.participant import Participant
from fedlora_lab.methods.state import ServerState, Tensors
from fedlora_lab.tasks.task import Task

ANSWERED = "answered"
REPLY = "reply"
PERSONAL = "personal"
"""Names in a client's state, each followed by the terms that it belongs to."""

Loader = Callable[[Context], tuple[Participant, int, Task]]


def client_app(load: Loader, *, memory: Memory) -> ClientApp:
    """Builds the ClientApp of a federation.

    Under the same terms a round is answered once. Asked again from the same broadcast, because a
    reply was lost or a server restarted, a client sends the same bits, which costs no further
    privacy. It refuses another broadcast and earlier rounds. Under other terms a round is another
    release of the same examples: the client counts all of them in a ledger of its own
    (`client_ledger`).

    Args:
        load: context -> the terms that this client agreed to, its number, and a task of its own
            examples alone. The terms are the client's own copy: a message decides neither its clip
            nor its noise, and a server with other terms is refused. Its errors, as those of the
            memory and of the training, reach the coordinator without their words.
        memory: context -> a folder, by its whole path, for what the client keeps. In another
            folder the client would answer anew: keep it as long as the examples.
    Guarantees: with C = 0 two data sets give the same messages bit for bit, and replies hold what
        is shared and nothing else (tests/lab/flower/test_flower_wire.py); of a round there is one
        answer, which the client's ledger counts (tests/lab/flower/test_client_memory.py,
        test_attack_flower.py).
    """
    app = ClientApp()

    @app.query()
    def introduce(message: Message, context: Context) -> Message:
        participant, client, _ = _load(load, context)
        content = messages.make_content({"client": client, "terms": participant.terms})
        return Message(content, reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        participant, client, own = _load(load, context)
        # First the terms: no memory is touched under others.
        t = _round_of(message, participant)
        with messages.private_errors("checking its examples"):
            prepared = participant.with_data(client, own)
        with open_memory(memory, context) as state:
            return _answer(participant, client, prepared, message, state, t)

    return app


def _load(load: Loader, context: Context) -> tuple[Participant, int, Task]:
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
    before: Any = state.config_records.get(answered, {"round": -1})
    asked = messages.tensors_digest(messages.get_arrays(message))
    last = before["round"]
    check(t >= last, "round", t, f"{last}, which was answered last, or a later one")
    # A round is trained once: a second answer with fresh noise would be a second release.
    if t == last:
        # What was trained from one broadcast is no upload from another.
        same = f"{before['asked']}, to which it was answered: resume that run"
        check(asked == before["asked"], f"broadcast of round {t}", asked, same)
    else:
        released = count_release(participant, client, state, t)
        sent = participant.received(message, t)
        kept = state.array_records.get(personal_name)
        with messages.private_errors("training"):
            # What it kept under other terms stays there, perhaps without noise.
            personal = {} if kept is None else messages.unpack_tensors(kept)
            reply, personal = _upload(prepared, client, sent, personal, t)
            # The very bits that are sent: what is asked again is answered from here.
            state[reply_name] = messages.pack_tensors(reply)
            state[personal_name] = messages.pack_tensors(personal)
        # In the memory before the reply leaves: the release is counted or was never made.
        state[RELEASED] = released
        state[answered] = ConfigRecord({"round": t, "asked": asked})
    about = {"client": client, "terms": participant.terms, "round": t}
    content = messages.make_content(about, state.array_records[reply_name])
    return Message(content, reply_to=message)


@with_default_modes
def _upload(
    prepared: Prepared, client: int, sent: ServerState, personal: Tensors, t: int
) -> tuple[Tensors, Tensors]:
    """The client's half of a round: what it sends, and what it keeps until the next.

    Args:
        prepared, client: the run with the client's examples, and its number.
        sent: what the server sent.
        personal: what the client kept; it carries no noise where only the upload is noised.
        t: the round.
    """
    config = prepared.config
    # The functions of the loop take a row for each client; here there is one.
    before = {key: tensor[None] for key, tensor in personal.items()}
    clients = exchange.begin_clients(prepared, (client,), sent, before)
    for step in range(config.plan.local_steps):
        local_step(prepared, clients, t, step)
    keys = round_keys(config, sent.tensors, t)
    trained = exchange.stack_clients([clients], keys.moved, sent)
    # Clipped and noised here, before anything is put into a message.
    reply = exchange.privatize(prepared, trained, keys.uploaded, sent)
    # What moved and is not shared never leaves.
    personal = {**personal, **{key: trained.params[key][0] for key in keys.kept}}
    return reply, personal
