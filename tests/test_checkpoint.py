"""State on disk: resume is bit for bit, damage is refused, a kill loses one round, the ledger is never behind."""

import json
import os
import re
import shutil
import stat
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small import LORA, PLAN, book, play, private, regression, same_bits, tokens

import fedlora_lab as fl
from fedlora_lab import checkpoint, methods, sealed
from fedlora_lab.files import append_line, write_atomically
from fedlora_lab.ledger import Ledger
from fedlora_lab.record import Tick

LONG = PLAN.replace(rounds=6, participation=0.7, dropout=0.2, momentum=0.5)
KEEPS_B = methods.FedLoRA.replace(name="keeps B", share="A")


def files(folder):
    """Names of all files below a folder, without that of its lock."""
    folder = Path(folder)
    return sorted({str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {".lock"})


@pytest.mark.parametrize("row", [*methods.ALL.values(), KEEPS_B], ids=lambda row: row.slug)
@pytest.mark.parametrize("unit", [None, "example", "client"])
def test_resume_equals_uninterrupted(row, unit, tmp_path):
    """Bit for bit from the start and late, with head, kept factors, drop-outs, partial participation and momentum."""
    privacy = unit and private(unit)
    whole = play(tokens("head"), row, privacy, LONG)
    for stop in (0, 4):
        folder = tmp_path / str(stop)
        play(tokens("head"), row, privacy, LONG.replace(rounds=stop), checkpoint=folder)
        rest = play(tokens("head"), row, privacy, LONG, resume=folder)
        assert [record.index for record in rest] == list(range(stop + 1, 7))
        same_bits(whole[stop + 1 :], rest)
        assert play(tokens("head"), row, privacy, LONG, resume=folder) == []


def test_a_resumed_run_is_judged_in_the_rounds_it_would_have_been(tmp_path):
    """Every second round and the last, counted from the run's beginning, not from where it was taken up."""
    plan = PLAN.replace(rounds=5)
    whole = play(regression(), "rolora", None, plan, evaluate_every=2)
    play(regression(), "rolora", None, plan.replace(rounds=1), checkpoint=tmp_path, evaluate_every=2)
    rest = play(regression(), "rolora", None, plan, resume=tmp_path, evaluate_every=2)
    judged = [[record.index for record in run if record.metrics["loss"] >= 0] for run in (whole, rest)]
    assert judged == [[0, 2, 4, 5], [2, 4, 5]]
    assert [record.metrics["loss"] for record in rest if record.index in judged[1]] == [
        record.metrics["loss"] for record in whole if record.index in judged[1]
    ]


def test_two_pairs_are_kept_and_nothing_else(tmp_path):
    play(regression(), "rolora", private("example"), LONG, checkpoint=tmp_path / "new" / "run")
    names = [f"round-00000{t}.{ending}" for t in (5, 6) for ending in ("json", "safetensors")]
    assert files(tmp_path / "new" / "run") == ["ledger.json", "private/key", *(f"private/{x}" for x in names), *names]


def test_checkpoints_go_on_in_another_folder(tmp_path):
    play(regression(), "rolora", private("example"), LONG.replace(rounds=2), checkpoint=tmp_path / "a")
    before = {name: (tmp_path / "a" / name).read_bytes() for name in files(tmp_path / "a")}
    rest = play(regression(), "rolora", private("example"), LONG, resume=tmp_path / "a", checkpoint=tmp_path / "b")
    assert {name: (tmp_path / "a" / name).read_bytes() for name in files(tmp_path / "a")} == before
    assert Ledger.load(tmp_path / "b" / "ledger.json").to_json() == book(rest[-1]).to_json()


def damaged(path: Path, how: str, other: Path) -> None:
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "missing":
        path.unlink()
    elif how == "swapped":
        shutil.copy(other, path)
    elif how == "padded":
        path.write_bytes(content + b"\0")
    else:
        at = {"first bit": 0, "middle bit": len(content) // 2, "last bit": len(content) - 1}[how]
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])


