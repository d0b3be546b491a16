"""The learning rates that commands suggest: tuned on the studies, and said where they come from."""

import json

import pandas as pd
import pytest
from calls import refused
from places import ROOT

import fedlora_lab as fl
from fedlora_lab import methods
from fedlora_lab.experiments import tuned_rates
from fedlora_lab.federated.make_spec import make_run_spec
from fedlora_lab.federated.noise_forecast import forecast_of
from studies.noise_limits import fit_noise_limits
from studies.suggested_rates import collected


def test_the_shipped_rates_are_those_of_the_committed_searches():
    assert json.loads(tuned_rates.FILE.read_text(encoding="utf-8")) == collected()


LIKE = methods.FedLoRA.replace(name="mine", filter=methods.LALoRA.filter)


@pytest.mark.parametrize(
    ("method", "epsilon", "unit", "line", "exact"),
    [
        ("rolora", 8.0, "example", "tuned for RoLoRA at ε = 8", True),
        ("rolora", 2.5, "example", "tuned for RoLoRA at ε = 3, the budget nearest to 2.5", False),
        ("rolora", 3**0.5, "example", "tuned for RoLoRA at ε = 1,", False),  # of two the smaller
        ("rolora", None, "client", "tuned for RoLoRA without privacy", True),
        ("non-private", 8.0, "example", "tuned for FedLoRA without privacy", True),
        (LIKE, 1.0, "example", "tuned for FedLoRA at ε = 1; nothing was tuned for mine", False),
    ],
)
def test_a_suggestion_says_where_it_comes_from(method, epsilon, unit, line, exact):
    found = tuned_rates.suggestion("digits", method, epsilon, unit)
    assert found.origin.startswith(line) and found.exact == exact
    default = tuned_rates.suggestion("elsewhere", "rolora", 1.0)
    words = "the default; nothing was tuned for RoLoRA on elsewhere"
    assert default.lr == 0.3 and default.origin.startswith(words)


def test_what_was_not_tuned_is_refused():
    with refused(r"^epsilon=None: expected a budget of the kind"):
        fl.tuned_rate("digits", "fedask", epsilon=None)
    with refused(r"^method='nope': expected one of"):
        fl.tuned_rate("digits", "nope")


def test_the_limits_of_noise_are_those_fitted_on_digits():
    fitted = fit_noise_limits(pd.read_csv(ROOT / "results" / "noise-limits.csv"))
    assert fitted["limit"].to_dict() == tuned_rates.NOISE_LIMITS
    assert (fitted["lost"] < 0.03).all()


@pytest.mark.parametrize("slug", ["fedlora", "ffa-lora", "la-lora", "as-lora", "balanced-lora"])
def test_the_suggested_rate_meets_the_limit_of_its_noise(slug):
    """At the suggested rate, or in the client unit the suggested clip norm, B's noise is as large
    as the limit allows, and another plan's rate does not matter.
    """
    task = fl.tasks.regression(clients=5)
    plan = fl.Plan(rounds=6, local_steps=2, lr=0.7)
    noise = fl.Privacy(noise_multiplier=2.0, delta=1e-5, clip_norm=0.4)
    found = fl.suggest_lr(task, slug, noise, plan)
    assert found.clip_norm == 0.4 and "rate" in found.origin
    assert fl.suggest_lr(task, slug, noise, plan.replace(lr=0.1)).lr == pytest.approx(found.lr)
    if slug in ("fedlora", "ffa-lora", "la-lora"):
        work = plan.replace(lr=found.lr)
        forecast = forecast_of(make_run_spec(task, methods.get(slug), noise, work, None, 0))
        taken_up = 3 * 32 * forecast.variance("B", "map")[-1]  # of 32 inputs
        limit = tuned_rates.NOISE_LIMITS[tuned_rates.noise_product(methods.get(slug))]
        assert taken_up == pytest.approx(limit)
    client = noise.replace(unit="client", delta=1e-3)
    other = fl.suggest_lr(task, slug, client, plan)
    assert other.lr == 0.7 and other.clip_norm != 0.4
    again = fl.suggest_lr(task, slug, client.replace(clip_norm=other.clip_norm), plan)
    assert again.clip_norm == pytest.approx(other.clip_norm)


@pytest.mark.parametrize(
    ("slug", "sigma", "work", "message"),
    [
        ("fedlora", 0.0, {}, "^noise=0.0: expected noise on B"),
        ("fed-sb", 1.0, {}, "^noise=0.0: expected noise on B"),
        ("fedlora", 1.0, {"optimizer": "adamw"}, "^optimizer='adamw': expected sgd"),
        ("fedlora", 1.0, {"server_optimizer": "adam"}, "^server_optimizer='adam': expected sgd"),
    ],
)
def test_a_rate_is_suggested_only_where_noise_decides_it(slug, sigma, work, message):
    task = fl.tasks.regression(clients=5)
    noise = fl.Privacy(noise_multiplier=sigma, delta=1e-5)
    with refused(message):
        fl.suggest_lr(task, slug, noise, fl.Plan(rounds=2, **work))
