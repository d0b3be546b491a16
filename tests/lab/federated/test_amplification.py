"""The amplification number against simulated runs, and the start that is chosen by it."""

import math
import re
from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from calls import Options, refused
from toy_tasks import LORA, PLAN, play, private, regression, same_bits, tokens

import fedlora_lab as fl
from fedlora_lab import methods
from fedlora_lab.federated.make_config import make_config
from fedlora_lab.federated.run import Run
from fedlora_lab.lora.source import require_source
from fedlora_lab.methods.aggregation import MeanUpdate
from fedlora_lab.methods.state import ParamKey
from fedlora_lab.recipes.noise_on_outputs import noise_on_outputs

BALANCED = methods.BalancedLoRA
WIDE = fl.tasks.regression(4, 6, d_in=100, d_out=5, rank=2, test=4)
SIGMA = 1e4
RUNS = 12


TURNS = {"participation": 0.6}
RATES = {"lr": {"A": 0.3, "B": 0.1}}
CASES: Options = {
    "rates, absence": ("fedlora", "example", {**TURNS, **RATES}, {}),
    "momentum": ("fedlora", "example", {"optimizer": fl.SGD(momentum=0.7)}, {}),
    "turns in a round, filter": ("la-lora", "example", {"local_steps": 3}, {}),
    "a multiplier each, sizes": (
        "fedlora",
        "example",
        {"client_weights": "size", "batch": None},
        {"sigma": (SIGMA, 2 * SIGMA, 0.0, 5 * SIGMA)},
    ),
    "along directions": ("fed-zo", "example", {}, {}),
    "trusted server": ("rolora", "client", {"participation": 0.5}, {}),
    "sum of shares": ("fedlora", "client", TURNS, {"trust": "secagg"}),
    "every upload": ("fedlora", "client", TURNS, {"trust": "local"}),
    "a frozen A": ("ffa-lora", "example", RATES, {}),
    "a start chosen by its noise": ("balanced-lora", "example", {}, {}),
}


@pytest.mark.every(2)
@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_amplification_is_what_a_run_measures(case):
    """Runs without signal: the energy by which A moved over that of its start, on the mean over
    seeds; the record's rows are that of `fl.noise_amplification` and the energy by which the
    product moved. Of even inputs, of mean square one, that energy is v on every output.
    """
    row, unit, work, noise = CASES[case]
    fields: Any = {"rounds": 4, "local_steps": 2, "batch": 3, "lr": 0.2, **work}
    # Noise of size sigma C, and a clip far below it: what is released is noise.
    privacy = private(unit, **{"sigma": SIGMA, "clip": 0.3 / SIGMA, **noise})
    parts = WIDE, row, privacy, fl.Plan(**fields)
    # A row that chooses its start takes no other.
    given = fl.Lora(4, 4.0, start_scale=1.0 if row == "balanced-lora" else 1.5)
    lora = make_config(*parts, given, 0).lora
    number = fl.noise_amplification(*parts, given)
    taken_up, products, rows = [], [], {}
    for seed in range(RUNS):
        first, *_, last = fl.run(*parts, lora=given, seed=seed, evaluate_every=4)
        (a0, b0), (a1, b1) = first.adapter["map"], last.adapter["map"]
        taken_up.append(float((a1 - a0).double().square().sum()))
        change = b1.double() @ a1.double() - b0.double() @ a0.double()
        products.append(float((lora.scaling * change).square().sum()))
        rows = {name: x for _, name, x in last.rows}
    linear, quadratic = rows["accumulated_linear"], rows["accumulated_quadratic"]
    assert number.output_variance == pytest.approx((linear + quadratic) / 5)  # d_out
    assert number.output_variance in fl.theory.mean_band(np.array(products) / 5)
    assert number.unknown is None
    begun = lora.start_scale**2 * lora.rank / 3
    assert number.mean * begun in fl.theory.mean_band(np.array(taken_up))
    assert rows["amplification"] == pytest.approx(number.mean)
    assert quadratic / linear == pytest.approx(number.mean)


class Capped(MeanUpdate):
    """A rule of the user's that does more than the mean, and says nothing of A."""

    def __call__(self, state, *given):
        after = super().__call__(state, *given)
        return after.replace_tensors({key: x.clamp(-1, 1) for key, x in after.tensors.items()})


def core(weight, rank):
    return {"R": 2 * torch.eye(rank, dtype=weight.dtype)}


