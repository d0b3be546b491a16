"""The site builds without a warning, holds what it promises, and needs no network."""

import html
import json
import re
import runpy
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from docutils import nodes
from docutils.core import publish_doctree
from myst_parser.parsers.docutils_ import Parser
from sites import built_site

import fedlora_lab as fl
from fedlora_lab.course.exercises import all_exercises
from fedlora_lab.course.predictions import all_predictions

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
# The only address that the theme writes into a page. It names a script that a button would load;
# there is no button.
EMBEDDED = {"https://unpkg.com/thebe@0.8.2/lib/index.js"}


class Page(HTMLParser):
    """What a page links to, what it loads, the places in it, and its text."""

    def __init__(self, path):
        super().__init__()
        self.links, self.loads, self.ids = set(), set(), set()
        self.terms, self.turns, self.pictures = [], {}, {}
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.text = html.unescape(re.sub(r"<[^>]+>", "", self.source))

    def handle_starttag(self, tag, attrs):
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given["id"]} if "id" in given else set()
        if tag == "a" and given.get("href"):
            self.links.add(given["href"])
            self.terms += [given["href"]] if "glossary-term" in given.get("class", "") else []
            for way in ("left-prev", "right-next"):
                self.turns |= {way: given["href"]} if given.get("class") == way else {}
        if tag == "img":
            self.pictures[given["src"]] = given.get("alt", "")
        if tag in ("script", "img", "iframe", "source", "video") and given.get("src"):
            self.loads.add(given["src"])
        if tag == "link" and "stylesheet" in given.get("rel", ""):
            self.loads.add(given["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return built_site(tmp_path_factory)


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path) for path in site.rglob("*.html") if "_static" not in path.parts}


@pytest.mark.slow
def test_every_page_is_there(site, pages):
    names = [f"notebooks/{path.stem}" for path in NOTEBOOKS]
    names += [f"docs/{path.stem}" for path in (ROOT / "docs").glob("*.md")]
    names += [f"docs/decisions/{path.stem}" for path in (ROOT / "docs/decisions").glob("*.md")]
    names += ["index", "search", "api/index", "api/privacy", "api/methods", "api/plots"]
    assert {site / f"{name}.html" for name in names} <= set(pages)
    front = pages[site / "index.html"]
    assert {f"notebooks/{path.stem}.html" for path in NOTEBOOKS} <= front.links


