"""Write docs/evidence/edges.md from edges.toml and `dp_review.mistakes`: every number is measured.

    python scripts/edges.py

Half a minute: every number on the page is measured anew.
"""

import textwrap
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import edge_numbers
from page_blocks import markdown_table

from dp_review.mistakes import MISTAKES, Mistake
from fedlora_lab._utils.files import write_atomically

PAGE = Path(__file__).resolve().parent.parent / "docs" / "evidence" / "edges.md"
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
and in a sound form, and `python scripts/edges.py` measures all of them again.

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
| not expressible | no plan, row or rule says it under a finite ε |
| refuses | it is answered with an error, or with no ε |
| measures | a run's records show it |
| tells | a run cannot prevent it; this page and the course warn of it |

**Measured** is one number that tells the broken form from the sound one; the line between the two
stands in brackets. Where a single step shows the mistake, it is the number of a
[check](../review.md#what-it-looks-at):

- *sensitivity* and *signal* are in clip norms;
- *noise size* is in units of the claimed standard deviation;
- *noise and data* is in units of the noise beside other data;
- *accounting* is the ε spent over the ε stated;
- *un-noised output* and *frozen* are the largest change of what should not move."""

REPORTED = """\
These were reported in public trackers or found in papers' code. Each was rebuilt small, and the
check named here finds it. Most were mended soon after.
`dp_review.mistakes.MISTAKES["Noise on a copy"].wrong` says what happens, and so for each name of
the table."""


class Measurement(NamedTuple):
    """The number of a mistake's broken and of its sound form."""

    broken: float
    sound: float


@dataclass(frozen=True, kw_only=True)
class Edge:
    """A section of the page: an entry of edges.toml.

    Args:
        name: the mistake in a few words.
        edge: number of the section. severity: what is at stake. group: part of the page.
        library: what this library does about it, Markdown; begins with a verdict in bold.
        wrong, source, seen: see `dp_review.mistakes.Mistake`.
        checks: of the mistake of this name, if a review finds it.
        number: name of a function of edge_numbers.py that measures it; "": the first check does.
        limit: at most (or, ``at_least``, at least) this is the number of a sound form.
        measured: the number that is measured, in words; "": that of its first check.

    Guarantees: test_the_line_lies_between_broken_and_sound.
    """

    name: str
    edge: int
    severity: str
    group: str
    library: str
    wrong: str
    source: str = ""
    seen: str = ""
    checks: Sequence[str] = ()
    number: str = ""
    limit: float = 0.0
    at_least: bool = False
    measured: str = ""

    def measure(self) -> Measurement:
        """Measures both forms."""
        if not self.number:
            return measure_by_review(MISTAKES[self.name])
        function = getattr(edge_numbers, self.number)
        return Measurement(broken=function(True), sound=function(False))


def measure_by_review(mistake: Mistake) -> Measurement:
    """The numbers of a mistake's first check; of the accounting in units of what is stated."""
    numbers = []
    for sound in (False, True):
        review = mistake.review(sound=sound)
        stated = (review.claims.epsilon or 1.0) if mistake.checks[0] == "accounting" else 1.0
        numbers.append(review[mistake.checks[0]].number / stated)
    return Measurement(*numbers)


def read_edges() -> list[Edge]:
    """The sections in their order; words, source and checks are those of the mistake."""
    table = tomllib.loads(Path(__file__).with_name("edges.toml").read_text("utf-8"))
    edges = []
    for name, entry in table.items():
        mistake = MISTAKES.get(name)
        if mistake is not None:
            entry |= {x: getattr(mistake, x) for x in ("wrong", "source", "seen", "checks")}
        edges.append(Edge(name=name, **entry))
    return edges


EDGES = read_edges()


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


def section(mistake: Edge) -> str:
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
        if mistake.name not in {edge.name for edge in EDGES}:
            name = f"[{mistake.name}]({mistake.source})" if mistake.source else mistake.name
            checks = ", ".join(mistake.checks)
            rows.append([name, checks, *map(number, measure_by_review(mistake))])
    return markdown_table(rows)


def page() -> str:
    """docs/evidence/edges.md as the mistakes are now, measured now."""
    sections = [*map(wrapped, HEAD.split("\n\n"))]
    for group in GROUPS:
        edges = [mistake for mistake in EDGES if mistake.group == group]
        sections += [f"## {group}", *map(section, edges)]
    sections += ["## Reported elsewhere", wrapped(REPORTED), reported_table()]
    return "\n\n".join(sections) + "\n"


if __name__ == "__main__":
    write_atomically(PAGE, page(), shared=True)
