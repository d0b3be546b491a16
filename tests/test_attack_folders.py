"""What a folder tells to whoever gets hold of it, or of the part that may be handed out."""

import hashlib
import itertools
import json
import shutil
import stat
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load
from small import LORA, PLAN, play, private, regression, tokens
from test_cli import SMALL, call

import fedlora_lab as fl
from fedlora_lab import checkpoint
from fedlora_lab.cli import cells
from fedlora_lab.comparison import Cell
from fedlora_lab.files import append_line, write_atomically
from fedlora_lab.folder import Folder
from fedlora_lab.record import origin
from fedlora_lab.report import report
from fedlora_lab.tasks import Task

pytestmark = pytest.mark.attack
LEAVES = {"report.html"}
"""What is meant to be handed on, besides adapters."""


def closed(folder: Path) -> None:
    """Assert that nobody but the owner may read, write or list anything from this folder on."""
    paths = [folder, *folder.rglob("*")]
    assert any(path.is_file() for path in paths)
    for path in paths:
        mode = stat.S_IMODE(path.stat().st_mode)
        expected = 0o700 if path.is_dir() else 0o600
        assert mode == expected or path.name in LEAVES, (str(path.relative_to(folder)), oct(mode))


def test_every_file_of_a_run_is_its_owner_s(tmp_path):
    """Checkpoints, ledger, cells, frames, settings, locks and every folder made for them; by loop and by command."""
    task, privacy = tokens("head"), private("example")
    *_, last = fl.run(task, "fedsa-lora", privacy, PLAN, lora=LORA, seed=None, checkpoint=tmp_path / "api" / "deep")
    closed(tmp_path / "api")
    out = tmp_path / "runs" / "compared"
    assert call("compare", "regression", "--methods", "fedsa-lora", "--seeds", "1", *SMALL, "--out", out) == 0
    assert (out / "report.html").exists()
    closed(tmp_path / "runs")
    fl.save_adapter(last, tmp_path / "adapter")
    write_atomically(tmp_path / "page.html", "", shared=True)
    plain = tmp_path / "plain"
    plain.touch()
    for path in (tmp_path / "page.html", *(tmp_path / "adapter").iterdir()):
        assert path.stat().st_mode == plain.stat().st_mode, "what is handed on has the mode of any file"


def test_a_list_is_its_owner_s(tmp_path):
    """A study's lines, which grow while it runs."""
    append_line(tmp_path / "studies" / "own.jsonl", {"a": 1})
    closed(tmp_path / "studies")


def test_nobody_else_reads_a_file_while_it_is_written(tmp_path, monkeypatch):
    """Not even its draft: the mode is there before the first byte."""
    seen = []

    def look(draft, target):
        seen.append(stat.S_IMODE(Path(draft).stat().st_mode))
        raise OSError("seen")

    monkeypatch.setattr("os.replace", look)
    with pytest.raises(OSError, match="seen"):
        write_atomically(tmp_path / "file", b"secret")
    assert seen == [0o600]


def relabelled(task: Task, label: int) -> Task:
    """The task with another label of one example of one client."""
    (x, y), *others = task.clients
    y = y.clone()
    y[0] = label
    return replace(task, clients=((x, y), *others))


def written(folder: Path) -> str:
    """All that stands in a folder outside private/, as text."""
    files = [path for path in folder.rglob("*") if path.is_file() and "private" not in path.parts]
    assert files
    return "\n".join(path.read_bytes().decode("latin1") for path in files)


def digests(fingerprint: str) -> set[str]:
    """The fingerprint, and what one would make of it without a key."""
    found = {fingerprint}
    for name, text in itertools.product(("sha256", "sha512", "sha1", "md5", "blake2b"), (fingerprint, "")):
        found.add(hashlib.new(name, (text or fingerprint).encode()).hexdigest())
        found.add(hashlib.new(name, bytes.fromhex(fingerprint)).hexdigest())
    return found


def test_a_label_cannot_be_guessed_from_a_digest(tmp_path):
    """Who knows all data but one label tries every label: no digest in what is handed out says which one it is.

    Two folders on the same data have digests of their own; each run still knows its data, and other data.
    """
    task, run = relabelled(tokens(), 2), ("fedlora", private("example"), PLAN)
    for name in "ab":
        list(fl.run(task, *run, lora=LORA, seed=None, checkpoint=tmp_path / name))
        with Folder(tmp_path / f"cell-{name}") as folder:
            list(cells.play(folder, Cell.named(*run[:1], task, *run[1:], LORA, None)))
            write_atomically(folder.path / "settings.json", json.dumps({"fingerprint": folder.keyed(task.fingerprint)}))
    text = "".join(written(tmp_path / name) for name in ("a", "b", "cell-a", "cell-b"))
    guesses = {label: relabelled(tokens(), label).fingerprint for label in range(3)}
    assert guesses[2] == task.fingerprint
    assert not [label for label, guess in guesses.items() if any(digest in text for digest in digests(guess))]
    digest = [checkpoint.read(tmp_path / name, 2)[1]["task"] for name in "ab"]
    assert len({*digest, task.fingerprint}) == 3
    keys = [(path / "private" / "key").read_text() for path in (tmp_path / "a", tmp_path / "b", tmp_path / "cell-a")]
    assert len(set(keys)) == 3 and not [key for key in keys if key.strip() in text]
    longer = PLAN.replace(rounds=3)
    assert len(list(fl.run(task, *run[:2], longer, lora=LORA, seed=None, resume=tmp_path / "a"))) == 1
    with pytest.raises(ValueError, match=r"expected the same task as in this run$"):
        fl.run(relabelled(tokens(), 1), *run[:2], longer, lora=LORA, seed=None, resume=tmp_path / "b")


