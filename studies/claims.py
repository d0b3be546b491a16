"""Judges published claims by the committed studies.

A claim is a row of claims.json: who claims it, how far the source could be read, and what is
compared in the study nearest to the place where it was claimed; or why it is true by construction,
or not measured. One function, `decide`, turns an interval into a verdict.

An effect is a share: of the attainable gain (what the best row of a task reached, less its start),
or of the other method's value. So is what was claimed, and no task is asked for points that it
cannot give.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from fedlora_lab.measures.runs import (
    check_equal_privacy,
    find_collapsed_by_group,
    t_interval,
)
from studies.declared import STUDIES
from studies.runner import first_tries, read_studies, select_rows

Frames = Mapping[str, pd.DataFrame]
Labels = Mapping[str, Any]
LETTERS = {
    "epsilon": "ε",
    "alpha": "β",
    "local_steps": "local steps",
    "deer": "DEeR's home",
    "la-lora-noise": "LA-LoRA's home at ε = 24",
}
"""Label -> what stands for it in words."""
HOLDS = "holds"
OPPOSITE = "opposite"
SAME = "no difference of that size"
OPEN = "cannot tell"
FULL = "no gain to see here"
FOREIGN = "the setting does not carry the claim"
BUILT = "true by construction"
UNTESTED = "not measured here"
VERDICTS = (HOLDS, OPPOSITE, SAME, OPEN, FULL, FOREIGN, BUILT, UNTESTED)
SHOWN = 0.95
"""Level of the interval that is shown; claims are decided by wider ones."""
SMALL = 0.1
"""Share of the attainable gain below which a lead counts as none, where no size was claimed."""
HALF = 0.5
"""Share of the claimed size that is asked for."""
START = 0.01
"""Accuracies before training that differ by more are those of two models."""


@dataclass(frozen=True)
class Comparison:
    """Two sides that are compared seed by seed.

    Args:
        study, where: the study, and labels that choose its rows; ``None`` is no privacy.
        one, other: method, labels and measure of a side.
        measure: compared, where a side does not name its own.
        turn: a label with two values; compared is the lead at the second less that at the first.
        within: the claim is that they differ by no more; ``None``: that ``one`` is ahead.
        share: "gain", "ratio" (how far below the other's value), "mean" (of the other's mean) or
            "spread" (how far the standard deviation over seeds lies below the other's).
    """

    study: str
    where: Labels
    one: Labels
    other: Labels
    measure: str = "accuracy"
    turn: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    within: float | None = None
    share: str = "gain"

    @property
    def of_accuracy(self) -> bool:
        """Whether the final accuracies of two methods are compared in one setting."""
        measures = {side.get("measure", self.measure) for side in (self.one, self.other)}
        return measures == {"accuracy"} and self.share == "gain" and not self.turn

    @property
    def ends(self) -> list[dict[str, Any]]:
        """The labels of the rows that are read: one set, or two where a knob is turned."""
        for label, values in self.turn.items():
            return [{**self.where, label: value} for value in values]
        return [dict(self.where)]

    @property
    def place(self) -> str:
        """The study, the labels that choose its rows, and the knob that is turned, in words."""
        labels = {name: value for name, value in self.where.items() if name != "knob"}
        # A knob's value goes by the knob's name.
        names = {"value": self.where.get("knob", "value")}

        def describe(name: str, value: Any) -> str:
            return describe_label(names.get(name, name), value)

        parts = [self.study, *(describe(name, value) for name, value in labels.items())]
        for name in self.one.keys() - {"method", "measure"}:
            sides = (describe(name, side[name]) for side in (self.one, self.other))
            parts.append(" less ".join(sides))
        for name, values in self.turn.items():
            parts.append(" to ".join(describe(name, value) for value in values))
        return ", ".join(parts)


@dataclass(frozen=True)
class Claim:
    """One published claim.

    Args:
        slug, text: its name, and one sentence.
        source: arXiv id.
        tag: how far it could be read: "primary", "secondary" or "inferred".
        setting: where it was claimed.
        judge: what decides; ``None`` where nothing is measured.
        by_construction, untested: why there is nothing to measure.
        foreign: why the nearest study cannot decide it; what was measured there is told.
        numbers: as published: one, other, best and start, or one and other alone.
        note: what a reader has to know beside the verdict.
    """

    slug: str
    text: str
    source: str
    tag: str
    setting: str
    judge: Comparison | None = None
    by_construction: str = ""
    untested: str = ""
    foreign: str = ""
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


class Effect(NamedTuple):
    """A measured difference as a share.

    Args:
        values: one a seed; of logarithms of ratios if ``ratio``.
        within: see `Comparison`.
        ratio: whether a share is of the other's value.
        spare: share of the attainable gain that the other method leaves.
        gained: share of the attainable gain that the better of the two took.
    """

    values: np.ndarray
    within: float | None = None
    ratio: bool = False
    spare: float = math.inf
    gained: float = math.inf

    def interval(self, level: float) -> tuple[float, float, float]:
        """Low end, mean and high end at a level of confidence."""
        mean, half = t_interval(self.values, level)
        ends = mean - half, mean, mean + half
        if self.ratio:  # by how much one number is below another
            return 1 - math.exp(ends[2]), 1 - math.exp(mean), 1 - math.exp(ends[0])
        return ends


# ---- from rows to an effect


def side_rows(frame: pd.DataFrame, side: Labels) -> pd.DataFrame:
    """Selects the rows of one side."""
    return select_rows(frame, **{k: value for k, value in side.items() if k != "measure"})


def seed_values(frame: pd.DataFrame, side: Labels, measure: str) -> pd.Series:
    """Returns a measure of one side by seed."""
    return side_rows(frame, side).set_index("seed")[side.get("measure", measure)]


def leave_one_out_log_std(values: pd.Series) -> pd.Series:
    """Returns what each seed adds to the logarithm of the standard deviation (the jackknife).

    Its mean and Student's interval are those of Miller (1968). The interval of F supposes normal
    results, and one collapsed run is enough to make it far too short.
    """
    n = len(values)
    without = [np.log(values.drop(seed).std()) for seed in values.index]
    return pd.Series(n * np.log(values.std()) - (n - 1) * np.array(without), values.index)


def compare(frame: pd.DataFrame, judge: Comparison, start: float, best: float) -> Effect:
    """Measures a comparison on the rows of its study.

    Args: frame: of the study. start, best: accuracy at the start and of the task's best row.
    """
    leads = []
    scores = []
    for labels in judge.ends:
        rows = select_rows(frame, **labels)
        one, other = (seed_values(rows, side, judge.measure) for side in (judge.one, judge.other))
        if "epsilon" not in judge.one.keys() | judge.other.keys():  # else the claim is about it
            sides = {"one side": judge.one, "the other": judge.other}
            named = [side_rows(rows, side).assign(method=name) for name, side in sides.items()]
            check_equal_privacy(pd.concat(named), *sides)
        scores.append((one.mean(), other.mean()))
        if judge.share == "ratio":
            one, other = one.map(math.log), other.map(math.log)
        if judge.share == "spread":
            one, other = leave_one_out_log_std(one), leave_one_out_log_std(other)
        leads.append(one - other)
    difference = leads[0] if len(leads) == 1 else leads[1] - leads[0]
    values = difference.dropna().to_numpy(float)
    mean_one, mean_other = scores[0]
    if judge.share == "mean":
        return Effect(values / abs(mean_other), judge.within)
    if judge.share != "gain":
        return Effect(values, judge.within, ratio=True)
    values = values / (best - start)
    if not judge.of_accuracy:
        return Effect(values, judge.within)
    spare = (best - mean_other) / (best - start)
    gained = (max(mean_one, mean_other) - start) / (best - start)
    return Effect(values, judge.within, spare=spare, gained=gained)


def decide(effect: Effect, asked: float, level: float) -> tuple[str, str]:
    """Decides the verdict of an interval, and gives its reason.

    Where the other method is near the top, or both gained less than the lead that is
    asked, no lead can be seen. But that makes no deficit: whoever is behind by more than
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
        return FULL, f"the better of the two took only {share(effect.gained)} of the gain"
    if effect.spare < (asked or SMALL):
        return FULL, f"the other method leaves only {share(max(effect.spare, 0))} of the gain"
    if high < 0:
        return OPPOSITE, "the other method leads"
    if asked and high < asked:
        ahead = "it is ahead, but by less" if low > 0 else "a lead of that size is ruled out"
        return SAME, f"{ahead}: {share(asked)} is asked, half of what was claimed"
    if not asked and low > -SMALL and high < SMALL:
        return SAME, f"the two are within ±{share(SMALL)}"
    return OPEN, f"the interval includes {share(asked)}"


# ---- words and the attainable gain


def share(value: float) -> str:
    """Formats a share in per cent; one that rounds to nothing has no sign."""
    return f"{round(100 * value, 1) + 0.0:.1f}".removesuffix(".0").replace("-", "−") + " %"


def describe_label(name: str, value: Any) -> str:
    """Describes a label in words; an ε that is missing is no privacy."""
    if name == "epsilon" and value is None:
        return "no privacy"
    text = f"{value:g}" if isinstance(value, float | int) else LETTERS.get(value, value)
    return f"{LETTERS.get(name, name)} = {text}"


def setting_columns(frame: pd.DataFrame) -> list[str]:
    """Lists the columns that tell settings apart: from the method to the rate."""
    columns = list(frame.columns)
    return columns[columns.index("method") : columns.index("lr") + 1]


def best_of_task(study: str, where: Labels, start: float, frames: Frames) -> float:
    """Returns the mean of the task's best row at any budget that began at the same accuracy.

    It is taken in all studies of the task: one with private rows only would take the best of these
    for the top, and that row's method would leave nothing to any other.
    """
    if study not in STUDIES:  # a task of its own, in one frame
        frame = frames[study]
        return float(frame.groupby(setting_columns(frame), dropna=False)["accuracy"].mean().max())
    tasks = {case.task[0] for case in STUDIES[study].cases if where.items() <= case.labels.items()}
    best = -math.inf
    for name, frame in frames.items():
        other = STUDIES.get(name)
        if other and other.is_federated and tasks & {case.task[0] for case in other.cases}:
            scores = frame.groupby(setting_columns(frame), dropna=False)
            means = scores[["before_accuracy", "accuracy"]].mean()
            # Another start is another model of the task, whose top cannot be reached from here.
            near = means["accuracy"][(means["before_accuracy"] - start).abs() < START]
            best = max(best, near.max() if len(near) else best)
    return best


def collapsed_runs(rows: pd.DataFrame) -> str:
    """Counts the collapsed runs of each method."""
    notes = []
    for method, part in rows.groupby("method", sort=False):
        gains = part["accuracy"] - part["before_accuracy"]
        keys = [part[name] for name in setting_columns(part)]
        count = int(find_collapsed_by_group(gains.groupby(keys, dropna=False)).sum())
        if count:
            notes.append(f"{count} of {len(part)} runs of {method} collapsed")
    return "; ".join(notes)


def lead_at_claimants_rate(judge: Comparison, folder: Path) -> float:
    """Returns the lead in points, of the first tuning seed, at the rate that is best for ``one``.

    NaN where the sides are not two methods in one setting, or no tuning run is kept.
    """
    two_methods = judge.of_accuracy and len(judge.one) == len(judge.other) == 1
    if not two_methods or not (folder / "runs" / f"{judge.study}.jsonl").is_file():
        return math.nan
    screens = select_rows(first_tries(judge.study, folder), **judge.where, clip=1, ratio=1)
    # Other rates were tried by some methods only.
    screens = screens[screens["lr"].isin(STUDIES[judge.study].rates)]
    one, other = (
        side_rows(screens, side).set_index("lr")["accuracy"] for side in (judge.one, judge.other)
    )
    rate = one.idxmax()
    return 100 * (one[rate] - other.get(rate, math.nan))


# ---- the table


def judge_claim(claim: Claim, judge: Comparison, frames: Frames, level: float) -> dict[str, Any]:
    """Judges a claim that is compared.

    Args: claim, judge: what. frames: study -> rows. level: of the interval that decides.
    Returns: the columns of `judge_claims` from place on, but for at_claimants_rate.
    """
    row: dict[str, Any] = {"place": judge.place, "share": judge.share, "asked": claim.asked}
    frame = frames[judge.study]
    rows = pd.concat(
        side_rows(select_rows(frame, **labels), side)
        for labels in judge.ends
        for side in (judge.one, judge.other)
    ).drop_duplicates()
    start = float(rows["before_accuracy"].mean())
    name = "digits-example" if judge.study == "updates" else judge.study
    effect = compare(rows, judge, start, best_of_task(name, judge.where, start, frames))
    verdict, reason = decide(effect, claim.asked, level)
    alone, _ = decide(effect, claim.asked, SHOWN)
    if verdict == OPEN != alone:
        reason = f"{alone} if it stood alone"
    low, mean, high = effect.interval(SHOWN)
    wide = effect.interval(level)
    # A true lead of this size would just have been decided, with an interval as wide.
    decidable = claim.asked + mean - wide[0]
    if effect.ratio:  # of logarithms
        decidable = 1 - (1 - claim.asked) * (1 - mean) / (1 - wide[0])
    if claim.foreign:
        verdict, reason = FOREIGN, claim.foreign
    reasons = (reason, collapsed_runs(rows), claim.note)
    return row | {
        "seeds": len(effect.values),
        "mean": mean,
        "low": low,
        "high": high,
        "low_together": wide[0],
        "high_together": wide[2],
        "within": judge.within,
        "decidable": decidable if judge.within is None else math.nan,
        "verdict": verdict,
        "reason": "; ".join(filter(None, reasons)),
    }


def judge_claims(claims: Iterable[Claim], frames: Frames, folder: Path) -> pd.DataFrame:
    """Judges every claim: a row for each.

    The intervals that decide hold for all comparisons together (Bonferroni): one of them misses in
    one table of twenty.

    Args: claims. frames: study -> rows. folder: of the results, for runs that tuned.
    Returns: slug, claim, source, tag, setting, place, share, seeds, mean, low, high, low_together,
        high_together, within, claimed, asked, decidable, at_claimants_rate, verdict, reason.
    """
    claims = tuple(claims)
    compared = sum(claim.judge is not None for claim in claims)
    level = 1 - (1 - SHOWN) / max(compared, 1)
    lines: list[dict[str, Any]] = []
    for claim in claims:
        row: dict[str, Any] = {"slug": claim.slug, "claim": claim.text, "source": claim.source}
        row |= {"tag": claim.tag, "setting": claim.setting, "claimed": claim.claimed}
        if claim.judge is not None:
            row |= judge_claim(claim, claim.judge, frames, level)
            row["at_claimants_rate"] = lead_at_claimants_rate(claim.judge, folder)
        else:
            verdict = BUILT if claim.by_construction else UNTESTED
            row |= {"verdict": verdict, "reason": claim.by_construction or claim.untested}
        lines.append(row)
    columns = "slug claim source tag setting place share seeds mean low high low_together "
    columns += "high_together within claimed asked decidable at_claimants_rate verdict reason"
    return pd.DataFrame(lines).reindex(columns=columns.split()).round(5)


def claim_frames(folder: Path) -> dict[str, pd.DataFrame]:
    """Reads the frames of the studies, of updates.py and of two_bits.py, which begins at 0."""
    names = {"copies_1": "accuracy_received", "copies_5": "accuracy_averaged"}
    names |= {"server": "accuracy", "own": "accuracy_trained"}
    two_bits = pd.read_csv(folder / "two-bits.csv").rename(columns=names)
    # Other seeds chose a rate.
    two_bits = two_bits[two_bits["seed"] < 1000].assign(before_accuracy=0.0)
    extra = {"updates": pd.read_csv(folder / "updates.csv"), "two-bits": two_bits}
    return read_studies(folder) | extra


def read_claims() -> tuple[Claim, ...]:
    """Reads the claims in the order of the page."""
    rows = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    return tuple(
        Claim(**row | ({"judge": Comparison(**row["judge"])} if "judge" in row else {}))
        for row in rows
    )


CLAIMS = read_claims()
