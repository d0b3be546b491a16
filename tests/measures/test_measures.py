"""Measures by low-rank algebra against the full matrices that they avoid."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import linregress, t
from toy_tasks import LORA, PLAN, play, same_bits, tokens

import fedlora_lab as fl
from fedlora_lab import measures
from fedlora_lab.lora.peft import adapt
from fedlora_lab.methods.state import ParamKey, ServerState

OUT, IN, RANK = 7, 9, 2
ZERO = torch.zeros(RANK, IN), torch.zeros(OUT, RANK)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def factors(count, seed=0):
    return random(count, RANK, IN, seed=seed), random(count, OUT, RANK, seed=seed + 100)


def direct(before, after, clients, weights, added: torch.Tensor | float = 0.0):
    """Norms of the deviation and of the mean product, from matrices of full size."""
    a, b = (x.double() for x in clients)
    mean = (1 - weights.sum()) * before[1].double() @ before[0].double()
    mean = mean + torch.einsum("k,kij,kjl->il", weights.double(), b, a)
    server = after[1].double() @ after[0].double() + added
    return float((server - mean).norm()), float(mean.norm())


# ---- deviation


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.sampled_from([0.0, 0.4, 1.0, 1.7]), st.integers(0, 999))
def test_deviation_is_that_of_the_matrices(clients, total, seed):
    """Also when weight is missing (drop-outs) or above one (Poisson participation)."""
    weights = random(clients, seed=seed).abs()
    weights = weights / weights.sum() * total
    own = factors(clients, seed)
    (a, b), (new_a, new_b) = ((x[0] for x in factors(1, number)) for number in (7, 9))
    before, after = (a, b), (new_a, new_b)
    found = measures.product_deviation(before, after, own, weights)
    norm, mean = direct(before, after, own, weights)
    assert (*found, found.relative) == pytest.approx((norm, mean, norm / mean), rel=1e-9)
    added = random(OUT, IN, seed=seed)
    with_residual = measures.product_deviation(before, after, own, weights, added)
    assert with_residual == pytest.approx(direct(before, after, own, weights, added), rel=1e-9)


@pytest.mark.parametrize("equal", [1, 5])
def test_one_or_equal_clients_do_not_deviate(equal):
    a, b = factors(1)
    weights = torch.full((equal,), 1 / equal, dtype=torch.float64)
    everyone = a.expand(equal, -1, -1), b.expand(equal, -1, -1)
    for clients in (everyone, (a, b)):  # one row stands for all
        assert measures.product_deviation(ZERO, (a[0], b[0]), clients, weights).relative < 1e-14


@pytest.mark.parametrize("size", [1e-3, 1e-6, 1e-9, 1e-12])
def test_small_deviations_are_not_lost_in_squares(size):
    """Down to rounding itself, not to its square root: of the server, and of nearly equal clients,
    where it is of the order of their spread squared.
    """
    a, b = factors(1)
    nudge = random(OUT, RANK, seed=5)
    found = measures.product_deviation(ZERO, (a[0], b[0] + size * nudge), (a, b), torch.ones(1))
    assert found.norm == pytest.approx(size * float((nudge @ a[0]).norm()), rel=1e-3)
    if size >= 1e-6:
        gaps = factors(4, seed=2)
        own = a + size * gaps[0], b + size * gaps[1]
        after, weights = (own[0].mean(0), own[1].mean(0)), torch.full((4,), 0.25).double()
        found = measures.product_deviation((a[0], b[0]), after, own, weights)
        exact = torch.einsum("kij,kjl->il", own[1] - after[1], own[0] - after[0]) / 4
        assert found.norm == pytest.approx(float(exact.norm()), rel=1e-2)


def test_a_cancelling_deviation_is_found_to_be_zero():
    """Four sign pairs: every client is far from the mean, the sum over clients is nothing."""
    b, a = (
        torch.tensor(part, dtype=torch.float64).reshape(4, 1, 1)
        for part in ([1, 1, -1, -1], [1, -1, 1, -1])
    )
    weights = torch.full((4,), 0.25, dtype=torch.float64)
    found = measures.product_deviation((a[0], b[0]), (a.mean(0), b.mean(0)), (a, b), weights)
    assert found.norm < 1e-15
    cases = {(0.0, 0.0): 0, (1.0, 0.0): math.inf, (1.0, 4.0): 0.25}
    assert {case: measures.Deviation(*case).relative for case in cases} == cases


def large(size, rank=4, clients=100, spread=0.1):
    """A square layer with 100 clients that moved a little from one server."""
    a, b = random(rank, size).float(), 0.1 * random(size, rank, seed=1).float()
    gaps = random(clients, rank, size, seed=2), random(clients, size, rank, seed=3)
    own = a + spread * gaps[0].float(), b + spread * gaps[1].float()
    weights = torch.full((clients,), 1 / clients, dtype=torch.float64)
    return (a, b), (own[0].mean(0), own[1].mean(0)), own, weights


def test_a_large_layer_is_exact():
    case = large(size=500)
    assert measures.product_deviation(*case) == pytest.approx(direct(*case), rel=1e-6)


# ---- noise, drift, and the rows of a round


def test_norms_and_noise_terms_are_those_of_the_matrices():
    a, xi_a = (random(RANK, IN, seed=seed) for seed in (0, 2))
    b, xi_b = (random(OUT, RANK, seed=seed) for seed in (1, 3))
    assert measures.product_norm(b, a) == pytest.approx(float((b @ a).norm()))
    terms = {"noise_B": xi_b @ a, "noise_A": b @ xi_a, "noise_BA": xi_b @ xi_a}
    expected = {name: 1.5**2 * float(x.square().sum()) for name, x in terms.items()}
    assert measures.noise_energies(a, b, xi_a, xi_b, 1.5) == pytest.approx(expected)


def test_drift():
    (a, b), own = (x[0] for x in factors(1)), factors(4, seed=2)
    own[0][0], own[1][0] = a, b
    found = measures.drift((a, b), own)
    exact = torch.stack([y @ x - b @ a for x, y in zip(*own, strict=True)]).flatten(1).norm(dim=1)
    torch.testing.assert_close(found, exact)
    assert found[0] == 0
    shared = torch.stack([(y - b) @ a for y in own[1]]).flatten(1).norm(dim=1)
    torch.testing.assert_close(measures.drift((a, b), (a[None], own[1])), shared)


def test_signal_to_noise():
    signal, noise = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 2.0])
    both, alone = (signal + noise, noise), (signal, signal * 0)
    assert measures.signal_to_noise([both]) == pytest.approx(1.5)
    assert measures.signal_to_noise([both, alone]) == pytest.approx(18**0.5 / 2)
    assert measures.signal_to_noise([alone]) == math.inf
    assert measures.signal_to_noise([(noise, noise)]) == 0


def two_layers():
    tensors = {}
    for number, layer in enumerate(("one", "two")):
        tensors[ParamKey("A", layer)] = random(RANK, IN, seed=number)
        tensors[ParamKey("B", layer)] = random(OUT, RANK, seed=9 + number)
    return ServerState(tensors)


def test_rows_of_a_round_are_those_by_hand():
    """Scaled by alpha / r; the total is over all layers; the noise terms are of the factors without
    their noise.
    """
    before = two_layers()
    after = ServerState({key: 1.1 * x for key, x in before.tensors.items()})
    clients = {key: x + 0.1 * random(3, *x.shape, seed=4) for key, x in after.tensors.items()}
    xi, weights = random(OUT, RANK, seed=6), torch.tensor([0.3, 0.3, 0.3])
    noise = {ParamKey("B", "one"): xi}
    exchange = measures.Exchange(before, after, after, clients, weights, noise)
    rows, total = measures.layer_rows(exchange, 2.0)
    table, squares = {row[:2]: row[2] for row in rows}, np.zeros(2)
    for layer in ("one", "two"):
        a, b = ParamKey("A", layer), ParamKey("B", layer)
        pairs = [(x.tensors[a], x.tensors[b]) for x in (before, after)]
        norm, mean = direct(pairs[0], pairs[1], (clients[a], clients[b]), weights)
        squares += norm**2, mean**2
        assert table[layer, "deviation"] == pytest.approx(2 * norm)
        assert table[layer, "deviation_relative"] == pytest.approx(norm / mean)
        assert table[layer, "norm"] == pytest.approx(2 * float((pairs[1][1] @ pairs[1][0]).norm()))
    assert total == pytest.approx(float(np.sqrt(squares[0] / squares[1])))
    energy = 4 * float((xi @ after.tensors[ParamKey("A", "one")]).square().sum())
    assert table["one", "noise_B"] == pytest.approx(energy)
    assert table["one", "noise_A"] == table["one", "noise_BA"] == table["two", "noise_B"] == 0


def test_what_nobody_may_see_is_not_in_the_rows():
    state = two_layers()
    exchange = measures.Exchange(state, state, state, None, torch.ones(1), None)
    rows, total = measures.layer_rows(exchange, 1.0)
    frame = measures.frame_of(rows)
    assert math.isnan(total) and list(frame.columns) == ["layer", "measure", "value"]
    assert list(frame["measure"]) == ["norm", "norm"]


def test_recording_changes_nothing():
    """And what is called A is A: the inputs and the record name the sides alike."""
    recorder, rounds = measures.record_aggregation(fl.methods.FedLoRA)
    plain, kept = play(tokens(), "fedlora", None), play(tokens(), recorder, None)
    same_bits(plain, kept)
    assert len(rounds) == PLAN.rounds
    layer, last = next(iter(plain[0].adapter)), rounds[1]
    pairs = zip(last.server(layer), plain[1].adapter[layer], strict=True)
    assert all(torch.equal(mine, theirs) for mine, theirs in pairs)
    given = last.server(layer), plain[2].adapter[layer], last.factors(layer), last.weights
    row = plain[2].layers.query("layer == @layer and measure == 'deviation'")["value"].item()
    assert LORA.scaling * measures.product_deviation(*given).norm == pytest.approx(row)


def test_a_factor_that_rests_is_that_of_the_server():
    recorder, rounds = measures.record_aggregation(fl.methods.FFA)
    play(tokens(), recorder, None)
    a, b = rounds[0].factors("inner")
    assert len(a) == 1 and len(b) == len(tokens().sizes)
    assert torch.equal(a[0], rounds[0].server("inner")[0])


def test_alignment_is_that_of_the_products():
    """Formed in full: W's moves over both layers, the cosine of each pair of clients."""
    recorder, rounds = measures.record_aggregation(fl.methods.FedLoRA)
    play(tokens(), recorder, None)
    inputs, moves = rounds[1], []
    for layer in inputs.state.layers:
        (a, b), (a_k, b_k) = inputs.server(layer), inputs.factors(layer)
        moves.append((b_k @ a_k - b @ a).flatten(1).double())
    unit = torch.nn.functional.normalize(torch.cat(moves, 1), dim=1)
    pairs = [float(x @ y) for x, y in itertools.combinations(unit, 2)]
    assert measures.alignment(inputs) == pytest.approx(np.mean(pairs), rel=1e-4)


