"""The noise of a run without the run: as much as it releases, and nothing private in it."""

import copy
from dataclasses import replace

import pandas as pd
import pytest
from calls import Options, refused
from small_digits import PLAN, PRIVACY, digits, with_other_clients
from toy_tasks import tensors, with_head, with_private_test

import fedlora_lab as fl
from fedlora_lab.federated.make_config import make_config
from fedlora_lab.lora import adapters
from fedlora_lab.recipes.dry_run import KEPT_AT_END, at_rate, end_of, noise_stds, with_noise
from fedlora_lab.tasks.metrics import cross_entropy

CASES: Options = {
    "both factors and a head": ("fedlora", {}, {"lr": {"A": 0.3, "B": 0.1}}, True),
    "turns, and a filter": ("la-lora", {}, {}, False),
    "a factor stays at home": ("fedsa-lora", {}, {}, False),
    "whole clients": ("fedlora", {"unit": "client", "delta": 1e-2}, {}, True),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_noise_of_a_dry_run_is_that_of_a_run_without_signal(case):
    """Over all entries of a factor the energies agree to several times their standard error."""
    slug, unit, work, head = CASES[case]
    task = with_head(digits()) if head else digits()
    # A loss of exactly zero would look like a head that the model does not call.
    task = replace(task, loss=lambda outputs, y: 1e-9 * cross_entropy(outputs, y))
    privacy, plan = PRIVACY.replace(**unit), PLAN.replace(**work)
    config = make_config(task, slug, privacy, plan, None, 0)
    model = adapters.adapt(task, config.lora)
    start, noised = with_noise(config, model, noise_stds(config, model), draw=0)
    first, *_, last = fl.run(task, slug, privacy, plan, seed=0, evaluate_every=3)
    moved = {key: x - tensors(first)[key] for key, x in tensors(last).items()}
    drawn = {key: x - start[key] for key, x in noised.items()}
    for name in ("A", "B", "head"):
        keys = [key for key in start if key.name == name and config.method.is_uploaded(key)]
        released, tried = (
            sum(float(x[key].square().sum()) for key in keys) for x in (moved, drawn)
        )
        assert tried == pytest.approx(released, rel=0.25), name


def test_no_private_value_enters_a_dry_run():
    task = digits()
    found, other = (
        fl.dry_run(each, "fedlora", PRIVACY, PLAN, [0.1, 0.8])
        for each in (task, with_other_clients(task))
    )
    assert found.table.equals(other.table) and found[1:] == other[1:]


def test_a_range_is_predicted_to_end_where_noise_leaves_few_answers():
    """Of ten classes, of which a guess keeps a tenth; what rises again was lost before."""
    level = 0.1 + 0.9 * KEPT_AT_END
    kept = [1.0, level + 0.1, level - 0.1, level + 0.2]
    table = pd.DataFrame({"lr": [0.1, 0.2, 0.8, 1.6], "kept": kept})
    assert end_of(table, 0.1) == pytest.approx(0.4)
    assert end_of(table[:2], 0.1) == float("inf")


def test_a_model_that_knows_nothing_at_its_start_is_flagged():
    """Fault: on sentences noise alone changed answers at a tenth of the rate that training bore."""
    task = digits()
    model = copy.deepcopy(task.model)
    for parameter in model.get_submodule("head").parameters():
        parameter.data *= 0
    for one, flagged in ((task, False), (replace(task, model=model), True)):
        dry = fl.dry_run(one, "fedlora", PRIVACY, PLAN, [0.1])
        assert ("no better than by one class" in (dry.warning or "")) == flagged


def test_a_rate_scales_noise_in_both_units():
    plan = fl.Plan(lr={"A": 0.2, "B": 0.4})
    for unit, norm in (("example", 1.0), ("client", 0.5)):
        there, scaled = at_rate(PRIVACY.replace(unit=unit), plan, 0.2)
        assert (scaled.lr, there.clip_norm) == ({"A": 0.1, "B": 0.2}, norm)


def test_what_a_dry_run_cannot_read_is_refused():
    with refused(r"^task='digits': expected one with public_test=True"):
        fl.dry_run(with_private_test(digits()), "fedlora", PRIVACY, PLAN, [0.1])
    with refused(r"^public labels=.*: expected one class an example, .* fl.rehearse"):
        fl.dry_run(fl.tasks.regression(3), "fedlora", PRIVACY, PLAN, [0.1])
