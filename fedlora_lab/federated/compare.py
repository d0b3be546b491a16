"""Compares methods over seeds in one tidy frame, with baselines.

Finished runs are kept in a file of JSON lines and found again by their arguments.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fedlora_lab import methods
from fedlora_lab._utils.environment import __version__
from fedlora_lab._utils.files import JsonObject, append_line, lock_folder, read_lines
from fedlora_lab._utils.keywords import explain_arguments
from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.rounding import round_up
from fedlora_lab._utils.statistics import (
    COLUMNS,
    count_collapsed,
    describe_collapse,
    describe_standstill,
    headline_measure,
    run_ends,
)
from fedlora_lab._utils.streams import SafeStream
from fedlora_lab._utils.validation import check
from fedlora_lab.federated.checkpoint import settings_with_keyed_task
from fedlora_lab.federated.make_spec import make_run_spec
from fedlora_lab.federated.records import Round, Tick, to_frame
from fedlora_lab.federated.run_options import RunOptions
from fedlora_lab.federated.spec import RunSpec, rule_identity
from fedlora_lab.methods.method import Method, check_names
from fedlora_lab.methods.plan import Lora, Plan, lora_of
from fedlora_lab.privacy.accounting import ACCOUNTANTS
from fedlora_lab.privacy.ledger import Ledger
from fedlora_lab.privacy.plan import Privacy
from fedlora_lab.tasks.task import Task

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from peft import LoraConfig
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
    """The inputs of one run; ``slug`` is its name in the frame (a baseline's or the method's)."""

    slug: str
    task: Task
    method: Method
    privacy: Privacy | None
    plan: Plan
    lora: Lora
    seed: int | None

    def __post_init__(self) -> None:
        # Pandas keeps whole numbers in 64 bits: a larger seed would be another one in the frame.
        Streams(self.seed)  # refuses what is no seed
        small = self.seed is None or self.seed < 2**63
        check(small, "seed", self.seed, "a whole number below 2**63, as frames have them")

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
            task, privacy, plan, lora, seed: as of `run`; "non-private" runs without ``privacy``.
        Raises: ``ValueError`` for pooled data in the client unit.
        Guarantees: test_attack_neighbours.py::test_pooled_data_have_no_clients.
        """
        if not isinstance(method, str) or method not in BASELINES:
            method = methods.get(method)
            return cls(method.slug, task, method, privacy, plan, lora, seed)
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
        return cls(method, task, BASELINES[method], privacy, plan, lora, seed)

    def ticks(self, **options: Any) -> Iterator[Round | Tick]:
        """Runs the cell; options as of `fl.ticks`. Without privacy ``stop_at`` has no effect."""
        from fedlora_lab.federated.run import ticks

        # The baseline without privacy spends no epsilon at which it could stop.
        if self.privacy is None:
            options.pop("stop_at", None)
        return ticks(
            self.task,
            self.method,
            self.privacy,
            self.plan,
            lora=self.lora,
            seed=self.seed,
            **options,
        )

    def spec(self) -> RunSpec:
        """The checked arguments. Raises ``ValueError`` as `run` does."""
        return make_run_spec(self.task, self.method, self.privacy, self.plan, self.lora, self.seed)

    def frame(self, records: Iterable[Round]) -> "pd.DataFrame":
        """Tidy frame of the cell's records, under its own name."""
        return to_frame(records).assign(method=self.slug)


def _calibrated_for_pooled(privacy: Privacy, task: Task, plan: Plan) -> Privacy:
    """The privacy with the noise that pooled data need for the same epsilon."""
    # One client less turns the one update into another of norm C: the sum moves by 2 C.
    expected = "'example' for 'central': pooled data have no clients"
    check(privacy.by_step, "unit", privacy.unit, expected)
    target = privacy.target
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
    bar: "tqdm[Any]",
    plan: Plan,
    name: str,
    events: Iterable[Round | Tick],
    describe: Callable[[Round], str] | None = None,
) -> Iterator[Round | Tick]:
    """Passes the events of a run on, and shows on a tqdm bar of `BAR` where the run is.

    Args:
        bar: counts rounds; other runs may share it.
        plan, name, events: of the run.
        describe: what to say of the last round; ``None``: the epsilon so far.
    """
    rounds_before = bar.n
    bar.set_description_str(f"{name}, preparing")
    text = ""
    for event in events:
        if isinstance(event, Tick):
            place = f"round {event.round} of {plan.rounds}, step {event.step}"
            # The last part of a round is aggregation and scores.
            done = event.round - 1 + event.step / (plan.local_steps + 1)
        else:
            place = f"round {event.index} of {plan.rounds}"
            done = event.index
            if describe is not None:
                text = describe(event)
            elif event.ledger is not None:
                text = f"ε {round_up(event.epsilon, '.3g')}"
        bar.set_description_str(name, refresh=False)
        bar.set_postfix_str(f"{place}, {text}" if text else place, refresh=False)
        # By the difference, so that a run that is taken up again begins where it stands.
        bar.update(rounds_before + done - bar.n)
        yield event
    # A run may stop early: the next one begins where its rounds would have ended.
    bar.update(rounds_before + plan.rounds - bar.n)


