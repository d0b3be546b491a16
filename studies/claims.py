"""Judges published claims by the committed studies.

A claim is a row of claims.json: who claims it, how far the source could be read, the rule that
compares, and the places where it is judged, the nearest to the paper first. One function, `decide`,
turns an interval into a verdict.

An effect is a share: of the room (what the best row of a task reached, less its start), or of the
other method's value. So is what was claimed, and no task is asked for points that it cannot give.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from fedlora_lab.measures.statistics import find_collapsed_by_group, seed_pairs, t_interval
from studies.declared import STUDIES
from studies.runner import count_runs, load_results, read_studies

Frames = Mapping[str, pd.DataFrame]
Place = Mapping[str, Any]
LETTERS = {"epsilon": "ε", "alpha": "β"}
"""Label -> the letter that stands for it."""
HOLDS = "holds"
OPPOSITE = "opposite"
SAME = "no difference of that size"
OPEN = "cannot tell"
FULL = "no room here"
WAITS = "not run yet"
UNTESTED = "not measured here"
VERDICTS = (HOLDS, OPPOSITE, SAME, OPEN, FULL, WAITS, UNTESTED)
SHOWN = 0.95
"""Level of the interval that is shown; claims are decided by wider ones."""
SMALL = 0.1
"""Share of the room below which a difference counts as none, where no size was claimed."""
HALF = 0.5
"""Share of the claimed size that is asked for."""
START = 0.01
"""Accuracies before training that differ by more are those of two models."""
STALE = {
    ("digits-clients", "la-lora"): "its filter acted twice in the client unit, on the local steps "
    "and on the noised update; it now acts once"
}
"""Study and method of committed rows that are to be measured again -> why."""


@dataclass(frozen=True)
class Claim:
    """One published claim.

    Args:
        slug, text: its name, and one sentence.
        source: arXiv id.
        tag: how far it could be read: "primary", "secondary" or "inferred".
        setting: where it was claimed.
        judge: the rule that decides and its arguments, see `RULES`; or ``{"untested": reason}``.
        places: studies with labels that choose the rows, the nearest to the paper first; a place
            may have arguments of the rule that differ there.
        numbers: as published: one, other, best and start (of the room), or one and other alone.
        note: what a reader has to know beside the verdict.
    """

    slug: str
    text: str
    source: str
    tag: str
    setting: str
    judge: Mapping[str, Any]
    places: tuple[Place, ...] = ()
    numbers: Mapping[str, float] = field(default_factory=dict)
    note: str = ""

    @property
    def claimed(self) -> float:
        """The size that was claimed, as a share; NaN where none was."""
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

    def arguments(self, place: Place) -> dict[str, Any]:
        """The arguments of the rule at a place."""
        both = {**self.judge, **place}
        return {name: both[name] for name in ARGUMENTS if name in both}

    def methods(self, place: Place) -> list[str]:
        """The methods whose rows are read at a place."""
        arguments = self.arguments(place)
        names = ("method",) if "method" in arguments else ("one", "other")
        return [arguments[name] for name in names]


ARGUMENTS = ("one", "other", "method", "measure", "measures", "label", "ends", "within", "by")
ARGUMENTS += ("power", "below", "share_of")
"""What rules are given; anything else that a place names is a label of its study."""


class Rows(NamedTuple):
    """The rows of a place, and the room of its task: accuracy at the start, and of the best."""

    frame: Any
    start: float
    best: float

    @property
    def room(self) -> float:
        return self.best - self.start


@dataclass(frozen=True)
class Effect:
    """A measured difference as a share.

    Args:
        what: was measured, in words.
        values: one a seed; of logarithms of ratios if ``ratio``. A single number is exact.
        unit, count: what it is a share of, and how many values it has, in words.
        within: asked for is no difference beyond this; ``None``: a lead.
        spare: share of the room that the other method leaves.
        gained: share of the room that the better of the two took.
    """

    what: str
    values: Any
    unit: str = "of the room"
    count: str = ""
    ratio: bool = False
    within: float | None = None
    spare: float = math.inf
    gained: float = math.inf

    def interval(self, level: float) -> tuple[float, float, float]:
        """Low end, mean and high end at a level of confidence."""
        if np.ndim(self.values) == 0:
            return (self.values,) * 3
        mean, half = t_interval(np.asarray(self.values, float), level)
        if self.ratio:  # by how much one number is below another
            return 1 - math.exp(mean + half), 1 - math.exp(mean), 1 - math.exp(mean - half)
        return mean - half, mean, mean + half


# ---- rules: the rows of a place -> an effect


def lead(
    rows: Rows, one: str, other: str, within: float | None = None, measure: str = "accuracy"
) -> Effect:
    """One method is ahead of another; or, with ``within``, as good as it."""
    table = seed_pairs(rows.frame, one, other, measure)
    effect = Effect(
        f"lead of {one} over {other}",
        (table[one] - table[other]) / rows.room,
        count=f"{len(table)} seeds",
        within=within,
    )
    if measure != "accuracy":
        return replace(effect, what=f"{effect.what} in {measure}")
    means = (table.mean() - rows.start) / rows.room
    spare = (rows.best - table[other].mean()) / rows.room
    return replace(effect, spare=spare, gained=float(means.max()))


def more(rows: Rows, one: str, other: str, measure: str) -> Effect:
    """A measure that is a share by itself is larger for one method."""
    table = seed_pairs(rows.frame, one, other, measure)
    means = f"{table[one].mean():.2f} and {table[other].mean():.2f}"
    what = f"{measure} of {one} less that of {other} ({means})"
    return Effect(what, table[one] - table[other], "", f"{len(table)} seeds")


def less(rows: Rows, one: str, other: str, measure: str, within: float | None = None) -> Effect:
    """A positive measure is smaller for one method, by a share of the other's."""
    logs: Any = np.log(seed_pairs(rows.frame, one, other, measure))
    what = f"how far {measure} of {one} lies below that of {other}"
    values = logs[one] - logs[other]
    return Effect(what, values, "of the other's", f"{len(logs)} seeds", ratio=True, within=within)


