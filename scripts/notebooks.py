"""Run the notebooks, keep their outputs clean, and copy them for a reader.

    python scripts/notebooks.py run notebooks/*.ipynb     execute each, and write it back cleaned
    python scripts/notebooks.py clean notebooks/*.ipynb   only clean what a reader's run leaves
    python scripts/notebooks.py copy notebooks/*.ipynb    into my_notebooks, as a reader gets them

Outputs stay, since readers meet the course where nothing is executed. What differs from run to run
without meaning goes: execution counts, metadata, views of widgets, random cell ids. The first line
of a cell says what a reader need not see: the source of `# Checks` and `# Figure` is folded, and
that of a cell that answers a prediction. The answer itself lies behind a line to click, on GitHub,
Colab and Binder too; in a reader's copy it has no output yet. Under
the title stand links to Binder and Colab if CITATION.cff has the repository's address, in the last
line those to the notebooks before and after.
"""

import argparse
import copy
import os
import re
from html import escape
from pathlib import Path
from typing import Any

import nbformat

ROOT = Path(__file__).resolve().parent.parent
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
VIEW = "application/vnd.jupyter.widget-view+json"
PAGE = "data-fedlora-"
"""In the HTML of a dial or of the playground, which the site brings to life."""
FOLDED = ("# Checks", "# Figure")
"""First lines of cells whose source is folded in JupyterLab and on the site."""
APPENDIX = "## Appendix"
"""Begins a cell behind the answer, for a second reading."""
ANSWER = "course.exercises.reveal("
"""Stands in cells that answer a prediction."""
COPIES = ROOT / "my_notebooks"
OPEN = """

[Open in Binder](https://mybinder.org/v2/gh/{0}/HEAD?urlpath=lab/tree/notebooks/{1}) · \
[Open in Colab](https://colab.research.google.com/github/{0}/blob/main/notebooks/{1}) (run \
[one cell](https://github.com/{0}/blob/main/docs/first_steps.md#on-colab) first); both untried

"""
CITATION = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
ADDRESS = "".join(re.findall("^repository-code: https://github.com/(.+)", CITATION, re.M))
"""Owner and name of the repository on GitHub; "" while CITATION.cff names none."""


CORE = ("00", "01", "02", "03", "04", "05", "10", "11")
"""The lessons of a short course, as docs/teaching.md has it."""


def lesson_paths() -> list[Path]:
    """The notebooks of the course, in the order of its path."""
    return sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def minutes(path: Path) -> int:
    """The time that a lesson takes."""
    return int(re.findall(r"\d+(?= minutes)", said(path, "Time"))[0])


def core_hours() -> int:
    """The time that the core takes, in whole hours."""
    core = [path for path in lesson_paths() if path.name[:2] in CORE]
    return round(sum(minutes(path) for path in core) / 60)


def first_cell(path: Path) -> str:
    """The text of a notebook's first cell."""
    notebook: Any = nbformat.read(path, as_version=4)
    return notebook.cells[0].source


def last_text(notebook: Any) -> Any:
    """The last cell of text before an appendix, which ends with links to the neighbours."""
    texts = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
    return [cell for cell in texts if not cell.source.startswith(APPENDIX)][-1]


def question(path: Path) -> str:
    """The question that a notebook asks in its first line."""
    return first_cell(path).splitlines()[0].removeprefix("# ").strip()


def said(path: Path, name: str) -> str:
    """What a notebook's first cell says after a name in bold, such as Time or Assumes."""
    pattern = rf"\*\*{name}:\*\*\s*(.+?)\s*(?=\*\*\w+:\*\*|$)"
    match = re.search(pattern, first_cell(path), re.M)
    assert match, f"{path.name}: expected '**{name}:**' in the first cell"
    sentence = match[1].rstrip(".")
    return sentence[0].upper() + sentence[1:]


def only_a_view(output: Any) -> bool:
    """Whether nothing is left of an output where no widget runs; of a dial and of the playground
    the site's form is."""
    data = output.get("data", {})
    return VIEW in data and PAGE not in "".join(data.get("text/html", ""))


def answers(cell: Any) -> bool:
    """Whether a cell answers a prediction."""
    return cell.cell_type == "code" and ANSWER in cell.source


def fold(cell: Any) -> None:
    """Fold the source of a cell, in JupyterLab and on the site."""
    cell.metadata["jupyter"] = {"source_hidden": True}
    cell.metadata["tags"] = ["hide-input"]


