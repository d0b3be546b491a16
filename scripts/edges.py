"""Write docs/sharp_edges.md from `fedlora_lab.edges`: every edge, what is done about it, and its two numbers, measured.

    python scripts/edges.py            rewrites the page
    python scripts/edges.py --check    leaves with status 1 where the page is not that of a new run

A few seconds: every number on the page is measured anew.
"""

import argparse
import sys
from pathlib import Path

from fedlora_lab.edges import ALL, GROUPS, Edge, Told
from fedlora_lab.files import write_atomically
from fedlora_lab.summary import markdown, shown_whole

PAGE = Path(__file__).resolve().parent.parent / "docs" / "sharp_edges.md"
WIDTH = 120

HEAD = """\
# Sharp edges

Twenty-nine ways in which differentially private federated LoRA goes wrong without looking wrong. Most were seen in
published code. What counts here is the mechanism; who made the mistake does not matter, everybody makes some of them.

*Severity.* **Fatal**: the stated ε means nothing. **Serious**: it is wrong by a factor that matters. **Bug**:
something other than what was meant is computed. **Utility**: privacy holds, learning suffers. **Honesty**: the number
is true and misleads. **Note**: a limit to know of.

*What the library does.* **Cannot say it**: there is no way to write the mistake with plans, rows and rules.
**Refuses**: it is answered with an error, or with no ε. **Measures**: it is allowed, and seen in what a run records.
**Tells**: only words stand against it, here and in the course; *no check exists yet*. Names in brackets are tests.

*Measured.* Every edge runs: a broken form and a sound one of the same small mechanism, and one number that tells them
apart. `fl.edges.ALL[3].told()` measures again, `fl.edges.table()` all of them; this page is written from a run of it
(`python scripts/edges.py`), and a test holds the two equal."""


def number(value: float) -> str:
    """A measured number in three figures, or "< 0.001"; what is left by rounding is zero."""
    return "0" if abs(value) <= 1e-9 else "< 0.001" if abs(value) < 1e-3 else f"{value:.3g}"


def line(edge: Edge) -> str:
    """Where the line is, in words."""
    return f"{edge.side} {number(edge.line)}"


def anchor(edge: Edge) -> str:
    """The place of an edge's section on the page, as GitHub and the site name it."""
    kept = "".join(c for c in heading(edge).lower() if c.isalnum() or c in "_- ")
    return kept.replace(" ", "-")


def heading(edge: Edge) -> str:
    """An edge's heading without its marks."""
    return f"{edge.number}. {edge.title} ({edge.severity})"


def section(edge: Edge, told: Told) -> str:
    """One edge in Markdown."""
    measured = (
        f"*Measured*: {edge.what}. Broken **{number(told.broken)}**, sound **{number(told.sound)}**; "
        f"the line: {line(edge)}."
    )
    return "\n\n".join([f"### {heading(edge)}", *map(wrapped, (edge.wrong, edge.library, measured))])


def wrapped(text: str) -> str:
    """Lines of at most 120 characters, broken at spaces."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > WIDTH:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return "\n".join(lines)


def page() -> str:
    """docs/sharp_edges.md as the edges are now, measured now."""
    told = {n: edge.told() for n, edge in ALL.items()}
    rows = [["edge", "severity", "the library", "broken", "sound", "the line"]]
    for n, edge in ALL.items():
        place = f"[{edge.number}. {edge.title}](#{anchor(edge)})"
        rows.append([place, edge.severity, edge.answer.lower(), *map(number, told[n]), line(edge)])
    parts = [HEAD, f"<!-- edges -->\n{markdown(rows)}\n<!-- /edges -->"]
    for group in GROUPS:
        mine = [edge for edge in ALL.values() if edge.group == group]
        parts += [f"## {group}", *(section(edge, told[edge.number]) for edge in mine)]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    new = page()
    if parser.parse_args().check:
        sys.exit(0 if new == PAGE.read_text(encoding="utf-8") else f"{PAGE.name}: run python scripts/edges.py")
    write_atomically(PAGE, shown_whole(new), shared=True)
    print(f"{PAGE}: {len(ALL)} edges")


if __name__ == "__main__":
    main()
