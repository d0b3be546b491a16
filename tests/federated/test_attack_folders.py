"""What a folder tells to whoever gets hold of it, or of the part that may be handed out."""

import hashlib
import json
import shutil
import stat
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import SMALL, call
from safetensors.torch import load, load_file
from toy_tasks import LORA, PLAN, play, private, regression, tokens

import fedlora_lab as fl
from fedlora_lab._utils.files import append_line, write_atomically
from fedlora_lab.federated import checkpoint
from fedlora_lab.federated.compare import Cell
from fedlora_lab.federated.records import Round
from fedlora_lab.lora.source import require_source
from fedlora_lab.report.run_folder import Folder, run_cell
from fedlora_lab.tasks.task import Task

pytestmark = pytest.mark.attack
RELEASE = {"lora": LORA, "seed": None}


def closed(folder: Path) -> None:
    """Assert that nobody but the owner may read, write or list anything from this folder on."""
    paths = [folder, *folder.rglob("*")]
    assert any(path.is_file() for path in paths)
    for path in paths:  # the report is meant to be handed on
        mode = stat.S_IMODE(path.stat().st_mode)
        expected = 0o700 if path.is_dir() else 0o600
        assert mode == expected or path.name == "report.html", (str(path), oct(mode))


def test_every_file_of_a_run_is_its_owner_s(tmp_path, monkeypatch):
    """Checkpoints, ledger, cells, lists, locks, folders, a draft before its first byte; what is
    handed on has the mode of any file."""
    cell = Cell.from_name("fedsa-lora", tokens("head"), private("example"), PLAN, LORA, None)
    with Folder(tmp_path / "runs" / "one") as folder:
        *_, last = (event for event in run_cell(folder, cell) if isinstance(event, Round))
    append_line(tmp_path / "runs" / "own.jsonl", {"a": 1})
    closed(tmp_path / "runs")
    fl.save_adapter(last, tmp_path / "adapter")
    (tmp_path / "plain").touch()
    plain = (tmp_path / "plain").stat().st_mode
    assert all(path.stat().st_mode == plain for path in (tmp_path / "adapter").iterdir())
    monkeypatch.setattr("os.replace", lambda draft, _: closed(Path(draft).parent))
    write_atomically(tmp_path / "studies" / "file", b"secret")


def relabelled(task: Task, label: int) -> Task:
    """The task with another label of one example of one client."""
    (x, y), *others = task.clients
    return replace(task, clients=((x, torch.cat([torch.tensor([label]), y[1:]])), *others))


def written(folder: Path) -> bytes:
    """All that stands in a folder outside private/."""
    files = [path for path in folder.rglob("*") if path.is_file() and "private" not in path.parts]
    assert files
    return b"\n".join(path.read_bytes() for path in files)


def digests(fingerprint: str) -> set[bytes]:
    """The fingerprint, and what one would make of it without a key."""
    given = (fingerprint.encode(), bytes.fromhex(fingerprint))
    return {fingerprint.encode(), *(hashlib.sha256(x).hexdigest().encode() for x in given)}


def test_a_label_cannot_be_guessed_from_a_digest(tmp_path):
    """Who knows all data but one label tries every label: no digest handed out says which it is.

    Two folders on the same data have digests of their own; each run still knows its data.
    """
    task = relabelled(tokens(), 2)
    privacy = private("example")
    for name in "ab":
        list(fl.run(task, "fedlora", privacy, PLAN, **RELEASE, checkpoint=tmp_path / name))
        with Folder(tmp_path / f"cell-{name}") as folder:
            text = json.dumps({"fingerprint": folder.keyed_fingerprint(task.fingerprint)})
            write_atomically(folder.path / "settings.json", text)
    content = written(tmp_path)
    guesses = [relabelled(tokens(), label).fingerprint for label in range(3)]
    assert guesses[2] == task.fingerprint
    assert not [g for g in guesses if any(digest in content for digest in digests(g))]
    stored = [checkpoint.read(tmp_path / name, 2)[1]["task"] for name in "ab"]
    assert len({*stored, task.fingerprint}) == 3
    keys = {(tmp_path / name / "private" / "key").read_bytes() for name in ("a", "b", "cell-a")}
    assert len(keys) == 3 and not [key for key in keys if key.strip() in content]
    with pytest.raises(ValueError, match=r"expected the same task as in this run$"):
        fl.run(relabelled(tokens(), 1), "fedlora", privacy, PLAN, **RELEASE, resume=tmp_path / "b")


def seen_outside(folder: Path) -> dict[str, object]:
    """What lies outside private/: of tensors types and shapes, of JSON all but digests."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or "private" in path.parts:
            continue
        content = path.read_bytes()
        name = str(path.relative_to(folder))
        found[name] = content
        if path.suffix == ".safetensors":
            shapes = {key: (tuple(x.shape), str(x.dtype)) for key, x in load(content).items()}
            found[name] = (len(content), shapes)
        elif name.startswith("round-"):
            body = json.loads(content)["content"]
            assert [len(body.pop("tensors")), len(body["settings"].pop("task"))] == [64, 64]
            found[name] = (len(content), body)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fedsa-lora", "fedex-lora"])
def test_nothing_outside_private_tells_who_took_part(method, tmp_path):
    """Where participation is secret, runs differ in the released values and nowhere else."""
    took = []
    outside = []
    privacy = private("client", trust="central", sample_rate=0.5)
    plan = PLAN.replace(participation=0.5, rounds=4)
    for name in "abcd":
        play(regression(), method, privacy, plan, seed=None, checkpoint=tmp_path / name)
        state = next(checkpoint.whole_checkpoints(tmp_path / name))[0]
        took.append((state.seen, state.changed))
        outside.append(seen_outside(tmp_path / name))
    assert len({str(one) for one in took}) > 1, "the same clients each time: once in 10^10 times"
    assert all(one == outside[0] for one in outside)
    assert not any(word in written(tmp_path) for word in (b"personal", b"seen", b"changed"))


def test_what_clients_keep_lies_in_private_only(tmp_path):
    """Un-noised tensors: no run of their bytes stands in what is handed out.

    Without them the released values and the ledger can be read, and no run goes on.
    """
    parts = regression(), "fedsa-lora", private("client")
    last = play(*parts, seed=None, checkpoint=tmp_path)[-1]
    (kept,) = next(checkpoint.whole_checkpoints(tmp_path))[0].personal.values()
    rows = [row for row in kept if row.any()]
    outside = written(tmp_path)
    assert rows and all(row.numpy().tobytes()[:64] not in outside for row in rows)
    shutil.rmtree(tmp_path / "private")
    shown = load_file(tmp_path / "round-000002.safetensors")
    for key, x in require_source(last)[2].tensors.items():
        assert torch.equal(shown[f"server/{key.side}/{key.layer}"], x)
    assert fl.Ledger.load(tmp_path / "ledger.json").epsilon() == last.epsilon
    words = r"^resume='.*': expected a folder with its subfolder private/ as it was$"
    with pytest.raises(ValueError, match=words):
        fl.run(*parts, PLAN, **RELEASE, resume=tmp_path)
    assert not (tmp_path / "private").exists() and written(tmp_path) == outside


def test_a_run_folder_without_its_private_part_is_not_joined(tmp_path, capsys):
    words = ["run", "regression", "rolora", *SMALL, "--out", tmp_path / "runs"]
    assert call(*words) == 0
    shutil.rmtree(tmp_path / "runs" / "private")
    assert call(*words) == 2
    assert "expected a run folder with its subfolder private/" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "private").exists()
