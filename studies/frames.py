"""Runs of a study in a CSV file, a line a run, and the search for a rate among them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from fedlora_lab.federated.run import Diverged

TUNING_SEED = 1001
"""The seed that tries rates; others report."""
LEAST, MOST = 2.0**-8, 2.0**6
"""Rates between which a search stays."""


@dataclass(frozen=True)
class Frame:
    """A file of runs. What it has is not trained again.

    Args:
        path: of the file.
        keys: columns that tell one run from another.
        values: columns of what a run found, "validation" first.
    """

    path: Path
    keys: tuple[str, ...]
    values: tuple[str, ...]

    def runs(self) -> pd.DataFrame:
        """All runs so far."""
        if self.path.exists():
            return pd.read_csv(self.path)
        return pd.DataFrame(columns=[*self.keys, *self.values])

    def score(self, train: Callable[[], list[float]], *key: Any) -> float:
        """The validation score of a run, which is trained unless the file has it.

        A run that diverges scores zero.
        """
        runs = self.runs()
        here = runs[(runs[list(self.keys)] == list(key)).all(axis=1)]
        if len(here):
            return float(here["validation"].iloc[0])
        try:
            found = train()
        except Diverged:
            found = [0.0] * len(self.values)
        line = pd.DataFrame([[*key, *found]], columns=[*self.keys, *self.values])
        new = not self.path.exists()
        line.to_csv(self.path, mode="a", header=new, index=False, float_format="%.5g")
        return found[0]

    def summary(self) -> pd.DataFrame:
        """Means and ranges over the reported seeds, a row for each of the other keys."""
        runs = self.runs()
        reported = runs[runs["seed"] != TUNING_SEED]
        by = [name for name in self.keys if name != "seed"]
        groups = reported.groupby(by, sort=False)["accuracy"]
        return groups.agg(["mean", "min", "max", "count"]).reset_index()


def climb(score: Callable[[float], float], first: float) -> float:
    """Moves a rate by octaves until neither neighbour scores better."""
    best = first
    while True:
        near = [rate for rate in (best, best / 2, best * 2) if LEAST <= rate <= MOST]
        leader = max(near, key=score)
        if leader == best:
            return best
        best = leader
