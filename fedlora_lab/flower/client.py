"""A client's side: train on its own examples, clip and noise, send what is shared, keep the rest."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod
from torch import Tensor

from fedlora_lab import engine, local, passes, upload
from fedlora_lab.checks import check
from fedlora_lab.flower import records
from fedlora_lab.flower.party import Party
from fedlora_lab.method import Global, Method, Slot
from fedlora_lab.tasks.task import Examples
from fedlora_lab.traffic import SENT_DOWN, rank_sent

LOG = logging.getLogger("fedlora_lab.flower")
WHY = "its own log says why"
ANSWERED, REPLY, PERSONAL = "answered", "reply", "personal"

Own = Callable[[Context], tuple[Party, int, Examples]]


def client_app(own: Own, mods: "list[Mod] | None" = None) -> ClientApp:
    """The ClientApp of a federation.

    Args:
        own: context -> the terms that this client agreed to, its number, its examples. The terms are the client's own
            copy: a message decides neither its clip nor its noise, and a server with other terms is refused.
        mods: Flower's, around every message.

    What ``own`` raises travels to the coordinator: it must hold nothing of the examples. The rest of the work on them
    fails in words without values.

    A round that was answered is answered again with the same bits: a lost reply, or a server that was restarted, costs
    no further privacy. Rounds before it are refused.

    Guarantees: with C = 0 two data sets give the same messages bit for bit, and replies hold what is shared and nothing
        else (tests/test_flower_wire.py).
    """
    app = ClientApp(mods=mods)
    for register, answer in ((app.query(), _introduce), (app.train(), _train), (app.evaluate(), _evaluate)):
        register(partial(answer, own))  # of a function that other processes find by its name
    return app


@contextmanager
def at_this_site(what: str) -> Iterator[None]:
    """Work on what only this site may see: an error inside goes to its own log, and out of it as words without values.

    A message of torch can hold a label, and Flower sends an error's text to the coordinator.

    Guarantees: tests/test_attack_flower.py::test_an_error_tells_the_coordinator_no_value.
    """
    try:
        yield
    except Exception:
        LOG.exception("%s failed", what)
        raise ValueError(f"{what} failed at this site; {WHY}") from None


def _introduce(own: Own, message: Message, context: Context) -> Message:
    party, number, _ = own(context)
    return Message(records.content({"client": number, "terms": party.terms}), reply_to=message)


def _train(own: Own, message: Message, context: Context) -> Message:
    return train(*own(context), message, context)


def _evaluate(own: Own, message: Message, context: Context) -> Message:
    party, number, _ = own(context)
    return evaluate(party, number, message, context)


def down(values: Global, method: Method) -> dict[Slot, Tensor]:
    """What goes down of the server's tensors, in the parts in which the row's broadcast sends them."""
    return records.coded(_received(values), method.broadcast)


def _received(values: Global) -> dict[Slot, Tensor]:
    return {slot: tensor for slot, tensor in values.tensors.items() if slot.side in SENT_DOWN}


def train(party: Party, number: int, data: Examples, message: Message, context: Context) -> Message:
    """Answer one round.

    Raises: ``ValueError`` for other terms, a round of the past or beyond the plan, and tensors that do not fit; in
        words without values where the training itself fails.
    """
    t, about = _round(party, message), {"client": number, "terms": party.terms}
    last = int(context.state.config_records.get(ANSWERED, {}).get("round", -1))  # type: ignore[arg-type]
    check(t >= last, "round", t, f"{last}, which was answered last, or a later one")
    if t > last:
        setting, sent = party.with_data(number, data), _sent(party, message, t)
        with at_this_site("training"):
            reply, kept = _trained(party, setting, number, sent, _personal(party, context), t)
            context.state[REPLY] = records.packed(reply)
            context.state[PERSONAL] = records.packed(kept)
        context.state[ANSWERED] = ConfigRecord({"round": t})
    return Message(records.content({**about, "round": t}, context.state.array_records[REPLY]), reply_to=message)


def _trained(
    party: Party, setting: engine.Setting, number: int, sent: Global, personal: dict[Slot, Tensor], t: int
) -> tuple[dict[Slot, Tensor], dict[Slot, Tensor]]:
    """The client's half of a round: what it sends, and what it keeps until the next."""
    clients = local.begin(setting, (number,), sent, {slot: own[None] for slot, own in personal.items()})
    for step in range(setting.plan.local_steps):
        engine.local_step(setting, clients, t, step)
    moves = local.moves(setting, sent.tensors, t)
    whole = upload.join(setting, [clients], moves.moved, sent)
    reply = upload.one(setting, party.asked.privacy, whole, moves.sent, sent, t)
    kept = {**personal, **{slot: whole.bank[slot][0] for slot in moves.kept}}
    asked = party.asked
    return records.trimmed(reply, rank_sent(asked.method, asked.lora, number, asked.privacy)), kept


def evaluate(party: Party, number: int, message: Message, context: Context) -> Message:
    """The metrics, on public examples, of the model that this client holds.

    Raises: ``ValueError`` in the client unit: what a client keeps carries no noise there, and neither would its score;
        and in a private run on test examples that are not public.
    """
    privacy, public = party.asked.privacy, party.asked.task.public_test
    check(privacy is None or public, "public_test", public, "True: scores would tell of private test examples")
    check(privacy is None or privacy.unit == "example", "unit", "client", "'example': scores would tell what is kept")
    t = _round(party, message, beyond=1)
    sent = _sent(party, message, t).tensors
    with at_this_site("judging"):
        values = {**sent, **_personal(party, context)}
        scores = passes.evaluate(party.asked.task, party.setting.adapted, values, party.asked.task.test)
    about = {"client": number, "terms": party.terms, "round": t}
    return Message(records.content(about, None, **scores), reply_to=message)


def _round(party: Party, message: Message, beyond: int = 0) -> int:
    """The round that a message is about, under the terms of this client."""
    records.about(message, {"terms": party.terms})
    t = message.content.config_records[records.ABOUT].get("round")
    most = party.asked.plan.rounds - 1 + beyond
    check(isinstance(t, int) and 0 <= t <= most, "round", t, f"a whole number in [0, {most}]")
    return int(t)  # type: ignore[arg-type]


def _sent(party: Party, message: Message, t: int) -> Global:
    """What the server sent."""
    method = party.asked.method
    parts = records.unpacked(records.arrays(message), records.forms(down(party.begin, method)))
    return Global(records.decoded(parts, method.broadcast, _received(party.begin)), t)


def _personal(party: Party, context: Context) -> dict[Slot, Tensor]:
    """What this client kept in earlier rounds."""
    kept = context.state.array_records.get(PERSONAL, ArrayRecord())
    like = {slot: party.begin.tensors[slot] for slot in map(records.slot_of, kept)}
    return records.unpacked(kept, records.forms(like), finite=False)
