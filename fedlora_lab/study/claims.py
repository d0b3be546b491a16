"""Published claims against the frames of the studies: a verdict is computed, never written."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedlora_lab.checks import check, check_one_of
from fedlora_lab.claims import Gap, paired
from fedlora_lab.study.guide import said
from fedlora_lab.study.verdicts import FAILS, HOLDS, OPEN, WAITS, Verdict, alike, beyond
from fedlora_lab.summary import t_interval

if TYPE_CHECKING:
    import pandas as pd

TAGS = ("primary", "secondary", "inferred")

Frames = Mapping[str, "pd.DataFrame"]
Judge = Callable[..., Verdict]
"""(frames, level) -> verdict: the 95 % interval is shown, that of ``level`` decides; 95 % by default."""
SHOWN = 0.95


@dataclass(frozen=True)
class Claim:
    """One published claim.

    Args:
        slug: short name, unique.
        text: what is claimed.
        source: arXiv id.
        tag: how far the source could be read: "primary", "secondary" or "inferred".
        setting: where it was claimed.
        judge: what decides.
        study: whose command makes the numbers; "" where nothing is measured.
        note: what a reader has to know beside the verdict.
    """

    slug: str
    text: str
    source: str
    tag: str
    setting: str
    judge: Judge
    study: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        check_one_of("tag", self.tag, TAGS)
        check("arXiv:" in self.source, "source", self.source, "an arXiv id")


@dataclass(frozen=True)
class Stale:
    """Rows of a committed study that are to be measured again: a study, a method of it, and why."""

    study: str
    method: str
    why: str


def chosen(frame: "pd.DataFrame", **where: Any) -> "pd.DataFrame":
    """The rows with these labels; ``epsilon=None`` is no privacy."""
    kept: Any = frame
    for name, value in where.items():
        column = kept[name]
        kept = kept[column.isna() if value is None else column == value]
    return kept


def _at(where: Mapping[str, Any]) -> str:
    """The labels in words, in brackets; nothing without labels."""
    words = ", ".join(said(name, math.nan if value is None else value) for name, value in sorted(where.items()))
    return f" ({words})" if words else ""


def _gaps(rows: "pd.DataFrame", one: str, other: str, measure: str, level: float) -> tuple[Gap, Gap]:
    """The difference with the interval that is shown, and with the one that decides."""
    return paired(rows, one, other, measure, SHOWN), paired(rows, one, other, measure, level)


def _fallen(rows: "pd.DataFrame", *methods: str) -> str:
    """How many runs ended below the accuracy before training, in words; nothing where none did."""
    told = ""
    for method in methods if "before_accuracy" in rows else ():
        part: Any = rows[rows["method"] == method]
        if low := int((part["accuracy"] < part["before_accuracy"]).sum()):
            told += f"; {low} of {len(part)} runs of {method} ended below the start"
    return told


def ahead(study: str, one: str, other: str, by: float = 0.0, measure: str = "accuracy", **where: Any) -> Judge:
    """One method is ahead of another by more than ``by``: holds when the whole interval is beyond it."""

    def judge(frames: Frames, level: float = SHOWN) -> Verdict:
        rows = chosen(frames[study], **where)
        told = f"{measure} of {one} above {other}{_at(where)}"
        return beyond(_gaps(rows, one, other, measure, level), told, by, _fallen(rows, one, other))

    return _where(judge, study, (one, other), where)


def shows(study: str, method: str, one: str, other: str, **where: Any) -> Judge:
    """Of one method, one measure is above another: holds when the whole interval is."""

    def judge(frames: Frames, level: float = SHOWN) -> Verdict:
        rows: Any = chosen(frames[study], method=method, **where)
        long = rows.melt(id_vars="seed", value_vars=[one, other], var_name="method", value_name="value")
        return beyond(_gaps(long, one, other, "value", level), f"{one} of {method} above its {other}{_at(where)}", 0.0)

    return _where(judge, study, (method,), where)


def _where(judge: Judge, study: str, methods: tuple[str, ...], where: Mapping[str, Any]) -> Judge:
    """A judge that says so when the frame has no runs of one of the methods in this setting."""

    def told(frames: Frames, level: float = SHOWN) -> Verdict:
        there = set(chosen(frames[study], **where)["method"])
        missing = [method for method in methods if method not in there]
        if missing:
            return Verdict("–", WAITS, f"the frame has no runs of {', '.join(missing)} in this setting yet")
        return judge(frames, level)

    return told


def equal(study: str, one: str, other: str, within: float, measure: str = "accuracy", **where: Any) -> Judge:
    """Two methods do not differ by more than ``within``: holds when the whole interval is inside."""

    def judge(frames: Frames, level: float = SHOWN) -> Verdict:
        gaps = _gaps(chosen(frames[study], **where), one, other, measure, level)
        return alike(gaps, f"{measure} of {one} above {other}{_at(where)}", within)

    return _where(judge, study, (one, other), where)


def unmoved(study: str, method: str, label: str, ends: tuple[float, float], within: float, **where: Any) -> Judge:
    """A knob turned from one end to the other moves a method's accuracy by no more than ``within``, paired by seed."""

    def judge(frames: Frames, level: float = SHOWN) -> Verdict:
        rows: Any = chosen(frames[study], method=method, **where)
        rows = rows[rows[label].isin(ends)].assign(method=lambda part: part[label].map(str))
        gaps = _gaps(rows, str(ends[1]), str(ends[0]), "accuracy", level)
        return alike(gaps, f"accuracy of {method} at {label} {ends[1]:g} above {ends[0]:g}{_at(where)}", within)

    return _where(judge, study, (method,), where)


