"""The pages that promise to run, run; the docstrings' examples print what they say."""

import ast
import doctest
import inspect
import json
import pkgutil
import re
import tomllib
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from docutils.core import publish_doctree
from myst_parser.parsers.docutils_ import Parser

import fedlora_lab as fl
from fedlora_lab._utils.markdown import hidden_lines, require_visible
from studies.claims import CLAIMS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FRONT = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "book/index.md")
MARKDOWN = [*DOCS.rglob("*.md"), *(ROOT / page for page in FRONT)]
MODULES = [found.name for found in pkgutil.walk_packages(fl.__path__, "fedlora_lab.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    """All that the source shows are run: doctest passes by what it cannot find."""
    module = import_module(name)
    source = Path(str(module.__file__)).read_text("utf-8")
    shown = len(re.findall(r"^ *>>> ", source, re.M))
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS) == (0, shown)


@pytest.mark.parametrize("name", fl.__all__)
def test_every_public_name_shows_an_example(name):
    """`test_examples_run` runs it."""
    assert doctest.DocTestFinder(recurse=False).find(getattr(fl, name))[0].examples


def test_no_line_of_a_page_is_syntax_by_accident():
    """MyST drops a line that begins with a percent sign."""
    for path in MARKDOWN:
        assert hidden_lines(path.read_text(encoding="utf-8")) == [], path
    for line in ("% interval.", "+++", "(place)=", ":::{note}", "  % indented"):
        assert hidden_lines(f"prose\n{line}\nprose\n\n```\n{line}\n```\n") == [line]
        with pytest.raises(ValueError, match=r"^page="):
            require_visible(line)


def test_guarantees_name_tests_that_exist():
    """In docstrings and on every page."""
    files = [*(ROOT / "tests").rglob("*.py")]
    text = "".join(path.read_text("utf-8") for path in files)
    known = {*re.findall(r"^(?:def )?(test_\w+)(?= =|\()", text, re.M), *(p.stem for p in files)}
    for path in (*(ROOT / "fedlora_lab").rglob("*.py"), *MARKDOWN):
        assert {*re.findall(r"\btest_\w+\b", path.read_text("utf-8"))} <= known, path


def test_a_run_offers_its_options_by_name():
    """To help and completion; behind ``**options`` nobody would find them."""
    offered = inspect.signature(fl.run).parameters
    assert offered["seed"].default == 0
    assert {"lora", "checkpoint", "chunk_examples"} <= offered.keys()


def test_public_functions_of_three_parameters_describe_each():
    """Functions and methods without a leading underscore have ``Args:`` in their docstring; not
    answers to exercises, commands, whose options have help, and what a base class describes."""
    missing, home = [], ROOT / "fedlora_lab"
    for path in {*home.rglob("*.py")} - {*home.rglob("exercises.py")}:
        tree = ast.parse(path.read_text("utf-8"))
        parts = [tree, *(x for x in tree.body if isinstance(x, ast.ClassDef) and x.name[0] != "_")]
        for owner, node in ((part, node) for part in parts for node in part.body):
            if not isinstance(node, ast.FunctionDef) or node.name[0] == "_":
                continue
            text = ast.get_docstring(node) or ""
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            inherited = isinstance(owner, ast.ClassDef) and owner.bases and not text
            command = any("command" in ast.unparse(x) for x in node.decorator_list)
            few = len({x.arg for x in given} - {"self", "cls"}) < 3
            if not (few or inherited or command or "Args:" in text):
                missing.append(f"{path.name}: {node.name}")
    assert missing == []


PLACES = r"`((?:fedlora_lab|tests|scripts|docs|notebooks|benchmarks|results|studies)/[\w./-]*)`"


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: path.stem)
def test_links_paths_and_names_of_a_page_exist(path):
    """CHANGELOG.md speaks of what is gone as well."""
    text, home = path.read_text("utf-8"), ROOT if path.stem == "index" else path.parent
    links = re.findall(r"\]\((?!https?:|api/)([^)#\s]+)", text)
    assert [link for link in links if not (home / link).exists()] == []
    if path.name == "CHANGELOG.md":
        return
    assert [place for place in re.findall(PLACES, text) if not (ROOT / place).exists()] == []
    for name in re.findall(r"`(?:fl|fedlora_lab)\.([\w.]*\w)", text):
        pkgutil.resolve_name(f"fedlora_lab.{name}")


def test_badges_lead_to_the_repository():
    """pyproject.toml has the address; every notebook links to itself there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    name = project["urls"]["Repository"].removeprefix("https://github.com/")
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        first = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
        for host in (f"mybinder.org/v2/gh/{name}/HEAD", f"colab.research.google.com/github/{name}"):
            assert f"(https://{host}" in first and f"notebooks/{path.name})" in first


def test_the_claims_page_is_shown_whole():
    """Parsed as the site parses it: every word of the page is in the text that comes out."""
    source = (DOCS / "claims.md").read_text(encoding="utf-8")
    options = {"myst_enable_extensions": ["colon_fence", "deflist", "tasklist"], "report_level": 5}
    tree = publish_doctree(source, parser=Parser(), settings_overrides=options)
    text = " ".join(tree.astext().split())
    opening = source.split("## ")[0].split("\n", 1)[1].replace("*", "").replace("`", "")
    words = [claim.text for claim in CLAIMS] + [claim.setting for claim in CLAIMS]
    words += [one.removeprefix("- ").strip() for one in opening.splitlines()]
    assert [one for one in words if one not in text] == []


def run_page(page: str, instead: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Runs the Python blocks of a page in order; gives the names that they leave.

    ``instead``: words of the page, and what is run in their place.
    """
    names: dict[str, Any] = {}
    text = (DOCS / page).read_text("utf-8")
    for old, new in (instead or {}).items():
        assert old in text
        text = text.replace(old, new)
    for number, code in enumerate(re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)):
        exec(compile(code, f"{page}, block {number}", "exec"), names)
    return names


@pytest.mark.slow
def test_adding_a_method_runs():
    """One seed in place of two. Its rows pass the contract: test_adding_a_method_is_adding_its_row,
    and test_contract.py has one that stays near what its clients received."""
    adding = run_page("adding_a_method.md", {"seeds=range(2)": "seeds=range(1)"})
    last, row = adding["last"], adding["last"].loc
    assert set(last.index) == {"fedlora", "rolora", "two-to-one", "fedlora-proximal"}
    assert last["epsilon"].nunique() == 1
    sent = [row[slug, "bytes_up"] for slug in ("two-to-one", "rolora", "fedlora")]
    assert sent[0] == sent[1] < sent[2]
    assert row["two-to-one", "deviation"] < 1e-5 < row["fedlora-proximal", "deviation"]
    assert adding["Proximal"].penalty is adding["proximal"]
