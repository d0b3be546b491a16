"""Papers against measurement: the gap between two methods with its interval, and the table that ends a notebook."""

from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING, NamedTuple

from fedlora_lab.checks import check

if TYPE_CHECKING:
    import pandas as pd

HEAD = ("claimed (source, its setting)", "here (our setting)", "holds?")


class Gap(NamedTuple):
    """Mean difference of two methods over the seeds they share, with its 95 % interval (Student's t)."""

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def holds(self) -> str:
        """Whether the first is ahead: "yes", "no" (the other is), or that these seeds cannot tell."""
        return "yes" if self.low > 0 else "no" if self.high < 0 else "cannot tell"

    def __neg__(self) -> "Gap":
        """The gap seen from the other side."""
        return Gap(-self.mean, -self.high, -self.low, self.seeds)

    def __str__(self) -> str:
        mean, low, high = (f"{value:+.3f}".replace("-", "−") for value in self[:3])
        return f"{mean} [{low}, {high}]"


def gap(frame: "pd.DataFrame", one: str, other: str, measure: str = "accuracy") -> Gap:
    """By how much one method is ahead of another after the last round, seed by seed.

    Args: frame: tidy, one task. one, other: slugs. measure: of the whole model; larger is better.
    Raises: ``ValueError`` when they share fewer than two seeds.
    Guarantees: test_gap_is_the_paired_interval.
    """
    from fedlora_lab.plots.tidy import last

    return paired(last(frame, measure), one, other, "value")


def paired(frame: "pd.DataFrame", one: str, other: str, measure: str = "accuracy", level: float = 0.95) -> Gap:
    """By how much one method is ahead in a column, seed by seed, with its interval.

    Args:
        frame: columns method, seed and ``measure``, one row for each pair of the first two.
        level: of the interval, in (0, 1).

    Raises: ``ValueError`` when they share fewer than two seeds.
    """
    from fedlora_lab.summary import t_interval

    table = frame.pivot_table(measure, "seed", "method").reindex(columns=[one, other]).dropna()
    check(len(table) >= 2, "seeds", len(table), f"at least two that {one!r} and {other!r} share")
    mean, half = t_interval((table[one] - table[other]).to_numpy(), level)
    return Gap(mean, mean - half, mean + half, len(table))


class Table:
    """Rows (claim with its source, what was measured here, verdict) as a notebook shows them."""

    def __init__(self, rows: Iterable[tuple[str, str, str]]) -> None:
        self.rows = [tuple(map(str, row)) for row in rows]
        for row in self.rows:
            check(len(row) == 3, "row", row, "claim, measurement, verdict")

    def __repr__(self) -> str:
        return "\n".join(" | ".join(row) for row in [HEAD, *self.rows])

    def _repr_html_(self) -> str:
        def line(row: tuple[str, ...], tag: str) -> str:
            cells = (f'<{tag} style="text-align:left;vertical-align:top">{escape(text)}</{tag}>' for text in row)
            return f"<tr>{''.join(cells)}</tr>"

        body = "".join(line(row, "td") for row in self.rows)
        return f'<table style="max-width:980px">{line(HEAD, "th")}{body}</table>'


def table(*rows: tuple[str, str, str]) -> Table:
    """The table of a notebook's claims: each row says what was claimed where, what is measured here, and if it holds.

    Guarantees: test_the_table_shows_every_row.
    """
    check(bool(rows), "rows", rows, "at least one")
    return Table(rows)
