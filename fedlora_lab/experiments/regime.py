"""Predicts and measures which family of methods leads, and says so for a new situation."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from fedlora_lab import methods, tasks
from fedlora_lab._utils.validation import check
from fedlora_lab.experiments.paper_claims import SHOWN, select_rows
from fedlora_lab.experiments.runner import read_study
from fedlora_lab.experiments.studies import FAMILIES, STUDIES, Case
from fedlora_lab.federated.amplification import forecast_of
from fedlora_lab.federated.spec import make_run_spec
from fedlora_lab.measures.statistics import (
    POINTS_FOR_A_LINE,
    PairedDifference,
    find_collapsed_by_group,
    fit_line,
    paired_difference,
    t_interval,
)
from fedlora_lab.methods.plan import Lora, Plan, lora_of
from fedlora_lab.methods.published import ALL
from fedlora_lab.privacy.plan import Privacy
from fedlora_lab.tasks.task import Task

BOUNDARY = {"example": 1e-3, "client": 0.03}
"""Where both factors stop to lead one, by unit of privacy. Read off before the map was measured:
from the first studies on digits (example unit, ten clients; client unit, the clip not tuned), the
tuning runs of digits-client at one seed, where half the clip made the two level at epsilon 3, and a
dozen trial runs on MNIST. The two differ because an example's clipped gradient points less along
the mean than a client's update: of the path that the clip allows, less is gone."""
CLOSE = 1.5
"""Within this factor of the boundary nothing is predicted."""
BOTH, ONE, TURNS = "both factors", "one factor", "turns"
TOO_CLOSE, OPEN, NO_ROOM = "too close", "cannot tell", "nobody learned"
HIT, MISS, UNDECIDED = "hit", "miss", "not decided"


class Pair(NamedTuple):
    """A row, those whose best it is compared with, and who leads if it is ahead or behind."""

    one: str
    others: tuple[str, ...]
    ahead: str
    behind: str


PAIRS = {
    "both": Pair("fedlora", ("ffa-lora",), BOTH, ONE),
    "turns": Pair("rolora", ("ffa-lora",), TURNS, ONE),
    "turns, both": Pair("rolora", ("fedlora",), TURNS, BOTH),
    "balanced": Pair("balanced-lora", FAMILIES[:3], "balanced start", "published rows"),
}
"""What is compared in each cell of the map."""
REGIME = ("regime-example", "regime-client")
MAP = Path(__file__).with_name("regime.csv")
"""The measured map that travels with the package; scripts/regime_map.py writes it."""
NEAR, NEAREST, LEAST = 3.0, 5, 3
"""`guide` reads leads off the line through the cells of a unit, if these are enough for one and
LEAST of them lie within the factor NEAR; it names the NEAREST."""


def unit_path_amplification(
    task: Task, privacy: Privacy | None, plan: Plan, lora: Any = None
) -> float:
    """Computes the amplification number for steps that together could move A by one.

    A release of the example unit moves a factor by at most the rate times C, one of the client unit
    by at most C: the path of T releases is T times that, and what a task needs of it is the task's
    affair. At a path L the number is L^2 times this one, whatever rate and clip norm make it up.
    Without noise it is 0.

    Args: task, privacy, plan, lora: of the run; learning rate and clip norm do not matter.
    Source: this project; rho as in `theory.amplification`.
    """
    if privacy is None:
        return 0.0
    releases = plan.rounds * (plan.local_steps if privacy.by_step else 1)
    check(releases > 0, "rounds", plan.rounds, "at least 1: no noise is added in none")
    privacy = privacy.replace(clip_norm=1 / releases)
    plan = plan.replace(lr=1.0, lr_decay=1.0)
    spec = make_run_spec(task, methods.FedLoRA, privacy, plan, lora=lora_of(lora), seed=0)
    return forecast_of(spec).mean(plan.rounds)


def predicted_leader(unit: str, amplification: float) -> str:
    """Says which family leads by the closed form: "both factors", "one factor" or "too close".

    Args: unit: of privacy. amplification: as `unit_path_amplification` gives it.
    """
    times: Any = amplification / BOUNDARY[unit]
    if 1 / CLOSE <= times <= CLOSE:
        return TOO_CLOSE
    return BOTH if times < 1 else ONE


