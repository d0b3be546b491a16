"""Server rules: means with a fixed denominator, and the straight-through update."""

import pytest
import torch

from fedlora_lab import aggregate
from fedlora_lab.method import Global, Slot

A, B = Slot("A", "layer"), Slot("B", "layer")


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


STATE = Global({A: random(2, 5), B: random(4, 2, seed=1)})


def test_the_mean_is_the_weighted_mean():
    uploads, weights = {B: random(3, 4, 2, seed=2)}, torch.tensor([0.5, 0.2, 0.3])
    after = aggregate.mean(STATE, STATE, uploads, weights)
    expected = sum(w * x for w, x in zip([0.5, 0.2, 0.3], uploads[B]))
    torch.testing.assert_close(after.tensors[B], expected)
    assert after.tensors[A] is STATE.tensors[A]
    assert tuple(after.tensors) == (A, B)


def test_missing_weight_stays_with_the_old_state():
    """The denominator is fixed: of two clients that count half each, one alone moves the state half the way."""
    uploads = {B: random(1, 4, 2, seed=2)}
    after = aggregate.mean(STATE, STATE, uploads, torch.tensor([0.5]))
    torch.testing.assert_close(after.tensors[B], (STATE.tensors[B] + uploads[B][0]) / 2)


def test_more_weight_than_one_goes_further():
    """Poisson participation: the sum of the weights is one in the mean only."""
    uploads = {B: random(2, 4, 2, seed=2)}
    after = aggregate.mean(STATE, STATE, uploads, torch.tensor([1.0, 1.0]))
    torch.testing.assert_close(after.tensors[B], uploads[B].sum(0) - STATE.tensors[B])


@pytest.mark.parametrize("server_lr", [0.0, 0.5, 1.0, 2.0])
def test_straight_through_moves_the_state_by_the_change_of_the_copy(server_lr):
    """psi + eta (mean psi_k - q): what quantising took away stays on the server."""
    sent = Global({slot: (4 * x).round() / 4 for slot, x in STATE.tensors.items()})
    uploads = {slot: x + 0.1 * random(2, *x.shape, seed=3) for slot, x in sent.tensors.items()}
    after = aggregate.straight_through(server_lr)(STATE, sent, uploads, torch.tensor([0.5, 0.5]))
    for slot, x in STATE.tensors.items():
        expected = x + server_lr * (uploads[slot].mean(0) - sent.tensors[slot])
        torch.testing.assert_close(after.tensors[slot], expected)


def test_the_state_is_never_changed_in_place():
    before = {slot: x.clone() for slot, x in STATE.tensors.items()}
    uploads = {slot: x + random(2, *x.shape, seed=4) for slot, x in STATE.tensors.items()}
    aggregate.mean(STATE, STATE, uploads, torch.tensor([0.5, 0.5]))
    assert all(torch.equal(x, before[slot]) for slot, x in STATE.tensors.items())


def test_single_precision_stays_single():
    state = Global({B: random(4, 2, dtype=torch.float32)})
    after = aggregate.mean(state, state, {B: random(2, 4, 2, dtype=torch.float32)}, torch.ones(2, dtype=torch.float64))
    assert after.tensors[B].dtype == torch.float32


@pytest.mark.parametrize("server_lr", [-1, float("nan"), "1", None])
def test_bad_server_rates_are_refused(server_lr):
    with pytest.raises(ValueError, match=r"^server_lr=.*: expected a number in \[0, 1e\+06\]"):
        aggregate.straight_through(server_lr)
