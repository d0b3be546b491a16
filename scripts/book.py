"""Build the site: the notebooks as they stand, the pages of docs/, the methods' diagrams, the
reference from docstrings.

    python scripts/book.py                 writes build/book/index.html and what belongs to it
    python scripts/book.py --out FOLDER    elsewhere
    python scripts/book.py --fill          rewrite the generated parts of docs/methods.md

Notebooks and pages have one home each; a temporary folder takes copies of them together with what
is generated: the table of contents from the notebooks that are there, one page of reference for
    each room of the library.
"""

import argparse
import html
import pkgutil
import re
import shutil
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import nbformat
import yaml
from readme import describe_schedule, filled, linked, own_rules

from fedlora_lab._utils.markdown import markdown_table, require_visible
from fedlora_lab.course.widgets.dial import page_script

ROOT = Path(__file__).resolve().parent.parent
METHODS = ROOT / "docs" / "methods.md"
PAGES = (
    "first_hour",
    "architecture",
    "methods",
    "results",
    "claims",
    "amplification",
    "sharp_edges",
    "review",
    "notation",
    "glossary",
    "own_model",
    "adding_a_method",
    "teaching",
    "security",
    "scale",
    "convergence",
    "references",
    "open_elsewhere",
)


def notebooks() -> list[Path]:
    """The notebooks of the course, in order."""
    return sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def question(path: Path) -> str:
    """The question that a notebook asks in its first line."""
    notebook: Any = nbformat.read(path, as_version=4)
    first = notebook.cells[0].source.splitlines()[0]
    assert first.startswith("# "), f"{path.name}: expected a heading in the first line"
    return first.removeprefix("# ").strip()


def lessons() -> str:
    """The table of the course for the front page: question, time and what each lesson assumes."""
    paths = {path.name[:2]: path for path in notebooks()}

    def with_links(words: str) -> str:
        known = "|".join(paths)
        return re.sub(
            rf"\b({known})\b",
            lambda found: f"[{found[1]}](notebooks/{paths[found[1]].name})",
            words,
        )

    rows = [["", "question", "time", "assumes"]]
    for number, path in paths.items():
        time, assumes = said(path, "Time"), said(path, "Assumes")
        link = f"[{question(path)}](notebooks/{path.name})"
        rows.append([f"**{number}**", link, time, with_links(assumes)])
    return markdown_table(rows)


def said(path: Path, name: str) -> str:
    """What a notebook's first cell says after a name in bold, such as Time or Assumes."""
    notebook: Any = nbformat.read(path, as_version=4)
    said_there = rf"\*\*{name}:\*\*\s*(.+?)\s*(?=\*\*\w+:\*\*|$)"
    found = re.search(said_there, notebook.cells[0].source, re.M)
    assert found, f"{path.name}: expected '**{name}:**' in the first cell"
    words = found[1].rstrip(".")
    return words[0].upper() + words[1:]


