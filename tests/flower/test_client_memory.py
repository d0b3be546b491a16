"""What a client remembers, in Flower's state or on its disk: whatever comes, goes or asks at once,
no round is released twice, all releases are counted, and the memory is of one data set.
"""

import copy
import hashlib
import shutil
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch
from flower_runs import apart, by_messages, protected, question
from flwr.app import Context, RecordDict
from toy_tasks import LORA, PERSONS, PLAN, book, people, private, tokens, with_clients

import fedlora_lab as fl
from fedlora_lab._utils.files import lock_folder
from fedlora_lab.flower import client, client_ledger
from fedlora_lab.flower.server import Stopped, open_run, rounds
from fedlora_lab.flower.simulators import InProcessGrid, SimulatedClients
from fedlora_lab.privacy import accounting

pytestmark = pytest.mark.attack
FEW = PLAN.replace(rounds=3, batch=2)
TASK = tokens("head")
MEMORY = client.MEMORY


def terms(privacy: Any, task: Any = TASK, row: str = "fedlora", seed: int | None = None) -> Any:
    """Clients that agreed to these terms."""
    return SimulatedClients(task, row, privacy, FEW, LORA, seed)


def played(who: SimulatedClients, place: Any, out: Any = None, **options: Any) -> Any:
    """The rounds of a server and clients that have just started; memories lie in a folder."""
    app = client_app(place, who, **options)
    participant, grid = who.participant(), InProcessGrid(app, len(who.task.sizes))
    begun = out is not None and any(out.glob("round-*.json"))
    run = open_run(participant, out, out if begun else None)
    return rounds(grid, participant, run)


def client_app(place: Any, who: SimulatedClients, order: Any = (0, 1, 2), **options: Any) -> Any:
    """Clients with a folder each; ``order``: which folder is whose."""

    def memory(context: Context) -> Any:
        return place / str(order[int(context.node_config["partition-id"])])

    return client.client_app(who, memory=memory, **options)


def spent(kept: Any) -> fl.Ledger:
    """All that a client has released."""
    book = client_ledger(kept)
    assert book is not None
    return book


def fresh(k: int = 0, kept: "RecordDict | None" = None) -> Context:
    """A node of client k that has just started."""
    config: Any = {"partition-id": k, "num-partitions": 3}
    return Context(1, 1000 + k, config, kept or RecordDict(), {})


def ask(app: Any, who: SimulatedClients, t: int = 0, context: "Context | None" = None) -> Any:
    """The arrays that a client sends for round t."""
    message = question(who.participant(), t)
    return app(copy.deepcopy(message), context or fresh()).content["arrays"]


UNITS = [("example", {}), ("client", {}), ("person", {})]


@pytest.mark.parametrize(("unit", "fields"), UNITS, ids=["example", "client", "person"])
def test_a_client_counts_its_releases_under_all_terms(unit, fields, tmp_path):
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
        whole = one.history(k) + two.history(2 - k)
        assert own.epsilon() == accounting.epsilon(whole, 1e-3, "rdp") > one.epsilon(k)
        assert len(own.parts) == 2 and not own.reproducible
    assert client_ledger(tmp_path / "none") is None


def test_without_a_memory_the_state_of_the_run_counts(tmp_path):
    """Flower keeps it as long as the run; terms that follow each other there are told apart."""
    context = fresh()
    parties = [terms(protected("example", sigma=sigma), row=row)
               for sigma, row in ((1.0, "fedlora"), (2.0, "fedsa-lora"))]  # fmt: skip
    answers = [ask(client.client_app(who), who, 0, context) for who in parties]
    assert [len(arrays) for arrays in answers] == [6, 4], "what is kept is not sent"
    assert spent(context.state).history() == ((1.0, 0.4, 2), (2.0, 0.4, 2))
    for who, arrays in zip(parties, answers, strict=True):
        assert ask(client.client_app(who), who, 0, context) == arrays


@pytest.mark.parametrize("limit", [0.0, 1.0])
def test_a_client_ends_at_its_own_limit(limit, tmp_path):
    """Over all terms together; what was answered is answered again, since that costs nothing."""
    first, second = (terms(protected("example", sigma=sigma)) for sigma in (1.0, 1.5))
    assert len(list(played(first, tmp_path))) == 4
    alone = spent(tmp_path / "0").epsilon()
    kept = (tmp_path / "0" / MEMORY).read_bytes()
    most = alone + limit * 1e-3 if limit else alone / 2
    app = client_app(tmp_path, second, most_epsilon=most)
    line = r"^epsilon: expected at most [0-9.]+, the client's own limit for all terms together$"
    with pytest.raises(ValueError, match=line):
        ask(app, second)
    assert (tmp_path / "0" / MEMORY).read_bytes() == kept
    again = client_app(tmp_path, first, most_epsilon=most)
    assert len(ask(again, first, 2)) == 6
    smallest = min(spent(tmp_path / str(k)).epsilon() for k in range(3))
    with pytest.raises(
        Stopped, match=r"no upload of 3 clients; client 0: .*the client's own limit"
    ):
        list(played(second, tmp_path, most_epsilon=smallest))
    with pytest.raises(ValueError, match=r"^most_epsilon=-1: expected a number > 0$"):
        client.client_app(first, most_epsilon=-1)