def case_amplification(case: Case) -> float:
    """Computes `unit_path_amplification` of a study's case; its noise is calibrated."""
    task, plan = tasks.build(case.task[0], **case.task[1]), Plan(**case.plan)
    privacy = None
    if case.epsilon is not None:
        privacy = Privacy(**case.privacy).calibrate(epsilon=case.epsilon, task=task, plan=plan)
    return unit_path_amplification(task, privacy, plan, Lora(**case.lora))


def predictions() -> pd.DataFrame:
    """Predicts the leader in every cell of the regime map, from public numbers alone."""
    rows = []
    for study in map(STUDIES.__getitem__, REGIME):
        for case in (case for case in study.cases if case.method is methods.FedLoRA):
            found = case_amplification(case)
            leader = predicted_leader(case.labels["unit"], found)
            rows.append({**case.labels, "amplification": found, "predicted": leader})
    return pd.DataFrame(rows)


# ---- what was measured


def _leader(pair: str, low: float, high: float) -> str:
    if not math.isfinite(low + high):
        return NO_ROOM
    return PAIRS[pair].ahead if low > 0 else PAIRS[pair].behind if high < 0 else OPEN


def _verdict(predicted: str, leader: str) -> str:
    if predicted == TOO_CLOSE:
        return TOO_CLOSE
    if leader in (OPEN, NO_ROOM):
        return UNDECIDED
    return HIT if leader == predicted else MISS


def _lead(rows: pd.DataFrame, one: str, others: tuple[str, ...], level: float) -> PairedDifference:
    """Computes the lead of a row over the best of others.
    It is formed from its intervals to all of them together: the best is not chosen by the numbers
    that it is then compared with.
    """
    each = 1 - (1 - level) / len(others)
    parts = [paired_difference(rows, one, other, "share", each) for other in others]
    mean, low, high, seeds = map(min, zip(*parts, strict=True))
    return PairedDifference(mean, low, high, int(seeds))


def map_cells(frame: pd.DataFrame, prediction: pd.DataFrame) -> pd.DataFrame:
    """Tabulates the regime map as measured: a row for each cell and each pair of `PAIRS`.

    A lead is paired by seed and a share of the cell's room: the mean accuracy of its best row less
    that at the start. Where even the best row's 95 % interval reaches the start nobody learned, and
    a cell has no room. The leader, and with it the verdict on the prediction, is decided by
    intervals that hold for all predicted cells of a pair together (Bonferroni).

    Args:
        frame: of the studies ``regime-…``, finished or in part, one below the other.
        prediction: as `predictions` gives it. A cell of which a row is missing is left out.

    Returns: the cell's labels, amplification, predicted; boundary and the factor about it that is
        too close to predict; room (in accuracy), collapsed (of the
        runs of the rows compared, see `fl.measures.find_collapsed`), pair, one, others, seeds,
        mean, low, high (95 % by itself), low_together, high_together, leader, and, of the pair
        "both", the verdict: "hit", "miss", "not decided", or "too close", where nothing was
        predicted.
    Guarantees: test_regime.py::test_a_lead_is_a_share_of_its_cells_room.
    """
    labels = [str(x) for x in prediction.columns if x not in ("amplification", "predicted")]
    wide, lines = 1 - (1 - SHOWN) / max(len(prediction), 1), []
    for cell in prediction.to_dict("records"):
        rows: Any = select_rows(frame, **{name: cell[name] for name in labels})
        gains = (rows["accuracy"] - rows["before_accuracy"]).groupby(rows["method"])
        if not set(FAMILIES) <= set(gains.groups):
            continue
        low = find_collapsed_by_group(gains)
        best = gains.get_group(gains.mean().idxmax()).to_numpy()
        room, half = t_interval(best)
        room = room if room > half else math.nan
        rows = rows.assign(share=(rows["accuracy"] - rows["before_accuracy"]) / room)
        for pair, (one, others, *_) in PAIRS.items():
            own = {**cell, "room": room, "pair": pair, "one": one, "others": " ".join(others)}
            own |= {"boundary": BOUNDARY[cell["unit"]], "close": CLOSE}
            own["collapsed"] = int(low[rows["method"].isin((one, *others))].sum())
            alone = together = PairedDifference(*[math.nan] * 3, seeds=len(best))
            if room == room:
                alone, together = (_lead(rows, one, others, level) for level in (SHOWN, wide))
            own |= alone._asdict() | {"low_together": together.low, "high_together": together.high}
            own["leader"] = _leader(pair, together.low, together.high)
            own["verdict"] = _verdict(cell["predicted"], own["leader"]) if pair == "both" else ""
            lines.append(own)
    columns = "boundary close room collapsed pair one others seeds mean low high low_together "
    columns += "high_together leader verdict"
    return pd.DataFrame(lines, columns=[*prediction.columns, *columns.split()])


