"""A dry run: what the noise of a whole run alone would do to the model, without any training.

`noise_on_outputs` puts that noise into one number, the variance on one output of one layer. Here it
goes through the network: it is drawn, put into the adapters, and public inputs pass the model.
"""

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fedlora_lab import methods
from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.torch_state import with_default_modes
from fedlora_lab._utils.validation import check, check_number
from fedlora_lab.federated.config import Config
from fedlora_lab.federated.make_config import make_config
from fedlora_lab.federated.noise_forecast import NoiseForecast
from fedlora_lab.lora import adapters
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.plan import Lora, Plan
from fedlora_lab.methods.state import ParamKey, TensorDict
from fedlora_lab.privacy.plan import Privacy
from fedlora_lab.recipes.noise_on_outputs import noise_on_outputs
from fedlora_lab.tasks.task import Task, forward, move_to_model, take

if TYPE_CHECKING:
    import pandas as pd

KEPT_AT_END = 0.55
"""The share of the model's answers, beyond what guessing gives, that noise alone leaves where a
range of rates is predicted to end: 0.6 of ten classes, 0.78 of two."""
FEWEST_STEPS = 3.0
"""Length of a run's whole noise, in steps of the clip norm, below which steps may end a range."""
DRAWS = 4
"""How many times noise is drawn; the table has the means."""
MOST_EXAMPLES = 200
AT_ONCE = 50
"""Examples that pass the model together."""


class DryRun(NamedTuple):
    """What noise alone does to a model, over the learning rate.

    Args:
        table: a row a rate: ``lr``; ``kept``, the share of the model's answers on public examples
            that noise leaves as they were; ``score``, the accuracy of the model with noise alone,
            or the first metric of the task.
        end: the rate at which noise leaves 0.55 of the answers beyond those of a guess, where a
            range is predicted to end; infinite where it leaves more at every rate of the table.
        steps: length of the whole run's noise over that of one clipped step.
        warning: why the range may end before, or elsewhere; ``None``: nothing speaks against it.
    """

    table: "pd.DataFrame"
    end: float
    steps: float
    warning: str | None


@with_default_modes
@torch.no_grad()
def dry_run(
    task: Task,
    method: Method | str,
    privacy: Privacy,
    plan: Plan,
    rates: Iterable[float],
    *,
    lora: "Lora | None" = None,
) -> DryRun:
    """Shows what the noise of a whole run alone would do to the model, before the run.

    The noise of all releases is drawn with its known variance and put into the factors and the
    head, on top of their start; then public inputs pass the model. Nothing is trained, no private
    value is read, and no epsilon is spent. Training is left out, so it does not see steps that are
    too long, nor what training mends: `rehearse` does.

    Args:
        task: its validation examples, else its test examples, are passed: at most 200.
        method, privacy, plan, lora: see `run`, with the noise multiplier set.
        rates: learning rates of B, > 0; where A has another rate, it keeps its ratio to B's. In the
            client unit the noise follows the clip norm, which goes in proportion to the rate.

    Raises: ``ValueError`` as `suggest_lr`, where the examples are not public, and where the model
        does not answer by one of several classes.
    Guarantees: the noise has the variance of what a run releases
        (test_dry_run.py::test_the_noise_of_a_dry_run_is_that_of_a_run_without_signal); private
        values do not count (test_dry_run.py::test_no_private_value_enters_a_dry_run).
    Source: derived. 0.55 was read off 28 ends of ranges on digits; docs/rates.md says how far it is
        off elsewhere.

    >>> import fedlora_lab as fl
    >>> task, plan = fl.tasks.digits(clients=10), fl.Plan(rounds=20, batch=16)
    >>> privacy = fl.Privacy(delta=1e-4).calibrate(epsilon=8, task=task, plan=plan)
    >>> dry = fl.dry_run(task, "fedlora", privacy, plan, rates=[0.1, 0.4, 1.6])
    >>> dry.table["kept"].is_monotonic_decreasing, 0.1 < dry.end < 1.6, dry.warning
    (True, True, None)
    """
    import pandas as pd

    row = methods.get(method)
    check(task.public_test, "task", task.name, "one with public_test=True: its inputs are passed")
    uncounted = noise_on_outputs(task, row, privacy, plan, lora).uncounted
    rates = sorted(rates)
    for rate in rates:
        check_number("rates", rate, 0, open_low=True)
    examples = task.test if task.validation is None else task.validation
    x, y = take(examples[0], slice(MOST_EXAMPLES)), examples[1][:MOST_EXAMPLES]
    expected = "one class an example, which the model answers; fl.rehearse takes any task"
    check(y.dtype == torch.int64 and y.ndim == 1, "public labels", y, expected)
    metric: Any = task.metrics.get("accuracy") or next(iter(task.metrics.values()))
    rows = []
    before: list[Tensor] = []
    steps = math.inf
    for rate in rates:
        config = make_config(task, row, *at_rate(privacy, plan, rate), lora, seed=0)
        model = adapters.adapt(task, config.lora)
        stds = noise_stds(config, model)
        scores = []
        for draw in range(DRAWS):
            start, noised = with_noise(config, model, stds, draw)
            # At every rate the model answers alike before the noise.
            if draw == len(before):
                before.append(_answers(model, start, x))
            after = _answers(model, noised, x)
            kept = (after.argmax(1) == before[draw].argmax(1)).double().mean()
            scores.append((float(kept), float(metric(after, y).double().mean())))
        kept, score = np.mean(scores, axis=0)
        rows.append({"lr": rate, "kept": kept, "score": score})
        steps = min(steps, _length_in_steps(config, model, stds))
    table = pd.DataFrame(rows)
    end = end_of(table, 1 / before[0].shape[1])
    # By one answer to all as many are right as have the commonest label.
    right = np.mean([float((answers.argmax(1) == y).double().mean()) for answers in before])
    knows = bool(right > float(y.bincount().max()) / len(y))
    return DryRun(table, end, steps, _warning(knows, end, steps, uncounted))


