"""Judges published claims (claims.json) by the committed studies.

Each claim has its source, how far that could be read, the places where it is judged, the nearest to
the paper first, and the rule that judges it.

An effect is a share: of the room (what the best row of a task reached, less its start), or of the
other method's value. So is what was claimed, and no task is asked for points that it cannot give.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from fedlora_lab._utils.validation import check, check_one_of
from fedlora_lab.measures.statistics import find_collapsed_by_group, seed_pairs, t_interval
from studies.declared import STUDIES
from studies.runner import count_runs, load_results, read_studies

Frames = Mapping[str, pd.DataFrame]
LETTERS = {"epsilon": "ε", "alpha": "β"}
"""Label -> the letter that stands for it."""
HOLDS, OPPOSITE, SAME = "holds", "opposite", "no difference of that size"
OPEN, FULL = "cannot tell", "no room here"
WAITS, UNTESTED = "not run yet", "not measured here"
VERDICTS = (HOLDS, OPPOSITE, SAME, OPEN, FULL, WAITS, UNTESTED)
SHOWN = 0.95  # level of the interval that is shown; claims are decided by wider ones
SMALL = 0.1  # share of the room below which a difference counts as none, where no size was claimed
HALF = 0.5  # share of the claimed size that is asked for
START = 0.01  # accuracies before training that differ by more are those of two models
STAND_INS: dict[str, tuple[str, dict[str, Any]]] = {
    "sentiment-example": ("sentiment", {}),
    "sentiment-example screens": ("sentiment screens", {}),
}
"""Study -> an older one of the same task, with the labels to add, that is read until it is run."""


def label_columns(frame: pd.DataFrame) -> list[str]:
    """Lists the columns that tell the cases of a study apart.

    They stand between the method and its learning rate.
    """
    columns = list(frame.columns)
    expected = "a study's: study, method, labels, lr, seed"
    check({"method", "lr", "seed"} <= set(columns), "frame.columns", columns, expected)
    return columns[columns.index("method") + 1 : columns.index("lr")]


def describe_label(name: str, value: Any) -> str:
    """Describes a label in words; an ε that is missing is no privacy."""
    if name == "epsilon" and value != value:
        return "no privacy"
    text = f"{value:g}" if isinstance(value, float | int) else value
    return f"{LETTERS.get(name, name)} = {text}"


class ClaimResult(NamedTuple):
    """The verdict on a claim at one place, and what was measured; the numbers are shares."""

    measured: str
    verdict: str
    reason: str = ""
    mean: float = math.nan
    low: float = math.nan  # of the interval of 95 % by itself
    high: float = math.nan
    low_together: float = math.nan  # of the one that decides
    high_together: float = math.nan
    within: float = math.nan  # bound of an equality
    unit: str = ""
    place: str = ""
    study: str = ""  # the frame that was read


@dataclass(frozen=True)
class Claim:
    """One published claim.

    Args:
        slug, text: its name, and one sentence.
        source: arXiv id.
        tag: how far it could be read: "primary", "secondary" or "inferred".
        setting: where it was claimed.
        judge: the rule that decides and its arguments, see `RULES`; or ``{"untested": reason}``.
        places: studies with labels that choose the rows, the nearest to the paper first.
        numbers: as published: one, other, best and start (of the room), or one and other alone.
        note: what a reader has to know beside the verdict.
    """

    slug: str
    text: str
    source: str
    tag: str
    setting: str
    judge: Mapping[str, Any]
    places: tuple[Mapping[str, Any], ...] = ()
    numbers: Mapping[str, float] = field(default_factory=dict)
    note: str = ""

    def __post_init__(self) -> None:
        check_one_of("tag", self.tag, ("primary", "secondary", "inferred"))
        check("arXiv:" in self.source, "source", self.source, "an arXiv id")
        check(bool(self.places) != ("untested" in self.judge), "places", self.places, "a place")

    @property
    def claimed(self) -> float:
        """The size that was claimed, as a share; NaN where none was.

        >>> next(claim for claim in CLAIMS if claim.slug == "la-over-rolora").claimed
        0.2737...
        """
        if not self.numbers:
            return math.nan
        one, other = self.numbers["one"], self.numbers["other"]
        if "best" not in self.numbers:
            return 1 - one / other
        return (one - other) / (self.numbers["best"] - self.numbers["start"])

    @property
    def asked(self) -> float:
        """The share that a lead has to exceed: half of what was claimed, 0 where no size was."""
        return HALF * self.claimed if self.numbers else 0.0

    @property
    def sampled(self) -> bool:
        """Whether chance enters the verdict."""
        return bool(self.places) and self.judge["rule"] not in ("always_zero", "fewer_bytes")


class Stale(NamedTuple):
    """Rows of a committed study that are to be measured again: a study, a method of it, and why."""

    study: str
    method: str
    why: str


class _Data(NamedTuple):
    """The rows of a place, and the room of its task: accuracy at the start, and of the best."""

    rows: Any
    start: float
    best: float

    @property
    def room(self) -> float:
        return self.best - self.start


class Effect(NamedTuple):
    """A measured difference as a share, at any level of confidence."""

    what: str
    at: Callable[[float], tuple[float, float, float]]  # level -> low, mean, high
    unit: str = "of the room"
    count: str = ""
    within: float | None = None  # asked for: no difference beyond this
    spare: float = math.inf  # share of the room that the other method leaves
    gained: float = math.inf  # share of the room that the better of the two took


def _t(values: Any) -> Callable[[float], tuple[float, float, float]]:
    def at(level: float) -> tuple[float, float, float]:
        mean, half = t_interval(np.asarray(values, float), level)
        return mean - half, mean, mean + half

    return at


def _shown(label: Any) -> Any:
    """Converts a label for `describe_label`: no privacy is not a number."""
    return math.nan if label is None else label


def _ends(data: _Data, methods: Iterable[str]) -> str:
    """Counts runs that collapsed or gained little, and notes a rate at the edge of its grid."""
    found, runs, lost = [], 0, 0
    for method in methods:
        part = select_rows(data.rows, method=method)
        gains = part["accuracy"] - part["before_accuracy"]
        settings = gains.groupby([part[x] for x in ("method", *label_columns(part))], dropna=False)
        low = int(find_collapsed_by_group(settings).sum())
        little = int((gains < SMALL * data.room).sum())
        runs, lost = runs + len(part), lost + low
        if low:
            found.append(f"{low} of {len(part)} runs of {method} collapsed")
        if little > low:
            found.append(f"{little} of {len(part)} of {method} gained less than {_share(SMALL)}")
        if "at_edge" in part and part["at_edge"].any():
            found.append(f"the rate of {method} lies at the edge of its grid")
    none = [] if lost else [f"0 of {runs} runs collapsed"]
    return "; ".join([*none, *found])


def _lead(
    data: _Data, one: str, other: str, within: float | None = None, measure: str = "accuracy"
) -> Effect:
    """One method is ahead of another; or, with ``within``, as good as it."""
    table = seed_pairs(data.rows, one, other, measure)
    gap = ((table[one] - table[other]) / data.room).to_numpy()
    means = (table.mean() - data.start) / data.room
    what, kept = f"lead of {one} over {other}", {"within": within}
    count = f"{len(table)} seeds"
    if measure != "accuracy":
        return Effect(f"{what} in {measure}", _t(gap), "of the room", count, **kept)
    spare = data.best - table[other].mean()
    free = {"spare": spare / data.room, "gained": float(means.max())}
    return Effect(what, _t(gap), "of the room", count, **kept, **free)


def _more(data: _Data, one: str, other: str, measure: str) -> Effect:
    """A measure that is a share by itself is larger for one method."""
    table = seed_pairs(data.rows, one, other, measure)
    gap = (table[one] - table[other]).to_numpy()
    means = " and ".join(f"{table[x].mean():.2f}" for x in (one, other))
    what = f"{measure} of {one} less that of {other} ({means})"
    return Effect(what, _t(gap), "", f"{len(table)} seeds")


def _shorter(logs: Any) -> Callable[[float], tuple[float, float, float]]:
    """The share by which one number is below another, from logarithms of their ratio."""
    log = _t(logs)

    def at(level: float) -> tuple[float, float, float]:
        low, mean, high = (1 - math.exp(x) for x in reversed(log(level)))
        return low, mean, high

    return at


def _less(data: _Data, one: str, other: str, measure: str, within: float | None = None) -> Effect:
    """A positive measure is smaller for one method, by a share of the other's."""
    table: Any = np.log(seed_pairs(data.rows, one, other, measure))
    at = _shorter((table[one] - table[other]).to_numpy())
    what = f"how far {measure} of {one} lies below that of {other}"
    return Effect(what, at, "of the other's", f"{len(table)} seeds", within)


