"""Privacy by person: who is drawn, what is clipped together, and what tables name persons."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from calls import refused
from contract_clauses import released
from toy_tasks import (
    LORA,
    PERSONS,
    PLAN,
    anywhere,
    is_binomial,
    people,
    private,
    tokens,
    with_persons,
)

import fedlora_lab as fl
from fedlora_lab.federated import local_training
from fedlora_lab.federated.config import Execution
from fedlora_lab.federated.local_training import ClientBatch
from fedlora_lab.federated.make_config import make_config
from fedlora_lab.federated.run import Run
from fedlora_lab.lora.per_example import per_example_gradients
from fedlora_lab.methods import FedLoRA

TASK = people()
CLIP = 0.7


def opened(batch=2, **options):
    plan = PLAN.replace(batch=batch, lr=1.0)
    config = make_config(TASK, FedLoRA, private("person", 0.0, CLIP), plan, LORA, 0)
    return Run.open(config, Execution(**options))


START = {key: x[None] for key, x in anywhere(TASK, FedLoRA).tensors.items()}


def moved(run):
    """Each client's sum of a step without noise, from random values."""
    clients = ClientBatch((0, 1, 2), dict(START), START)
    return released(run.prepared, clients, 0, 0)


def test_a_batch_draws_persons_with_all_their_examples():
    """Each at batch / persons: a draw of examples would leave a person's rows apart."""
    prepared = opened().prepared
    assert prepared.config.unit_counts == (3, 4, 2)
    assert prepared.config.sample_rates == (2 / 3, 0.5, 1.0)
    persons = torch.tensor(PERSONS[1])
    drawn = torch.zeros(400, 4, dtype=torch.bool)
    for s in range(400):
        index = local_training.poisson_batch(prepared, 0, s, (1,))[0]
        chosen = persons[index].unique()
        assert torch.equal(index, torch.isin(persons, chosen).nonzero().squeeze(1))
        drawn[s, chosen - 3] = True
    is_binomial(drawn.sum(1).tolist(), 4, 0.5)


@pytest.mark.parametrize("chunk", [None, 1, 2])
def test_a_person_is_clipped_once_as_the_mean_of_single_gradients(chunk):
    """Against batches of one, added up by hand, also where chunks cut a person in two."""
    run = opened(None, chunk_examples=chunk)
    sums = moved(run)
    for k, (x, y) in enumerate(TASK.clients):
        owner = torch.zeros(len(y), dtype=torch.int64)
        rows = per_example_gradients(TASK, run.prepared.adapted, START, tuple(sums), (x, y), owner)
        flat = torch.cat([row.flatten(1) for row in rows.values()], 1)
        persons = torch.tensor(PERSONS[k])
        means = [flat[persons == person].mean(0) for person in persons.unique()]
        total = sum(mean * min(1.0, CLIP / float(mean.norm())) for mean in means)
        by_library = torch.cat([sums[key][k].flatten() for key in rows])
        torch.testing.assert_close(by_library, total, rtol=1e-9, atol=1e-12)


def test_one_bad_example_voids_its_person_and_nobody_else():
    run = opened(None)
    sums = moved(run)
    x, y = TASK.clients[1]
    spoilt = x.clone()
    spoilt[5] = math.nan  # the one example of person 5
    run.prepared = replace(run.prepared, data=(TASK.clients[0], (spoilt, y), TASK.clients[2]))
    with_bad = moved(run)
    for key, value in sums.items():
        assert torch.equal(with_bad[key][0], value[0]) and with_bad[key].isfinite().all()
    gap = torch.cat([(value - with_bad[key])[1].flatten() for key, value in sums.items()])
    assert 0 < float(gap.norm()) <= CLIP * (1 + 1e-6)


def test_a_person_at_several_clients_is_refused():
    """Each client noises for itself: what such a person spends would be stated too small."""
    line = "^persons='one at clients 0 and 2': expected one client for each person: merge those "
    line += "that share persons; or, where each site counts its persons from 1, make them different"
    with refused(line):
        with_persons(TASK, (PERSONS[0], PERSONS[1], (0, 8, 8)))
    line = r"^persons=None: expected whose each example is, person= of fl.tasks.from_trainer or"
    with refused(line):
        fl.run(tokens(), "fedlora", private("person"), PLAN)


# ---- who is a person, and what an audit says


def test_persons_are_compared_by_value():
    """However a table stores them: one person counted as two would be protected by half."""
    alike = (7, np.int8(7), np.uint64(7))
    task = with_persons(tokens("head", (len(alike), 2)), (alike, (8, 2**62)))
    assert task.person_counts == (1, 2)
    alike = ("é", "e\u0301", "é ", np.str_("é"))
    task = with_persons(tokens("head", (len(alike), 2)), (alike, ("10", "9")))
    assert task.person_counts == (1, 2)


NOBODY: Any = (None, math.nan, "7", True, 7.0, np.float32(2**24), pd.NA, " ")


def test_what_is_neither_a_text_nor_a_whole_number_is_no_person():
    """An empty cell would be one person; a rounded number, or a text beside numbers, several."""
    for value in NOBODY:
        line = r"^persons=('.* in row 1 of client 0'|\[1, .*\]): expected (a text or a|texts thr)"
        with refused(line):
            with_persons(tokens("head", (2, 2)), ((1, value), (2, 3)))
    with refused(r"^persons\[2\]='2 entries': expected 3, one an example$"):
        with_persons(tokens(), (*PERSONS[:2], (7, 8)))


@pytest.mark.slow
def test_an_audit_s_canaries_are_persons():
    """Canaries that were examples of the task's persons would share their clip."""
    plan = PLAN.replace(batch=2)
    audit = fl.audit.run_audit(TASK, "fedlora", private("person"), plan, canaries=16, lora=LORA)
    assert audit.holds and audit.unit == "person"
