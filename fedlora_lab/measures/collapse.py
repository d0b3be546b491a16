"""Runs that collapsed: they ended below their start, or far behind the other seeds."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

if TYPE_CHECKING:
    from pandas import DataFrame

SMALLER_IS_BETTER = ("loss", "perplexity")
RULE = "a run that ends below its start, or gains less than half of what the median seed gains"
"""In words what `collapsed` says."""


def collapsed(gains: Float[np.ndarray, " runs"]) -> Bool[np.ndarray, " runs"]:
    """Which runs of one setting collapsed: those that lost, and, of three seeds or more, those
    that gained less than half of what the median seed gained.

    A mean hides them: of ten runs four may have learned nothing. Where most runs learned nothing
    the median is theirs, and only those that lost count.

    Args: gains: score after the last round minus score before the first, larger is better; NaN
        where it was not measured.
    Guarantees: test_collapse.py::test_what_counts_as_collapsed.

    >>> collapsed(np.array([0.29, 0.004, 0.27, 0.30, -0.1])).tolist()
    [False, True, False, False, True]
    """
    known = gains[~np.isnan(gains)]
    middle = float(np.median(known)) if len(known) >= 3 else 0.0
    return gains < max(0.0, middle / 2)


def collapsed_in(groups: Any) -> Any:
    """Which rows of a frame collapsed, each judged beside those of its group.

    Args: groups: gains as of `collapsed`, a grouped pandas Series.
    Guarantees: test_collapse.py::test_each_method_and_seed_is_judged_by_its_own_ends.
    """
    return groups.transform(lambda own: collapsed(own.to_numpy())).astype(bool)


def smaller_is_better(measure: str) -> bool:
    """Whether less of a measure is better, as of a loss."""
    return measure.removesuffix("_received") in SMALLER_IS_BETTER


def headline(frame: "DataFrame") -> str:
    """The measure a run is judged by: accuracy where the task has it, else the test loss."""
    return "accuracy" if "accuracy" in set(frame["measure"]) else "loss"


def run_ends(frame: "DataFrame", measure: str | None = None) -> "DataFrame":
    """A measure in the first and last round of every run of a tidy frame, and which collapsed.

    Args: frame: tidy. measure: of the whole model; ``None``: the `headline`.
    Returns: index method, seed; before, after, fell (ended worse than it began), collapsed.
    """
    measure = headline(frame) if measure is None else measure
    whole: Any = frame[frame["layer"] == "all"]
    keys: Any = {"by": ["method", "seed"], "sort": False, "dropna": False}
    rounds, own = whole.groupby(**keys)["round"], whole["measure"] == measure
    values = {
        name: whole["value"].where(own & (whole["round"] == rounds.transform(how)))
        for name, how in (("before", "min"), ("after", "max"))
    }
    # Of each run one value of either is left, or none: not measured.
    ends = whole.assign(**values).groupby(**keys)[list(values)].last().astype(float)
    sign = -1 if smaller_is_better(measure) else 1
    gains = sign * (ends["after"] - ends["before"])
    judged = gains.groupby(level="method", sort=False, dropna=False)
    return ends.assign(fell=gains < 0, collapsed=collapsed_in(judged))


def count_collapsed(ends: "DataFrame") -> dict[str, dict[str, Any]]:
    """For each method of `run_ends` seeds, fell, collapsed, and the means before and after."""
    found: dict[str, dict[str, Any]] = {}
    for method, part in ends.groupby(level="method", sort=False):
        counts = {name: int(part[name].sum()) for name in ("fell", "collapsed")}
        means = {name: float(part[name].mean(skipna=False)) for name in ("before", "after")}
        found[str(method)] = {"seeds": len(part), **counts, **means}
    return found


def describe_decline(measure: str, before: float, after: float) -> str:
    """Words on a run that ended worse than it began; "" for one that did not, or has no measure.

    Args: measure: its name. before, after: its values.
    """
    worse = after > before if smaller_is_better(measure) else after < before
    return f"{_way(measure)} its start: {_apart(before, after)}" if worse else ""


def describe_collapse(measure: str, counts: Mapping[str, Any]) -> str:
    """Words on the runs of a method that collapsed; "" where none did.

    Args: measure: its name. counts: seeds, fell, collapsed, before, after; see `count_collapsed`.
    """
    seeds, fell, low = (int(counts[name]) for name in ("seeds", "fell", "collapsed"))
    before, after = counts["before"], counts["after"]
    if not low or seeds == 1:
        return describe_decline(measure, before, after) if low else ""
    down = f"{fell} of {seeds} runs {_way(measure)} their start"
    behind = f"{low} of {seeds} runs gained less than half of what the median run gained"
    if fell:
        behind = f"{low} of {seeds} runs collapsed, {fell} of them {_way(measure)} their start"
    mean = "" if np.isnan(after) else f"; mean {_apart(before, after)}"
    return (down if fell == low else behind) + mean


def _way(measure: str) -> str:
    return "rose above" if smaller_is_better(measure) else "fell below"


def _apart(before: float, after: float) -> str:
    """Two numbers with as many digits as show that they differ, at least two."""
    digits = next((n for n in range(2, 6) if f"{before:.{n}f}" != f"{after:.{n}f}"), 6)
    return f"{before:.{digits}f} to {after:.{digits}f}".replace("inf", "∞")
