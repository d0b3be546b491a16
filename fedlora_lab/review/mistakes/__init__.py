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

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from fedlora_lab._utils.validation import check
from fedlora_lab.review.claims import Claims, Loader, Step
from fedlora_lab.review.mistakes import model, numbers, steps
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

DP_SGD_CLAIMS = Claims(clip_norm=CLIP, noise_multiplier=NOISE, denominator=BATCH)
FORMS = vars(model) | vars(steps)
"""Name -> step, loader, or function that makes data."""
DRAWS = 16
"""Calls from which a review of the catalogue measures noise."""


class Measurement(NamedTuple):
    """The number of a mistake's broken and of its sound form."""

    broken: float
    sound: float


class Subject(NamedTuple):
    """What `fl.review.step` takes: a step, a function that makes its data, and what it claims."""

    function: Step | None
    data: Callable[[], list]
    claims: Claims
    loader: Loader | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Mistake:
    """One way to go wrong, as something that runs: an entry of mistakes.toml.

    Args:
        name: the mistake in a few words.
        wrong: what really happens, Markdown.
        checks: those of `fl.review.CHECKS` that must call the broken form broken; the number is
            that of the first, where none of its own is measured.
        steps: names of the broken and the sound step; (): claims alone are wrong.
        data: name of the function that makes the steps' data.
        loaders: names of the broken and the sound loader; (): none.
        claims: what both forms claim beside `DP_SGD_CLAIMS`. broken_claims: what the broken one
            claims otherwise.
        number: name of the function that measures it; "": a check does.
        limit: at most (or, ``at_least``, at least) this is the number of a sound form.
        source: address of a public report; "": none.
        seen: what of it we have read: "thread", "code" (the authors' released code at the named
            commit), or "text" (a paper).
        edge: number of its section in docs/sharp_edges.md; 0: none. The next ones are of edges.
        severity: what is at stake, see there. group: part of the page.
        library: what this library does about it, Markdown; begins with a verdict in bold.
        measured: the number that is measured, in words; "": that of its first check.

    Guarantees: test_every_mistake_is_found_by_its_check, test_no_sound_form_is_blamed,
        test_the_line_lies_between_broken_and_sound.
    """

    name: str
    wrong: str
    checks: Sequence[str] = ()
    steps: Sequence[str] = ()
    data: str = "examples"
    loaders: Sequence[str] = ()
    claims: Mapping[str, Any] = field(default_factory=dict)
    broken_claims: Mapping[str, Any] = field(default_factory=dict)
    number: str = ""
    limit: float = 0.0
    at_least: bool = False
    source: str = ""
    seen: str = ""
    edge: int = 0
    severity: str = ""
    group: str = ""
    library: str = ""
    measured: str = ""

    def subject(self, *, sound: bool = False) -> Subject:
        """What is reviewed: its broken form, or the sound one."""
        check(bool(self.checks), "name", self.name, "a mistake that a step or a claim shows")
        stated = self.claims if sound else {**self.claims, **self.broken_claims}
        function = FORMS[self.steps[sound]] if self.steps else None
        loader = FORMS[self.loaders[sound]] if self.loaders else None
        return Subject(function, FORMS[self.data], replace(DP_SGD_CLAIMS, **stated), loader)

    def review(self, *, sound: bool = False, draws: int = DRAWS) -> Review:
        """Reviews its broken form, or the sound one.

        Args: sound: which. draws: as of `fl.review.step`.
        """
        function, data, claims, loader = self.subject(sound=sound)
        return step(function, data(), claims, loader=loader, draws=draws)

    def measure(self) -> Measurement:
        """Measures both forms."""
        return Measurement(broken=measured(self, sound=False), sound=measured(self, sound=True))

    def __repr__(self) -> str:
        return f"Mistake: {self.name}"


@cache  # the page and the tests ask more than once
def reviewed(mistake: Mistake, *, sound: bool) -> Review:
    """Reviews the broken or the sound form of a mistake."""
    return mistake.review(sound=sound)


@cache
def measured(mistake: Mistake, *, sound: bool) -> float:
    """Measures the number of one form."""
    if mistake.number:
        return getattr(numbers, mistake.number)(not sound)
    review = reviewed(mistake, sound=sound)
    number = review[mistake.checks[0]].number
    # Of the accounting: what is spent in units of what is stated.
    return number / (review.claims.epsilon or 1.0) if "accounting" in mistake.checks else number


TABLE = tomllib.loads(Path(__file__).with_name("mistakes.toml").read_text(encoding="utf-8"))
MISTAKES: dict[str, Mistake] = {name: Mistake(name=name, **entry) for name, entry in TABLE.items()}
"""Name -> mistake."""
EDGES: dict[int, Mistake] = {mistake.edge: mistake for mistake in MISTAKES.values() if mistake.edge}
"""Number of a sharp edge -> mistake."""
