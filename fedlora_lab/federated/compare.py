"""Compares methods over seeds and settings in one tidy frame.

Runs that are kept in a folder are found again by their arguments, and go on where they were left.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fedlora_lab import methods
from fedlora_lab._utils.validation import check, few
from fedlora_lab.federated import store
from fedlora_lab.federated.config import Config, Execution
from fedlora_lab.federated.jobs import run_calls
from fedlora_lab.federated.make_config import make_config
from fedlora_lab.federated.records import to_frame
from fedlora_lab.federated.run import Run
from fedlora_lab.measures.runs import (
    last_scores,
    smaller_is_better,
    varied_columns,
)
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.plan import Lora, Plan, lora_of
from fedlora_lab.privacy.plan import Privacy
from fedlora_lab.tasks.task import Task

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from tqdm import tqdm

_T = TypeVar("_T")


@dataclass(frozen=True)
class Cell:
    """One run of a comparison.

    Args:
        config: all that decides its numbers.
        setting: columns of its own in the frame, and their values.
    """

    config: Config
    setting: Mapping[str, Any] = field(default_factory=dict)

    @property
    def slug(self) -> str:
        """The method's, its name in the frame."""
        return self.config.method.slug

    def at_seed(self, seed: int | None) -> "Cell":
        """The same run at another seed."""
        return replace(self, config=replace(self.config, seed=seed))

    def label(self, frame: "pd.DataFrame") -> "pd.DataFrame":
        """Writes into a tidy frame of the cell's rounds its name, its setting and its rate."""
        lr = self.config.plan.lr
        rate = lr if isinstance(lr, Real) else str(lr)
        return frame.assign(**self.setting, lr=rate, method=self.slug)


def compare(
    task: Task,
    methods: Iterable[str | Method],
    privacy: Privacy | None,
    plan: Plan | Mapping[str, Plan],
    seeds: Iterable[int] = (0, 1, 2),
    *,
    lora: "Lora | None" = None,
    lr: "float | Iterable[float] | None" = None,
    jobs: int | None = None,
    progress: bool = True,
    out: "str | Path | None" = None,
    evaluate_every: int = 1,
    chunk_examples: int | None = None,
    device: "str | torch.device | None" = None,
) -> "pd.DataFrame":
    """Trains several methods at several seeds and rates, and returns one tidy frame.

    Its column ``lr`` has the learning rate of each run. Where methods spent unequal epsilons, as
    other plans may, figures say so and `fl.report.paired_difference` refuses the pair.

    Args:
        task, privacy, lora: of every run.
        methods: rows or slugs, each once. A row that was changed needs a name of its own:
            ``row.replace(name="...", ...)``.
        plan: one plan for all, or one for each name (a learning rate tuned for each method, say).
        seeds: of every method, so that start and batches are alike; such runs are for study, as
            their ledgers say. `run` and `finetune` draw afresh.
        lr: learning rates that every method is tried at, see `best`.
        jobs: runs at once, -1 for one a core, each in a process with one thread; what they yield
            is the same to the last bit, whatever the number. The task travels to the processes
            through pipes, and lies in no file. ``None``: one run after the other with PyTorch's
            threads.
        progress: a bar that moves with each run that ends, with the time left.
        out: a folder in which each run has a folder of its own, see ``out`` of `run`. A run that is
            there is found again by its arguments: a finished one is not trained again, seconds
            are then those of its training, and one that was stopped goes on from its last round.
            Comparisons may share a folder, but for other data of the same sizes, which are
            refused. See `fl.Ledger.load` for what the releases in it spend.
        evaluate_every, chunk_examples, device: of every run, see `run`.

    Raises: ``ValueError`` before the first run when a name, plan or privacy does not fit; the error
        of a run, such as `Diverged`, ends the comparison. With ``out`` what was done is kept.
    Guarantees: test_jobs.py::test_frames_do_not_depend_on_the_number_of_jobs,
        ::test_no_example_is_put_into_a_file.

    >>> import fedlora_lab as fl
    >>> task = fl.tasks.regression(clients=2, examples=4, d_in=3, d_out=3, rank=1, test=4)
    >>> plan = fl.Plan(rounds=1, local_steps=1)
    >>> frame = fl.compare(task, ["fedlora", "ffa-lora"], None, plan, seeds=[0], progress=False)
    >>> sorted(set(frame["method"]))
    ['fedlora', 'ffa-lora']
    """
    from tqdm.auto import tqdm

    execution = Execution(
        evaluate_every=evaluate_every,
        chunk_examples=chunk_examples,
        device=device,
    )
    rates: Any = [lr] if isinstance(lr, Real | Mapping) else lr
    cells = checked_cells(task, methods, privacy, plan, seeds, lora_of(lora), rates, execution)
    total = sum(cell.config.plan.rounds for cell in cells)
    with tqdm(total=total, disable=not progress) as bar:
        return run_cells(cells, execution, out, jobs, bar)


