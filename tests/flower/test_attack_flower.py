"""What a site remembers on its disk: whatever comes, goes or asks at once, no round is released
twice, and nothing private is told.
"""

import copy
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import pandas as pd
import pytest
import torch
from flower_runs import apart, by_messages, question
from flwr.app import Context, RecordDict
from hospitals.hospitals.app import SIZES, task
from toy_tasks import LORA, PLAN, book, private, tokens

from fedlora_lab._utils.files import lock_folder
from fedlora_lab.flower import deployment
from fedlora_lab.flower.server import Stopped, open_run, rounds
from fedlora_lab.flower.simulators import InProcessGrid
from fedlora_lab.privacy.ledger import Ledger

pytestmark = [pytest.mark.attack, pytest.mark.slow]
ROUNDS = PLAN.replace(rounds=3)
OWN = tokens("head", SIZES)


def sites(folder, method="fedlora", seed: int | None = 0):
    """A fresh grid of two sites over their files, and the server's terms."""
    terms = folder / "terms.json"
    if not terms.exists():
        deployment.write_terms(terms, method, private("example"), ROUNDS, lora=LORA, seed=seed)
        for k, pair in enumerate(OWN.clients):
            deployment.write_examples(folder / f"data{k}.safetensors", pair)
    grid = InProcessGrid(deployment.client(task), len(SIZES))
    for k, context in enumerate(grid.contexts.values()):
        data, memory = folder / f"data{k}.safetensors", folder / f"memory{k}"
        paths = {"terms": str(terms), "data": str(data), "memory": str(memory)}
        context.node_config = {"client": k, **paths}
    return grid, deployment.read_terms(terms, task())


def played(folder, out=None, **options: Any):
    """The rounds of a server and sites that have just started over what lies on their disks."""
    grid, participant = sites(folder, **options)
    where: dict[str, Any] = {} if out is None else deployment.folder_options(out)
    return rounds(grid, participant, open_run(participant, **where))


@pytest.fixture
def asked(tmp_path):
    """Asks the first site, as a node that has just started, for round 0 of a release."""
    grid, participant = sites(tmp_path, seed=None)
    message = question(participant)

    def ask(folder="memory", app=grid.app, **changed):
        config = {**grid.contexts[1000].node_config, "memory": str(tmp_path / folder), **changed}
        context = Context(1, 1000, config, RecordDict(), {})
        return app(copy.deepcopy(message), context).content["arrays"]

    vars(ask).update(terms=participant.terms)
    return ask


def test_two_runs_get_one_answer(asked):
    """At the same moment, without a seed: whoever had both answers could take their mean, with half
    the noise.
    """
    single = []
    for number in range(3):
        folder, together = f"shared{number}", threading.Barrier(3)

        def ask(_, folder=folder, together=together):
            together.wait()
            return asked(folder)

        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(ask, range(3)))
        found.append(asked(folder))  # and later, of whatever server
        assert all(one == found[0] for one in found)
        single.append(found[0])
    assert len({str(arrays["B/inner"].data) for arrays in single}) == 3, "new noise elsewhere"


def test_a_site_builds_its_public_part_once(asked):
    """However many messages arrive at once: a builder that seeds torch's global generator would
    otherwise draw other weights, and honest messages be refused as under other terms.
    """
    built = []

    def slow():
        built.append(1)
        time.sleep(0.2)
        return task()

    app = deployment.client(slow)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: asked(app=app), range(3)))
    assert len(built) == 1


def test_a_memory_in_use_is_waited_for_and_then_named(asked, tmp_path):
    hurried = deployment.client(task, patience=0.2)
    line = r"^memory='.*client-0-.*': expected a file that no other run is using within 0.2 s$"
    held = lock_folder(tmp_path / "memory", f".client-0-{asked.terms}.lock")
    with held, pytest.raises(ValueError, match=line):
        asked(app=hurried)
    assert asked(app=hurried)
    with pytest.raises(ValueError, match=r"^patience=0: expected a number > 0$"):
        deployment.client(task, patience=0)
    # A relative path would be another, empty folder for a node that is started somewhere else.
    with pytest.raises(ValueError, match=r"^memory='here': expected the folder's whole path"):
        asked(memory="here")


