"""What a client remembers, in Flower's state or on its disk: whatever comes, goes or asks at once,
no round is released twice, and all releases are counted.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest
from calls import refused
from flower_runs import folders, node, party, protected, question
from flwr.app import ArrayRecord
from toy_tasks import PERSONS, PLAN, book, people, tokens, with_clients, with_persons

from fedlora_lab import flower
from fedlora_lab._utils.files import lock_folder
from fedlora_lab.flower import client_ledger, memory
from fedlora_lab.privacy import accounting

pytestmark = pytest.mark.attack
FEW = PLAN.replace(rounds=3, batch=2)
TASK = tokens("head")


def agreed(privacy, task=TASK, row="fedlora"):
    return party(task, row, privacy, FEW, seed=None)


def played(everybody, place, order=(0, 1, 2)):
    """The rounds of a server and clients that have just started; memories lie in folders."""
    return flower.run(everybody.grid(folders(place, order)), everybody.terms)


def ask(everybody, home, t=0, k=0):
    """The arrays that a client with this memory sends for round t; ``home``: a folder, or a rule
    that finds each client's."""
    app = everybody.app(home if callable(home) else folders(home))
    return app(question(everybody.terms, t), node(k)).content.array_records["tensors"]


def spent(state):
    """All that a client has released."""
    ledger = client_ledger(state)
    assert ledger is not None
    return ledger


@pytest.mark.parametrize("unit", ["client", "person"])
def test_a_client_counts_its_releases_under_all_terms(unit, tmp_path):
    """Also where it has another number there. The ledgers of the servers each know one run."""
    task = people() if unit == "person" else TASK
    turned = with_clients(TASK, list(TASK.clients[::-1]))
    if unit == "person":
        turned = with_persons(turned, PERSONS[::-1])
    first = agreed(protected(unit, sigma=1.0), task)
    second = agreed(protected(unit, sigma=1.5), turned)
    *_, one = played(first, tmp_path)
    *_, two = played(second, tmp_path, order=(2, 1, 0))
    for k in range(3):
        ledger = spent(tmp_path / str(k))
        history = book(one).history(k) + book(two).history(2 - k)
        assert ledger.epsilon() == accounting.epsilon(history, 1e-3, "rdp") > book(one).epsilon(k)
        assert len(ledger.parts) == 2 and not ledger.reproducible
    assert client_ledger(tmp_path / "none") is None


def test_what_nothing_certifies_spends_everything(tmp_path):
    """A row whose rule is unsound."""
    ask(agreed(protected("client"), row="deer-literal"), tmp_path)
    assert spent(tmp_path / "0").epsilon_or_inf() == float("inf")


def test_terms_whose_releases_do_not_add_up_are_refused(tmp_path, caplog):
    """No coordinator learns the unit or delta of another federation."""
    ask(agreed(protected("example")), tmp_path)
    for name, privacy in (
        ("unit", protected("client")),
        ("delta", protected("example").replace(delta=1e-4)),
    ):
        with refused("^adding this release to .* failed at this site; its own log says why$"):
            ask(agreed(privacy), tmp_path)
        assert f"{name}=" in caplog.text
    assert len(spent(tmp_path / "0").parts) == 1


def test_no_order_of_messages_releases_a_round_twice(tmp_path):
    """Rounds of three terms, repeated, late and out of order: of each there is one answer at most,
    and the client has counted those it gave.
    """
    random = Random(1)
    parties = [agreed(protected("example", sigma=1.0 + k)) for k in range(3)]
    answers: dict[tuple[int, int], ArrayRecord] = {}
    for _ in range(30):
        k = random.randrange(3)
        t = random.randrange(3)
        try:
            arrays = ask(parties[k], tmp_path, t)
        except ValueError as error:
            if not str(error).startswith(f"round={t}: expected"):
                raise
        else:
            assert answers.setdefault((k, t), arrays) == arrays
    assert 3 <= len(answers) < 9 and len(spent(tmp_path / "0").releases) == len(answers)


def test_two_runs_get_one_answer(tmp_path):
    """At the same moment, without a seed: whoever had both answers could take their mean, with half
    the noise.
    """
    everybody = agreed(protected("example"))
    together = threading.Barrier(3)

    def answer(_):
        together.wait()
        return ask(everybody, tmp_path)

    with ThreadPoolExecutor(3) as pool:
        first, *others = pool.map(answer, range(3))
    assert all(other == first for other in others)
    assert ask(everybody, tmp_path / "elsewhere") != first, "new noise elsewhere"


def no_folder(context):
    raise KeyError("/home/of/somebody")


def test_a_memory_that_cannot_be_had_is_named(tmp_path, monkeypatch, caplog):
    """In use by another run; a relative path, which would be another, empty folder for a node that
    is started somewhere else; a rule that finds none. The log of the site says it, and the
    coordinator learns none of its folders.
    """
    monkeypatch.setattr(memory, "PATIENCE", 0.2)
    everybody = agreed(protected("example"))
    with lock_folder(tmp_path / "0"):
        for home, line in (
            (tmp_path, "0': expected a folder that no other run is using within 0.2 s"),
            (lambda context: Path("here"), "memory='here': expected the folder's whole path"),
            (no_folder, "/home/of/somebody"),
        ):
            caplog.clear()
            with refused(r"^opening its memory failed at this site; its own log says why$"):
                ask(everybody, home)
            assert line in caplog.text


def test_no_answer_comes_from_a_damaged_memory(tmp_path):
    """Empty, one bit flipped, or lost: refused, and never answered anew."""
    everybody = agreed(protected("example"))
    path = tmp_path / "0" / memory.FILE
    answer = ask(everybody, tmp_path)
    stored = path.read_bytes()
    flipped = stored[:-1] + bytes([stored[-1] ^ 1])
    for content in (b"", flipped, None):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        with refused(r"^opening its memory failed at this site"):
            ask(everybody, tmp_path)
        with refused(r"^memory='.*0': expected what this client wrote"):
            client_ledger(tmp_path / "0")
    path.write_bytes(stored)
    assert ask(everybody, tmp_path) == answer


def test_on_a_full_disk_no_answer_leaves(tmp_path):
    """Neither sent nor counted, and what lies there stays; with room again the run goes on."""
    resource = pytest.importorskip("resource")  # of POSIX
    everybody = agreed(protected("example"))
    answer = ask(everybody, tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with refused("^writing its memory failed at this site; its own log says why$"):
            ask(everybody, tmp_path, t=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(spent(tmp_path / "0").releases) == 1 and ask(everybody, tmp_path) == answer
    assert ask(everybody, tmp_path, t=1) and len(spent(tmp_path / "0").releases) == 2