def fewer_bytes(rows: Rows, one: str, other: str, measures: list[str]) -> Effect:
    """One method sends or receives less; nothing of it is chance."""
    sent = rows.frame[measures].sum(axis=1).groupby(rows.frame["method"]).mean()
    what = f"how much less {' and '.join(measures)} {one} has than {other}"
    return Effect(what, 1 - float(sent[one] / sent[other]), "of the other's", "counted")


def steadier(rows: Rows, one: str, other: str) -> Effect:
    """Results spread less over the seeds: standard deviations, pooled over the settings of a place.

    The interval is that of Miller (1968): Student's, over what each seed adds to the logarithm of
    the ratio (the jackknife). That of F supposes normal results, and one collapsed run is enough
    to make it far too short.
    """
    settings = rows.frame.groupby(["method", *label_columns(rows.frame)], dropna=False).ngroup()
    frame = rows.frame.assign(setting=settings)
    count = frame["seed"].nunique()
    logs = {}
    sizes = []
    for method in (one, other):
        part = frame[frame["method"] == method]
        table = part.pivot(index="seed", columns="setting", values="accuracy")
        number = table.count()
        square = (table - table.mean()) ** 2
        log_std = 0.5 * np.log(square.sum().sum() / (number - 1).sum())
        # Without one of its numbers a sum of squares is less by n / (n - 1) of that one's square.
        left = square.sum().sum() - (square * number / (number - 1)).sum(axis=1)
        free = (number - 1).sum() - table.notna().sum(axis=1)
        logs[method] = count * log_std - (count - 1) * 0.5 * np.log(left / free)
        sizes.append(f"{100 * math.exp(log_std):.1f}")
    low = f"the standard deviation over seeds of {one} lies below that of {other}"
    what = f"how far {low} ({' and '.join(sizes)} points)"
    values = (logs[one] - logs[other]).dropna()
    return Effect(what, values, "of the other's", f"{count} seeds", ratio=True)


def change_of_lead(
    rows: Rows, one: str, other: str, label: str, ends: Any, within: float | None = None
) -> Effect:
    """Turning a knob from the first end to the second costs one method less than the other; or,
    with ``within``, leaves the lead of one over the other as it is."""
    at_ends = [select_rows(rows.frame, **{label: end}) for end in ends]
    before, after = (seed_pairs(part, one, other, "accuracy") for part in at_ends)
    change = (after[one] - after[other] - before[one] + before[other]) / rows.room
    first, last = (describe_label(label, end) for end in ends)
    what = f"loss of {other} from {first} to {last}, less that of {one}"
    if within is not None:
        what = f"lead of {one} over {other} ({last}) less that lead ({first})"
    change = change.dropna()
    return Effect(what, change, count=f"{len(change)} seeds", within=within)


