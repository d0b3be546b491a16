"""The parts of a run, checked one by one and against each other."""

from dataclasses import replace
from itertools import product

import torch
from torch import Tensor

from fedlora_lab import methods
from fedlora_lab._utils.torch_state import with_default_modes
from fedlora_lab._utils.validation import check, in_one_line, warn
from fedlora_lab.federated.config import Config
from fedlora_lab.federated.exchange import Traffic
from fedlora_lab.federated.noise_forecast import forecast_of
from fedlora_lab.federated.records import BUILT_IN
from fedlora_lab.methods.filters import FILTERED
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.optimizers import Optimizer
from fedlora_lab.methods.plan import Lora, Plan, lora_of
from fedlora_lab.methods.published import rule_name
from fedlora_lab.methods.state import ParamKey
from fedlora_lab.privacy.plan import Privacy
from fedlora_lab.tasks.task import Task
from fedlora_lab.theory.products import balanced_scale


@with_default_modes
def make_config(
    task: Task,
    method: Method | str,
    privacy: Privacy | None,
    plan: Plan,
    lora: "Lora | None",
    seed: int | None,
) -> Config:
    """Checks the parts of a run one by one and against each other.

    Args:
        task, method, privacy, plan, seed: see `run`.
        lora: a `Lora`, or ``None`` for ``Lora()``.

    Raises: ``ValueError`` (name, value, range).
    """
    lora = lora_of(lora)
    check_parts(task, privacy, plan)
    method = methods.get(method)
    _check_schedule(method, plan)
    _check_filter(method)
    _check_optimizer(plan.optimizer)
    taken = sorted(task.metrics.keys() & {*BUILT_IN, *Traffic._fields})
    check(not taken, "metrics", taken, "other names: a run has measures of its own of these")
    _check_start_scale(method, lora)
    if privacy is not None:
        privacy = privacy.resolve(task, plan)
        # A client of many examples would move the mean by more than C over the number of clients.
        even = privacy.releases_steps or plan.client_weights == "uniform"
        expected = "'uniform' in the client unit: sizes would set the sensitivity"
        check(even, "client_weights", plan.client_weights, expected)
    if method.differences is not None and privacy is not None and not privacy.releases_steps:
        _check_straight_steps(task, method, plan)
    # Refuses what cannot be computed from them, as a rule that gives no Preconditioner.
    config = Config(task, method, privacy, plan, lora, seed)
    if method.balance is None:
        return config
    forecast = forecast_of(config)
    reason = forecast.unknown
    expected = f"None: the noise in A is not known before a run, {reason}"
    check(reason is None, "balance", method.balance, expected)
    # The one place where it is settled: loop, measures, checkpoints and saved adapters, a client
    # and the server on Flower read the adapter of the specification.
    scale = balanced_scale(forecast.mean(), method.balance)
    return replace(config, lora=replace(lora, start_scale=scale))


def check_parts(task: object, privacy: object, plan: object) -> None:
    """Refuses what is no task, privacy or plan, and says what to write.

    Args: task, privacy, plan: of any type.
    """
    check(isinstance(task, Task), "task", task, "a Task, such as fl.tasks.digits()")
    # A subclass might say one thing of rates or noise to the ledger, and do another at work.
    check(type(plan) is Plan, "plan", plan, "a Plan, no subclass, such as fl.Plan(rounds=20)")
    calibrated = "fl.Privacy().calibrate(epsilon=8, task=task, plan=plan)"
    expected = f"a Privacy, no subclass, such as {calibrated}, or None"
    check(type(privacy) in (Privacy, type(None)), "privacy", privacy, expected)


