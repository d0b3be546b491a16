"""The catalogue of mistakes: each with its words, and a broken and a sound form to review.

Most were reported in public trackers or found in papers' code, and rebuilt small.

>>> import dp_review
>>> added_twice = dp_review.mistakes.MISTAKES["A sum added to itself"]
>>> forms = added_twice.review(), added_twice.review(sound=True)
>>> [round(review["sensitivity"].number, 3) for review in forms]  # in clip norms
[2.0, 1.0]
"""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from dp_review.claims import Claims, Loader, Step
from dp_review.mistakes import model, steps
from dp_review.mistakes.model import (
    BATCH,
    CLIP,
    NOISE,
    clip,
    dp_sgd,
    example_gradients,
    examples,
)
from dp_review.review import Review, step

__all__ = [
    "BATCH",
    "CLIP",
    "DP_SGD_CLAIMS",
    "MISTAKES",
    "NOISE",
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


class Subject(NamedTuple):
    """What `dp_review.step` takes: a step, a function that makes its data, and what it claims."""

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
        checks: those of `dp_review.CHECKS` that must call the broken form broken.
        steps: names of the broken and the sound step; (): claims alone are wrong.
        data: name of the function that makes the steps' data.
        loaders: names of the broken and the sound loader; (): none.
        claims: what both forms claim beside `DP_SGD_CLAIMS`. broken_claims: what the broken one
            claims otherwise.
        source: address of a public report; "": none.
        seen: what of it we have read: "thread", "code" (the authors' released code at the named
            commit), or "text" (a paper).

    Guarantees: test_every_mistake_is_found_by_its_check, test_no_sound_form_is_blamed.
    """

    name: str
    wrong: str
    checks: Sequence[str]
    steps: Sequence[str] = ()
    data: str = "examples"
    loaders: Sequence[str] = ()
    claims: Mapping[str, Any] = field(default_factory=dict)
    broken_claims: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    seen: str = ""

    def subject(self, *, sound: bool = False) -> Subject:
        """What is reviewed: its broken form, or the sound one."""
        stated = self.claims if sound else {**self.claims, **self.broken_claims}
        function = FORMS[self.steps[sound]] if self.steps else None
        loader = FORMS[self.loaders[sound]] if self.loaders else None
        return Subject(function, FORMS[self.data], replace(DP_SGD_CLAIMS, **stated), loader)

    @cache  # noqa: B019  # a mistake lives as long as the catalogue
    def review(self, *, sound: bool = False) -> Review:
        """Reviews its broken form, or the sound one."""
        function, data, claims, loader = self.subject(sound=sound)
        return step(function, data(), claims, loader=loader, draws=DRAWS)


TABLE = tomllib.loads(Path(__file__).with_name("mistakes.toml").read_text(encoding="utf-8"))
MISTAKES: dict[str, Mistake] = {name: Mistake(name=name, **entry) for name, entry in TABLE.items()}
"""Name -> mistake."""
