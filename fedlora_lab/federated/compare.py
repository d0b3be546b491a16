"""Compares methods over seeds and settings in one tidy frame, with baselines.

Runs that are kept in a folder are found again by their arguments, and go on where they were left.
"""

import hashlib
import itertools
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache, partial
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fedlora_lab import methods
from fedlora_lab._utils.files import (
    JsonObject,
    to_json,
    writing,
)
from fedlora_lab._utils.rounding import round_up
from fedlora_lab._utils.safe_output import SafeStream
from fedlora_lab._utils.validation import check, few
from fedlora_lab.federated import store
from fedlora_lab.federated.config import Config, Execution
from fedlora_lab.federated.jobs import run_calls, workers_for
from fedlora_lab.federated.make_config import make_config
from fedlora_lab.federated.records import LocalStep, Round, to_frame
from fedlora_lab.federated.run import Run
from fedlora_lab.measures.runs import (
    by_setting,
    count_collapsed,
    describe_collapse,
    describe_standstill,
    describe_unequal_privacy,
    headline_measure,
    last_scores,
    run_ends,
    setting_text,
    smaller_is_better,
    varied_columns,
)
from fedlora_lab.methods.method import Method, check_names
from fedlora_lab.methods.plan import Lora, Plan, lora_of
from fedlora_lab.privacy.plan import Privacy
from fedlora_lab.tasks.task import Task

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from tqdm import tqdm

_T = TypeVar("_T")
BASELINES: dict[str, Method] = {
    "non-private": methods.FedLoRA,
    "central": methods.FedLoRA,
    "local": methods.Local,
}
"""Names that `compare` takes beside the table's: without privacy; all data in one place; every
client alone."""


@dataclass(frozen=True)
class Cell:
    """One run of a comparison.

    Args:
        slug: its name in the frame, a baseline's or the method's.
        config: all that decides its numbers.
        setting: what a sweep varies, and its value here; it stands in the config already.
    """

    slug: str
    config: Config
    setting: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Pandas keeps whole numbers in 64 bits: a larger seed would be another one in the frame.
        seed = self.config.seed
        small = seed is None or seed < 2**63
        check(small, "seed", seed, "a whole number below 2**63, as frames have them")

    @classmethod
    def from_name(
        cls,
        method: str | Method,
        task: Task,
        privacy: Privacy | None,
        plan: Plan,
        lora: Lora,
        seed: int | None,
    ) -> "Cell":
        """Makes the cell of a row, a slug or a baseline; pooled data get noise for that epsilon.

        Args:
            method: a row, its slug, or a name in `BASELINES`.
            task, privacy, plan, lora, seed: see `run`; "non-private" runs without ``privacy``.
        Raises: ``ValueError`` for pooled data in the client unit.
        Guarantees: test_attack_neighbours.py::test_pooled_data_have_no_clients.
        """
        if not isinstance(method, str) or method not in BASELINES:
            method = methods.get(method)
            config = make_config(task, method, privacy, plan, lora, seed)
            return cls(method.slug, config)
        if method == "non-private":
            privacy = None
        if method == "central":
            count = len(task.clients)
            task = task.pooled()
            lora = replace(lora, ranks=None)  # those of clients that there are no more
            # As many examples a step as all clients together take.
            if plan.batch is not None:
                plan = plan.replace(batch=plan.batch * count)
            if privacy is not None:
                privacy = _calibrated_for_pooled(privacy, task, plan)
        return cls(method, make_config(task, BASELINES[method], privacy, plan, lora, seed))

    def at_seed(self, seed: int | None) -> "Cell":
        """The same run at another seed."""
        return replace(self, config=replace(self.config, seed=seed))

    def label(self, frame: "pd.DataFrame") -> "pd.DataFrame":
        """Writes into a tidy frame of the cell's rounds its name, what was varied, and the rate."""
        varied: dict[str, Any] = {**self.setting, "lr": self.config.plan.lr}
        for name, value in varied.items():
            varied[name] = value if isinstance(value, Real | str | None) else str(value)
        return frame.assign(**varied, method=self.slug)

    @property
    def name(self) -> str:
        """The run in words: method, what was varied, seed."""
        words = [f"{name}={value}" for name, value in self.setting.items()]
        return " ".join([self.slug, *words, f"seed {self.config.seed}"])


