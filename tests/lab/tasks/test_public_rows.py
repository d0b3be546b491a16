"""Public rows that are private ones: their scores are exact, and no epsilon counts them."""

from math import isnan

import pytest
import torch
from calls import refused
from torch import nn
from toy_tasks import seeded

import fedlora_lab as fl
from fedlora_lab.tasks.public_rows import row_keys, shared_rows

PLAN = fl.Plan(rounds=1, local_steps=1, batch=8, lr=0.1)
PRIVACY = fl.Privacy(noise_multiplier=1.0, delta=1e-3)


def rows(count, seed):
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return x, torch.arange(count) % 3


CLIENTS = [rows(40, 1), rows(40, 2)]
OTHERS = rows(60, 3)


def build(test=OTHERS, **given):
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 3))).float()
    return fl.tasks.classification(model, CLIENTS, test, ["0"], **given)


def last(task, privacy=PRIVACY):
    return list(fl.run(task, "rolora", privacy, PLAN, seed=0))[-1].metrics


def test_private_rows_are_refused_as_public_ones():
    """Fault: a private run stated the exact accuracy on its clients' own rows."""
    own = tuple(torch.cat(pair) for pair in zip(*CLIENTS, strict=True))
    order = torch.randperm(80, generator=torch.Generator().manual_seed(0))[:60]
    shuffled = tuple(part[order] for part in own)
    line = "='60 of 60 rows equal private rows': expected public rows of their own, .*public_test="
    with refused("^test" + line):
        last(build(shuffled))
    with refused("^validation" + line):  # the rate is chosen on them
        last(build(validation=shuffled))
    half = tuple(torch.cat([a[:31], b[:29]]) for a, b in zip(own, OTHERS, strict=True))
    with refused("^test='31 of 60 rows"):
        last(build(half))
    last(build(OTHERS, validation=rows(30, 4)))
    # Without privacy the fit to the training rows is nobody's secret.
    assert last(build(shuffled), None)["accuracy"] >= 0


def test_test_rows_of_any_module_can_be_declared_private():
    """Fault: `classification` refused the keyword by which other tasks declare it."""
    task = build(CLIENTS[0], public_test=False)
    assert isnan(last(task)["accuracy"])
    assert fl.tasks.classification(task.model, CLIENTS, OTHERS, ["0"]).public_test


def test_rows_are_compared_by_all_that_the_model_reads():
    """Fault: of several tensors only one was compared."""
    ids, mask = torch.arange(6).view(3, 2), torch.ones(3, 2)
    cut = mask.clone()
    cut[0, 1] = 0
    pairs = zip(row_keys([ids, mask]), row_keys([ids, cut]), strict=True)
    assert [one == other for one, other in pairs] == [False, True, True]


@pytest.mark.parametrize("kinds", [4, 40, 160, 1000])
def test_rows_that_coincide_by_chance_are_left_alone(kinds):
    """Fault: test rows of a few possible kinds, drawn apart, were taken for the private ones."""
    for seed in range(20):
        draw = torch.Generator().manual_seed(seed)
        # Some kinds are frequent, as words are.
        chances = torch.rand(kinds, generator=draw).pow(3)
        private, public = (
            torch.multinomial(chances, count, True, generator=draw).tolist() for count in (80, 60)
        )
        assert shared_rows(private, public).excess < 0.5
        assert shared_rows(public, private).excess < 0.5
    assert shared_rows(range(80), range(41)).excess > 0.5
    assert shared_rows([*range(80)] * 3, range(60)).excess == 1, "a table that was repeated"


def test_a_few_rows_and_rows_of_one_person_are_not_told_of():
    """Fault: whoever chose the public rows learned whether one person's are among the private."""
    few = tuple(part[:9] for part in CLIENTS[0])
    last(build(few))
    persons = [[0] * 40, list(range(1, 41))]
    last(build(CLIENTS[0], persons=persons))
    with refused("^test='40 of 40"):
        last(build(CLIENTS[1], persons=persons))
