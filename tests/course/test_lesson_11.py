"""Notebook 11: what is read from an update, the noise that hides it, and the attackers' limits."""

from typing import Any

import numpy as np
import pytest
import torch

import fedlora_lab as fl
from fedlora_lab import attacks, theory


@pytest.fixture(scope="module")
def victim():
    return attacks.Victim.from_task(attacks.flattened_digits_task(), fl.Lora(8, 8.0), spread=0.2)


def first(victim: Any) -> Any:
    x, y = victim.task.clients[0]
    return x[:1], y[:1]


@pytest.mark.parametrize(("rank", "d_in"), [(4, 400), (64, 64), (8, 256)])
def test_gradient_overlap_is_the_mean_over_draws(rank, d_in):
    """Drawn matrices of one direction in noise; nothing is left above the threshold."""
    rng = np.random.default_rng(rank)
    x = rng.standard_normal(d_in)
    signal = np.outer(np.eye(rank)[0], x / np.linalg.norm(x))
    lost = theory.vanishing_noise(rank, d_in)
    for share, releases in ((0.2, 1), (0.5, 1), (0.5, 9)):
        sigma = share * lost * releases**0.5
        noise = sigma / releases**0.5 * rng.standard_normal((60, rank, d_in))
        found = np.linalg.svd(signal + noise, full_matrices=False)[2][:, 0] @ signal[0]
        closed = theory.gradient_overlap(sigma, rank, d_in, releases)
        assert np.abs(found).mean() == pytest.approx(closed, abs=0.03)
    assert theory.gradient_overlap(0.0, rank, d_in) == 1
    ends = [theory.gradient_overlap(share * lost, rank, d_in) for share in (0.999, 1.001)]
    assert ends[1] == 0 < ends[0] < 0.2
    assert theory.vanishing_noise(rank, d_in, 16) == pytest.approx(4 * lost)


@pytest.mark.slow
def test_a_scan_is_read_from_two_layers():
    """Both layers are needed: rank 8 alone has half of the rows; noise of 1e-4 ends it."""
    task = fl.tasks.digits(clients=10)
    *_, record = fl.run(task, "fedlora", None, fl.Plan(rounds=1, lr=0.1), lora=fl.Lora(8, 16.0))
    victim = attacks.Victim.from_record(record)
    x, y = first(victim)
    upload = victim.upload((x, y))
    image, outside = attacks.read_scan(victim, upload)
    assert torch.equal(image, x[0]) and float(outside.max()) < 0.01
    twice = {key: upload[victim.layer(upload, name="blocks.0.query")] for key in upload}
    assert not torch.equal(attacks.read_scan(victim, twice, levels=5).image, x[0])
    noised = victim.upload((x, y), clip_norm=1.0, noise_multiplier=1e-4)
    assert float(attacks.read_scan(victim, noised, levels=5).outside.max()) > 0.05


def test_the_gradient_of_b_shows_a_shadow(victim):
    x, y = first(victim)
    upload = victim.upload((x, y), "AB")
    gradient = upload[victim.layer(upload, "B")]
    A = victim.values[victim.layer(upload)]
    inside = torch.linalg.pinv(A) @ A @ x[0].flatten()
    shadow = attacks.input_from_b_gradient(gradient, A)
    assert attacks.similarity(shadow, inside) == pytest.approx(1, abs=1e-4)
    pool = np.concatenate([part.flatten(1).numpy() for part, _ in victim.task.clients])
    match = attacks.match_b_gradient(gradient, A, pool)
    assert match[0] == pytest.approx(1, abs=1e-5) and match[1:].max() < 0.999


def test_an_upload_is_the_sum_of_the_traces(victim):
    """Clipped alike, over the same sides, in the upload's order."""
    pair = tuple(part[:6] for part in victim.task.clients[0])
    for sides, clip in (("A", 0.01), ("AB", 0.5)):
        upload = victim.upload(pair, sides, clip_norm=clip)
        sent = torch.cat([x.flatten() for x in upload.values()])
        traces = victim.traces(pair, sides, clip)
        torch.testing.assert_close(traces.sum(0), sent, rtol=1e-4, atol=1e-7)
        assert float(traces.norm(dim=1).max()) <= clip * (1 + 1e-5)
