"""The learning rates that are suggested: from public numbers, and said where they come from."""

import copy
from dataclasses import replace

import pytest
from calls import refused
from toy_tasks import with_head

import fedlora_lab as fl
from fedlora_lab.recipes.noise_on_outputs import noise_on_outputs
from fedlora_lab.recipes.suggested_rates import SUGGESTED_VARIANCE as BOUND


@pytest.mark.parametrize("slug", ["fedlora", "ffa-lora", "la-lora", "as-lora", "balanced-lora"])
def test_the_suggested_rate_meets_the_bound_of_its_noise(slug):
    """At the suggested rate, or in the client unit the suggested clip norm, the noise on an output
    of a client's copy is as large as the bound allows, where factors take turns at root two times
    it. Another plan's rate does not matter.
    """
    task = fl.tasks.regression(clients=5)
    plan = fl.Plan(rounds=6, local_steps=2, lr=0.7)
    noise = fl.Privacy(noise_multiplier=2.0, delta=1e-5, clip_norm=0.4)
    lora = fl.Lora(rank=2, alpha=6.0)
    found = fl.suggest_lr(task, slug, noise, plan, lora)
    assert found.clip_norm == 0.4 and "rate" in found.origin
    slower = fl.suggest_lr(task, slug, noise, plan.replace(lr=0.1), lora)
    assert slower.lr == pytest.approx(found.lr)
    turns = 2**0.5 if slug in ("la-lora", "as-lora") else 1
    at_bound = plan.replace(lr=turns * found.lr)
    of_copies = noise_on_outputs(task, slug, noise, at_bound, lora, copies=True)
    assert of_copies.value == pytest.approx(BOUND)
    client = noise.replace(unit="client", delta=1e-3)
    other = fl.suggest_lr(task, slug, client, plan, lora)
    assert other.lr == 0.7 and other.clip_norm != 0.4
    again = fl.suggest_lr(task, slug, client.replace(clip_norm=other.clip_norm), plan, lora)
    assert again.clip_norm == pytest.approx(other.clip_norm)


@pytest.mark.parametrize(
    ("slug", "sigma", "work", "message"),
    [
        ("fedlora", 0.0, {}, "^noise=0.0: expected noise on B"),
        ("fed-sb", 1.0, {}, "^noise=0.0: expected noise on B"),
        ("fed-zo", 1.0, {}, "^method='fed-zo': expected a row with gradients"),
        ("fedlora", 1.0, {"optimizer": "adamw"}, "^optimizer='adamw': expected sgd"),
    ],
)
def test_a_rate_is_suggested_only_where_noise_decides_it(slug, sigma, work, message):
    task = fl.tasks.regression(clients=5)
    noise = fl.Privacy(noise_multiplier=sigma, delta=1e-5)
    with refused(message):
        fl.suggest_lr(task, slug, noise, fl.Plan(rounds=2, **work))


@pytest.mark.slow
def test_one_late_layer_bears_several_times_the_rate_of_eight():
    """Fault: v saw the same noise on fewer layers as the same noise."""
    plan = fl.Plan(rounds=20, local_steps=5, batch=16)
    found = []
    for targets in (("blocks.3.value",), ("query", "value")):
        task = fl.tasks.digits(clients=10, dirichlet=0.5, targets=targets)
        privacy = fl.Privacy(delta=1e-4).calibrate(epsilon=8, task=task, plan=plan)
        found.append(fl.suggest_lr(task, "ffa-lora", privacy, plan))
    one, eight = found
    assert one.lr > 3 * eight.lr and "by a dry run" in one.origin
    assert "dry run" not in eight.origin


def test_no_dry_run_is_followed_where_a_head_learns_anew():
    """Fault: noise spoiled the answers of a new head, which meant nothing, and the rate fell."""
    plan = fl.Plan(rounds=20, local_steps=5, batch=16)
    task = with_head(fl.tasks.digits(clients=10, dirichlet=0.5))
    model = copy.deepcopy(task.model)
    for parameter in model.get_submodule("head").parameters():
        parameter.data *= 1e-3
    privacy = fl.Privacy(delta=1e-4).calibrate(epsilon=8, task=task, plan=plan)
    known, new = (
        fl.suggest_lr(one, "ffa-lora", privacy, plan) for one in (task, replace(task, model=model))
    )
    assert new == known