def test_gradients_agree_unless_the_broadcast_is_coarse():
    """Where nothing is lost on the way down the gradients are the same, and worse at fewer bits."""
    found = []
    for width in (None, 4, 2):
        row = fl.methods.FedLPP
        if width is not None:
            row = row.replace(broadcast=fl.methods.quantization.normal_float(width=width, block=64))
        recorder, rounds = measures.record_aggregation(row if width else fl.methods.FedLoRA)
        play(tokens(), recorder, None)
        found.append(measures.gradient_agreement(tokens(), LORA, rounds[-1]))
    assert found[0] == pytest.approx(1, abs=1e-6) and found[0] > found[1] > found[2] > 0


# ---- curvature and gradients of a layer


@pytest.fixture(scope="module")
def record():
    return play(tokens(), "fedlora", None)[-1]


def hessian(task, record, sides):
    """The Hessian of the mean test loss in all coordinates, formed in full."""
    _, lora, state = record.source
    adapted = adapt(task.model, task.targets, task.head, lora)
    keys = [key for key in adapted.places if key.side in sides]
    sizes = [state.tensors[key].numel() for key in keys]

    def loss(flat):
        parts = dict(zip(keys, flat.split(sizes), strict=True))
        for key in adapted.places:
            tensor = state.tensors[key]
            adapted.set_tensor(key, parts[key].view_as(tensor) if key in parts else tensor)
        return task.loss(task.forward(adapted.model, task.test[0]), task.test[1]).mean()

    point = torch.cat([state.tensors[key].flatten() for key in keys])
    return torch.autograd.functional.hessian(loss, point)


