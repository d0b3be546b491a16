"""Notebook 11: what is read from an update, the noise that hides it, and what no attacker can do."""

from typing import Any

import numpy as np
import pytest
import torch

import fedlora_lab as fl
from fedlora_lab import attacks, theory
from fedlora_lab.plots.leak import PIXELS, Fading
from fedlora_lab.plots.style import png


@pytest.fixture(scope="module")
def victim():
    return attacks.Victim.of(attacks.whole_scans(), fl.Lora(8, 8.0), spread=0.2)


def first(victim: Any, count: int = 1) -> Any:
    x, y = victim.task.clients[0]
    return x[:count], y[:count]


@pytest.mark.parametrize(("rank", "d_in"), [(4, 400), (64, 64), (8, 256)])
def test_overlap(rank, d_in):
    """Drawn matrices of one direction in noise; nothing above the threshold, whatever the shape."""
    rng = np.random.default_rng(rank)
    x = rng.standard_normal(d_in)
    x /= np.linalg.norm(x)
    u = np.eye(rank)[0]
    lost = theory.vanishing_noise(rank, d_in)
    for share, releases in ((0.2, 1), (0.5, 1), (0.5, 9)):
        sigma = share * lost * releases**0.5
        noise = sigma / releases**0.5 * rng.standard_normal((60, rank, d_in))
        found = [abs(float(np.linalg.svd(np.outer(u, x) + xi, full_matrices=False)[2][0] @ x)) for xi in noise]
        assert np.mean(found) == pytest.approx(theory.overlap(sigma, rank, d_in, releases), abs=0.03)
    assert theory.overlap(1.001 * lost, rank, d_in) == 0 < theory.overlap(0.999 * lost, rank, d_in) < 0.2
    assert theory.overlap(0.0, rank, d_in) == 1


def test_vanishing_noise():
    """Where the closed form of the overlap reaches zero; averages of T releases stand T times the variance."""
    lost = theory.vanishing_noise(8, 64)
    assert theory.overlap(1.001 * lost, 8, 64) == 0 < theory.overlap(0.999 * lost, 8, 64) < 0.2
    assert theory.vanishing_noise(8, 64, 16) == pytest.approx(4 * lost)


def test_overlap_refuses():
    for bad, message in (((-1.0, 2, 4), "noise_multiplier=-1"), ((1.0, 0, 4), "rank=0"), ((1.0, 5, 4), "d_in=4")):
        with pytest.raises(ValueError, match=message):
            theory.overlap(*bad)
    with pytest.raises(ValueError, match="releases=0"):
        theory.vanishing_noise(2, 4, 0)


def test_a_scan_is_read_from_two_layers():
    """Both layers are needed: rank 8 alone has half of the rows. Noise of a ten-thousandth ends it."""
    task = fl.tasks.digits(clients=10)
    *_, record = fl.run(task, "fedlora", None, fl.Plan(rounds=1, lr=0.1), lora=fl.Lora(8, 16.0))
    victim = attacks.Victim.after(record)
    x, y = first(victim)
    upload = victim.upload((x, y))
    image, outside = attacks.read_scan(victim, upload)
    assert torch.equal(image, x[0])
    assert float(outside.max()) < 0.01
    twice = {slot: upload[victim.layer(upload, name="blocks.0.query")] for slot in upload}
    assert not torch.equal(attacks.read_scan(victim, twice, levels=5).image, x[0])
    noised = attacks.read_scan(victim, victim.upload((x, y), clip_norm=1.0, noise_multiplier=1e-4), levels=5)
    assert float(noised.outside.max()) > 0.05


def test_joined_rows_of_one_input_share_a_space(victim):
    gradients = [torch.outer(torch.randn(8), torch.arange(5.0)), 1e-6 * torch.outer(torch.randn(3), torch.arange(5.0))]
    both = attacks.joined(gradients)
    assert both.shape == (11, 5)
    assert len(attacks.row_space(both, tolerance=1e-4)) == 1
    assert float(both[8:].norm()) == pytest.approx(1)