def read_map(folder: str | Path = "results") -> pd.DataFrame:
    """Computes the map of the committed studies against the committed prediction.
    Without studies it is empty.
    """
    folder = Path(folder)
    there = [name for name in REGIME if (folder / f"{name}.csv").is_file()]
    if not there:
        return map_cells(pd.DataFrame(), pd.DataFrame(columns=["amplification", "predicted"]))
    frame = pd.concat([read_study(name, folder) for name in there])
    return map_cells(frame, pd.read_csv(folder / "regime-prediction.csv"))


def measured_cells() -> pd.DataFrame:
    """Loads the map that comes with the package, as `read_map` computed it.

    Guarantees: it is that of the committed results
        (test_regime.py::test_the_map_of_the_package_is_that_of_the_results).
    """
    return pd.read_csv(MAP) if MAP.is_file() else read_map(MAP.parent)


# ---- a situation of one's own


@dataclass(frozen=True)
class Guidance:
    """The answer of `guide`; as text one sentence.

    Args:
        sentence: the answer.
        take: slug of the row that leads, by the cells near; ``None``: they cannot tell.
        unit: of privacy; "" without privacy.
        amplification: `unit_path_amplification` of the situation; NaN: not known before a run.
        predicted: `predicted_leader` of it, or "cannot tell".
        leads: pair, mean, low, high of the leads of each of `PAIRS`, by the line at the situation.
        cells: the measured cells near, as of `map_cells`, one row each, the nearest first.
    """

    sentence: str
    take: str | None
    unit: str
    amplification: float
    predicted: str
    leads: pd.DataFrame
    cells: pd.DataFrame

    def __str__(self) -> str:
        return self.sentence

    __repr__ = __str__


def guide(
    task: Task,
    privacy: Privacy | None,
    plan: Plan,
    lora: Any = None,
    cells: pd.DataFrame | None = None,
) -> Guidance:
    """Says which family leads in a situation, by the measured cells of its unit.
    Where none is near, it says what the closed form predicts.

    No value of any example is read. A lead, as a share of a cell's room, is that of the straight
    line through the cells of the unit over the logarithm of the amplification, with the line's 95 %
    band: it covers the average of situations like yours, and a single one may lie elsewhere, as the
    cells nearest to it show. The cells are those of the same task where enough are measured, else
    those of all tasks: how far a task has to go is not known before a run, so tasks differ in where
    the lead changes sign.

    Args: task, privacy, plan, lora: of the run, the noise multiplier set; learning rate and clip
        norm do not matter. cells: as of `map_cells`; ``None``: those of `measured_cells`.
    Raises: ``ValueError`` where the noise multiplier is not set, or nothing is trained.
    Guarantees: test_regime.py::test_the_guide_answers_by_the_cells_near.

    >>> import fedlora_lab as fl
    >>> task, plan = fl.tasks.digits(clients=100), fl.Plan(rounds=40, participation=0.2)
    >>> privacy = fl.Privacy(unit="client", noise_multiplier=0.5, delta=1e-3)
    >>> found = fl.guide(task, privacy, plan)
    >>> found.predicted, round(found.amplification, 3)
    ('both factors', 0.003)
    """
    found = measured_cells() if cells is None else cells
    amplified = unit_path_amplification(task, privacy, plan, lora)
    # Clients that draw persons release their steps as those that draw examples do.
    unit = "" if privacy is None else "example" if privacy.by_step else "client"
    known = amplified == amplified
    predicted = predicted_leader(unit, amplified) if unit and known else BOTH if known else OPEN
    own: Any = found[(found["unit"] == unit) & found["mean"].notna()] if len(found) else found
    same = own[own["task"] == task.name] if len(own) else own
    own = same if len(same) >= POINTS_FOR_A_LINE * len(PAIRS) else own
    near, leads = _near(own, amplified)
    take, sentence = None, _by_form(unit, amplified, predicted)
    if len(leads):
        take, sentence = _by_cells(own, near, leads, amplified)
    elif unit and known and not len(own):
        sentence = f"No cell of the {unit} unit has been measured yet; {sentence}"
    elif unit and known:
        sentence = (
            f"Outside what was measured: {len(near)} of {len(own) // len(PAIRS)} cells of the "
            f"{unit} unit lie within a factor {NEAR:g} of yours, and {LEAST} are needed; {sentence}"
        )
    return Guidance(sentence, take, unit, amplified, predicted, leads, near)


