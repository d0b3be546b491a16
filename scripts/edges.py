"""Write docs/sharp_edges.md from `fl.review.mistakes`: every mistake, and its numbers measured.

    python scripts/edges.py

Half a minute: every number on the page is measured anew.
"""

import textwrap
from pathlib import Path

from fedlora_lab._utils.files import write_atomically
from fedlora_lab._utils.markdown import markdown_table
from fedlora_lab.review.mistakes import EDGES, MISTAKES, Mistake

PAGE = Path(__file__).resolve().parent.parent / "docs" / "sharp_edges.md"
WIDTH = 140
GROUPS = ("Counting", "Learning", "Saying what was found", "Chance")

HEAD = """\
# Sharp edges

Differentially private federated LoRA can go wrong without looking wrong: the loss falls, and the
ε that is printed is false. This page is a catalogue of such mistakes. For each it says what goes
wrong, what the library does about it, and how large the error is.

For example, an accountant that is made anew for every round counts its own round only. In the run
that is measured in [edge 1](#1-a-new-accountant-for-every-round-or-message-fatal), almost nine
times the stated ε was spent.

A third of the mistakes have a link to where they were seen. Every mistake runs here, in a broken
and in a sound form, and `fl.review.mistakes.EDGES[3].measure()` measures one again.

**Severity** stands behind the name of a mistake.

| severity | meaning |
|---|---|
| fatal | the stated ε means nothing |
| serious | it is wrong by a factor that matters |
| bug | something other than what was meant is computed |
| utility | privacy holds, and learning suffers |
| honesty | the number is true, and misleads |
| note | a limit to know of |

**What the library does** is one of four things. Names that begin with `test_` are the tests that
hold it.

| answer | meaning |
|---|---|
| not expressible | plans, rows and rules cannot say it |
| refuses | it is answered with an error, or with no ε |
| measures | a run's records show it |
| tells | a run cannot prevent it; this page and the course warn of it |

**Measured** is one number that tells the broken form from the sound one; the line between the two
stands in brackets. Where a single step shows the mistake, it is the number of a
[check](review.md#what-it-looks-at):

- *sensitivity* and *signal* are in clip norms;
- *noise size* is in units of the claimed standard deviation;
- *noise and data* is in units of the noise beside other data;
- *accounting* is the ε spent over the ε stated;
- *un-noised output* and *frozen* are the largest change of what should not move."""

REPORTED = """\
These were reported in public trackers or found in papers' code. Each was rebuilt small, and the
check named here finds it. Most were mended soon after.
`fl.review.mistakes.MISTAKES["Noise on a copy"].wrong` says what happens, and so for each name of
the table."""


def number(value: float) -> str:
    """A measured number in three figures; what is left by rounding is zero."""
    if abs(value) <= 1e-9:
        return "0"
    if abs(value) < 1e-3:
        return "< 0.001"
    return "> 1,000,000" if value > 1e6 else f"{value:.3g}"


def wrapped(text: str) -> str:
    """Lines of at most 140 characters, broken at spaces; tables and lists stay."""
    if text.startswith(("|", "- ")):
        return text
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def section(mistake: Mistake) -> str:
    """One edge in Markdown, measured."""
    broken, sound = map(number, mistake.measure())
    # A line of its own: numbers may be wider elsewhere, and must not move what is wrapped.
    numbers = f"Broken: {broken}; sound: {sound}."
    if mistake.number:
        side = "least" if mistake.at_least else "most"
        numbers = f"Broken: {broken}; sound: {sound} (at {side} {mistake.limit:.3g})."
    texts = [
        mistake.wrong,
        mistake.library,
        f"*Measured*: {mistake.measured or mistake.checks[0]}.",
    ]
    if mistake.source:
        texts.append(f"*Seen* in [{mistake.source.split('/', 3)[3]}]({mistake.source}).")
    wrong, library, measured, *seen = map(wrapped, texts)
    heading = f"### {mistake.edge}. {mistake.name} ({mistake.severity})"
    parts = [heading, wrong, library, f"{measured}\n{numbers}", *seen]
    return "\n\n".join(parts)


def reported_table() -> str:
    """The mistakes that have no section, with their sources."""
    rows = [["mistake", "check", "broken", "sound"]]
    for mistake in MISTAKES.values():
        if not mistake.edge:
            name = f"[{mistake.name}]({mistake.source})" if mistake.source else mistake.name
            checks = ", ".join(mistake.checks)
            rows.append([name, checks, *map(number, mistake.measure())])
    return markdown_table(rows)


def page() -> str:
    """docs/sharp_edges.md as the mistakes are now, measured now."""
    sections = [*map(wrapped, HEAD.split("\n\n"))]
    for group in GROUPS:
        edges = [mistake for mistake in EDGES.values() if mistake.group == group]
        sections += [f"## {group}", *map(section, edges)]
    sections += ["## Reported elsewhere", wrapped(REPORTED), reported_table()]
    return "\n\n".join(sections) + "\n"


if __name__ == "__main__":
    write_atomically(PAGE, page(), shared=True)