def test_the_gradient_of_b_shows_a_shadow(victim):
    x, y = first(victim)
    upload = victim.upload((x, y), "AB")
    slot_A, slot_B = victim.layer(upload), victim.layer(upload, "B")
    A, true = victim.values[slot_A], x[0].flatten()
    inside = torch.linalg.pinv(A) @ A @ true
    found = attacks.shadow(upload[slot_B], A)
    assert attacks.similarity(found, inside) == pytest.approx(1, abs=1e-4)
    assert attacks.similarity(found, true) == pytest.approx(float(inside.norm() / true.norm()), abs=1e-3)
    pool = np.concatenate([part.flatten(1).numpy() for part, _ in victim.task.clients])
    match = attacks.same_shadow(upload[slot_B], A, pool)
    assert match.argmax() == 0
    assert match[0] == pytest.approx(1, abs=1e-5) and np.sort(match)[-2] < 0.999
    with pytest.raises(ValueError, match=r"^gradient="):
        attacks.shadow(torch.zeros(4, 8), A)


def test_outside_by_batch(victim):
    table = attacks.outside_by_batch(victim, (1, 8, 12), draws=5)
    assert list(table.columns) == ["size", "draw", "who", "value"]
    mean: Any = table.groupby(["who", "size"])["value"].mean()
    assert mean["in the batch"][8] < 1e-3 < 0.05 < mean["in the batch"][12]
    assert mean["somebody else"].min() > 0.3
    lines: Any = [line for line in fl.plots.spans(table, 8).axes[0].lines if line.get_marker() == "o"]
    assert [float(line.get_ydata()[1]) for line in lines] == pytest.approx(
        [mean[who][8] for who in sorted(mean.index.levels[0])]
    )
    with pytest.raises(ValueError, match="size=0"):
        attacks.outside_by_batch(victim, (0,))


def test_whole_scans():
    task = attacks.whole_scans(examples=5, hidden=7, head=True)
    assert task.sizes == (5, 5, 5) and task.head == "3"
    assert torch.equal(task.clients[1][0], attacks.whole_scans().clients[1][0][:5])
    again = attacks.whole_scans(examples=5, hidden=7)
    assert torch.equal(*(part.model.state_dict()["1.weight"] for part in (task, again)))
    bad: Any
    for bad in ({"examples": 0}, {"hidden": 0}):
        with pytest.raises(ValueError, match="=0: expected"):
            attacks.whole_scans(**bad)


def test_shown_images_have_no_sign():
    image = torch.arange(64.0).reshape(8, 8) / 63
    assert np.allclose(attacks.shown(-3 * image), attacks.shown(image))
    assert attacks.shown(image).max() == 1
    assert attacks.shown(image)[0, 0] == 0
    with pytest.raises(ValueError, match="numel"):
        attacks.shown(torch.zeros(3))


def test_the_closed_form_holds_the_images():
    """Well below the threshold the mean of draws is the closed form; far above it is a random direction's."""
    table: Any
    figure, table = fl.plots.leak_check((8, 32), (0.02, 0.07, 1.0), draws=40)
    clear = table[table["noise"] < 0.5 * (table["rank"] * PIXELS) ** -0.25]
    assert len(clear) == 4
    assert (clear["measured"] - clear["closed"]).abs().max() < 0.03
    assert (table[table["lost"]]["measured"] < 0.2).all() and table["lost"].sum() == 2
    drawn: Any = list(figure.axes[0].containers)
    assert np.allclose(drawn[0][0].get_ydata(), table[table["rank"] == 8]["measured"])
    assert png(figure)[:4] == b"\x89PNG"