def own_lead(rows: Rows, method: str, one: str, other: str) -> Effect:
    """Of one method, one accuracy is above another."""
    gap = (rows.frame[one] - rows.frame[other]) / rows.room
    return Effect(f"{one} of {method} less its {other}", gap, count=f"{len(gap)} seeds")


def insensitive(rows: Rows, method: str, label: str, ends: Any, within: float) -> Effect:
    """A knob turned from end to end moves a method's accuracy by no more than ``within``."""
    first, last = (f"{method} at {describe_label(label, end)}" for end in ends)
    at_ends = [
        select_rows(rows.frame, **{label: end}).assign(method=name)
        for end, name in zip(ends, (first, last), strict=True)
    ]
    effect = lead(rows._replace(frame=pd.concat(at_ends)), last, first, within)
    what = f"accuracy of {last} less that at {describe_label(label, ends[0])}"
    return replace(effect, what=what)


def forgiving(rows: Rows, one: str, other: str) -> Effect:
    """A rate drawn from the grid costs less: the mean shortfall from the own best rate."""
    keys = [*label_columns(rows.frame), "method"]
    # Every rate of the grid counts alike, as if it were drawn.
    table = rows.frame.groupby(keys, dropna=False)["regret"].mean().unstack()
    gap = (table[other] - table[one]).dropna() / rows.room
    means = " and ".join(share(table[x].mean() / rows.room) for x in (one, other))
    what = f"how far the mean loss of {one} from a rate drawn at random lies below that of {other}"
    return Effect(f"{what} ({means})", gap, count=f"{len(gap)} settings")


def at_least(rows: Rows, method: str, measure: str, by: float) -> Effect:
    """A measure of one method is above a number."""
    values = rows.frame[measure]
    what = f"{measure} of {method} ({values.mean():.3f}) less {by:g}"
    return Effect(what, values - by, "", f"{len(values)} seeds")


def power_law(rows: Rows, method: str, measure: str, label: str, power: float) -> Effect:
    """An energy grows with this power of knob x learning rate, to 5 %.

    The slope is fitted on logarithms, seed by seed; the learning rate stands in it because it
    scales the noise of a step as the knob does, and is tuned for each setting.
    """
    # Without noise there is no energy whose logarithm could be taken.
    frame = rows.frame[(rows.frame[label] > 0) & (rows.frame[measure] > 0)]
    slopes = []
    for _, part in frame.groupby("seed"):
        if len(part) > 1:
            knob = np.log(part[label] * part["lr"])
            slopes.append(np.polyfit(knob, np.log(part[measure]), 1)[0])
    slope = f"{measure} of {method} ({np.mean(slopes):.2f}) less {power:g}"
    what = f"power of {label} × learning rate in {slope}"
    values = np.array(slopes) / power - 1
    return Effect(what, values, f"of {power:g}", f"{len(slopes)} seeds", within=0.05)


def always_zero(
    rows: Rows, method: str, measure: str, below: float = 0.0, share_of: Iterable[str] = ()
) -> Effect:
    """A measure, or its share of a sum, is zero in every run, but for rounding."""
    values = rows.frame[measure]
    what = f"largest {measure} of {method}"
    if share_of:
        total = rows.frame[list(share_of)].sum(axis=1)
        values = values / total.where(total > 0, 1.0)  # a run without noise has no share of it
        what += f" as a share of {' + '.join(share_of)}"
    top = math.nan if values.isna().any() else float(values.max())
    return Effect(what, top, "", f"{len(values)} runs", within=below)


RULES: dict[str, Callable[..., Effect]] = {
    rule.__name__: rule
    for rule in (lead, more, less, fewer_bytes, steadier, change_of_lead, own_lead)
    + (insensitive, forgiving, at_least, power_law, always_zero)
}


