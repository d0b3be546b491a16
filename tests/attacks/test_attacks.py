"""Attacks recover what a plain update gives away, exactly where theory says so, and fail under the
noise.
"""

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from toy_tasks import LORA, PLAN, play, tokens

import fedlora_lab as fl
from fedlora_lab import attacks
from fedlora_lab.attacks import reconstruction
from fedlora_lab.attacks.membership_inference import likelihood_ratio
from fedlora_lab.attacks.reconstruction import Victim

LINEAR = fl.tasks.regression(clients=1, examples=32, d_in=48, d_out=24, rank=4, dtype="float64")


@cache
def scans():
    return fl.tasks.digits(clients=3, head="head").to(torch.float64)


def first(task: Any, count: int = 1) -> Any:
    x, y = task.clients[0]
    return x[:count], y[:count]


def patches_of(image: torch.Tensor) -> torch.Tensor:
    """Each of the 16 patches of an image repeated to an image of its own."""
    return image.reshape(4, 2, 4, 2).permute(0, 2, 1, 3).reshape(16, 2, 2).repeat(1, 4, 4)


def test_nothing_is_sent_while_b_is_zero():
    still = Victim.from_task(LINEAR, fl.Lora(8), spread=0.0)
    upload = still.upload(first(LINEAR), "AB")
    assert not upload[still.layer(upload)].any()
    assert upload[still.layer(upload, "B")].any()
    with pytest.raises(ValueError, match=r"gradient='zero': expected one .* B has not moved yet"):
        reconstruction.span_check(still, upload[still.layer(upload)], "map", first(LINEAR)[0])


def test_one_input_is_recovered_and_noise_hides_it():
    """|cos| falls from 1 to a guess's as the noise grows: 48 inputs, rank 8, the mean of 20."""
    victim, (x, y) = Victim.from_task(LINEAR, fl.Lora(8)), first(LINEAR)
    found = {}
    for sigma in (0.0, 0.05, 0.3, 1.0):
        options = ({"clip_norm": 0.1, "noise_multiplier": sigma, "draw": i} for i in range(20))
        uploads = [victim.upload((x, y), **some) for some in options]
        read = [attacks.input_from_a_gradient(upload[victim.layer(upload)]) for upload in uploads]
        found[sigma] = np.mean([attacks.similarity(one, x[0]) for one in read])
    assert found[0.0] == pytest.approx(1.0, abs=1e-12)
    assert found[0.05] > 0.9 and 0.15 < found[0.3] < 0.8 and found[1.0] < 0.3


@pytest.mark.parametrize("count", [1, 8, 16])
def test_the_span_of_few_inputs_is_exact(count):
    """Up to r inputs the rows span exactly them; beyond, the span has r rows and holds no input."""
    victim, (x, y) = Victim.from_task(LINEAR, fl.Lora(8)), first(LINEAR, count)
    upload = victim.upload((x, y))
    space = reconstruction.row_space(upload[victim.layer(upload)], tolerance=1e-10)
    pairs = x, LINEAR.test[0][:20]
    inside, stranger = (reconstruction.residual_share(space, given) for given in pairs)
    assert len(space) == min(count, 8)
    if count <= 8:
        assert float(inside.max()) < 1e-7 and float(stranger.min()) > 0.7
    else:
        assert float(inside.min()) > 0.3


def test_an_image_is_read_from_one_gradient():
    """Every patch of a scan, to the last grey level, from one gradient of A; noise blurs it."""
    task = scans()
    victim, (x, y) = Victim.from_task(task, fl.Lora(24, 24.0)), first(task)
    # Four grey levels in each of four pixels stand for the 83,521 patches, beside the right ones.
    patches = torch.cat([reconstruction.patches(4).double(), patches_of(x[0])])
    found = {}
    for sigma in (0.0, 0.5):
        upload = victim.upload((x, y), clip_norm=1.0, noise_multiplier=sigma)
        key = victim.layer(upload, name="blocks.0.query")
        outside = reconstruction.span_check(victim, upload[key], key.layer, patches, rank=16)
        assert outside.shape == (len(patches), 16)
        found[sigma] = reconstruction.assemble_image(patches, outside.argmin(0))
    assert torch.equal(found[0.0], x[0])
    assert attacks.similarity(found[0.5], x) < 0.8


def test_the_dictionary_holds_every_patch():
    patches, levels = reconstruction.patches(), scans().clients[0][0][:50] * 16
    assert patches.shape == (17**4, 8, 8) and torch.equal(levels, levels.round())
    assert torch.equal(patches[:, :2, :2], patches[:, 2:4, 6:])