@explain_arguments()
def compare(
    task: Task,
    which: Iterable[str | Method],
    privacy: Privacy | None,
    plan: Plan | Mapping[str, Plan],
    seeds: Iterable[int] = (0, 1, 2),
    *,
    lora: "Lora | LoraConfig | None" = None,
    progress: bool = True,
    store: "str | Path | None" = None,
    stop_at: float | None = None,
    evaluate_every: int = 1,
    chunk_clients: int | None = None,
    chunk_examples: int | None = None,
    device: "str | torch.device | None" = None,
    products: str = "float32",
) -> "pd.DataFrame":
    """Trains several methods at several seeds; returns one tidy frame.

    Its ``attrs["collapsed"]`` counts the runs of each method that collapsed, since a mean hides
    them, see `fl.measures.find_collapsed`; its ``attrs["standstill"]`` says so where no method
    is clearly better than the untrained model.

    Args:
        task, privacy, lora: of every run (``lora`` may be a `peft.LoraConfig`).
        which: rows, slugs, or the baselines "non-private", "central", "local"; each once. A row
            that was changed needs a name of its own: ``row.replace(name="...", ...)``.
        plan: one plan for all, or one for each name (a learning rate tuned for each method, say).
        seeds: of every method, so that start and batches are alike; such runs are for study, as
            their ledgers say. `run` and `finetune` draw afresh.
        progress: a bar with epsilon and the time left, a line for each method whose runs collapsed,
            and one where no method learned anything.
        store: a file of JSON lines, in which finished runs with a seed are kept, and found again
            by their arguments, see `Store`. Seconds are those of the run that was trained.
        stop_at, evaluate_every, chunk_clients, chunk_examples, device, products: of every run, as
            of `run`.

    Raises: ``ValueError`` before the first run when a name, plan or privacy does not fit.

    >>> import fedlora_lab as fl
    >>> task = fl.tasks.regression(clients=2, examples=4, d_in=3, d_out=3, rank=1, test=4)
    >>> plan = fl.Plan(rounds=1, local_steps=1)
    >>> frame = fl.compare(task, ["fedlora", "ffa-lora"], None, plan, seeds=[0], progress=False)
    >>> sorted(set(frame["method"]))
    ['fedlora', 'ffa-lora']
    """
    import pandas as pd
    from tqdm.auto import tqdm

    options = RunOptions(
        stop_at=stop_at,
        evaluate_every=evaluate_every,
        chunk_clients=chunk_clients,
        chunk_examples=chunk_examples,
        device=device,
        products=products,
    ).changed()
    cells = _checked_cells(task, which, privacy, plan, seeds, lora_of(lora), options)
    finished = None if store is None else Store(store)
    frames = []
    total = sum(cell.plan.rounds for cell in cells)
    # A comparison of hours must not end where nobody reads its bar any more.
    bar_stream = SafeStream(sys.stderr)
    with tqdm(total=total, disable=not progress, file=bar_stream, **BAR) as bar:
        for cell in cells:
            frames.append(_run_or_find(cell, options, finished, bar))
        frame = pd.concat(frames, ignore_index=True)
        # A mean over seeds hides a run that collapsed.
        counts = count_collapsed(run_ends(frame))
        frame.attrs["collapsed"] = {slug: count["collapsed"] for slug, count in counts.items()}
        frame.attrs["standstill"] = describe_standstill(frame)
        said = {
            slug: describe_collapse(headline_measure(frame), count)
            for slug, count in counts.items()
        }
        lines = [f"{slug}: {text}" for slug, text in said.items() if text]
        for line in [*lines, *filter(None, [frame.attrs["standstill"]])]:
            if not bar.disable:
                bar.clear()
                print(line, file=SafeStream(sys.stdout))
                bar.refresh()
    return frame


