"""Compare the amplification number of published settings with what was published.

    python scripts/amplification_of_papers.py

Fills the table and the counts of docs/amplification.md from amplification_of_papers.toml; a test
holds the page to it. What is not published is calibrated with the package's accountant.
"""

import math
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

from readme import filled, linked

from fedlora_lab import theory
from fedlora_lab._utils.files import write_atomically
from fedlora_lab.privacy.accounting import noise_multiplier
from fedlora_lab.report.summary_table import markdown_table, require_visible

ROOT = Path(__file__).resolve().parent.parent
SETTINGS, PAGE = Path(__file__).with_suffix(".toml"), ROOT / "docs" / "amplification.md"
MOVE, FREEZE = 2.0, 4.0
"""Below the first A may move, above the second it should rest. Read off the 12 client-level runs
of digits before this table was made, and left as they were."""
TARGET, MARGIN = 0.5, 1.0
"""The amplification number of the suggested rate; percent within which single numbers are level."""


@dataclass(frozen=True)
class Row:
    """One comparison; the fields are described in the TOML file."""

    source: str
    tag: str
    setting: str
    data: str
    epsilon: float = 0.0
    mover: str = "both"
    unit: str = "example"
    d_in: int = 0
    rank: int = 0
    scaling: float = 0.0
    rate: list[float] = field(default_factory=lambda: [1.0])
    clip: list[float] = field(default_factory=lambda: [1.0])
    batch: int = 1
    averaged: int = 1
    releases: int = 0
    steps: int = 0
    noise: float | None = None
    delta: float = 0.0
    examples: int = 0
    share: float = 1.0
    accountant: str = "pld"
    moved: list[float] = field(default_factory=list)
    frozen: list[float] = field(default_factory=list)
    ahead: str = ""

    @cached_property
    def sigma(self) -> float:
        """The published noise multiplier, or the calibrated one."""
        if self.noise is not None:
            return self.noise
        rate = self.share * self.batch / self.examples
        return noise_multiplier(self.epsilon, self.delta, rate, self.steps, self.accountant)

    def std(self, rate: float, clip: float) -> float:
        """The noise of one release on an entry of the averaged factor.

        With AdamW the noise is larger than the gradient in every entry, and Adam divides by its
        size: an entry moves by about the rate, whatever the noise multiplier.
        """
        if self.unit == "client":
            return self.sigma * clip / self.averaged
        step = rate if self.unit == "adam" else rate * self.sigma * clip / self.batch
        return step / math.sqrt(self.averaged)

    def ends(self) -> tuple[float, float]:
        """The smallest and the largest noise of the grid."""
        found = [self.std(rate, clip) for rate in self.rate for clip in self.clip]
        return min(found), max(found)

    def times(self) -> int:
        """How often noise falls on A."""
        return self.releases if self.mover == "both" else self.releases // 2

    def amplification(self) -> tuple[float, float]:
        """rho at both ends of the grid."""
        if not self.epsilon:
            return 0.0, 0.0
        low, high = (theory.amplification(x, self.times(), self.d_in) for x in self.ends())
        return low, high

    def output_noise(self) -> tuple[float, float]:
        """Variance that noise alone leaves in an output, for inputs of mean square one."""
        if not self.epsilon:
            return 0.0, 0.0
        shape, times = (1, self.rank, self.d_in), (self.times(), self.times())
        low, high = (
            theory.accumulated_noise_terms(*shape, x, x, *times, scaling=self.scaling).total
            for x in self.ends()
        )
        return low, high

    def suggested_rates(self) -> tuple[float, float] | None:
        """The rates at which rho is TARGET, at both ends of the clips; ``None``: any rate."""
        if not self.epsilon or self.unit == "client":
            return None
        found = [self.std(1.0, clip) for clip in self.clip]
        low, high = (
            math.sqrt(TARGET / theory.amplification(std, self.times(), self.d_in))
            for std in (max(found), min(found))
        )
        return low, high

    def predicted(self) -> str:
        """What the amplification number says to do with A."""
        low, high = self.amplification()
        return "move" if high < MOVE else "freeze" if low > FREEZE else "open"

    def outcome(self) -> str:
        """Which side was ahead: "moved", "frozen", "level", "unsettled", or "" where not found."""
        if self.ahead or not self.moved:
            return self.ahead
        gap = self.moved[0] - self.frozen[0]
        if len(self.moved) == len(self.frozen) == 1:
            return "level" if abs(gap) <= MARGIN else "moved" if gap > 0 else "frozen"
        if abs(gap) <= math.hypot(self.moved[1], self.frozen[1]):
            return "unsettled"
        return "moved" if gap > 0 else "frozen"

    def agrees(self) -> bool | None:
        """Whether prediction and outcome agree; ``None`` where one of them says nothing."""
        predicted, outcome = self.predicted(), self.outcome()
        if predicted == "open" or outcome in ("", "unsettled"):
            return None
        return outcome in (("moved", "level") if predicted == "move" else ("frozen",))


