"""Which method, when: for every situation of the studies the best method and all that cannot be told from it."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from fedlora_lab.checks import check
from fedlora_lab.claims import paired
from fedlora_lab.study.declared import Study
from fedlora_lab.study.grids import STUDIES

if TYPE_CHECKING:
    import pandas as pd

Frames = Mapping[str, "pd.DataFrame"]
LETTERS = {"epsilon": "ε", "alpha": "α"}


class Situation(NamedTuple):
    """One setting of a study: its name, what tells it from the others, and its rows."""

    study: str
    labels: dict[str, Any]
    rows: Any

    @property
    def words(self) -> str:
        """The labels in words."""
        return ", ".join(said(name, value) for name, value in self.labels.items())


def label_columns(frame: "pd.DataFrame") -> list[str]:
    """The columns that tell one case of a study from another: those between the method and its learning rate.

    Raises: ``ValueError`` for a frame that is none of a study.
    """
    columns = list(frame.columns)
    check(
        {"method", "lr", "seed"} <= set(columns), "frame.columns", columns, "a study's: study, method, labels, lr, seed"
    )
    return columns[columns.index("method") + 1 : columns.index("lr")]


def said(name: str, value: Any) -> str:
    """A label in words; an ε that is missing is no privacy."""
    if name == "epsilon" and value != value:
        return "no privacy"
    return f"{LETTERS.get(name, name)} = {value:g}" if isinstance(value, float | int) else f"{name} = {value}"


def situations(frames: Frames) -> Iterator[Situation]:
    """Every setting in which one would choose a method, the labels in order; an unfinished study has fewer.

    A declared study that asks something else, as what one knob does, is passed over; a frame of one's own is not.
    """
    for study, frame in frames.items():
        if study in STUDIES and not STUDIES[study].guides:
            continue
        names = label_columns(frame)
        order = frame.sort_values(names, kind="stable")
        for key, rows in order.groupby(names, dropna=False, sort=False):
            values = key if isinstance(key, tuple) else (key,)
            yield Situation(study, dict(zip(names, values, strict=True)), rows)


def _judged(rows: Any) -> tuple[str, int]:
    """The column a situation is judged by, and whether more of it is better."""
    return ("accuracy", 1) if "accuracy" in rows.columns and rows["accuracy"].notna().any() else ("loss", -1)


def standing(rows: Any, level: float = 0.95) -> "pd.DataFrame":
    """The methods of one situation, best first: mean, gap to the best with its interval, tied, exact, bytes.

    The best is chosen by the same numbers that it is then compared with. So the intervals hold for all pairs of methods
    together (Bonferroni over the m (m - 1) / 2 pairs, each paired by seed, Student's t): a method is tied when its
    interval reaches zero.

    Args: rows: of one situation, see `situations`. level: of all intervals together.
    Returns: index method; mean, gap, low, high (gap <= 0 but for rounding), seeds, tied, fallen (runs that ended worse
        than they began), exact, bytes of a run.
    Guarantees: test_guide.py::test_ties_are_rarely_broken_by_chance, test_a_lead_that_is_there_is_found.
    """
    import pandas as pd

    from fedlora_lab.methods import ALL, VARIANTS

    measure, sign = _judged(rows)
    means = rows.groupby("method")[measure].mean().sort_values(ascending=sign < 0, kind="stable")
    best, pairs = means.index[0], len(means) * (len(means) - 1) / 2
    found = []
    for slug, mean in means.items():
        part = rows[rows["method"] == slug]
        row: Any = {"method": slug, "mean": mean, "gap": 0.0, "low": 0.0, "high": 0.0, "seeds": part["seed"].nunique()}
        if slug != best:
            gap = paired(rows, str(slug), str(best), measure, level=1 - (1 - level) / pairs)
            gap = gap if sign > 0 else -gap
            row |= {"gap": gap.mean, "low": gap.low, "high": gap.high}
        known = (ALL | VARIANTS).get(str(slug))
        row |= {"tied": not row["high"] < 0, "fallen": _fallen(part, measure, sign)}
        row |= {"exact": None if known is None else known.exact}
        row |= {"bytes": float((part["bytes_up"] + part["bytes_down"]).mean())}
        found.append(row)
    return pd.DataFrame(found).set_index("method")


def _fallen(runs: Any, measure: str, sign: int) -> int:
    """How many runs ended worse than they began: one of them makes the interval of all wide."""
    before = f"before_{measure}"
    return int((sign * runs[measure] < sign * runs[before]).sum()) if before in runs else 0


def unit_of(study: str) -> str:
    """The unit of privacy of a declared study, "" for one that is not declared."""
    declared: Study | None = STUDIES.get(study)
    return "" if declared is None else str(declared.cases[0].privacy.get("unit", "example"))


def guide(frames: Frames, level: float = 0.95) -> "pd.DataFrame":
    """One row a situation: the best method, what cannot be told from it, and the least that one of them sends.

    Args: frames: study -> frame, as `frames` reads them. level: of all intervals of a situation together.
    Returns: study, unit, where, methods (compared), seeds, best, mean, half (median half-width of the gaps to the best:
        a lead below it cannot be seen), tied (names, the best first, and how many of their runs fell below the start),
        frugal (the tied method with the fewest bytes), share (its bytes over those of the best), exact (how many of
        the tied).
    Guarantees: test_guide.py::test_the_guide.
    """
    import pandas as pd

    from fedlora_lab.methods import ALL, VARIANTS

    def name(slug: Any) -> str:
        row = (ALL | VARIANTS).get(str(slug))
        return str(slug) if row is None else row.name

    def told(row: Any) -> str:
        return f"{name(row.Index)}{f' ({row.fallen} of {row.seeds} runs fell)' if row.fallen else ''}"

    lines = []
    for one in situations(frames):
        table: Any = standing(one.rows, level)
        tied = table[table["tied"]]
        frugal = tied["bytes"].idxmin()
        lines.append(
            {
                "study": one.study,
                "unit": unit_of(one.study),
                "where": one.words,
                "methods": len(table),
                "seeds": int(table["seeds"].min()),
                "best": name(table.index[0]),
                "mean": table["mean"].iloc[0],
                "half": float(((table["high"] - table["low"]) / 2).iloc[1:].median()),
                "tied": ", ".join(told(row) for row in tied.itertuples()),
                "frugal": name(frugal),
                "share": table.loc[frugal, "bytes"] / table["bytes"].iloc[0],
                "exact": f"{int(tied['exact'].fillna(False).astype(bool).sum())} of {len(tied)}",
            }
        )
    columns = ["study", "unit", "where", "methods", "seeds", "best", "mean", "half", "tied", "frugal", "share", "exact"]
    return pd.DataFrame(lines, columns=columns)
