"""What lessons claim, and the measures that each lesson keeps."""

import re
from typing import Any

import nbformat
import numpy as np
import pytest
from places import ROOT

from fedlora_course import evidence
from fedlora_course.evidence import Evidence

FOLDS = re.compile(r"(?s)<details>.*?</details>")
NOT_PROSE = re.compile(r"(?s)\$\$.*?\$\$|\$.*?\$|```.*?```|`[^`]*`|\([^)]*\)|<[^>]*>")
NUMBER = re.compile(r"(?<![\w./(])[-−]?\d+(?:[.,]\d+)?(?![\w./])")
CLAIM = {
    "section": "one",
    "says": "Half of it is noise.",
    "rests": "a closed form",
    "value": "share",
    "stated": 0.5,
    "low": 0.4,
    "high": 0.6,
    "shown": True,
}
LESSONS = evidence.lessons()


def run(monkeypatch, share, **changed):
    told = {"title": "T", "sections": {"one": "One"}, "claims": {"half": {**CLAIM, **changed}}}
    monkeypatch.setattr(evidence, "read", lambda number: told)
    Evidence(0)({"share": share})


def test_a_run_inside_all_ranges_passes(monkeypatch):
    run(monkeypatch, 0.45)


@pytest.mark.parametrize("share", [0.61, 0.39, np.nan])
def test_a_value_that_leaves_its_range_is_named(monkeypatch, share):
    with pytest.raises(AssertionError, match=f"half: {share:.4g} is not in"):
        run(monkeypatch, share)


def test_a_claim_that_is_not_shown_is_checked_too(monkeypatch):
    with pytest.raises(AssertionError, match="half"):
        run(monkeypatch, 0.9, shown=False)


def test_a_reader_who_changed_the_notebook_sees_a_mark_and_no_error(monkeypatch, capsys):
    import IPython.display

    drawn = []
    monkeypatch.setattr(IPython.display, "display", drawn.append)
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    monkeypatch.delenv("FEDLORA_TESTED", raising=False)
    run(monkeypatch, 0.9)
    assert "0.90 (another outcome than ours)" in drawn[0].data


@pytest.mark.parametrize("number", LESSONS)
def test_every_claim_is_whole(number):
    told = evidence.read(number)
    for key, claim in told["claims"].items():
        assert claim["section"] in told["sections"], key
        assert claim["says"].strip() and claim["rests"].strip(), key
        if "value" in claim:
            assert claim["low"] <= claim["stated"] <= claim["high"], key
    shown = sum(claim.get("shown", False) for claim in told["claims"].values())
    assert 3 <= shown <= 8, f"{shown} rows at the end of the lesson: about six are read"


@pytest.mark.parametrize("number", LESSONS)
def test_the_page_of_evidence_is_what_the_claims_say(number):
    path = ROOT / "docs" / "evidence" / f"{number:02}.md"
    assert path.read_text("utf-8") == evidence.page(number), "run: python scripts/evidence.py"


def lesson(number) -> tuple[Any, Any]:
    (path,) = (ROOT / "notebooks").glob(f"{number:02}_*.ipynb")
    return path, nbformat.read(path, as_version=4)


def count_numbers(text):
    return len(NUMBER.findall(NOT_PROSE.sub("", text)))


@pytest.mark.parametrize("number", LESSONS)
def test_a_lesson_keeps_its_measures(number):
    """Fault: a reader's remark became a clause, and lessons grew until nobody finished them."""
    path, notebook = lesson(number)
    text = [FOLDS.sub("", c.source) for c in notebook.cells if c.cell_type == "markdown"]
    words = [len(cell.split()) for cell in text]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    shown = [cell.source for cell in code if not cell.metadata.get("jupyter")]
    lines = [line for source in shown for line in source.splitlines() if line.strip()]
    (answer,) = (cell for cell in text if cell.startswith("## The answer"))
    answer = answer.removeprefix("## The answer").split("\n[←")[0]
    measures = {
        "words outside folds": (sum(words), 2200),
        "words of the longest text": (max(words), 250),
        "numbers in 100 words": (100 * count_numbers(" ".join(text)) / sum(words), 3),
        "lines of code": (len(lines), 120),
        "columns of code": (max(map(len, lines)), 88),
        "words of the answer": (len(answer.split()), 120),
        "numbers of the answer": (count_numbers(answer), 6),
    }
    assert {name: pair for name, pair in measures.items() if pair[0] > pair[1]} == {}
    assert "(../docs/evidence/" in "".join(text), f"{path.name}: no link to its evidence"
    assert code[-1].source.strip() == "lesson.evidence(globals())"
    assert not any(re.search(r"(?m)^\s*assert ", cell.source) for cell in code)