def _fewer_bytes(data: _Data, one: str, other: str, measures: list[str]) -> Effect:
    """One method sends or receives less; nothing of it is chance."""
    sent = data.rows[measures].sum(axis=1).groupby(data.rows["method"]).mean()
    share = 1 - float(sent[one] / sent[other])
    what = f"how much less {' and '.join(measures)} {one} has than {other}"
    return Effect(what, lambda _: (share, share, share), "of the other's", "counted")


def _steadier(data: _Data, one: str, other: str) -> Effect:
    """Results spread less over the seeds: standard deviations, pooled over the settings of a place.

    The interval is that of Miller (1968): Student's, over what each seed adds to the logarithm of
    the ratio (the jackknife). That of F supposes normal results, and one collapsed run is enough
    to make it far too short.
    """
    names = ["method", *(x for x in label_columns(data.rows) if x != "lr")]
    own = data.rows["method"].isin((one, other))
    rows = data.rows[own].assign(setting=lambda x: x.groupby(names, dropna=False).ngroup())
    logs, sizes, count = {}, [], rows["seed"].nunique()
    for method in (one, other):
        part = rows[rows["method"] == method]
        table = part.pivot(index="seed", columns="setting", values="accuracy")
        number, square = table.count(), (table - table.mean()) ** 2
        whole = 0.5 * np.log(square.sum().sum() / (number - 1).sum())
        # Without one of its numbers a sum of squares is less by n / (n - 1) of that one's square.
        rest = square.sum().sum() - (square * number / (number - 1)).sum(axis=1)
        free = (number - 1).sum() - table.notna().sum(axis=1)
        logs[method] = count * whole - (count - 1) * 0.5 * np.log(rest / free)
        sizes.append(f"{100 * math.exp(whole):.1f}")
    low = f"the standard deviation over seeds of {one} lies below that of {other}"
    what = f"how far {low} ({' and '.join(sizes)} points)"
    at = _shorter((logs[one] - logs[other]).dropna().to_numpy())
    return Effect(what, at, "of the other's", f"{count} seeds")


