"""Several methods and seeds under one plan, into one tidy frame; and the baselines that keep a comparison honest."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from fedlora_lab import methods
from fedlora_lab.agreement import agreed
from fedlora_lab.checks import check
from fedlora_lab.compute import Compute
from fedlora_lab.method import Method
from fedlora_lab.plan import Lora, Plan
from fedlora_lab.privacy import Privacy
from fedlora_lab.record import Round, to_frame
from fedlora_lab.tasks.task import Task

if TYPE_CHECKING:
    import pandas as pd


def _everything(task: Task, plan: Plan) -> tuple[Task, Plan]:
    """All data in one place, as many examples a step as all clients together take."""
    return task.pooled(), plan.replace(batch=None if plan.batch is None else plan.batch * len(task.clients))


def _same(task: Task, plan: Plan) -> tuple[Task, Plan]:
    return task, plan


@dataclass(frozen=True)
class Baseline:
    """A run to hold the methods against: a row, on changed data or without privacy."""

    method: Method
    setting: Callable[[Task, Plan], tuple[Task, Plan]] = _same
    private: bool = True


BASELINES: dict[str, Baseline] = {
    "non-private": Baseline(methods.FedLoRA, private=False),
    "central": Baseline(methods.FedLoRA, setting=_everything),
    "local": Baseline(methods.Local),
}
"""Names that `compare` takes beside the table's: no privacy; all data in one place; every client alone."""


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
    def named(
        cls, method: str | Method, task: Task, privacy: Privacy | None, plan: Plan, lora: Lora, seed: int | None
    ) -> "Cell":
        """The cell of a row, a slug or a baseline's name. A baseline on other data is calibrated anew, same epsilon.

        Raises: ``ValueError`` for pooled data in the client unit: one client less turns the one update into another of
            norm C, so that the sum moves by 2 C.
        Guarantees: test_attack_neighbours.py::test_pooled_data_have_no_clients.
        """
        if not isinstance(method, str) or method not in BASELINES:
            row = methods.get(method)
            return cls(row.slug, task, row, privacy, plan, lora, seed)
        base = BASELINES[method]
        there, work = base.setting(task, plan)
        own = privacy if base.private else None
        if own is not None and there is not task:
            check(own.unit == "example", "unit", own.unit, f"'example' for {method!r}: pooled data have no clients")
            expected = f"one from calibrate(epsilon=...) for {method!r}"
            check(own.target is not None, "privacy", "without a target", expected)
            own = own.replace(sample_rate=None).calibrate(epsilon=own.target or 0.0, task=there, plan=work)
        return cls(method, there, base.method, own, work, lora, seed)

    def run(self, **options: Any) -> Iterator[Round]:
        """The cell's rounds; options as of `loop.run`. Without privacy nothing is spent: ``stop_at`` has no effect."""
        from fedlora_lab.loop import run

        if self.privacy is None:
            options.pop("stop_at", None)
        return run(self.task, self.method, self.privacy, self.plan, lora=self.lora, seed=self.seed, **options)

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
    **options: Any,
) -> "pd.DataFrame":
    """Train several methods at several seeds; returns one tidy frame.

    Args:
        which: rows, slugs, or the baselines "non-private", "central", "local".
        plan: one plan for all, or one for each name (a learning rate tuned for each method, say).
        seeds: each method runs with each of them.
        progress: a bar that counts rounds.
        options: of every run: evaluate_every, chunk_clients, stop_at, and the switches of speed (see `run`).

    Raises: ``ValueError`` before the first run when a name, plan or privacy plan does not fit.
    """
    import pandas as pd
    from tqdm.auto import tqdm

    names = _listed("methods", which, 'such as ["fedlora", "ffa-lora"]')
    draws = _listed("seeds", seeds, "such as range(3)")
    check(len(set(draws)) == len(draws), "seeds", draws, "each once; for several releases compare several times")
    for name, value, kind in (("task", task, Task), ("privacy", privacy, Privacy | None), ("lora", lora, Lora | None)):
        check(isinstance(value, kind), name, value, f"a {name.capitalize()}")
    check(set(options) <= set(OPTIONS), "options", sorted(options), "some of " + ", ".join(OPTIONS))
    cells = [
        Cell.named(name, task, privacy, _plan_for(name, plan), lora or Lora(), seed) for name in names for seed in draws
    ]
    for cell in cells:
        agreed(cell.task, cell.method, cell.privacy, cell.plan, cell.lora, cell.seed)
    frames = []
    with tqdm(total=sum(cell.plan.rounds for cell in cells), unit="round", disable=not progress) as bar:
        for cell in cells:
            bar.set_description(f"{cell.slug} seed {cell.seed}")
            records = []
            for record in cell.run(**options):
                records.append(record)
                bar.update(record.index > 0)
            frames.append(cell.frame(records))
    return pd.concat(frames, ignore_index=True)


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