def at_rate(privacy: Privacy, plan: Plan, rate: float) -> tuple[Privacy, Plan]:
    """Privacy and plan at another rate of B; A keeps its ratio to it.

    In the client unit noise follows the clip norm and not the rate: there the clip norm is kept in
    proportion to the rate, so that a rate scales steps and noise in both units.

    Args: privacy, plan: of a run. rate: of B, in the place of the plan's.

    >>> privacy = Privacy(unit="client", clip_norm=2.0, noise_multiplier=1.0)
    >>> there, plan = at_rate(privacy, Plan(lr=0.5), 0.25)
    >>> there.clip_norm, plan.lr
    (1.0, 0.25)
    """
    before = plan.rate("B")
    factor = rate / (before or 1.0)
    lr = rate
    if isinstance(plan.lr, Mapping):
        lr = {name: value * factor for name, value in plan.lr.items()}
    if privacy is not None and not privacy.releases_steps:
        privacy = privacy.replace(clip_norm=privacy.clip_norm * factor)
    return privacy, plan.replace(lr=lr)


def noise_stds(config: Config, model: adapters.AdaptedModel) -> dict[ParamKey, float]:
    """Standard deviation of the noise that each trained tensor takes up over a whole run.

    Args: config, model: of the run; the model has its adapters.
    """
    forecast = NoiseForecast(config, model.weights)
    # No mean over clients thins the noise in what stays with its client, if it gets any.
    alone = forecast.unaveraged_noise_ratio() if config.releases_steps else 0.0
    stds = {}
    for key in model.places:
        share = 1.0 if config.method.is_uploaded(key) else alone
        stds[key] = math.sqrt(share * float(forecast.variance(key.name, key.layer)[-1]))
    return stds


def with_noise(
    config: Config, model: adapters.AdaptedModel, stds: Mapping[ParamKey, float], draw: int
) -> tuple[TensorDict, TensorDict]:
    """The values at the start of a run, and the same with the noise of the whole run on top.

    Args: config, model: of the run. stds: see `noise_stds`. draw: a number, of start and noise.
    """
    # A start and a noise of its own for each draw, and none that a run of this seed has.
    seed = Streams(config.streams.seed).numpy("dry run", draw).integers(2**62)
    streams = Streams(int(seed))
    row = config.method
    start = adapters.initial_values(model, streams, row.initial_factors, config.lora.start_scale)
    noised = dict(start)
    for number, (key, std) in enumerate(stds.items()):
        noise = streams.normal(start[key].shape, "noise", number)
        noised[key] = start[key] + std * noise.to(start[key])
    return start, noised


def _answers(
    model: adapters.AdaptedModel, values: TensorDict, x: Any
) -> Float[Tensor, "n classes"]:
    """The outputs for all inputs with these tensors; a few inputs pass the model together."""
    model.place(values)
    count = len(next(iter(x.values())) if isinstance(x, Mapping) else x)
    parts = []
    for first in range(0, count, AT_ONCE):
        few = move_to_model(take(x, slice(first, first + AT_ONCE)), model.model)
        parts.append(forward(model.model, few).cpu())
    return torch.cat(parts)


def _length_in_steps(
    config: Config, model: adapters.AdaptedModel, stds: Mapping[ParamKey, float]
) -> float:
    """Length of the noise of a whole run over that of the longest clipped step, or update."""
    energy = sum(std**2 * model.initial[key].numel() for key, std in stds.items())
    step = config.privacy.clip_norm if config.privacy else math.inf
    if config.releases_steps:
        step *= max(config.plan.rate(factor) for factor in "AB")
    return math.sqrt(energy) / step


def end_of(table: "pd.DataFrame", guess: float) -> float:
    """The rate at which noise leaves so few answers that a range is predicted to end.

    Args: table: by rate. guess: the share of the answers that a guess would leave.
    """
    level = guess + KEPT_AT_END * (1 - guess)
    # Of few draws the share may rise again: what was lost at a smaller rate counts.
    lost = (1 - table["kept"].cummin()).tolist()
    if lost[-1] < 1 - level:
        return math.inf
    octaves = [math.log2(rate) for rate in table["lr"]]
    return float(2 ** np.interp(1 - level, lost, octaves))


def _warning(knows: bool, end: float, steps: float, uncounted: str | None) -> str | None:
    """Says why a range may end elsewhere than where noise alone leaves few answers."""
    if not knows:
        text = "the model answers no better than by one class at its start"
        return f"{text}: noise destroys nothing that training needs"
    if steps < FEWEST_STEPS:
        text = f"the noise of the whole run is as long as {steps:.1f} clipped steps"
        return f"{text}: steps that are too long may end the range before"
    if math.isinf(end):
        return "at no rate of the table does noise change many answers: try larger ones"
    return uncounted and f"not counted: {uncounted}"
