"""docs/scale.md says what its script computes."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_the_page_is_that_of_the_formulas():
    module = runpy.run_path(str(ROOT / "scripts" / "scale.py"))
    assert module["page"]() == (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