def decide(effect: Effect, asked: float, level: float) -> tuple[str, str]:
    """Decides the verdict of an interval, and gives its reason.

    Where the other method is near the top, or both took less of the room than the lead that is
    asked, no lead can be seen. But want of room makes no deficit: whoever is behind by more than
    `SMALL` is behind. Only a smaller deficit gives way to it, for near the top methods differ by
    what tuning left.

    Args: effect: measured. asked: a lead has to exceed it. level: of the interval that decides.
    Guarantees: test_claims.py::test_an_interval_gives_one_verdict.
    """
    low, _, high = effect.interval(level)
    if not math.isfinite(low + high):
        return OPEN, "not measured in every run"
    if (within := effect.within) is not None:
        if low > within or high < -within:
            return OPPOSITE, f"they differ by more than {share(within)}"
        if effect.gained < SMALL:
            return FULL, "neither learned, so equality says nothing"
        if -within <= low and high <= within:
            return HOLDS, ""
        return OPEN, f"the interval reaches beyond ±{share(within)}"
    if low > asked:
        return HOLDS, ""
    if high < -SMALL:
        return OPPOSITE, "the other method leads"
    if effect.gained < max(SMALL, asked):
        return FULL, f"the better of the two gained only {share(effect.gained)} of the room"
    if effect.spare < (asked or SMALL):
        behind = f"; it leads by less than {share(SMALL)}" if high < 0 else ""
        left = share(max(effect.spare, 0))
        return FULL, f"the other method leaves only {left} of the room to gain{behind}"
    if high < 0:
        return OPPOSITE, "the other method leads"
    if asked and high < asked:
        ahead = "it is ahead, but by less" if low > 0 else "a lead of that size is ruled out"
        return SAME, f"{ahead}: {share(asked)} is asked, half of what was claimed"
    if not asked and low > -SMALL and high < SMALL:
        return SAME, f"the two are within ±{share(SMALL)}"
    if low > 0:
        return OPEN, f"it is ahead; whether by the {share(asked)} asked is open"
    return OPEN, f"the interval includes {share(asked)}"


# ---- from frames to rows


def share(value: float) -> str:
    """Formats a share in per cent; one that rounds to nothing has no sign."""
    return f"{round(100 * value, 1) + 0.0:.1f}".removesuffix(".0").replace("-", "−") + " %"


def describe_label(name: str, value: Any) -> str:
    """Describes a label in words; an ε that is missing is no privacy."""
    if name == "epsilon" and pd.isna(value):
        return "no privacy"
    text = f"{value:g}" if isinstance(value, float | int) else value
    return f"{LETTERS.get(name, name)} = {text}"


def describe_place(study: str, labels: Place) -> str:
    """Describes a study and the labels that choose its rows."""
    return ", ".join((study, *(describe_label(k, v) for k, v in labels.items())))


def label_columns(frame: pd.DataFrame) -> list[str]:
    """Lists the columns that tell the cases of a study apart, between method and rate."""
    columns = list(frame.columns)
    return columns[columns.index("method") + 1 : columns.index("lr")]


def select_rows(frame: pd.DataFrame, **where: Any) -> pd.DataFrame:
    """Selects the rows with these labels; ``epsilon=None`` is no privacy."""
    rows: Any = frame
    for name, value in where.items():
        column = rows[name]
        rows = rows[column.isna() if value is None else column == value]
    return rows


def end_of(values: pd.Series, end: Any) -> Any:
    """A label's value; "min" and "max" stand for the ends of those that it has."""
    return values.agg(end) if end in ("min", "max") else end


def mean_scores(frame: pd.DataFrame) -> pd.DataFrame:
    """Accuracy before training and at the end of every row and setting, in the mean."""
    scores = ["before_accuracy", "accuracy"]
    if not {*scores} <= {*frame.columns}:
        return pd.DataFrame(columns=[*frame.columns, *scores])
    keys = ["method", *label_columns(frame)]
    return frame.groupby(keys, dropna=False)[scores].mean().reset_index()


def best_of_task(study: str, labels: Place, start: float, means: Frames) -> float:
    """Returns the mean of the task's best row at any budget that began at the same accuracy.

    It is taken in the study itself and in those whose name begins with the task: a study with
    private rows only would take the best of these for the top, and that row's method would leave no
    room to any other. A study of several tasks has a label "setting".
    """
    setting = {name: value for name, value in labels.items() if name == "setting"}
    task = study.split("-")[0]
    for case in STUDIES[study].cases if setting else ():
        if case.labels["setting"] == setting["setting"]:
            task = case.task[0]
    tables = [select_rows(means[study], **setting)]
    if " " not in study:
        names = [name for name in means if name.split("-")[0] == task and " " not in name]
        tables += [means[name] for name in names if name != study]
    # Another start is another model of the task, whose top cannot be reached from here.
    near = [table[(table["before_accuracy"] - start).abs() < START] for table in tables]
    return max(table["accuracy"].max() for table in near if len(table))


