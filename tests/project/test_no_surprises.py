"""What this package never does: unpickle, run text as code, let a name into a page."""

import ast
from pathlib import Path
from typing import Any

import pytest
from reports import HOSTILE, TAGS, Reader, frame, ledgers, settings

from fedlora_lab.course.exercises import Exercise, NumberAnswer
from fedlora_lab.report.page import render
from fedlora_lab.report.summary_table import claims_table

ROOT = Path(__file__).parents[2]
PICKLES = "pickle cPickle _pickle cloudpickle dill joblib marshal shelve jsonpickle imp"
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load"}
ENDINGS = (".read_pickle", ".to_pickle", ".unsafe_load")
LOADS = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}
"""Calls that unpickle, or may, unless told otherwise: the argument that must be given so."""


def dotted(node: ast.AST) -> str:
    """``a.b.c`` of an expression, "" for anything else."""
    if isinstance(node, ast.Attribute) and dotted(node.value):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def sins(source: str) -> list[str]:
    """What in a module would unpickle, run text, or hand text to a shell."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            # Nor may a function that is looked for be imported under a bare name.
            room = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            names = [f"{room}{alias.name}".replace("numpy.", "np.") for alias in node.names]
            found += [name for name in names if name in CALLS | set(LOADS)]
            found += [name for name in names if name.endswith(ENDINGS)]
            found += [name for name in names if name.split(".")[0] in PICKLES.split()]
        elif isinstance(node, ast.Call):
            name = dotted(node.func).replace("numpy.", "np.")
            words = [word for word in node.keywords if isinstance(word.value, ast.Constant)]
            given = {word.arg: word.value.value for word in words}  # type: ignore[attr-defined]
            trusting = (given.get(word) for word in ("shell", "allow_pickle", "trust_remote_code"))
            loads = name in LOADS and given.get(LOADS[name][0]) is not LOADS[name][1]
            if name in CALLS or name.endswith(ENDINGS) or loads or any(x is True for x in trusting):
                found.append(name)
    return found


@pytest.mark.slow
def test_nothing_is_unpickled_and_no_text_is_run():
    folders = [ROOT / part for part in ("fedlora_lab", "scripts", "benchmarks", "studies")]
    paths = [path for folder in folders for path in folder.rglob("*.py")]
    found = {path.name: sins(path.read_text(encoding="utf-8")) for path in paths}
    # It stands for `python -c`, by which pytest starts its workers.
    assert found.pop("warm_kernels.py") == ["exec"]
    assert len(paths) > 100 and {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "torch.load(p, weights_only=False)",
        "numpy.load(p)",
        "from torch import load as read; read(p, weights_only=True)",
        "from pandas import read_pickle",
        "eval(text)",
        "subprocess.run(words, shell=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
    ],
)
def test_the_search_finds_what_it_is_for(line):
    assert sins(line)
    right = "torch.load(p, weights_only=True); np.load(p, allow_pickle=False); model.eval()"
    assert sins(right) == []


# names in pages

NAMES = {
    "script": HOSTILE,
    "attribute": "\" onmouseover=alert(1) x='",
    "end of a tag": "</td></table></script><img src=x onerror=alert(1)>",
    "control characters": "a\x00b\x07c\x1b[31md\u202egnp.exe\u2066\u200b",
    "template": "{{ 7 * 7 }}{% for x in y %}${7*7}",
    "long": "x" * 20_000,
    "mathematics": "$\\frac{1}{$ \\input{/etc/passwd} _^",
    "lines": "one\ntwo\r\nthree",
}
any_name = pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)


def harmless(html: str, tags: Any) -> Reader:
    """The page, which has these tags only and no attribute that acts."""
    page = Reader(html)
    assert {tag for tag, _ in page.tags} <= tags
    assert not [key for _, keys in page.tags for key in keys if key.startswith("on")]
    return page


@pytest.mark.slow
def test_a_report_shows_any_name_as_text():
    """In task, methods, versions, commands and cells: no tag, no attribute that acts, and what is
    shown is the name."""
    names = tuple(NAMES.values())
    data: Any = frame(task=HOSTILE, methods=names, seeds=(0,))
    data = data[data["measure"].isin(["accuracy", "seconds"])]
    given = settings(HOSTILE, names, (0,))
    given["versions"] |= {name: name for name in names}
    page = harmless(render(data, given, dict.fromkeys(names, next(iter(ledgers().values())))), TAGS)
    shown = "".join(page.text.split()).replace("\x00", "\ufffd")
    for name in names:
        assert "".join(name.split()).replace("\x00", "\ufffd") in shown


@any_name
def test_tables_and_cards_show_any_name_as_text(name):
    texts: Any = {"question": name, "hints": (name,), "solution": name, "right": name}
    wrong = tuple((answer, name) for answer in (1, 2, 3))
    one = Exercise(name, 1, 1, answers=(0,), wrong=wrong, reader=NumberAnswer(0), **texts)
    for html, tags in (
        (claims_table((name, name, name))._repr_html_(), {"table", "tr", "td", "th"}),
        (one._repr_html_(), {"p", "b", "details", "summary"}),
    ):
        page = harmless(html, tags)
        assert name.replace("\r\n", "\n") in page.text.replace("\r\n", "\n"), tags