def rows() -> Iterator[Row]:
    """All comparisons of the file, in its order."""
    papers: dict[str, Any] = tomllib.loads(SETTINGS.read_text(encoding="utf-8"))
    for paper in papers.values():
        own = paper.pop("rows")
        for row in own:
            yield Row(**{**paper, **row})


AHEAD = {"moved": "moved", "frozen": "rested", "level": "level", "unsettled": "not settled"}
ADVICE = {"move": "may move", "freeze": "should rest", "open": "open"}
AGREES = {True: "yes", False: "**no**", None: "–"}
HEAD = ["data", "ε", "A moves", "ρ", "so A", "output noise", "A moved", "A rested", "ahead"]
HEAD += ["agrees", "rate for ρ = 0.5"]


def span(ends: tuple[float, float] | None) -> str:
    """Two ends in two digits, one where they are the same."""
    if ends is None:
        return "any"
    low, high = (f"{x:.2g}" if x < 100 else f"{float(f'{x:.2g}'):.0f}" for x in ends)
    return low if low == high else f"{low} to {high}"


def accuracy(numbers: list[float]) -> str:
    """Percent, with half of the interval where there is one."""
    return " ± ".join(f"{x:g}" for x in numbers) if numbers else "not found"


def line(row: Row) -> list[str]:
    """One comparison as a line of its paper's table."""
    outcome = row.outcome()
    return [
        row.data,
        f"{row.epsilon:g}" if row.epsilon else "none",
        row.mover,
        span(row.amplification()),
        ADVICE[row.predicted()],
        span(row.output_noise()),
        accuracy(row.moved),
        accuracy(row.frozen),
        AHEAD.get(outcome, "–"),
        AGREES[row.agrees()],
        span(row.suggested_rates()),
    ]


def tables(all_rows: list[Row]) -> str:
    """A table for each paper and setting."""
    parts: list[str] = []
    for (source, setting), group in groupby(all_rows, key=lambda row: (row.source, row.setting)):
        mine = list(group)
        tags = " and ".join(sorted({row.tag for row in mine}))
        parts += [f"**{linked(source)}**, {setting} ({tags}).", ""]
        parts += [markdown_table([HEAD, *map(line, mine)]), ""]
    return "\n".join(parts).rstrip()


def counts(all_rows: list[Row]) -> str:
    """How often the number was right, beside the rule that A always rests."""
    groups = {
        "both factors at once, with noise": lambda r: r.mover == "both" and r.epsilon,
        "in turns, with noise": lambda r: r.mover == "turns" and r.epsilon,
        "both factors at once, without privacy": lambda r: r.mover == "both" and not r.epsilon,
        "in turns, without privacy": lambda r: r.mover == "turns" and not r.epsilon,
    }
    head = ["A moves", "comparisons", "decided", "ρ was right", "*A always rests* was right"]
    lines = [head]
    for name, chosen in groups.items():
        mine = [row for row in all_rows if chosen(row) and row.outcome()]
        decided = [row for row in mine if row.agrees() is not None]
        right = sum(bool(row.agrees()) for row in decided)
        frozen = sum(row.outcome() == "frozen" for row in decided)
        lines.append([name, *(str(x) for x in (len(mine), len(decided), right, frozen))])
    return markdown_table(lines)


def page() -> str:
    """docs/amplification.md with its generated parts."""
    all_rows = list(rows())
    parts = {"counts": counts(all_rows), "papers": tables(all_rows)}
    return filled(PAGE.read_text(encoding="utf-8"), parts)


if __name__ == "__main__":
    write_atomically(PAGE, require_visible(page()), shared=True)
