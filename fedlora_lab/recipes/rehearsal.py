"""A rehearsal: the same run on public examples first, to choose the rate of the private one."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from fedlora_lab import methods
from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.validation import check, check_number, check_whole
from fedlora_lab.federated.run import Diverged, run
from fedlora_lab.measures.runs import smaller_is_better
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.plan import Lora, Plan
from fedlora_lab.privacy.plan import Privacy
from fedlora_lab.recipes.dry_run import at_rate
from fedlora_lab.tasks.task import HeldOut, Task, take

if TYPE_CHECKING:
    import pandas as pd

LEARNED = 2 / 3
"""The share of the public examples that a rehearsal learns from; the others are scored."""
FEWEST = 30
"""Public examples that a rehearsal takes at least."""
NEAR = 0.03
"""Accuracy below that of the best rate up to which another one still belongs to the range."""


class Rehearsal(NamedTuple):
    """What runs on public examples found, over the learning rate.

    Args:
        table: a row a rate: ``lr``, ``clip_norm``, ``score``, the mean over the runs, and
            ``run 0``, ``run 1``, ... of each; NaN where a run diverged.
        measure: what is scored: accuracy, else the loss, else the first metric of the task.
        lr: the rate with the best mean, of equal ones the smaller.
        clip_norm: that went with it.
        end: the rate at which an accuracy falls three points below its best, between two rates;
            the largest rate where none falls so far; NaN for other measures.
        at_edge: the best rate is the least or largest of those tried: others may be better.
    """

    table: "pd.DataFrame"
    measure: str
    lr: float
    clip_norm: float
    end: float
    at_edge: bool


def rehearse(
    task: Task,
    method: Method | str,
    privacy: Privacy,
    plan: Plan,
    rates: Iterable[float],
    *,
    lora: "Lora | None" = None,
    runs: int = 2,
    seed: int = 0,
) -> Rehearsal:
    """Chooses a learning rate by doing the same run on public examples, before the private one.

    The rehearsal has the method, the plan, the clip norm and the noise of the private run, and as
    many clients of the same sizes. Only their examples are others: two thirds of the task's public
    validation examples, drawn with replacement and dealt at random, while the last third is scored.
    So it sees signal, noise and steps alike. No private value is read and no epsilon is spent. It
    costs as many runs as there are rates, times ``runs``.

    Args:
        task, method, privacy, plan, lora: see `run`, with the noise multiplier set.
        rates: learning rates of B, > 0; where A has another rate, it keeps its ratio to B's. In the
            client unit the clip norm goes in proportion to the rate, since noise follows it.
        runs: at each rate, >= 1, each with a split, a start and noise of its own.
        seed: of the rehearsal. Even at the same number no stream is that of a run, so a rehearsal
            does not draw the noise of the run that it chooses for.

    Raises: ``ValueError`` without noise, or without 30 public validation examples.
    Guarantees: no private value enters
        (test_rehearsal.py::test_no_private_value_enters_a_rehearsal); the noise is that of the run
        (test_rehearsal.py::test_a_rehearsal_has_the_noise_and_the_work_of_its_run); its seeds are
        its own (test_rehearsal.py::test_a_rehearsal_draws_other_noise_than_its_run).
    Source: tuning on public data in place of a search that epsilon would have to count
        (arXiv:2110.03620). docs/rates.md has how far its rates are off.

    >>> import fedlora_lab as fl
    >>> task, plan = fl.tasks.digits(clients=4), fl.Plan(rounds=2, batch=16)
    >>> privacy = fl.Privacy(delta=1e-4).calibrate(epsilon=8, task=task, plan=plan)
    >>> fl.rehearse(task, "fedlora", privacy, plan, [0.2, 25.6], runs=1).lr
    0.2
    """
    import pandas as pd

    row = methods.get(method)
    check(privacy is not None, "privacy", None, "a Privacy: without noise no rate is rehearsed")
    check_whole("runs", runs, 1)
    rates = sorted(rates)
    check(len(rates) > 1, "rates", rates, "two or more to choose from")
    for rate in rates:
        check_number("rates", rate, 0, open_low=True)
    seeds = seeds_of(seed, runs)
    tasks = [public_task(task, privacy, each) for each in seeds]
    measure = _measure_of(task)
    rows = []
    for rate in rates:
        private, its_plan = at_rate(privacy, plan, rate)
        scores = {}
        for i in range(runs):
            options = {"lora": lora, "seed": seeds[i], "evaluate_every": plan.rounds}
            scores[f"run {i}"] = _score(tasks[i], row, private, its_plan, options, measure)
        mean = float(np.mean([*scores.values()]))
        rows.append({"lr": rate, "clip_norm": private.clip_norm, "score": mean, **scores})
    table = pd.DataFrame(rows)
    return _choose(table, measure)


def seeds_of(seed: int, runs: int) -> list[int]:
    """The seeds of the runs of a rehearsal, which are no numbers that anybody gives to a run.

    A rehearsal with the noise of the run that it chooses for would forecast it too well.
    """
    return [int(Streams(seed).numpy("rehearsal", i).integers(2**32, 2**62)) for i in range(runs)]


def public_task(task: Task, privacy: Privacy, seed: int) -> Task:
    """The task with public examples in the place of the private ones, and others to score on.

    Of the private task it takes the model and the public numbers: how many clients there are, and
    how many examples each has, or persons where persons are protected, with an example each.

    Args: task, privacy: see `rehearse`. seed: of the examples that each client gets.
    """
    public: Any = task.validation if task.public_test else None
    expected = f"at least {FEWEST} examples, with public_test=True"
    check(public is not None, "validation", None, expected)
    x, y = public
    check(len(y) >= FEWEST, "validation", f"{len(y)} examples", expected)
    streams = Streams(seed)
    order = torch.from_numpy(streams.numpy("rehearsal split").permutation(len(y)))
    learned = order[: int(LEARNED * len(y))]
    scored = order[len(learned) :]
    clients = []
    persons = []
    for k, count in enumerate(privacy.unit_counts(task)):
        picks = streams.numpy("rehearsal client", k).integers(len(learned), size=count)
        drawn = learned[torch.from_numpy(picks)]
        clients.append((take(x, drawn), y[drawn]))
        # Each row is a person's of its own, by a number over all clients.
        first = sum(map(len, persons))
        persons.append([*range(first, first + count)])
    return replace(
        task,
        # Whose they are is known: examples that learn are public, as those are that score.
        clients=clients,
        persons=persons if privacy.unit == "person" else None,
        held_out=HeldOut((take(x, scored), y[scored])),
    )


def _measure_of(task: Task) -> str:
    usual = [name for name in ("accuracy", "loss") if name in task.metrics]
    return [*usual, *task.metrics][0]


def _score(
    task: Task,
    row: Method,
    privacy: Privacy,
    plan: Plan,
    options: Mapping[str, Any],
    measure: str,
) -> float:
    """The score after the last round; NaN where the run diverged."""
    try:
        *_, last = run(task, row, privacy, plan, **options)
    except Diverged:
        return float("nan")
    return last.metrics[measure]


def _choose(table: "pd.DataFrame", measure: str) -> Rehearsal:
    """Chooses the rate with the best mean score."""
    worth = -table["score"] if smaller_is_better(measure) else table["score"]
    check(bool(worth.notna().any()), "rates", table["lr"].tolist(), "smaller ones: all diverged")
    best = table.loc[worth.idxmax()]
    end = float("nan")
    if measure == "accuracy":
        # A run that diverged has nothing right.
        end = plateau_end(table.fillna(0.0).set_index("lr")["score"])
    edges = (table["lr"].min(), table["lr"].max())
    lr, clip_norm = float(best["lr"]), float(best["clip_norm"])
    return Rehearsal(table, measure, lr, clip_norm, end, best["lr"] in edges)


def plateau_end(mean: "pd.Series") -> float:
    """Finds the rate at which the score falls `NEAR` below the best.

    Between two rates of the grid the score is a straight line over the rate's logarithm; at the end
    of the grid the plateau is cut off.

    Args: mean: the scores, by rate, ascending.
    Guarantees: test_a_plateau_ends_where_three_points_are_lost.
    """
    level = mean.max() - NEAR
    later = mean[mean.idxmax() :]
    lost = np.flatnonzero(later < level)
    if not len(lost):
        return float(later.index[-1])
    pair: Any = later.iloc[lost[0] - 1 : lost[0] + 1]
    return float(2 ** np.interp(-level, -pair, np.log2(pair.index)))
