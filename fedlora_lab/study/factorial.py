"""What each ingredient adds: rows that differ in one field only, compared pair by pair and seed by seed."""

from collections.abc import Iterable
from itertools import product
from typing import TYPE_CHECKING, Any

from fedlora_lab import ingredients, traits
from fedlora_lab.checks import check
from fedlora_lab.method import Method
from fedlora_lab.study.guide import label_columns, said

if TYPE_CHECKING:
    import pandas as pd


def contrasts(rows: Iterable[Method]) -> list[tuple[str, Any, str, str]]:
    """(field, value, slug with the value, slug with the default) of all pairs that differ in this field only."""
    plain, known = Method("plain", ""), list(rows)
    fields = {row.slug: traits.fields(row) for row in known}
    usual, found = traits.fields(plain), []
    for one, other in product(known, known):
        differs = [name for name in usual if fields[one.slug][name] != fields[other.slug][name]]
        if len(differs) == 1 and fields[other.slug][differs[0]] == usual[differs[0]]:
            found.append((differs[0], getattr(one, differs[0]), one.slug, other.slug))
    return found


def effects(frame: "pd.DataFrame", rows: Iterable[Method], measure: str = "accuracy") -> "pd.DataFrame":
    """Main effects: what a field's value adds to the default, mean over all pairs of rows equal in the other fields.

    Per seed the mean over the pairs that both ran in a situation; then Student's 95 % interval over the seeds.

    Args:
        frame: of a study, finished or in part.
        rows: the study's methods.
        measure: a column; larger is better.

    Returns: where, field, value (in words), mean, low, high, pairs, seeds; empty where no pair is there.
    Raises: ``ValueError`` for a frame without the measure.
    Guarantees: known effects are found, and an unfinished case only takes its own pairs away
        (test_factorial.py::test_known_effects_are_found).
    """
    import pandas as pd

    from fedlora_lab.summary import t_interval

    check(measure in frame.columns, "measure", measure, "a column of the frame")
    names, found = label_columns(frame), []
    groups: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for field, value, one, other in contrasts(rows):
        groups.setdefault((field, ingredients.said(field, value)), []).append((one, other))
    for key, part in frame.groupby(names, dropna=False, sort=True):
        values = key if isinstance(key, tuple) else (key,)
        where = ", ".join(said(name, value) for name, value in zip(names, values, strict=True))
        table = part.pivot_table(measure, "seed", "method")
        for (field, value), pairs in groups.items():
            there = [(one, other) for one, other in pairs if one in table.columns and other in table.columns]
            gaps = pd.DataFrame({str(i): table[a] - table[b] for i, (a, b) in enumerate(there)}).dropna().mean(axis=1)
            if len(gaps) >= 2:
                mean, half = t_interval(gaps.to_numpy())
                found.append((where, field, value, mean, mean - half, mean + half, len(there), len(gaps)))
    return pd.DataFrame(found, columns=["where", "field", "value", "mean", "low", "high", "pairs", "seeds"])
