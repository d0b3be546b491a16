"""Widget of notebook 09: any study's results, looked at from any side."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import ipywidgets as w

from fedlora_lab.checks import check
from fedlora_lab.plots.results import View, results, results_words
from fedlora_lab.plots.style import name
from fedlora_lab.study.guide import label_columns, said
from fedlora_lab.widgets import controls
from fedlora_lab.widgets.dial import Dial, dial

if TYPE_CHECKING:
    import pandas as pd

    from fedlora_lab.plots.style import Picture

NO_MEASURE = ("study", "method", "lr", "at_edge", "seed")


def measures(frame: "pd.DataFrame") -> list[str]:
    """The columns with numbers that were measured, the score first."""
    known = {*NO_MEASURE, *label_columns(frame)}
    found = [str(c) for c in frame.columns if c not in known and bool(frame[c].notna().to_numpy().any())]
    return sorted(found, key=lambda column: (column != "accuracy", column != "loss"))


def settings(frame: "pd.DataFrame", x: str) -> list[tuple[str, tuple[tuple[str, Any], ...]]]:
    """What the labels beside ``x`` can be held at, in words, those with most cases first."""
    others = [label for label in label_columns(frame) if label != x]
    if not others:
        return [("nothing else changes", ())]
    counted: Any = frame.groupby(others, dropna=False).size()
    sizes = counted.sort_values(ascending=False, kind="stable")
    found = []
    for key in sizes.index:
        values = key if isinstance(key, tuple) else (key,)
        held = tuple((label, None if v != v else v) for label, v in zip(others, values, strict=True))
        found.append((", ".join(said(n, float("nan") if v is None else v) for n, v in held), held))
    return found


def results_explorer(frames: "Mapping[str, pd.DataFrame] | pd.DataFrame") -> Dial:
    """Choose study, measure, axis, methods and whom to compare with; means and paired gaps with 95 % intervals.

    Args: frames: study -> frame as `study.frames` reads them, or one frame.
    Raises: ``ValueError`` when there is none, or one is no study's.
    Guarantees: test_lesson_09.py::test_the_explorer_says_what_it_shows.
    """
    import pandas as pd

    known: dict[str, pd.DataFrame] = {"results": frames} if isinstance(frames, pd.DataFrame) else dict(frames)
    check(bool(known), "frames", list(known), "at least one study's frame: `fedlora-lab study digits` makes one")
    first = next(iter(known))
    study = controls.choice("study", list(known), first, "whose results")
    measure = controls.choice("measure", measures(known[first]), measures(known[first])[0], "what is shown")
    x = controls.choice("x axis", label_columns(known[first]), _axis(known[first]), "what changes from left to right")
    where = controls.choice("where", settings(known[first], x.value), settings(known[first], x.value)[0][1],
                            "what the other labels are held at")  # fmt: skip
    slugs = _slugs(known[first])
    methods = w.SelectMultiple(
        options=[(name(slug), slug) for slug in slugs], value=tuple(slugs[:8]), rows=5, description="methods",
        tooltip="those that are drawn", style=controls.STYLE, layout=w.Layout(width=controls.WIDE),
    )  # fmt: skip
    against = controls.choice(
        "against", [(name(slug), slug) for slug in slugs], slugs[0], "compared with, seed by seed"
    )

    def other_axis(_: Any) -> None:
        where.options = settings(known[study.value], x.value)
        where.value = where.options[0][1]

    def other_study(_: Any) -> None:
        frame = known[study.value]
        slugs = _slugs(frame)
        for knob, options, value in (
            (measure, measures(frame), measures(frame)[0]),
            (x, label_columns(frame), _axis(frame)),
            (methods, [(name(slug), slug) for slug in slugs], tuple(slugs[:8])),
            (against, [(name(slug), slug) for slug in slugs], slugs[0]),
        ):
            knob.options = options
            knob.value = value
        other_axis(_)

    study.observe(other_study, "value")
    x.observe(other_axis, "value")

    def plot(study: str, measure: str, x: str, where: Any, methods: Any, against: str) -> "tuple[Picture, str]":
        view = View(measure, x, tuple(methods) or (against,), against, dict(where))
        return results(known[study], view), results_words(known[study], view)

    return dial(plot, study=study, measure=measure, x=x, where=where, methods=methods, against=against)


def _axis(frame: "pd.DataFrame") -> str:
    """The label with most values."""
    return max(label_columns(frame), key=lambda label: frame[label].nunique(dropna=False))


def _slugs(frame: "pd.DataFrame") -> list[str]:
    return list(dict.fromkeys(frame["method"]))