def test_releases_average():
    """The mean of T drawn uploads is as near to the scan as one upload with sigma / sqrt(T)."""
    under = Fading()
    x, y = (part[:1] for part in under.task.clients[0])
    victim = under._victim(8)
    each = [victim.upload((x, y), clip_norm=0.01, noise_multiplier=0.4, draw=i) for i in range(160)]
    rows = torch.stack([upload[victim.layer(upload)] for upload in each]).reshape(10, 16, 8, 64).mean(1)
    drawn = [attacks.similarity(attacks.direction(one), x) for one in rows]
    said = [under.read(0.4, 16, 8, 0, i)[1] for i in range(10)]
    assert np.mean(drawn) == pytest.approx(np.mean(said), abs=0.06)
    assert np.mean([under.read(0.4, 1, 8, 0, i)[1] for i in range(10)]) < np.mean(drawn) - 0.3


def test_the_axes_stand_still():
    draw = Fading()
    pictures = [draw(**given)[0] for given in ({}, {"noise": 3.0, "releases": 100, "rank": 32, "scan": 1})]
    limits = [[(ax.get_xlim(), ax.get_ylim(), ax.get_position().bounds) for ax in one.axes] for one in pictures]
    assert limits[0] == limits[1]


def test_the_dial_says_what_it_shows():
    widget = fl.widgets.attack_dial()
    before, words = widget.picture.value, widget.sentence.value
    assert "σ = 0.1, 1 release:" in words and "can be read" in words
    widget.knobs["noise"].value = 0.5
    assert widget.settle()
    assert widget.picture.value != before
    assert "is lost" in widget.sentence.value
    widget.knobs["releases"].value = 100
    assert widget.settle()
    cosine = Fading().read(0.5, 100, 8, 7)[1]
    spent = theory.gdp_epsilon(theory.gaussian_mu(0.5, 100), 1e-4)
    assert f"|cos| with the scan {cosine:.2f}" in widget.sentence.value
    assert f"ε = {spent:,.0f} at" in widget.sentence.value and "can be read" in widget.sentence.value
    widget.reset()
    assert widget.settle()
    assert widget.picture.value == before
    widget.close()


def test_the_epsilon_of_the_dial_is_the_ledgers():
    held = fl.Privacy(noise_multiplier=3.0, sample_rate=1.0, delta=1e-4).ledger(5)
    assert theory.gdp_epsilon(theory.gaussian_mu(3.0, 5), 1e-4) == pytest.approx(held.epsilon(), rel=0.01)


def test_the_curve_of_an_attack():
    found = attacks.Membership(np.array([3.0, 2.0, 1.0]), np.array([2.0, 0.0, -1.0, -2.0]))
    accused, members = found.curve()
    assert np.allclose(accused, [0, 0, 0.25, 0.25, 0.5, 0.75, 1])
    assert np.allclose(members, [0, 1 / 3, 2 / 3, 1, 1, 1, 1])
    area = float(np.trapezoid(members, accused))
    assert area == pytest.approx(found.auc)


def test_the_membership_figure():
    rng = np.random.default_rng(0)
    attack = attacks.Membership(rng.standard_normal(300) + 1, rng.standard_normal(300))
    figure = fl.plots.membership({"one": attack}, 1.0, 1e-3)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert f"one: AUC {attack.auc:.2f}" in texts
    lines: Any = figure.axes[0].lines
    x, y = lines[0].get_data()
    assert np.allclose(y, theory.membership_bound(np.asarray(x), 1.0, 1e-3))
    with pytest.raises(ValueError, match="attacks"):
        fl.plots.membership({}, 1.0, 1e-3)


def test_sentences_are_shipped():
    table: Any = attacks.sentences()
    assert list(table.columns) == ["domain", "noise", "pieces", "right"]
    assert (table["right"] <= table["pieces"]).all()
    by = table.groupby("noise")["right"].sum() / table.groupby("noise")["pieces"].sum()
    assert by[0.0] > 0.9 > 0.5 > by.iloc[-1]
