"""The amplification number against simulated runs, and the start that is chosen by it."""

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
from toy_tasks import LORA, PLAN, gap, play, private, regression, same_bits, tokens

import fedlora_lab as fl
from fedlora_lab import methods
from fedlora_lab.federated.make_spec import make_run_spec
from fedlora_lab.federated.records import require_source
from fedlora_lab.flower import Participant

BALANCED = methods.BalancedLoRA


WIDE = {"examples": 6, "d_in": 100, "d_out": 5, "rank": 2, "test": 4, "heterogeneity": 0.0}
SIGMA = 1e4
RUNS = 12


@cache
def wide(clients: int) -> Any:
    return fl.tasks.regression(clients=clients, **WIDE)


def without_signal(unit: str, size: float = 0.3, **fields: Any) -> fl.Privacy:
    """Noise of size sigma C, and a clip far below it: what is released is noise."""
    return private(unit, **{"sigma": SIGMA, "clip": size / SIGMA, **fields})


TURNS = {"participation": 0.6, "dropout": 0.2}
RATES = {"lr": {"A": 0.3, "B": 0.1}, "lr_decay": 0.8}
CASES: dict[str, Any] = {
    "rates, decay, absence, loss": ("fedlora", "example", {**TURNS, **RATES}, {}, None),
    "momentum": ("fedlora", "example", {"optimizer": fl.SGD(momentum=0.7)}, {}, None),
    "turns in a round, filter": ("la-lora", "example", {"local_steps": 3}, {}, None),
    "a multiplier each, sizes": (
        *("fedlora", "example", {"weights": "size", "batch": None}),
        *({"sigma": (SIGMA, 2 * SIGMA, 0.0, 5 * SIGMA)}, None),
    ),
    "trusted server": ("rolora", "client", {"participation": 0.5, "server_lr": 0.5}, {}, None),
    "filter of an update": ("la-lora", "client", {}, {}, None),
    "sum of shares": ("fedlora", "client", TURNS, {"trust": "secagg", "honest": 2}, None),
    "every upload": ("fedlora", "client", TURNS, {"trust": "local"}, None),
    "unequal ranks": ("fedlora", "client", {}, {"trust": "local"}, (1, 2, 4, 3)),
    "quantised on the way down": ("fedlpp", "client", {}, {}, None),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_amplification_is_what_a_run_measures(case):
    """Runs without signal: the energy by which A moved over that of its start, on the mean over
    seeds; the record's row is that of `fl.amplification`. B takes up what the closed form says.
    """
    slug, unit, work, noise, ranks = CASES[case]
    fields: Any = {"rounds": 4, "local_steps": 2, "batch": 3, "lr": 0.2, **work}
    task, plan = wide(4), fl.Plan(**fields)
    parts = task, slug, without_signal(unit, **noise), plan
    lora = fl.Lora(4, 4.0, ranks=ranks, start_scale=1.5)
    found = fl.amplification(*parts, lora)
    (layer,), moved, products, energies = found.layers, [], [], {}
    for seed in range(RUNS):
        first, *_, last = fl.run(*parts, lora=lora, seed=seed, evaluate_every=4)
        (a0, b0), (a1, b1) = (record.adapter["map"] for record in (first, last))
        products.append(lora.scaling**2 * float((b1 @ a1).double().square().sum()))
        energies = {name: x for _, name, x in last.rows if name.startswith("accumulated")}
        moved.append([float((x - y).double().square().sum()) for x, y in ((a1, a0), (b1, b0))])
        assert ("map", "amplification", layer.amplification) in last.rows
    rank, c = lora.rank, lora.start_scale
    in_a, in_b = (np.array(x) for x in zip(*moved, strict=True))
    assert layer.amplification in fl.theory.mean_band(in_a / (c**2 * rank / 3))
    assert layer.std_B**2 * 5 * rank in fl.theory.mean_band(in_b)
    assert found.unknown is None and found.mean == pytest.approx(layer.amplification)
    assert sum(energies.values()) in fl.theory.mean_band(np.array(products))
    quadratic = energies["accumulated_quadratic"] / energies["accumulated_linear"]
    assert quadratic == pytest.approx(layer.amplification)


def test_where_the_noise_of_a_factor_is_not_known_its_energy_is_not_stated():
    """Linear noise is that of B, the square of both; a residual takes up noise of its own."""

    def stated(row: Any, **work: Any) -> list[bool]:
        last = play(tokens(), row, private("example"), PLAN.replace(**work))[-1]
        values = {name: x for _, name, x in last.rows if name.startswith("accumulated")}
        return [not math.isnan(values[f"accumulated_{part}"]) for part in ("linear", "quadratic")]

    assert stated("fedlora") == stated("ffa-lora") == [True, True]
    assert stated("fedsa-lora") == [False, False] and stated("fedex-lora") == [False, False]
    assert stated("fed-sb") == stated("fedlora", optimizer="adamw") == [False, False]


def test_a_record_says_what_a_has_taken_up_so_far():
    """It grows with the rounds in which A moves; 0 where A rests and without noise; NaN with the
    reason where no closed form holds, and the run is not disturbed.
    """

    def seen(row: Any, privacy: Any, **work: Any) -> tuple[list[float], str | None]:
        records = play(tokens(), row, privacy, PLAN.replace(rounds=4, **work))
        rows = [[v for _, name, v in r.rows if name == "amplification"] for r in records]
        assert all(len(values) == 2 for values in rows)  # of two layers
        return [values[0] for values in rows], records[-1].unmeasured.get("amplification")

    noisy = private("example")
    values, why = seen("rolora", noisy)
    assert values[0] == values[1] == 0 < values[2] == values[3] < values[4] and why is None
    assert values[4] == pytest.approx(2 * values[2])
    for row, privacy in (("ffa-lora", noisy), ("fed-sb", noisy), ("fedlora", None)):
        assert seen(row, privacy) == ([0.0] * 5, None)
    for row, work, reason in (
        ("flora", {}, "Merge"),
        ("fedlora", {"optimizer": "adamw"}, "adamw: "),
    ):
        values, why = seen(row, noisy, **work)
        assert all(map(math.isnan, values)) and str(why).startswith(reason)


def scale(row: fl.Method, privacy: Any, plan: fl.Plan = PLAN, lora: Any = LORA) -> float:
    return make_run_spec(tokens(), row, privacy, plan, lora, 0).lora.start_scale


def test_a_balanced_start_that_need_not_be_larger_is_the_row_itself():
    """Bit for bit, without privacy and where the amplification is small anyway."""
    for privacy in (None, private("example", sigma=0.01)):
        same_bits(
            play(tokens("head"), BALANCED.replace(name="FedLoRA"), privacy),
            play(tokens("head"), "fedlora", privacy),
        )


def test_a_balanced_start_is_larger_and_the_model_the_same():
    """A is c times as large in every tensor of the run, the scale c times less, also in the record
    that is saved; the same start and scale by hand give the same bits.
    """
    privacy = private("client")
    c = scale(BALANCED, privacy)
    assert c > 1.2
    records, plain = (play(tokens(), row, privacy) for row in (BALANCED, "fedlora"))
    for layer, (a, _) in records[0].adapter.items():
        assert a == pytest.approx(c * plain[0].adapter[layer][0])
    assert require_source(records[-1])[1].scaling == pytest.approx(LORA.scaling / c)
    assert gap(records[-1], plain[-1]) > 1e-3
    by_hand = fl.Lora(LORA.rank, LORA.alpha, start_scale=c)
    same_bits(records, play(tokens(), BALANCED.replace(balance=None), privacy, lora=by_hand))


def test_a_client_and_the_server_on_flower_settle_the_same_start():
    privacy = private("client", trust="local")
    found = Participant.of(tokens(), "balanced-lora", privacy, PLAN, lora=LORA).spec.lora
    assert found.start_scale == scale(BALANCED, privacy) > 1


@pytest.mark.parametrize(
    ("row", "plan", "why"),
    [
        (methods.FLoRA, PLAN, "does not leave A the mean"),
        (methods.DEeR, PLAN, "shapes the noise on A"),
        (methods.ASLoRA, PLAN, "chosen during the run"),
        (methods.FedLoRA, PLAN.replace(optimizer="adamw"), "adamw"),
        (methods.FedLoRA, PLAN.replace(server_optimizer="adam"), "server"),
    ],
    ids=lambda value: getattr(value, "slug", None),
)
def test_a_balanced_start_needs_a_known_amplification(row, plan, why):
    with pytest.raises(ValueError, match=f"^balance=0.5: expected None: .*{why}"):
        play(tokens(), row.replace(balance=0.5), private("example"), plan)


def test_who_chooses_the_start_is_one():
    """A scale beside a balance, or a rule that would write A as small as ever, is refused."""
    for row in (BALANCED, methods.FLoRA):
        with pytest.raises(ValueError, match=r"^start_scale=2: expected 1, since"):
            play(regression(), row, None, lora=fl.Lora(2, 3.0, start_scale=2))
    with pytest.raises(ValueError, match=r"^balance=0.5: expected None, since start"):
        methods.FedSB.replace(balance=0.5)