def _calibrated_for_pooled(privacy: Privacy, task: Task, plan: Plan) -> Privacy:
    """The privacy with the noise that pooled data need for the same epsilon."""
    # One client less turns the one update into another of norm C: the sum moves by 2 C.
    expected = "'example' for 'central': pooled data have no clients"
    check(privacy.releases_steps, "unit", privacy.unit, expected)
    target = privacy.target_epsilon
    expected = "one from calibrate(epsilon=...) for 'central'"
    check(target is not None, "privacy", "without a target", expected)
    assert target is not None
    return privacy.replace(sample_rate=None).calibrate(epsilon=target, task=task, plan=plan)


BAR: dict[str, Any] = {
    "bar_format": "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
    "miniters": 0,  # by time alone: a step may take a hundred times as long as the one before
    "dynamic_ncols": True,
}
"""Options of a tqdm bar whose total counts rounds: share done, time so far and time left."""


def show_progress(
    bar: "tqdm[Any]", cell: Cell, events: Iterable[Round | LocalStep]
) -> Iterator[Round | LocalStep]:
    """Passes the events of a run on, and shows on a tqdm bar of `BAR` where the run is.

    Args: bar: counts rounds; other runs may share it. cell, events: the run.
    """
    name = cell.name
    plan = cell.config.plan
    rounds_before = bar.n
    bar.set_description_str(f"{name}, preparing")
    text = ""
    for event in events:
        if isinstance(event, LocalStep):
            place = f"round {event.round} of {plan.rounds}, step {event.step}"
            # The last part of a round is aggregation and scores.
            done = event.round - 1 + event.step / (plan.local_steps + 1)
        else:
            place = f"round {event.index} of {plan.rounds}"
            done = event.index
            if event.ledger is not None:
                text = f"ε {round_up(event.epsilon, '.3g')}"
        bar.set_description_str(name, refresh=False)
        bar.set_postfix_str(f"{place}, {text}" if text else place, refresh=False)
        # By the difference, so that a run that is taken up again begins where it stands.
        bar.update(rounds_before + done - bar.n)
        yield event
    # A run may stop early: the next one begins where its rounds would have ended.
    bar.update(rounds_before + plan.rounds - bar.n)


