"""Write docs/sharp_edges.md from `fl.sharp_edges`: every pitfall, and its numbers measured.

    python scripts/edges.py            rewrites the page
    python scripts/edges.py --check    leaves with status 1 where the page is not that of a new run

A few seconds: every number on the page is measured anew.
"""

import argparse
import sys
import textwrap
from pathlib import Path

from fedlora_lab._utils.files import write_atomically
from fedlora_lab.course.sharp_edges import GROUPS, PITFALLS, Measurement, Pitfall
from fedlora_lab.report.summary_table import markdown_table, require_visible

PAGE = Path(__file__).resolve().parent.parent / "docs" / "sharp_edges.md"
WIDTH = 120

HEAD = """\
# Sharp edges

Thirty ways in which differentially private federated LoRA goes wrong without looking wrong, for
whoever writes or reviews such code. Most were seen in published code; the page is about the
mechanism, not about who made the mistake. Terms are in the [glossary](glossary.md).

*Severity.* **Fatal**: the stated ε means nothing. **Serious**: it is wrong by a factor that
matters. **Bug**: something other than what was meant is computed. **Utility**: privacy holds,
learning suffers. **Honesty**: the number is true and misleads. **Note**: a limit to know of.

*What the library does.* **Not expressible**: there is no way to write the mistake with plans,
rows and rules. **Refuses**: it is answered with an error, or with no ε. **Measures**: it is
allowed, and a run's records show it. **Tells**: a run cannot prevent it; this page and the
course warn of it, and where `fl.review` can find it from outside, its check is named. Names in
brackets are tests.

*Measured.* Every edge runs: a broken form and a sound one of the same small mechanism, and one
number that tells them apart. *The line* is the value that a sound mechanism keeps to.
`fl.course.sharp_edges.PITFALLS[3].measure()` measures again,
`fl.course.sharp_edges.measure_pitfalls()` all of them; `python scripts/edges.py` writes this
page from such a run, and a test holds the two equal."""


def number(value: float) -> str:
    """A measured number in three figures, or "< 0.001"; what is left by rounding is zero."""
    return "0" if abs(value) <= 1e-9 else "< 0.001" if abs(value) < 1e-3 else f"{value:.3g}"


def line(pitfall: Pitfall) -> str:
    """Where the line is, in words."""
    return f"{pitfall.side} {number(pitfall.line)}"


def anchor(pitfall: Pitfall) -> str:
    """The place of an edge's section on the page, as GitHub and the site name it."""
    kept = "".join(c for c in heading(pitfall).lower() if c.isalnum() or c in "_- ")
    return kept.replace(" ", "-")


def heading(pitfall: Pitfall) -> str:
    """An edge's heading without its marks."""
    return f"{pitfall.number}. {pitfall.title} ({pitfall.severity})"


def section(pitfall: Pitfall, measured: Measurement) -> str:
    """One pitfall in Markdown."""
    broken, sound = map(number, measured)
    numbers = f"*Measured*: {pitfall.what}. Broken **{broken}**, sound **{sound}**; the line: "
    parts = map(wrapped, (pitfall.wrong, pitfall.library, f"{numbers}{line(pitfall)}."))
    return "\n\n".join([f"### {heading(pitfall)}", *parts])


def wrapped(text: str) -> str:
    """Lines of at most 120 characters, broken at spaces."""
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def page() -> str:
    """docs/sharp_edges.md as the edges are now, measured now."""
    measured = {n: pitfall.measure() for n, pitfall in PITFALLS.items()}
    rows = [["edge", "severity", "the library", "broken", "sound", "the line"]]
    for n, pitfall in PITFALLS.items():
        place = f"[{pitfall.number}. {pitfall.title}](#{anchor(pitfall)})"
        words = [place, pitfall.severity, pitfall.answer.lower()]
        rows.append([*words, *map(number, measured[n]), line(pitfall)])
    parts = [*map(wrapped, HEAD.split("\n\n"))]
    parts.append(f"<!-- edges -->\n{markdown_table(rows)}\n<!-- /edges -->")
    for group in GROUPS:
        mine = [pitfall for pitfall in PITFALLS.values() if pitfall.group == group]
        parts += [f"## {group}", *(section(pitfall, measured[pitfall.number]) for pitfall in mine)]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """The command line."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--check", action="store_true")
    new = page()
    if parser.parse_args().check:
        same = new == PAGE.read_text(encoding="utf-8")
        sys.exit(0 if same else f"{PAGE.name}: run python scripts/edges.py")
    write_atomically(PAGE, require_visible(new), shared=True)
    print(f"{PAGE}: {len(PITFALLS)} edges")


if __name__ == "__main__":
    main()
