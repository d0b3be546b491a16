"""Every reader of files before damaged, hostile and wrong ones: one clear line, nothing written, good state kept.

What stands in test_ledger.py, test_checkpoint.py and test_sentiment.py (single bytes, links, paths that climb) is not
repeated here.
"""

import copy
import gzip
import hashlib
import io
import json
import struct
import tarfile
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from small import PLAN, play, private, regression
from test_report import frame as report_frame
from test_report import ledgers as report_ledgers
from test_report import settings as report_settings

from fedlora_lab import checkpoint, sealed, study
from fedlora_lab.checkpoint import Broken, latest
from fedlora_lab.cli.audit import cells
from fedlora_lab.files import append_line, parsed, read_lines
from fedlora_lab.folder import Folder, read_frame, to_json
from fedlora_lab.ledger import Ledger
from fedlora_lab.report import report
from fedlora_lab.study import results, work
from fedlora_lab.tasks.download import read_member

STEP = 64
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def refused(call: Callable[[], Any]) -> str:
    """The one line with which a call refuses; it must refuse, as ValueError or OSError."""
    with pytest.raises((ValueError, OSError)) as caught:
        call()
    line = str(caught.value)
    assert line and "\n" not in line and len(line) < 700, line
    return line


def taken_or_refused(call: Callable[[], Any]) -> bool:
    """Whether a call took what it was given; if not, it must have refused in one line."""
    line = ""
    try:
        call()
    except (ValueError, OSError) as error:
        line = str(error) or "nothing said\n"
    assert "\n" not in line and len(line) < 700, line
    return not line


def damaged(whole: bytes, step: int = STEP) -> Iterator[bytes]:
    """Cut at every so many bytes, with one byte flipped there, and with something behind."""
    for at in range(0, len(whole), step):
        yield whole[:at]
        yield whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :]
    yield whole + b"x"


def listing(folder: Path) -> dict[str, bytes]:
    """Names and contents of all files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# JSON

STRANGE = {
    "nan": b'{"a": NaN}',
    "infinity": b"[-Infinity]",
    "twice": b'{"a": 1, "a": 2}',
    "twice inside": b'[{"b": {"a": 1, "a": 1}}]',
    "deep": b"[" * 200_000,
    "deep objects": b'{"a":' * 200_000,
    "long number": b"1" * 10_000,
    "no text": b'"\xff\xfe"',
    "utf-16": '{"a": 1}'.encode("utf-16"),
    "mark": b"\xef\xbb\xbf{}",
    "empty": b"",
    "zeros": b"\0" * 100,
    "cut": b'{"a": [1, 2',
    "two": b"{} {}",
    "python": b"{'a': None}",
}


@pytest.mark.parametrize("content", STRANGE.values(), ids=STRANGE)
def test_json_is_taken_strictly(content, tmp_path):
    assert refused(lambda: parsed(content, "file")).startswith("file: expected JSON (")
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"good": 1}\n' + content + b"\n")
    append_line(path, {"good": 2})
    assert read_lines(path) == [{"good": 1}, {"good": 2}]


@given(st.binary(max_size=40) | JUNK.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_json_or_refused(content):
    if taken_or_refused(lambda: parsed(content, "file")):
        assert json.dumps(parsed(content, "file")) == json.dumps(json.loads(content))


# checkpoint


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Checkpoints of rounds 1 and 2 of a run that keeps B at home, as files and contents."""
    folder = tmp_path_factory.mktemp("run")
    play(regression(), "fedsa-lora", private("example"), checkpoint=folder)
    return listing(folder)


def lay(stored: dict[str, bytes], folder: Path) -> Path:
    """The stored files in a folder."""
    folder.mkdir(exist_ok=True)
    for name, content in stored.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


OPEN = ("round-000002.json", "round-000002.safetensors")
HIDDEN = ("private/round-000002.json", "private/round-000002.safetensors")


@pytest.mark.parametrize("name", [*OPEN, *HIDDEN])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(name, stored, tmp_path):
    folder = lay(stored, tmp_path / "run")
    for content in damaged(stored[name]):
        (folder / name).write_bytes(content)
        before = listing(folder)
        line = refused(lambda: checkpoint.read(folder, 2))
        assert line.startswith("checkpoint=round-000002: expected a whole one")
        with pytest.warns(UserWarning, match="going back to an earlier one"):
            assert latest(folder)[0].round == 1
        assert listing(folder) == before


