"""Learning rates found on validation data, and the settings they were found in.

Two searches were made: scripts/tune.py for each embedded task at one budget (tuned.json), and the
studies under results/ for each budget and unit (suggested.json, collected by
scripts/suggest_rates.py). They looked at the validation part of the embedded tasks, with seeds of
their own; no ledger counts them. On private data every such look is a release that has to be
counted (arXiv:2110.03620).
"""

import json
import math
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from fedlora_lab import methods
from fedlora_lab._utils.validation import check, check_number, check_one_of
from fedlora_lab.federated import dry_run
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.plan import Plan
from fedlora_lab.tasks.task import Task

FILE = Path(__file__).parent / "tuned.json"
SUGGESTED = FILE.with_name("suggested.json")
Rates = dict[float | None, float]  # budget -> rate; the budget None is training without privacy
LIKE = {  # how noise on two factors meets (`dry_run.noise_product`) -> methods in which it does so
    "never": ("ffa-lora",),
    "at once": ("fedlora",),
    "within a round": ("la-lora-unfiltered", "rolora"),
    "over rounds": ("rolora",),
}


@cache
def table() -> dict[str, Any]:
    """Task name -> {"setting": plan, privacy and adapter of the search, "methods": slug -> {"lr",
    "grid"}}."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def label(epsilon: float | None) -> str:
    """A budget as suggested.json names it."""
    return "none" if epsilon is None else f"{epsilon:g}"


@cache
def rates() -> dict[str, dict[str, dict[str, Rates]]]:
    """Task -> unit -> slug -> budget -> rate: those of the studies, and over them those of the
    tasks' own searches."""
    found: dict[str, dict[str, dict[str, Rates]]] = {}
    for task, units in json.loads(SUGGESTED.read_text(encoding="utf-8")).items():
        for unit, part in units.items():
            found.setdefault(task, {})[unit] = {
                slug: {None if e == "none" else float(e): lr for e, lr in known.items()}
                for slug, known in part["rates"].items()
            }
    for task, part in table().items():
        rows = found.setdefault(task, {}).setdefault("example", {})
        budget = float(part["setting"]["epsilon"])
        for slug, row in part["methods"].items():
            plain = slug == "non-private"  # the row of FedLoRA
            for name in (slug, "fedlora") if plain else (slug,):
                rows.setdefault(name, {})[None if plain else budget] = row["lr"]
    return found


class Suggestion(NamedTuple):
    """A learning rate and where it comes from."""

    lr: float
    words: str  # for which method, budget and unit it was tuned, or that it is the default
    exact: bool  # that is what was asked for


def tuned_rate(
    task: Task | str, method: Method | str, epsilon: float | None = 8.0, unit: str = "example"
) -> float:
    """The learning rate found for a method on a task at a budget, or at the nearest budget that was
    searched.

    Args:
        task, method: by name or as they are.
        epsilon: the budget, > 0; nearest is meant on a logarithmic axis. ``None``: training without
            privacy.
        unit: "example" or "client"; without privacy there is no difference.

    Raises: ``ValueError`` when the task, the unit or the method was not tuned for; see `suggestion`
        for a rate in any case.
    Guarantees: the best validation score of its grid (test_tuned_is_the_best_of_its_grid); those of
        the committed studies (test_suggested_rates_are_those_of_the_studies).

    >>> tuned_rate("digits", "rolora", epsilon=1.0)
    0.05
    """
    name, slug, epsilon, unit = _names(task, method, epsilon, unit)
    known: Any = rates()
    for argument, key in (("task", name), ("unit", unit), ("method", slug)):
        check_one_of(argument, key, tuple(known))
        known = known[key]
    budget, words = _nearest(known, epsilon), f"a budget of the kind tuned for: {list(known)}"
    check(budget is not ..., "epsilon", epsilon, words)
    return known[budget]


def suggestion(
    task: Task | str, method: Method | str, epsilon: float | None = 8.0, unit: str = "example"
) -> Suggestion:
    """Suggests a learning rate for any method, budget and unit, and says what it was tuned for.

    In this order: the method at the nearest budget; the published method that it is under another
    name; a method whose factors move at the same times, since noise reaches their products alike;
    the default of `Plan`.

    Args: as for `tuned_rate`.
    Guarantees: test_a_suggestion_says_where_it_comes_from.
    """
    from fedlora_lab.plots.style import name as words_for  # loads Matplotlib

    name, slug, epsilon, unit = _names(task, method, epsilon, unit)
    found = rates().get(name, {}).get(unit, {})
    nothing = f"nothing was tuned for {words_for(slug)}"
    for other in (slug, *_alike(slug, method)):
        budget = _nearest(found.get(other, {}), epsilon)
        if budget is ...:
            continue
        words = f"tuned for {words_for(other)}{_at(budget, unit)}"
        words += "" if budget == epsilon else f", the budget nearest to {epsilon:g}"
        words += "" if other == slug else f"; {nothing}{_at(epsilon, unit)}"
        return Suggestion(found[other][budget], words, other == slug and budget == epsilon)
    words = f"the default; {nothing} on {name}{_at(epsilon, unit)}"
    return Suggestion(Plan().rate("B"), words, False)


def _names(
    task: Any, method: Any, epsilon: float | None, unit: str
) -> tuple[str, str, float | None, str]:
    """Names of task and method, budget and unit, after the checks that need no table."""
    if epsilon is not None:
        check_number("epsilon", epsilon, 0, open_low=True)
    check_one_of("unit", unit, ("example", "client"))
    name = task if isinstance(task, str) else task.name
    slug = method if isinstance(method, str) else method.slug
    if epsilon is None or slug == "non-private":
        return name, slug, None, "example"
    return name, slug, float(epsilon), unit


def _nearest(known: Rates, epsilon: float | None) -> Any:
    """The budget nearest on a logarithmic axis, of two the smaller; ``...`` where there is none of
    the kind."""
    if epsilon is None:
        return None if None in known else ...
    budgets = sorted(budget for budget in known if budget is not None)
    return min(budgets, key=lambda budget: abs(math.log(budget / epsilon)), default=...)


def _at(epsilon: float | None, unit: str) -> str:
    if epsilon is None:
        return " without privacy"
    return f" at ε = {epsilon:g}" + (", unit client" if unit == "client" else "")


def _alike(slug: str, method: Any) -> tuple[str, ...]:
    """Methods whose rate stands in for one of which none is known."""
    row = (methods.ALL | methods.VARIANTS).get(slug) if isinstance(method, str) else method
    if row is None:  # a baseline trains FedLoRA; of another name nothing is known
        return ("fedlora",) if slug in ("central", "non-private") else ()
    published, like = dry_run.identify(row).identical, ("fedsa-lora",)
    if not row.own_ranks and dry_run.fields(row)["share"] is None:
        like = LIKE[dry_run.noise_product(row)]  # else what stays with a client learns slowly
    return (published, *like) if published else like
