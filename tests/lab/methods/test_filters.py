"""Rules inside a client: filters and preconditioners, each against plain matrices."""

import torch
from calls import refused
from toy_tasks import begun, play, random, regression

import fedlora_lab as fl
from fedlora_lab.methods import clip_groups, preconditioners
from fedlora_lab.methods.state import ParamKey
from fedlora_lab.privacy import privatizer


def test_directions_that_the_peer_does_not_span_stay_still():
    """A peer of rank 2 of 3: no change there can change the product. Rounded to float32, the Gram
    matrix of a third row that depends on two has rank 3.
    """
    peers = random(64, 2, 9)
    peers = torch.cat([peers, peers.sum(1, keepdim=True)], 1)
    noise = preconditioners.product_space((peers @ peers.mT).float()).of_noise.double()
    assert (torch.linalg.svdvals(noise)[:, -1] < 1e-5).all()


def test_the_published_form_is_certified_by_nobody():
    """Its noise passes a map and its signal does not; each tensor is clipped to all of C.

    The noise is white in the product, like the sound form's: a clip of the factor hides less there.
    """
    peer = random(3, 9)
    gram = peer @ peer.T
    rule = preconditioners.factor_space(gram)
    eye = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(rule.of_noise @ gram @ rule.of_noise, eye)
    assert torch.equal(rule.before, eye) and torch.equal(rule.after, eye)
    assert "by more than C" in (
        privatizer.uncertified_reason(None, clip_groups.each_tensor_to_c) or ""
    )
    assert privatizer.uncertified_reason(preconditioners.product_space) is None
    assert "does not pass" in (privatizer.uncertified_reason(preconditioners.factor_space) or "")
    with refused("expected a rule that gives a Preconditioner"):
        privatizer.uncertified_reason(lambda gram: gram)  # type: ignore[arg-type, return-value]


def test_a_core_starts_where_the_frozen_weight_points():
    """Public, the same for all seeds, and of no effect before training."""
    task = regression()
    state = begun(task, "fed-sb")
    weight = task.model.get_parameter("map.weight")
    a, b, core = (state.tensors[ParamKey(side, "map")] for side in "ABR")
    torch.testing.assert_close(b.T @ weight @ a.T, torch.linalg.svdvals(weight)[:2].diag())
    assert not core.any()
    with refused("rank=6: expected at most 5"):
        play(task, "fed-sb", None, lora=fl.Lora(rank=6))