def resealed(stored: dict[str, bytes], change: Callable[[dict, dict], Any]) -> dict[str, bytes]:
    """The files with round 2 changed, and every digest right for what it is now.

    ``change`` sees both parts as one: the bodies joined (what both have, such as the round, stands in both), and all
    tensors. Names of neither group, and ``raw`` bytes, go to the server's tensors.
    """
    bodies = [json.loads(stored[name])["body"] for name in (OPEN[0], HIDDEN[0])]
    joined: dict[str, Any] = {**bodies[0], **bodies[1]}
    tensors: dict[str, Any] = {**load(stored[OPEN[1]]), **load(stored[HIDDEN[1]])}
    change(joined, tensors)
    raw = tensors.pop("raw", None)
    own = save({name: x for name, x in tensors.items() if name.startswith("personal/")})
    content = raw or save({name: x for name, x in tensors.items() if not name.startswith("personal/")})
    if raw == b"":
        content = b""
    bodies = [{key: joined[key] for key in body if key in joined} for body in bodies]
    bodies[1]["server"] = hashlib.sha256(content).hexdigest()
    files = dict(stored)
    for body, part, name in zip(bodies, (content, own), (OPEN, HIDDEN), strict=True):
        body["tensors"] = hashlib.sha256(part).hexdigest()
        digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        files |= {name[0]: json.dumps({"body": body, "sha256": digest}).encode(), name[1]: part}
    return files


def header(claims: dict[str, Any], rest: bytes = b"") -> bytes:
    """A safetensors file with this header."""
    text = json.dumps(claims).encode()
    return struct.pack("<Q", len(text)) + text + rest


BODIES: dict[str, Callable[[dict, dict], Any]] = {
    "seen is text": lambda b, t: b.update(seen="xyz"),
    "seen is huge": lambda b, t: b.update(seen=[10**400] * 3),
    "seen is later": lambda b, t: b.update(seen=[0, 1, 2]),
    "seen is a float": lambda b, t: b.update(seen=[0.5, 0, 0]),
    "seen is true": lambda b, t: b.update(seen=[True, 0, 0]),
    "changed is short": lambda b, t: b.update(changed=[]),
    "changed is no list": lambda b, t: b.update(changed={"0": {}}),
    "changed is negative": lambda b, t: b.update(changed=[{"A": -1}, {}]),
    "changed is deep": lambda b, t: b.update(changed=[{"A": [[[[1]]]]}, {}]),
    "no seen": lambda b, t: b.pop("seen"),
    "no settings": lambda b, t: b.pop("settings"),
    "version": lambda b, t: b.update(version=10**30),
    "round": lambda b, t: b.update(round=3),
    "unknown group": lambda b, t: t.update({"client/A/map": torch.zeros(1)}),
    "name without parts": lambda b, t: t.update({"map": torch.zeros(1)}),
    "raw header": lambda b, t: t.update(raw=struct.pack("<Q", 2**63) + b"{}"),
    "raw size": lambda b, t: t.update(
        raw=header({"server/A/map": {"dtype": "F64", "shape": [2**40, 2**40], "data_offsets": [0, 8]}}, b"12345678")
    ),
    "raw overlap": lambda b, t: t.update(
        raw=header({n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in ("server/A/a", "server/B/b")},
                   b"1234")
    ),
    "raw nothing": lambda b, t: t.update(raw=b""),
}  # fmt: skip


@pytest.mark.parametrize("change", BODIES.values(), ids=BODIES)
def test_a_checkpoint_with_right_digests_and_wrong_content_is_refused(change, stored, tmp_path):
    folder = lay(resealed(stored, change), tmp_path / "run")
    with pytest.raises(Broken, match=r"^checkpoint=round-000002: expected a whole one"):
        checkpoint.read(folder, 2)
    refused(lambda: checkpoint.read(folder, 2))
    with pytest.warns(UserWarning, match="going back"):
        assert latest(folder)[0].round == 1