def start_of_b(weight, rank):
    return {"B": torch.ones(len(weight), rank, dtype=weight.dtype)}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("flora", "Merge.* does not leave A the mean"),
        ("fedex-lora", ".* adds what the mean of the products has more"),
        ("fed-sb", "noised is something else than the factors"),
        ("deer", ".* shapes the noise on A by B"),
        ("as-lora", "which factor moves is chosen during the run"),
        ("fedsa-lora", "B stays with its client"),
        # Fault: a rule that extends the mean passed for the mean, and v for known.
        (methods.FedLoRA.replace(aggregate=Capped()), r"Capped\(\) does not leave A the mean"),
        (methods.FedLoRA.replace(initial_factors=core), "a core stands between A and the product"),
        # Fault: v left out the noise in A times what B starts with.
        (methods.FedLoRA.replace(initial_factors=start_of_b), "B does not start at zero"),
    ],
)
def test_where_the_noise_on_an_output_is_not_known_it_is_said(row, reason):
    """A residual, a core, a map of the noise, and what no average holds; no rule of the user's
    inherits the claim of a mean. What `suggest_lr` takes for it says so too."""
    number = fl.noise_amplification(regression(), row, private("example"), PLAN)
    assert math.isnan(number.output_variance) and re.match(reason, str(number.unknown))
    if row == "fed-sb":
        return  # it has no rate to suggest
    origin = fl.suggest_lr(regression(), row, private("example"), PLAN).origin
    told = re.search("; not counted: ([^;]*)", origin)
    # Where a factor stays with its client, K times the noise is counted.
    assert (told and told[1]) == (None if row == "fedsa-lora" else number.unknown)


@pytest.mark.slow
@pytest.mark.parametrize("row", ["fedsa-lora", "local"])
def test_no_mean_thins_the_noise_in_what_stays_with_its_client(row):
    """Fault: v of FedSA-LoRA took its B for averaged, and its range ended 1.5 octaves early. Runs
    without signal: the energy of the product that a client would begin the next round with."""
    plan = fl.Plan(rounds=4, local_steps=2, batch=3, lr=0.2)
    privacy = private("example", sigma=SIGMA, clip=0.3 / SIGMA)
    energies = []
    for seed in range(RUNS):
        run = Run.open(make_config(WIDE, methods.get(row), privacy, plan, LORA, seed))
        deque(run.records(), maxlen=0)
        own = [run.start_clients((k,), run.state.server).params for k in range(4)]
        a, b = (ParamKey(name, "map") for name in "AB")
        products = [x[b][0].double() @ x[a][0].double() for x in own]
        energies.append(float(sum(LORA.scaling**2 * x.square().sum() for x in products)) / 4)
    taken = noise_on_outputs(WIDE, row, privacy, plan, LORA)
    assert taken.value in fl.theory.mean_band(np.array(energies) / 5)
    averaged = noise_on_outputs(WIDE, "fedlora", privacy, plan, LORA)
    assert taken.variance.linear == pytest.approx(4 * averaged.variance.linear)
    # In its own last round a client of FedSA-LoRA adds to the mean of A as one of FedLoRA does.
    copies = noise_on_outputs(WIDE, row, privacy, plan, LORA, copies=True)
    more = 1 + 3 / 4 if row == "fedsa-lora" else 1
    assert copies.variance.quadratic == pytest.approx(more * taken.variance.quadratic)
    with refused(f"^method='{row}': expected a row that sends B"):
        noise_on_outputs(WIDE, row, private("client"), plan, LORA)


@pytest.mark.parametrize(("sigma", "larger"), [(1.0, True), (0.01, False)])
def test_a_balanced_start_is_larger_and_the_model_the_same(sigma, larger):
    """A is c times as large in every tensor of the run, the scale c times less, also in the record
    that is saved: the bits of the same start and scale by hand. Where the amplification is small
    anyway c is 1.
    """
    privacy = private("client", sigma=sigma)
    c = make_config(tokens(), BALANCED, privacy, PLAN, LORA, 0).lora.start_scale
    assert c > 1.2 if larger else c == 1
    records, plain = (play(tokens(), row, privacy) for row in (BALANCED, "fedlora"))
    for layer, (a, _) in records[0].adapter.items():
        assert a == pytest.approx(c * plain[0].adapter[layer][0])
    assert require_source(records[-1])[1].scaling == pytest.approx(LORA.scaling / c)
    by_hand = fl.Lora(LORA.rank, LORA.alpha, start_scale=c)
    same_bits(records, play(tokens(), BALANCED.replace(balance=None), privacy, lora=by_hand))


def test_a_balanced_start_needs_a_known_amplification():
    """A scale beside a balance is refused too."""
    for row, why in (
        (methods.FLoRA, "does not leave A the mean"),
        (methods.ASLoRA, "chosen during the run"),
    ):
        with refused(f"^balance=0.5: expected None: .*{why}"):
            play(tokens(), row.replace(balance=0.5), private("example"))
    with refused(r"^start_scale=2: expected 1, since"):
        play(regression(), BALANCED, None, lora=fl.Lora(2, 3.0, start_scale=2))
