"""Claims of the literature (paper_claims.json): each with its source, how far that could be read,
and the rule by which the committed studies judge it."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from fedlora_lab._utils.validation import check, check_one_of
from fedlora_lab.experiments.method_guide import Frames, describe_label
from fedlora_lab.report.paired_differences import PairedDifference, paired_difference
from fedlora_lab.report.summary_table import t_interval

HOLDS, FAILS, OPEN = "holds", "does not hold here", "cannot be tested at this scale"
WAITS = "not run yet"
VERDICTS = (HOLDS, FAILS, OPEN, WAITS)
SHOWN = 0.95  # level of the interval that is shown; many claims are decided by a wider one


class Verdict(NamedTuple):
    """What was measured for a claim, in words with intervals, the verdict, and the reason."""

    measured: str
    verdict: str
    reason: str = ""


@dataclass(frozen=True)
class Claim:
    """One published claim."""

    slug: str
    text: str
    source: str  # arXiv id
    tag: str  # how far it could be read: "primary", "secondary" or "inferred"
    setting: str  # where it was claimed
    judge: Mapping[str, Any]  # the rule that decides, see `judge`
    study: str = ""  # whose command makes the numbers; "" where nothing is measured
    note: str = ""  # what a reader has to know beside the verdict

    def __post_init__(self) -> None:
        check_one_of("tag", self.tag, ("primary", "secondary", "inferred"))
        check("arXiv:" in self.source, "source", self.source, "an arXiv id")


class Stale(NamedTuple):
    """Rows of a committed study that are to be measured again: a study, a method of it, and why."""

    study: str
    method: str
    why: str


class _Data(NamedTuple):
    """The rows of one setting, the setting in words, and the level of the interval that decides."""

    rows: Any
    at: str
    level: float


def _decide(
    data: _Data, what: str, pair: tuple[str, str], by: float, within: float | None, measure: str
) -> Verdict:
    """A difference above ``by``, or within ±``within``, holds when its whole interval lies there,
    and fails when none of it does."""
    shown, found = (paired_difference(data.rows, *pair, measure, x) for x in (SHOWN, data.level))
    if within is None:
        low, high, asked = by, math.inf, f"; asked: above {by:+.2f}" if by else ""
        fails, edge = f"the whole interval is below {by:+.2f}", f"the interval holds {by:g}"
        if not found.low <= 0 <= found.high:
            fails = "the other is ahead" if found.high < 0 else "it is ahead, but by less"
    else:
        low, high, asked = -within, within, f"; asked: within ±{within:g}"
        fails = f"they differ by more than {within:g}"
        edge = f"the interval reaches beyond ±{within:g}"

    def place(x: PairedDifference) -> str:
        if low < x.low and x.high < high:
            return HOLDS
        return FAILS if x.high < low or x.low > high else OPEN

    words = {HOLDS: "", FAILS: fails, OPEN: f"undecided: {edge}"}
    if place(found) == OPEN != (alone := place(shown)):
        told = "holds" if alone == HOLDS else "fails"
        corrected = "but not after correcting for the number of claims"
        words[OPEN] = f"undecided: it {told} on its own, {corrected}"
    measured = f"{what}{data.at}: {shown}, {shown.seeds} seeds{asked}"
    return Verdict(measured, place(found), words[place(found)])


def _compare(
    data: _Data,
    one: str,
    other: str,
    by: float = 0.0,
    within: float | None = None,
    measure: str = "accuracy",
) -> Verdict:
    """One method is ahead of another by more than ``by``, or differs by less than ``within``."""
    found = _decide(data, f"{measure} of {one} above {other}", (one, other), by, within, measure)
    declined = ""  # an interval hides that one run of ten ended worse than it began
    watched = within is None and "before_accuracy" in data.rows
    for method in (one, other) if watched else ():
        part = data.rows[data.rows["method"] == method]
        if low := int((part["accuracy"] < part["before_accuracy"]).sum()):
            declined += f"; {low} of {len(part)} runs of {method} ended below the start"
    return found._replace(measured=found.measured + declined)


def _measure_ahead(data: _Data, method: str, one: str, other: str) -> Verdict:
    """Of one method, one measure is above another."""
    names: Any = {"var_name": "method", "value_name": "value"}
    long = data.rows.melt(id_vars="seed", value_vars=[one, other], **names)
    what = f"{one} of {method} above its {other}"
    return _decide(data._replace(rows=long), what, (one, other), 0.0, None, "value")


def _insensitive(data: _Data, method: str, label: str, ends: Any, within: float) -> Verdict:
    """A knob turned from end to end moves a method's accuracy by no more than ``within``."""
    rows = data.rows[data.rows[label].isin(ends)]
    data = data._replace(rows=rows.assign(method=rows[label].map(str)))
    what = f"accuracy of {method} at {label} {ends[1]:g} above {ends[0]:g}"
    return _decide(data, what, (str(ends[1]), str(ends[0])), 0.0, within, "accuracy")