A, KEPT = "server/A/map", "personal/B/map"
TENSORS: dict[str, tuple[Callable[[dict, dict], Any], str]] = {
    "dtype": (lambda b, t: t.update({A: t[A].float()}), "resume, "),
    "whole numbers": (lambda b, t: t.update({A: t[A].long()}), "resume, "),
    "shape": (lambda b, t: t.update({A: t[A].T.contiguous()}), "resume, "),
    "larger": (lambda b, t: t.update({A: torch.zeros(50, 50, dtype=torch.float64)}), "resume, "),
    "one layer more": (lambda b, t: t.update({"server/A/other": t[A].clone()}), "resume="),
    "one layer less": (lambda b, t: t.pop(A), "resume="),
    "kept of two clients": (lambda b, t: t.update({KEPT: t[KEPT][:2].clone()}), "resume, "),
    "kept in halves": (lambda b, t: t.update({KEPT: t[KEPT].float()}), "resume, "),
    "kept by nobody": (lambda b, t: t.update({"personal/B/other": t[KEPT].clone()}), "resume, "),
    "two clients": (lambda b, t: b.update(seen=[0, 0]), "resume"),
}


@pytest.mark.parametrize(("change", "begins"), TENSORS.values(), ids=TENSORS)
def test_a_checkpoint_of_another_model_is_refused_before_training(change, begins, stored, tmp_path):
    assert A in load(stored[OPEN[1]]) and KEPT in load(stored[HIDDEN[1]])
    folder = lay(resealed(stored, change), tmp_path / "run")
    before = listing(folder)
    more = PLAN.replace(rounds=3)
    line = refused(lambda: play(regression(), "fedsa-lora", private("example"), more, resume=folder))
    assert line.startswith(begins), line
    assert listing(folder) | {".lock": b""} == before | {".lock": b""}


def test_a_resealed_checkpoint_that_is_right_is_taken(stored, tmp_path):
    """The helper of the tests above does not spoil what it does not change."""
    folder = lay(resealed(stored, lambda b, t: None), tmp_path / "run")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(play(regression(), "fedsa-lora", private("example"), PLAN.replace(rounds=3), resume=folder)) == 1


# ledger


@pytest.mark.parametrize("field", ["round", "count", "sample_rate", "noise_multiplier", "clients"])
@given(value=JUNK | st.sampled_from([10**400, -(10**30), 1e308, [10**30], ["0"], [0, 0], 2**53 + 1]))
@settings(max_examples=30)
def test_a_ledger_with_junk_inside_states_nothing(field, value):
    """Whatever stands in an entry under a right digest: refused, or an entry that can be counted."""
    ledger = Ledger(accountant="rdp")
    ledger.record(0, (0, 2), 5, sample_rate=0.1, noise_multiplier=1.0)
    data = json.loads(ledger.to_json())
    data["content"]["releases"][0][field] = value
    text = sealed.write(data["format"], data["version"], data["content"])
    if taken_or_refused(lambda: Ledger.from_json(text)):
        assert Ledger.from_json(text).epsilon() >= 0


# run folder


@pytest.fixture(scope="module")
def folder_files():
    """A run folder's files; its frame has nothing to draw, so that a report is quick."""
    frame: Any = report_frame(methods=("fedlora",), seeds=(0,))
    frame = frame[frame["round"].isin([0, 4]) & frame["measure"].isin(["bytes_up", "bytes_down", "seconds", "loss"])]
    frame = frame.assign(value=frame["value"].where(frame["measure"] != "loss", np.inf))
    texts = {
        "settings.json": to_json(report_settings(methods=("fedlora",), seeds=(0,)) | {"privacies": {"fedlora": None}}),
        "ledger.json": to_json(report_ledgers(methods=("fedlora",), seeds=(0,))),
        "frame.csv": frame.to_csv(index=False),
    }
    return {name: text.encode() for name, text in texts.items()}


def read_all(folder: Path) -> None:
    """All that reads a run folder, each by itself: the report, a run that joins, the audit."""
    taken_or_refused(lambda: report(folder))
    taken_or_refused(lambda: cells(folder, None, 0))
    with Folder(folder) as held:
        taken_or_refused(lambda: held.claim(report_settings(methods=("fedlora",), seeds=(0,)) | {"privacies": {}}))


def test_a_whole_run_folder_is_taken(folder_files, tmp_path):
    assert report(lay(folder_files, tmp_path / "run")).is_file()


@pytest.mark.parametrize("name", ["settings.json", "ledger.json", "frame.csv"])
def test_a_damaged_run_folder_is_one_line(name, folder_files, tmp_path):
    folder, outside = lay(folder_files, tmp_path / "run"), tmp_path / "other"
    outside.write_text("mine")
    for content in damaged(folder_files[name], 211):
        lay(folder_files | {name: content}, folder)
        read_all(folder)
        kept = {key: value for key, value in listing(tmp_path).items() if not key.startswith("run/")}
        assert kept == {"other": b"mine"}
    for content in STRANGE.values():
        lay(folder_files | {name: content}, folder)
        refused(lambda: report(folder))


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """Where something stands in nested JSON."""
    found = [path] if path else []
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            found += places(value[key], (*path, key))
    return found