def _loses_less(data: _Data, one: str, other: str, label: str, ends: Any) -> Effect:
    """Turning a knob from the first end to the second costs one method less than the other."""
    change, said = _change_of_lead(data, one, other, label, ends)
    what = f"loss of {other} from {said[0]} to {said[1]}, less that of {one}"
    return Effect(what, _t(change), "of the room", f"{len(change)} seeds")


def _same_lead(data: _Data, one: str, other: str, label: str, ends: Any, within: float) -> Effect:
    """The lead of one method over another is the same at two ends of a knob."""
    change, said = _change_of_lead(data, one, other, label, ends)
    what = f"lead of {one} over {other} ({said[1]}) less that lead ({said[0]})"
    return Effect(what, _t(change), "of the room", f"{len(change)} seeds", within)


def _change_of_lead(data: _Data, one: str, other: str, label: str, ends: Any) -> Any:
    """Computes how the lead grows from the first end to the second, by seed; the ends in words."""
    parts = [select_rows(data.rows, **{label: end}) for end in ends]
    first, last = (seed_pairs(part, one, other, "accuracy") for part in parts)
    change = ((last[one] - last[other] - first[one] + first[other]) / data.room).dropna()
    return change.to_numpy(), [describe_label(label, _shown(end)) for end in ends]


