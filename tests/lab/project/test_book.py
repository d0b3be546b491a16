"""The site builds without a warning, holds what it promises, and needs no network."""

import json
import re
import runpy
from html.parser import HTMLParser
from pathlib import PurePath
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from docutils import nodes
from places import ROOT
from sites import built_site

import fedlora_lab as fl
from fedlora_course.exercises import all_exercises
from fedlora_course.predictions import all_predictions
from fedlora_lab import methods

DOCS = ROOT / "docs"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
LOADING = ("script", "img", "iframe", "source", "video")


class Page(HTMLParser):
    """What a page links to, what it loads, the places in it, and its text."""

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags = []
        self.pieces = []
        self.feed(self.source)
        self.text = "".join(self.pieces)
        self.links = {keys["href"] for tag, keys in self.tags if tag == "a" and keys.get("href")}
        self.loads = {keys["src"] for tag, keys in self.tags if tag in LOADING and keys.get("src")}
        self.loads |= {keys["data-src"] for _, keys in self.tags if "data-src" in keys}
        self.loads |= {keys["href"] for _, keys in self.tags if keys.get("rel") == "stylesheet"}
        self.ids = {keys["id"] for _, keys in self.tags if "id" in keys}
        links = [keys["href"] for _, keys in self.tags if "glossary-term" in keys.get("class", "")]
        self.terms = [link.partition("#")[2] for link in links]

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.pieces.append(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return built_site(tmp_path_factory)


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path) for path in site.rglob("*.html") if "_static" not in path.parts}


def cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def test_every_page_is_there_and_shows_its_source(site, pages):
    """The front page has question and time of every lesson, the reference has the docstrings, and
    formulas are MathML: where they are not parsed the page shows their source, in dollars."""
    names = [path.relative_to(ROOT).with_suffix("") for path in (*NOTEBOOKS, *DOCS.rglob("*.md"))]
    names += ["index", "search", "api/index", "api/privacy-plan", "api/plots-line_plot"]
    names += ["studies/logbook", "studies/logbook/01a"]
    assert {site / f"{name}.html" for name in names} <= set(pages)
    front = pages[site / "index.html"]
    for path in NOTEBOOKS:
        first = "".join(cells(path)[0]["source"])
        (minutes,) = re.findall(r"\*\*Time:\*\* \w+ (\d+) minutes", first)
        assert f"notebooks/{path.stem}.html" in front.links
        assert first.splitlines()[0].removeprefix("# ") in front.text
        assert f"{minutes}\xa0min" in front.text
    reference = pages[site / "api" / "privacy-plan.html"]
    assert "fedlora_lab.privacy.plan.Privacy.calibrate" in reference.ids
    assert (fl.Privacy.__doc__ or "").splitlines()[0] in reference.text
    source = (DOCS / "rates.md").read_text(encoding="utf-8")
    page = pages[site / "docs" / "rates.html"]
    assert page.source.count("<math ") == source.count("$$") / 2 > 0
    assert "$$" not in page.text
    assert not any("<mo>‖" in page.source for page in pages.values()), "a bar of ‖x‖² hangs lower"


def test_a_standard_deviation_is_not_linked_as_a_deviation():
    glossary = runpy.run_path(str(ROOT / "book" / "glossary.py"))
    named = glossary["terms"]((DOCS / "glossary.md").read_text(encoding="utf-8"))
    prose = "the deviation, its standard deviation and standard\ndeviations"
    assert glossary["pattern"](named).findall(prose) == ["deviation"]


def test_every_paper_that_is_named_stands_in_the_references():
    listed = re.findall(r"\[(\d{4}\.\d{4,5})\]", (DOCS / "references.md").read_text("utf-8"))
    named = set()
    for path in (*DOCS.rglob("*.md"), *(ROOT / "fedlora_lab").rglob("*.py"), *NOTEBOOKS):
        named |= {
            *re.findall(r"(?:arXiv:|arxiv\.org/abs/)(\d{4}\.\d{4,5})", path.read_text("utf-8"))
        }
    assert len(listed) > 80 and named <= {*listed}


# Pages


def test_notebooks_show_their_outputs(site, pages):
    """Every picture with words in its place, every printed line, and every dial with its script."""
    for path in NOTEBOOKS:
        page = pages[site / "notebooks" / f"{path.stem}.html"]
        outputs = [output for cell in cells(path) for output in cell.get("outputs", [])]
        data = [output["data"] for output in outputs if "data" in output]
        pictures = {str(one) for one in data if "image/png" in one}
        shown = [name for name in page.loads if "_images" in name and "3-compare" not in name]
        folded = sum("data:image/png" in str(one) for one in data)
        assert len(shown) == len(pictures) + folded, path.name
        for output in outputs:
            if output.get("name") == "stdout":
                assert "".join(output["text"]).strip() in page.text, path.name
        dials = path.read_text(encoding="utf-8").count("data-fedlora-dial")
        assert page.source.count("data-fedlora-dial") == dials, path.name
        assert not re.search('alt="(|no title|[^"]*[.]png)"', page.source), path.name


AT_WORK = ("Show code cell", "before you run the next cell", "Not yet", "# Checks", "check(&quot;")
"""What is of use only where cells run."""


def test_lessons_ask_and_answer_without_a_kernel(site, pages):
    """Every prediction has its choices and a place that repeats one, every exercise its solution;
    what a bench would show is in the page, and nothing speaks to who runs cells."""
    for path in NOTEBOOKS:
        page = pages[site / "notebooks" / f"{path.stem}.html"]
        assert [words for words in AT_WORK if words in page.source] == [], path.name
        source = path.read_text(encoding="utf-8")
        named = [keys for tag, keys in page.tags if tag == "input" and keys.get("type") == "radio"]
        guesses = {keys["data-guess"] for _, keys in page.tags if "data-guess" in keys}
        expected = {key for key in all_predictions() if key.startswith(path.name[:2])}
        assert {keys["name"] for keys in named} == guesses == expected, path.name
        exercises = [key for key in all_exercises() if key.startswith(path.name[:2])]
        assert page.source.count("<summary>Solution</summary>") == len(exercises), path.name
        if "widgets.live(" in source:
            assert "playground.html#methods=" in page.source or "3-compare.png" in page.source


