"""Learning rates tuned on validation data, and rates that follow from public numbers alone.

rates.json has what the studies under results/ found (studies/suggested_rates.py). They scored runs
on validation examples, with seeds of their own; no ledger counts that. On private data every such
look is a release that has to be counted (arXiv:2110.03620).
"""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from fedlora_lab import methods
from fedlora_lab._utils.options import UNITS
from fedlora_lab._utils.validation import check, check_number, check_one_of
from fedlora_lab.federated.make_spec import make_run_spec
from fedlora_lab.federated.noise_forecast import forecast_of
from fedlora_lab.methods import aggregation
from fedlora_lab.methods.method import Cycle, Method
from fedlora_lab.methods.optimizers import SGD
from fedlora_lab.methods.plan import Lora, Plan
from fedlora_lab.methods.state import KINDS
from fedlora_lab.privacy.plan import Privacy
from fedlora_lab.tasks.task import Task

if TYPE_CHECKING:
    from peft import LoraConfig

FILE = Path(__file__).with_name("rates.json")
NO_BUDGET = "none"
"""The name of training without privacy among the budgets of rates.json."""
LIKE = {
    "never": ("ffa-lora",),
    "at once": ("fedlora",),
    "within a round": ("la-lora-unfiltered", "rolora"),
    "over rounds": ("rolora",),
}
"""How noise on two factors meets (`noise_product`) -> methods in which it does so."""
BALANCED = "balanced"
HORIZON = 12
"""Rounds, and steps of a round, in which a schedule is looked at."""
NOISE_LIMITS = {
    "never": 3.0,
    "at once": 1.5,
    "within a round": 1.0,
    "over rounds": 0.75,
    BALANCED: 5.9,
}
"""How noise on two factors meets (`noise_product`), or a balanced start -> how large 3 d_in
N tau^2 of B's noise may become. Fitted on the task digits alone (studies/noise_limits.py)."""


@cache
def load_rates() -> dict[str, dict[str, Any]]:
    """Loads task -> unit -> slug -> budget -> rate. Under "setting" an embedded task has the plan,
    privacy and adapter that its rates were tuned with.
    """
    return json.loads(FILE.read_text(encoding="utf-8"))


class Suggestion(NamedTuple):
    """A learning rate and where it comes from.

    Args:
        lr: of B; where A has another rate, it keeps its ratio to B's.
        origin: for which method, budget and unit it was tuned, or that it is the default.
        exact: that is what was asked for.
    """

    lr: float
    origin: str
    exact: bool


def tuned_rate(
    task: Task | str, method: Method | str, epsilon: float | None = 8.0, unit: str = "example"
) -> float:
    """Returns the learning rate found for a method on a task at the nearest searched budget.

    Args:
        task, method: by name or as they are.
        epsilon: the budget, > 0; nearest is meant on a logarithmic axis. ``None``: training without
            privacy.
        unit: "example" or "client"; without privacy there is no difference.

    Raises: ``ValueError`` when the task, the unit or the method was not tuned for; see `suggestion`
        for a rate in any case.
    Guarantees: the rates of the committed searches
        (test_tuned_rates.py::test_the_shipped_rates_are_those_of_the_committed_searches).

    >>> tuned_rate("digits", "rolora", epsilon=1.0)
    0.04
    """
    name, slug, budget, unit = _names(task, method, epsilon, unit)
    table: Any = load_rates()
    for argument, key in (("task", name), ("unit", unit), ("method", slug)):
        check_one_of(argument, key, tuple(table))
        table = table[key]
    nearest = _nearest(table, budget)
    check(nearest is not None, "epsilon", epsilon, f"a budget of the kind tuned for: {list(table)}")
    return table[nearest]


class PublicSuggestion(NamedTuple):
    """A learning rate and a clip norm that follow from public numbers.

    Args:
        lr: of B; where A has another rate, it keeps its ratio to B's.
        clip_norm: C.
        origin: which of the two was chosen, and what for.
    """

    lr: float
    clip_norm: float
    origin: str