@given(st.data())
@settings(max_examples=60)
def test_settings_of_the_wrong_kind_are_one_line(folder_files, tmp_path_factory, data):
    """Any value at any place of settings.json or ledger.json: every reader takes it or refuses in one line."""
    name = data.draw(st.sampled_from(["settings.json", "ledger.json"]))
    value = json.loads(folder_files[name])
    *path, last = data.draw(st.sampled_from(places(value)))
    inner = value
    for key in path:
        inner = inner[key]
    inner[last] = data.draw(JUNK)
    folder = lay(folder_files | {name: json.dumps(value).encode()}, tmp_path_factory.mktemp("settings"))
    read_all(folder)


@given(st.data())
@settings(max_examples=40)
def test_frames_of_the_wrong_kind_are_one_line(folder_files, tmp_path_factory, data):
    rows = [line.split(",") for line in folder_files["frame.csv"].decode().splitlines()]
    row, column = data.draw(st.integers(0, len(rows) - 1)), data.draw(st.integers(0, 6))
    odd = st.sampled_from(
        ["", "nan", "inf", "-1", "1e999", "0.5", "9" * 400, '"', "\0", "<script>", "=1+1", "é" * 3000]
    )
    rows[row][column] = data.draw(odd | st.text(max_size=4))
    text = "\n".join(",".join(row) for row in rows).encode("utf-8", "surrogatepass")
    folder = lay(folder_files | {"frame.csv": text}, tmp_path_factory.mktemp("frame"))
    if taken_or_refused(lambda: read_frame(folder / "frame.csv")):
        frame: Any = read_frame(folder / "frame.csv")
        assert len(frame) == 0 or (frame["round"] >= 0).all()
        assert {"task", "method", "seed", "round", "layer", "measure", "value"} <= set(frame.columns)
    taken_or_refused(lambda: report(folder))


# results of a study

GOOD = {"key": "a", "lr": 0.1, "seed": 0, "values": {"loss": 0.5, "deviation": None}}
BAD: list[Any] = [
    {},
    {"key": "a"},
    {**GOOD, "key": 3},
    {**GOOD, "lr": "0.1"},
    {**GOOD, "seed": None},
    {**GOOD, "seed": True},
    {**GOOD, "values": None},
    {**GOOD, "values": [1]},
    {**GOOD, "values": {"loss": "low"}},
    {**GOOD, "values": {"loss": [1]}},
    {**GOOD, "values": {"loss": True}},
    [GOOD],
    "a",
    7,
]


@pytest.mark.parametrize("entry", BAD, ids=map(str, range(len(BAD))))
def test_a_line_that_is_no_result_is_run_again(entry, tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(entry) + "\n" + json.dumps({**GOOD, "key": "b"}) + "\n")
    assert set(work.load(path)) == {"b"}


def test_damaged_results_lose_their_line_and_no_other(tmp_path):
    lines = [json.dumps({**GOOD, "key": str(i)}).encode() + b"\n" for i in range(6)]
    path, whole = tmp_path / "results.jsonl", b"".join(lines)
    for content in damaged(whole, 7):
        path.write_bytes(content)
        before = content.split(b"\n")
        intact = {json.loads(line)["key"] for line in lines if line.strip() in before}
        found = work.load(path)
        assert intact <= set(found)
        assert len(found) <= len(lines)
        assert all(type(entry["seed"]) is int for entry in found.values())


def test_a_frame_of_results_is_one_line(tmp_path):
    (tmp_path / "x.csv").write_text('a,b\n1,2,3\n4,"5')
    refused(lambda: results.read("x", tmp_path))
    (tmp_path / "x.csv").write_bytes(b"")
    refused(lambda: results.read("x", tmp_path))
    (tmp_path / "x.csv").write_bytes(b"a,b\n\xff\xfe,1\n")
    refused(lambda: results.read("x", tmp_path))
    refused(lambda: study.read("../x", tmp_path))


# archives


def tar(members: dict[str, bytes], **more: Any) -> bytes:
    """A tar archive, not compressed."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            for key, value in more.items():
                setattr(entry, key, value)
            file.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def zipped(members: dict[str, bytes]) -> bytes:
    """A zip archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


