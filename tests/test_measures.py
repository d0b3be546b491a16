"""Measures by low-rank algebra against the full matrices that they avoid."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlora_lab import measures
from fedlora_lab.method import Global, Slot

OUT, IN, RANK = 7, 9, 2


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def factors(count, seed=0):
    return random(count, RANK, IN, seed=seed), random(count, OUT, RANK, seed=seed + 100)


def direct(before, after, clients, weights):
    """Norms of the deviation and of the mean product, from matrices of full size."""
    a, b = clients
    mean = (1 - weights.sum()) * before[1] @ before[0]
    for k, w in enumerate(weights):
        mean = mean + w * b[k] @ a[k]
    return float((after[1] @ after[0] - mean).norm()), float(mean.norm())


@settings(max_examples=50, deadline=None)
@given(clients=st.integers(1, 5), total=st.sampled_from([0.0, 0.4, 1.0, 1.7]), seed=st.integers(0, 999))
def test_deviation_is_that_of_the_matrices(clients, total, seed):
    """Also when weight is missing (drop-outs) or above one (Poisson participation)."""
    weights = random(clients, seed=seed).abs()
    weights = weights / weights.sum() * total
    a, b = factors(clients, seed)
    before, after = (random(RANK, IN, seed=7), random(OUT, RANK, seed=8)), (random(RANK, IN, seed=9), random(OUT, RANK))
    found = measures.deviation(before, after, (a, b), weights)
    norm, mean = direct(before, after, (a, b), weights)
    assert found.norm == pytest.approx(norm, rel=1e-9)
    assert found.mean == pytest.approx(mean, rel=1e-9)
    assert found.relative == pytest.approx(norm / mean, rel=1e-9)


def test_deviation_of_means_is_the_covariance():
    """Mean of products minus product of means is the weighted covariance of the factors."""
    a, b = factors(4)
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    mean_a, mean_b = (torch.einsum("k,kij->ij", weights, x) for x in (a, b))
    zero = (torch.zeros(RANK, IN), torch.zeros(OUT, RANK))
    found = measures.deviation(zero, (mean_a, mean_b), (a, b), weights)
    covariance = torch.einsum("k,kij,kjl->il", weights, b - mean_b, a - mean_a)
    assert found.norm == pytest.approx(float(covariance.norm()), rel=1e-9)


@pytest.mark.parametrize("equal", [1, 5])
def test_one_or_equal_clients_do_not_deviate(equal):
    a, b = factors(1)
    weights = torch.full((equal,), 1 / equal, dtype=torch.float64)
    everyone = (a.expand(equal, -1, -1), b.expand(equal, -1, -1))
    zero = (torch.zeros(RANK, IN), torch.zeros(OUT, RANK))
    assert measures.deviation(zero, (a[0], b[0]), everyone, weights).relative < 1e-14
    common = measures.deviation(zero, (a[0], b[0]), (a, b), weights)  # one row stands for all
    assert common.relative < 1e-14


@pytest.mark.parametrize("size", [1e-3, 1e-6, 1e-9, 1e-12])
def test_small_deviations_are_not_lost_in_squares(size):
    """Down to rounding itself, not to its square root."""
    a, b = factors(1)
    nudge = random(OUT, RANK, seed=5)
    zero = (torch.zeros(RANK, IN), torch.zeros(OUT, RANK))
    found = measures.deviation(zero, (a[0], b[0] + size * nudge), (a, b), torch.ones(1))
    expected = size * float((nudge @ a[0]).norm())
    assert found.norm == pytest.approx(expected, rel=1e-3)


def test_nothing_over_nothing_is_zero():
    assert measures.Deviation(0.0, 0.0).relative == 0
    assert measures.Deviation(1.0, 0.0).relative == math.inf
    assert measures.Deviation(1.0, 4.0).relative == 0.25


def test_norms_and_noise_terms_are_those_of_the_matrices():
    a, b, xi_a, xi_b = random(RANK, IN), random(OUT, RANK, seed=1), random(RANK, IN, seed=2), random(OUT, RANK, seed=3)
    assert measures.product_norm(b, a) == pytest.approx(float((b @ a).norm()))
    found = measures.noise_energies(a, b, xi_a, xi_b, 1.5)
    expected = {"noise_B": xi_b @ a, "noise_A": b @ xi_a, "noise_BA": xi_b @ xi_a}
    assert found == pytest.approx({name: 1.5**2 * float(x.square().sum()) for name, x in expected.items()})


def two_layers():
    tensors = {}
    for number, layer in enumerate(("one", "two")):
        tensors[Slot("A", layer)], tensors[Slot("B", layer)] = (
            random(RANK, IN, seed=number),
            random(OUT, RANK, seed=9 + number),
        )
    return Global(tensors)


def test_rows_of_a_round():
    """Scaled by alpha / r; the total is over all layers; the noise terms are of the factors without their noise."""
    before, after = two_layers(), Global({slot: 1.1 * x for slot, x in two_layers().tensors.items()})
    clients = {slot: x + 0.1 * random(3, *x.shape, seed=4) for slot, x in after.tensors.items()}
    noise, weights = {Slot("B", "one"): random(OUT, RANK, seed=6)}, torch.tensor([0.3, 0.3, 0.3])
    rows, total = measures.layer_rows(measures.Exchange(before, after, after, clients, weights, noise), 2.0)
    table = {(layer, measure): value for layer, measure, value in rows}
    squares = torch.zeros(2, dtype=torch.float64)
    for layer in ("one", "two"):
        a, b = Slot("A", layer), Slot("B", layer)
        pairs = [(x.tensors[a], x.tensors[b]) for x in (before, after)]
        norm, mean = direct(pairs[0], pairs[1], (clients[a], clients[b]), weights.double())
        squares += torch.tensor([norm**2, mean**2])
        assert table[layer, "deviation"] == pytest.approx(2 * norm)
        assert table[layer, "deviation_relative"] == pytest.approx(norm / mean)
        assert table[layer, "norm"] == pytest.approx(2 * float((pairs[1][1] @ pairs[1][0]).norm()))
    assert total == pytest.approx(float((squares[0] / squares[1]).sqrt()))
    xi = noise[Slot("B", "one")]
    assert table["one", "noise_B"] == pytest.approx(4 * float((xi @ after.tensors[Slot("A", "one")]).square().sum()))
    assert table["one", "noise_A"] == table["one", "noise_BA"] == table["two", "noise_B"] == 0


def test_what_nobody_may_see_is_not_in_the_rows():
    state = two_layers()
    rows, total = measures.layer_rows(measures.Exchange(state, state, state, None, torch.ones(1), None), 1.0)
    assert math.isnan(total)
    assert {measure for _, measure, _ in rows} == {"norm"}
    frame = measures.frame_of(rows)
    assert list(frame.columns) == ["layer", "measure", "value"]
    assert len(frame) == 2