def compare(
    task: Task,
    methods: Iterable[str | Method],
    privacy: Privacy | None,
    plan: Plan | Mapping[str, Plan],
    seeds: Iterable[int] = (0, 1, 2),
    *,
    lora: "Lora | None" = None,
    lr: "float | Iterable[float] | None" = None,
    grid: Mapping[str, Iterable[Any]] | None = None,
    jobs: int | None = None,
    progress: bool = True,
    out: "str | Path | None" = None,
    evaluate_every: int = 1,
    chunk_clients: int | None = None,
    chunk_examples: int | None = None,
    device: "str | torch.device | None" = None,
    matmul_precision: str = "float32",
) -> "pd.DataFrame":
    """Trains several methods at several seeds and settings, and returns one tidy frame.

    Its column ``lr`` has the learning rate of each run, and what the grid varies has a column of
    its own. Its ``attrs["collapsed"]`` counts the runs of each method that collapsed, since a mean
    hides them, see `fl.measures.find_collapsed`; its ``attrs["standstill"]`` says so where no
    method is clearly better than the untrained model, and its ``attrs["privacy"]`` where methods
    spent unequal epsilons, as other plans may: then they cannot be compared.

    Args:
        task, privacy, lora: of every run.
        methods: rows, slugs, or the baselines "non-private", "central", "local"; each once. A row
            that was changed needs a name of its own: ``row.replace(name="...", ...)``.
        plan: one plan for all, or one for each name (a learning rate tuned for each method, say).
        seeds: of every method, so that start and batches are alike; such runs are for study, as
            their ledgers say. `run` and `finetune` draw afresh.
        lr: learning rates that every method is tried at, see `best`.
        grid: name -> values to try, every combination of them: fields of `Plan`, `Lora` and
            `Privacy`, and "epsilon", ``None`` for no privacy. The noise of a calibrated privacy
            is found anew where it depends on what is varied. Another unit has its own default of
            trust.
        jobs: runs at once, -1 for one a core, each in a process with one thread; what they yield
            is the same to the last bit, whatever the number. The task travels to the processes
            through pipes, and lies in no file. ``None``: one run after the other with PyTorch's
            threads, or as a ``joblib.parallel_config`` around the call says, which may name a
            cluster.
        progress: a bar with epsilon and the time left, a line for each method whose runs
            collapsed, and one where no method learned anything.
        out: a folder in which each run has a folder of its own, see ``out`` of `run`. A run that is
            there is found again by all its arguments: a finished one is not trained again, seconds
            are then those of its training, and one that was stopped goes on from its last round.
            Comparisons may share a folder. See `fl.Ledger.load` for what the releases in it spend.
        evaluate_every, chunk_clients, chunk_examples, device, matmul_precision: of every run, see
            `run`.

    Raises: ``ValueError`` before the first run when a name, plan or privacy does not fit; the error
        of a run, such as `Diverged`, ends the comparison. With ``out`` what was done is kept.
    Guarantees: test_jobs.py::test_frames_do_not_depend_on_the_number_of_jobs,
        ::test_no_example_stays_on_the_disk_after_a_kill.

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
        chunk_clients=chunk_clients,
        chunk_examples=chunk_examples,
        device=device,
        matmul_precision=matmul_precision,
    )
    points = grid_points(grid, lr)
    cells = checked_cells(task, methods, privacy, plan, seeds, lora_of(lora), points, execution)
    total = sum(cell.config.plan.rounds for cell in cells)
    # A comparison of hours must not end where nobody reads its bar any more.
    bar_stream = SafeStream(sys.stderr)
    with tqdm(total=total, disable=not progress, file=bar_stream, **BAR) as bar:
        frame = run_cells(cells, execution, out, jobs, bar)
        frame.attrs |= judge(frame)
        for line in frame.attrs["lines"] if not bar.disable else ():
            bar.clear()
            print(line, file=SafeStream(sys.stdout))
            bar.refresh()
    return frame


def judge(frame: "pd.DataFrame") -> dict[str, Any]:
    """Tells what a mean over seeds hides: runs that collapsed, that no method learned, and that the
    methods spent unequal epsilons.

    Args: frame: tidy, of one setting or of a sweep.
    Returns: collapsed, method -> so many runs; privacy, see `describe_unequal_privacy`;
        standstill, see `describe_standstill`, where it holds at every setting; lines, which say
        all of it.
    """
    collapsed: dict[str, int] = {}
    privacy = describe_unequal_privacy(frame)
    lines = [privacy] if privacy else []
    standstills = []
    for setting, part in by_setting(frame):
        place = "".join(f" {name}={setting_text(value)}" for name, value in setting.items())
        for slug, count in count_collapsed(run_ends(part)).items():
            collapsed[slug] = collapsed.get(slug, 0) + count["collapsed"]
            if text := describe_collapse(headline_measure(part), count):
                lines.append(f"{slug}{place}: {text}")
        standstills.append(describe_standstill(part))
    standstill = standstills[0] if all(standstills) else ""
    lines += [standstill] if standstill else []
    return {"collapsed": collapsed, "privacy": privacy, "standstill": standstill, "lines": lines}


# ---- the runs of a comparison

GRID_FIELDS = {one.name: part for part in (Plan, Lora, Privacy) for one in fields(part)}
"""What a grid may vary, and to which part of a run it belongs; beside these "epsilon"."""
# A name for what was calibrated: it changes no noise, as "epsilon" does.
del GRID_FIELDS["target_epsilon"]


def grid_points(grid: Mapping[str, Iterable[Any]] | None, lr: Any) -> list[dict[str, Any]]:
    """Lists the combinations of a grid, the learning rate varying fastest."""
    check(isinstance(grid, Mapping | None), "grid", grid, 'a mapping, such as {"lr": [0.1, 0.4]}')
    grid = dict(grid or {})
    if lr is not None:
        check("lr" not in grid, "lr", lr, "None where the grid has it")
        grid["lr"] = [lr] if isinstance(lr, Real | Mapping) else lr
    for name, values in grid.items():
        listed = _listed(f"grid[{name!r}]", values, "such as [1, 8]")
        # 8 and 8.0 are one setting, and so are two mappings of the same text.
        told_apart = {x if isinstance(x, Real) else str(x) for x in listed}
        check(len(told_apart) == len(listed), f"grid[{name!r}]", listed, "each value once")
        grid[name] = listed
    allowed = [*GRID_FIELDS, "epsilon"]
    check(set(grid) <= {*allowed}, "grid", grid, "keys among " + ", ".join(allowed))
    both = {"epsilon", "noise_multiplier"} <= {*grid}
    expected = "epsilon or noise_multiplier: one follows from the other"
    check(not both, "grid", few(grid, 8), expected)
    return [dict(zip(grid, point)) for point in itertools.product(*grid.values())]


def checked_cells(
    task: Task,
    which: Iterable[str | Method],
    privacy: Privacy | None,
    plan: Plan | Mapping[str, Plan],
    seeds: Iterable[int],
    lora: Lora,
    points: list[dict[str, Any]],
    execution: Execution,
) -> list[Cell]:
    """The runs of a comparison, every one checked before the first begins."""
    names = _listed("methods", which, 'such as ["fedlora", "ffa-lora"]')
    draws = _listed("seeds", seeds, "such as range(3)")
    expected = "each once; for several releases compare several times"
    check(len(set(draws)) == len(draws), "seeds", draws, expected)
    check(isinstance(task, Task), "task", task, "a Task")
    scored = "a mapping with at least one score, such as the loss, to compare by"
    check(len(task.metrics) > 0, "metrics", task.metrics, scored)
    check(isinstance(privacy, Privacy | None), "privacy", privacy, "a Privacy")
    varied = [name for name in points[0] if len({str(point[name]) for point in points}) > 1]
    calibrate = cache(
        lambda terms, epsilon, work: terms.calibrate(epsilon=epsilon, task=task, plan=work)
    )
    firsts: list[Cell] = []
    # Method by method, so that the table of the first is whole before the next begins.
    for name in names:
        its_plan = _plan_for(name, plan)
        anew = "epsilon" in points[0] or _moves_noise(points, privacy, its_plan, task)
        for point in points:
            parts = _parts_at(point, privacy, its_plan, lora, calibrate, anew)
            # Before hours of training: a mistake in the last cell is told now.
            cell = Cell.from_name(name, task, *parts, draws[0])
            setting = {name: point[name] for name in varied}
            firsts.append(replace(cell, setting=setting))
    check_names((cell.slug, cell.config.method) for cell in firsts[:: len(points)])
    # Twice, its seeds would count as twice as many, and its interval be too narrow.
    slugs = [cell.slug for cell in firsts[:: len(points)]]
    check(len(set(slugs)) == len(slugs), "methods", slugs, "each once")
    # A run that is opened probes what a row of one's own does to examples, and trains nothing.
    for cell in firsts:
        if cell.config.method not in methods.ALL.values():
            Run.open(cell.config, execution)
    return [cell.at_seed(seed) for cell in firsts for seed in draws]


def _moves_noise(
    points: list[dict[str, Any]], privacy: Privacy | None, plan: Plan, task: Task
) -> bool:
    """Whether a grid varies something of the plan on which the noise of an epsilon hangs."""
    changes = [{k: x for k, x in point.items() if GRID_FIELDS.get(k) is Plan} for point in points]
    if privacy is None or not any(changes):
        return False
    fresh = privacy.replace(sample_rate=None, noise_multiplier=None, target_epsilon=None)
    works = [plan, *(plan.replace(**change) for change in changes)]
    return len({fresh.noise_terms(task, work) for work in works}) > 1


def _parts_at(
    point: Mapping[str, Any],
    privacy: Privacy | None,
    plan: Plan,
    lora: Lora,
    calibrate: Callable[[Privacy, float, Plan], Privacy],
    anew: bool,
) -> tuple[Privacy | None, Plan, Lora]:
    """Puts the values of a grid into the parts of a run.

    Args:
        point: of the grid.
        privacy, plan, lora: as given.
        calibrate: finds the noise.
        anew: the noise was found for other work, and is to be found again.
    """
    changed: dict[type, dict[str, Any]] = {Plan: {}, Lora: {}, Privacy: {}}
    for name, value in point.items():
        changed[GRID_FIELDS.get(name, Privacy)][name] = value
    plan = plan.replace(**changed[Plan])
    lora = lora.replace(**changed[Lora])
    terms = changed[Privacy]
    expected = "a Privacy, of which the grid varies " + few(terms, 8)
    check(privacy is not None or not terms, "privacy", None, expected)
    epsilon = terms.pop("epsilon", None if privacy is None else privacy.target_epsilon)
    if privacy is None or (epsilon is None and "epsilon" in point):
        return None, plan, lora
    if "unit" in terms and privacy.trust != "secagg":
        terms = {"trust": None, **terms}
    if "noise_multiplier" in terms:
        terms = {"target_epsilon": None, "sample_rate": None, **terms}
    # What was calibrated for other work, or counted otherwise, would spend another epsilon.
    elif epsilon is not None and (anew or terms.keys() - {"clip_norm"}):
        terms = dict.fromkeys(("sample_rate", "target_epsilon", "noise_multiplier")) | terms
        # The rate does not matter: one search for all of them.
        return calibrate(privacy.replace(**terms), epsilon, plan.replace(lr=0.0)), plan, lora
    return privacy.replace(**terms), plan, lora


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
        bar: counts rounds.
    """
    import pandas as pd

    # Where it is now: a worker may have been started in another folder.
    home = None if out is None else Path(out).expanduser().absolute()
    expected = "a folder, not a file"
    check(home is None or not home.is_file(), "out", str(home), expected)
    shown = bar if workers_for(jobs) == 1 else None
    frames: dict[int, pd.DataFrame] = {}
    calls: dict[int, Callable[[], pd.DataFrame]] = {}
    for i, cell in enumerate(cells):
        folder = None if home is None else folder_of(cell, execution, home)
        rounds = cell.config.plan.rounds
        if folder is not None and max(store.rounds_in(folder), default=-1) >= rounds:
            frames[i] = cell.label(store.stored_frame(folder))
            bar.update(rounds)
        else:
            calls[i] = partial(_train, cell, execution, folder, shown)
    for i, frame in run_calls(calls, jobs):
        frames[i] = frame
        # Runs of this process have moved the bar themselves.
        bar.update(0 if shown else cells[i].config.plan.rounds)
    return pd.concat([frames[i] for i in sorted(frames)], ignore_index=True)