def describe_runs(rows: Rows, methods: Iterable[str]) -> str:
    """Counts runs that collapsed or gained little, and notes a rate at the edge of its grid."""
    notes = []
    count = 0
    collapsed = 0
    for method in methods:
        part = select_rows(rows.frame, method=method)
        gains = part["accuracy"] - part["before_accuracy"]
        keys = [part[name] for name in ("method", *label_columns(part))]
        settings = gains.groupby(keys, dropna=False)
        low = int(find_collapsed_by_group(settings).sum())
        little = int((gains < SMALL * rows.room).sum())
        count += len(part)
        collapsed += low
        if low:
            notes.append(f"{low} of {len(part)} runs of {method} collapsed")
        if little > low:
            notes.append(f"{little} of {len(part)} of {method} gained less than {share(SMALL)}")
        if "at_edge" in part and part["at_edge"].any():
            notes.append(f"the rate of {method} lies at the edge of its grid")
    return "; ".join([*([] if collapsed else [f"0 of {count} runs collapsed"]), *notes])


class Found(NamedTuple):
    """The effect of a claim at a place, or why there is none yet."""

    place: str
    study: str
    effect: Effect | None
    reason: str = ""


def measure_at(claim: Claim, place: Place, frames: Frames, means: Frames) -> Found:
    """Measures a claim at one of its places.

    Args: claim, place: what and where. frames: study -> rows. means: study -> `mean_scores`.
    """
    study = place["study"]
    arguments = claim.arguments(place)
    methods = claim.methods(place)
    labels = {k: v for k, v in place.items() if k != "study" and k not in ARGUMENTS}
    if study not in frames:
        return Found(describe_place(study, labels), study, None, f"study {study} is not there yet")
    frame = frames[study]
    for name, value in labels.items():
        frame = select_rows(frame, **{name: end_of(frame[name], value)})
    frame = frame[frame["method"].isin(methods)]
    at_ends = [frame]
    if "ends" in arguments:
        label = arguments["label"]
        arguments["ends"] = [end_of(frame[label], end) for end in arguments["ends"]]
        at_ends = [select_rows(frame, **{label: end}) for end in arguments["ends"]]
    # A knob is judged only where both methods have runs at both of its ends.
    if missing := [x for x in methods if any(x not in {*part["method"]} for part in at_ends)]:
        reason = f"study {study} has no runs of {', '.join(missing)} yet"
        return Found(describe_place(study, labels), study, None, reason)
    frame = pd.concat(at_ends)
    start = float(frame["before_accuracy"].mean())
    rows = Rows(frame, start, best_of_task(study, labels, start, means))
    effect = RULES[claim.judge["rule"]](rows, **arguments)
    if claim.sampled and not study.endswith("screens"):
        effect = replace(effect, count=f"{effect.count}; {describe_runs(rows, methods)}")
    # A place may compare other rows than the claim does elsewhere.
    compared = [str(place[x]) for x in ("method", "one", "other") if x in place]
    return Found(", ".join((describe_place(study, labels), *compared)), study, effect)


def verdict_row(claim: Claim, found: Found, level: float) -> dict[str, Any]:
    """Judges what was measured, with the words and numbers that are shown.

    Args: claim, found: of `measure_at`. level: of the interval that decides.
    """
    row: dict[str, Any] = {"place": found.place, "command": command(found.study)}
    effect = found.effect
    if effect is None:
        return {**row, "measured": "–", "verdict": WAITS, "reason": found.reason, "unit": ""}
    verdict, reason = decide(effect, claim.asked, level)
    alone, _ = decide(effect, claim.asked, SHOWN)
    if verdict == OPEN != alone:
        reason = f"alone it would be: {alone}; the correction for all claims leaves it open"
    low, mean, high = effect.interval(SHOWN)
    text = f"{effect.what}: {share(mean)}"
    text += f" [{share(low)}, {share(high)}]" if low != high else ""
    text += f" {effect.unit}" if effect.unit else ""
    if effect.within is not None:
        bounds = f"within ±{share(effect.within)}" if effect.within >= 1e-3 else "0"
        text += f"; asked: {bounds}"
    elif claim.numbers:
        text += f"; claimed {share(claim.claimed)}, asked: more than {share(claim.asked)}"
    together = effect.interval(level)
    row |= {"mean": mean, "low": low, "high": high}
    row |= {"low_together": together[0], "high_together": together[2]}
    row |= {"within": math.nan if effect.within is None else effect.within, "unit": effect.unit}
    return {**row, "measured": f"{text}, {effect.count}", "verdict": verdict, "reason": reason}


