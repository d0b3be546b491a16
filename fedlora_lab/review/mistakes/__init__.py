"""The one catalogue of mistakes: each with its words, a broken and a sound form, and one number.

Some are the sections of docs/sharp_edges.md, some were reported in public trackers and papers'
code; most are steps that `fl.review.step` must call broken, and whose sound form it must pass.

>>> import fedlora_lab as fl
>>> one = fl.review.mistakes.MISTAKES["A sum added to itself"]
>>> one
Mistake: A sum added to itself
>>> [round(number, 3) for number in one.measure()]  # how far one example reaches, in clip norms
[2.0, 1.0]
"""

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from fedlora_lab.review.claims import CHECKS
from fedlora_lab.review.mistakes.engine_bugs import BUGS
from fedlora_lab.review.mistakes.model import (
    BATCH,
    CLIP,
    NOISE,
    clip,
    dp_sgd,
    example_gradients,
    examples,
)
from fedlora_lab.review.mistakes.numbers import NUMBERS
from fedlora_lab.review.mistakes.steps import DP_SGD_CLAIMS, STEPS, Subject
from fedlora_lab.review.review import Review, step

__all__ = [
    "BATCH",
    "BUGS",
    "CLIP",
    "DP_SGD_CLAIMS",
    "EDGES",
    "MISTAKES",
    "NOISE",
    "Measurement",
    "Mistake",
    "clip",
    "dp_sgd",
    "example_gradients",
    "examples",
]

TEXTS = tomllib.loads(Path(__file__).with_name("mistakes.toml").read_text(encoding="utf-8"))
DRAWS = 16
"""Calls from which a review of the catalogue measures noise."""


class Measurement(NamedTuple):
    """The number of a mistake's broken and of its sound form."""

    broken: float
    sound: float


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """One way to go wrong, as something that runs.

    Args:
        name: the mistake in a few words.
        wrong: what really happens, Markdown.
        checks: those of `fl.review.CHECKS` that must call the broken form broken; the number is
            that of the first, where none of its own is measured.
        source: address of a public report; "": none.
        seen: what of it we have read: "thread", "code" (the authors' released code at the named
            commit), or "text" (a paper).
        edge: number of its section in docs/sharp_edges.md; 0: none. The next ones are of edges.
        severity: what is at stake, see there. group: part of the page.
        library: what this library does about it, Markdown; begins with a verdict in bold.
        what: the number that is measured, in words, with its unit.

    Guarantees: test_every_mistake_is_found_by_its_check, test_no_sound_form_is_blamed,
        test_the_line_lies_between_broken_and_sound.
    """

    name: str
    wrong: str
    checks: tuple[str, ...] = ()
    source: str = ""
    seen: str = ""
    edge: int = 0
    severity: str = ""
    group: str = ""
    library: str = ""
    what: str = ""

    @property
    def broken(self) -> Subject | None:
        """What is reviewed; None where no single step shows the mistake."""
        return STEPS[self.name][0] if self.checks else None

    @property
    def sound(self) -> Subject | None:
        """The same without the mistake."""
        return STEPS[self.name][1] if self.checks else None

    @property
    def answer(self) -> str:
        """What the library does, in the page's few words."""
        bold = re.match(r"\*\*(.*?)\.?\*\*", self.library)
        return bold[1] if bold else ""

    @property
    def tests(self) -> tuple[str, ...]:
        """Names of the tests that stand against it."""
        return tuple(re.findall(r"`(test_\w+)`", self.library))

    @property
    def line(self) -> str:
        """The numbers that a sound form may have, in words."""
        return str(NUMBERS[self.name][1]) if self.name in NUMBERS else CHECKS[self.checks[0]].line

    def review(self, *, sound: bool = False, draws: int = DRAWS, **options: Any) -> Review:
        """Reviews its broken form, or the sound one.

        Args: sound: which. draws, options: as of `fl.review.step`.
        """
        subject = self.sound if sound else self.broken
        if subject is None:
            raise ValueError(f"name={self.name!r}: expected a mistake that a step shows")
        function, data, claims, loader = subject
        return step(function, data(), claims, loader=loader, draws=draws, **options)

    def measure(self) -> Measurement:
        """Measures both forms."""
        return measured(self.name)

    def __repr__(self) -> str:
        return f"Mistake: {self.name}"


@cache  # the page and the tests ask more than once
def reviewed(name: str, *, sound: bool) -> Review:
    """Reviews the broken or the sound form of a mistake."""
    return MISTAKES[name].review(sound=sound)


@cache
def measured(name: str) -> Measurement:
    """Measures the number of both forms of a mistake."""
    if name in NUMBERS:
        metric = NUMBERS[name][0]
        return Measurement(broken=metric(True), sound=metric(False))
    check = MISTAKES[name].checks[0]
    reviews = [reviewed(name, sound=sound) for sound in (False, True)]
    # Of the accounting: what is spent in units of what is stated.
    units = [x.claims.epsilon or 1.0 if check == "accounting" else 1.0 for x in reviews]
    return Measurement(*(x[check].number / unit for x, unit in zip(reviews, units)))


def _mistake(name: str, text: dict[str, Any]) -> Mistake:
    fields: dict[str, Any] = {
        key: " ".join(x.split()) if isinstance(x, str) else x for key, x in text.items()
    }
    checks = tuple(fields.pop("checks", ()))
    measured = "ε really spent, in units of the stated one"
    if checks and checks[0] != "accounting":
        measured = CHECKS[checks[0]].asks
    fields.setdefault("what", measured)
    return Mistake(name=name, checks=checks, **fields)


MISTAKES: dict[str, Mistake] = {name: _mistake(name, text) for name, text in TEXTS.items()}
"""Name -> mistake."""
EDGES: dict[int, Mistake] = {mistake.edge: mistake for mistake in MISTAKES.values() if mistake.edge}
"""Number of a sharp edge -> mistake."""
