"""The noise of a run in two numbers, known before it: its amplification, and that on an output."""

from typing import NamedTuple

from fedlora_lab._utils.torch_state import with_default_modes
from fedlora_lab.federated.make_config import make_config
from fedlora_lab.federated.noise_forecast import forecast_of
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.plan import Lora, Plan
from fedlora_lab.privacy.plan import Privacy
from fedlora_lab.tasks.task import Task


class NoiseAmplification(NamedTuple):
    """The amplification number of a run.

    Args:
        mean: rho, over the layers, weighted by d_out, as the energy of B's noise is.
        output_variance: v, variance of all of the run's noise on an output, for inputs of mean
            square 1, over the layers; NaN where the noise in either factor is not known. It is one
            number for all settings that are one run, see `theory.OutputVariance`.
        unknown: why ``mean`` or ``output_variance`` is NaN, in one line; ``None``: both are known.
    """

    mean: float
    output_variance: float
    unknown: str | None


@with_default_modes
def noise_amplification(
    task: Task,
    method: Method | str,
    privacy: Privacy | None,
    plan: Plan,
    lora: "Lora | None" = None,
) -> NoiseAmplification:
    """Computes before a run how much noise it will put into the adapter, from public numbers.

    The amplification number is the energy of the noise in A after the run, divided by A's own
    energy. Noise on B multiplies A and the noise in A alike: at 1 half of the noise in the product
    is noise times noise. It is 0 without noise and where A is frozen. How much noise a layer's
    output gets in all is `NoiseAmplification.output_variance`.

    Nothing is trained and no value of any example is read. This is no privacy amplification by
    sampling, which the ledger counts.

    Args: see `run`, with the noise multiplier set.
    Guarantees: test_amplification.py::test_amplification_is_what_a_run_measures,
        ::test_no_mean_thins_the_noise_in_what_stays_with_its_client.
    Source: derived, see `theory.accumulated_noise_terms`.

    >>> import fedlora_lab as fl
    >>> task, plan = fl.tasks.digits(clients=20), fl.Plan(rounds=40)
    >>> privacy = fl.Privacy(unit="client", noise_multiplier=1.0, delta=1e-3)
    >>> for slug in ("fedlora", "rolora"):
    ...     print(slug, round(fl.noise_amplification(task, slug, privacy, plan).mean, 2))
    fedlora 19.2
    rolora 9.6
    """
    forecast = forecast_of(make_config(task, method, privacy, plan, lora, 0))
    v = float("nan") if forecast.unknown_on_outputs else forecast.output_variance().total
    return NoiseAmplification(forecast.mean(), v, forecast.unknown_on_outputs)
