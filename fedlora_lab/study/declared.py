"""What a study is: cases, the learning rates that each of them tries, and the seeds that decide and report."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fedlora_lab import catalogue
from fedlora_lab.checks import check
from fedlora_lab.method import Method

RATES = (0.008, 0.02, 0.05, 0.125, 0.3, 0.8, 2.0, 5.0)
TUNE_SEEDS = (1001, 1002, 1003, 1004, 1005)
WORDS = ("name", "source", "note", "exact")
"""What a row says of itself; it trains alike under other words."""


@dataclass(frozen=True)
class Case:
    """One method in one setting.

    Args:
        method: a row, of the table or composed.
        labels: what tells this case from the others of its study, such as {"epsilon": 3, "alpha": 0.5}; columns of the
            frame.
        task: name in `fedlora_lab.tasks`, and its arguments.
        epsilon: budget, calibrated by PRV for the case's own plan; ``None``: no privacy.
        privacy, plan, lora: fields of `Privacy`, `Plan` and `Lora`; a learning rate is not among them.
        compute: switches of speed, which change no number but by rounding and are no part of the key.
    """

    method: Method
    labels: Mapping[str, Any]
    task: tuple[str, Mapping[str, Any]]
    epsilon: float | None = None
    privacy: Mapping[str, Any] = field(default_factory=dict)
    plan: Mapping[str, Any] = field(default_factory=dict)
    lora: Mapping[str, Any] = field(default_factory=dict)
    compute: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """A digest of everything that decides the case's numbers but learning rate and seed; of no name or label."""
        fields = [name for name in Method.__dataclass_fields__ if name not in WORDS]
        row = {name: catalogue.rule_name(getattr(self.method, name)) for name in fields}
        body = [row, self.task, self.epsilon, self.privacy, self.plan, self.lora]
        return hashlib.sha256(json.dumps(body, sort_keys=True, default=dict).encode()).hexdigest()[:16]


class Job(NamedTuple):
    """One run: a case, a learning rate, a seed; judged on validation data to choose the rate, or reported.

    ``flat``: the curvature at the end is measured as well.
    """

    case: Case
    lr: float
    seed: int
    tune: bool
    flat: bool = False

    @property
    def key(self) -> str:
        """What names the job in the file of results."""
        return f"{self.case.key}/{'tune' if self.tune else 'report'}/{self.lr:g}/{self.seed}"


@dataclass(frozen=True)
class Study:
    """Cases under one rule of tuning: every case has the same number of tries, with seeds that report nothing.

    All rates are tried with the first tuning seed, the best of them with the others too: one seed ranks rates well and
    cannot choose among neighbours, where a little more makes a run fall apart under some noise and not under other.

    Args:
        name: as on the command line.
        note: one line of what is asked.
        cases: all of them, each method in each setting.
        seeds: of the reported runs, none of them a tuning seed.
        rates: learning rates, at least four, ascending.
        tune_seeds: of the runs that choose the rate by the mean validation score after the last round.
        finalists: how many rates meet all tuning seeds.
        flat: measure the curvature at the end of every reported run; it takes longer than a short run.
        guides: its cases are situations in which one would choose a method; else they ask what one knob does.
    """

    name: str
    note: str
    cases: tuple[Case, ...]
    seeds: tuple[int, ...] = tuple(range(10))
    rates: tuple[float, ...] = RATES
    tune_seeds: tuple[int, ...] = TUNE_SEEDS
    finalists: int = 3
    flat: bool = False
    guides: bool = False

    def __post_init__(self) -> None:
        check(bool(self.cases), "cases", self.cases, "at least one")
        check(
            len(self.rates) >= 4 and list(self.rates) == sorted(self.rates), "rates", self.rates, "four or more, rising"
        )
        check(1 <= self.finalists <= len(self.rates), "finalists", self.finalists, "1 to as many as there are rates")
        check(not set(self.seeds) & set(self.tune_seeds), "seeds", self.seeds, "none of the tuning seeds")
        keys = [case.key for case in self.cases]
        check(len(set(keys)) == len(keys), "cases", f"{len(keys) - len(set(keys))} twice", "each case once")

    def screening(self, case: Case) -> Iterator[Job]:
        """Every rate once."""
        return (Job(case, lr, self.tune_seeds[0], True) for lr in self.rates)

    def finals(self, case: Case, rates: Iterable[float]) -> Iterator[Job]:
        """The best rates with the seeds that are left."""
        return (Job(case, lr, seed, True) for lr in rates for seed in self.tune_seeds[1:])

    def reported(self, case: Case, lr: float) -> Iterator[Job]:
        """The runs that count."""
        return (Job(case, lr, seed, False, self.flat) for seed in self.seeds)

    @property
    def tries(self) -> int:
        """How many runs choose the rate of a case."""
        return len(self.rates) + self.finalists * (len(self.tune_seeds) - 1)

    @property
    def runs(self) -> int:
        """How many runs the study takes."""
        return len(self.cases) * (self.tries + len(self.seeds))
