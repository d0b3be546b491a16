"""What this package never does: unpickle, run text as code, reach for a network unasked, let a name into a page."""

import ast
import json
import os
import subprocess
import sys
import threading
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from test_report import HOSTILE, TAGS, Reader, frame, ledgers, settings

import fedlora_lab as fl
from fedlora_lab import doctor
from fedlora_lab.claims import table
from fedlora_lab.exercises.exercise import Card, Exercise, Mistake
from fedlora_lab.report import render
from fedlora_lab.widgets import controls

ROOT = Path(__file__).parent.parent
SOURCES = sorted(path for part in ("fedlora_lab", "scripts", "benchmarks") for path in (ROOT / part).rglob("*.py"))
MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle", "imp"}
NAMES = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load"}
ENDINGS = (".read_pickle", ".to_pickle", ".unsafe_load")
# Calls that unpickle, or may, unless told otherwise: name of the function -> the argument that must be given so.
LOADS: dict[str, tuple[str, Any]] = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}


def dotted(node: ast.AST) -> str:
    """``a.b.c`` of an expression, "" for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) and dotted(node.value) else ""


def sins(source: str) -> list[str]:
    """What in a module would unpickle, run text, or hand text to a shell."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom):
            found += [str(node.module)] if str(node.module).split(".")[0] in MODULES else []
            found += [name for name in (f"{node.module}.{alias.name}" for alias in node.names) if _known(name)]
        elif isinstance(node, ast.Call) and _sinful(node):
            found.append(dotted(node.func))
    return found


def _known(name: str) -> bool:
    """Whether this is the full name of a function that is looked for: one must not be imported under a bare name."""
    name = name.replace("numpy.", "np.")
    return name in NAMES or name in LOADS or name.endswith(ENDINGS)


def _sinful(node: ast.Call) -> bool:
    name = dotted(node.func).replace("numpy.", "np.")
    given = {word.arg: word.value.value for word in node.keywords if isinstance(word.value, ast.Constant)}
    switched = any(given.get(word) is True for word in ("shell", "allow_pickle", "trust_remote_code"))
    loads = name in LOADS and given.get(LOADS[name][0]) is not LOADS[name][1]
    return name in NAMES or name.endswith(ENDINGS) or switched or loads


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_unpickled_and_no_text_is_run(path):
    assert sins(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "import torch; torch.load(p)",
        "torch.load(p, weights_only=False)",
        "np.load(p)",
        "numpy.load(p, allow_pickle=True)",
        "np.frombuffer(x); np.lib.format.read_array(f, allow_pickle=True)",
        "pd.read_pickle(p)",
        "from torch import load",
        "from torch import load as read; read(p, weights_only=True)",
        "from numpy import asarray, load",
        "from pandas import read_pickle",
        "from os import system",
        "eval(text)",
        "subprocess.run(words, shell=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
    ],
)
def test_the_search_finds_what_it_is_for(line):
    assert sins(line)
    assert sins("torch.load(p, weights_only=True); np.load(p, allow_pickle=False); model.eval()") == []


# network

SILENT = """
import importlib, json, pkgutil, sys
asked = []
def listen(event, given):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request"):
        if not str(given[-1]).startswith(("/", "b'/")):
            asked.append([event, str(given[-1])])
        raise OSError("no network here")
sys.addaudithook(listen)
import fedlora_lab as fl
failed = []
for found in pkgutil.walk_packages(fl.__path__, "fedlora_lab."):
    if ".flower" not in found.name and not found.name.endswith("__main__"):
        importlib.import_module(found.name)
task = fl.tasks.digits(clients=3)
for record in fl.run(task, "rolora", fl.Privacy(noise_multiplier=1.0, delta=1e-4), fl.Plan(rounds=1, batch=8, lr=0.1)):
    pass
list(fl.run(fl.tasks.regression(clients=2), "fedlora", None, fl.Plan(rounds=1)))
fl.plots.png = None
fl.attacks.sentences()
print(json.dumps(asked))
"""