HOW = ["truncated", "empty", "missing", "swapped", "padded", "first bit", "middle bit", "last bit"]


PARTS = ("round-{:06d}.json", "round-{:06d}.safetensors")
PARTS += tuple(f"private/{part}" for part in PARTS)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("part", PARTS)
def test_a_damaged_checkpoint_is_refused_and_the_earlier_one_loads(part, how, tmp_path):
    """A warning says so; the run goes on from the round before and ends at the same bits."""
    privacy = private("example")
    whole = play(tokens("head"), KEEPS_B, privacy, LONG, checkpoint=tmp_path)
    damaged(tmp_path / part.format(6), how, tmp_path / part.format(5))
    if (how, part) != ("missing", PARTS[0]):
        with pytest.raises(checkpoint.Broken, match=r"^checkpoint=round-000006: expected a whole one"):
            checkpoint.read(tmp_path, 6)
        with pytest.warns(UserWarning, match="going back to an earlier one"):
            rest = play(tokens("head"), KEEPS_B, privacy, LONG, resume=tmp_path)
    else:
        rest = play(tokens("head"), KEEPS_B, privacy, LONG, resume=tmp_path)
    same_bits(whole[6:], rest)
    assert checkpoint.latest(tmp_path)[0].round == 6


@pytest.mark.parametrize("part", PARTS)
def test_no_bit_may_change(part, tmp_path):
    """Every tenth byte, one bit each."""
    play(regression(), KEEPS_B, None, PLAN, checkpoint=tmp_path)
    path = tmp_path / part.format(2)
    content, good = path.read_bytes(), checkpoint.read(tmp_path, 2)
    for at in range(0, len(content), 10):
        path.write_bytes(content[:at] + bytes([content[at] ^ (1 << at % 8)]) + content[at + 1 :])
        try:
            found = checkpoint.read(tmp_path, 2)
        except checkpoint.Broken:
            continue
        assert found[1] == good[1], "JSON may write one value in two ways, never another value"
        assert (found[0].seen, found[0].changed) == (good[0].seen, good[0].changed)
        assert all(torch.equal(x, good[0].personal[slot]) for slot, x in found[0].personal.items())
        assert all(torch.equal(x, good[0].server.tensors[slot]) for slot, x in found[0].server.tensors.items())


def test_without_any_whole_checkpoint_there_is_nothing_to_resume(tmp_path):
    play(regression(), "ffa-lora", None, PLAN, checkpoint=tmp_path)
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(b"nothing")
    with (
        pytest.warns(UserWarning, match="going back"),
        pytest.raises(ValueError, match=r"^resume='.*': expected a folder with a whole checkpoint"),
    ):
        fl.run(regression(), "ffa-lora", None, PLAN, resume=tmp_path)
    with pytest.raises(ValueError, match=r"^resume='.*nowhere': expected a folder with a whole checkpoint"):
        fl.run(regression(), "ffa-lora", None, PLAN, resume=tmp_path / "nowhere")


OTHER = {
    "method": {"method": "ffa-lora"},
    "plan": {"plan": PLAN.replace(lr=0.3)},
    "lora": {"lora": fl.Lora(rank=3)},
    "seed": {"seed": 1},
    "privacy": {"privacy": private("example", sigma=2.0)},
    "task": {"task": replace(tokens(), clients=tuple((x.flip(0), y) for x, y in tokens().clients))},
}


@pytest.mark.parametrize("what", OTHER)
def test_other_settings_are_refused_in_one_line(what, tmp_path):
    run = {"task": tokens(), "method": "fedlora", "privacy": private("example"), "plan": PLAN, "lora": LORA, "seed": 0}
    list(fl.run(**run, checkpoint=tmp_path))
    with pytest.raises(ValueError, match=f"^resume='.*': expected the same {what} as in this run$"):
        fl.run(**{**run, **OTHER[what]}, resume=tmp_path)
    with pytest.raises(ValueError, match=r"expected the same (layers|task)"):
        fl.run(**{**run, "task": tokens("head")}, resume=tmp_path)
    longer = list(fl.run(**{**run, "plan": PLAN.replace(rounds=3)}, resume=tmp_path))
    assert [record.index for record in longer] == [3]


