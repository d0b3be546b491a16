"""What this package never does: unpickle, run text as code, let a name into a page."""

import re
from typing import Any

import pytest
from places import ROOT
from reports import HOSTILE, Reader

from fedlora_course.exercises import Exercise, NumberAnswer

UNSAFE = re.compile(
    r"weights_only\s*=\s*False|allow_pickle\s*=\s*True|trust_remote_code\s*=\s*True"
)


def test_nothing_is_unpickled_and_no_foreign_code_is_run():
    """Modules of pickles, `eval`, `exec` and shells are found by ruff (pyproject.toml)."""
    for room in ("fedlora_lab", "scripts", "benchmarks", "studies"):
        for path in (ROOT / room).rglob("*.py"):
            assert UNSAFE.findall(path.read_text(encoding="utf-8")) == [], path


# names in pages

NAMES = {
    "script": HOSTILE,
    "attribute": "\" onmouseover=alert(1) x='",
    "end of a tag": "</td></table></script><img src=x onerror=alert(1)>",
    "control characters": "a\x00b\x07c\x1b[31md\u202egnp.exe\u2066\u200b",
    "template": "{{ 7 * 7 }}{% for x in y %}${7*7}",
    "mathematics": "$\\frac{1}{$ \\input{/etc/passwd} _^",
    "lines": "one\ntwo\r\nthree",
}


def harmless(html, tags):
    """The page, which has these tags only and no attribute that acts."""
    page = Reader(html)
    assert {tag for tag, _ in page.tags} <= tags
    assert not [key for _, keys in page.tags for key in keys if key.startswith("on")]
    return page


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_cards_show_any_name_as_text(name):
    texts: Any = {"question": name, "hints": (name,), "solution": name, "right": name}
    wrong = tuple((answer, name) for answer in (1, 2, 3))
    card = Exercise(name, 1, 1, 1, answers=(0,), wrong=wrong, reader=NumberAnswer(0), **texts)
    tags = {"table", "tr", "td", "th", "p", "b", "details", "summary"}
    shown = harmless(card._repr_html_(), tags).text
    assert name.replace("\r\n", "\n") in shown.replace("\r\n", "\n")
