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
WIDTH = 120
GROUPS = ("Counting", "Learning", "Saying what was found", "Chance")

HEAD = """\
# Sharp edges

Ways in which differentially private federated LoRA goes wrong without looking wrong, a third with
a link to where they were seen.

*Severity.* **Fatal**: the stated ε means nothing. **Serious**: it is wrong by a factor that
matters. **Bug**: something other than what was meant is computed. **Utility**: privacy holds,
learning suffers. **Honesty**: the number is true and misleads. **Note**: a limit to know of.

*What the library does.* **Not expressible**: plans, rows and rules cannot say it. **Refuses**: it
is answered with an error, or with no ε. **Measures**: a run's records show it. **Tells**: a run
cannot prevent it; this page and the course warn of it. Names in brackets are tests.

*Measured.* Every mistake runs: a broken and a sound form, one number that tells them apart, and in
brackets the line between them. `fl.review.mistakes.EDGES[3].measure()` measures again. Where a
single step shows the mistake, the number is that of a [check](review.md#what-it-looks-at):
*sensitivity* and *signal* in clip norms, *noise size* in units of the claimed standard deviation,
*noise and data* in units of the noise beside other data,
*accounting* as ε spent over ε stated, *un-noised output* and *frozen* as the largest change of
what should not move."""

REPORTED = """\
Reported in public trackers and papers' code, rebuilt small, and found by the checks named here.
Most were mended soon after. `fl.review.mistakes.MISTAKES["Noise on a copy"].wrong` says what
happens."""


def number(value: float) -> str:
    """A measured number in three figures; what is left by rounding is zero."""
    if abs(value) <= 1e-9:
        return "0"
    if abs(value) < 1e-3:
        return "< 0.001"
    return "> 1,000,000" if value > 1e6 else f"{value:.3g}"


def wrapped(text: str) -> str:
    """Lines of at most 120 characters, broken at spaces."""
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