# ---- the runs of a comparison


def checked_cells(
    task: Task,
    which: Iterable[str | Method],
    privacy: Privacy | None,
    plan: Plan | Mapping[str, Plan],
    seeds: Iterable[int],
    lora: Lora,
    rates: Iterable[Any] | None,
    execution: Execution,
) -> list[Cell]:
    """The runs of a comparison, every one checked before the first begins.

    Args:
        task, which, privacy, plan, seeds, lora: see `compare`; which: the methods.
        rates: the learning rates to try; ``None``: those of the plan.
        execution: of every run.
    """
    names = _listed("methods", which, 'such as ["fedlora", "ffa-lora"]')
    draws = _listed("seeds", seeds, "such as range(3)")
    check(isinstance(task, Task), "task", task, "a Task")
    scored = "a mapping with at least one score, such as the loss, to compare by"
    check(len(task.metrics) > 0, "metrics", task.metrics, scored)
    check(isinstance(privacy, Privacy | None), "privacy", privacy, "a Privacy")
    tried = None if rates is None else _listed("lr", rates, "such as [0.1, 0.4]")
    firsts: list[Cell] = []
    # Method by method, so that the table of the first is whole before the next begins.
    for name in names:
        its_plan = _plan_for(name, plan)
        plans = [its_plan] if tried is None else [its_plan.replace(lr=rate) for rate in tried]
        for at_rate in plans:
            # Before hours of training: a mistake in the last cell is told now.
            config = make_config(task, name, privacy, at_rate, lora, draws[0])
            firsts.append(Cell(config))
    # Twice, its seeds would count as twice as many, and its interval be too narrow.
    slugs = [cell.slug for cell in firsts[:: len(tried or [None])]]
    expected = 'each once, a changed row under a name of its own: row.replace(name="...")'
    check(len(set(slugs)) == len(slugs), "methods", slugs, expected)
    # A run that is opened probes what a row of one's own does to examples, and trains nothing.
    for cell in firsts:
        if cell.config.method not in methods.ALL.values():
            Run.open(cell.config, execution)
    return [cell.at_seed(seed) for cell in firsts for seed in draws]


def run_cells(
    cells: list[Cell],
    execution: Execution,
    out: "str | Path | None",
    jobs: int | None,
    bar: "tqdm[Any]",
) -> "pd.DataFrame":
    """Trains what is not finished in the folder; one frame in the order of the cells.

    Args:
        cells: the runs. execution: of each. out, jobs: see `compare`.
        bar: counts the rounds of runs that have ended.
    """
    import pandas as pd

    # Where it is now: a worker may have been started in another folder.
    home = None if out is None else Path(out).expanduser().absolute()
    expected = "a folder, not a file"
    check(home is None or not home.is_file(), "out", str(home), expected)
    frames: dict[int, pd.DataFrame] = {}
    calls: dict[int, Callable[[], pd.DataFrame]] = {}
    for i, cell in enumerate(cells):
        folder = None if home is None else home / folder_name(cell, execution)
        rounds = cell.config.plan.rounds
        if folder is not None and max(store.rounds_in(folder), default=-1) >= rounds:
            store.read_own(folder, store.settings_of(cell.config))
            frames[i] = cell.label(store.stored_frame(folder))
            bar.update(rounds)
        else:
            calls[i] = partial(_train, cell, execution, folder)
    for i, frame in run_calls(calls, jobs):
        frames[i] = frame
        bar.update(cells[i].config.plan.rounds)
    return pd.concat([frames[i] for i in sorted(frames)], ignore_index=True)


def _train(cell: Cell, execution: Execution, folder: Path | None) -> "pd.DataFrame":
    """Trains a cell, in its folder if it has one, and returns its frame.

    Args: cell, execution: the run. folder: its own, see `folder_name`.
    """
    records = list(Run.open(cell.config, execution, out=folder).records())
    return cell.label(to_frame(records) if folder is None else store.stored_frame(folder))


# ---- what a sweep found


