"""The same run on public examples: its work and noise, other seeds, and nothing private."""

from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
import torch
from calls import refused
from small_digits import PLAN, PRIVACY, digits, with_other_clients
from toy_tasks import with_private_test

import fedlora_lab as fl
from fedlora_lab.federated.make_config import make_config
from fedlora_lab.recipes import suggested_rates
from fedlora_lab.recipes.rehearsal import plateau_end, public_task, seeds_of

RATES = [0.1, 0.4]
DELTAS = {"example": 1e-5, "person": 1e-5, "client": 1e-2}


def test_no_private_value_enters_a_rehearsal():
    """Private rows that are not finite would count as zero, and leave the model as it was."""
    task = digits()
    found, other = (
        fl.rehearse(each, "fedlora", PRIVACY, PLAN, RATES, runs=1)
        for each in (task, with_other_clients(task))
    )
    assert found.table.equals(other.table) and found[1:] == other[1:]


def by_person(task):
    """Four rows of each of a client's persons."""
    persons = [[1000 * k + i // 4 for i in range(n)] for k, n in enumerate(task.sizes)]
    return fl.tasks.classification(
        task.model,
        task.clients,
        test=task.test,
        validation=task.validation,
        targets=task.targets,
        persons=persons,
    )


@pytest.mark.parametrize("unit", ["example", "person", "client"])
def test_a_rehearsal_has_the_noise_and_the_work_of_its_run(unit):
    """How many rows a person has is no public number: in the rehearsal each has one."""
    privacy = PRIVACY.replace(unit=unit, delta=DELTAS[unit])
    task = by_person(digits())
    config, other = (
        make_config(each, "fedlora", privacy, PLAN, None, 0)
        for each in (task, public_task(task, privacy, seed=5))
    )
    assert other.noise_levels == config.noise_levels
    assert other.sample_rates == config.sample_rates
    assert other.unit_counts == config.unit_counts == privacy.unit_counts(task)
    assert torch.equal(other.weights, config.weights)


def test_what_a_rehearsal_learns_from_is_not_what_it_scores():
    task: Any = digits()
    found = public_task(task, PRIVACY, seed=5)
    rows = {x.numpy().tobytes() for x in task.validation[0]}
    scored = {x.numpy().tobytes() for x in found.test[0]}
    learned = {x.numpy().tobytes() for x, _ in found.clients for x in x}
    assert scored | learned <= rows and not scored & learned
    assert len(found.test[1]) == 60


def test_a_rehearsal_draws_other_noise_than_its_run():
    seeds = [each for seed in range(100) for each in seeds_of(seed, 3)]
    assert len({*seeds}) == 300 and min(seeds) >= 2**32
    task = digits()
    setting = task, "fedlora", PRIVACY, PLAN, RATES
    found, other = (fl.rehearse(*setting, runs=1, seed=seed) for seed in (0, 1))
    assert not found.table.equals(other.table)


def test_a_rate_that_ruins_the_model_is_not_chosen():
    """Nor one at which a run diverges, which has no score."""
    found = fl.rehearse(digits(), "fedlora", PRIVACY, PLAN, [1e9, 0.2, 0.1], runs=1)
    assert found.lr in (0.1, 0.2) and 0.1 < found.end < 1e9
    assert found.table["lr"].tolist() == [0.1, 0.2, 1e9]


def without_validation(task):
    return replace(task, held_out=replace(task.held_out, validation=None))


def test_what_cannot_be_rehearsed_is_refused():
    few = digits()
    x, y = few.test
    few = replace(few, held_out=replace(few.held_out, validation=(x[:29], y[:29])))
    for task, shown in (
        (without_validation(few), "None"),
        (with_private_test(digits()), "None"),
        (few, "'29 examples'"),
    ):
        with refused(f"^validation={shown}: expected at least 30 examples, with public_test=True"):
            fl.rehearse(task, "fedlora", PRIVACY, PLAN, RATES)
    with refused(r"^rates=\[0.1\]: expected two or more"):
        fl.rehearse(digits(), "fedlora", PRIVACY, PLAN, [0.1])


@pytest.mark.slow
def test_a_suggestion_rehearses_where_there_are_public_examples(monkeypatch):
    """Elsewhere the variance decides, with a warning."""
    monkeypatch.setattr(suggested_rates, "REHEARSED_OCTAVES", range(2))
    task = digits()
    found = fl.suggest_lr(task, "fedlora", PRIVACY, PLAN, rehearse=True)
    plain = fl.suggest_lr(task, "fedlora", PRIVACY, PLAN)
    assert "rehearsal on 180 public examples" in found.origin
    assert found.lr / plain.lr in (1.0, 2.0)
    found = fl.suggest_lr(without_validation(task), "fedlora", PRIVACY, PLAN, rehearse=True)
    assert found.lr == plain.lr and found.origin.startswith(plain.origin)
    assert "up to 20 times" in found.origin


@pytest.mark.parametrize(
    ("scores", "end"),
    [
        # Half of what is lost to the next rate is lost half an octave on; a second hill is another.
        ((0.5, 0.9, 0.84, 0.9), 0.2 * 2**0.5),
        # Beyond the end of the grid nothing is known.
        ((0.5, 0.6, 0.9, 0.89), 0.8),
    ],
)
def test_a_plateau_ends_where_three_points_are_lost(scores, end):
    assert plateau_end(pd.Series(scores, [0.1, 0.2, 0.4, 0.8])) == pytest.approx(end)
