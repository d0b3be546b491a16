"""The site: it builds without a warning, holds what it promises, leads only to what is there, and needs no network."""

import html
import json
import os
import re
import runpy
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from filelock import FileLock

pytestmark = pytest.mark.waits("book")
ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
# The only address that the theme writes into a page. It names a script that a button would load; there is no button.
EMBEDDED = {"https://unpkg.com/thebe@0.8.2/lib/index.js"}


class Page(HTMLParser):
    """What a page links to, what it loads, the places in it, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loads: set[str] = set()
        self.ids: set[str] = set()
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given["id"]} if "id" in given else set()
        if tag == "a" and given.get("href"):
            self.links.add(given["href"])
        if tag in ("script", "img", "iframe", "source", "video") and given.get("src"):
            self.loads.add(given["src"])
        if tag == "link" and "stylesheet" in given.get("rel", ""):
            self.loads.add(given["href"])

    @property
    def text(self) -> str:
        return html.unescape(re.sub(r"<[^>]+>", "", self.source))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built once however many processes run these tests."""
    own = tmp_path_factory.getbasetemp()
    shared = (own.parent if os.environ.get("PYTEST_XDIST_WORKER") else own) / "book"
    with FileLock(f"{shared}.lock"):
        if not (shared / "index.html").exists():
            command = [sys.executable, str(ROOT / "scripts" / "book.py"), "--out", str(shared)]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
            assert "WARNING" not in done.stdout + done.stderr
    return shared


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html") if "_static" not in path.parts}


@pytest.mark.slow
def test_every_page_is_there(site: Path) -> None:
    names = [f"notebooks/{path.stem}" for path in NOTEBOOKS]
    names += [f"docs/{path.stem}" for path in (ROOT / "docs").glob("*.md")]
    names += ["index", "search", "api/index", "api/privacy", "api/methods", "api/plots", "docs/decisions/README"]
    names += [f"docs/decisions/{path.stem}" for path in (ROOT / "docs" / "decisions").glob("[0-9]*.md")]
    assert [name for name in names if not (site / f"{name}.html").exists()] == []
    front = Page(site / "index.html")
    assert {f"notebooks/{path.stem}.html" for path in NOTEBOOKS} <= front.links


@pytest.mark.slow
def test_outputs_are_those_in_git(site: Path) -> None:
    for path in NOTEBOOKS:
        cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
        outputs = [output for cell in cells for output in cell["outputs"]]
        page = Page(site / "notebooks" / f"{path.stem}.html")
        pictures = [output for output in outputs if "image/png" in output.get("data", {})]
        assert len([name for name in page.loads if "_images" in name]) == len({str(p["data"]) for p in pictures})
        for output in outputs:
            if output.get("name") == "stdout":
                assert "".join(output["text"]).strip() in page.text, path.name


@pytest.mark.slow
def test_every_notebook_can_be_found(site: Path) -> None:
    text = (site / "searchindex.js").read_text(encoding="utf-8")
    index: Any = json.loads(text.removeprefix("Search.setIndex(").removesuffix(")"))
    for path in NOTEBOOKS:
        number = index["docnames"].index(f"notebooks/{path.stem}")
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        words = set(re.findall(r"\b[a-z]{7,}\b", "".join(cells[0]["source"]).lower()))
        found = [
            word
            for term, where in {**index["titleterms"], **index["terms"]}.items()
            for word in words
            if word.startswith(term) and number in (where if isinstance(where, list) else [where])
        ]
        assert found, path.name


@pytest.mark.slow
def test_links_lead_somewhere(site: Path, pages: dict[Path, Page]) -> None:
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme in ("http", "https", "mailto"):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            place = unquote(parts.fragment)
            there = target.exists() and (not place or target not in pages or place in pages[target].ids)
            broken += [] if there else [f"{path.relative_to(site)}: {link}"]
    assert broken == []


@pytest.mark.slow
def test_nothing_is_loaded_from_a_network(site: Path, pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        for name in page.loads:
            assert not urlsplit(name).scheme, name
            assert (path.parent / unquote(urlsplit(name).path)).exists(), (path, name)
        scripts = "".join(re.findall(r"<script[^>]*>(.*?)</script>", page.source, re.S))
        assert set(re.findall(r"https?://[^\"' )]+", scripts)) <= EMBEDDED
    styles = "".join(path.read_text(encoding="utf-8") for path in (site / "_static").rglob("*.css"))
    assert re.findall(r"url\([\"']?https?:|@import [\"']?https?:", styles) == []


@pytest.mark.slow
def test_methods_page_shows_every_row(site: Path) -> None:
    import fedlora_lab as fl

    page = Page(site / "docs" / "methods.html")
    for slug, method in fl.methods.ALL.items():
        assert method.note in page.text
        assert slug in page.ids, "the table leads to a section of each method"
        assert any(name.endswith(f"score-{slug}.png") for name in page.loads)


@pytest.mark.slow
def test_reference_comes_from_the_docstrings(site: Path) -> None:
    import fedlora_lab as fl

    index = Page(site / "api" / "index.html")
    for name in fl.__all__:
        assert f"fl.{name}" in index.text
    assert "privacy.html#fedlora_lab.privacy.Privacy" in index.links
    page = Page(site / "api" / "privacy.html")
    assert "Differential privacy by clipping and Gaussian noise." in page.text
    assert {"fedlora_lab.privacy.Privacy.calibrate", "fedlora_lab.privacy.Privacy.ledger"} <= page.ids
    assert "Alias for field" not in "".join(path.read_text(encoding="utf-8") for path in (site / "api").iterdir())


def test_generated_tables_are_the_package_s(tmp_path: Path) -> None:
    script = (
        "import sys; sys.path.insert(0, 'scripts'); import book;"
        "assert book.methods_page() == book.METHODS.read_text(encoding='utf-8'), 'docs/methods.md'"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stderr[-500:]}\nrun: python scripts/book.py --fill"


def test_sharp_edges_name_tests_that_exist() -> None:
    page = (ROOT / "docs" / "sharp_edges.md").read_text(encoding="utf-8")
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    assert [name for name in re.findall(r"`(test_\w+)`", page) if f"def {name}(" not in tests] == []
    assert sorted(map(int, re.findall(r"^### (\d+)\.", page, re.M))) == list(range(1, 30))


def test_docstrings_become_text_and_never_markup() -> None:
    converted = runpy.run_path(str(ROOT / "book" / "docstrings.py"))["converted"]
    docstring = """\
    One line with a*b, |x| and x_.

    Args:
        one: first, ``a_`` long,
            and goes on.
        two, three: others.

    Raises: ``ValueError`` at the call.
    Source: arXiv:2403.12313.
    """
    lines = [line.removeprefix("    ") for line in docstring.splitlines()]
    assert [line for line in converted(lines) if line] == [
        "One line with a\\*b, \\|x\\| and x\\_.",
        "**Arguments.**",
        "- ``one``: first, ``a_`` long, and goes on.",
        "- ``two, three``: others.",
        "**Raises.** ``ValueError`` at the call.",
        "**Source.** arXiv:2403.12313.",
    ]
