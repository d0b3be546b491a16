"""What a client remembers, in Flower's state or on its disk: whatever comes, goes or asks at once,
no round is released twice, all releases are counted, and the memory is of one data set.
"""

import copy
import hashlib
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from flower_runs import apart, by_messages, protected, question
from flwr.app import Context, RecordDict
from toy_tasks import LORA, PERSONS, PLAN, book, people, private, tokens, with_clients

import fedlora_lab as fl
from fedlora_lab._utils.files import lock_folder
from fedlora_lab.flower import (
    InProcessGrid,
    SimulatedClients,
    client_app,
    client_ledger,
    memory,
    open_run,
    rounds,
)
from fedlora_lab.flower.server import Stopped
from fedlora_lab.privacy import accounting

pytestmark = pytest.mark.attack
FEW = PLAN.replace(rounds=3, batch=2)
TASK = tokens("head")


def terms(privacy: Any, task: Any = TASK, row: str = "fedlora", seed: Any = None) -> Any:
    """Clients that agreed to these terms."""
    return SimulatedClients(task, row, privacy, FEW, LORA, seed)


def remembering(who: SimulatedClients, place: Path, order: Any = (0, 1, 2)) -> Any:
    """Clients with a folder each; ``order``: which folder is whose."""

    def folder(context: Context) -> Path:
        return place / str(order[int(context.node_config["partition-id"])])

    return client_app(who, memory=folder)


def played(who: SimulatedClients, place: Path, out: Any = None, order: Any = (0, 1, 2)) -> Any:
    """The rounds of a server and clients that have just started; memories lie in a folder."""
    grid = InProcessGrid(remembering(who, place, order), len(who.task.sizes))
    begun = out is not None and any(out.glob("round-*.json"))
    run = open_run(who.participant(), out, out if begun else None)
    return rounds(grid, who.participant(), run)


def fresh(k: int = 0) -> Context:
    """A node of client k that has just started."""
    config: Any = {"partition-id": k, "num-partitions": 3}
    return Context(1, 1000 + k, config, RecordDict(), {})


def ask(app: Any, who: SimulatedClients, t: int = 0, context: "Context | None" = None) -> Any:
    """The arrays that a client sends for round t."""
    message = question(who.participant(), t)
    return app(copy.deepcopy(message), context or fresh()).content["arrays"]


def spent(kept: Any) -> fl.Ledger:
    """All that a client has released."""
    ledger = client_ledger(kept)
    assert ledger is not None
    return ledger


@pytest.mark.parametrize("unit", ["example", "client", "person"])
def test_a_client_counts_its_releases_under_all_terms(unit, tmp_path):
    """Also where it has another number there. The ledgers of the servers each know one run."""
    task = people() if unit == "person" else TASK
    turned = with_clients(TASK, list(task.clients[::-1]))
    if unit == "person":
        turned = replace(turned, persons=PERSONS[::-1])
    first, second = protected(unit, sigma=1.0), protected(unit, sigma=1.5)
    one = [book(x) for x in played(terms(first, task), tmp_path)][-1]
    two = [book(x) for x in played(terms(second, turned), tmp_path, order=(2, 1, 0))][-1]
    for k in range(3):
        own = spent(tmp_path / str(k))
        history = one.history(k) + two.history(2 - k)
        assert own.epsilon() == accounting.epsilon(history, 1e-3, "rdp") > one.epsilon(k)
        assert len(own.parts) == 2 and not own.reproducible
    assert client_ledger(tmp_path / "none") is None


def test_without_a_memory_the_state_of_the_run_counts():
    """Flower keeps it as long as the run; terms that follow each other there are told apart."""
    context = fresh()
    parties = [
        terms(protected("example", sigma=1.0)),
        terms(protected("example", sigma=2.0), row="fedsa-lora"),
    ]
    answers = [ask(client_app(who), who, 0, context) for who in parties]
    assert [len(arrays) for arrays in answers] == [6, 4], "what is kept is not sent"
    assert spent(context.state).history() == ((1.0, 0.4, 2), (2.0, 0.4, 2))
    for who, arrays in zip(parties, answers, strict=True):
        assert ask(client_app(who), who, 0, context) == arrays