def test_another_run_is_never_overwritten(tmp_path):
    """A folder with rounds or with a ledger is refused at the call unless it is resumed from."""
    play(regression(), "fedlora", private("example"), PLAN, checkpoint=tmp_path / "run")
    before = {name: (tmp_path / "run" / name).read_bytes() for name in files(tmp_path / "run")}
    for privacy in (None, private("example")):
        with pytest.raises(ValueError, match=r"^checkpoint='.*': expected a folder without rounds of another run"):
            fl.run(regression(), "fedlora", privacy, PLAN, checkpoint=tmp_path / "run")
    assert {name: (tmp_path / "run" / name).read_bytes() for name in files(tmp_path / "run")} == before
    play(regression(), "fedlora", None, PLAN.replace(rounds=0), checkpoint=tmp_path / "begun")
    play(regression(), "fedlora", None, PLAN, checkpoint=tmp_path / "begun")


def test_later_rounds_are_never_pruned_by_earlier_ones(tmp_path):
    """Storing round t removes older pairs only."""
    play(regression(), "fedlora", None, PLAN.replace(rounds=4), checkpoint=tmp_path)
    state, settings = checkpoint.read(tmp_path, 3)
    state.round = 1
    checkpoint.store(tmp_path, state, settings)
    assert checkpoint.rounds_in(tmp_path) == [1, 3, 4]


def test_the_ledger_is_written_before_the_round(tmp_path):
    """At every tick of round t the ledger on disk knows round t, the newest checkpoint at most t - 1."""
    for event in fl.ticks(tokens("head"), "fedlora", private("example"), PLAN, lora=LORA, checkpoint=tmp_path):
        done = checkpoint.rounds_in(tmp_path)[-1]
        if isinstance(event, Tick):
            known = {release.round for release in Ledger.load(tmp_path / "ledger.json").releases}
            assert event.round in known
            assert done < event.round
        else:
            assert done == event.index


@pytest.mark.parametrize("seed", [0, None])
def test_a_round_that_was_cut_short_stays_spent(seed, tmp_path):
    """Also the very first. From a seed it is the same release again and counts once; without one it is another."""
    for event in fl.ticks(tokens(), "fedlora", private("example"), PLAN, lora=LORA, seed=seed, checkpoint=tmp_path):
        if isinstance(event, Tick):
            break
    records = play(tokens(), "fedlora", private("example"), PLAN, seed=seed, resume=tmp_path)
    rounds = [release.round for release in book(records[-1]).releases]
    assert rounds == ([1, 2] if seed == 0 else [1, 1, 2])
    plain = play(tokens(), "fedlora", private("example"), PLAN, seed=seed)[-1].epsilon
    assert (records[-1].epsilon == plain) == (seed == 0)
    assert records[-1].epsilon >= plain