def _train(
    cell: Cell, execution: Execution, folder: Path | None, bar: "tqdm[Any] | None"
) -> "pd.DataFrame":
    """Trains a cell, in its folder if it has one, and returns its frame.

    Args: cell, execution: the run. folder: see `folder_of`. bar: shows it.
    """
    run = Run.open(cell.config, execution, out=folder).events()
    with closing(run):
        events = run if bar is None else show_progress(bar, cell, run)
        records = [event for event in events if isinstance(event, Round)]
    return cell.label(to_frame(records) if folder is None else store.stored_frame(folder))


# ---- what a sweep found


def best(
    frame: "pd.DataFrame",
    by: str | Sequence[str] = "lr",
    *,
    tuning_seeds: Iterable[int] | None = None,
    measure: str | None = None,
) -> "pd.DataFrame":
    """Chooses each method's best learning rate on some seeds, and returns its runs at the others.

    Any other value that a comparison varied is chosen in the same way.

    The score of a value is the mean after the last round. What else was varied is kept apart: of
    two epsilons each gets its own rate. Scores are those of the test examples, so no example is
    left that has not been looked at: what is kept apart is the luck of the seeds.

    Args:
        frame: of a comparison that varied ``by``.
        by: column, or columns, of which the best values are chosen together.
        tuning_seeds: those that choose. ``None``: the first half of the seeds.
        measure: that decides. ``None``: accuracy, else the loss.
    Returns: rows of the frame. Its ``attrs["chosen"]`` says which seeds chose and which report, and
        where the best value is the least or the largest of those tried; its ``attrs["privacy"]``
        where the chosen runs spent unequal epsilons, and so cannot be compared.
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

    names = [by] if isinstance(by, str) else list(by)
    check(hasattr(frame, "columns"), "frame", frame, "a frame that compare returned")
    varied = varied_columns(frame)
    check(set(names) <= set(varied), "by", by, "columns that vary: " + (few(varied, 8) or "none"))
    seeds = sorted(frame["seed"].dropna().unique().tolist())
    check(len(seeds) > 1, "seeds", seeds, "at least two: some choose, and others report")
    choosing = seeds[: len(seeds) // 2] if tuning_seeds is None else sorted(tuning_seeds)
    reporting = [seed for seed in seeds if seed not in choosing]
    fits = bool(choosing and reporting) and {*choosing} <= {*seeds}
    check(fits, "tuning_seeds", choosing, f"some of the seeds {seeds}, but not all: others report")
    ends = last_scores(frame, measure)
    measure = str(ends["measure"].iloc[0])
    groups = ["method", *(name for name in varied if name not in names)]
    tried = ends[ends["seed"].isin(choosing)].groupby([*groups, *names], dropna=False, sort=False)
    # A run that diverged has no score: a mean with it is the worst.
    scores = tried["value"].agg(lambda values: values.mean(skipna=False)).reset_index()
    sign = -1 if smaller_is_better(measure) else 1
    ranks = (sign * scores["value"]).fillna(-math.inf)
    picks = ranks.groupby([scores[name] for name in groups], dropna=False).idxmax()
    picked = scores.loc[picks.sort_values(), [*groups, *names]]
    result = frame[frame["seed"].isin(reporting)].merge(picked, on=[*groups, *names])
    line = f"{few(names)} chosen by {measure} at seeds {few(map(str, choosing), 8)}"
    line += f", reported at seeds {few(map(str, reporting), 8)}"
    for name in names:
        edges = scores[name].agg(["min", "max"]) if is_numeric_dtype(scores[name]) else []
        at_edge = picked.loc[picked[name].isin(edges), "method"].unique()
        line += f"; {name} at the edge of what was tried: {few(at_edge, 8)}" if len(at_edge) else ""
    result.attrs = {"chosen": line, "privacy": describe_unequal_privacy(result)}
    return result


def _listed(name: str, values: Iterable[_T], example: str) -> list[_T]:
    # A text is iterable too, letter by letter, and a row field by field.
    several = isinstance(values, Iterable) and not isinstance(values, (str, bytes, Method, Mapping))
    check(several, name, values, f"a list, {example}")
    listed = list(values)
    check(bool(listed), name, listed, f"at least one, {example}")
    return listed


def _plan_for(name: str | Method, plan: Plan | Mapping[str, Plan]) -> Plan:
    if isinstance(plan, Plan):
        return plan
    slug = name.slug if isinstance(name, Method) else str(name)
    if isinstance(plan, Mapping) and slug not in plan and slug not in BASELINES:
        slug = methods.get(slug).slug  # it may be spelled as published
    has_plan = isinstance(plan, Mapping) and slug in plan
    check(has_plan, "plan", plan, f"a Plan, or a mapping with one for {slug!r}")
    return plan[slug]


# ---- runs in a folder


def settings_of_cell(cell: Cell, execution: Execution, out: Path) -> JsonObject:
    """All that a run was given, as JSON values, by which it is found again.

    Of data and weights there is a digest under the secret key of the folder, so that nobody can
    confirm a guess at an example. Rules, losses, metrics and models are known by their names and
    the text of what they hold: after a change of their code another folder is needed.

    Args: cell, execution: the run. out: the folder.
    Guarantees: test_store.py::test_any_changed_argument_trains_anew.
    """
    task = cell.config.task
    settings = {
        **store.settings_of(cell.config),
        "name": cell.slug,
        "rounds": cell.config.plan.rounds,
        "made": {"task": task.name, "arguments": dict(task.origin.arguments)},
        "public_test": task.public_test,
        "metrics": {name: store.rule_identity(rule) for name, rule in task.metrics.items()},
        "execution": asdict(execution),
    }
    return store.settings_with_keyed_task(out, json.loads(json.dumps(settings, default=str)))


def folder_of(cell: Cell, execution: Execution, out: Path) -> Path:
    """The folder of one run in that of a comparison. Args: see `settings_of_cell`."""
    with writing(f"out={str(out)!r}"):
        text = to_json(settings_of_cell(cell, execution, out))
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        return out / f"{cell.slug}-{cell.config.seed}-{digest}"
