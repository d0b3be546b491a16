"""Measures by low-rank algebra against the full matrices that they avoid."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_tasks import LORA, PLAN, play, same_bits, tokens

import fedlora_lab as fl
from fedlora_lab import measures
from fedlora_lab.lora.adapters import adapt
from fedlora_lab.methods.state import ParamKey, ServerState

OUT = 7
IN = 9
RANK = 2
ZERO = torch.zeros(RANK, IN), torch.zeros(OUT, RANK)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def factors(count, seed=0):
    return random(count, RANK, IN, seed=seed), random(count, OUT, RANK, seed=seed + 100)


# ---- deviation


def direct(before, after, clients, weights, added: torch.Tensor | float = 0.0):
    """Norms of the deviation and of the mean product, client by client."""
    mean = (1 - weights.sum()) * before[1] @ before[0]
    mean = mean + sum(w * b @ a for w, a, b in zip(weights, *clients, strict=True))
    return float((after[1] @ after[0] + added - mean).norm()), float(mean.norm())


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.sampled_from([0.0, 0.4, 1.0, 1.7]), st.integers(0, 999))
def test_deviation_is_that_of_the_matrices(clients, total, seed):
    """Also when weight is missing (drop-outs) or above one (Poisson participation), and with a
    residual.
    """
    weights = random(clients, seed=seed).abs()
    weights = weights / weights.sum() * total
    pairs = factors(clients, seed)
    before, after = ((a[0], b[0]) for a, b in (factors(1, 7), factors(1, 9)))
    for added in (None, random(OUT, IN, seed=seed)):
        measured = measures.product_deviation(before, after, pairs, weights, added)
        assert measured == pytest.approx(
            direct(before, after, pairs, weights, 0.0 if added is None else added), rel=1e-9
        )


@pytest.mark.parametrize("size", [0.0, 1e-6, 1e-12])
def test_small_deviations_are_not_lost_in_squares(size):
    """Five equal clients, all rows or one row that stands for all; none where the server agrees."""
    a, b = factors(1)
    nudge = random(OUT, RANK, seed=5)
    exact = size * float((nudge @ a[0]).norm())
    weights = torch.full((5,), 0.2, dtype=torch.float64)
    for clients in ((a.expand(5, -1, -1), b.expand(5, -1, -1)), (a, b)):
        server = a[0], b[0] + size * nudge
        measured = measures.product_deviation(ZERO, server, clients, weights)
        assert measured.norm == pytest.approx(exact, rel=1e-3, abs=1e-14)


# ---- noise, drift, and the rows of a round


def test_drift():
    a, b = (x[0] for x in factors(1))
    pairs = factors(4, seed=2)
    for first in (pairs[0], a[None]):  # one row stands for all
        exact = [float((y @ x - b @ a).norm()) for x, y in zip(first.expand(4, -1, -1), pairs[1])]
        assert measures.drift((a, b), (first, pairs[1])).tolist() == pytest.approx(exact)


def test_signal_to_noise():
    signal = torch.tensor([3.0, 0.0])
    noise = torch.tensor([0.0, 2.0])
    both = (signal + noise, noise)
    alone = (signal, signal * 0)
    assert measures.signal_to_noise([both]) == pytest.approx(1.5)
    assert measures.signal_to_noise([both, alone]) == pytest.approx(18**0.5 / 2)
    assert measures.signal_to_noise([alone]) == math.inf
    assert measures.signal_to_noise([(noise, noise)]) == 0


def test_rows_of_a_round_are_those_by_hand():
    """Scaled by alpha / r; the total is over all layers; the noise terms are of the factors without
    their noise.
    """
    shapes = {"A": (RANK, IN), "B": (OUT, RANK)}
    keys = [ParamKey(factor, layer) for layer in ("one", "two") for factor in shapes]
    before = ServerState({key: random(*shapes[key[0]], seed=k) for k, key in enumerate(keys)})
    after = ServerState({key: 1.1 * x for key, x in before.tensors.items()})
    clients = {key: x + 0.1 * random(3, *x.shape, seed=4) for key, x in after.tensors.items()}
    weights = torch.full((3,), 0.3, dtype=torch.float64)
    xi = {key: random(*shapes[key[0]], seed=6) for key in keys[:2]}
    exchange = measures.Exchange(before, after, after, clients, weights, xi)
    rows, total = measures.layer_rows(exchange, 2.0)
    table = {row[:2]: row[2] for row in rows}
    squares = np.zeros(2)
    for a, b in (keys[:2], keys[2:]):
        old, new = ((x.tensors[a], x.tensors[b]) for x in (before, after))
        norm, mean = direct(old, new, (clients[a], clients[b]), weights)
        squares += norm**2, mean**2
        assert table[a.layer, "deviation"] == pytest.approx(2 * norm)
        assert table[a.layer, "deviation_relative"] == pytest.approx(norm / mean)
        assert table[a.layer, "norm"] == pytest.approx(2 * float((new[1] @ new[0]).norm()))
    assert total == pytest.approx(float(np.sqrt(squares[0] / squares[1])))
    a, b = keys[:2]
    clean = {key: after.tensors[key] - xi[key] for key in (a, b)}
    terms = {"noise_B": xi[b] @ clean[a], "noise_A": clean[b] @ xi[a], "noise_BA": xi[b] @ xi[a]}
    for name, part in terms.items():
        assert table["one", name] == pytest.approx(4 * float(part.square().sum()))
        assert table["two", name] == 0


def test_recording_changes_nothing():
    """And what is called A is A: the inputs and the record name the sides alike."""
    recorder, rounds = measures.record_aggregation(fl.methods.FedLoRA)
    plain = play(tokens(), "fedlora", None)
    recorded = play(tokens(), recorder, None)
    same_bits(plain, recorded)
    assert len(rounds) == PLAN.rounds
    layer = next(iter(plain[0].adapter))
    last = rounds[1]
    assert all(map(torch.equal, last.server(layer), plain[1].adapter[layer]))
    round_of_layer = last.server(layer), plain[2].adapter[layer], last.factors(layer), last.weights
    row = plain[2].layers.query("layer == @layer and measure == 'deviation'")["value"].item()
    assert LORA.scaling * measures.product_deviation(*round_of_layer).norm == pytest.approx(row)


def test_alignment_is_that_of_the_products():
    """Formed in full: W's moves over both layers, the cosine of each pair of clients."""
    recorder, rounds = measures.record_aggregation(fl.methods.FedLoRA)
    play(tokens(), recorder, None)
    inputs = rounds[1]
    moves = []
    for layer in inputs.state.layers:
        a, b = inputs.server(layer)
        a_k, b_k = inputs.factors(layer)
        moves.append((b_k @ a_k - b @ a).flatten(1).double())
    unit = torch.nn.functional.normalize(torch.cat(moves, 1), dim=1)
    pairs = [float(x @ y) for x, y in itertools.combinations(unit, 2)]
    assert measures.alignment(inputs) == pytest.approx(np.mean(pairs), rel=1e-4)