def _own_lead(data: _Data, method: str, one: str, other: str) -> Effect:
    """Of one method, one accuracy is above another."""
    rows = select_rows(data.rows, method=method)
    gap = ((rows[one] - rows[other]) / data.room).to_numpy()
    what = f"{one} of {method} less its {other}"
    return Effect(what, _t(gap), "of the room", f"{len(rows)} seeds")


def _insensitive(data: _Data, method: str, label: str, ends: Any, within: float) -> Effect:
    """A knob turned from end to end moves a method's accuracy by no more than ``within``."""
    rows = select_rows(data.rows, method=method)
    said = [describe_label(label, _shown(end)) for end in ends]
    names = [f"{method} at {end}" for end in said]
    parts = [select_rows(rows, **{label: end}) for end in ends]
    both = pd.concat([part.assign(method=x) for part, x in zip(parts, names, strict=True)])
    found = _lead(data._replace(rows=both), names[1], names[0], within)
    return found._replace(what=f"accuracy of {names[1]} less that at {said[0]}")


def _forgiving(data: _Data, one: str, other: str) -> Effect:
    """A rate drawn from the grid costs less: the mean shortfall from the own best rate."""
    names = label_columns(data.rows)
    table = data.rows.groupby([*names, "method"], dropna=False)["regret"].mean().unstack()
    gap = (table[other] - table[one]).dropna().to_numpy() / data.room
    means = " and ".join(_share(table[x].mean() / data.room) for x in (one, other))
    what = f"how far the mean loss of {one} from a rate drawn at random lies below that of {other}"
    return Effect(f"{what} ({means})", _t(gap), "of the room", f"{len(gap)} settings")


def _at_least(data: _Data, method: str, measure: str, by: float) -> Effect:
    """A measure of one method is above a number."""
    values = select_rows(data.rows, method=method)[measure].to_numpy()
    mean = float(values.mean())
    what = f"{measure} of {method} ({mean:.3f}) less {by:g}"
    return Effect(what, _t(values - by), "", f"{len(values)} seeds")


def _power_law(data: _Data, method: str, measure: str, label: str, power: float) -> Effect:
    """An energy grows with this power of knob x learning rate, to 5 %.

    The slope is fitted on logarithms, seed by seed; the learning rate stands in it because it
    scales the noise of a step as the knob does, and is tuned for each setting.
    """
    rows = select_rows(data.rows, method=method)
    rows = rows[(rows[label] > 0) & (rows[measure] > 0)]
    parts = [part for _, part in rows.groupby("seed") if len(part) > 1]
    points = [(np.log(part[label] * part["lr"]), np.log(part[measure])) for part in parts]
    slopes = np.array([np.polyfit(*point, 1)[0] for point in points])
    mean = float(slopes.mean()) if len(slopes) else math.nan
    slope = f"power of {label} × learning rate in {measure} of {method} ({mean:.2f})"
    what = f"{slope} less {power:g}"
    return Effect(what, _t(slopes / power - 1), f"of {power:g}", f"{len(slopes)} seeds", 0.05)


def _always_zero(
    data: _Data, method: str, measure: str, below: float = 0.0, share_of: Any = ()
) -> Effect:
    """A measure, or its share of a sum, is zero in every run, but for rounding."""
    rows = select_rows(data.rows, method=method)
    values = rows[measure]
    if share_of:
        total = rows[list(share_of)].sum(axis=1)
        values = values / total.where(total > 0, 1.0)  # a run without noise has no share of it
    top = math.nan if values.isna().any() else float(values.max())
    said = f"{measure} of {method}" + (f" as a share of {' + '.join(share_of)}" if share_of else "")
    what = f"largest {said}"
    return Effect(what, lambda _: (top, top, top), "", f"{len(values)} runs", below)


