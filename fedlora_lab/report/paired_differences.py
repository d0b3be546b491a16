"""Papers against measurement: the paired difference of two methods, and a notebook's claims."""

from collections.abc import Iterable
from html import escape
from typing import NamedTuple

import pandas as pd

from fedlora_lab._utils.validation import check
from fedlora_lab.report.summary_table import t_interval

HEAD = ("claimed (source, its setting)", "here (our setting)", "holds?")


class PairedDifference(NamedTuple):
    """Mean difference of two methods over the seeds they share, with its 95 % interval (Student's
    t).

    >>> print(PairedDifference(0.02, 0.01, 0.03, seeds=3))
    +0.020 [+0.010, +0.030]
    """

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def holds(self) -> str:
        """Whether the first is ahead: "yes", "no" (the other is), or "cannot tell"."""
        return "yes" if self.low > 0 else "no" if self.high < 0 else "cannot tell"

    def __neg__(self) -> "PairedDifference":
        return PairedDifference(-self.mean, -self.high, -self.low, self.seeds)

    def __str__(self) -> str:
        mean, low, high = (f"{value:+.3f}".replace("-", "−") for value in self[:3])
        return f"{mean} [{low}, {high}]"


def final_difference(
    frame: pd.DataFrame, one: str, other: str, measure: str = "accuracy"
) -> PairedDifference:
    """Computes by how much one method is ahead of another after the last round, seed by seed.

    Args:
        frame: tidy, of one task.
        one, other: slugs; they must share two seeds.
        measure: of the whole model; larger is better.

    Guarantees: test_gap_is_the_paired_interval.

    >>> rows = [("t", m, s, 1, "all", "accuracy", v) for m, s, v in
    ...         [("a", 0, 0.8), ("a", 1, 0.9), ("b", 0, 0.7), ("b", 1, 0.8)]]
    >>> columns = ["task", "method", "seed", "round", "layer", "measure", "value"]
    >>> round(final_difference(pd.DataFrame(rows, columns=columns), "a", "b").mean, 3)
    0.1
    """
    from fedlora_lab.plots.tidy import last_values

    return paired_difference(last_values(frame, measure), one, other, "value")


def paired_difference(
    frame: pd.DataFrame, one: str, other: str, measure: str = "accuracy", level: float = 0.95
) -> PairedDifference:
    """Computes by how much one method is ahead of another in a column, seed by seed, with the
    interval.

    Args:
        frame: columns method, seed and ``measure``, one row for each pair of the first two.
        one, other: slugs; they must share two seeds.
        measure, level: the column, and the level of the interval, in (0, 1).

    >>> frame = pd.DataFrame({"method": ["a", "a", "b", "b"], "seed": [0, 1, 0, 1],
    ...                       "accuracy": [0.8, 0.9, 0.7, 0.8]})
    >>> round(paired_difference(frame, "a", "b").mean, 3)
    0.1
    """
    table = frame.pivot_table(measure, "seed", "method").reindex(columns=[one, other]).dropna()
    check(len(table) >= 2, "seeds", len(table), f"at least two that {one!r} and {other!r} share")
    mean, half = t_interval((table[one] - table[other]).to_numpy(), level)
    return PairedDifference(mean, mean - half, mean + half, len(table))


class ClaimsTable:
    """Rows (claim with its source, what was measured here, verdict) as a notebook shows them."""

    def __init__(self, rows: Iterable[tuple[str, str, str]]) -> None:
        self.rows = [tuple(map(str, row)) for row in rows]
        for row in self.rows:
            check(len(row) == 3, "row", row, "claim, measurement, verdict")

    def __repr__(self) -> str:
        return "\n".join(" | ".join(row) for row in [HEAD, *self.rows])

    def _repr_html_(self) -> str:
        def line(row: tuple[str, ...], tag: str) -> str:
            style = 'style="text-align:left;vertical-align:top"'
            return f"<tr>{''.join(f'<{tag} {style}>{escape(text)}</{tag}>' for text in row)}</tr>"

        body = "".join(line(row, "td") for row in self.rows)
        return f'<table style="max-width:980px">{line(HEAD, "th")}{body}</table>'


def claims_table(*rows: tuple[str, str, str]) -> ClaimsTable:
    """The table of a notebook's claims: what was claimed where, what is measured here, and whether
    it holds.

    >>> claims_table(("A < B (paper)", "A < B", "yes"))
    claimed (source, its setting) | here (our setting) | holds?
    A < B (paper) | A < B | yes
    """
    check(bool(rows), "rows", rows, "at least one")
    return ClaimsTable(rows)
