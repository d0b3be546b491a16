"""Build the site: the notebooks as they stand, the pages of docs/, the methods' diagrams, the
reference from docstrings.

    python scripts/book.py                 writes build/book/index.html and what belongs to it
    python scripts/book.py --out FOLDER    elsewhere
    python scripts/book.py --fill          rewrite the tables of docs/methods.md and its evidence

Notebooks and pages have one home each; a temporary folder takes copies of them together with what
is generated: the table of contents from the notebooks that are there, one page of reference for
each room of the library.
"""

import argparse
import gc
import inspect
import math
import os
import pkgutil
import re
import shutil
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import nbformat
import yaml
from page_blocks import describe_schedule, fill_blocks, linked, markdown_table
from site_assets import slim
from site_cells import readable
from site_logbook import HOME, heading_pages, linked_to, logbook_pages, within

import fedlora_lab
from fedlora_course import playground
from fedlora_course.figures import method_diagrams
from fedlora_course.widgets.dial import classic_script, page_script
from fedlora_lab import methods
from fedlora_lab.plots.style import png
from notebooks import ADDRESS, CORE, core_hours, lesson_paths, minutes, question, titled

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
METHODS = DOCS / "methods.md"
METHODS_EVIDENCE = DOCS / "evidence" / "methods.md"
PAGES = {
    "Use the library": (
        "docs/first_steps",
        "docs/own_model",
        "docs/a_comparison",
        "docs/adding_a_method",
        "docs/methods",
        "examples/flower_app/README",
        "api/index",
    ),
    "Judge a claim or an ε": (
        "docs/rates",
        "docs/table",
        "docs/protected",
        "docs/review",
        "examples/ledger/README",
        "examples/reported/README",
        "docs/other_software",
    ),
    "Teach, and read more": (
        "docs/teaching",
        "docs/glossary",
        "docs/references",
        "docs/architecture",
        "docs/decisions/README",
        "studies/logbook",
    ),
}
"""Part of the contents -> its pages, as the front page lists them."""
COPIED = {
    "style.css": "_static",
    "choices.js": "_static",
    "late.js": "_static",
    "fonts/stix-two-math.woff2": "_static/fonts",
    "fonts/OFL.txt": "_static/fonts",
    "docstrings.py": "extensions",
    "glossary.py": "extensions",
    "mathml.py": "extensions",
    "repairs.py": "extensions",
}
"""File of book/ -> its folder in what the site is built from."""
MODULE = """```{{eval-rst}}
.. automodule:: {name}
   :members:
   :ignore-module-all:
```
"""
REFERENCE = """# Reference

Everything below comes from the docstrings.

## What you use every day

`import fedlora_lab as fl`, and then:

{names}

## All modules

{rooms}
"""


def lessons() -> str:
    """The table of the course for the front page: question and time of each lesson."""
    rows = [["", "question", "time"]]
    for path in lesson_paths():
        number = path.name[:2]
        question_link = f"[{question(path)}](notebooks/{path.name})"
        mark = "&nbsp;●" if number in CORE else ""
        rows.append([f"**{number}**{mark}", question_link, f"{minutes(path)}&nbsp;min"])
    core = f"Read the lessons marked ● first, in order: the core, about {core_hours()} hours."
    others = "Each other is one method, one attack or one tool, and begins with what it assumes."
    return f"{core} {others}\n\n{markdown_table(rows)}"


# ---- the page of methods

CARD = """{}
{}
<details><summary>Diagram</summary>

![The diagram of {}](figures/diagram-{}.png)

</details>

"""


def deviation(row: Any) -> str:
    """How far a server is from the mean of products, as scripts/measure_methods.py measured it."""
    if math.isnan(row["deviation"]):
        return "no common product"
    return f"{row['deviation']:.2g}" if row["deviation"] >= 1e-5 else "none"


def table() -> str:
    """The methods at a glance, each leading to its section."""
    frame: Any = methods.table()
    rows = [["method", "in one sentence", "kB up / down"]]
    for slug, row in frame.iterrows():
        sentence = row["note"][0].upper() + row["note"][1:] + "."
        traffic = f"{row['up'] / 1000:.1f} / {row['down'] / 1000:.1f}"
        rows.append([f"[`{slug}`](#{slug})", sentence, traffic])
    return markdown_table(rows)


def measured_table() -> str:
    """What moves in each method, and how far its server is from the mean of products."""
    frame: Any = methods.table()
    rows = [["method", "moves", "deviation", "paper"]]
    for slug, row in frame.iterrows():
        link = f"[`{slug}`](../methods.md#{slug})"
        rows.append([link, describe_schedule(row), deviation(row), linked(row["source"])])
    return markdown_table(rows)