@pytest.mark.parametrize("turn", [1, -1])
def test_a_run_without_privacy_spends_everything(turn, tmp_path):
    for privacy in (None, protected("client"))[::turn]:
        ask(remembering(terms(privacy), tmp_path), terms(privacy))
    own = spent(tmp_path / "0")
    assert own.unit == "client" and own.epsilon() == float("inf")


def test_an_uncertified_release_is_counted_as_such(tmp_path):
    who = terms(protected("example"), row="deer-literal")
    ask(remembering(who, tmp_path), who)
    assert spent(tmp_path / "0").epsilon_or_inf() == float("inf")


@pytest.mark.parametrize("change", [{"unit": "client", "trust": "local"}, {"delta": 1e-4}])
def test_terms_whose_releases_do_not_add_up_are_refused(change, tmp_path):
    who = terms(protected("example"))
    ask(remembering(who, tmp_path), who)
    other = terms(protected("example").replace(**change))
    words = rf"^{next(iter(change))}=.*: expected the same in all ledgers"
    with pytest.raises(ValueError, match=words):
        ask(remembering(other, tmp_path), other)
    assert len(spent(tmp_path / "0").parts) == 1


def changed(task: Any, what: str) -> Any:
    """The task with another label, number, order or person at client 0."""
    (x, y), *others = task.clients
    if what == "person":
        return replace(task, persons=((0, 1, 1, 2, 2), *PERSONS[1:]))
    if what == "number":
        x = x.clone()
        x[0, 0, 0] += 1e-9
    pair = {"label": (x, y.roll(1)), "number": (x, y), "order": (x.flip(0), y.flip(0))}[what]
    return with_clients(task, [pair, *others])


@pytest.mark.parametrize("what", ["label", "number", "order", "person"])
def test_other_examples_under_the_same_memory_are_refused(what, tmp_path):
    """Under the same terms and others, in a new round and in one that was answered; nothing is
    answered, counted or told.
    """
    unit = "person" if what == "person" else "example"
    task = people() if what == "person" else TASK
    one, two = (terms(protected(unit, sigma=sigma), task) for sigma in (1.0, 2.0))
    answer = ask(remembering(one, tmp_path), one)
    kept = (tmp_path / "0" / memory.FILE).read_bytes()
    for who in (one, two):
        other = replace(who, task=changed(task, what))
        assert other.participant().terms == who.participant().terms
        for t in (0, 1):
            with pytest.raises(ValueError, match=r"^examples: expected [^0-9]*$"):
                ask(remembering(other, tmp_path), other, t)
    assert (tmp_path / "0" / memory.FILE).read_bytes() == kept
    assert ask(remembering(one, tmp_path), one) == answer


def test_a_memory_confirms_no_guess_at_the_examples(tmp_path):
    """Its digest is made under a key that is drawn for it; the file is its owner's alone."""
    who = terms(protected("example"), seed=0)
    kept = []
    for place in ("one", "two"):
        ask(remembering(who, tmp_path / place), who)
        kept.append(memory.read_memory(tmp_path / place / "0").config_records[memory.EXAMPLES])
    assert kept[0]["digest"] != kept[1]["digest"] and kept[0]["key"] != kept[1]["key"]
    content = (tmp_path / "one" / "0" / memory.FILE).read_bytes()
    for part in TASK.clients[0]:
        flat = part.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        assert hashlib.sha256(flat).digest() not in content and flat not in content
    for path in (tmp_path / "one").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_no_order_of_messages_releases_a_round_twice(tmp_path):
    """Rounds of three terms, repeated, late and out of order: of each there is one answer at most,
    and the client has counted those it gave.
    """
    random = Random(1)
    parties = [terms(protected("example", sigma=1.0 + k)) for k in range(3)]
    given: dict[Any, Any] = {}
    for _ in range(30):
        k, t = random.randrange(3), random.randrange(3)
        try:
            arrays = ask(remembering(parties[k], tmp_path), parties[k], t)
        except ValueError as error:
            if not str(error).startswith(f"round={t}: expected"):
                raise
            continue
        assert given.setdefault((k, t), arrays) == arrays
    own = spent(tmp_path / "0")
    assert 3 <= len(given) < 9 and len(own.releases) == len(given)
    assert sum(n for *_, n in own.history()) == len(given) * FEW.local_steps