CONTENT = bytes(range(256)) * 8
WHOLE = {
    "tar": tar({"first": b"x" * 600, "part": CONTENT}),
    "tar.gz": gzip.compress(tar({"first": b"x" * 600, "part": CONTENT}), mtime=0),
    "zip": zipped({"first": b"x" * 600, "part": CONTENT}),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_damaged_archives_give_the_part_or_one_line(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_member(WHOLE[kind], "part", 4096) == CONTENT
    for content in damaged(WHOLE[kind], 16 if kind != "tar" else STEP):
        taken_or_refused(lambda content=content: read_member(content, "part", 4096))
    assert list(tmp_path.iterdir()) == []


@given(st.binary(max_size=300), st.sampled_from([b"", b"PK", b"PK\x03\x04", b"\x1f\x8b\x08\x00", b"PK\x05\x06"]))
def test_any_bytes_are_an_archive_or_refused(content, magic):
    assert not taken_or_refused(lambda: read_member(magic + content, "part", 100))


def bomb(size: int) -> bytes:
    """A tar archive in gzip whose first member has this many zero bytes; built without holding them."""
    head = tar({"first": b"", "part": b"good"})[:512]
    info = tarfile.TarInfo("first")
    info.size = size
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=1, mtime=0) as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        for _ in range(size // 2**20):
            file.write(bytes(2**20))
        file.write(tar({"part": b"good"}))
    assert len(head) == 512
    return buffer.getvalue()


def test_a_bomb_before_the_part_is_not_unpacked():
    """Some megabytes before it are skipped; what unpacks to far more than it is, is refused."""
    assert read_member(bomb(8 * 2**20), "part", 100) == b"good"
    line = refused(lambda: read_member(bomb(128 * 2**20), "part", 100))
    assert "bytes to unpack" in line


def test_a_bomb_is_given_up_before_its_end(monkeypatch):
    """What stands behind the bound is not even sought: in gzip that would unpack all before it."""
    hostile, sought, seek = bomb(80 * 2**20), [], gzip.GzipFile.seek

    def noted(self, offset, whence=0):
        sought.append(offset)
        return seek(self, offset, whence)

    monkeypatch.setattr(gzip.GzipFile, "seek", noted)
    monkeypatch.setattr("fedlora_lab.tasks.download.UNPACKED", 2**20)
    assert "bytes to unpack" in refused(lambda: read_member(hostile, "part", 100))
    assert all(offset <= 2**20 + 16 * len(hostile) for offset in sought)


def test_a_large_part_is_not_unpacked_beyond_the_limit():
    """Refused after a little more than the limit, in memory as well."""
    whole = zipped({"part": bytes(64 * 2**20)}), gzip.compress(tar({"part": bytes(16 * 2**20)}), 1)
    for archive in whole:
        tracemalloc.start()
        line = refused(lambda archive=archive: read_member(archive, "part", 100))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert "at most 100 bytes" in line
        assert most < 4 * 2**20


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
def test_a_header_that_claims_any_size_asks_for_no_memory(kind):
    """Extended headers are read whole: one of 2^40 bytes must not be believed."""
    info = tarfile.TarInfo("././@Header")
    info.type, info.size = kind, 2**40
    hostile = info.tobuf(tarfile.GNU_FORMAT) + bytes(512) + tar({"part": b"good"})
    assert "bytes to unpack" in refused(lambda: read_member(hostile, "part", 100))
    assert "bytes to unpack" in refused(lambda: read_member(gzip.compress(hostile), "part", 100))


@pytest.mark.parametrize("type", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_what_is_no_regular_file_is_no_part(type):
    assert "regular file" in refused(
        lambda: read_member(tar({"part": b""}, type=type, linkname="/etc/passwd"), "part", 9)
    )


def test_a_zip_that_lies_about_its_sizes_is_one_line():
    """Sizes in the central directory that are not those of the content, an unknown method, a locked member."""
    whole = zipped({"part": CONTENT})
    central = whole.index(b"PK\x01\x02")
    for at, value in ((24, 2**31), (24, 1), (20, 5), (10, 99), (8, 1), (42, 2**30)):
        size = 4 if at in (20, 24, 42) else 2
        lied = bytearray(whole)
        lied[central + at : central + at + size] = value.to_bytes(size, "little")
        if taken_or_refused(lambda lied=bytes(lied): read_member(lied, "part", 4096)):
            assert read_member(bytes(lied), "part", 4096) in (CONTENT, CONTENT[:1])
    assert copy.copy(whole) == whole