@pytest.mark.parametrize("sides", ["A", "B", "AB"])
def test_flatness(record, sides):
    full = torch.linalg.eigvalsh(hessian(tokens(), record, sides))
    found = measures.flatness(tokens(), record, sides=sides, steps=200, tolerance=1e-10)
    assert found.top == pytest.approx(float(full[-1]), rel=1e-6)
    early = measures.flatness(tokens(), record, sides=sides, steps=4)
    assert early.steps <= 4
    assert float((full - early.top).abs().min()) <= early.residual + 1e-9
    with pytest.raises(ValueError, match=r"^sides='C': expected"):
        measures.flatness(tokens(), record, sides="C")


def test_flatness_of_a_transformer():
    """Fused attention has no second derivative: the measure must not run into it."""
    task = fl.tasks.digits(clients=2, seed=1)
    start = next(fl.run(task, "fedlora", None, fl.Plan(rounds=0)))
    found = measures.flatness(task, start, (task.test[0][:4], task.test[1][:4]), steps=1)
    assert np.isfinite(found.top) and found.top > 0


def loss_after(task, changes, x, y):
    """The mean loss of the task's model with some weights changed."""
    weights = dict(task.model.named_parameters())
    weights |= {f"{name}.weight": weights[f"{name}.weight"] + c for name, c in changes.items()}
    return float(task.loss(torch.func.functional_call(task.model, weights, (x,)), y).mean())