def test_memory_terms_and_examples_are_their_owner_s(asked, tmp_path):
    asked()
    deployment.write_examples(tmp_path / "own" / "data.safetensors", OWN.clients[0])
    paths = [*tmp_path.rglob("*")]
    assert {path.name.split("-")[0] for path in paths} >= {"terms.json", "memory", "own", "client"}
    assert len([path for path in paths if path.suffix == ".safetensors"]) == 3
    for path in paths:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_an_error_tells_the_coordinator_no_value(asked, tmp_path, caplog):
    """Flower sends an error's text to whoever asked: it names no label, and a label that torch
    refuses is no error.
    """
    (x, y), data = OWN.clients[0], tmp_path / "data57.safetensors"

    def told():
        with pytest.raises(ValueError, match=r"^[^\n]+$") as found:
            asked("memory-error", data=str(data))
        return str(found.value)

    for labels in (y + 57.5, torch.stack([y, y * 0 + 57], 1)):
        deployment.write_examples(data, (x, labels))
        words = "inputs and labels of the types and shapes of the public test examples"
        assert told() == f"examples: expected {words}"
    data.write_bytes(b"57 is a label")
    assert told() == "reading its examples failed at this site; its own log says why"
    assert "57" in caplog.text and {one.name for one in caplog.records} == {"fedlora_lab.flower"}
    assert not list((tmp_path / "memory-error").glob("client-*")), "nothing was answered"
    deployment.write_examples(data, (x, y * 0 + 57))
    assert asked("other", data=str(data)), "an example that the loss cannot take counts as zero"


def test_no_answer_comes_from_a_damaged_memory(asked, tmp_path):
    """Empty, cut, extended, one bit flipped anywhere, another client's: refused, and never answered
    anew.
    """
    answer, path = asked(), tmp_path / "memory" / f"client-0-{asked.terms}"
    whole, random = path.read_bytes(), Random(0)
    damaged = [b"", b"\0", whole[:31], whole[:32], whole[:-1], whole[32:], whole + b"\0"]
    for _ in range(8):
        at, bit = random.randrange(len(whole)), 1 << random.randrange(8)
        damaged.append(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
    line = r"^memory='client-{}-.*': expected what this site wrote there, it is damaged; no round"
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=line.format(0)):
            asked()
        assert path.read_bytes() == content
    path.with_name(f"client-1-{asked.terms}").write_bytes(whole)
    with pytest.raises(ValueError, match=line.format(1)):
        asked(client=1, data=str(tmp_path / "data1.safetensors"))
    path.write_bytes(whole)
    assert asked() == answer


def test_a_restart_of_everything_is_no_restart_of_the_run(tmp_path):
    """Server and sites stopped after two rounds and started again from their disks: the bits of a
    run undisturbed, with a factor that clients keep.
    """
    whole = by_messages(OWN, "fedsa-lora", private("example"), ROUNDS)
    begun = played(tmp_path, tmp_path / "out", method="fedsa-lora")
    assert [next(begun).index for _ in range(3)] == [0, 1, 2]
    begun.close()
    rest = list(played(tmp_path, tmp_path / "out"))
    assert [record.index for record in rest] == [3]
    assert apart(rest, whole[3:]) == 0
    assert rest[-1].metrics == whole[-1].metrics
    assert book(rest[-1]).to_json() == book(whole[-1]).to_json()


@pytest.mark.parametrize("seed", [0, None])
def test_the_same_terms_are_not_played_twice(tmp_path, seed):
    """A server that begins anew under terms that were played gets no second release of any round;
    other terms have a memory of their own.
    """
    assert len(list(played(tmp_path, seed=seed))) == 4
    line = r"^round 1: no upload of 2 clients; client 0: .*round=0: expected 2, which was answered"
    with pytest.raises(Stopped, match=line):
        list(played(tmp_path))
    (tmp_path / "terms.json").unlink()
    assert len(list(played(tmp_path, method="rolora", seed=seed))) == 4
    assert len(list((tmp_path / "memory0").glob("client-*"))) == 2


def test_a_run_that_ends_at_once_says_what_was_spent(tmp_path):
    """Killed in the last round, then started with a ``stop_at`` that leaves no round: frame and
    ledger say the same.

    The round was asked for, so it stands in the ledger, but no record of it was written.
    """
    out = tmp_path / "out"

    def kill(message):
        if message.content.config_records.get("about", {}).get("round") == 2:
            raise KeyboardInterrupt

    def started(seen=None, **more):
        grid, _ = sites(tmp_path, "fedlora", None)
        grid.seen = seen or grid.seen
        config = {"terms": str(tmp_path / "terms.json"), "out": str(out), **more}
        config |= {"timeout": 60.0, "patience": 60.0}
        deployment.server(task)(grid, Context(1, 1, {}, RecordDict(), config))
        return epsilons()

    def epsilons():
        table = pd.read_csv(out / "frame-000000.csv").query("measure == 'epsilon'")
        return table.set_index("round")["value"].to_dict()

    with pytest.raises(KeyboardInterrupt):
        started(kill)
    before, spent = epsilons(), Ledger.load(out / "ledger.json").epsilon_or_inf()
    assert list(before) == [0, 1, 2] and before[2] < spent
    assert started(stop_at=spent) == {**before, 2: pytest.approx(spent, rel=1e-12)}
    assert started(stop_at=spent)[2] >= spent
    assert sorted(path.name for path in out.glob("frame-*")) == ["frame-000000.csv"]