@pytest.mark.parametrize("how", ["missing", "behind", "damaged"])
def test_a_ledger_behind_the_model_is_refused(how, tmp_path):
    play(tokens(), "fedlora", private("example"), PLAN, checkpoint=tmp_path)
    path = tmp_path / "ledger.json"
    if how == "missing":
        path.unlink()
    elif how == "behind":
        one = book(play(tokens(), "fedlora", private("example"), PLAN.replace(rounds=1))[-1])
        one.save(path)
    else:
        path.write_bytes(path.read_bytes().replace(b"1", b"2", 1))
    with pytest.raises(ValueError, match=r"^ledger") as refusal:
        play(tokens(), "fedlora", private("example"), PLAN, resume=tmp_path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("field", ["noise_multiplier", "sample_rate", "count"])
def test_every_entry_of_a_ledger_is_the_run_s_own(field, at, tmp_path):
    """Of any round, the last too: one that says that less was spent is refused."""
    play(tokens(), "fedlora", private("example"), PLAN, checkpoint=tmp_path)
    data = json.loads((tmp_path / "ledger.json").read_text())
    data["content"]["releases"][at][field] = {"noise_multiplier": 9.0, "sample_rate": 0.01, "count": 1}[field]
    Ledger.from_json(sealed.write(data["format"], data["version"], data["content"])).save(tmp_path / "ledger.json")
    with pytest.raises(ValueError, match=r"^ledger=.*as this run writes it"):
        play(tokens(), "fedlora", private("example"), PLAN, resume=tmp_path)


def test_only_safetensors_and_json_without_paths(tmp_path):
    """No pickle, nothing of this machine."""
    play(tokens("head"), KEEPS_B, private("example"), PLAN, checkpoint=tmp_path)
    for path in map(tmp_path.joinpath, files(tmp_path)):
        content = path.read_bytes()
        if path.suffix == ".json":
            json.loads(content)
        elif path.name == "key":
            assert len(bytes.fromhex(content.decode())) == 32
        else:
            size = int.from_bytes(content[:8], "little")
            assert all(
                set(entry) == {"dtype", "shape", "data_offsets"} for entry in json.loads(content[8 : 8 + size]).values()
            )
        assert str(tmp_path).encode() not in content
        assert not re.search(rb"/(home|root|tmp|usr)/", content)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_atomically(path, 7)  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert files(tmp_path) == ["file"]


def test_what_is_written_is_on_the_disk_before_it_takes_the_name(tmp_path, monkeypatch):
    """Whole and flushed when the disk is asked for it, under another name until then; a list's line likewise."""
    path, listed, seen, named = tmp_path / "file", tmp_path / "list", [], []
    write_atomically(path, b"old")

    def synced(number):
        there = os.fstat(number)
        if stat.S_ISDIR(there.st_mode):
            named.append((there.st_ino, [name for name in files(tmp_path) if not name.endswith(".part")]))
        else:
            seen.append((there.st_size, path.read_bytes()))

    def renamed(draft, target):
        seen.append((Path(draft).read_bytes(), Path(target).read_bytes()))
        raise OSError("no such luck")

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    with pytest.raises(OSError, match="no such luck"):
        write_atomically(path, b"newer")
    assert seen == [(5, b"old"), (b"newer", b"old")]
    assert (files(tmp_path), path.read_bytes()) == (["file"], b"old")
    append_line(listed, {"a": 1})
    assert seen[2:] == [(len(b'{"a": 1}\n'), b"old")]
    assert named == [(tmp_path.stat().st_ino, ["file", "list"])], "and the new name"
    monkeypatch.undo()
    monkeypatch.setattr(os, "fsync", synced)
    write_atomically(tmp_path / "one" / "two" / "file", b"new")
    folders = [tmp_path, tmp_path / "one", tmp_path / "one" / "two"]
    assert [number for number, _ in named[1:]] == [folder.stat().st_ino for folder in folders]
    assert named[-1][1][-1] == "one/two/file"


def test_two_writers_of_one_file_do_not_share_a_draft(tmp_path, monkeypatch):
    """Two processes that fetch the same part: each renames what it wrote itself."""
    path, rename, drafts = tmp_path / "file", os.replace, []

    def noted(draft, target):
        drafts.append(Path(draft).name)
        if len(drafts) == 1:  # another one comes in between
            write_atomically(path, b"second")
        rename(draft, target)

    monkeypatch.setattr(os, "replace", noted)
    write_atomically(path, b"first")
    assert len(set(drafts)) == 2
    assert (files(tmp_path), path.read_bytes()) == (["file"], b"first")