def test_gradients_of_a_layer_obey_the_chain_rule(record):
    """The two identities, and W's own gradient against a finite difference."""
    task = tokens()
    for layer, (a, b) in record.adapter.items():
        found = measures.gradients(task, record, layer)
        torch.testing.assert_close(found.A, LORA.scaling * b.T @ found.W)
        torch.testing.assert_close(found.B, LORA.scaling * found.W @ a.T)
    slope = measures.gradients(task, next(iter(play(task, "fedlora", None))), "outer").W
    nudge = 1e-6 * random(*slope.shape)
    up, down = (loss_after(task, {"outer": sign * nudge}, *task.test) for sign in (1, -1))
    assert up - down == pytest.approx(2 * float((slope * nudge).sum()), rel=1e-5)
    with pytest.raises(ValueError, match=r"^layer='none': expected one of 'inner', 'outer'"):
        measures.gradients(task, record, "none")


def test_full_updates_lower_the_loss_and_leave_the_model():
    """The loss falls by the change, which has the layers' shapes; the model keeps its bits."""
    task = tokens()
    before = {name: p.clone() for name, p in task.model.named_parameters()}
    found = measures.full_updates(task, steps=40, lr=0.5, batch=8)
    assert list(found) == ["inner", "outer"]
    assert all(torch.equal(before[name], p) for name, p in task.model.named_parameters())
    data = task.pooled().clients[0]
    assert loss_after(task, found, *data) < 0.95 * loss_after(task, {}, *data)


def test_a_line_and_where_it_is_zero():
    """Slope as SciPy's; the interval of the zero holds the truth in 95 % of draws; an even line has
    no zero that one could name."""
    rng, x = np.random.default_rng(0), np.linspace(0, 3, 12)
    y = 0.4 - 0.5 * x + 0.2 * rng.standard_normal((1000, len(x)))
    found, other = measures.fit_line(x, y[0]), linregress(x, y[0])
    assert found.slope == pytest.approx(other.slope)
    assert found.half_slope == pytest.approx(t.ppf(0.975, 10) * other.stderr)
    assert found.at(0)[0] == pytest.approx(other.intercept)
    assert found.at(0)[1] == pytest.approx(t.ppf(0.975, 10) * other.intercept_stderr)
    zeros = np.array([measures.fit_line(x, row).zero for row in y])
    assert np.mean((zeros[:, 1] < 0.8) & (zeros[:, 2] > 0.8)) == pytest.approx(0.95, abs=0.02)
    assert np.isnan(measures.fit_line(x, rng.standard_normal(12)).zero).all()
    with pytest.raises(ValueError, match=r"^x="):
        measures.fit_line([1, 1, 1], [0, 1, 2])
