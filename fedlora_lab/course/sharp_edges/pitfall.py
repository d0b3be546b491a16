"""A pitfall: one way to go wrong, as a broken and a sound form that run, and the words about it.

The words stand in pitfalls.toml, by number.
"""

import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedlora_lab._utils.validation import check_one_of, check_whole
from fedlora_lab.audit.bounds import best_threshold_bound

SEVERITIES = ("fatal", "serious", "bug", "bug and leak", "utility", "honesty", "note")
GROUPS = ("Counting", "Learning", "Saying what was found", "Chance")
ANSWERS = ("Not expressible", "Refuses", "Measures", "Tells")
SIDES = ("at most", "at least")
_TEXTS = tomllib.loads(Path(__file__).with_name("pitfalls.toml").read_text(encoding="utf-8"))

UP_TO_1 = 1 + 1e-9
"""The line of a number that may reach 1, rounding allowed for."""


class Measurement(NamedTuple):
    """What a pitfall's metric gives for its broken and its sound form."""

    broken: float
    sound: float


@dataclass(frozen=True, kw_only=True)
class Pitfall:
    """One way to go wrong, as something that runs.

    Args:
        number: 1 to 29, as on the page of sharp edges.
        metric: runs a small mechanism with the mistake (``True``) or without it (``False``) and
            returns a number; the same number every time.
        line: the number that a sound mechanism keeps to.
        side: the side of the line that is sound, "at most" or "at least".
        title: the mistake in a few words.
        severity: one of `SEVERITIES`; their meaning stands on the page.
        group: one of `GROUPS`, the section of the page.
        wrong: what really happens, Markdown.
        library: what this library does about it, Markdown; begins with one of `ANSWERS` in bold and
            names its tests.
        what: what the number is, in words, with its unit.

    Guarantees: the broken form crosses its line, the sound one does not
        (test_the_line_lies_between_broken_and_sound).
    """

    number: int
    metric: Callable[[bool], float]
    line: float
    side: str = "at most"
    title: str
    severity: str
    group: str
    wrong: str
    library: str
    what: str

    def __post_init__(self) -> None:
        check_whole("number", self.number, 1)
        for name, allowed in (("severity", SEVERITIES), ("group", GROUPS), ("side", SIDES)):
            check_one_of(name, getattr(self, name), allowed)
        check_one_of("answer", self.answer, ANSWERS)

    @property
    def answer(self) -> str:
        """What the library does, in the page's few words."""
        bold = re.match(r"\*\*(.*?)\.?\*\*", self.library)
        return bold[1] if bold else ""

    @property
    def tests(self) -> tuple[str, ...]:
        """Names of the tests that stand against it."""
        return tuple(re.findall(r"`(test_\w+)`", self.library))

    def measure(self) -> Measurement:
        """Measures both forms now."""
        return Measurement(broken=self.metric(True), sound=self.metric(False))

    def is_sound(self, value: float) -> bool:
        """Whether a number is on the sound side of the line."""
        return value <= self.line if self.side == "at most" else value >= self.line

    def __repr__(self) -> str:
        return f"Pitfall {self.number}, {self.severity}: {self.title}"


def pitfall(
    number: int, line: float, side: str = "at most"
) -> Callable[[Callable[[bool], float]], Pitfall]:
    """Makes a metric the pitfall of this number, with its words from pitfalls.toml.

    Args: number, line, side: see `Pitfall`.
    """
    words: Any = {name: " ".join(text.split()) for name, text in _TEXTS[str(number)].items()}
    return lambda metric: Pitfall(number=number, metric=metric, line=line, side=side, **words)


def proved_epsilon(inside: np.ndarray, outside: np.ndarray, delta: float) -> float:
    """Returns the epsilon that the scores of an attack prove, 95 % sure.

    Args:
        inside, outside: (n,) scores of independent runs with and without the example; the first
            halves choose the threshold, the second halves are judged by it.
        delta: of the privacy definition.
    """
    (learn_in, judge_in), (learn_out, judge_out) = (np.array_split(x, 2) for x in (inside, outside))
    learn = np.concatenate([learn_in, learn_out])
    grid = np.unique(np.quantile(learn, np.linspace(0.001, 0.999, 200)))
    bound = partial(best_threshold_bound, delta=delta, significance=0.05)
    best = grid[int(np.argmax([bound(learn_in, learn_out, thresholds=[t]) for t in grid]))]
    return bound(judge_in, judge_out, thresholds=[best])