def _near(own: Any, amplified: float) -> tuple[Any, pd.DataFrame]:
    """Returns the nearest cells, and the lead of every pair by the line through the cells."""
    leads = pd.DataFrame(columns=["mean", "low", "high"], index=pd.Index([], name="pair"))
    if not len(own) or not amplified > 0:
        return own[:0], leads
    both: Any = own[own["pair"] == "both"]
    away: Any = (both["amplification"] / amplified).map(lambda x: abs(math.log(x)))
    near = both.loc[away[away <= math.log(NEAR)].sort_values(kind="stable").index[:NEAREST]]
    if len(near) >= LEAST and len(both) >= POINTS_FOR_A_LINE:
        for pair, part in own.groupby("pair"):
            line = fit_line(np.log10(part["amplification"]), part["mean"])
            mean, half = map(float, line.at(math.log10(amplified)))
            leads.loc[str(pair)] = [mean, mean - half, mean + half]
    return near, leads


def _by_cells(own: Any, near: Any, leads: Any, amplified: float) -> tuple[str | None, str]:
    """Answers by the cells: the row and the sentence."""
    mean, low, high = leads.loc["both"]
    budgets, times = near["epsilon"], near["amplification"] / amplified
    take = "fedlora" if low > 0 else "ffa-lora" if high < 0 else None
    told = "both factors lead one by " if low > 0 else "one factor leads both by "
    told = told if take else "the lead of both factors over one cannot be told from zero: "
    sign, each = -1 if take == "ffa-lora" else 1, near["mean"]
    ends = sorted((sign * low, sign * high))
    said = f"{'' if take else 'Cannot tell: '}by the line through {len(own) // len(PAIRS)} cells "
    said += f"({' and '.join(sorted(set(own['task'])))}, {near['unit'].iloc[0]} unit) {told}"
    said += f"{_interval(sign * mean, *ends)}, and in the {len(near)} cells nearest to yours (ε "
    said += f"{budgets.min():g} to {budgets.max():g}, {times.min():.2g} to {times.max():.2g} times "
    said += f"your amplification) both lead by {_signed(min(each))} to {_signed(max(each))} %"
    turns = leads.loc["turns, both" if take == "fedlora" else "turns"]
    if take and turns["low"] > 0:
        take = "rolora"
        said += f"; turns lead that by {_interval(*turns)}"
    balanced = leads.loc["balanced"]
    if balanced["low"] > 0:
        take = "balanced-lora"
        said += f"; a balanced start adds {_interval(*balanced)} to the best of them"
    elif balanced["high"] < 0:
        behind = _interval(*-balanced[["mean", "high", "low"]])
        said += f"; a balanced start is behind the best of them by {behind}"
    else:
        said += f"; what a balanced start adds cannot be told, {_interval(*balanced)}"
    return take, said[0].upper() + said[1:] + ("." if take is None else f": take {ALL[take].name}.")


def _by_form(unit: str, amplified: float, predicted: str) -> str:
    """Answers by the closed form alone."""
    if not unit:
        words = "every cell has privacy; without noise the closed form gives no reason to rest one"
        return f"Outside what was measured: {words}."
    if predicted == OPEN:
        return "Cannot tell: the noise in A is not known before such a run, see fl.amplification."
    told = {BOTH: "both factors should lead one", ONE: "one factor should lead both"}
    said = told.get(predicted, "it is too close to say")
    place = f"amplification {amplified:.2g} at a path of one, boundary {BOUNDARY[unit]:g}"
    return f"by the closed form alone ({place}) {said}."


def _signed(share: float) -> str:
    return f"{100 * share:+.0f}".replace("-", "−")


def _interval(mean: float, low: float, high: float) -> str:
    return f"{_signed(mean)} % of the room (95 % interval {_signed(low)} to {_signed(high)})"
