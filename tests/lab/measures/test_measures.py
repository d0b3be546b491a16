"""Measures by low-rank algebra against the full matrices that they avoid."""

import numpy as np
import pytest
import torch
from toy_tasks import LORA, PLAN, play, random, same_bits, tokens

import fedlora_lab as fl
from fedlora_lab import measures
from fedlora_lab.methods.state import ParamKey, ServerState
from fedlora_lab.tasks.task import concatenate

OUT = 7
IN = 9
RANK = 2


def factors(count, seed=0):
    return random(count, RANK, IN, seed=seed), random(count, OUT, RANK, seed=seed + 100)


# ---- deviation


def direct(before, after, clients, weights):
    """Norms of the deviation and of the mean product, client by client."""
    mean = (1 - weights.sum()) * before[1] @ before[0]
    mean += torch.einsum("k,kri,kor->oi", weights, *clients)
    return float((after[1] @ after[0] - mean).norm()), float(mean.norm())


# ---- noise, and the rows of a round


def by_key(A, B):
    """The factors of two layers by their keys."""
    return {ParamKey(name, k): x[int(k)] for name, x in (("A", A), ("B", B)) for k in "01"}


def test_rows_of_a_round_are_those_by_hand():
    """Scaled by alpha / r; the total is over all layers; the noise terms are of the factors without
    their noise, which only the first layer has.
    """
    old_A, old_B = factors(2)
    A, B = factors(2, seed=1)
    clients = random(2, 3, RANK, IN), random(2, 3, OUT, RANK)
    weights = torch.full((3,), 0.3, dtype=torch.float64)
    xi_A, xi_B = (x[0] for x in factors(1, seed=2))
    noise = {ParamKey("A", "0"): xi_A, ParamKey("B", "0"): xi_B}
    before = ServerState(by_key(old_A, old_B))
    after = ServerState(by_key(A, B))
    seen = measures.Exchange(before, after, after, by_key(*clients), weights, noise)
    rows, total = measures.layer_rows(seen, 2.0)
    table = {(layer, measure): value for layer, measure, value in rows}
    clean_A = A[0] - xi_A
    clean_B = B[0] - xi_B
    terms = {"noise_B": xi_B @ clean_A, "noise_A": clean_B @ xi_A, "noise_BA": xi_B @ xi_A}
    for name, term in terms.items():
        assert table["0", name] == pytest.approx(4 * float(term.square().sum()))
        assert table["1", name] == 0
    gaps = []
    for i, layer in enumerate("01"):
        pairs = [x[i] for x in clients]
        gaps.append(direct((old_A[i], old_B[i]), (A[i], B[i]), pairs, weights))
        norm, mean = gaps[-1]
        assert table[layer, "norm"] == pytest.approx(2 * float((B[i] @ A[i]).norm()))
        assert table[layer, "deviation"] == pytest.approx(2 * norm)
        assert table[layer, "deviation_relative"] == pytest.approx(norm / mean)
    norm, mean = np.linalg.norm(gaps, axis=0)
    assert total == pytest.approx(norm / mean)


def test_recording_changes_nothing():
    """Nor does whoever writes into what it keeps."""
    for slug in ("ravan", "as-lora", "fedlora"):
        recorder, rounds = measures.record_aggregation(fl.methods.get(slug))
        records = play(tokens(), slug, None)
        same_bits(records, play(tokens(), recorder, None))
        recorder, inputs = measures.record_aggregation(fl.methods.get(slug))
        spoiled = []
        for record in fl.run(tokens(), recorder, None, PLAN, lora=LORA, seed=0):
            spoiled.append(record)
            for values in inputs[-1:]:
                for kept in (values.state, values.broadcast):
                    for tensor in kept.tensors.values():
                        tensor.zero_()
                for tensor in (*values.uploads.values(), values.weights):
                    tensor.zero_()
        same_bits(records, spoiled)
    assert len(rounds) == PLAN.rounds


# ---- gradients of a layer


@pytest.fixture(scope="module", params=["fedlora", "flora"])
def record(request):
    """Also of a row whose model has a residual beside the factors."""
    return play(tokens(), request.param, None)[-1]


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


def test_full_updates_lower_the_loss_and_leave_the_model():
    """The loss falls by the change, which has the layers' shapes; the model keeps its bits."""
    task = tokens()
    before = {name: p.clone() for name, p in task.model.named_parameters()}
    updates = measures.full_updates(task, steps=200, batch=8)
    assert list(updates) == ["inner", "outer"]
    assert all(torch.equal(before[name], p) for name, p in task.model.named_parameters())
    data = concatenate(task.clients)
    assert loss_after(task, updates, *data) < 0.95 * loss_after(task, {}, *data)