def suggest_lr(
    task: Task,
    method: Method | str,
    privacy: Privacy,
    plan: Plan,
    lora: "Lora | LoraConfig | None" = None,
) -> PublicSuggestion:
    """Suggests a learning rate without a look at any data, from the noise that a run can bear.

    The noise of N releases of deviation tau on an entry of the averaged B makes 3 d_in N tau^2, the
    amplification number of an A that took up as much. Each way in which a method's noise meets
    itself has a limit for it (`NOISE_LIMITS`). In the example unit tau is the rate times sigma C /
    (b sqrt(K)), and the rate that meets the limit is suggested. In the client unit no rate enters:
    tau is sigma C / (q K), so it is the clip norm that meets the limit, at the plan's rate.

    Args: as of `run`, with the noise multiplier set; sigma does not depend on what is suggested.
    Raises: ``ValueError`` without noise; where B rests; and for optimisers whose noise is not known
        before a run.
    Guarantees: test_tuned_rates.py::test_the_suggested_rate_meets_the_limit_of_its_noise.
    Source: derived; the limits are fitted on one model, that of digits, at epsilon 1 to 20
        (studies/noise_limits.py). There they interpolate in sigma, and one limit for all methods
        does nearly as well. On MNIST and texts they suggest less noise than is best:
        docs/amplification.md has what that costs.

    >>> import fedlora_lab as fl
    >>> task, plan = fl.tasks.digits(), fl.Plan(rounds=20, batch=32)
    >>> privacy = fl.Privacy(delta=1e-5, noise_multiplier=1.0)
    >>> [round(suggest_lr(task, x, privacy, plan).lr, 2) for x in ("fedlora", "ffa-lora")]
    [0.89, 1.26]
    """
    noise = noise_taken_up(task, method, privacy, plan, lora)
    # A larger start by hand makes A's noise less beside A, which leaves the limit of B's own.
    limit = min(NOISE_LIMITS[noise.kind] * noise.start_scale**2, max(NOISE_LIMITS.values()))
    # The noise grows with the square of what is chosen.
    factor = math.sqrt(limit / noise.value)
    origin = f"at which B's noise makes 3 d_in N tau^2 = {limit:g} ({noise.kind})"
    rate = plan.rate("B") or 1.0
    clip_norm = privacy.clip_norm
    if privacy.by_step:
        return PublicSuggestion(rate * factor, clip_norm, f"the rate {origin}")
    origin = f"the clip norm {origin}; the rate is the plan's"
    return PublicSuggestion(rate, clip_norm * factor, origin)


class NoiseTakenUp(NamedTuple):
    """The noise that B takes up over a run, and how it meets that of A.

    Args:
        value: 3 d_in N tau^2 of B, weighted by d_out over the layers.
        kind: of `NOISE_LIMITS`.
        start_scale: of A, where it was set by hand.
    """

    value: float
    kind: str
    start_scale: float


def noise_taken_up(
    task: Task,
    method: Method | str,
    privacy: Privacy,
    plan: Plan,
    lora: "Lora | LoraConfig | None" = None,
) -> NoiseTakenUp:
    """Computes what `suggest_lr` holds against its limits, at the plan's rate and clip norm.

    Args: as of `run`, with the noise multiplier set.
    Raises: as `suggest_lr`.
    """
    expected = "a Privacy: without noise no rate is bad"
    check(isinstance(privacy, Privacy), "privacy", privacy, expected)
    row = methods.get(method)
    if privacy.by_step:
        expected = "sgd, whose noise follows from the rate; or give lr"
        check(not plan.optimizer.nonlinear, "optimizer", str(plan.optimizer), expected)
    server = plan.server_optimizer
    check(server == SGD(), "server_optimizer", str(server), "sgd without momentum")
    # The noise is in proportion to the rate: any rate but 0 tells how much of it there is.
    plan = plan if plan.rate("B") else plan.replace(lr=1.0)
    # What the run does with B's noise afterwards is not asked here: a plain mean stands in for the
    # server's rule, and turns for a schedule that chooses on the way.
    train = Cycle(("B", "A")) if "*" in row.sides_in_round(0, plan.local_steps) else row.train
    spec = make_run_spec(task, row, privacy, plan, lora, 0)
    balanced = row.balance is not None
    scale = 1.0 if balanced else spec.lora.start_scale
    like = row.replace(aggregate=aggregation.mean, balance=None, train=train)
    forecast = forecast_of(replace(spec, method=like))
    d_in = {layer: weight.shape[1] for layer, weight in forecast.weights.items()}
    value = forecast.weighted(lambda at: 3 * d_in[at] * float(forecast.variance("B", at)[-1]))
    check(
        value > 0,
        "noise",
        value,
        "noise on B: a multiplier, a clip_norm > 0, a row that moves B",
    )
    kind = BALANCED if balanced else noise_product(row)
    if not privacy.by_step and kind == "within a round":
        kind = "at once"  # of a round's change both factors are noised together
    return NoiseTakenUp(value, kind, scale)


