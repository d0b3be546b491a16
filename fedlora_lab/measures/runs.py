"""What runs say over their seeds, from a tidy frame: intervals, equal privacy, collapsed runs."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import stdtrit

from fedlora_lab._utils.rounding import round_up
from fedlora_lab._utils.validation import (
    check,
    did_you_mean,
    few,
    refuse,
)

if TYPE_CHECKING:
    from pandas import DataFrame, Series

COLUMNS = ["task", "method", "seed", "round", "layer", "measure", "value"]
"""Of a tidy frame."""

# ---- sweeps


def varied_columns(frame: "DataFrame") -> list[str]:
    """Lists what a tidy frame varies: its own columns of which a method has several values.

    One that follows from the others, as a rate that was chosen for each epsilon, is not listed.
    """
    names = [name for name in frame.columns if name not in COLUMNS]
    for name in reversed(names.copy()):
        others = [other for other in names if other != name]
        values = frame.groupby(["method", *others], dropna=False)[name]
        if values.nunique(dropna=False).max() <= 1:
            names.remove(name)
    return names


def by_setting(frame: "DataFrame") -> Iterator["DataFrame"]:
    """Yields the rows of each setting of a sweep.

    A frame in which each method has one setting, such as a rate of its own, is one part.
    """
    names = varied_columns(frame)
    if not names:
        yield frame
        return
    for _, part in frame.groupby(names, sort=False, dropna=False):
        yield part


def setting_text(value: Any) -> str:
    """A value of a grid, or a learning rate, for people; frames have NaN in the place of none."""
    if value is None or value != value:
        return "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def last_scores(frame: "DataFrame") -> "DataFrame":
    """Selects from a tidy frame, of a sweep too, the score of every run after its last round.

    The score is the `headline_measure`.
    """
    measure = headline_measure(frame)
    rows = frame[(frame["layer"] == "all") & (frame["measure"] == measure)]
    check(len(rows) > 0, "measure", measure, "a measure of the whole model in the frame")
    runs = rows.groupby(["method", "seed", *varied_columns(frame)], dropna=False)
    return rows[rows["round"] == runs["round"].transform("max")]


# ---- intervals


def t_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Computes mean and half-width of Student's t interval of values, (n,).

    The half-width of one value is NaN, and so is that of values of which one is not finite.

    Guarantees: equals ``scipy.stats.t.interval`` (test_intervals_draw_means_and_their_bands).

    >>> mean, half = t_interval(np.array([0.7, 0.8, 0.9]))
    >>> round(mean, 3), round(half, 3)
    (0.8, 0.248)
    """
    values = np.asarray(values, dtype=float)
    mean = float(values.mean()) if values.size else math.nan
    # One seed says nothing of the spread; NaN keeps that apart from a spread of zero.
    if values.size < 2 or not np.isfinite(values).all():
        return mean, math.nan
    point = float(stdtrit(values.size - 1, (1 + level) / 2))
    return mean, point * float(values.std(ddof=1)) / math.sqrt(values.size)


# ---- what the runs of a pair spent

SAME_EPSILON = 0.01
"""Relative difference up to which two epsilons count as one: calibration ends within it."""


def spent_epsilons(frame: "DataFrame") -> "Series | None":
    """Returns the epsilon that each run spent, by method and seed; ``None`` where none is told.

    Args: frame: tidy, whose last rounds count; or one row a run, with a column ``spent`` or
        ``epsilon``, of which the first counts.
    """
    if set(COLUMNS) <= set(frame):
        rows = frame[(frame["layer"] == "all") & (frame["measure"] == "epsilon")]
        rows = rows.sort_values("round").drop_duplicates(["method", "seed"], keep="last")
        column = "value"
    else:
        rows = frame
        column = next((name for name in ("spent", "epsilon") if name in frame), "")
    if not column or rows.empty:
        return None
    return rows.set_index(["method", "seed"])[column].astype(float)


def check_equal_privacy(frame: "DataFrame", one: str, other: str) -> None:
    """Refuses a pair of methods that spent unequal epsilons: noise, and not the method, may lead.

    Args:
        frame: see `spent_epsilons`; one that tells of no epsilon passes.
        one, other: methods of it.
    Raises: ``ValueError`` with both epsilons.
    """
    spent = spent_epsilons(frame)
    if spent is None:
        return
    sides = []
    for slug in (one, other):
        values = spent[spent.index.get_level_values("method") == slug]
        sides.append({seed: np.sort(part) for seed, part in values.groupby(level="seed")})
    for seed in sides[0].keys() & sides[1].keys():
        mine, theirs = (side[seed] for side in sides)
        # A frame may hold several settings: then both have to have been run at all of them.
        alike = len(mine) == len(theirs)
        if not (alike and np.allclose(mine, theirs, rtol=SAME_EPSILON, atol=0, equal_nan=True)):
            pairs = zip((one, other), (mine, theirs), strict=True)
            both = " and ".join(f"{slug} spent {_describe_spent(part)}" for slug, part in pairs)
            refuse("epsilon", both, "the same epsilon on both sides, calibrate them alike")


