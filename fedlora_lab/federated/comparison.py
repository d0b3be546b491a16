"""Several methods and seeds under one plan, into one tidy frame; and baselines beside them.

Frames of finished runs are kept in a folder, under a digest of all that decides their numbers.
"""

import hashlib
import importlib.metadata
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedlora_lab import methods
from fedlora_lab._utils.files import lock_folder, write_atomically
from fedlora_lab._utils.validation import check
from fedlora_lab.federated.compute import Compute
from fedlora_lab.federated.records import Round, to_frame
from fedlora_lab.federated.run_spec import make_run_spec
from fedlora_lab.measures.statistics import (
    count_collapsed,
    describe_collapse,
    headline,
    run_ends,
)
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.plan import Lora, Plan
from fedlora_lab.privacy.config import Privacy
from fedlora_lab.tasks.task import Task

if TYPE_CHECKING:
    import pandas as pd

BASELINES: dict[str, Method] = {
    "non-private": methods.FedLoRA,
    "central": methods.FedLoRA,
    "local": methods.Local,
}
"""Names that `compare` takes beside the table's: without privacy; all data in one place; every
client alone."""
OPTIONS = ("evaluate_every", "chunk_clients", "stop_at", *(field.name for field in fields(Compute)))
"""What every run of a comparison may be given."""


@dataclass(frozen=True)
class Cell:
    """What one run needs; ``slug`` is its name in the frame (a baseline's, or the method's own)."""

    slug: str
    task: Task
    method: Method
    privacy: Privacy | None
    plan: Plan
    lora: Lora
    seed: int | None

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
        """The cell of a row, a slug or a baseline; on pooled data calibrated anew, same epsilon.

        Args:
            method: a row, its slug, or a name in `BASELINES`.
            task, privacy, plan, lora, seed: as of `run`; "non-private" runs without ``privacy``.
        Raises: ``ValueError`` for pooled data in the client unit: one client less turns the one
            update into another of norm C, so that the sum moves by 2 C.
        Guarantees: test_attack_neighbours.py::test_pooled_data_have_no_clients.
        """
        if not isinstance(method, str) or method not in BASELINES:
            row = methods.get(method)
            return cls(row.slug, task, row, privacy, plan, lora, seed)
        privacy = None if method == "non-private" else privacy
        if method == "central":  # as many examples a step as all clients together take
            batch = None if plan.batch is None else plan.batch * len(task.clients)
            task, plan = task.pooled(), plan.replace(batch=batch)
            if privacy is not None:
                words = f"'example' for {method!r}: pooled data have no clients"
                check(privacy.unit == "example", "unit", privacy.unit, words)
                goal, words = privacy.target, f"one from calibrate(epsilon=...) for {method!r}"
                check(goal is not None, "privacy", "without a target", words)
                free = privacy.replace(sample_rate=None)
                privacy = free.calibrate(epsilon=goal or 0.0, task=task, plan=plan)
        return cls(method, task, BASELINES[method], privacy, plan, lora, seed)

    def run(self, **options: Any) -> Iterator[Round]:
        """The cell's rounds; options as of `fl.run`. Without privacy ``stop_at`` has no effect."""
        from fedlora_lab.federated.simulation import run

        if self.privacy is None:
            options.pop("stop_at", None)
        parts = self.task, self.method, self.privacy, self.plan
        return run(*parts, lora=self.lora, seed=self.seed, **options)

    def frame(self, records: Iterable[Round]) -> "pd.DataFrame":
        """Tidy frame of the cell's records, under its own name."""
        return to_frame(records).assign(method=self.slug)