def suggestion(
    task: Task | str, method: Method | str, epsilon: float | None = 8.0, unit: str = "example"
) -> Suggestion:
    """Suggests a learning rate for any method, budget and unit, and says what it was tuned for.

    In this order: the method at the nearest budget; a method whose factors move at the same times,
    since noise reaches their products alike; the default of `Plan`.

    Args: as for `tuned_rate`.
    Guarantees: test_a_suggestion_says_where_it_comes_from.
    """
    from fedlora_lab.plots.style import name as described  # loads Matplotlib

    name, slug, budget, unit = _names(task, method, epsilon, unit)
    by_slug = load_rates().get(name, {}).get(unit, {})
    row = methods.ALL.get(slug) if isinstance(method, str) else method
    similar = () if row is None else LIKE[noise_product(row)]
    nothing = f"nothing was tuned for {described(slug)}"
    for like in (slug, *similar):
        nearest = _nearest(by_slug.get(like, {}), budget)
        if nearest is None:
            continue
        origin = f"tuned for {described(like)}{_at(nearest, unit)}"
        if nearest != budget:
            origin += f", the budget nearest to {budget}"
        if like != slug:
            origin += f"; {nothing}{_at(budget, unit)}"
        exact = like == slug and nearest == budget
        return Suggestion(by_slug[like][nearest], origin, exact)
    origin = f"the default; {nothing} on {name}{_at(budget, unit)}"
    return Suggestion(Plan().rate("B"), origin, exact=False)


def _names(
    task: Task | str, method: Method | str, epsilon: float | None, unit: str
) -> tuple[str, str, str, str]:
    """Checks task, method, budget and unit, and names them as rates.json does."""
    if epsilon is not None:
        check_number("epsilon", epsilon, 0, open_low=True)
    check_one_of("unit", unit, UNITS)
    name = task if isinstance(task, str) else task.name
    slug = method if isinstance(method, str) else method.slug
    if slug == "non-private":
        slug, epsilon = "fedlora", None
    if epsilon is None:
        return name, slug, NO_BUDGET, "example"
    # No rate was tuned for persons.
    return name, slug, f"{epsilon:g}", "client" if unit == "client" else "example"


def _nearest(tuned: Mapping[str, float], budget: str) -> str | None:
    """The nearest of the budgets tuned for, on a log axis, of two the smaller; ``None``: none."""
    if budget == NO_BUDGET:
        return budget if budget in tuned else None
    # Sorted, so that of two equally near the smaller is the first minimum.
    budgets = sorted((label for label in tuned if label != NO_BUDGET), key=float)
    return min(budgets, key=lambda label: abs(math.log(float(label) / float(budget))), default=None)


def _at(budget: str, unit: str) -> str:
    if budget == NO_BUDGET:
        return " without privacy"
    return f" at ε = {budget}" + (", unit client" if unit == "client" else "")


def noise_product(row: Method) -> str:
    """Says how noise on one factor can multiply noise on another: a key of `LIKE`.

    That is for the example unit. In the client unit noise falls on all that moved in a round at
    once, so "within a round" is "at once" there. Noise that a server's rule writes into a factor is
    that of the product already: it is split, not multiplied.
    """
    rounds = [set(row.sides_in_round(t, HORIZON)) for t in range(HORIZON)]
    every = set().union(*rounds)
    # A core or a residual between the factors holds noise of the product itself.
    start = {} if row.start is None else row.start(torch.eye(6, dtype=torch.float64), 2)
    kinds = [KINDS[side] for side in start if side in KINDS]
    if any(kind.of_the_product and not kind.scheduled for kind in kinds):
        return "at once"
    if "*" not in every and len(every) < 2:
        return "never"
    if any(len(row.sides_at_step(t, s)) > 1 for t in range(HORIZON) for s in range(HORIZON)):
        return "at once"
    return "within a round" if any(len(moved) > 1 for moved in rounds) else "over rounds"