def main_figure() -> str:
    """The first figure of README.md, as Markdown for the front page."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"!\[[^\]]+\]\(docs/figures/[^)]+\)", readme)
    assert found, "README.md: expected a figure of docs/figures with alternative text"
    return found[0]


def row_lines(slug: str) -> str:
    """One method's row in Markdown, so far as the table above does not say it: what is sent up if
    it is not what moved, what was measured, and the source.
    """
    from fedlora_lab import methods

    row: Any = methods.table().loc[slug]
    words = {
        "sent up": row["share"] if row["share"] != "what moved" else "",
        "measured": measured(row),
        "source": linked(row["source"]),
    }
    fields = [f"{name}: {value}" for name, value in words.items() if value]
    return " · ".join([f"`{slug}`", *fields])


def measured(row: Any) -> str:
    """Bytes of a client's round and the deviation, as they were measured
    (scripts/measure_methods.py).
    """
    if not row["up"] >= 0:
        return ""
    gap = (
        "no common product"
        if row["deviation"] is None or row["deviation"] != row["deviation"]
        else row["deviation"]
    )
    deviation = (
        gap if isinstance(gap, str) else "no deviation" if gap < 1e-5 else f"deviation {gap:.2g}"
    )
    return f"{row['up'] / 1000:.1f} kB up, {row['down'] / 1000:.1f} kB down, {deviation}"


def table() -> str:
    """The methods at a glance, each leading to its section."""
    from fedlora_lab import methods

    frame: Any = methods.table()
    rows = [["method", "moves", "own rules", "exact mean", "in one line"]]
    for slug, row in frame.iterrows():
        own = f"`{own_rules(row)}`" if own_rules(row) else ""
        rows.append(
            [
                f"[{row['name']}](#{slug})",
                describe_schedule(row),
                own,
                "yes" if row["exact"] else "no",
                row["note"],
            ]
        )
    return markdown_table(rows)


def methods_page() -> str:
    """docs/methods.md with its generated parts as the package has them."""
    from fedlora_lab import methods

    parts = {
        "table": table(),
        **{f"row {slug}": row_lines(slug) for slug in methods.ALL},
    }
    return filled(METHODS.read_text(encoding="utf-8"), parts)


def with_diagrams(page: str, folder: Path) -> str:
    """The page with a picture of each method's diagram under its row."""
    from fedlora_lab import methods, plots
    from fedlora_lab.plots.style import png

    folder.mkdir(parents=True, exist_ok=True)
    for slug, method in methods.ALL.items():
        (folder / f"diagram-{slug}.png").write_bytes(png(plots.method_diagram(method)))
        end = f"<!-- /row {slug} -->"
        page = page.replace(
            end, f"{end}\n\n![The diagram of {method.name}](figures/diagram-{slug}.png)"
        )
    return page


def modules() -> dict[str, list[str]]:
    """Room -> its modules, for every public module of the package but the exercises, which hold the
    answers.
    """
    import fedlora_lab

    rooms: dict[str, list[str]] = {}
    for found in pkgutil.walk_packages(fedlora_lab.__path__, "fedlora_lab."):
        parts = found.name.split(".")
        if not any(part.startswith(("_", "lesson_")) for part in parts):
            rooms.setdefault(parts[1], []).append(found.name)
    return rooms


def summary(thing: Any) -> str:
    """The first sentence of a docstring, on one line."""
    text = " ".join((thing.__doc__ or "").strip().split("\n\n")[0].split()).replace("|", "\\|")
    return re.sub(r"``", "`", text)


