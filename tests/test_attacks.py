"""Attacks recover what a plain update gives away, exactly where theory says so, and fail under the noise."""

import math
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from small import LORA, PLAN, play, tokens

import fedlora_lab as fl
from fedlora_lab import attacks, theory
from fedlora_lab.attacks import Victim
from fedlora_lab.plots.style import png

LINEAR = fl.tasks.regression(clients=1, examples=32, d_in=48, d_out=24, rank=4, dtype="float64")


@cache
def scans():
    return fl.tasks.digits(clients=3, head="head").to(torch.float64)


def first(task: Any, count: int = 1, client: int = 0) -> Any:
    x, y = task.clients[client]
    return x[:count], y[:count]


def test_nothing_is_sent_while_b_is_zero():
    still = Victim.of(LINEAR, fl.Lora(8), spread=0.0)
    upload = still.upload(first(LINEAR), "AB")
    assert not upload[still.layer(upload)].any()
    assert upload[still.layer(upload, "B")].any()
    with pytest.raises(ValueError, match="B has not moved yet"):
        attacks.span_check(still, upload[still.layer(upload)], "map", first(LINEAR)[0])


def test_one_input_is_recovered_and_noise_hides_it():
    """|cos| falls from 1 to a guess's as the noise grows; 48 inputs, rank 8, the mean of 20 draws."""
    victim, (x, y) = Victim.of(LINEAR, fl.Lora(8)), first(LINEAR)
    found = {}
    for sigma in (0.0, 0.01, 0.05, 0.3, 1.0):
        each = []
        for draw in range(20):
            upload = victim.upload((x, y), clip_norm=0.1, noise_multiplier=sigma, draw=draw)
            each.append(attacks.similarity(attacks.direction(upload[victim.layer(upload)]), x[0]))
        found[sigma] = float(np.mean(each))
    assert found[0.0] == pytest.approx(1.0, abs=1e-12)
    assert found[0.01] > 0.98
    assert found[0.05] > 0.9
    assert 0.15 < found[0.3] < 0.8
    assert found[1.0] < 0.3


@pytest.mark.parametrize("count", [1, 3, 8, 16])
def test_the_span_of_few_inputs_is_exact(count):
    """Up to r inputs the rows span exactly them; beyond, the span has r rows and holds no input."""
    victim, (x, y) = Victim.of(LINEAR, fl.Lora(8)), first(LINEAR, count)
    upload = victim.upload((x, y))
    space = attacks.row_space(upload[victim.layer(upload)], tolerance=1e-10)
    inside, stranger = attacks.residual(space, x), attacks.residual(space, LINEAR.test[0][:20])
    assert len(space) == min(count, 8)
    assert torch.allclose(space @ space.T, torch.eye(len(space), dtype=space.dtype))
    if count <= 8:
        assert float(inside.max()) < 1e-7
        assert float(stranger.min()) > 0.7
    else:
        assert float(inside.min()) > 0.3


def test_an_image_is_read_from_one_gradient():
    """Every patch of a scan, to the last grey level, from one gradient of A; a breath of noise blurs it."""
    task = scans()
    victim, (x, y) = Victim.of(task, fl.Lora(24, 24.0)), first(task)
    # Four grey levels in each of four pixels stand for the 83,521 patches, beside the right ones.
    patches = attacks.patches(4).double()
    right = x[0].reshape(4, 2, 4, 2).permute(0, 2, 1, 3).reshape(16, 2, 2).repeat(1, 4, 4)
    patches = torch.cat([patches, right])
    found = {}
    for sigma in (0.0, 1e-5, 0.5):
        upload = victim.upload((x, y), clip_norm=1.0, noise_multiplier=sigma)
        slot = victim.layer(upload, name="blocks.0.query")
        outside = attacks.span_check(victim, upload[slot], slot.layer, patches, rank=16)
        assert outside.shape == (len(patches), 16)
        found[sigma] = attacks.assembled(patches, outside.argmin(0))
    assert torch.equal(found[0.0], x[0])
    assert attacks.similarity(found[0.5], x) < 0.8
    assert float((found[0.5] - x[0]).abs().max()) > 0.5