def test_inputs_of_a_layer_are_its_inputs():
    victim, x = Victim.from_task(tokens(), LORA), tokens().test[0]
    assert torch.equal(reconstruction.layer_inputs(victim, "inner", x), x)
    inner = torch.tanh(victim.adapted.model.get_submodule("inner")(x))
    expected = inner - 0.5 * inner.flip(1)
    torch.testing.assert_close(reconstruction.layer_inputs(victim, "outer", x), expected)


def test_labels_are_read_and_noise_hides_them():
    task = scans()
    victim, (x, y), hits = Victim.from_task(task), task.clients[0], {0.0: 0, 3.0: 0}
    for sigma in hits:
        noise: Any = {"clip_norm": 1.0, "noise_multiplier": sigma}
        for i in range(40):
            upload = victim.upload((x[i : i + 1], y[i : i + 1]), "head", draw=i, **noise)
            hits[sigma] += attacks.infer_label(upload) == int(y[i])
    assert hits[0.0] == 40 and hits[3.0] < 20
    with pytest.raises(ValueError, match=r"upload=.*: expected one with a trained head"):
        attacks.infer_label(victim.upload(first(task)))


def test_membership_scores_are_counted_right():
    found = attacks.Membership(np.array([3.0, 2.0, 1.0]), np.array([2.0, 0.0, -1.0, -2.0]))
    assert found.auc == pytest.approx((4 + 3.5 + 3) / 12)
    assert [found.tpr(fpr) for fpr in (0.0, 0.25, 1.0)] == [pytest.approx(1 / 3), 1.0, 1.0]


@cache
def random_labels():
    """Six classes at random: what is learned of them is learned by heart."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(60, 40, generator=random, dtype=torch.float64)
    y = torch.randint(6, (60,), generator=random)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(40, 16), nn.Tanh(), nn.Linear(16, 6)).double()
    clients = [(x[:20], y[:20]), (x[20:40], y[20:40])]
    return fl.tasks.classification(model, clients, test=(x[40:], y[40:]), targets=["0"], head="2")


NOISED = fl.Privacy(noise_multiplier=3.0, delta=1e-3, accountant="rdp")
LEARN = fl.Plan(rounds=25, local_steps=4, batch=None, lr=0.5)


def test_membership_by_the_fall_of_the_loss():
    record = play(random_labels(), "fedlora", None, LEARN.replace(lr=1.0))[-1]
    plain = attacks.loss_difference(record)
    noised = play(random_labels(), "fedlora", NOISED, LEARN.replace(rounds=3))[-1]
    found, ledger = attacks.loss_difference(noised), noised.ledger
    assert (len(plain.members), len(plain.others)) == (40, 20)
    assert plain.auc > 0.85
    assert plain.tpr(0.05) > 0.5  # one of the twenty others may be above
    assert abs(found.auc - 0.5) < 0.25
    for fpr in (0.05, 0.5):
        assert ledger is not None and found.tpr(fpr) <= ledger.tradeoff(fpr)


@pytest.mark.slow
def test_lira_finds_members_and_noise_hides_them():
    setup, options = (random_labels(), "fedlora"), {"runs": 6, "lora": LORA}
    plan = LEARN.replace(rounds=10)
    plain = attacks.lira(*setup, None, plan, **options)
    noised = attacks.lira(*setup, NOISED.replace(noise_multiplier=15.0), plan, **options)
    assert len(plain.members) + len(plain.others) > 0.85 * 6 * 40
    assert plain.auc > 0.7
    assert plain.tpr(0.01) > 0.05
    assert abs(noised.auc - 0.5) < 0.1


def test_the_likelihood_ratio_is_that_of_two_normals():
    rng = np.random.default_rng(0)
    shadows, there = rng.standard_normal((400, 3)), rng.random((400, 3)) < 0.5
    found = likelihood_ratio(np.array([2.0, 1.0, 0.0]), shadows + 2.0 * there, there)
    assert np.allclose(found, [2.0, 0.0, -2.0], atol=0.6)
    nobody = likelihood_ratio(np.zeros(3), shadows, np.ones((400, 3), bool))
    assert np.isnan(nobody).all()


def test_a_victim_from_a_run_sends_clipped_gradients():
    record = play(tokens(), "fedlora", None, PLAN)[-1]
    victim, pair = Victim.from_record(record), first(tokens(), 3)
    assert {key.side for key in victim.upload(pair, "AB")} == {"A", "B"}
    bound = victim.upload(pair, "AB", clip_norm=0.01)
    assert math.sqrt(sum(float(g.square().sum()) for g in bound.values())) <= 3 * 0.01 * (1 + 1e-9)
    with pytest.raises(ValueError, match="sides='C': expected some of"):
        victim.upload(pair, "C")
    with pytest.raises(ValueError, match="clip_norm=inf: expected finite where noise is added"):
        victim.upload(pair, noise_multiplier=1.0)