WIDGETS = {
    "playground.js": "data-fedlora-playground",
    "dials.js": "data-fedlora-dial",
    "choices.js": 'type="radio"',
}
"""Script -> what stands in the pages that need it."""


def test_a_page_loads_only_what_it_uses(site, pages):
    """Scripts of widgets where a widget is."""
    of_the_theme = {path: page for path, page in pages.items() if path.name != "playground.html"}
    for path, page in of_the_theme.items():
        names = {PurePath(urlsplit(name).path).name for name in page.loads}
        for script, mark in WIDGETS.items():
            assert (script in names) == (mark in page.source), (path, script)


def test_links_lead_somewhere(site, pages):
    """Those to the glossary too, once a lesson and a term."""
    for path, page in pages.items():
        assert bool(page.terms) == (path.parent.name == "notebooks")
        assert len(page.terms) == len({*page.terms})
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme not in ("http", "https", "mailto"):
                target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
                place = unquote(parts.fragment)
                assert target.exists(), (path, link)
                if place and target in pages and target.name != "playground.html":  # a setting
                    assert place in pages[target].ids, (path, link)


def test_nothing_is_loaded_from_a_network(site, pages):
    for path, page in pages.items():
        for name in (name for name in page.loads if not name.startswith("data:")):
            assert (path.parent / unquote(urlsplit(name).path)).exists(), (path, name)
            assert not urlsplit(name).scheme
        scripts = "".join(re.findall(r"<script[^>]*>(.*?)</script>", page.source, re.S))
        assert not re.search(r"https?://", scripts), path
    styles = "".join(path.read_text(encoding="utf-8") for path in (site / "_static").rglob("*.css"))
    assert re.findall(r"url\([\"']?https?:|@import [\"']?https?:", styles) == []


# What is generated


@pytest.fixture
def book():
    return runpy.run_path(str(ROOT / "scripts" / "book.py"))


def test_the_site_leads_to_the_repository_once_it_has_an_address(book, monkeypatch):
    config = (ROOT / "book" / "_config.yml").read_text("utf-8")
    assert book["with_repository"](config, "") == config
    monkeypatch.setenv("GITHUB_REPOSITORY", "me/mine")
    assert book["site_address"]() == (book["ADDRESS"] or "me/mine")
    shown = yaml.safe_load(book["with_repository"](config, "me/mine"))
    options = shown["sphinx"]["config"]["html_theme_options"]
    assert options["repository_url"] == "https://github.com/me/mine"
    assert options["use_repository_button"]


def test_an_example_of_a_docstring_keeps_its_lines():
    """Fault: all of it was one line of prose."""
    converted = runpy.run_path(str(ROOT / "book" / "docstrings.py"))["converted"]
    assert converted(["A sum.", "", ">>> 1 + 1", "2"]) == ["A sum.", "", ">>> 1 + 1", "2", ""]


def test_the_logbook_comes_in_pages_that_lose_nothing():
    """How long they are: test_every_page_fits_a_phone; their links: test_links_lead_somewhere."""
    logbook = runpy.run_path(str(ROOT / "scripts" / "site_logbook.py"))
    text = (ROOT / "studies" / "logbook.md").read_text("utf-8")
    pages = logbook["logbook_pages"](text)
    added = re.compile(r"^#.*\bcontinued\b.*$", re.M)
    made = " ".join(added.sub("", page) for page in pages.values()).split()
    assert [word for word in made if word.strip("#")] == [x for x in text.split() if x.strip("#")]


def test_formulas_of_exercises_need_no_script_either():
    """Of every question, hint and solution; a dollar in code stays."""
    with_formulas = runpy.run_path(str(ROOT / "scripts" / "site_cells.py"))["with_formulas"]
    page = with_formulas("<p>$a &lt; b_1$ in <code>a$b$c</code>: $$x^2$$</p>")
    assert page.count("<math") == 2 and "a$b$c" in page and page.count("$") == 2
    for one in (*all_exercises().values(), *all_predictions().values()):
        text = re.sub(r"(?s)<code>.*?</code>", "", with_formulas(one._repr_html_()))
        assert "$" not in text, one.key


@pytest.mark.slow
@pytest.mark.parametrize("command", ["frac", "tfrac"])
def test_a_fraction_of_two_digits_is_that_of_two_groups(command):
    """Fault: 1/3 + d was set as 13 over +."""
    mathml = runpy.run_path(str(ROOT / "book" / "mathml.py"))["mathml"]
    short, long = (nodes.math("", rf"\{command}{parts} + d") for parts in ("13", "{1}{3}"))
    assert mathml(short) == mathml(long)


def test_generated_tables_are_the_package_s(book):
    filled = book["methods_pages"]()
    for path, text in filled.items():
        assert text == path.read_text(encoding="utf-8"), "run: python scripts/book.py --fill"
    page = filled[book["METHODS"]]
    # The sections are in the order of the table, and so in that of the rows.
    names = [row.name for row in methods.ALL.values()]
    sections = dict(re.findall(r"^## (.+)\n\n(.*)$", page, re.M))
    assert [x for x in sections if x in names] == names
    for row in methods.ALL.values():
        paper = book["linked"](row.source)
        assert "arXiv" not in row.source or sections[row.name] == paper, row.name