def best(frame: "pd.DataFrame", by: str = "lr") -> "pd.DataFrame":
    """Chooses each method's best learning rate on half of the seeds; returns its other runs.

    The score of a rate is the mean after the last round of accuracy, else of the loss, else of the
    task's first metric. What else was varied is kept apart: of two epsilons, told apart by a
    column, each gets its own rate. Scores are those of the test examples, so no example is left
    that has not been looked at: what is kept apart is the luck of the seeds.

    Args:
        frame: of a comparison that varied ``by``.
        by: the column of which the best value is chosen.
    Returns: rows of the frame. Its ``attrs["chosen"]`` says which seeds chose and which report, and
        where the best value is the least or the largest of those tried.
    Raises: ``ValueError`` where no seed is left to choose or to report, and for other columns.
    Guarantees: test_compare.py::test_the_best_rate_is_chosen_on_seeds_that_do_not_report_it.

    >>> import fedlora_lab as fl
    >>> task = fl.tasks.regression(clients=2, examples=4, d_in=3, d_out=3, rank=1, test=4)
    >>> plan = fl.Plan(rounds=1, local_steps=1)
    >>> rates = [0.01, 0.1]
    >>> frame = fl.compare(task, ["fedlora"], None, plan, range(2), lr=rates, progress=False)
    >>> fl.best(frame)["seed"].unique().tolist()
    [1]
    """
    from pandas.api.types import is_numeric_dtype

    check(hasattr(frame, "columns"), "frame", frame, "a frame that compare returned")
    varied = varied_columns(frame)
    check(by in varied, "by", by, "a column that varies: " + (few(varied, 8) or "none"))
    seeds = sorted(frame["seed"].dropna().unique().tolist())
    check(len(seeds) > 1, "seeds", seeds, "at least two: some choose, and others report")
    half = len(seeds) // 2
    choosing, reporting = seeds[:half], seeds[half:]
    ends = last_scores(frame)
    measure = str(ends["measure"].iloc[0])
    groups = ["method", *(name for name in varied if name != by)]
    tried = ends[ends["seed"].isin(choosing)].groupby([*groups, by], dropna=False, sort=False)
    # A run that diverged has no score: a mean with it is the worst.
    scores = tried["value"].agg(lambda values: values.mean(skipna=False)).reset_index()
    sign = -1 if smaller_is_better(measure) else 1
    ranks = (sign * scores["value"]).fillna(-math.inf)
    picks = ranks.groupby([scores[name] for name in groups], dropna=False).idxmax()
    picked = scores.loc[picks.sort_values(), [*groups, by]]
    result = frame[frame["seed"].isin(reporting)].merge(picked, on=[*groups, by])
    line = f"{by} chosen by {measure} at seeds {few(map(str, choosing), 8)}"
    line += f", reported at seeds {few(map(str, reporting), 8)}"
    edges = scores[by].agg(["min", "max"]) if is_numeric_dtype(scores[by]) else []
    at_edge = picked.loc[picked[by].isin(edges), "method"].unique()
    line += f"; {by} at the edge of what was tried: {few(at_edge, 8)}" if len(at_edge) else ""
    result.attrs = {"chosen": line}
    return result


def _listed(name: str, values: Iterable[_T], example: str) -> list[_T]:
    # A text is iterable too, letter by letter, and a row field by field.
    several = isinstance(values, Iterable) and not isinstance(values, (str, bytes, Method, Mapping))
    check(several, name, values, f"a list, {example}")
    listed = list(values)
    check(bool(listed), name, listed, f"at least one, {example}")
    check(len({*map(str, listed)}) == len(listed), name, listed, "each once")
    return listed


def _plan_for(name: str | Method, plan: Plan | Mapping[str, Plan]) -> Plan:
    if isinstance(plan, Plan):
        return plan
    slug = methods.get(name).slug
    has_plan = isinstance(plan, Mapping) and slug in plan
    check(has_plan, "plan", plan, f"a Plan, or a mapping with one for {slug!r}")
    return plan[slug]


# ---- runs in a folder


def folder_name(cell: Cell, execution: Execution) -> str:
    """The name of a run's folder in that of a comparison, by which it is found again.

    It follows from all that the run was given but the data, of which only the sizes count: nobody
    can confirm a guess at an example by it. Rules, losses, metrics and models are known by their
    names and the text of what they hold: after a change of their code another folder is needed.

    Args: cell, execution: the run.
    Guarantees: test_store.py::test_any_changed_argument_trains_anew,
        test_checkpoint.py::test_other_settings_are_refused_in_one_line.
    """
    config = cell.config
    task = config.task
    settings = {
        **store.settings_of(config),
        "task": [task.name, config.unit_counts, store.rule_identity(task.loss)],
        "rounds": config.plan.rounds,
        "public_test": task.public_test,
        "metrics": {name: store.rule_identity(rule) for name, rule in task.metrics.items()},
        "execution": asdict(execution),
    }
    text = json.dumps(settings, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return f"{cell.slug}-{config.seed}-{digest}"