def spent_unequally(frame: "DataFrame") -> bool:
    """Tells whether methods spent unequal epsilons: no difference is then the method's alone.

    Args: frame: tidy; of a sweep one setting is enough at which they differ.
    """
    for part in by_setting(frame):
        spent = spent_epsilons(part)
        if spent is None:
            continue
        most = spent.groupby(level="method", sort=False).max()
        # A mean hides an unknown epsilon, and so does the largest of the known ones.
        most[spent.isna().groupby(level="method", sort=False).any()] = math.nan
        first = float(most.iloc[0])
        if not np.allclose(most, first, rtol=SAME_EPSILON, atol=0, equal_nan=True):
            return True
    return False


def _describe_spent(epsilons: np.ndarray) -> str:
    """The epsilons in words: NaN is none that can be certified, infinity is no privacy."""
    words = {True: "none that is certified", False: "infinity, it is not private"}
    texts = [round_up(x, ".4g") if math.isfinite(x) else words[math.isnan(x)] for x in epsilons]
    return few(dict.fromkeys(texts))


# ---- runs that collapsed

SMALLER_IS_BETTER = ("loss", "perplexity", "error")
"""Ends of the names of measures of which less is better."""


def find_collapsed(gains: Float[np.ndarray, " runs"]) -> Bool[np.ndarray, " runs"]:
    """Tells which runs of one setting collapsed.
    Those that lost did, and, of three seeds or more, those that gained less than half of what the
    median seed gained.

    A mean hides them: of ten runs four may have learned nothing. Where most runs learned nothing
    the median is theirs, and only those that lost count.

    Args: gains: score after the last round minus score before the first, larger is better; NaN
        where it was not measured.
    Guarantees: the cases of a table (test_collapse.py::test_what_counts_as_collapsed).

    >>> find_collapsed(np.array([0.29, 0.004, 0.27, 0.30, -0.1])).tolist()
    [False, True, False, False, True]
    """
    measured = gains[~np.isnan(gains)]
    # Of two runs none is the median.
    middle = float(np.median(measured)) if len(measured) >= 3 else 0.0
    return gains < max(0.0, middle / 2)


def smaller_is_better(measure: str) -> bool:
    """Tells by the end of its name whether less of a measure is better, as of a loss."""
    return measure.removesuffix("_received").endswith(SMALLER_IS_BETTER)


def headline_measure(frame: "DataFrame") -> str:
    """Returns the measure a run is judged by: accuracy, else the loss, else the task's first."""
    # A record lists the task's own metrics before all that every run measures.
    names = list(frame["measure"].unique())
    usual = [name for name in ("accuracy", "loss") if name in names]
    return [*usual, *names, "loss"][0]


def check_measure(rows: "DataFrame", measure: str, kind: str = "the whole model") -> None:
    """Refuses a measure that rows of a tidy frame do not have, and rows that stand there twice.

    Args: rows: of whole models, or of layers. measure: its name. kind: of what the rows are.
    """
    names = sorted(rows["measure"].unique())
    expected = f"a measure of {kind} in the frame, which has {', '.join(names) or 'nothing'}"
    check(measure in names, "measure", measure, expected + did_you_mean(measure, names))
    # Settings mixed, or runs twice, would look like more seeds and narrow every interval.
    twice = rows.duplicated(COLUMNS[:-1]).sum()
    expected = "one row for each measure of a round: select one setting first"
    check(not twice, "frame", f"{twice} rows of the same method, seed and round", expected)


def run_ends(frame: "DataFrame", measure: str | None = None) -> "DataFrame":
    """Tabulates a measure at the first and last round of every run, and which collapsed.

    Args: frame: tidy. measure: of the whole model; ``None``: the `headline_measure`.
    Returns: index method, seed; before, after, fell (ended worse than it began), collapsed.
    Raises: ``ValueError`` for a measure that the frame does not have, and for rows that it has
        twice.
    """
    rows: Any = frame[frame["layer"] == "all"]
    measure = headline_measure(frame) if measure is None else measure
    check_measure(rows, measure)
    keys: Any = {"by": ["method", "seed"], "sort": False, "dropna": False}
    rounds = rows.groupby(**keys)["round"]
    chosen = rows["measure"] == measure
    values = {
        name: rows["value"].where(chosen & (rows["round"] == rounds.transform(how)))
        for name, how in (("before", "min"), ("after", "max"))
    }
    # Of each run one value of either is left, or none: not measured.
    ends = rows.assign(**values).groupby(**keys)[list(values)].last().astype(float)
    sign = -1 if smaller_is_better(measure) else 1
    gains = sign * (ends["after"] - ends["before"])
    judged = gains.groupby(level="method", sort=False, dropna=False)
    collapsed = judged.transform(lambda x: find_collapsed(x.to_numpy())).astype(bool)
    return ends.assign(fell=gains < 0, collapsed=collapsed)
