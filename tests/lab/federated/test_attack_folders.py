"""What a folder tells to whoever gets hold of it, or of the part that may be handed out."""

import math
import shutil
import stat
from pathlib import Path

import pytest
from calls import refused
from toy_tasks import LORA, PLAN, book, play, private, regression, tokens

import fedlora_lab as fl
from fedlora_lab._utils.files import append_line, write_atomically
from fedlora_lab.federated import store

pytestmark = pytest.mark.attack


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


def test_nothing_outside_private_tells_who_took_part(tmp_path):
    """Where participation is secret: a ledger that counts every round for everybody, and rows
    without their number. What clients keep, the data's fingerprint and the server's state lie in
    private/; without it the ledger can be read, and no run goes on.
    """
    privacy = private("client", trust="central")
    plan = PLAN.replace(participation=0.5, rounds=4)
    task = regression()
    last = play(task, "fedsa-lora", privacy, plan, seed=None, out=tmp_path)[-1]
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {".lock", "private", store.LEDGER, store.ROWS}
    outside = [(tmp_path / name).read_bytes() for name in (store.LEDGER, store.ROWS)]
    assert not any(task.fingerprint.encode() in content for content in outside)
    terms = {(x.clients, x.count, x.sample_rate) for x in book(last).releases}
    assert terms == {(None, 1, 0.5)} and len(book(last).releases) == 4
    rows = [row for part in store.stored_rows(tmp_path).values() for row in part]
    told = [value for *_, name, value in rows if name in ("participants", "bytes_up", "clipped")]
    assert told and all(map(math.isnan, told))
    shutil.rmtree(tmp_path / "private")
    assert fl.Ledger.load(tmp_path / store.LEDGER).epsilon() == last.epsilon
    with refused(r"^out='.*': expected a folder with its subfolder private/ as it was$"):
        fl.run(task, "fedsa-lora", privacy, plan, lora=LORA, out=tmp_path)
    assert not (tmp_path / "private").exists()