RULES: dict[str, Callable[..., Effect]] = {
    "lead": _lead,
    "more": _more,
    "less": _less,
    "fewer_bytes": _fewer_bytes,
    "steadier": _steadier,
    "loses_less": _loses_less,
    "same_lead": _same_lead,
    "own_lead": _own_lead,
    "insensitive": _insensitive,
    "forgiving": _forgiving,
    "at_least": _at_least,
    "power_law": _power_law,
    "always_zero": _always_zero,
}


def decide(found: Effect, asked: float, level: float) -> tuple[str, str]:
    """Decides the verdict of an interval, and gives its reason.

    Where the other method is near the top, or both took less of the room than the lead that is
    asked, no lead can be seen. But want of room makes no deficit: whoever is behind by more than
    `SMALL` is behind. Only a smaller deficit gives way to it, for near the top methods differ by
    what tuning left.

    Args: found: the effect. asked: a lead has to exceed it. level: of the interval that decides.
    Guarantees: test_claims.py::test_an_interval_gives_one_verdict.
    """
    low, _, high = found.at(level)
    if not math.isfinite(low + high):
        return OPEN, "not measured in every run"
    if (within := found.within) is not None:
        if low > within or high < -within:
            return OPPOSITE, f"they differ by more than {_share(within)}"
        if found.gained < SMALL:
            return FULL, "neither learned, so equality says nothing"
        if -within <= low and high <= within:
            return HOLDS, ""
        return OPEN, f"the interval reaches beyond ±{_share(within)}"
    if low > asked:
        return HOLDS, ""
    if high < -SMALL:
        return OPPOSITE, "the other method leads"
    if found.gained < max(SMALL, asked):
        return FULL, f"the better of the two gained only {_share(found.gained)} of the room"
    if found.spare < (asked or SMALL):
        behind = f"; it leads by less than {_share(SMALL)}" if high < 0 else ""
        left = _share(max(found.spare, 0))
        return FULL, f"the other method leaves only {left} of the room to gain{behind}"
    if high < 0:
        return OPPOSITE, "the other method leads"
    if asked and high < asked:
        ahead = "it is ahead, but by less" if low > 0 else "a lead of that size is ruled out"
        return SAME, f"{ahead}: {_share(asked)} is asked, half of what was claimed"
    if not asked and low > -SMALL and high < SMALL:
        return SAME, f"the two are within ±{_share(SMALL)}"
    if low > 0:
        return OPEN, f"it is ahead; whether by the {_share(asked)} asked is open"
    return OPEN, f"the interval includes {_share(asked)}"


def _share(value: float) -> str:
    """Formats a share in per cent; one that rounds to nothing has no sign."""
    return f"{round(100 * value, 1) + 0.0:.1f}".removesuffix(".0").replace("-", "−") + " %"


def select_rows(frame: pd.DataFrame, **where: Any) -> pd.DataFrame:
    """Selects the rows with these labels; ``epsilon=None`` is no privacy."""
    kept: Any = frame
    for name, value in where.items():
        column = kept[name]
        kept = kept[column.isna() if value is None else column == value]
    return kept


SCORES = {"accuracy", "before_accuracy"}


Tops = dict[tuple[int, float], float]
"""Address of a frame and a start -> the mean of its best row from there, of one call of a judge."""