def test_one_data_set_is_one_client(tmp_path):
    """Two nodes over the same examples and memory: their one answer is not taken for two."""
    pair, *_ = TASK.clients
    who = terms(protected("example"), with_clients(TASK, [pair, pair]))
    app = remembering(who, tmp_path, order=(0, 0))
    assert ask(app, who)
    for t in (0, 1):
        line = r"^client=1: expected 0, as which these examples answered$"
        with pytest.raises(ValueError, match=line):
            ask(app, who, t, fresh(1))


def test_two_runs_get_one_answer(tmp_path):
    """At the same moment, without a seed: whoever had both answers could take their mean, with half
    the noise.
    """
    who = terms(protected("example"))
    message = question(who.participant())
    app, together = remembering(who, tmp_path), threading.Barrier(3)

    def answer(_: int) -> Any:
        together.wait()
        return app(copy.deepcopy(message), fresh()).content["arrays"]

    with ThreadPoolExecutor(3) as pool:
        first, *others = pool.map(answer, range(3))
    assert all(one == first for one in others)
    assert ask(remembering(who, tmp_path / "elsewhere"), who) != first, "new noise elsewhere"


def test_a_memory_in_use_is_waited_for_and_then_named(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "PATIENCE", 0.2)
    who = terms(protected("example"))
    app = remembering(who, tmp_path)
    line = r"^memory='.*0': expected a folder that no other run is using within 0.2 s$"
    with lock_folder(tmp_path / "0"), pytest.raises(ValueError, match=line):
        ask(app, who)
    assert ask(app, who)
    # A relative path would be another, empty folder for a node that is started somewhere else.
    with pytest.raises(ValueError, match=r"^memory='here': expected the folder's whole path"):
        ask(client_app(who, memory=lambda context: "here"), who)


def test_no_answer_comes_from_a_damaged_memory(tmp_path):
    """Empty, cut, extended, one bit flipped anywhere: refused, and never answered anew."""
    who = terms(protected("example"))
    app, path = remembering(who, tmp_path), tmp_path / "0" / memory.FILE
    answer = ask(app, who)
    stored = path.read_bytes()
    damaged = [b"", stored[:32], stored[:-1], stored[32:], stored + b"\0"]
    for at in (0, 40, len(stored) // 2, len(stored) - 1):
        damaged.append(stored[:at] + bytes([stored[at] ^ 1]) + stored[at + 1 :])
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"^memory='.*0': expected what this client wrote"):
            ask(app, who)
        assert path.read_bytes() == content
    path.write_bytes(stored)
    assert ask(app, who) == answer


@pytest.mark.slow
def test_a_restart_of_everything_is_no_restart_of_the_run(tmp_path):
    """Server and clients stopped after two rounds and started again from their disks: the bits of a
    run undisturbed, with a factor that clients keep.
    """
    undisturbed = by_messages(TASK, "fedsa-lora", private("example"), FEW)
    who, out = terms(private("example"), row="fedsa-lora", seed=0), tmp_path / "out"
    begun = played(who, tmp_path, out)
    assert [next(begun).index for _ in range(3)] == [0, 1, 2]
    begun.close()
    rest = list(played(who, tmp_path, out))
    assert [record.index for record in rest] == [3]
    assert apart(rest, undisturbed[3:]) == 0
    assert book(rest[-1]).to_json() == book(undisturbed[-1]).to_json()


@pytest.mark.slow
def test_the_same_terms_are_not_played_twice(tmp_path):
    """A server that begins anew under terms that were played gets no second release of a round."""
    who = terms(protected("example"))
    assert len(list(played(who, tmp_path))) == 4
    line = r"^round 1: no upload of 3 clients; client 0: .*round=0: expected 2, which was answered"
    with pytest.raises(Stopped, match=line):
        list(played(who, tmp_path))
    assert len(spent(tmp_path / "0").releases) == 3
