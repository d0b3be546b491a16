"""The page of the package prints what it shows."""

import re

from places import ROOT

PAGE = (ROOT / "dp_review" / "README.md").read_text("utf-8")


def test_the_example_of_the_readme_prints_what_it_shows(capsys):
    """Fault: an example that was changed in one of two places, or a catalogue of another length."""
    code, shown = (re.search(rf"```{kind}\n(.*?)```", PAGE, re.S) for kind in ("python", "text"))
    assert code and shown
    exec(code[1], {})
    assert capsys.readouterr().out == shown[1]


def test_the_readme_counts_the_mistakes():
    from dp_review.mistakes import MISTAKES

    assert f"has {len(MISTAKES)} mistakes" in PAGE