def compare(
    task: Task,
    which: Iterable[str | Method],
    privacy: Privacy | None,
    plan: Plan | Mapping[str, Plan],
    seeds: Iterable[int] = (0, 1, 2),
    *,
    lora: Lora | None = None,
    progress: bool = True,
    cache: "str | Path | bool | None" = None,
    **options: Any,
) -> "pd.DataFrame":
    """Trains several methods at several seeds; returns one tidy frame.

    Its ``attrs["collapsed"]`` counts for each method the runs that collapsed, since a mean hides
    them: below their start at the end, or far behind the other seeds (`fl.measures.collapsed`).

    Args:
        task, privacy, lora: of every run.
        which: rows, slugs, or the baselines "non-private", "central", "local".
        plan: one plan for all, or one for each name (a learning rate tuned for each method, say).
        seeds: each method runs with each of them.
        progress: a bar that counts rounds, and a line for each method whose runs collapsed.
        cache: a folder of your own, in which runs with a seed are stored and found again by their
            content (see `run_key`); ``None`` takes that of the variable FEDLORA_CACHE, if it is
            set, ``False`` none. Seconds are those of the run that was trained.
        options: of every run: evaluate_every, chunk_clients, stop_at, and the switches of speed
            (see `run`).

    Raises: ``ValueError`` before the first run when a name, plan or privacy plan does not fit.

    >>> import fedlora_lab as fl
    >>> task = fl.tasks.regression(clients=2, examples=4, d_in=3, d_out=3, rank=1, test=4)
    >>> plan = fl.Plan(rounds=1, local_steps=1)
    >>> frame = fl.compare(task, ["fedlora", "ffa-lora"], None, plan, seeds=[0], progress=False)
    >>> sorted(set(frame["method"]))
    ['fedlora', 'ffa-lora']
    """
    import pandas as pd
    from tqdm.auto import tqdm

    names = _listed("methods", which, 'such as ["fedlora", "ffa-lora"]')
    draws = _listed("seeds", seeds, "such as range(3)")
    words = "each once; for several releases compare several times"
    check(len(set(draws)) == len(draws), "seeds", draws, words)
    check(isinstance(task, Task), "task", task, "a Task")
    check(isinstance(privacy, Privacy | None), "privacy", privacy, "a Privacy")
    check(set(options) <= set(OPTIONS), "options", sorted(options), "some of " + ", ".join(OPTIONS))
    parts = [(name, task, privacy, _plan_for(name, plan), lora or Lora()) for name in names]
    cells = [Cell.from_name(*part, seed) for part in parts for seed in draws]
    for cell in cells:
        make_run_spec(cell.task, cell.method, cell.privacy, cell.plan, cell.lora, cell.seed)
    frames, total = [], sum(cell.plan.rounds for cell in cells)
    with tqdm(total=total, unit="round", disable=not progress) as bar:

        def train(cell: Cell) -> "pd.DataFrame":
            records = []
            for record in cell.run(**options):
                records.append(record)
                bar.update(record.index > 0)
            return cell.frame(records)

        for cell in cells:
            bar.set_description(f"{cell.slug} seed {cell.seed}")
            before = bar.n
            frames.append(cached_frame(cache, cell, options, partial(train, cell)))
            bar.update(cell.plan.rounds - (bar.n - before))
        frame = pd.concat(frames, ignore_index=True)
        counts, measure = count_collapsed(run_ends(frame)), headline(frame)
        frame.attrs["collapsed"] = {slug: own["collapsed"] for slug, own in counts.items()}
        for slug, own in counts.items() if progress else ():
            if words := describe_collapse(measure, own):
                bar.write(f"{slug}: {words}")
    return frame


def _listed(name: str, values: Any, example: str) -> list:
    several = isinstance(values, Iterable) and not isinstance(values, (str, bytes, Method, Mapping))
    check(several, name, values, f"a list, {example}")
    values = list(values)
    check(bool(values), name, values, f"at least one, {example}")
    return values


def _plan_for(name: str | Method, plan: Plan | Mapping[str, Plan]) -> Plan:
    if isinstance(plan, Plan):
        return plan
    slug = name.slug if isinstance(name, Method) else str(name)
    check(isinstance(plan, Mapping), "plan", plan, "a Plan, or a mapping from names to plans")
    check(slug in plan, "plan", list(plan), f"a plan for {slug!r}")
    return plan[slug]


# ---- frames of finished runs, kept as CSV and read back exactly

VARIABLE = "FEDLORA_CACHE"
SUBPACKAGES = ("_utils", "methods", "privacy", "tasks", "lora", "measures", "federated")
LIBRARIES = ("torch", "peft", "numpy", "scipy", "pandas", "opacus", "dp-accounting")
# What these do is fixed by the sources of the subpackages and by the versions of the libraries.
KNOWN_PACKAGES = ("fedlora_lab", "torch", "transformers", "numpy", "math", "builtins", "operator")


class UncacheableRun(Exception):
    """Something decides a run's numbers whose content cannot be read: user code, say."""