def seen_outside(folder: Path) -> dict[str, object]:
    """Names, sizes and contents outside private/; of tensors their names, types and shapes, of JSON all but digests."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or "private" in path.parts:
            continue
        content, name = path.read_bytes(), str(path.relative_to(folder))
        if path.suffix == ".safetensors":
            shapes = {key: (tuple(x.shape), str(x.dtype)) for key, x in load(content).items()}
            found[name] = (len(content), shapes)
        elif name.startswith("round-"):
            body = json.loads(content)["body"]
            digests = body.pop("tensors"), body["settings"].pop("task")
            assert [len(digest) for digest in digests] == [64, 64]
            found[name] = (len(content), body)
        else:
            found[name] = content
    return found


SAMPLED = private("client", trust="central", sample_rate=0.5)


@pytest.mark.parametrize("method", ["fedlora", "fedsa-lora", "fedex-lora"])
def test_nothing_outside_private_tells_who_took_part(method, tmp_path):
    """Where participation is secret: runs in which others took part differ in the released values and nowhere else."""
    took, outside = [], []
    for number in range(4):
        folder = tmp_path / str(number)
        play(regression(), method, SAMPLED, PLAN.replace(participation=0.5, rounds=4), seed=None, checkpoint=folder)
        state = checkpoint.latest(folder)[0]
        took.append((state.seen, state.changed))
        outside.append(seen_outside(folder))
    assert len({str(one) for one in took}) > 1, "all four times the same clients: once in 10^10 times"
    assert all(one == outside[0] for one in outside)
    text = written(tmp_path)
    assert "personal" not in text and "seen" not in text and "changed" not in text


def test_what_clients_keep_lies_in_private_only(tmp_path):
    """Un-noised tensors: no run of their bytes stands in what is handed out."""
    play(regression(), "fedsa-lora", private("client"), seed=None, checkpoint=tmp_path)
    (kept,) = checkpoint.latest(tmp_path)[0].personal.values()
    outside = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and "private" not in p.parts)
    assert all(row.numpy().tobytes()[:64] not in outside for row in kept if row.any())
    assert any(row.any() for row in kept)


def test_without_its_private_part_a_folder_is_read_and_not_resumed(tmp_path):
    """What is left are the released values and the ledger."""
    whole = play(regression(), "fedsa-lora", private("example"), seed=None, checkpoint=tmp_path)
    shutil.rmtree(tmp_path / "private")
    server, settings = checkpoint.released(tmp_path, 2)
    assert all(torch.equal(x, origin(whole[-1])[2].tensors[slot]) for slot, x in server.tensors.items())
    assert settings["method"]["name"] == repr("FedSA-LoRA") and whole[-1].ledger is not None
    assert fl.Ledger.load(tmp_path / "ledger.json").epsilon() == whole[-1].epsilon
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"^resume='.*': expected a folder with its subfolder private/ as it was$"):
        fl.run(regression(), "fedsa-lora", private("example"), PLAN, lora=LORA, seed=None, resume=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_run_folder_without_its_private_part_is_reported_and_not_joined(tmp_path, capsys):
    out = tmp_path / "runs"
    words = ["compare", "regression", "--methods", "deer", *SMALL, "--out", out]
    assert call(*words, "--seeds", "1") == 0
    shutil.rmtree(out / "private")
    assert report(out).is_file()
    capsys.readouterr()
    for command in ([*words, "--seeds", "2"], ["audit", out]):
        assert call(*command) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "expected a run folder with its subfolder private/" in error
    assert not (out / "private").exists()
    assert call(*words, "--seeds", "1", "--fresh") == 0


def test_an_audit_writes_in_private_only(tmp_path):
    """Its scores are of a run on the same data under a known seed: who guesses a label could draw them again."""
    out = tmp_path / "runs"
    words = ["run", "regression", "ffa-lora", "--seed", "none", *SMALL, "--out", out]
    assert call(*words) == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    write_atomically(out / "audit.json", "as an earlier version wrote it")
    assert call("audit", out, "--canaries", 8, "--rounds", 1, "--no-check") == 0
    after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    new = out / "private" / "audit.json"
    assert set(after) - set(before) == {new} and all(after[path] == content for path, content in before.items())
    closed(out)
    assert call(*words, "--fresh") == 0
    assert not new.exists()
