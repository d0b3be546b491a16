"""One row of the live bench's table: a run, or the same run with several seeds."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedlora_course.widgets.run_config import Knob, RunConfig
from fedlora_lab.measures.runs import find_collapsed, smaller_is_better, t_interval
from fedlora_lab.privacy.plan import Privacy

Point = dict[str, float]
"""The round of a record, and its measures."""
Part = tuple[str, str]
"""A knob, and the words for its value in a label."""


@dataclass(eq=False)
class RunRow:
    """One row of the table. Its recipe never changes.

    Args:
        id: its number.
        config: what was run, from Start on.
        recipe: the text of every knob then.
        seeds: of its runs.
        follows: whether its learning rate was the suggested one.
        shown: whether its curve is drawn.
        state: "waiting", "running", "finished", "stopped" or "failed".
        error: what ended it, in one line.
        points: seed -> its records so far.
        sweep: the number of its sweep's first row; ``None`` of a single run.
    """

    id: int
    config: RunConfig
    recipe: Mapping[str, str]
    seeds: tuple[int, ...]
    follows: bool = True
    shown: bool = True
    state: str = "waiting"
    error: str = ""
    points: dict[int, list[Point]] = field(default_factory=dict)
    sweep: int | None = None

    def ends(self, measure: str) -> list[tuple[float, float]]:
        """Returns a measure before training and last, of each seed that got past its start."""
        runs = [points for points in self.points.values() if len(points) > 1]
        return [(points[0][measure], points[-1][measure]) for points in runs]

    @property
    def complete(self) -> bool:
        """Whether every run has ended as planned."""
        records = self.config.plan.rounds + 1
        return all(len(self.points.get(seed, ())) == records for seed in self.seeds)

    def score(self, measure: str) -> tuple[float, float]:
        """Returns mean and half-width of the interval of a measure's last values."""
        return t_interval(np.array([after for _, after in self.ends(measure)]))

    def series(self, measures: Sequence[str]) -> dict[str, list[list[float | None]]]:
        """Returns what the page draws: measure -> (round, mean, low, high) for each record."""
        drawn: dict[str, list[list[float | None]]] = {}
        longest = max(self.points.values(), key=len, default=[])
        for measure in measures:
            drawn[measure] = []
            for t, point in enumerate(longest):
                runs = self.points.values()
                values = [points[t][measure] for points in runs if t < len(points)]
                mean, half = t_interval(np.array(values))
                numbers = [point["round"], mean, mean - half, mean + half]
                # JSON has no infinity and no NaN: a gap is drawn where there is no number.
                drawn[measure].append([x if math.isfinite(x) else None for x in numbers])
        return drawn

    def verdict(self, measure: str) -> str:
        """Describes the state of the row: its progress, or that it diverged or collapsed."""
        rounds = self.config.plan.rounds
        if self.error:
            return self.error
        done = [len(points) - 1 for points in self.points.values()]
        if self.state in ("waiting", "running"):
            return f"{self.state}: round {max(done)} of {rounds}" if done else self.state
        notes = (
            [] if self.state == "finished" else [f"{self.state} at round {min(done)} of {rounds}"]
        )
        sign = -1 if smaller_is_better(measure) else 1
        gains = np.array([sign * (after - before) for before, after in self.ends(measure)])
        collapsed = int(find_collapsed(gains).sum()) if len(gains) else 0
        large = "step" if self.config.epsilon is None else "step or noise"
        cause = f": {large} too large" if (gains < 0).any() else ""
        if len(gains) == 1 and cause:
            notes.append(f"diverged{cause}")
        elif collapsed:
            notes.append(f"{collapsed} of {len(gains)} collapsed{cause}")
        return "; ".join(notes)


def differing_knobs(rows: Sequence[RunRow]) -> list[str]:
    """Lists the knobs in which recipes differ, without those that follow from another knob.

    Those are a rate that was the suggested one, and the trust that a unit begins with. Seeds count
    where nothing else differs.
    """
    if not rows:
        return []
    plain = {unit: Privacy(unit=unit).trust for unit in ("example", "client")}
    usual = all(row.recipe["trust"] == plain[row.recipe["unit"]] for row in rows)
    derived = {"trust": usual, "lr": all(row.follows for row in rows)}
    keys = [key for key in rows[0].recipe if len({row.recipe.get(key) for row in rows}) > 1]
    keys = [key for key in keys if not derived.get(key)]
    return [key for key in keys if key != "seed"] or keys


def label_parts(rows: Sequence[RunRow], knobs: Mapping[str, Knob]) -> list[list[Part]]:
    """Labels each row by its method and by what tells it from the others.

    Returns: for each row (knob, words) pairs, such as ("epsilon", "ε = 1").
    Guarantees: test_live_run.py::test_curves_are_labelled_by_what_differs.
    """
    keys = [key for key in differing_knobs(rows) if key != "method"]
    labels = []
    for row in rows:
        label: list[Part] = [("method", row.config.method.name)]
        for key in keys:
            symbol = knobs[key].page.get("symbol")
            label.append((key, f"{symbol} = {row.recipe[key]}" if symbol else row.recipe[key]))
        labels.append(label)
    # The same recipe twice is numbered.
    counts = Counter(map(str, labels))
    numbers: Counter[str] = Counter()
    for label in labels:
        key = str(label)
        if counts[key] > 1:
            numbers[key] += 1
            label.append(("", f"({numbers[key]})"))
    return labels
