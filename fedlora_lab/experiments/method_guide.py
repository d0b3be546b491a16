"""Ranks methods by the committed studies."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from fedlora_lab._utils.validation import check
from fedlora_lab.experiments.runner import read_study
from fedlora_lab.experiments.studies import STUDIES
from fedlora_lab.measures.statistics import find_collapsed_by_group, paired_difference
from fedlora_lab.methods.published import ALL

Frames = Mapping[str, pd.DataFrame]
LETTERS = {"epsilon": "ε", "alpha": "β"}


def read_studies(folder: str | Path = "results") -> dict[str, pd.DataFrame]:
    """Reads the committed frames of the declared studies that were run, by name."""
    there = (name for name in STUDIES if (Path(folder) / f"{name}.csv").is_file())
    return {name: read_study(name, folder) for name in there}


class Situation(NamedTuple):
    """One setting of a study: its name, what tells it from the others, and its rows."""

    study: str
    labels: dict[str, Any]
    rows: Any

    @property
    def words(self) -> str:
        """The labels in words."""
        return ", ".join(describe_label(name, value) for name, value in self.labels.items())


def label_columns(frame: pd.DataFrame) -> list[str]:
    """Lists the columns that tell the cases of a study apart.
    They stand between the method and its learning rate. Raises ``ValueError`` for a frame that is
    none of a study.
    """
    columns, expected = list(frame.columns), "a study's: study, method, labels, lr, seed"
    check({"method", "lr", "seed"} <= set(columns), "frame.columns", columns, expected)
    return columns[columns.index("method") + 1 : columns.index("lr")]


def describe_label(name: str, value: Any) -> str:
    """Describes a label in words; an ε that is missing is no privacy."""
    if name == "epsilon" and value != value:
        return "no privacy"
    text = f"{value:g}" if isinstance(value, float | int) else value
    return f"{LETTERS.get(name, name)} = {text}"


def _settings(study: str, frame: pd.DataFrame) -> Iterator[Situation]:
    """Lists every setting of a frame, the labels in order."""
    names = label_columns(frame)
    order = frame.sort_values(names, kind="stable")
    for key, rows in order.groupby(names, dropna=False, sort=False):
        values = key if isinstance(key, tuple) else (key,)
        yield Situation(study, dict(zip(names, values, strict=True)), rows)


def situations(frames: Frames) -> Iterator[Situation]:
    """Lists every setting in which one would choose a method; an unfinished study has fewer.

    A declared study that asks what one knob does is passed over; a frame of one's own is not.
    """
    for study, frame in frames.items():
        if study not in STUDIES or STUDIES[study].has_situations:
            yield from _settings(study, frame)


def rank_methods(rows: Any, level: float = 0.95) -> pd.DataFrame:
    """Ranks the methods of one situation by their means, with the gap to the best.

    The best is chosen by the same numbers that it is then compared with. So the intervals hold for
    all pairs of methods together (Bonferroni over the m (m - 1) / 2 pairs, each paired by seed,
    Student's t): a method is tied when its interval reaches zero.

    Args: rows: of one situation, see `situations`. level: of all intervals together.
    Returns: index method; mean, gap, low, high (gap <= 0 but for rounding), seeds, tied,
        collapsed (runs, see `fl.measures.find_collapsed`), exact, bytes of a run.
    Guarantees: test_guide.py::test_ties_are_rarely_broken_by_chance,
        test_a_lead_that_is_there_is_found.
    """
    judged = "accuracy" in rows.columns and rows["accuracy"].notna().any()
    measure, sign = ("accuracy", 1) if judged else ("loss", -1)
    before = sign * rows.get(f"before_{measure}", math.nan)
    score, sent = sign * rows[measure], rows["bytes_up"] + rows["bytes_down"]
    gains = (score - before).groupby(rows["method"])
    rows = rows.assign(score=score, sent=sent, collapsed=find_collapsed_by_group(gains))
    means = rows.groupby("method")["score"].mean().sort_values(ascending=False, kind="stable")
    best, each = means.index[0], 1 - (1 - level) / max(math.comb(len(means), 2), 1)
    table = []
    for slug, mean in means.items():
        part, known, gap = rows[rows["method"] == slug], ALL.get(slug), (0.0, 0.0, 0.0)
        if slug != best:
            gap = paired_difference(rows, slug, best, "score", each)[:3]
        numbers = part["seed"].nunique(), not gap[2] < 0, int(part["collapsed"].sum())
        exact = None if known is None else known.exact
        table.append((slug, sign * mean, *gap, *numbers, exact, float(part["sent"].mean())))
    columns = "method mean gap low high seeds tied collapsed exact bytes"
    return pd.DataFrame(table, columns=columns.split()).set_index("method")


def best_methods(frames: Frames, level: float = 0.95) -> pd.DataFrame:
    """Names the best method of each situation, its ties, and which of them sends least.

    Args: frames: study -> frame, as `read_studies` reads them. level: of all intervals of a
        situation together.
    Returns: study, unit, where, methods (compared), seeds, best, mean, half (median half-width of
        the gaps to the best: a lead below it cannot be seen), tied (names, the best first, and how
        many of their runs collapsed), frugal (the tied method with the fewest bytes),
        share (its bytes over those of the best), exact (how many of the tied).
    Guarantees: test_guide.py::test_best_tied_and_frugal_methods_are_named.
    """
    from fedlora_lab.plots.style import name

    lines = []
    for one in situations(frames):
        table: Any = rank_methods(one.rows, level)
        tied, declared = table[table["tied"]], STUDIES.get(one.study)
        frugal = tied["bytes"].idxmin()
        words = [
            name(x.Index) + (f" ({x.collapsed} of {x.seeds} runs collapsed)" if x.collapsed else "")
            for x in tied.itertuples()
        ]
        lines.append(
            {
                "study": one.study,
                "unit": declared.cases[0].privacy.get("unit", "example") if declared else "",
                "where": one.words,
                "methods": len(table),
                "seeds": int(table["seeds"].min()),
                "best": name(table.index[0]),
                "mean": table["mean"].iloc[0],
                "half": float(((table["high"] - table["low"]) / 2).iloc[1:].median()),
                "tied": ", ".join(words),
                "frugal": name(frugal),
                "share": table.loc[frugal, "bytes"] / table["bytes"].iloc[0],
                "exact": f"{int(tied['exact'].fillna(False).astype(bool).sum())} of {len(tied)}",
            }
        )
    return pd.DataFrame(lines)