def _power_law(data: _Data, method: str, measure: str, label: str, power: float) -> Verdict:
    """An energy grows with this power of knob x learning rate: holds when the slope's interval is
    within 5 % of it.

    The slope is fitted on logarithms, seed by seed; the learning rate stands in it because it
    scales the noise of a step as the knob does, and is tuned for each setting.
    """
    rows = data.rows[data.rows[label] > 0]
    if (data.rows[measure] == 0).all():
        return Verdict("–", FAILS, f"{measure} of {method} is zero")
    parts = [part for _, part in rows[rows[measure] > 0].groupby("seed") if len(part) > 1]
    points = [(np.log(part[label] * part["lr"]), np.log(part[measure])) for part in parts]
    slopes = np.array([np.polyfit(*point, 1)[0] for point in points])
    if len(slopes) < 2:
        reason = f"{measure} of {method} needs two seeds and two values of {label}"
        return Verdict("–", OPEN, reason)
    mean, half = t_interval(slopes)
    measured = f"energy {measure} of {method} grows with power {mean:.2f} ± {half:.2f} of {label} "
    measured += f"× learning rate, {len(slopes)} seeds"
    off, half = abs(mean - power), t_interval(slopes, data.level)[1]
    if off + half <= 0.05 * power:
        return Verdict(measured, HOLDS)
    return Verdict(measured, FAILS if off - half > 0.05 * power else OPEN, f"claimed is {power:g}")


def _always_zero(data: _Data, method: str, measure: str) -> Verdict:
    """A measure is exactly zero in every run."""
    values = data.rows[measure]
    if values.isna().any():
        return Verdict("–", OPEN, f"{measure} of {method} was not measured in every run")
    measured = f"{measure} of {method}: at most {values.max():.3g} over {len(values)} runs"
    zero = bool((values == 0).all())
    return Verdict(measured, HOLDS if zero else FAILS, "" if zero else "it is not zero")


def _all(found: list[Verdict]) -> Verdict:
    """All parts must hold; one that fails decides, before one that waits and one that is open."""
    measured = "; ".join(part.measured for part in found)
    good = sum(part.verdict == HOLDS for part in found)
    some = [f"{good} of {len(found)} parts hold"] if good else []
    for word in (FAILS, WAITS, OPEN):
        parts = [f"part {i}: {x.reason}" for i, x in enumerate(found, 1) if x.verdict == word]
        if parts:
            return Verdict(measured, word, "; ".join([*some, *parts]))
    return Verdict(measured, HOLDS)


RULES = {"ahead": _compare, "equal": _compare, "measure_ahead": _measure_ahead}
RULES |= {"insensitive": _insensitive, "power_law": _power_law, "always_zero": _always_zero}


