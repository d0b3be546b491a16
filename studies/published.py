"""Do rho or v name the winner in somebody else's setting? 45 published comparisons.

    python -m studies.published

Computes both numbers of the settings in published.toml, writes results/published.csv, and fills the
table of studies/logbook.md. Nothing is trained. A noise multiplier that is not published is
calibrated.

The rule for rho was fixed before: A may move below 2 and should rest above 4, limits that were read
off twelve runs on digits. That for v, A may move up to 0.35, was applied afterwards.
"""

import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from fedlora_lab import theory
from fedlora_lab._utils.files import write_atomically
from fedlora_lab._utils.markdown import fill_blocks, markdown_table
from fedlora_lab.privacy.accounting import noise_multiplier
from fedlora_lab.recipes.tuned_rates import OUTPUT_VARIANCE
from studies import RESULTS, ROOT

SETTINGS = Path(__file__).with_suffix(".toml")
FRAME = RESULTS / "published.csv"
PAGE = ROOT / "studies" / "logbook.md"
MOVE, REST = 2.0, 4.0
"""rho below which A may move, and above which it should rest."""
LEVEL = 1.0
"""Points within which single numbers count as level."""
GROUPS = {
    "both factors at once, with noise, SGD": "mover == 'both' and epsilon > 0 and unit != 'adam'",
    "both factors at once, with noise, AdamW": "mover == 'both' and epsilon > 0 and unit == 'adam'",
    "in turns, with noise": "mover == 'turns' and epsilon > 0",
    "both factors at once, without privacy": "mover == 'both' and epsilon == 0",
    "in turns, without privacy": "mover == 'turns' and epsilon == 0",
}


@dataclass(frozen=True)
class Comparison:
    """One comparison; the fields are described in published.toml."""

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
        q = self.share * self.batch / self.examples
        return noise_multiplier(self.epsilon, self.delta, q, self.steps, self.accountant)

    def std(self, rate: float, clip: float) -> float:
        """The noise of one release on an entry of the averaged factor.

        With AdamW the noise is larger than the gradient in every entry, and Adam divides by its
        size: an entry moves by about the rate, whatever the noise multiplier.
        """
        step = rate if self.unit == "adam" else rate * self.sigma * clip / self.batch
        return step / math.sqrt(self.averaged)

    def numbers(self) -> list[tuple[float, float]]:
        """rho and v at the quietest and at the loudest end of the grid."""
        if not self.epsilon:
            return [(0.0, 0.0)] * 2
        times = self.releases if self.mover == "both" else self.releases // 2
        found = [self.std(rate, clip) for rate in self.rate for clip in self.clip]
        return [
            (
                theory.noise_amplification(x, times, self.d_in),
                theory.output_variance(
                    self.rank, self.d_in, x, x, times, times, self.scaling
                ).total,
            )
            for x in (min(found), max(found))
        ]

    def outcome(self) -> str:
        """What was ahead: "moved", "frozen", "level", or "open" where intervals do not decide."""
        if self.ahead:
            return self.ahead
        gap = self.moved[0] - self.frozen[0]
        winner = "moved" if gap > 0 else "frozen"
        if len(self.moved) == 1:
            return "level" if abs(gap) <= LEVEL else winner
        return "open" if abs(gap) <= math.hypot(self.moved[1], self.frozen[1]) else winner


def side(ends: Sequence[float], move: float, rest: float) -> str:
    """What a number says of A over a whole grid: "moved", "frozen", or "open".

    Args:
        ends: the number at both ends of the grid.
        move, rest: up to where A may move, and beyond where it should rest.
    """
    return "moved" if max(ends) <= move else "frozen" if min(ends) > rest else "open"


def comparisons() -> list[Comparison]:
    """All comparisons of the file, in its order."""
    papers: dict[str, Any] = tomllib.loads(SETTINGS.read_text(encoding="utf-8"))
    return [
        Comparison(**{**{k: x for k, x in paper.items() if k != "rows"}, **row})
        for paper in papers.values()
        for row in paper["rows"]
    ]


def frame() -> pd.DataFrame:
    """A row a comparison: both numbers at both ends of its grid, what they say, and who led."""
    rows = []
    for one in comparisons():
        rho, v = zip(*one.numbers(), strict=True)
        rows.append(
            {
                "source": one.source,
                "setting": one.setting,
                "data": one.data,
                "epsilon": one.epsilon,
                "mover": one.mover,
                "unit": one.unit,
                "noise_multiplier": one.sigma if one.epsilon and one.unit != "adam" else math.nan,
                "rho_low": rho[0],
                "rho_high": rho[1],
                "v_low": v[0],
                "v_high": v[1],
                "by_rho": side(rho, MOVE, REST),
                "by_v": side(v, OUTPUT_VARIANCE, OUTPUT_VARIANCE),
                "ahead": one.outcome(),
            }
        )
    return pd.DataFrame(rows)


def table(runs: Any) -> str:
    """How often each rule names the winner, among the comparisons that rho and results decide."""
    head = ["A moves", "comparisons", "decided", "of these level", "ρ", "v ≤ 0.35"]
    lines = [[*head, "*always freeze A*", "*always move A*"]]
    for name, chosen in GROUPS.items():
        here = runs.query(chosen)
        decided = here[(here["by_rho"] != "open") & (here["ahead"] != "open")]
        won = decided[decided["ahead"] != "level"]
        named = [(won[rule] == won["ahead"]).sum() for rule in ("by_rho", "by_v")]
        always = [(won["ahead"] == what).sum() for what in ("frozen", "moved")]
        counts = [len(here), len(decided), len(decided) - len(won), *named, *always]
        lines.append([name, *map(str, counts)])
    return markdown_table(lines)


if __name__ == "__main__":
    found = frame()
    found.to_csv(FRAME, index=False, float_format="%.4g")
    page = PAGE.read_text(encoding="utf-8")
    write_atomically(PAGE, fill_blocks(page, {"published": table(found)}), shared=True)
