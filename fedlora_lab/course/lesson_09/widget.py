"""The widget of notebook 09."""

from collections.abc import Mapping
from typing import Any

import ipywidgets as w
import pandas as pd

from fedlora_lab._utils.validation import check
from fedlora_lab.course.lesson_09 import figures
from fedlora_lab.course.widgets import controls
from fedlora_lab.experiments.method_guide import describe_label, label_columns
from fedlora_lab.plots import style


def _measures(frame: pd.DataFrame) -> list[str]:
    """The columns with numbers that were measured, the score first."""
    known = {"study", "method", "lr", "at_edge", "seed", *label_columns(frame)}
    there = [str(c) for c in frame.columns if c not in known and bool(frame[c].notna().any())]
    return sorted(there, key=lambda column: (column != "accuracy", column != "loss"))


def _settings(frame: pd.DataFrame, x: str) -> list[tuple[str, tuple[tuple[str, Any], ...]]]:
    """What the labels beside ``x`` can be held at, in words, those with most cases first."""
    others = [label for label in label_columns(frame) if label != x]
    if not others:
        return [("nothing else changes", ())]
    sizes: Any = frame.groupby(others, dropna=False).size()
    found = []
    for key in sizes.sort_values(ascending=False, kind="stable").index:
        pairs = [*zip(others, key if isinstance(key, tuple) else (key,), strict=True)]
        held = tuple((label, None if value != value else value) for label, value in pairs)
        found.append((", ".join(describe_label(*pair) for pair in pairs), held))
    return found


def _choices(frame: pd.DataFrame) -> dict[str, tuple[list, Any]]:
    """What each menu offers for a study, and what it begins with."""
    labels, measures = label_columns(frame), _measures(frame)
    slugs = [(style.name(slug), slug) for slug in dict.fromkeys(frame["method"])]
    first = tuple(slug for _, slug in slugs[:8])
    x = max(labels, key=lambda label: frame[label].nunique(dropna=False))
    return {
        "measure": (measures, measures[0]),
        "x": (labels, x),
        "methods": (slugs, first),
        "against": (slugs, first[0]),
    }


def results_explorer(frames: "Mapping[str, pd.DataFrame] | pd.DataFrame") -> Any:
    """Offers study, measure, axis, methods and whom to compare with beside `results`.

    Args: frames: study -> frame as `experiments.read_studies` reads them, or one frame.
    Raises: ``ValueError`` when there is none.
    Guarantees: test_lesson_09.py::test_the_explorer_says_what_it_shows.
    """
    known = {"results": frames} if isinstance(frames, pd.DataFrame) else dict(frames)
    wanted = "at least one study's frame: `fedlora-lab study digits` makes one"
    check(bool(known), "frames", list(known), wanted)
    at = next(iter(known))
    start = _choices(known[at])
    where = _settings(known[at], start["x"][1])
    (slugs, first), label = (
        start["methods"],
        controls.control_options("methods", "those that are drawn"),
    )
    knobs: dict[str, Any] = {
        "study": controls.menu("study", list(known), at, "whose results"),
        "measure": controls.menu("measure", *start["measure"], "what is shown"),
        "x": controls.menu("x axis", *start["x"], "what changes from left to right"),
        "where": controls.menu("where", where, where[0][1], "what the other labels are held at"),
        "methods": w.SelectMultiple(options=slugs, value=first, rows=5, **label),
        "against": controls.menu("against", *start["against"], "compared with, seed by seed"),
    }

    def other_axis(_: Any) -> None:
        knobs["where"].options = _settings(known[knobs["study"].value], knobs["x"].value)
        knobs["where"].value = knobs["where"].options[0][1]

    def other_study(_: Any) -> None:
        for key, (offered, value) in _choices(known[knobs["study"].value]).items():
            knobs[key].options = offered
            knobs[key].value = value
        other_axis(_)

    knobs["study"].observe(other_study, "value")
    knobs["x"].observe(other_axis, "value")

    def plot(
        study: str, measure: str, x: str, where: Any, methods: Any, against: str
    ) -> tuple[style.Picture, str]:
        view = figures.View(measure, x, tuple(methods) or (against,), against, dict(where))
        return figures.results(known[study], view), figures.results_words(known[study], view)

    return controls.interactive_figure(plot, **knobs)