def _checked_cells(
    task: Task,
    which: Iterable[str | Method],
    privacy: Privacy | None,
    plan: Plan | Mapping[str, Plan],
    seeds: Iterable[int],
    lora: Lora,
    options: Mapping[str, Any],
) -> list[Cell]:
    """The runs of a comparison, every one checked before the first begins."""
    names = _listed("methods", which, 'such as ["fedlora", "ffa-lora"]')
    draws = _listed("seeds", seeds, "such as range(3)")
    expected = "each once; for several releases compare several times"
    check(len(set(draws)) == len(draws), "seeds", draws, expected)
    check(isinstance(task, Task), "task", task, "a Task")
    check(isinstance(privacy, Privacy | None), "privacy", privacy, "a Privacy")
    cells: list[Cell] = []
    # Method by method, so that the table of the first is whole before the next begins.
    for name in names:
        its_plan = _plan_for(name, plan)
        cells += [Cell.from_name(name, task, privacy, its_plan, lora, seed) for seed in draws]
    check_names((cell.slug, cell.method) for cell in cells)
    # Twice, its seeds would count as twice as many, and its interval be too narrow.
    slugs = [cell.slug for cell in cells[:: len(draws)]]
    check(len(set(slugs)) == len(slugs), "methods", slugs, "each once")
    # Before hours of training: a mistake in the last cell is told now.
    for cell in cells:
        cell.spec()
    # A run that is opened tries the rules of a row of one's own, and trains nothing.
    for cell in cells[:: len(draws)]:
        if cell.method not in methods.ALL.values():
            cell.ticks(**options)
    return cells


def _run_or_find(
    cell: Cell, options: Mapping[str, Any], store: "Store | None", bar: "tqdm[Any]"
) -> "pd.DataFrame":
    """The frame of a cell, from the store where it is kept, else of a run of now."""
    # Without a seed every run is a new release: it must not be taken for an earlier one.
    keeps = store is not None and cell.seed is not None
    settings = store.settings(cell, options) if keeps else {}
    frame = store.find(settings) if keeps else None
    if frame is not None:
        bar.update(cell.plan.rounds)
        return frame
    name = f"{cell.slug} seed {cell.seed}"
    events = show_progress(bar, cell.plan, name, cell.ticks(**options))
    records = [event for event in events if isinstance(event, Round)]
    frame = cell.frame(records)
    if keeps:
        store.add(settings, frame, records[-1].ledger)
    return frame


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


# ---- finished runs


class Store:
    """Finished runs in a file of JSON lines: key, settings, rows of the frame, ledger.

    The key is a digest of all arguments of a run: task, method, privacy, plan, adapter, seed and
    options. Of data and weights the settings hold a digest under the secret key of the file's
    folder, so that nobody can confirm a guess at an example. Rules, losses and metrics are known by
    their settings and source, models and optimisers by their names alone: after a change of their
    code the file must be deleted.

    Args:
        path: of the file; it and its folder are made when the first run is kept.

    Guarantees: test_store.py::test_any_changed_argument_trains_anew,
        ::test_a_kept_run_is_read_back_bit_by_bit.
    """

    def __init__(self, path: "str | Path") -> None:
        usable = isinstance(path, str | Path) and not Path(path).is_dir()
        check(usable, "store", path, "the path of a file of JSON lines")
        self.path = Path(path).expanduser()

    def settings(self, cell: Cell, options: Mapping[str, Any]) -> JsonObject:
        """All that a run was given, as JSON values."""
        arguments = {
            **cell.spec().settings(),
            "name": cell.slug,
            "rounds": cell.plan.rounds,
            "made": cell.task.facts(cell.privacy is not None),
            "public_test": cell.task.public_test,
            "metrics": {name: rule_identity(rule) for name, rule in cell.task.metrics.items()},
            "accountant": cell.privacy and rule_identity(ACCOUNTANTS[cell.privacy.accountant]),
            "options": {name: str(value) for name, value in sorted(options.items())},
            "version": __version__,
        }
        # As they come back from the file, so that both have one digest.
        arguments = json.loads(json.dumps(arguments, default=str))
        return settings_with_keyed_task(self.path.parent, arguments)

    def find(self, settings: Mapping[str, Any]) -> "pd.DataFrame | None":
        """The frame of the run with these settings; ``None`` where it is not kept."""
        import pandas as pd

        key = _digest(settings)
        # A line that a kill cut short is skipped: its run is trained again.
        for entry in read_lines(self.path):
            if entry.get("key") == key:
                rows = [[*row[:-1], float(row[-1])] for row in entry["rows"]]
                return pd.DataFrame(rows, columns=COLUMNS)
        return None

    def add(
        self, settings: Mapping[str, Any], frame: "pd.DataFrame", ledger: Ledger | None
    ) -> None:
        """Keeps a finished run.

        Args: settings: as `settings` gives them. frame, ledger: of the run.
        """
        # As text: JSON has neither NaN nor infinities, and Python's shortest text is exact.
        rows = [[*row[:-1], repr(float(row[-1]))] for row in frame.to_numpy(object).tolist()]
        text = None if ledger is None else json.loads(ledger.to_json())
        entry = {"key": _digest(settings), "settings": settings, "rows": rows, "ledger": text}
        # Comparisons that run side by side may share a store.
        with lock_folder(self.path.parent, f".{self.path.name}.lock", patience=60.0):
            append_line(self.path, entry)


def _digest(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