def test_no_network_without_a_task_that_needs_it():
    """Every module imported, digits and regression trained, while each look-up and connection is refused and noted."""
    command = [sys.executable, "-c", SILENT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == []


class Proxy(BaseHTTPRequestHandler):
    """Notes which host is asked for, and lets nobody through."""

    def _refuse(self) -> None:
        asked = self.server.asked  # type: ignore[attr-defined]
        asked.add(self.path.split("//")[-1].split("/")[0].rsplit(":", 1)[0])
        self.send_error(403)

    do_CONNECT = do_GET = do_HEAD = _refuse

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


EVERY_PART = """
from fedlora_lab.tasks.download import find
from fedlora_lab.tasks.sentiment import TEXTS, TOKENIZER, WEIGHTS
for part in (WEIGHTS, TOKENIZER, TEXTS):
    try:
        find(part)
    except FileNotFoundError:
        print("absent")
"""


def test_only_listed_hosts_are_asked(tmp_path):
    """A task that has to fetch its parts, before a proxy that notes every host: all of them stand in doctor's list."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    server.asked = set()  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    kept = {
        k: v
        for k, v in os.environ.items()
        if not k.upper().startswith(("PIP_", "HF_", "UV_")) and k.upper() != "NO_PROXY"
    }
    proxies = {f"{name}_proxy": address for name in ("http", "https", "all", "HTTP", "HTTPS", "ALL")}
    proxies |= {name.upper(): address for name in proxies}
    own = {"FEDLORA_LAB_CACHE": str(tmp_path), "HF_HOME": str(tmp_path / "hub"), "PIP_CONFIG_FILE": os.devnull,
           "PIP_RETRIES": "0", "HOME": str(tmp_path), "FEDLORA_LAB_OFFLINE": "0"}  # fmt: skip
    try:
        done = subprocess.run(
            [sys.executable, "-c", EVERY_PART],
            env=kept | proxies | own,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    asked = server.asked  # type: ignore[attr-defined]
    assert done.stdout.split() == ["absent"] * 3, done.stderr[-2000:]
    assert asked >= {"huggingface.co", "pypi.org"}
    assert asked <= set(doctor.hosts()), asked
    listed = doctor.text([*doctor.network()])
    assert all(host in listed for host in doctor.hosts())


# names in pages

NAMES_IN_PAGES = {
    "script": HOSTILE,
    "attribute": "\" onmouseover=alert(1) x='",
    "end of a tag": "</td></table></script><img src=x onerror=alert(1)>",
    "entities": "&lt;script&gt;&amp;&#60;",
    "control characters": "a\x00b\x07c\x1b[31md\u202egnp.exe\u2066\u200b",
    "template": "{{ 7 * 7 }}{% for x in y %}${7*7}",
    "long": "x" * 20_000,
    "mathematics": "$\\frac{1}{$ \\input{/etc/passwd} _^",
    "lines": "one\ntwo\r\nthree",
}


@pytest.mark.parametrize("name", NAMES_IN_PAGES.values(), ids=NAMES_IN_PAGES)
def test_a_report_shows_any_name_as_text(name):
    """In task, methods, versions, commands and cells: no tag, no attribute that acts, and what is shown is the name."""
    data: Any = frame(task=name, methods=(name,), seeds=(0,))
    data = data[data["measure"].isin(["accuracy", "bytes_up", "bytes_down", "seconds"])]
    given = settings(name, (name,), (0,))
    given["versions"][name] = name
    page = Reader(render(data, given, {name: next(iter(ledgers().values()))}))
    assert {tag for tag, _ in page.tags} <= TAGS
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
    assert "49" not in page.text or "{{ 7 * 7 }}" in page.text
    shown = "".join(page.text.split())
    assert "".join(name.replace("\x00", "\ufffd").split()) in shown.replace("\x00", "\ufffd")


class Inside(HTMLParser):
    """Tags and text of a piece of HTML."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.keys: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.keys += [key for key, _ in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("name", NAMES_IN_PAGES.values(), ids=NAMES_IN_PAGES)
def test_widgets_tables_and_cards_show_any_name_as_text(name):
    place, link = controls.words(), controls.words()
    controls.say(place, name)
    controls.offer(link, name, name, name)
    mistakes = tuple(Mistake(i, lambda value: False, name) for i in range(3))
    one = Exercise(name, name, name, name, lambda: 0, float, lambda value: True, name, mistakes)
    pieces = {
        "say": (place.value, {"div"}),
        "offer": (link.value, {"a"}),
        "table": (table((name, name, name))._repr_html_(), {"table", "tr", "td", "th"}),
        "card": (Card(one)._repr_html_(), {"p", "b", "details", "summary"}),
    }
    for what, (text, tags) in pieces.items():
        page = Inside(text)
        assert set(page.tags) <= tags, what
        assert not [key for key in page.keys if key.startswith("on")], what
        assert name.replace("\r\n", "\n") in page.text.replace("\r\n", "\n"), what


@pytest.mark.parametrize("name", NAMES_IN_PAGES.values(), ids=NAMES_IN_PAGES)
def test_a_dial_shows_any_name_as_text(name):
    """Whatever a figure's words or an error hold, the sentence below is text."""

    def plot(number: int) -> Any:
        if number > 1:
            raise ValueError(name)
        return fl.plots.recovered({"x": [[0.0]]}), name

    dial = fl.widgets.dial(plot, number=(1, 0, 3))
    for value in (1, 2):
        dial.knobs["number"].value = value
        assert dial.settle()
        page = Inside(dial.sentence.value)
        assert page.tags == ["div"] and set(page.keys) == {"role", "style"}
    dial.close()