@pytest.mark.parametrize("turn", [1, -1])
def test_a_run_without_privacy_spends_everything(turn, tmp_path):
    for privacy in (None, protected("client"))[::turn]:
        ask(client_app(tmp_path, terms(privacy)), terms(privacy))
    own = spent(tmp_path / "0")
    assert own.unit == "client" and own.epsilon() == float("inf")
    other = terms(protected("client", sigma=9.0))
    with pytest.raises(ValueError, match=r"^epsilon: expected at most 1e\+06, the client's own"):
        ask(client_app(tmp_path, other, most_epsilon=1e6), other)


@pytest.mark.parametrize("change", [{"unit": "client"}, {"delta": 1e-4}])
def test_terms_whose_releases_do_not_add_up_are_refused(change, tmp_path):
    who = terms(protected("example"))
    ask(client_app(tmp_path, who), who)
    fields: Any = {"delta": 1e-3, "noise_multiplier": 9.0, "trust": "local", **change}
    privacy = fl.Privacy(**fields)
    name, value = next(iter(change.items()))
    line = rf"^{name}={value!r}: expected .*, as in all releases of these examples: others do not"
    with pytest.raises(ValueError, match=line):
        ask(client_app(tmp_path, terms(privacy)), terms(privacy))
    assert len(spent(tmp_path / "0").parts) == 1


def test_an_uncertified_release_is_counted_as_such(tmp_path):
    who = terms(protected("example"), row="deer-literal")
    ask(client_app(tmp_path, who), who)
    assert spent(tmp_path / "0").epsilon_or_inf() == float("inf")


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
    answer = ask(client_app(tmp_path, one), one)
    kept = (tmp_path / "0" / MEMORY).read_bytes()
    for who in (one, two):
        other = replace(who, task=changed(task, what), key=who.key + "x")
        assert other.participant().terms == who.participant().terms
        for t in (0, 1):
            with pytest.raises(ValueError, match=r"^examples: expected [^0-9]*$"):
                ask(client_app(tmp_path, other), other, t)
    assert (tmp_path / "0" / MEMORY).read_bytes() == kept
    assert ask(client_app(tmp_path, one), one) == answer
    assert ask(client_app(tmp_path, two), two)


def test_a_memory_confirms_no_guess_at_the_examples(tmp_path):
    """Its digest is made under a key that is drawn for it."""
    found = []
    for place in ("one", "two"):
        who = terms(protected("example"), seed=0)
        ask(client_app(tmp_path / place, who), who)
        found.append(client.read_memory(tmp_path / place / "0").config_records[client.EXAMPLES])
    assert found[0]["digest"] != found[1]["digest"] and found[0]["key"] != found[1]["key"]
    x, y = TASK.clients[0]
    content = (tmp_path / "one" / "0" / MEMORY).read_bytes()
    for part in (x, y):
        flat = part.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        assert hashlib.sha256(flat).digest() not in content and flat not in content


@pytest.mark.parametrize("place", ["disk", "state"])
def test_no_order_of_messages_releases_a_round_twice(place, tmp_path):
    """Rounds of three terms, repeated, late and out of order: of each there is one answer at most,
    and the client has counted those it gave.
    """
    random, context = Random(1), fresh()
    parties = [terms(protected("example", sigma=1.0 + k)) for k in range(3)]
    apps = [client_app(tmp_path, who) if place == "disk" else client.client_app(who)
            for who in parties]  # fmt: skip
    given: dict[Any, Any] = {}
    for _ in range(40):
        k, t = random.randrange(3), random.randrange(3)
        try:
            arrays = ask(apps[k], parties[k], t, context if place == "state" else None)
        except ValueError as error:
            refused = str(error).startswith(f"round={t}: expected")
            if not refused:
                raise
            continue
        assert given.setdefault((k, t), arrays) == arrays
    own = spent(tmp_path / "0" if place == "disk" else context.state)
    assert 3 <= len(given) < 9 and len(own.releases) == len(given)
    assert sum(n for *_, n in own.history()) == len(given) * FEW.local_steps