def methods_pages() -> dict[Path, str]:
    """docs/methods.md and its evidence with their generated tables as the package has them."""
    tables = {METHODS: table(), METHODS_EVIDENCE: measured_table()}
    return {
        path: fill_blocks(path.read_text(encoding="utf-8"), {"table": content})
        for path, content in tables.items()
    }


def as_cards(page: str, folder: Path) -> str:
    """The page with the diagram of each method below its text, folded."""
    slugs = {row.name: slug for slug, row in methods.ALL.items()}
    first, *sections = re.split(r"^(?=## )", page, flags=re.M)
    cards = [first]
    for section in sections:
        heading, text = section.split("\n", 1)
        name = heading.removeprefix("## ")
        if name not in slugs:
            cards.append(section)
            continue
        slug = slugs[name]
        picture = png(method_diagrams([methods.get(slug)]))
        (folder / f"diagram-{slug}.png").write_bytes(picture)
        cards.append(CARD.format(heading, text, name, slug))
    return "".join(cards)


# ---- the reference


def modules() -> dict[str, list[str]]:
    """Room -> its modules, for every public module of the package but the exercises, which hold the
    answers.
    """
    rooms: dict[str, list[str]] = {}
    for module in pkgutil.walk_packages(fedlora_lab.__path__, "fedlora_lab."):
        names = module.name.split(".")
        if not any(part.startswith(("_", "lesson_")) for part in names):
            rooms.setdefault(names[1], []).append(module.name)
    return rooms


def summary(thing: Any) -> str:
    """The first sentence of a docstring, on one line."""
    text = " ".join((thing.__doc__ or "").strip().split("\n\n")[0].split()).replace("|", "\\|")
    return text.replace("``", "`")


def name_row(name: str) -> list[str]:
    """A public name that leads to its place in the reference, and its meaning."""
    thing = getattr(fedlora_lab, name)
    if inspect.ismodule(thing):
        place, role = thing.__name__, "mod"
    else:
        place, role = f"{thing.__module__}.{thing.__qualname__}", "obj"
    return [f"{{py:{role}}}`fl.{name} <{place}>`", summary(thing)]


def reference(folder: Path) -> list[str]:
    """Write a page for each module and the page that lists them; gives the names of the pages."""
    folder.mkdir(parents=True)
    pages = []
    listed = [["module", "meaning"]]
    for _, names in sorted(modules().items()):
        for name in names:
            short = name.removeprefix("fedlora_lab.")
            page = short.replace(".", "-")
            text = f"# {short}\n\n{MODULE.format(name=name)}"
            (folder / f"{page}.md").write_text(text, encoding="utf-8")
            listed.append([f"[{short}]({page}.md)", summary(import_module(name))])
            pages.append(page)
    names = [["name", "meaning"], *map(name_row, fedlora_lab.__all__)]
    text = REFERENCE.format(names=markdown_table(names), rooms=markdown_table(listed))
    (folder / "index.md").write_text(text, encoding="utf-8")
    return pages


# ---- the site


def evidence_places() -> dict[str, str]:
    """Link to a section of a lesson's evidence -> the same with the place of its heading.

    On GitHub an ``<a id>`` above the heading is the place; Sphinx knows headings only.
    """
    places = {}
    for path in (DOCS / "evidence").glob("*.md"):
        text = path.read_text(encoding="utf-8")
        for anchor, heading in re.findall(r'<a id="(\w+)"></a>\n+## (.+)', text):
            slug = re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
            places[f"docs/evidence/{path.name}#{anchor})"] = f"docs/evidence/{path.name}#{slug})"
    return places


def with_places(text: str, places: dict[str, str]) -> str:
    """A text whose links to evidence lead to headings."""
    return re.sub(r"docs/evidence/\d\d\.md#\w+\)", lambda link: places[link[0]], text)


def contents(api: list[str], logbook: list[str]) -> dict[str, Any]:
    """The table of contents. Args: api, logbook: pages below those that list them."""
    decisions = sorted(path.stem for path in (DOCS / "decisions").glob("[0-9]*.md"))
    below = {
        "api/index": [f"api/{name}" for name in api],
        HOME: logbook,
        "docs/decisions/README": [f"docs/decisions/{name}" for name in decisions],
    }

    def entry(name: str) -> dict[str, Any]:
        sections = [{"file": section} for section in below.get(name, [])]
        return {"file": name, "sections": sections} if sections else {"file": name}

    course = [
        {"file": f"notebooks/{path.stem}", "title": f"{path.name[:2]} {question(path)}"}
        for path in lesson_paths()
    ]
    parts = [{"caption": "The course", "chapters": course}]
    for caption, names in PAGES.items():
        parts.append({"caption": caption, "chapters": [entry(name) for name in names]})
    evidence = sorted(path.stem for path in (DOCS / "evidence").glob("*.md"))
    chapters = [{"file": f"docs/evidence/{name}"} for name in evidence]
    parts.append({"caption": "How sure?", "chapters": chapters})
    return {"format": "jb-book", "root": "index", "parts": parts}