def grows(study: str, method: str, measure: str, label: str, power: float, **where: Any) -> Judge:
    """An energy grows with this power of knob x learning rate: holds when the slope's interval is within 5 % of it.

    The slope is fitted on logarithms, seed by seed; the learning rate stands in it because it scales the noise of a
    step as the knob does, and is tuned for each setting.
    """
    import numpy as np

    def judge(frames: Frames, level: float = SHOWN) -> Verdict:
        rows: Any = chosen(frames[study], method=method, **where)
        if (rows[measure] == 0).all():
            return Verdict("–", FAILS, f"{measure} of {method} is zero")
        rows = rows[(rows[label] > 0) & (rows[measure] > 0)]
        slopes = [
            float(np.polyfit(np.log(part[label] * part["lr"]), np.log(part[measure]), 1)[0])
            for _, part in rows.groupby("seed")
            if len(part) > 1
        ]
        if len(slopes) < 2:
            return Verdict("–", OPEN, f"{measure} of {method} needs two seeds and two values of {label}")
        told = "energy {} of {} grows with power {:.2f} ± {:.2f} of {} × learning rate, {} seeds"
        measured = told.format(measure, method, *t_interval(np.array(slopes)), label, len(slopes))
        mean, half = t_interval(np.array(slopes), level)
        if abs(mean - power) + half <= 0.05 * power:
            return Verdict(measured, HOLDS)
        apart = abs(mean - power) - half > 0.05 * power
        return Verdict(measured, FAILS if apart else OPEN, f"claimed is {power:g}")

    return _where(judge, study, (method,), where)


def none(study: str, method: str, measure: str, **where: Any) -> Judge:
    """A measure is exactly zero in every run."""

    def judge(frames: Frames, level: float = SHOWN) -> Verdict:
        values: Any = chosen(frames[study], method=method, **where)[measure]
        if values.isna().any():
            return Verdict("–", OPEN, f"{measure} of {method} was not measured in every run")
        told = f"{measure} of {method}: at most {values.max():.3g} over {len(values)} runs"
        return Verdict(told, HOLDS) if (values == 0).all() else Verdict(told, FAILS, "it is there")

    return _where(judge, study, (method,), where)


def both(*judges: Judge) -> Judge:
    """All parts must hold; one that fails decides. The level is that of all parts together."""

    def judge(frames: Frames, level: float = SHOWN) -> Verdict:
        found = [each(frames, 1 - (1 - level) / len(judges)) for each in judges]
        measured = "; ".join(part.measured for part in found)
        good = sum(part.verdict == HOLDS for part in found)
        some = [f"{good} of {len(found)} parts hold"] if good else []
        for word in (FAILS, WAITS, OPEN):
            reasons = [f"part {i}: {part.reason}" for i, part in enumerate(found, 1) if part.verdict == word]
            if reasons:
                return Verdict(measured, word, "; ".join([*some, *reasons]))
        return Verdict(measured, HOLDS)

    return judge


def untested(reason: str) -> Judge:
    """Nothing here can speak to the claim."""
    return lambda frames, level=SHOWN: Verdict("–", OPEN, f"not measured: {reason}")


def ledger(claims: "tuple[Claim, ...]", frames: Frames) -> "pd.DataFrame":
    """The claims as a frame: slug, claim, source, tag, setting, measured, command, verdict, reason.

    A claim whose study is not there is told so, and not judged. Many claims are looked at: the intervals that decide
    are those that hold for all measured claims together (Bonferroni), so one of them misses in one ledger of twenty.
    """
    import pandas as pd

    rows, measured = [], sum(bool(claim.study) for claim in claims)
    level = 1 - (1 - SHOWN) / max(measured, 1)
    for claim in claims:
        there = not claim.study or claim.study in frames
        missing = Verdict("–", WAITS, f"`fedlora-lab study {claim.study}` was not run")
        found = claim.judge(frames, level) if there else missing
        reason = "; ".join(part for part in (found.reason, claim.note) if part)
        command = f"fedlora-lab study {claim.study}" if claim.study else ""
        told = [claim.slug, claim.text, claim.source, claim.tag, claim.setting]
        rows.append([*told, found.measured, command, found.verdict, reason])
    columns = ["slug", "claim", "source", "tag", "setting", "measured", "command", "verdict", "reason"]
    return pd.DataFrame(rows, columns=columns)


def readers(stale: Stale, claims: "tuple[Claim, ...]", frames: Frames) -> "list[Claim]":
    """The claims whose verdict rests on these rows: without them they could not be judged.

    Guarantees: test_claims_that_read_stale_rows_are_found.
    """
    if stale.study not in frames:
        return []
    frame = frames[stale.study]
    without = {**frames, stale.study: frame[frame["method"] != stale.method]}
    asked = [claim for claim in claims if claim.study == stale.study]
    return [claim for claim in asked if claim.judge(without).verdict == WAITS != claim.judge(frames).verdict]