def _check_straight_steps(task: Task, method: Method, plan: Plan) -> None:
    """Refuses steps that leave the directions, along which alone a client's update is sent.

    Guarantees: test_directions.py::test_what_has_no_numbers_along_the_directions_is_refused.
    """
    rule = plan.optimizer
    expected = "sgd: in the client unit steps go along directions alone"
    check(not rule.nonlinear, "optimizer", rule, expected)
    always = {"head"} if task.head else set()
    # They may hold what no schedule moves, at the rate of B.
    if method.initial_factors is not None:
        always.add("B")
    expected = "one number: in the client unit all that moves in a step goes along its directions"
    for t, s in product(range(min(plan.rounds, 100)), range(plan.local_steps)):
        moving = {*method.factors_at_step(t, s).replace("*", "AB")} | always
        check(len({plan.rate(factor) for factor in moving}) == 1, "lr", plan.lr, expected)


def _check_schedule(method: Method, plan: Plan) -> None:
    """Refuses words that are no schedule; warns of turns that never come.

    Guarantees: test_cli.py::test_a_warning_is_one_line.
    """
    steps = plan.local_steps
    # A schedule's mistakes are refused here, not in round t.
    for t in range(min(plan.rounds, 100)):
        method.factors_in_round(t, steps)
    rounds = range(min(plan.rounds, 10))
    moved = {factor for t in rounds for factor in method.factors_in_round(t, steps)}
    ahead = {method.factors_at_step(t, s) for t in rounds for s in range(steps, steps + 10)}
    if idle := "".join(sorted(set("".join(ahead)) - moved)):
        text = f"local_steps={steps}: {method.slug} never moves {idle}"
        warn(f"{text}, whose turn comes at a later step of the round")


def _check_filter(method: Method) -> None:
    """Refuses a filter that mixes clients, or is not linear.

    It is given the tensors of clients that train together, (clients, rows, columns). The noise
    passes it apart from the gradient: only of a linear one is what comes out the noise in the
    filtered release.

    Guarantees: test_bad_input.py::test_a_bad_call_is_refused_in_one_line.
    """
    random = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 3, 16, 12, generator=random)
    apply = method.filter
    for factor in FILTERED:
        with in_one_line(f"filter={rule_name(apply)}: expected (x, factor) -> x, but"):
            result = apply(x, factor)
            alone = torch.cat([apply(part, factor) for part in x.split(1)])
            both = apply(x + y, factor)
            error = float((both - result - apply(y, factor)).norm())
        same = result.shape == x.shape and torch.allclose(result, alone, rtol=0, atol=1e-5)
        expected = "each client's part by itself: x is (clients, rows, columns)"
        check(same, f"filter(x, {factor!r})", rule_name(apply), expected)
        # More than rounding in float32, and less than any rule that is not linear.
        linear = error <= 1e-4 * float(both.norm())
        expected = "linear, f(x + y) = f(x) + f(y): the noise passes it by itself"
        check(linear, f"filter(x, {factor!r})", rule_name(apply), expected)


def _check_optimizer(rule: Optimizer) -> None:
    """Refuses an optimiser that mixes clients.

    In the client unit it sees gradients without noise, before the clip of the whole update.

    Guarantees: test_bad_input.py::test_an_optimiser_that_mixes_clients_is_refused.
    """
    key = ParamKey("B", "layer")
    # Of two clients, twice: gradients and parameters.
    pair = torch.randn(2, 2, 4, 3, generator=torch.Generator().manual_seed(0))

    def second_step(pair: Tensor) -> Tensor:
        grad, param = pair
        _, state = rule.update({key: grad}, {}, {key: param}, 0.1)
        return rule.update({key: grad}, state, {key: param}, 0.1)[0][key]

    alone = torch.cat([second_step(part) for part in pair.split(1, dim=1)])
    apart = torch.allclose(second_step(pair), alone, rtol=1e-4, atol=1e-6)
    check(apart, "optimizer", rule, "steps of clients that are each its own client's")


def _check_start_scale(method: Method, lora: Lora) -> None:
    """Refuses a start that the method's rule or its balance decides."""
    # What the rule writes is as large as ever.
    rewritten = "A" in getattr(method.aggregate, "writes", ())
    reason = "the method's rule writes A anew" if rewritten else "balance chooses it"
    free = not rewritten and method.balance is None
    check(free or lora.start_scale == 1, "start_scale", lora.start_scale, f"1, since {reason}")