@pytest.mark.slow
def test_the_front_page_tells_the_course(site, pages):
    """README's figure, three pictures of the workbench, and of each lesson its question, time and
    what it assumes; pictures have words and are small."""
    front = pages[site / "index.html"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    main = re.search(r"!\[(.+)\]\(docs/figures/(.+)\)", readme)
    story = [*(ROOT / "book" / "story").glob("*.png")]
    assert main is not None and front.pictures[f"_images/{main[2]}"] == main[1]
    assert {f"_images/{path.name}" for path in story} < set(front.pictures) and len(story) == 3
    assert all(front.pictures.values())
    assert sum(path.stat().st_size for path in story) < 250_000
    for path in NOTEBOOKS:
        first = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
        assert first.splitlines()[0].removeprefix("# ") in front.text
        minutes = re.search(r"\*\*Time:\*\* \w+ (.+?minutes?)\b", first)
        assert minutes is not None and minutes[1] in front.text, path.name


@pytest.mark.slow
def test_lessons_lead_to_the_one_before_and_the_next(site, pages):
    names = [f"{path.stem}.html" for path in NOTEBOOKS]
    for before, here, after in zip(names, names[1:], names[2:], strict=False):
        turns = pages[site / "notebooks" / here].turns
        assert turns == {"left-prev": before, "right-next": after}


@pytest.mark.slow
def test_lessons_link_the_first_use_of_every_term(site, pages):
    """Once a lesson and a term; the lesson that introduces a term says it."""
    known, linked = terms(), {}
    for path in NOTEBOOKS:
        links = pages[site / "notebooks" / f"{path.stem}.html"].terms
        assert len(links) == len(set(links)), path.name
        linked[path.name[:2]] = {link.removeprefix("../docs/glossary.html#") for link in links}
    assert {one.place for one in known} <= pages[site / "docs" / "glossary.html"].ids
    assert [one.names for one in known if one.place not in linked[one.lesson]] == []


def terms():
    module = runpy.run_path(str(ROOT / "book" / "glossary.py"))
    return module["terms"]((ROOT / "docs" / "glossary.md").read_text(encoding="utf-8"))


def test_the_glossary_is_short_whole_and_in_order():
    """One or two sentences a term, in the alphabet's order, with letters of the notation."""
    known = terms()
    rows = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8").count("\n| **")
    notation = (ROOT / "docs" / "notation.md").read_text(encoding="utf-8")
    letters = {x for row in re.findall(r"^\| (.+?) \|", notation, re.M) for x in row.split(", ")}
    names = [name.lower() for one in known for name in one.names]
    assert 40 <= len(known) == rows <= 60 and len(names) == len(set(names))
    chief = [one.names[0].lower() for one in known]
    assert chief == sorted(chief)
    for one in known:
        assert one.meaning.endswith(".") and 1 <= len(re.findall(r"\.( |$)", one.meaning)) <= 2, one
        assert one.letter == "" or {*one.letter.split(", ")} <= letters, one


def test_a_term_is_linked_once_and_in_prose_only():
    """Not in headings, code, formulas and links; the longer of two names wins."""
    module = runpy.run_path(str(ROOT / "book" / "glossary.py"))
    known = [module["Term"](names, "", "It is.", "01") for names in TERMS]
    tree: Any = publish_doctree(PROSE, parser=Parser(), settings_overrides=MATH)
    module["link_terms"](tree, known, "../docs/glossary.html")
    links = [node for node in tree.findall(nodes.reference) if "refuri" in node]
    found = [(node.astext(), node["refuri"].rpartition("#")[2]) for node in links]
    places = ["term-noise-noise", "term-clip-norm", "term-rank"]
    assert found[1:] == [*zip(("Noise × noise", "clips", "ranks"), places, strict=True)]
    assert links[1]["reftitle"] == "It is." and "rank and clip norm" in tree.astext()


TERMS = (("noise × noise",), ("noise",), ("clip norm", "clip"), ("rank",))
MATH = {"myst_enable_extensions": ["dollarmath"], "report_level": 5}
PROSE = """\
# A clip of noise

`rank` and $rank$ and [rank and clip norm](https://example.org). Noise × noise grows; it clips
the clip norm. All ranks are ranks, none is frank or rank-one.
"""


def test_every_paper_that_is_named_stands_in_the_references():
    """With how much of it was read."""
    page = (ROOT / "docs" / "references.md").read_text(encoding="utf-8")
    ways = {"text", "abstract", "code", "notes", "code of libraries", "standard", "data"}
    ways |= {"not recorded", "code of a later release by one of its authors"}
    rows = re.findall(r"^\| (?!paper|read|-)(.+) \| .+ \| (.+) \|$", page, re.M)
    assert len(rows) > 80
    assert {way for _, read in rows for way in re.split(r"[,;] ", read)} == ways
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "docs").rglob("*.md")]
    texts += [path.read_text(encoding="utf-8") for path in (ROOT / "fedlora_lab").rglob("*.py")]
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        texts += ["".join(cell["source"]) for cell in cells]
    named = re.findall(r"(?:arXiv:|arxiv\.org/abs/)(\d{4}\.\d{4,5})", "\n".join(texts))
    assert {*named} - {*re.findall(r"\[(\d{4}\.\d{4,5})\]", page)} == set()


@pytest.mark.slow
def test_notebooks_show_their_outputs_and_can_be_found(site, pages):
    text = (site / "searchindex.js").read_text(encoding="utf-8")
    index: Any = json.loads(text.removeprefix("Search.setIndex(").removesuffix(")"))
    terms = {**index["titleterms"], **index["terms"]}
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        page = pages[site / "notebooks" / f"{path.stem}.html"]
        data = [output.get("data", {}) for output in outputs]
        pictures = {str(each) for each in data if "image/png" in each}
        assert sum("_images" in name for name in page.loads) == len(pictures)
        for output in outputs:
            if output.get("name") == "stdout":
                assert "".join(output["text"]).strip() in page.text, path.name
        number = index["docnames"].index(f"notebooks/{path.stem}")
        words = set(re.findall(r"\b[a-z]{7,}\b", "".join(cells[0]["source"]).lower()))
        here = {t for t, at in terms.items() if number in (at if isinstance(at, list) else [at])}
        assert any(word.startswith(term) for word in words for term in here), path.name