# ---- curvature and gradients of a layer


@pytest.fixture(scope="module")
def record():
    return play(tokens(), "fedlora", None)[-1]


def test_flatness(record):
    """The top of the Hessian of the mean test loss in all coordinates, formed in full."""
    task = tokens()
    _, lora, state = record.source
    adapted = adapt(task.model, task.targets, task.head, lora)
    sizes = [state.tensors[key].numel() for key in adapted.places]

    def loss(flat):
        for key, part in zip(adapted.places, flat.split(sizes), strict=True):
            adapted.set_tensor(key, part.view_as(state.tensors[key]))
        return task.loss(task.forward(adapted.model, task.test[0]), task.test[1]).mean()

    point = torch.cat([state.tensors[key].flatten() for key in adapted.places])
    full = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, point))
    assert measures.flatness(task, record) == pytest.approx(float(full[-1]), rel=1e-3)


def test_flatness_of_a_transformer():
    """Fused attention has no second derivative: the measure must not run into it."""
    task = fl.tasks.digits(clients=2, seed=1)
    start = next(fl.run(task, "fedlora", None, fl.Plan(rounds=0)))
    assert measures.flatness(task, start, (task.test[0][:4], task.test[1][:4])) > 0


def loss_after(task, changes, x, y):
    """The mean loss of the task's model with some weights changed."""
    weights = dict(task.model.named_parameters())
    weights |= {f"{name}.weight": weights[f"{name}.weight"] + c for name, c in changes.items()}
    return float(task.loss(torch.func.functional_call(task.model, weights, (x,)), y).mean())


def test_gradients_of_a_layer_obey_the_chain_rule(record):
    """The two identities, and W's own gradient against a finite difference."""
    task = tokens()
    for layer, (a, b) in record.adapter.items():
        slopes = measures.gradients(task, record, layer)
        torch.testing.assert_close(slopes.A, LORA.scaling * b.T @ slopes.W)
        torch.testing.assert_close(slopes.B, LORA.scaling * slopes.W @ a.T)
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
    updates = measures.full_updates(task, steps=40, lr=0.5, batch=8)
    assert list(updates) == ["inner", "outer"]
    assert all(torch.equal(before[name], p) for name, p in task.model.named_parameters())
    data = task.pooled().clients[0]
    assert loss_after(task, updates, *data) < 0.95 * loss_after(task, {}, *data)