def reference(folder: Path) -> list[str]:
    """Write one page for each room and the page that lists them; gives the names of the rooms."""
    import fedlora_lab

    folder.mkdir(parents=True, exist_ok=True)
    rooms = modules()
    for room, names in rooms.items():
        text = [f"# {room}"]
        for name in names:
            text += ["", f"## {name}"] if len(names) > 1 else []
            text += [
                "",
                "```{eval-rst}",
                f".. automodule:: {name}",
                "   :members:",
                "   :ignore-module-all:",
                "```",
            ]
        (folder / f"{room}.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    lines = [
        "# Reference",
        "",
        "Everything below comes from the docstrings.",
        "",
        "## What you use every day",
        "",
    ]
    lines += ["`import fedlora_lab as fl`, and then:", "", "| name | meaning |", "|---|---|"]
    for name in fedlora_lab.__all__:
        home, attribute = fedlora_lab.HOMES[name]
        place, role = (f"fedlora_lab.{home}", "mod") if attribute is None else (_home(name), "obj")
        thing = import_module(place) if attribute is None else getattr(fedlora_lab, name)
        lines.append(f"| {{py:{role}}}`fl.{name} <{place}>` | {summary(thing)} |")
    lines += ["", "## All rooms", "", "| room | meaning |", "|---|---|"]
    lines += [
        f"| [{room}]({room}.md) | {summary(import_module(f'fedlora_lab.{room}'))} |"
        for room in sorted(rooms)
    ]
    (folder / "index.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return sorted(rooms)


def _home(name: str) -> str:
    import fedlora_lab

    thing = getattr(fedlora_lab, name)
    return f"{thing.__module__}.{thing.__qualname__}"


def contents(rooms: list[str]) -> dict[str, Any]:
    """The table of contents."""
    decisions = sorted(path.stem for path in (ROOT / "docs" / "decisions").glob("[0-9]*.md"))
    look_up: list[dict[str, Any]] = [{"file": f"docs/{page}"} for page in PAGES]
    look_up.append({"file": "api/index", "sections": [{"file": f"api/{room}"} for room in rooms]})
    look_up.append(
        {
            "file": "docs/decisions/README",
            "sections": [{"file": f"docs/decisions/{d}"} for d in decisions],
        }
    )
    course = [
        {"file": f"notebooks/{path.stem}", "title": f"{path.name[:2]} {question(path)}"}
        for path in notebooks()
    ]
    parts = [
        {"caption": "The course", "chapters": course},
        {"caption": "To look up", "chapters": look_up},
    ]
    return {"format": "jb-book", "root": "index", "parts": parts}


def with_formulas(page: str) -> str:
    """The HTML of a question, hint or solution with its formulas as MathML; code stays as it is."""
    from docutils.utils.math.latex2mathml import tex2mathml

    def shown(found: re.Match) -> str:
        code, block, line = found.groups()
        return code or tex2mathml(html.unescape(block or line), as_block=bool(block))

    pattern = r"(<(?:code|pre)>.*?</(?:code|pre)>)|\$\$(.+?)\$\$|\$([^$]+)\$"
    return re.sub(pattern, shown, page, flags=re.S)


def assemble(folder: Path) -> None:
    """Put into an empty folder all that the site is built from."""
    shutil.copytree(ROOT / "docs", folder / "docs")
    (folder / "notebooks").mkdir()
    for path in notebooks():
        notebook: Any = nbformat.read(path, as_version=4)
        notebook.metadata.language_info = {"name": "python", "pygments_lexer": "ipython3"}
        for cell in notebook.cells:
            if "fl.course.exercises." in cell.source and cell.cell_type == "code":
                for data in (output.get("data", {}) for output in cell.outputs):
                    if "text/html" in data:
                        data["text/html"] = with_formulas(data["text/html"])
        nbformat.write(notebook, folder / "notebooks" / path.name)
    page = with_diagrams(methods_page(), folder / "docs" / "figures")
    (folder / "docs" / "methods.md").write_text(page, encoding="utf-8")
    rooms = reference(folder / "api")
    parts = {"figure": main_figure(), "notebooks": lessons()}
    front = filled((ROOT / "book" / "index.md").read_text(encoding="utf-8"), parts)
    (folder / "index.md").write_text(front, encoding="utf-8")
    shutil.copytree(ROOT / "book" / "story", folder / "book" / "story")
    for source, target in (
        ("style.css", "_static"),
        ("docstrings.py", "extensions"),
        ("glossary.py", "extensions"),
        ("mathml.py", "extensions"),
        ("search_order.py", "extensions"),
        ("search_order.js", "extensions"),
        ("_config.yml", ""),
    ):
        (folder / target).mkdir(exist_ok=True)
        shutil.copy(ROOT / "book" / source, folder / target)
    (folder / "_static" / "dials.js").write_text(page_script(), encoding="utf-8")
    toc = yaml.safe_dump(contents(rooms), sort_keys=False, allow_unicode=True)
    (folder / "_toc.yml").write_text(toc, encoding="utf-8")


def build(out: Path) -> None:
    """Assemble and build; a warning is an error. The site replaces what stood in ``out``."""
    with tempfile.TemporaryDirectory() as work:
        source, made = Path(work) / "source", Path(work) / "made"
        source.mkdir()
        assemble(source)
        # Half of its processor time went to walks of the garbage collector; it ends before the
        # machine is full.
        program = "import gc; gc.disable(); from jupyter_book.cli.main import main; main()"
        command = [sys.executable, "-c", program, "build", str(source), "--path-output", str(made)]
        subprocess.run([*command, "-W", "--keep-going", "-q"], check=True)
        if out.exists():
            shutil.rmtree(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(made / "_build" / "html", out)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "book")
    parser.add_argument("--fill", action="store_true")
    arguments = parser.parse_args()
    if arguments.fill:
        METHODS.write_text(require_visible(methods_page()), encoding="utf-8")
        return
    build(arguments.out)
    print(f"{arguments.out / 'index.html'}: {len(notebooks())} notebooks")


if __name__ == "__main__":
    main()