@pytest.mark.slow
def test_dials_have_their_place_and_script(site, pages):
    """What turns them is tested in tests/browser/test_dial_pages.py, on a page of the same form."""
    found = 0
    for path in NOTEBOOKS:
        kept = path.read_text(encoding="utf-8").count("data-fedlora-dial")
        page, found = pages[site / "notebooks" / f"{path.stem}.html"], found + kept
        assert page.source.count("data-fedlora-dial") == kept, path.name
        assert any(name.startswith("../_static/dials.js") for name in page.loads)
    assert found >= 4


@pytest.mark.slow
def test_links_lead_somewhere(site, pages):
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme in ("http", "https", "mailto"):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            place = unquote(parts.fragment)
            there = not place or target not in pages or place in pages[target].ids
            if not (target.exists() and there):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert broken == []


@pytest.mark.slow
def test_nothing_is_loaded_from_a_network(site, pages):
    for path, page in pages.items():
        for name in page.loads:
            assert not urlsplit(name).scheme, name
            assert (path.parent / unquote(urlsplit(name).path)).exists(), (path, name)
        scripts = "".join(re.findall(r"<script[^>]*>(.*?)</script>", page.source, re.S))
        assert set(re.findall(r"https?://[^\"' )]+", scripts)) <= EMBEDDED
    styles = "".join(path.read_text(encoding="utf-8") for path in (site / "_static").rglob("*.css"))
    assert re.findall(r"url\([\"']?https?:|@import [\"']?https?:", styles) == []


@pytest.mark.slow
def test_formulas_are_shown_without_a_script(site, pages):
    """As MathML: where formulas are not parsed the page shows their source, in dollars."""
    source = (ROOT / "docs" / "amplification.md").read_text(encoding="utf-8")
    page = pages[site / "docs" / "amplification.html"]
    assert page.source.count("<math ") == source.count("$$") / 2 > 0
    assert "$$" not in page.text
    assert re.search(r"\\(?:frac|tau|lVert|mathbb)", page.text) is None, "source behind a formula"


@pytest.mark.slow
def test_methods_page_shows_every_row(site, pages):
    page = pages[site / "docs" / "methods.html"]
    for slug, method in fl.methods.ALL.items():
        assert method.note in page.text and slug in page.ids
        assert any(name.endswith(f"diagram-{slug}.png") for name in page.loads)


@pytest.mark.slow
def test_reference_comes_from_the_docstrings(site, pages):
    index, page = (pages[site / "api" / f"{name}.html"] for name in ("index", "privacy"))
    assert [name for name in fl.__all__ if f"fl.{name}" not in index.text] == []
    assert "privacy.html#fedlora_lab.privacy.plan.Privacy" in index.links
    privacy = "fedlora_lab.privacy.plan.Privacy"
    assert {f"{privacy}.calibrate", f"{privacy}.ledger"} <= page.ids
    assert (fl.Privacy.__doc__ or "").splitlines()[0] in page.text
    texts = [path.read_text(encoding="utf-8") for path in (site / "api").iterdir()]
    assert "Alias for field" not in "".join(texts)


def test_formulas_of_exercises_need_no_script_either(monkeypatch):
    """Of every question, hint and solution; a dollar in code stays."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    book = runpy.run_path(str(ROOT / "scripts" / "book.py"))
    page = book["with_formulas"]("<p>$a &lt; b_1$ in <code>a$b$c</code>: $$x^2$$</p>")
    assert page.count("<math") == 2 and "a$b$c" in page and page.count("$") == 2
    shown = [*all_exercises().values(), *all_predictions().values()]
    for one in shown:
        text = re.sub(r"(?s)<code>.*?</code>", "", book["with_formulas"](one._repr_html_()))
        assert "$" not in text, one.key


@pytest.mark.slow
def test_generated_tables_are_the_package_s(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    book = runpy.run_path(str(ROOT / "scripts" / "book.py"))
    page = book["METHODS"].read_text(encoding="utf-8")
    assert book["methods_page"]() == page, "run: python scripts/book.py --fill"


def test_docstrings_become_text_and_never_markup():
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