def behind_a_line(outputs: list[Any]) -> list[Any]:
    """What an answer shows, as one output behind a line to click, which needs no kernel.

    A figure that is there to be seen tells the answer before anybody has guessed.
    """
    texts = [output.get("data", {}).get("text/html", "") for output in outputs]
    if not outputs or (len(outputs) == 1 and texts[0].startswith("<details>")):
        return outputs
    line, said = "The answer", texts[-1]
    told = re.fullmatch(r"<details><summary>(.*?)</summary>(.*)</details>", said, re.S)
    if told:
        line, said = told.groups()
    parts = []
    for output in outputs[:-1]:
        data = output.get("data", {})
        if "image/png" in data:
            finding = escape(data["text/plain"].removeprefix("Picture: "))
            png = "".join(data["image/png"].split())
            parts.append(f'<img alt="{finding}" src="data:image/png;base64,{png}">')
        else:
            parts.append(data.get("text/html") or f"<pre>{escape(output['text'])}</pre>")
    html = "\n".join([f"<details><summary>{line}</summary>", *parts, f"{said}</details>"])
    data = {"text/html": html, "text/plain": outputs[-1]["data"]["text/plain"]}
    return [nbformat.v4.new_output("display_data", data=data)]


def learner_copy(notebook: Any) -> Any:
    """A copy in which a prediction can be made: no answer stands in it."""
    notebook = copy.deepcopy(notebook)
    for cell in filter(answers, notebook.cells):
        cell.outputs = []
    return notebook


def cleaned(notebook: Any) -> Any:
    """A copy without counts, metadata, widget views and random ids."""
    notebook = copy.deepcopy(notebook)
    notebook.metadata = nbformat.NotebookNode(kernelspec=KERNEL, language_info={"name": "python"})
    for index, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{index:02d}", nbformat.NotebookNode()
        if cell.cell_type == "code":
            if cell.source.startswith(FOLDED) or answers(cell):
                fold(cell)
            cell.execution_count = None
            cell.outputs = [output for output in cell.outputs if not only_a_view(output)]
            for output in cell.outputs:
                data = output.get("data", {})
                data.pop(VIEW, None)
                if "image/png" in data:  # the same figure, for a page that runs
                    data.pop("text/html", None)
                if "metadata" in output:
                    output.metadata = nbformat.NotebookNode()
                if "execution_count" in output:
                    output.execution_count = None
            if answers(cell):
                cell.outputs = behind_a_line(cell.outputs)
    return notebook


def titled(text: str, name: str, address: str = ADDRESS) -> str:
    """A text with links under its title that open a notebook elsewhere; without an address none."""
    below = OPEN.format(address, name) if address else "\n\n"
    return re.sub(r"\n\n(\[Open in .+\n\n)?", below, text, count=1)


def with_neighbours(text: str, name: str) -> str:
    """A text whose last line links to the notebooks before and after this one on the path."""
    lines = text.rstrip().split("\n")
    if "[← " in lines[-1] or " →](" in lines[-1]:
        lines.pop()
    paths = lesson_paths()
    place = [path.name for path in paths].index(name)
    links = []
    if place > 0:
        before = paths[place - 1]
        links.append(f"[← {before.name[:2]} {question(before)}]({before.name})")
    if place + 1 < len(paths):
        after = paths[place + 1]
        links.append(f"[{after.name[:2]} {question(after)} →]({after.name})")
    return "\n".join([*lines, " · ".join(links)])


def execute(notebook: Any, folder: Path) -> None:
    """Run it from top to bottom in a new kernel; raises what the first failing cell raised."""
    from nbclient import NotebookClient

    environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": str(ROOT)}
    environment["FEDLORA_TESTED"] = "1"  # a claim that does not hold stops the run
    environment.pop("MPLBACKEND", None)
    where = {"metadata": {"path": str(folder)}}
    # One print may arrive in pieces, hence coalesce_streams. Nobody has guessed anything yet.
    client = NotebookClient(notebook, timeout=1800, resources=where, coalesce_streams=True)
    client.execute(env=environment)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("run", "clean", "copy"))
    parser.add_argument("paths", nargs="+", type=Path)
    arguments = parser.parse_args()
    for path in arguments.paths:
        notebook: Any = nbformat.read(path, as_version=4)
        if arguments.what == "copy":
            own = COPIES / path.name
            if not own.exists():  # what a reader has done stays
                COPIES.mkdir(exist_ok=True)
                nbformat.write(learner_copy(notebook), own)
            continue
        if arguments.what == "run":
            execute(notebook, path.parent)
        notebook.cells[0].source = titled(notebook.cells[0].source, path.name)
        last = last_text(notebook)
        last.source = with_neighbours(last.source, path.name)
        nbformat.write(cleaned(notebook), path)
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
