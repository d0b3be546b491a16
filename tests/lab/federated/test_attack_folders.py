"""What a folder tells to whoever gets hold of it, or of the part that may be handed out."""

import hashlib
import math
import shutil
import stat
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from calls import refused
from toy_tasks import LORA, PLAN, book, play, private, regression, tokens

import fedlora_lab as fl
from fedlora_lab._utils.files import append_line, write_atomically
from fedlora_lab.federated import store

pytestmark = pytest.mark.attack
RELEASE = {"lora": LORA, "seed": None}


def closed(folder):
    """Assert that nobody but the owner may read, write or list anything from this folder on."""
    paths = [folder, *folder.rglob("*")]
    assert any(path.is_file() for path in paths)
    for path in paths:
        mode = stat.S_IMODE(path.stat().st_mode)
        expected = 0o700 if path.is_dir() else 0o600
        assert mode == expected, (str(path), oct(mode))


def test_every_file_of_a_run_is_its_owner_s(tmp_path, monkeypatch):
    """Checkpoints, ledger, rows, lists, locks, folders, a draft before its first byte; what is
    handed on has the mode of any file."""
    parts = tokens("head"), "fedsa-lora", private("example")
    last = play(*parts, seed=None, out=tmp_path / "runs" / "one")[-1]
    append_line(tmp_path / "runs" / "own.jsonl", {"a": 1})
    closed(tmp_path / "runs")
    fl.save_adapter(last, tmp_path / "adapter")
    (tmp_path / "plain").touch()
    plain = (tmp_path / "plain").stat().st_mode
    assert all(path.stat().st_mode == plain for path in (tmp_path / "adapter").iterdir())
    monkeypatch.setattr("os.replace", lambda draft, _: closed(Path(draft).parent))
    write_atomically(tmp_path / "studies" / "file", b"secret")


def written(folder):
    """All that stands in a folder outside private/."""
    files = [path for path in folder.rglob("*") if path.is_file() and "private" not in path.parts]
    assert files
    return b"\n".join(path.read_bytes() for path in files)


def digests(fingerprint):
    """The fingerprint, and what one would make of it without a key."""
    given = (fingerprint.encode(), bytes.fromhex(fingerprint))
    return {fingerprint.encode(), *(hashlib.sha256(x).hexdigest().encode() for x in given)}


def test_a_label_cannot_be_guessed_from_a_digest(tmp_path):
    """Who knows all data but one label tries every label: no digest handed out says which it is.

    Each run still knows its data. Names of a comparison's runs: test_store.py.
    """
    task = tokens()
    privacy = private("example")
    play(task, "fedlora", privacy, seed=None, out=tmp_path)
    content = written(tmp_path)
    assert not [digest for digest in digests(task.fingerprint) if digest in content]
    (x, y), *others = task.clients
    other = replace(task, clients=((x, torch.cat([1 - y[:1].sign(), y[1:]])), *others))
    with refused(r"expected the same task as in this run$"):
        fl.run(other, "fedlora", privacy, PLAN, **RELEASE, out=tmp_path)


def test_nothing_outside_private_tells_who_took_part(tmp_path):
    """Where participation is secret: a ledger that counts every round for everybody, and rows
    without their number."""
    privacy = private("client", trust="central")
    plan = PLAN.replace(participation=0.5, rounds=4)
    last = play(regression(), "fedsa-lora", privacy, plan, seed=None, out=tmp_path)[-1]
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {".lock", "private", store.LEDGER, store.ROWS}
    terms = {(x.clients, x.count, x.sample_rate) for x in book(last).releases}
    assert terms == {(None, 1, 0.5)} and len(book(last).releases) == 4
    rows = [row for part in store.stored_rows(tmp_path).values() for row in part]
    told = [value for *_, name, value in rows if name in ("participants", "bytes_up", "clipped")]
    assert told and all(map(math.isnan, told))


def test_what_clients_keep_lies_in_private_only(tmp_path):
    """Un-noised tensors: no run of their bytes stands in what is handed out.

    Without them the ledger can be read, and no run goes on.
    """
    parts = regression(), "fedsa-lora", private("client")
    last = play(*parts, seed=None, out=tmp_path)[-1]
    [kept] = store.read(tmp_path)[0].personal.values()
    outside = written(tmp_path)
    assert kept.any() and all(row.numpy().tobytes()[:64] not in outside for row in kept)
    shutil.rmtree(tmp_path / "private")
    assert fl.Ledger.load(tmp_path / "ledger.json").epsilon() == last.epsilon
    with refused(r"^out='.*': expected a folder with its subfolder private/ as it was$"):
        fl.run(*parts, PLAN, **RELEASE, out=tmp_path)
    assert not (tmp_path / "private").exists() and written(tmp_path) == outside