def test_the_dictionary_holds_every_patch():
    patches = attacks.patches()
    assert patches.shape == (17**4, 8, 8)
    assert torch.equal(patches[:, :2, :2], patches[:, 2:4, 6:])
    own = scans().clients[0][0][:50].float().reshape(50, 4, 2, 4, 2).permute(0, 1, 3, 2, 4).reshape(-1, 4) * 16
    assert torch.equal(own, own.round())
    image = torch.rand(8, 8)
    parts = image.reshape(4, 2, 4, 2).permute(0, 2, 1, 3).reshape(16, 2, 2).repeat(1, 4, 4)
    assert torch.equal(attacks.assembled(parts, torch.arange(16)), image)


def test_inputs_of_a_layer_are_its_inputs():
    victim = Victim.of(tokens(), LORA)
    x = tokens().test[0]
    assert torch.equal(attacks.inputs_of(victim, "inner", x), x)
    inner = torch.tanh(victim.adapted.model.get_submodule("base_model.model.inner")(x))
    expected = inner - 0.5 * inner.flip(1)
    torch.testing.assert_close(attacks.inputs_of(victim, "outer", x), expected)


def test_labels_are_read_and_noise_hides_them():
    task = scans()
    victim, hits = Victim.of(task), {0.0: 0, 3.0: 0}
    for sigma in hits:
        for i in range(60):
            x, y = task.clients[0]
            upload = victim.upload((x[i : i + 1], y[i : i + 1]), "head", clip_norm=1.0, noise_multiplier=sigma, draw=i)
            hits[sigma] += attacks.label(upload) == int(y[i])
    assert hits[0.0] == 60
    assert hits[3.0] < 30
    with pytest.raises(ValueError, match="trained head"):
        attacks.label(victim.upload(first(task)))


def test_counts_of_labels_are_read():
    """In batches of four: most labels without noise, a fifth to two fifths (guessing) with."""
    task = scans()
    victim, right = Victim.of(task), {0.0: 0, 3.0: 0}
    given, (x, y) = task.forward(task.model, task.test[0]), task.clients[0]
    by_class = torch.stack([torch.softmax(given[task.test[1] == c], 1).mean(0) for c in range(10)])
    for sigma in right:
        for i in range(0, 80, 4):
            batch = x[i : i + 4], y[i : i + 4]
            upload = victim.upload(batch, "head", clip_norm=10.0, noise_multiplier=sigma, draw=i)
            found = attacks.counts(upload, 4, by_class)
            assert int(found.sum()) == 4
            right[sigma] += 4 - int((found - torch.bincount(batch[1], minlength=10)).abs().sum()) // 2
    assert right[0.0] >= 0.6 * 80
    assert right[3.0] <= 0.45 * 80