def _room(
    study: str, where: Mapping[str, Any], rows: Any, frames: Frames, tops: Tops
) -> tuple[float, float]:
    """Computes the start of these rows, and the mean of the task's best row at any budget.
    The best is taken in the study itself or in one whose name begins with the task, from the same
    start.

    A study with private rows only would take the best of these for the top, and that row's method
    would leave no room to any other.
    """
    if not {*frames[study].columns} >= SCORES:
        return math.nan, math.nan
    start = float(rows["before_accuracy"].mean())
    own = {name: value for name, value in where.items() if name == "setting"}
    task = study.split("-")[0]
    for case in STUDIES[study].cases if own and study in STUDIES else ():
        if case.labels["setting"] == own["setting"]:
            task = case.task[0]
    named = (x for name, x in frames.items() if name.split("-")[0] == task and " " not in name)
    alike = [x for x in named if " " not in study and {*x.columns} >= SCORES]

    def best(frame: Any) -> float:
        if (id(frame), start) not in tops:
            tops[id(frame), start] = mean_of_best(frame)
        return tops[id(frame), start]

    def mean_of_best(frame: Any) -> float:
        near = frame[(frame["before_accuracy"] - start).abs() < START]
        groups = near.groupby(["method", *label_columns(near)], dropna=False)
        return float(groups["accuracy"].mean().max())

    first = mean_of_best(select_rows(frames[study], **own)) if own else best(frames[study])
    return start, float(np.nanmax([first, *map(best, alike)]))


def _of_one_start(rows: Any, methods: list[str]) -> tuple[Any, int]:
    """Selects rows that begin where most of the place do, and counts those that do not.
    A study may have taken over runs of a model that has been made anew since.
    """
    own = rows[rows["method"].isin(methods)]
    if not {*rows.columns} >= SCORES:
        return own, 0
    apart = (own["before_accuracy"] - rows["before_accuracy"].mode().iloc[0]).abs() >= START
    return own[~apart], int(apart.sum())


class _Found(NamedTuple):
    """The effect of a claim at one place, or why there is none yet."""

    place: str
    study: str  # the frame that was read
    effect: Effect | None
    reason: str = ""


def _compared(claim: Claim, place: Mapping[str, Any]) -> list[str]:
    """Lists the methods whose rows a claim reads at one place."""
    takes, asked = signature(RULES[claim.judge["rule"]]).parameters, {**claim.judge, **place}
    names = ("method",) if "method" in takes else ("one", "other")
    return [asked[name] for name in names if name in asked]


def _find(claim: Claim, place: Mapping[str, Any], frames: Frames, tops: Tops) -> _Found:
    """Measures a claim at one place, in the frame of its study or that of the study's stand-in."""
    rule = RULES[claim.judge["rule"]]
    takes = signature(rule).parameters
    own = {k: v for k, v in {**claim.judge, **place}.items() if k in takes}
    where = {k: v for k, v in place.items() if k != "study" and k not in takes}
    methods, study = _compared(claim, place), place["study"]
    found = _Found(_words(study, where), study, None, f"study {study} is not there yet")
    for name, more in ((study, {}), STAND_INS.get(study, (study, {}))):
        if name not in frames:
            continue
        frame = frames[name]
        labels = {k: v for k, v in {**where, **more}.items() if k != own.get("label")}
        if unknown := [x for x in (*labels, own.get("label", "method")) if x not in frame]:
            found = found._replace(reason=f"study {name} has no column {', '.join(unknown)}")
            continue
        rows = frame
        for label, value in labels.items():
            rows = select_rows(rows, **{label: _end(rows[label], value)})
        ends = [_end(rows[own["label"]], end) for end in own.get("ends", ())]
        parts = [select_rows(rows, **{own["label"]: end}) for end in ends] or [rows]
        if missing := [x for x in methods if any(x not in {*part["method"]} for part in parts)]:
            found = found._replace(reason=f"study {name} has no runs of {', '.join(missing)} yet")
            continue
        rows, apart = _of_one_start(pd.concat(parts), methods)
        own |= {"ends": ends} if ends else {}
        data = _Data(rows, *_room(name, labels, rows, frames, tops))
        effect = rule(data, **own)
        said = [effect.count]
        if claim.sampled and {*rows.columns} >= SCORES and not name.endswith("screens"):
            said.append(_ends(data, methods))
        if apart:
            said.append(f"{apart} runs of another start left out")
        effect = effect._replace(count="; ".join(said))
        # A place may compare other rows than the claim does elsewhere.
        others = [str(place[x]) for x in ("method", "one", "other") if x in place]
        return _Found(", ".join((_words(name, labels), *others)), name, effect)
    return found


