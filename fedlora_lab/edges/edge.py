"""What a sharp edge is: a mistake, its sound form, and one number that tells them apart."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from fedlora_lab.checks import check_one_of, check_whole

SEVERITIES = ("fatal", "serious", "bug", "bug and leak", "utility", "honesty", "note")
GROUPS = ("Counting", "Learning", "Saying what was found", "Chance")
ANSWERS = ("Cannot say it", "Refuses", "Measures", "Tells")
SIDES = ("at most", "at least")


class Told(NamedTuple):
    """One measurement of an edge: of the broken form and of the sound one."""

    broken: float
    sound: float


@dataclass(frozen=True, kw_only=True)
class Edge:
    """One way to go wrong, as something that runs.

    Args:
        number: 1 to 29, as on the page of sharp edges.
        title: the mistake in a few words.
        severity: one of `SEVERITIES`; what they mean stands on the page.
        group: one of `GROUPS`, the section of the page.
        wrong: what really happens, Markdown.
        library: what this library does about it, Markdown; begins with one of `ANSWERS` in bold and names its tests.
        what: what the number is, in words, with its unit.
        broken, fixed: the same small mechanism, wrong and right. They live here and in the course only.
        measure: takes either and gives the number; the same number every time.
        line: the number that a sound mechanism keeps to; ``side``: from which side.

    Guarantees: the broken form crosses its line, the sound one does not
        (tests/test_edges.py::test_the_line_lies_between_broken_and_sound).
    """

    number: int
    title: str
    severity: str
    group: str
    wrong: str
    library: str
    what: str
    broken: Callable[..., Any]
    fixed: Callable[..., Any]
    measure: Callable[[Callable[..., Any]], float]
    line: float
    side: str = "at most"

    def __post_init__(self) -> None:
        check_whole("number", self.number, 1)
        for name, allowed in (("severity", SEVERITIES), ("group", GROUPS), ("side", SIDES)):
            check_one_of(name, getattr(self, name), allowed)
        check_one_of("answer", self.answer, ANSWERS)

    @property
    def answer(self) -> str:
        """What the library does, in the page's few words."""
        found = re.match(r"\*\*(.*?)\.?\*\*", self.library)
        return found[1] if found else ""

    @property
    def tests(self) -> tuple[str, ...]:
        """Names of the tests that stand against it."""
        return tuple(re.findall(r"`(test_\w+)`", self.library))

    def told(self) -> Told:
        """The two numbers, measured now."""
        return Told(float(self.measure(self.broken)), float(self.measure(self.fixed)))

    def keeps(self, value: float) -> bool:
        """Whether a number is on the sound side of the line."""
        return value <= self.line if self.side == "at most" else value >= self.line

    def __repr__(self) -> str:
        return f"Edge {self.number}, {self.severity}: {self.title}"
