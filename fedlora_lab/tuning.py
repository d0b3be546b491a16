"""Learning rates found on validation data, and the settings they were found in.

Two searches were made: scripts/tune.py for each embedded task at one budget (data/tuned.json), and the studies under
results/ for each budget and unit (data/suggested.json, collected by scripts/suggest_rates.py). They looked at the
validation part of the embedded tasks, with seeds of their own; no ledger counts them. On private data every such look
is a release that has to be counted (arXiv:2110.03620).
"""

import json
import math
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fedlora_lab.checks import check, check_number, check_one_of

if TYPE_CHECKING:
    from fedlora_lab.method import Method
    from fedlora_lab.tasks import Task

FILE = Path(__file__).parent / "data" / "tuned.json"
SUGGESTED = FILE.with_name("suggested.json")
UNITS = ("example", "client")
Rates = dict[float | None, float]
"""Budget -> learning rate; the budget ``None`` is training without privacy."""


@cache
def table() -> dict[str, Any]:
    """Task name -> {"setting": plan, privacy and adapter of the search, "methods": slug -> {"lr", "grid"}}."""
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}


def setting(task: "Task | str") -> dict[str, Any]:
    """The plan, privacy and adapter in which a task's learning rates were searched.

    Raises: ``ValueError`` when the task was not tuned for.
    """
    name = task if isinstance(task, str) else task.name
    check_one_of("task", name, tuple(table()))
    return table()[name]["setting"]


def label(epsilon: float | None) -> str:
    """A budget as data/suggested.json names it."""
    return "none" if epsilon is None else f"{epsilon:g}"


@cache
def rates() -> dict[str, dict[str, dict[str, Rates]]]:
    """Task -> unit -> slug -> budget -> rate: those of the studies, and over them those of the tasks' own searches."""
    found: dict[str, dict[str, dict[str, Rates]]] = {}
    for task, units in json.loads(SUGGESTED.read_text(encoding="utf-8")).items():
        for unit, part in units.items():
            for slug, known in part["rates"].items():
                budgets = {None if name == "none" else float(name): lr for name, lr in known.items()}
                found.setdefault(task, {}).setdefault(unit, {})[slug] = budgets
    for task, part in table().items():
        rows = found.setdefault(task, {}).setdefault("example", {})
        for slug, row in part["methods"].items():
            budget = None if slug == "non-private" else float(part["setting"]["epsilon"])
            rows.setdefault(slug, {})[budget] = row["lr"]
        if "non-private" in rows:  # the same row as FedLoRA
            rows.setdefault("fedlora", {}).setdefault(None, rows["non-private"][None])
    return found


class Suggestion(NamedTuple):
    """A learning rate, and where it comes from.

    Args: lr: the rate. words: for which method, budget and unit it was tuned, or that it is the default.
        exact: it was tuned for what was asked for.
    """

    lr: float
    words: str
    exact: bool


def tuned(task: "Task | str", method: "Method | str", epsilon: float | None = 8.0, unit: str = "example") -> float:
    """The learning rate found for a method on a task at a budget, or at the nearest budget that was searched.

    Args:
        task, method: by name or as they are.
        epsilon: the budget, > 0; nearest is meant on a logarithmic axis. ``None``: training without privacy.
        unit: "example" or "client"; without privacy there is no difference.

    Raises: ``ValueError`` when the task, the unit or the method was not tuned for; see `suggestion` for a rate in any
        case.
    Guarantees: the best validation score of its grid (test_tuned_is_the_best_of_its_grid); those of the committed
        studies (test_suggested_rates_are_those_of_the_studies).
    """
    name, slug, epsilon, unit = _asked(task, method, epsilon, unit)
    check_one_of("task", name, tuple(rates()))
    check_one_of("unit", unit, tuple(rates()[name]))
    found = rates()[name][unit]
    check_one_of("method", slug, tuple(found))
    budget = _nearest(found[slug], epsilon)
    check(budget is not ..., "epsilon", epsilon, f"a budget of the kind that was tuned for: {list(found[slug])}")
    return found[slug][budget]


def suggestion(
    task: "Task | str", method: "Method | str", epsilon: float | None = 8.0, unit: str = "example"
) -> Suggestion:
    """A learning rate for any method, budget and unit, and words that say what it was tuned for.

    In this order: the method at the nearest budget; the published method that it is under another name; a method whose
    factors move at the same times, since noise reaches their products alike; the default of `Plan`.

    Guarantees: test_a_suggestion_says_where_it_comes_from.
    """
    from fedlora_lab.plan import Plan
    from fedlora_lab.plots.style import name as words_for

    name, slug, epsilon, unit = _asked(task, method, epsilon, unit)
    found, here = rates().get(name, {}).get(unit, {}), _at(epsilon, unit)
    for other in (slug, *_like(slug, method)):
        budget = _nearest(found.get(other, {}), epsilon)
        if budget is ...:
            continue
        words = f"tuned for {words_for(other)}{_at(budget, unit)}"
        if budget != epsilon:
            words += f", the budget nearest to {epsilon:g}"
        if other != slug:
            words += f"; nothing was tuned for {words_for(slug)}{here}"
        return Suggestion(found[other][budget], words, other == slug and budget == epsilon)
    return Suggestion(Plan().rate("B"), f"the default; nothing was tuned for {words_for(slug)} on {name}{here}", False)


def _asked(task: Any, method: Any, epsilon: float | None, unit: str) -> tuple[str, str, float | None, str]:
    """Names of task and method, budget and unit, after the checks that need no table."""
    if epsilon is not None:
        check_number("epsilon", epsilon, 0, open_low=True)
        epsilon = float(epsilon)
    check_one_of("unit", unit, UNITS)
    slug = method if isinstance(method, str) else method.slug
    epsilon = None if slug == "non-private" else epsilon
    return task if isinstance(task, str) else task.name, slug, epsilon, "example" if epsilon is None else unit


def _nearest(known: Rates, epsilon: float | None) -> Any:
    """The budget nearest on a logarithmic axis, of two the smaller; ``...`` where there is none of the kind."""
    if epsilon is None:
        return None if None in known else ...
    budgets = sorted(budget for budget in known if budget is not None)
    return min(budgets, key=lambda budget: abs(math.log(budget / epsilon))) if budgets else ...


def _at(epsilon: float | None, unit: str) -> str:
    if epsilon is None:
        return " without privacy"
    return f" at ε = {epsilon:g}" + (", unit client" if unit == "client" else "")


LIKE = {
    "never": ("ffa-lora",),
    "at once": ("fedlora",),
    "within a round": ("la-lora-unfiltered", "rolora"),
    "over rounds": ("rolora",),
}
"""How noise on one factor meets noise on the other (`traits.meeting`) -> methods in which it does."""


def _like(slug: str, method: Any) -> tuple[str, ...]:
    """Methods whose rate stands in for one of which none is known."""
    from fedlora_lab import methods, traits

    row = (methods.ALL | methods.VARIANTS).get(slug) if isinstance(method, str) else method
    if row is None:  # a baseline trains FedLoRA; of another name nothing is known
        return ("fedlora",) if slug in ("central", "non-private") else ()
    if same := traits.identify(row).same:
        return (same, *_alike(row))
    return _alike(row)


def _alike(row: "Method") -> tuple[str, ...]:
    from fedlora_lab import traits

    if row.own_ranks or traits.fields(row)["share"] is not None:
        return ("fedsa-lora",)  # what stays with a client learns by small steps
    return LIKE[traits.meeting(row)]