def test_one_data_set_is_one_client(tmp_path):
    """Two nodes over the same examples and memory: their one answer is not taken for two."""
    (pair, *_), privacy = TASK.clients, protected("example")
    who = terms(privacy, with_clients(TASK, [pair, pair]))
    app = client_app(tmp_path, who, order=(0, 0))
    assert ask(app, who)
    for t in (0, 1):
        line = r"^client=1: expected 0, as which these examples answered$"
        with pytest.raises(ValueError, match=line):
            ask(app, who, t, fresh(1))


def test_two_runs_get_one_answer(tmp_path):
    """At the same moment, without a seed: whoever had both answers could take their mean, with half
    the noise.
    """
    who, single = terms(protected("example")), []
    message = question(who.participant())
    for number in range(3):
        app, together = client_app(tmp_path / str(number), who), threading.Barrier(3)

        def answer(_: int, app: Any = app, together: Any = together) -> Any:
            together.wait()
            return app(copy.deepcopy(message), fresh()).content["arrays"]

        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(answer, range(3)))
        found.append(ask(app, who))  # and later, of whatever server
        assert all(one == found[0] for one in found)
        single.append(found[0])
    assert len({str(arrays["B/inner"].data) for arrays in single}) == 3, "new noise elsewhere"


def test_a_memory_in_use_is_waited_for_and_then_named(tmp_path):
    who = terms(protected("example"))
    hurried = client_app(tmp_path, who, patience=0.2)
    line = r"^memory='.*0': expected a file that no other run is using within 0.2 s$"
    with lock_folder(tmp_path / "0"), pytest.raises(ValueError, match=line):
        ask(hurried, who)
    assert ask(hurried, who)
    with pytest.raises(ValueError, match=r"^patience=0: expected a number > 0$"):
        client_app(tmp_path, who, patience=0)
    # A relative path would be another, empty folder for a node that is started somewhere else.
    with pytest.raises(ValueError, match=r"^memory='here': expected the folder's whole path"):
        ask(client.client_app(who, memory=lambda context: "here"), who)


def test_a_memory_is_its_owner_s(tmp_path):
    who = terms(protected("example"))
    ask(client_app(tmp_path / "all", who), who)
    paths = [*(tmp_path / "all").rglob("*")]
    assert {path.name for path in paths} == {"0", MEMORY, ".lock"}
    for path in paths:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_no_answer_comes_from_a_damaged_memory(tmp_path):
    """Empty, cut, extended, one bit flipped anywhere: refused, and never answered anew."""
    who = terms(protected("example"))
    app, path = client_app(tmp_path, who), tmp_path / "0" / MEMORY
    answer, random = ask(app, who), Random(0)
    whole = path.read_bytes()
    damaged = [b"", b"\0", whole[:31], whole[:32], whole[:-1], whole[32:], whole + b"\0"]
    for _ in range(8):
        at, bit = random.randrange(len(whole)), 1 << random.randrange(8)
        damaged.append(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"^memory='.*0': expected what this client wrote"):
            ask(app, who)
        assert path.read_bytes() == content
    path.write_bytes(whole)
    assert ask(app, who) == answer


@pytest.mark.slow
def test_a_restart_of_everything_is_no_restart_of_the_run(tmp_path):
    """Server and clients stopped after two rounds and started again from their disks: the bits of a
    run undisturbed, with a factor that clients keep.
    """
    whole = by_messages(TASK, "fedsa-lora", private("example"), FEW)
    who, out = terms(private("example"), row="fedsa-lora", seed=0), tmp_path / "out"
    begun = played(who, tmp_path, out)
    assert [next(begun).index for _ in range(3)] == [0, 1, 2]
    begun.close()
    rest = list(played(who, tmp_path, out))
    assert [record.index for record in rest] == [3]
    assert apart(rest, whole[3:]) == 0
    assert rest[-1].metrics == whole[-1].metrics
    assert book(rest[-1]).to_json() == book(whole[-1]).to_json()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, None])
def test_the_same_terms_are_not_played_twice(tmp_path, seed):
    """A server that begins anew under terms that were played gets no second release of a round."""
    who = terms(protected("example"), seed=seed)
    assert len(list(played(who, tmp_path))) == 4
    line = r"^round 1: no upload of 3 clients; client 0: .*round=0: expected 2, which was answered"
    with pytest.raises(Stopped, match=line):
        list(played(who, tmp_path))
    assert len(spent(tmp_path / "0").releases) == 3
    shutil.rmtree(tmp_path / "0")  # nobody can count what nobody remembers
    assert client_ledger(tmp_path / "0") is None
