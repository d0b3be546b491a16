"""Optimisers of clients and server in whole runs: every engine, resuming, ledger and noise."""

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

import contract_clauses
import pytest
import torch
from toy_tasks import PLAN, play, private, regression, same_bits, tokens

import fedlora_lab as fl
from fedlora_lab import methods
from fedlora_lab.federated import local_training
from fedlora_lab.methods.aggregation import by_layer
from fedlora_lab.methods.optimizers import OPTIMIZERS, Adam, Optimizer

EVERY = list(methods.ALL.values())
WRITES = [r for r in EVERY if set(getattr(r.aggregate, "writes", ())) & set("ABRW")]
NOISE = {"noise_A", "noise_B", "noise_BA", "snr"}
SGD = fl.SGD(momentum=0.5, weight_decay=0.1)


@pytest.mark.parametrize("row", WRITES, ids=lambda row: row.slug)
def test_a_rule_that_writes_factors_has_no_server_optimiser(row):
    """One that only chooses among them takes it."""
    for given in ({"server_optimizer": "adam"}, {"server_lr": 0.5}):
        with pytest.raises(ValueError, match=r"^server_optimizer=.*: expected sgd at server_lr=1"):
            play(regression(), row, None, PLAN.replace(**given))
    row = methods.ASLoRA.replace(aggregate=by_layer())
    assert len(play(tokens(), row, None, PLAN.replace(server_optimizer="adam"))) == 3


@pytest.mark.parametrize("client", [SGD, fl.AdamW()])
@pytest.mark.parametrize("unit", [None, "example", "client"])
def test_noise_is_known_or_it_is_said_why_not(client, unit):
    """Unknown only where a step that is no linear map meets noise."""
    plan, unknown = PLAN.replace(optimizer=client), unit == "example" and client != SGD
    record = play(tokens("head"), "fedlora", unit and private(unit), plan)[-1]
    values = [value for _, name, value in record.rows if name in NOISE]
    assert values and all(math.isnan(value) == unknown for value in values)
    said = {name: why for name, why in record.unmeasured.items() if name != "amplification"}
    assert set(said) == (NOISE if unknown else set())
    assert all(text.startswith(f"{client}: a step divides") for text in said.values())


@pytest.mark.parametrize("row", ["fedlora", "la-lora", "deer"])
@pytest.mark.parametrize("rule", [fl.SGD(), fl.SGD(momentum=0.8, weight_decay=0.3)], ids=str)
def test_the_noise_that_a_client_holds_is_known(row, rule):
    """A walk with noise less one without, where C -> 0 takes the signal: decay shrinks it too."""
    found = []
    for sigma in (1e12, 0.0):
        ready, clients = contract_clauses.prepared(
            tokens("head"), methods.get(row), sigma, clip=1e-12
        )
        plan = fl.Plan(batch=2, lr=0.1, optimizer=rule)
        ready = replace(ready, spec=replace(ready.spec, plan=plan))
        for s in range(4):
            local_training.local_step(ready, clients, 0, s)
        found.append(clients)
    for key, noise in found[0].noise.items():
        change = found[0].params[key] - found[1].params[key]
        torch.testing.assert_close(change, noise.expand_as(change), rtol=1e-6, atol=1e-9)


def test_a_server_s_optimiser_is_left_out_of_the_deviation():
    """A row that claims an exact mean keeps the claim, though the server ends elsewhere."""
    plans = [PLAN.replace(server_optimizer=rule) for rule in (Adam(), "sgd")]
    exact, plain = (play(tokens(), "ffa-lora", None, plan)[-1] for plan in plans)
    assert exact.deviation < 1e-9
    norms = [[v for _, name, v in record.rows if name == "norm"] for record in (exact, plain)]
    assert norms[0] != norms[1]


@dataclass(frozen=True)
class SignDescent(Optimizer):
    """What somebody adds from outside: steps of one size."""

    name: str = field(default="sign", init=False, repr=False)
    nonlinear: ClassVar[str] = "a sign forgets how large signal and noise were"

    def _zeros(self, param):
        return {}

    def _step(self, grad, moments, param, lr):
        return -lr * grad.sign(), moments


def test_an_optimizer_from_outside_is_one_entry(monkeypatch, tmp_path):
    """It is named in plans, moves as it says, is resumed, and its noise is said to be unknown."""
    monkeypatch.setitem(OPTIMIZERS, "sign", SignDescent)
    plan = fl.Plan(rounds=2, local_steps=1, batch=None, lr=0.25, optimizer="sign")
    parts = regression(), "ffa-lora", private("example")
    start, first, last = play(*parts, plan)
    moved = first.adapter["map"][1] - start.adapter["map"][1]
    assert set((moved.abs() * 3 / 0.25).round(decimals=9).unique().tolist()) <= {1.0, 3.0}
    assert set(last.unmeasured.values()) == {f"sign: {SignDescent.nonlinear}"}
    play(*parts, plan.replace(rounds=1), checkpoint=tmp_path)
    same_bits([last], play(*parts, plan, resume=tmp_path))
