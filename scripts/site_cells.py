"""The notebooks as the site shows them, where nothing can be run.

What a reader of JupyterLab does with a cell, a reader of a page does with a choice or a fold: a
prediction has its choices, its answer opens, an exercise shows its question, hints and solution.
Cells that only check have no place; what they printed stays, since the prose speaks of it. After a
bench, which needs a kernel, stands a link to the playground, which needs none.
"""

import html
import json
import re
from pathlib import Path
from typing import Any

import nbformat

from fedlora_course import playground
from notebooks import answers

ASKED = re.compile(r'exercises\.predict\("(.+?)"\)')
TASK = "course.exercises.show("
CHECKED = re.compile(r"\n*^.*course\.exercises\.check\(.*\n?", re.M)
EVIDENCE = "lesson.evidence("
BENCH = "course.widgets.live("
CHECKS, FIGURE = "# Checks", "# Figure"
"""First words of cells whose source is folded in a notebook."""
TABLES = json.loads((playground.HERE / "tables.json").read_text(encoding="utf-8"))
PLAYED = [row["slug"] for row in TABLES["methods"]]
ELSEWHERE = "[open this lesson elsewhere](../docs/first_steps.md#elsewhere)"
OF_THE_BENCH = f"""The bench needs a kernel: {ELSEWHERE}.
{{instead}}"""
TRAINS_IN_A_PAGE = """What trains in a page is a smaller network:
<a href="../playground.html#methods={0}+{1}">{0} beside {1}, in the playground</a>."""
RECORDED = """This is how it looked after a sweep:

![The bench: two curves over the learning rate, a table of runs](../book/story/3-compare.png)"""


def with_formulas(page: str) -> str:
    """The HTML of a question, hint or solution with its formulas as MathML; code stays as it is."""
    from docutils.utils.math.latex2mathml import tex2mathml

    def shown(found: re.Match) -> str:
        code, block, line = found.groups()
        return code or tex2mathml(html.unescape(block or line), as_block=bool(block))

    pattern = r"(<(?:code|pre)>.*?</(?:code|pre)>)|\$\$(.+?)\$\$|\$([^$]+)\$"
    return re.sub(pattern, shown, page, flags=re.S)


def with_choices(page: str, key: str) -> str:
    """A question whose options can be chosen in the page; book/choices.js notes which one."""
    page = page.replace("before you run the next cell", "before you open the answer")
    head = f'<div class="choices" role="radiogroup" aria-label="Predict {key}">'
    page = re.sub(r"<ul[^>]*>", head, page).replace("</ul>", "</div>")
    option = rf'<label><input type="radio" name="{key}" value="\1"> <b>\1)</b>\2</label>'
    return re.sub(r"<li><b>(\w)\)</b>(.*?)</li>", option, page, flags=re.S)


def with_guess(page: str) -> str:
    """An answer that says what was chosen in the page; nobody has chosen anything before."""
    summary = r"<summary>[^<]*?(\d\d\.[a-z])\.</summary>"
    said = r'<summary>Show the answer</summary><p class="guess" data-guess="\1"></p>'
    return re.sub(summary, said, page)


def folded(cell: Any, tags: list[str], what: str) -> None:
    """Fold or remove parts of a cell; the fold is called by ``what`` it hides."""
    words = {"code_prompt_show": f"Show {what}", "code_prompt_hide": f"Hide {what}"}
    cell.metadata = nbformat.from_dict({"tags": tags, "mystnb": words})


def shown(cell: Any) -> list[Any]:
    """The cells that stand for a code cell, of which they may be a changed form."""
    asked = ASKED.search(cell.source)
    if answers(cell):
        code = nbformat.v4.new_code_cell(cell.source)
        folded(cell, ["remove-input"], "")
        folded(code, ["hide-input"], "the code of the answer")
        drawn = "\n" in cell.source and not cell.source.startswith(CHECKS)
        return [cell, code] if drawn else [cell]
    if asked or TASK in cell.source or EVIDENCE in cell.source:
        folded(cell, ["remove-input"], "")
    elif CHECKED.search(cell.source):
        cell.source = CHECKED.sub("", cell.source).strip()
        cell.outputs = []
        return [cell] if "def " in cell.source else []
    elif cell.source.startswith(CHECKS):
        folded(cell, ["remove-input"], "")
        return [cell] if cell.outputs else []
    elif cell.source.startswith(FIGURE):
        folded(cell, ["hide-input"], "the code of this figure")
    if BENCH in cell.source:
        return [cell, nbformat.v4.new_markdown_cell(instead_of_bench(cell.source))]
    return [cell]


def instead_of_bench(source: str) -> str:
    """The words after a bench: a link to its methods in the playground, or a picture of it."""
    named = re.findall(r'(?:method|beside)="([\w-]+)"', source)
    first, second, *_ = [*dict.fromkeys(["fedlora", *named, "ffa-lora"])]
    instead = TRAINS_IN_A_PAGE.format(first, second) if second in PLAYED else RECORDED
    return OF_THE_BENCH.format(instead=instead)


def readable(path: Path) -> Any:
    """A notebook as the site shows it: formulas set, code in colours, figures with their findings
    as alternative text, and what needs a kernel replaced.
    """
    notebook: Any = nbformat.read(path, as_version=4)
    notebook.metadata.language_info = {"name": "python", "pygments_lexer": "ipython3"}
    cells = []
    for cell in notebook.cells:
        made = [cell] if cell.cell_type == "markdown" else shown(cell)
        for one in made:
            dress_outputs(one)
        cells += made
    notebook.cells = cells
    return notebook


def dress_outputs(cell: Any) -> None:
    """Formulas, choices and alternative texts in what a cell has put out."""
    asked = ASKED.search(cell.source)
    for data in (output.get("data", {}) for output in cell.get("outputs", [])):
        if "image/png" in data:
            finding = data["text/plain"].removeprefix("Picture: ")
            cell.metadata.setdefault("mystnb", {})["image"] = {"alt": finding}
        if "text/html" in data and "course.exercises." in cell.source:
            page = with_formulas(data["text/html"])
            page = with_choices(page, asked[1]) if asked else page
            data["text/html"] = with_guess(page) if answers(cell) else page
