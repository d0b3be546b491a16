"""Rules inside a client: filters and whitenings, each against plain matrices."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlora_lab import mechanism, rules
from fedlora_lab.method import Slot

B, A = Slot("B", "layer"), Slot("A", "layer")


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gram(slot, peer):
    return peer @ peer.T if slot is B else peer.T @ peer


def product(slot, change, peer):
    """What a change of one factor does to the product."""
    return change @ peer if slot is B else peer @ change


@pytest.mark.parametrize("slot", [B, A])
@pytest.mark.parametrize("size", [0.01, 1.0, 100.0])
def test_product_space_noise_in_the_product(slot, size):
    """Noise of every size of the peer is the same in the product: white, on the directions that the peer spans."""
    peer = size * (random(3, 9) if slot is B else random(9, 3))
    rule = rules.product_space(gram(slot, peer)[None])
    xi = random(20000, 7, 3) if slot is B else random(20000, 3, 7)
    seen = product(slot, mechanism.rank_map(slot, rule.noise, xi), peer)
    energy = float(seen.square().sum((1, 2)).mean())
    assert abs(energy / (7 * 3) - 1) < 5 * math.sqrt(2 / (21 * 20000))
    span = torch.linalg.qr(peer.T if slot is B else peer)[0]
    inside = seen @ span if slot is B else span.T @ seen
    covariance = np.cov(inside.flatten(1).numpy().T)
    assert np.abs(covariance - np.eye(21)).max() < 6 / math.sqrt(20000)


@pytest.mark.parametrize("slot", [B, A])
@pytest.mark.parametrize("clip", [1e-3, 1.0, math.inf])
def test_product_space_is_post_processing(slot, clip):
    """The release in the product is the Gaussian mechanism on the change of the product, mapped by the peer alone."""
    peer, change = (random(3, 9), random(7, 3, seed=1)) if slot is B else (random(9, 3), random(3, 7, seed=1))
    rule = rules.product_space(gram(slot, peer)[None])
    owner = torch.zeros(1, dtype=torch.int64)
    rows = mechanism.before_clip({slot: change[None]}, {slot: rule}, owner)
    sums, _ = mechanism.clip_sum(rows, clip, owner, 1)
    xi = {slot: 0.3 * random(1, *change.shape, seed=2)}
    released, alone = mechanism.release(sums, xi, {slot: rule})
    effect = product(slot, change, peer)
    clipped = effect * min(1.0, clip / float(effect.norm()))
    torch.testing.assert_close(product(slot, (released[slot] - alone[slot])[0], peer), clipped, rtol=1e-9, atol=1e-12)
    assert rows[slot].norm() == pytest.approx(float(effect.norm()), rel=1e-9)
    assert rule.noise is rule.after


def test_directions_that_the_peer_does_not_span_stay_still():
    """A peer of rank 2 of 3, and one that is zero: no change of the factor can change the product there."""
    peer = torch.cat([random(2, 9), torch.zeros(1, 9, dtype=torch.float64)])
    rule = rules.product_space((peer @ peer.T)[None])
    moved = mechanism.rank_map(B, rule.noise, random(1, 7, 3))
    assert moved[..., 2].abs().max() < 1e-12
    assert moved.isfinite().all()
    nothing = rules.product_space(torch.zeros(1, 3, 3))
    assert not torch.stack(list(nothing)).any()


def test_the_published_form_is_certified_by_nobody():
    """Its noise passes the peer's pseudo-inverse and its signal does not; the reason is a sentence."""
    assert mechanism.uncertified(None) is None
    assert mechanism.uncertified(rules.product_space) is None
    assert "does not pass" in (mechanism.uncertified(rules.factor_space) or "")
    peer = random(3, 9)
    rule = rules.factor_space((peer @ peer.T)[None])
    torch.testing.assert_close(rule.before[0], torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(rule.noise[0] @ peer @ peer.T @ rule.noise[0], torch.eye(3, dtype=torch.float64))
    # The noise that hides a change of norm C along the peer's largest direction is sigma C / ||A||_2 there.
    _, values, right = (
        torch.linalg.svd(peer.T @ random(3, 3)),
        torch.linalg.svdvals(peer),
        torch.linalg.eigh(peer @ peer.T),
    )
    direction = right.eigenvectors[:, -1]
    assert float((rule.noise[0] @ direction).norm()) == pytest.approx(float(1 / values[0]), rel=1e-9)


def test_a_rule_that_gives_no_whitening_is_refused():
    with pytest.raises(ValueError, match="expected a rule that gives a Whitening"):
        mechanism.uncertified(lambda gram: gram)  # type: ignore[arg-type, return-value]


def matrix(taps: int, size: int) -> np.ndarray:
    """The filter as a matrix: binomial weights, each index beyond an edge mirrored back, the edge counted twice."""
    weights = [math.comb(taps - 1, i) / 2 ** (taps - 1) for i in range(taps)]
    full = np.zeros((size, size))
    for row in range(size):
        for i, weight in enumerate(weights):
            column = row + i - taps // 2
            while not 0 <= column < size:
                column = -column - 1 if column < 0 else 2 * size - 1 - column
            full[row, column] += weight
    return full


@pytest.mark.parametrize("taps", [1, 3, 5, 9])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 40])
def test_the_filter_is_its_matrix(taps, size):
    """Symmetric and doubly stochastic, on the long axis of each factor."""
    expected, rule = matrix(taps, size), rules.binomial(taps)
    np.testing.assert_allclose(expected, expected.T, atol=1e-15)
    np.testing.assert_allclose(expected.sum(0), 1)
    x = random(4, 2, size)
    np.testing.assert_allclose(rule(x, "A").numpy(), x.numpy() @ expected.T, atol=1e-12)
    np.testing.assert_allclose(rule(x.mT, "B").numpy(), expected @ x.mT.numpy(), atol=1e-12)


def test_the_filter_keeps_what_is_published_of_white_noise():
    """[1, 4, 6, 4, 1] / 16 keeps 0.273 of the variance and 0.523 of the standard deviation."""
    row = matrix(5, 40)[20]
    assert row[18:23].tolist() == [1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16]
    assert (row**2).sum() == pytest.approx(0.2734375)
    assert math.sqrt((row**2).sum()) == pytest.approx(0.523, abs=5e-4)
    smoothed = rules.binomial(5)(random(200, 2, 400), "A")[..., 5:-5]
    assert float(smoothed.var()) == pytest.approx(0.2734, rel=0.02)


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 12), taps=st.sampled_from([1, 3, 5, 7]), seed=st.integers(0, 99))
def test_the_filter_never_grows_the_norm(size, taps, seed):
    x = random(2, size, seed=seed)
    smoothed = rules.binomial(taps)(x, "A")
    assert smoothed.norm() <= x.norm() * (1 + 1e-12)
    torch.testing.assert_close(smoothed.mean(-1), x.mean(-1))


def test_no_smoothing_is_the_tensor_itself():
    x = random(3, 2)
    assert rules.identity(x, "A") is x
