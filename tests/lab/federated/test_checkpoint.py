"""State on disk: resume is bit for bit, damage is refused, the ledger is never behind."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from calls import Options, refused
from toy_tasks import (
    LORA,
    PLAN,
    book,
    other_data,
    play,
    private,
    same_bits,
    tokens,
)

import fedlora_lab as fl
from fedlora_lab._utils.files import (
    append_line,
    write_atomically,
)
from fedlora_lab.federated import store
from fedlora_lab.federated.make_config import make_config
from fedlora_lab.federated.run import Run
from fedlora_lab.privacy.ledger import Ledger, sealed

RUN = tokens(), "fedlora", private("example"), PLAN


def contents(folder):
    """All files below a folder, without its lock."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(paths)}


def test_a_finished_run_yields_its_last_record_again(tmp_path):
    """As it was, but for objects that no file holds."""
    *_, last = play(*RUN, out=tmp_path)
    [again] = play(*RUN, out=tmp_path)
    same_bits([last], [again])
    assert again.seconds == last.seconds and book(again).to_json() == book(last).to_json()


def test_other_settings_are_refused_in_one_line(tmp_path):
    """What makes another task: test_fingerprint_sees_data_persons_and_weights."""
    run: Options = {"task": tokens(), "method": "fedlora", "privacy": private("example")}
    run |= {"plan": PLAN, "lora": LORA, "seed": 0}
    list(fl.run(**run, out=tmp_path))
    before = contents(tmp_path)
    for what, other in [
        ("method", "ffa-lora"),
        ("plan", PLAN.replace(optimizer="adamw")),
        ("lora", fl.Lora(rank=3)),
        ("seed", None),
        ("privacy", private("example", sigma=2.0)),
        ("task", other_data(tokens())),
    ]:
        with refused(f"^out='.*': expected the same {what} as in this run$"):
            fl.run(**run | {what: other}, out=tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedlora_lab.federated.store.__version__", "0.0.1")
        with refused("^out='.*': expected the same package_version as in this run$"):
            fl.run(**run, out=tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(("privacy", "seed"), [(private("example"), None), (None, 0)])
def test_what_replays_no_noise_goes_on_otherwise(privacy, seed, tmp_path):
    """Longer, or in smaller chunks."""
    run = tokens(), "fedlora", privacy
    play(*run, seed=seed, out=tmp_path)
    records = play(*run, PLAN.replace(rounds=3), seed=seed, chunk_examples=1, out=tmp_path)
    assert [record.index for record in records] == [2, 3]
    if seed is None:
        with refused("^rounds=1: expected at least 3, the rounds in .*"):
            play(*run, PLAN.replace(rounds=1), seed=seed, chunk_examples=1, out=tmp_path)


def test_a_round_is_replayed_to_the_same_bits_or_not_at_all(tmp_path):
    """From a seed its noise is the same: the difference of two releases would hide nothing."""
    play(*RUN, out=tmp_path)
    (tmp_path / "private" / "round-000002").unlink()
    with refused("^out='.*': expected the same chunk_examples as in th"):
        fl.run(*RUN, lora=LORA, seed=0, out=tmp_path, chunk_examples=2)
    with refused(r"^out='.*': expected the same rounds as in this run"):
        play(*RUN[:3], PLAN.replace(rounds=3), out=tmp_path)
    assert play(*RUN, out=tmp_path)[-1].index == PLAN.rounds


def test_the_ledger_is_written_before_the_round(tmp_path):
    """When round t begins it stands in the ledger on disk, and the newest checkpoint is t - 1."""

    class Watched(Run):
        def start_clients(self, ids, sent):
            written = Ledger.load(tmp_path / "ledger.json").releases
            seen.append(([entry.round for entry in written], store.rounds_in(tmp_path)[-1]))
            return super().start_clients(ids, sent)

    seen = []
    for record in Watched.open(make_config(*RUN, LORA, 0), out=tmp_path).records():
        assert store.rounds_in(tmp_path)[-1] == record.index
    assert seen == [([1], 0), ([1, 2], 1)]


def test_a_ledger_that_cannot_be_written_stops_its_round(tmp_path):
    """As on a full disk: nothing is released that is not counted."""
    events = fl.run(*RUN, lora=LORA, seed=0, out=tmp_path)
    next(events)
    (tmp_path / "ledger.json").mkdir()
    with pytest.raises(OSError):
        next(events)
    assert store.rounds_in(tmp_path) == [0]


def altered(**fields) -> Any:
    """Writes a ledger anew with other content and the right digest."""

    def alter(path):
        content = json.loads(path.read_text())["content"]
        entry = {name: value for name, value in fields.items() if name in content["releases"][1]}
        content["releases"][1] |= entry
        content |= {name: value for name, value in fields.items() if name not in entry}
        path.write_text(sealed(content) + "\n")

    return alter


def behind(path):
    book(play(*RUN[:3], PLAN.replace(rounds=1))[-1]).save(path)


@pytest.mark.parametrize(
    ("alter", "line"),
    [
        (Path.unlink, "the ledger of the rounds done"),
        (behind, "all 2 rounds done"),
        (altered(noise_multiplier=9.0), "as this run writes it"),
        (altered(count=1), "as this run writes it"),
        (altered(delta=0.3), "those of this run"),
        (altered(reproducible=False), "those of this run"),
    ],
)
def test_a_ledger_that_is_not_this_run_s_is_refused(alter, line, tmp_path):
    """Of any round, the last too: one that says that less was spent. Changed bytes:
    test_ledger_refuses_any_changed_byte."""
    play(*RUN, out=tmp_path)
    alter(tmp_path / "ledger.json")
    with refused(f"^[^\n]*ledger[^\n]*{line}[^\n]*$"):
        play(*RUN, out=tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    """The new one is flushed whole before it takes the name, and its name after that."""
    path = tmp_path / "one" / "file"
    write_atomically(path, b"old")
    steps = []

    def synced(number):
        there = os.fstat(number)
        steps.append("folder" if stat.S_ISDIR(there.st_mode) else there.st_size)

    def fail(draft, target):
        assert (steps, Path(target).read_bytes()) == ([5], b"old")
        raise OSError("no such luck")

    monkeypatch.setattr(os, "fsync", synced)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="no such luck"):
            write_atomically(path, b"newer")
    assert contents(tmp_path) == {"one/file": b"old"}
    path.with_name("link").symlink_to(path)
    write_atomically(path.with_name("link"), b"newest")
    assert path.read_bytes() == b"newest", "a ledger behind a link states what was spent"
    append_line(tmp_path / "list", {"a": 1})
    assert steps == [5, 6, "folder", len(b'{"a": 1}\n'), "folder"]