def judge(
    claim: Claim, place: Mapping[str, Any], frames: Frames, level: float = SHOWN
) -> ClaimResult:
    """Judges a claim at one place.

    Args:
        claim: what is judged.
        place: as in `Claim.places`: "study", labels that choose the rows, and arguments of the rule
            that differ there. "min" and "max" stand for the ends of a label's values, and
            ``None`` of epsilon for no privacy.
        frames: study -> frame.
        level: of the interval that decides.
    """
    return _told(claim, _find(claim, place, frames, {}), level)


def _end(values: Any, value: Any) -> Any:
    """Returns a label's value, or the smallest or largest that it has."""
    return values.agg(value) if value in ("min", "max") else value


def _words(study: str, labels: Mapping[str, Any]) -> str:
    return ", ".join((study, *(describe_label(k, _shown(v)) for k, v in labels.items())))


def _told(claim: Claim, found: _Found, level: float) -> ClaimResult:
    """Builds the verdict with the words and numbers that are shown."""
    where = {"place": found.place, "study": found.study}
    if (effect := found.effect) is None:
        return ClaimResult("–", WAITS, found.reason, **where)
    verdict, reason = decide(effect, claim.asked, level)
    low, mean, high = effect.at(SHOWN)
    if verdict == OPEN and (alone := decide(effect, claim.asked, SHOWN)[0]) != OPEN:
        reason = f"alone it would be: {alone}; the correction for all claims leaves it open"
    number = _share(mean)
    if low != high:
        number += f" [{_share(low)}, {_share(high)}]"
    words = " ".join(part for part in (f"{effect.what}: {number}", effect.unit) if part)
    asked, within = "", math.nan if effect.within is None else effect.within
    if effect.within is not None:
        asked = f"; asked: within ±{_share(within)}" if within >= 1e-3 else "; asked: 0"
    elif claim.numbers:
        asked = f"; claimed {_share(claim.claimed)}, asked: more than {_share(claim.asked)}"
    wide = effect.at(level)
    ends: Any = {"low": low, "high": high, "low_together": wide[0], "high_together": wide[2]}
    measured = f"{words}{asked}, {effect.count}"
    numbers: Any = {"mean": mean, **ends, "within": within, "unit": effect.unit}
    return ClaimResult(measured, verdict, reason, **numbers, **where)


def judge_claims(claims: tuple[Claim, ...], frames: Frames) -> pd.DataFrame:
    """Judges each claim at each of its places: a row for each.

    The verdict of a claim is that of the nearest place whose runs are there (``at`` is "home", or
    "stand-in" where it is not the nearest or an older study is read for it); the others stand
    beside it ("away"). The intervals that decide hold for all verdicts of the claims together
    (Bonferroni), and those away for all of these, so one of them misses in one table of twenty.

    Returns: slug, claim, source, tag, setting, at, place, measured, mean, low, high, low_together,
        high_together, within, unit, claimed, asked, command, verdict, reason.
    """
    tops: Tops = {}
    found = {one.slug: [_find(one, x, frames, tops) for x in one.places] for one in claims}
    main, count = {}, {"main": 0, "away": 0}
    for one in claims:
        there = [x.effect is not None for x in found[one.slug]]
        main[one.slug] = there.index(True) if any(there) else 0
        if one.sampled and any(there):
            count["main"] += 1
            count["away"] += sum(there) - 1
    levels = {name: 1 - (1 - SHOWN) / max(n, 1) for name, n in count.items()}
    lines = []
    for one in claims:
        own = {"slug": one.slug, "claim": one.text, "source": one.source, "tag": one.tag}
        own |= {"setting": one.setting, "claimed": one.claimed}
        own |= {"asked": one.asked if one.numbers else math.nan}
        if not one.places:
            told = ClaimResult("–", UNTESTED, one.judge["untested"])
            lines.append({**own, "at": "home", "command": "", **told._asdict()})
        for i, x in enumerate(found[one.slug]):
            decides = i == main[one.slug]
            told = _told(one, x, levels["main" if decides else "away"])
            near = i == 0 and x.study == one.places[0]["study"]
            line = {**own, **told._asdict(), "command": _command(x.study)}
            line["at"] = "away" if not decides else "home" if near else "stand-in"
            line["reason"] = "; ".join(y for y in (told.reason, one.note * decides) if y)
            lines.append(line)
    columns = "slug claim source tag setting at place measured mean low high low_together "
    columns += "high_together within unit claimed asked command verdict reason"
    return pd.DataFrame(lines)[columns.split()].round(4)