def site_address() -> str:
    """Owner and name of the repository: as CITATION.cff has it, else of the fork whose workflow on
    GitHub builds the site."""
    return ADDRESS or os.environ.get("GITHUB_REPOSITORY", "")


def with_repository(config: str, address: str) -> str:
    """_config.yml with a button that leads to the repository; without an address, as it is."""
    if not address:
        return config
    settings = yaml.safe_load(config)
    # These options replace those that Jupyter Book makes of its own key `repository`.
    settings["sphinx"]["config"]["html_theme_options"] |= {
        "repository_url": f"https://github.com/{address}",
        "repository_branch": "main",
        "use_repository_button": True,
    }
    return yaml.safe_dump(settings)


def assemble(folder: Path) -> None:
    """Put into an empty folder all that the site is built from."""
    for name in ("docs", "book/story", "examples"):
        shutil.copytree(ROOT / name, folder / name)
    for name in ("notebooks", HOME, "_static/fonts", "extensions"):
        (folder / name).mkdir(parents=True)
    for source, target in COPIED.items():
        shutil.copy(ROOT / "book" / source, folder / target)
    places = evidence_places()
    logbook = logbook_pages((ROOT / f"{HOME}.md").read_text(encoding="utf-8"))
    homes = heading_pages(logbook)
    address = site_address()
    for path in lesson_paths():
        lesson = readable(path)
        lesson.cells[0].source = titled(lesson.cells[0].source, path.name, address)
        for cell in lesson.cells:
            cell.source = linked_to(with_places(cell.source, places), homes)
        nbformat.write(lesson, folder / "notebooks" / path.name)
    front = (ROOT / "book" / "index.md").read_text(encoding="utf-8")
    below = [name for name in logbook if name != HOME]
    config = (ROOT / "book" / "_config.yml").read_text(encoding="utf-8")
    pages = {
        "docs/methods.md": as_cards(methods_pages()[METHODS], folder / "docs" / "figures"),
        "index.md": fill_blocks(front, {"notebooks": lessons()}),
        "_static/dials.js": page_script(),
        "_static/playground.js": classic_script(playground.module()),
        "_config.yml": with_repository(config, address),
        "_toc.yml": yaml.safe_dump(contents(reference(folder / "api"), below), sort_keys=False),
    }
    pages |= {f"{name}.md": within(name, text, homes) for name, text in logbook.items()}
    for name, text in pages.items():
        (folder / name).write_text(text, encoding="utf-8")
    for path in folder.rglob("*.md"):
        path.write_text(linked_to(path.read_text(encoding="utf-8"), homes), encoding="utf-8")


def build(out: Path) -> None:
    """Assemble and build; a warning is an error. The site replaces what stood in ``out``."""
    from jupyter_book.cli.main import main as jupyter_book  # which warns of a library of its own

    with tempfile.TemporaryDirectory() as work:
        source = Path(work) / "source"
        made = Path(work) / "made"
        source.mkdir()
        assemble(source)
        # In this process, which has imported what the reference is made of. Half of the processor
        # time went to walks of the garbage collector; it ends before the machine is full.
        gc.disable()
        options = ["--path-output", str(made), "-W", "--keep-going", "-q"]
        jupyter_book(["build", str(source), *options], standalone_mode=False)
        slim(made / "_build" / "html")
        # Only now: a build that failed leaves the old site.
        shutil.rmtree(out, ignore_errors=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(made / "_build" / "html", out)
    # Beside the first page, which holds it too: to be opened alone, and in full width.
    page = playground.page(lessons="notebooks/*.html")
    (out / "playground.html").write_text(page, encoding="utf-8")


def main() -> None:
    """The command line."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "book")
    parser.add_argument("--fill", action="store_true")
    arguments = parser.parse_args()
    if arguments.fill:
        for path, text in methods_pages().items():
            path.write_text(text, encoding="utf-8")
        return
    build(arguments.out)
    print(f"{arguments.out / 'index.html'}: {len(lesson_paths())} notebooks")


if __name__ == "__main__":
    main()