def select_rows(frame: pd.DataFrame, **where: Any) -> pd.DataFrame:
    """The rows with these labels; ``epsilon=None`` is no privacy."""
    kept: Any = frame
    for name, value in where.items():
        column = kept[name]
        kept = kept[column.isna() if value is None else column == value]
    return kept


def judge(rule: Mapping[str, Any], frames: Frames, level: float = SHOWN) -> Verdict:
    """The verdict of the frames on a claim.

    Args:
        rule: ``rule`` names one of `RULES`, "all" (with ``parts``, whose level is that of all
            together) or "untested" (with a ``reason``); ``study`` the frame; then the rule's own
            arguments, and labels that choose the rows.
        frames: study -> frame.
        level: of the interval that decides; that of 95 % is shown.
    """
    given = dict(rule)
    kind = given.pop("rule")
    if kind == "untested":
        return Verdict("–", OPEN, f"not measured: {given['reason']}")
    if kind == "all":
        parts = given["parts"]
        return _all([judge(part, frames, 1 - (1 - level) / len(parts)) for part in parts])
    frame, takes = frames[given.pop("study")], signature(RULES[kind]).parameters
    where = {name: value for name, value in sorted(given.items()) if name not in takes}
    own = {name: value for name, value in given.items() if name in takes}
    rows = select_rows(frame, **where)
    methods = (own["method"],) if "method" in own else (own["one"], own["other"])
    if missing := [method for method in methods if method not in set(rows["method"])]:
        reason = f"the frame has no runs of {', '.join(missing)} in this setting yet"
        return Verdict("–", WAITS, reason)
    labels = (describe_label(name, math.nan if x is None else x) for name, x in where.items())
    at = f" ({', '.join(labels)})" if where else ""
    if "method" in own:
        rows = select_rows(rows, method=own["method"])
    return RULES[kind](_Data(rows, at, level), **own)


def judge_claims(claims: tuple[Claim, ...], frames: Frames) -> pd.DataFrame:
    """Judges the claims: slug, claim, source, tag, setting, measured, command, verdict, reason.

    A claim whose study is not there waits. Many claims are looked at: the intervals that decide are
    those that hold for all measured claims together (Bonferroni), so one of them misses in one
    table of twenty.
    """
    rows, measured = [], sum(bool(claim.study) for claim in claims)
    level = 1 - (1 - SHOWN) / max(measured, 1)
    for one in claims:
        command = f"fedlora-lab study {one.study}" if one.study else ""
        found = Verdict("–", WAITS, f"`{command}` was not run")
        if not one.study or one.study in frames:
            found = judge(one.judge, frames, level)
        reason = "; ".join(part for part in (found.reason, one.note) if part)
        own = one.slug, one.text, one.source, one.tag, one.setting
        rows.append((*own, found.measured, command, found.verdict, reason))
    columns = "slug claim source tag setting measured command verdict reason"
    return pd.DataFrame(rows, columns=columns.split())


def claims_using(stale: Stale, claims: tuple[Claim, ...], frames: Frames) -> list[Claim]:
    """The claims whose verdict rests on these rows: without them they could not be judged.

    Args: stale: the rows. claims, frames: as in `judge_claims`.
    Guarantees: test_claims_that_read_stale_rows_are_found.
    """
    if stale.study not in frames:
        return []
    frame = frames[stale.study]
    without = {**frames, stale.study: frame[frame["method"] != stale.method]}

    def waits(claim: Claim, frames: Frames) -> bool:
        return judge(claim.judge, frames).verdict == WAITS

    asked = (claim for claim in claims if claim.study == stale.study)
    return [claim for claim in asked if waits(claim, without) and not waits(claim, frames)]


_TABLE = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
CLAIMS = tuple(Claim(**row) for row in _TABLE)  # in the order of the page
_TWICE = "its filter acted twice in the client unit, on the local steps and on the noised update; "
STALE = (Stale("digits-clients", "la-lora", f"{_TWICE}it now acts once"),)