def _command(study: str) -> str:
    if study == "updates":
        return "python -m studies claims --measure"
    return f"python -m studies {study.removesuffix(' screens')}"


def screen_frame(name: str, path: Path) -> pd.DataFrame:
    """Tabulates the first seed's tuning runs of a study: a row a setting, method and rate.

    ``regret`` is by how much the validation score of a rate falls short of the method's best.
    """
    study, done = STUDIES[name], load_results(path)
    rows = []
    for case in study.cases:
        jobs = [job for job in study.screening_jobs(case) if job.key in done]
        scores = [done[job.key]["values"].get("accuracy") or 0.0 for job in jobs]
        for job, score in zip(jobs, scores, strict=True):
            base = {"study": f"{name} screens", "method": case.method.slug, **case.labels}
            before = done[job.key]["values"].get("before_accuracy", math.nan)
            base |= {"lr": done[job.key]["lr"], "seed": job.seed, "before_accuracy": before}
            rows.append({**base, "accuracy": score, "regret": max(scores) - score})
    return pd.DataFrame(rows)


def claim_frames(folder: str | Path = "results") -> dict[str, pd.DataFrame]:
    """Reads all frames that claims are judged by.
    They are those of the studies, of the tuning of studies that are whole ("NAME screens"), and of
    what `python -m studies claims --measure` measures ("updates").
    """
    folder = Path(folder)
    frames = read_studies(folder)
    for name in [name for name in frames if f"{name} screens" in SCREENS]:
        path = folder / "runs" / f"{name}.jsonl"
        if path.is_file() and len({*count_runs(STUDIES[name], path)}) == 1:
            frames[f"{name} screens"] = screen_frame(name, path)
    if (path := folder / "updates.csv").is_file():
        frames["updates"] = pd.read_csv(path)
    return frames


def claims_using(stale: Stale, claims: tuple[Claim, ...], frames: Frames) -> list[Claim]:
    """Lists the claims that read these rows at one of their places.

    Args: stale: the rows. claims, frames: as in `judge_claims`.
    Guarantees: test_claims_that_read_stale_rows_are_found.
    """

    def reads(claim: Claim, place: Mapping[str, Any]) -> bool:
        near = stale.study in (place["study"], *STAND_INS.get(place["study"], ()))
        if not near or stale.method not in _compared(claim, place):
            return False
        found = _find(claim, place, frames, {})
        return found.study == stale.study and found.effect is not None

    return [claim for claim in claims if any(reads(claim, place) for place in claim.places)]


def _claim(row: dict[str, Any]) -> Claim:
    row["places"] = tuple(row.get("places", ()))
    return Claim(**row)


_TABLE = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
CLAIMS = tuple(map(_claim, _TABLE))  # in the order of the page
PLACES = {place["study"] for claim in CLAIMS for place in claim.places}
SCREENS = PLACES | {older for older, _ in STAND_INS.values()}
"""Frames that claims read."""
_TWICE = "its filter acted twice in the client unit, on the local steps and on the noised update; "
STALE = (Stale("digits-clients", "la-lora", f"{_TWICE}it now acts once"),)