@cache
def perceptron():
    """Scans before a small smooth network, where a search meets no walls."""
    task = fl.tasks.digits(clients=3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.Sigmoid(), torch.nn.Linear(32, 10)
    return fl.tasks.classification(torch.nn.Sequential(*layers), list(task.clients), test=task.test, targets=["1", "3"])


def test_an_image_is_found_by_search_and_noise_hides_it():
    """Cosine and total variation, both factors sent: close to the image without noise, far from it with."""
    task = perceptron()
    victim, (x, y) = Victim.of(task, fl.Lora(16, 16.0), spread=0.2), first(task)
    found = {}
    for sigma in (0.0, 1.0):
        upload = victim.upload((x, y), "AB", clip_norm=1.0, noise_multiplier=sigma)
        found[sigma] = attacks.invert(victim, upload, y, steps=300)
    assert found[0.0].distance < 0.01
    assert attacks.similarity(found[0.0].x, x) > 0.95
    assert found[1.0].distance > 0.5
    assert attacks.similarity(found[1.0].x, x) < 0.85
    assert 0 <= float(found[0.0].x.min()) <= float(found[0.0].x.max()) <= 1
    ids = {"ids": torch.zeros(3, 2).long()}, y.expand(3)
    words = replace(victim, task=replace(task, test=ids, validation=None, clients=(ids,), client_names=()))
    with pytest.raises(ValueError, match="inputs that are numbers"):
        attacks.invert(words, {}, y)


def test_membership_scores_are_counted_right():
    found = attacks.Membership(np.array([3.0, 2.0, 1.0]), np.array([2.0, 0.0, -1.0, -2.0]))
    assert found.auc == pytest.approx((4 + 3.5 + 3) / 12)
    assert found.tpr(0.0) == pytest.approx(1 / 3)
    assert found.tpr(0.25) == 1.0
    assert found.tpr(1.0) == 1.0


def random_labels():
    """Six classes at random: what is learned of them is learned by heart."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(60, 40, generator=random, dtype=torch.float64)
    y = torch.randint(6, (60,), generator=random)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(40, 16), torch.nn.Tanh(), torch.nn.Linear(16, 6)).double()
    clients = [(x[:20], y[:20]), (x[20:40], y[20:40])]
    return fl.tasks.classification(model, clients, test=(x[40:], y[40:]), targets=["0"], head="2")


NOISED = fl.Privacy(noise_multiplier=3.0, delta=1e-3, accountant="rdp")
LEARN = fl.Plan(rounds=25, local_steps=4, batch=None, lr=0.5)


def test_membership_by_the_fall_of_the_loss():
    plain = attacks.loss_difference(play(random_labels(), "fedlora", None, LEARN.replace(lr=1.0))[-1])
    noised = play(random_labels(), "fedlora", NOISED, LEARN.replace(rounds=3))[-1]
    found = attacks.loss_difference(noised)
    assert (len(plain.members), len(plain.others)) == (40, 20)
    assert plain.auc > 0.85
    assert plain.tpr(0.05) > 0.5  # one of the twenty others may be above
    assert abs(found.auc - 0.5) < 0.25
    for fpr in (0.05, 0.5):
        bound = theory.membership_bound(np.array([fpr]), noised.epsilon, 1e-3).item()
        assert found.tpr(fpr) <= bound


def test_lira_finds_members_and_noise_hides_them():
    plan = LEARN.replace(rounds=10)
    plain = attacks.lira(random_labels(), "fedlora", None, plan, runs=6, lora=LORA)
    privacy = NOISED.replace(noise_multiplier=15.0)
    noised = attacks.lira(random_labels(), "fedlora", privacy, plan, runs=6, lora=LORA)
    assert len(plain.members) + len(plain.others) > 0.85 * 6 * 40
    assert plain.auc > 0.7
    assert plain.tpr(0.01) > 0.05
    assert abs(noised.auc - 0.5) < 0.1
    offline = attacks.lira(random_labels(), "fedlora", None, plan, runs=6, lora=LORA, offline=True)
    assert offline.auc > 0.6


def test_the_likelihood_ratio_is_that_of_two_normals():
    rng = np.random.default_rng(0)
    shadows, there = rng.standard_normal((400, 3)), rng.random((400, 3)) < 0.5
    shadows += 2.0 * there
    found = attacks.likelihood_ratio(np.array([2.0, 1.0, 0.0]), shadows, there)
    assert np.allclose(found, [2.0, 0.0, -2.0], atol=0.6)
    offline = attacks.likelihood_ratio(np.array([2.0, 1.0, -1.0]), shadows, there, offline=True)
    assert np.all(np.diff(offline) < 0)
    nobody = attacks.likelihood_ratio(np.zeros(3), shadows, np.ones((400, 3), bool))
    assert np.isnan(nobody).all()


def test_a_victim_from_a_run_sends_what_the_engine_computes():
    record = play(tokens(), "fedlora", None, PLAN)[-1]
    victim, (x, y) = Victim.after(record), first(tokens(), 3)
    upload = victim.upload((x, y), "AB")
    assert {slot.side for slot in upload} == {"A", "B"}
    bound = victim.upload((x, y), "AB", clip_norm=0.01)
    assert math.sqrt(sum(float(g.square().sum()) for g in bound.values())) <= 3 * 0.01 * (1 + 1e-9)
    torch.testing.assert_close(victim.loss((x, y)), tokens().loss(fl.predict(tokens(), record, x), y))
    bad: dict[str, Any]
    for bad, message in (({"sides": "C"}, "sides='C'"), ({"noise_multiplier": 1.0}, "clip_norm=inf")):
        with pytest.raises(ValueError, match=message):
            victim.upload((x, y), **bad)
    with pytest.raises(ValueError, match="spread=-1"):
        Victim.of(tokens(), spread=-1.0)


def test_the_recovered_images_are_drawn():
    images = {"true": np.eye(8), "σ = 1": np.zeros((8, 8))}
    figure = fl.plots.recovered(images, "One update")
    assert [ax.get_xlabel() for ax in figure.axes] == list(images)
    shown: Any = figure.axes[0].images[0].get_array()
    assert np.array_equal(shown, np.eye(8))
    assert png(figure)[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match="images"):
        fl.plots.recovered({})