def cached_frame(
    folder: "str | Path | bool | None",
    cell: Any,
    options: Mapping[str, Any],
    train: Callable[[], "pd.DataFrame"],
) -> "pd.DataFrame":
    """Returns the frame of an equal run from the folder, or trains and stores it there.

    Args:
        folder: ``None`` takes that of the variable FEDLORA_CACHE, if it is set; ``False`` none.
        cell, options: what is run.
        train: runs it.

    Guarantees: runs without a seed are never stored (test_a_release_is_never_stored); a change of
        any ingredient trains anew (test_any_changed_ingredient_trains_anew).
    """
    import pandas as pd

    check(folder is not True, "cache", folder, "a folder, None or False")
    where = os.environ.get(VARIABLE) if folder is None else folder
    key = run_key(cell, options) if where else None
    if not where or key is None:
        return train()
    path = Path(str(where)).expanduser() / f"{key}.csv"
    # Who asks for a run that another process is training waits for its frame.
    with lock_folder(path.parent, f".{key}.lock", patience=math.inf):
        if path.exists():
            return pd.read_csv(path, keep_default_na=False, converters={"value": float})
        frame = train()
        write_atomically(path, frame.to_csv(index=False, na_rep="nan"))
    return frame


def run_key(cell: Any, options: Mapping[str, Any]) -> str | None:
    """A digest of all that decides a run's frame; ``None`` for a run that must not be found again.

    Without a seed every run is a new release. Of functions and model classes from outside the
    package and its libraries the content is not known, so nothing that needs them is stored.
    """
    if cell.seed is None:
        return None
    task, model = cell.task, cell.task.model

    def parts_of(value: Any, *without: str) -> dict[str, Any]:
        names = [f.name for f in fields(value) if f.name not in without]
        return {name: _parts_of_key(getattr(value, name)) for name in names}

    try:
        parts = parts_of(cell, "task")
        parts["task"] = [task.fingerprint, parts_of(task, "model", "clients", "test")]
        parts["model"] = [str(model), str(getattr(model, "config", None))]
        parts["classes"] = sorted({_full_name(type(module)) for module in model.modules()})
        parts["options"] = _parts_of_key(dict(options))
    except (UncacheableRun, RecursionError):
        return None
    parts["code"], parts["threads"] = code_version(), torch.get_num_threads()
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@cache
def code_version() -> str:
    """A digest of the sources that compute a run, and of the versions of what they call."""
    digest = hashlib.sha256()
    home = Path(__file__).parents[1]
    for path in sorted(path for room in SUBPACKAGES for path in (home / room).rglob("*.py")):
        digest.update(f"{path.relative_to(home)}\n".encode() + path.read_bytes())
    for name in LIBRARIES:
        digest.update(f"{name} {importlib.metadata.version(name)}\n".encode())
    return digest.hexdigest()


def _full_name(kind: Any) -> str:
    """The full name of a function or class whose code is known."""
    module = getattr(kind, "__module__", None) or "builtins"
    if module.partition(".")[0] not in KNOWN_PACKAGES:
        raise UncacheableRun(module)
    return f"{module}.{getattr(kind, '__qualname__', repr(kind))}"


def _parts_of_key(value: Any) -> Any:
    """A value as JSON that is equal for equal values only. Raises `UncacheableRun`."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, (torch.dtype, torch.device, Path)):
        return [type(value).__name__, str(value)]
    if isinstance(value, Tensor):
        content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return [str(value.dtype), list(value.shape), hashlib.sha256(content).hexdigest()]
    if isinstance(value, Mapping):
        return ["mapping", [[_parts_of_key(k), _parts_of_key(v)] for k, v in value.items()]]
    if isinstance(value, (tuple, list)):
        return [type(value).__name__, [_parts_of_key(x) for x in value]]
    if isinstance(value, partial):
        return ["partial", *map(_parts_of_key, (value.func, value.args, value.keywords))]
    if callable(value) and hasattr(value, "__qualname__"):
        inner = [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
        bound = getattr(value, "__self__", None)
        inner += [] if bound is None or not is_dataclass(bound) else [bound]
        return [_full_name(value), [_parts_of_key(x) for x in inner]]
    state = {f.name: getattr(value, f.name) for f in fields(value)} if is_dataclass(value) else None
    if state is None and not hasattr(value, "__dict__"):
        raise UncacheableRun(type(value).__name__)
    return [_full_name(type(value)), _parts_of_key(vars(value) if state is None else state)]