def judge_claims(claims: Iterable[Claim], frames: Frames) -> pd.DataFrame:
    """Judges each claim at each of its places: a row for each.

    The verdict of a claim is that of the nearest place whose runs are there (``at`` is "home", or
    "stand-in" where it is not the nearest); the others stand beside it ("away"). The intervals that
    decide hold for all verdicts of the claims together (Bonferroni), and those away for all of
    these, so one of them misses in one table of twenty.

    Returns: slug, claim, source, tag, setting, at, place, measured, mean, low, high, low_together,
        high_together, within, unit, claimed, asked, command, verdict, reason.
    """
    claims = tuple(claims)
    means = {name: mean_scores(frame) for name, frame in frames.items()}
    results = {
        claim.slug: [measure_at(claim, place, frames, means) for place in claim.places]
        for claim in claims
    }
    # Of every claim that chance enters, one place decides and the others stand beside it.
    counts = [
        sum(found.effect is not None for found in results[claim.slug])
        for claim in claims
        if claim.sampled
    ]
    deciding = sum(map(bool, counts))
    # Bonferroni: one interval of a table misses with 5 % at most.
    main_level = 1 - (1 - SHOWN) / max(deciding, 1)
    away_level = 1 - (1 - SHOWN) / max(sum(counts) - deciding, 1)
    lines: list[dict[str, Any]] = []
    for claim in claims:
        head = {"slug": claim.slug, "claim": claim.text, "source": claim.source, "tag": claim.tag}
        head |= {"setting": claim.setting, "claimed": claim.claimed}
        head |= {"asked": claim.asked if claim.numbers else math.nan}
        if not claim.places:
            blank = {"at": "home", "place": "", "measured": "–", "unit": "", "command": ""}
            blank |= {"verdict": UNTESTED, "reason": claim.judge["untested"]}
            lines.append({**head, **blank})
        measured = [found.effect is not None for found in results[claim.slug]]
        main = measured.index(True) if any(measured) else 0
        for i, found in enumerate(results[claim.slug]):
            row = verdict_row(claim, found, main_level if i == main else away_level)
            row["at"] = "away" if i != main else "home" if i == 0 else "stand-in"
            notes = (row["reason"], claim.note if i == main else "")
            lines.append({**head, **row, "reason": "; ".join(filter(None, notes))})
    columns = "slug claim source tag setting at place measured mean low high low_together "
    columns += "high_together within unit claimed asked command verdict reason"
    return pd.DataFrame(lines).reindex(columns=columns.split()).round(4)


def command(study: str) -> str:
    """The command that runs a study, or measures what none records."""
    if study == "updates":
        return "python -m studies claims --measure"
    return f"python -m studies {study.removesuffix(' screens')}"


def screen_frame(name: str, path: Path) -> pd.DataFrame:
    """Tabulates the first seed's tuning runs of a study: a row a setting, method and rate.

    ``regret`` is by how much the validation score of a rate falls short of the method's best.
    """
    study = STUDIES[name]
    done = load_results(path)
    rows = []
    for case in study.cases:
        # The declared grid alone, which is the same for all methods; extensions of it are not.
        jobs = [job for job in study.screening_jobs(case) if job.key in done]
        scores = [done[job.key]["values"].get("accuracy") or 0.0 for job in jobs]
        for job, score in zip(jobs, scores, strict=True):
            base = {"study": f"{name} screens", "method": case.method.slug, **case.labels}
            before = done[job.key]["values"].get("before_accuracy", math.nan)
            base |= {"lr": done[job.key]["lr"], "seed": job.seed, "before_accuracy": before}
            rows.append({**base, "accuracy": score, "regret": max(scores) - score})
    return pd.DataFrame(rows)


def claim_frames(folder: Path) -> dict[str, pd.DataFrame]:
    """Reads all frames that claims are judged by.

    They are those of the studies, of the tuning of studies that are whole ("NAME screens"), and of
    what `python -m studies claims --measure` measures ("updates").
    """
    frames = read_studies(folder)
    screens = {place["study"] for claim in CLAIMS for place in claim.places} - {*frames}
    for name in [name for name in frames if f"{name} screens" in screens]:
        path = folder / "runs" / f"{name}.jsonl"
        done, runs = count_runs(STUDIES[name], path)
        if done == runs:
            frames[f"{name} screens"] = screen_frame(name, path)
    if (path := folder / "updates.csv").is_file():
        frames["updates"] = pd.read_csv(path)
    return frames


def _claim(row: dict[str, Any]) -> Claim:
    places = tuple(row.pop("places", ()))
    return Claim(places=places, **row)


_TABLE = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
CLAIMS = tuple(map(_claim, _TABLE))
"""In the order of the page."""
