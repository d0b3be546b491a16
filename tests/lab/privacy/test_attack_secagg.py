"""Secure aggregation as its server sees it: who sends is known, clients may tell their noise."""

import math
from types import SimpleNamespace

import pytest
import torch
from toy_tasks import LORA, PLAN, private, tokens

import fedlora_lab as fl
from fedlora_lab import theory
from fedlora_lab.federated.make_config import make_config
from fedlora_lab.federated.run import Run
from fedlora_lab.methods.state import ParamKey
from fedlora_lab.privacy import accounting
from fedlora_lab.privacy.privatizer import gaussian_noise

pytestmark = pytest.mark.attack


def exact(sigma):
    """Epsilon of 100 releases without any amplification by participation."""
    return theory.gdp_epsilon(theory.gaussian_mu(sigma, 100), 1e-3)


def test_the_aggregator_is_not_amplified_against():
    """Noise that gives 2.0 to an outsider at q = 10 % gives 7 or more to who sees them send."""
    task = SimpleNamespace(sizes=(10,) * 100)
    plan = fl.Plan(rounds=100, local_steps=5, participation=0.1)
    weak = accounting.noise_multiplier(2.0, 1e-3, 0.1, 100)
    assert exact(weak) > 7
    # Whoever sees the released models reads the number of senders off the noise; a local upload
    # tells who sent it.
    for trust in ("secagg", "local"):
        unnoised = fl.Privacy(unit="client", trust=trust, delta=1e-3)
        ledger = unnoised.replace(noise_multiplier=weak).resolve(task, plan).ledger(100)
        assert ledger.observers == ("server", "released")
        assert ledger.epsilon() == pytest.approx(exact(weak))


def test_colluders_leave_enough_noise():
    """Colluders upload and take their own noise out: what is left deviates by sigma C or more.

    Measured on the noise that the run draws, in the round with the fewest uploads that is released.
    """
    sigma = 1.3
    clip = 0.7
    colluding = 2
    privacy = private("client", sigma, clip, trust="secagg", colluding_clients=colluding)
    run = Run.open(make_config(tokens(), "fedlora", privacy, PLAN, LORA, 5))
    each, _, shares = privacy.noise_levels(3, PLAN)
    assert shares + colluding == 3 and isinstance(each, float)
    assert run.config.least_uploads == 3
    wide = {ParamKey("B", "x"): torch.Size((4000,))}
    where = [(0, k) for k in range(3)]
    (drawn,) = gaussian_noise(wide, [each] * 3, run.config.streams, where).values()
    left = float(drawn[colluding:].sum(0).std())
    assert left == pytest.approx(sigma * clip, rel=4 / math.sqrt(2 * 4000))
