"""Lesson 06: a reader's turns beside the library's, and the noise that turns save."""

from typing import Any

import numpy as np
import pytest

import fedlora_course as course
import fedlora_lab as fl
from fedlora_course.lesson_06.exercises import take_turns

LAYER = "blocks.1.value"


@pytest.mark.further
@pytest.mark.slow
@pytest.mark.trains
def test_two_rounds_of_the_readers_turns_are_the_librarys():
    """Without noise, with the tools of the lesson, up to the clip in single precision."""
    tools, rng = course.lesson(4), np.random.default_rng(0)
    task = fl.tasks.digits(clients=60, targets=(LAYER,))
    plan = fl.Plan(rounds=2, local_steps=1, batch=None, lr=1.2)
    exact = fl.Privacy(unit="client", clip_norm=0.3, noise_multiplier=0.0, delta=1e-3)
    start = next(fl.run(task, "fedlora", None, plan, lora=fl.Lora(rank=64, alpha=64), seed=0))

    def gradient(change):
        W = np.reshape(change, (-1, 64, 64))[0]
        rows, _ = tools.drawn_gradients(start, W, np.eye(64), batch=10**6, rng=rng)
        return np.stack([scans.mean(axis=0) for scans in rows])

    def plain_release(changes, frozen):
        lengths = np.linalg.norm(changes, axis=(1, 2), keepdims=True)
        return (changes * np.minimum(1, 0.3 / lengths)).mean(0)

    first, *_, last = fl.run(task, "rolora", exact, plan, seed=0)
    (A, B), (end_A, end_B) = (
        [factor.double().numpy() for factor in record.adapter[LAYER]] for record in (first, last)
    )
    own_B, own_A = take_turns(B, A, gradient, plain_release, 1.2, 2.0, 1, 2)
    missed = np.linalg.norm(own_B @ own_A - end_B @ end_A)
    assert missed < 1e-3 * np.linalg.norm(end_B @ end_A)


@pytest.mark.further
def test_in_a_long_run_turns_save_no_noise():
    """At the minimum of least squares: half of the energy of both moving at first, then all."""
    eta, tau, rng = 0.05, 0.01, np.random.default_rng(0)
    B_0 = np.linalg.qr(rng.standard_normal((20, 3)))[0]
    A_0 = np.linalg.qr(rng.standard_normal((30, 3)))[0].T
    goal = B_0 @ A_0
    energy = {}
    for turns in (False, True):
        kept = {2: [], 20: [], 50: [], 100: [], 201: []}
        for _ in range(24):
            B, A = B_0, A_0
            for t in range(1, 401):
                error = B @ A - goal
                new_B = B - eta * error @ A.T + tau * rng.standard_normal(B.shape)
                new_A = A - eta * B.T @ error + tau * rng.standard_normal(A.shape)
                B = new_B if not turns or t % 2 else B
                A = new_A if not turns or t % 2 == 0 else A
                if t in kept or t > 200:
                    kept[min(t, 201)].append(np.square(B @ A - goal).sum())
        energy[turns] = {t: np.mean(values) for t, values in kept.items()}
    saving = {t: energy[True][t] / energy[False][t] for t in energy[True]}
    assert saving[2] == pytest.approx(0.5, abs=0.06) and saving[20] == pytest.approx(0.75, abs=0.12)
    assert 0.75 < saving[50] < 1.15 and 0.8 < saving[100] < 1.2
    assert saving[201] == pytest.approx(1, abs=0.06)


def test_with_sampling_twice_the_releases_ask_for_a_quarter_more_noise():
    """At ε = 8, batches of 16 from 120: what the evidence says beside 370 %."""
    client = fl.tasks.regression(clients=1, examples=120)
    multipliers = []
    for rounds in (100, 200):
        plan = fl.Plan(rounds=rounds, local_steps=1, batch=16)
        privacy = fl.Privacy(delta=1e-4, accountant="pld")
        privacy = privacy.calibrate(epsilon=8, task=client, plan=plan)
        noise: Any = privacy.noise_multiplier
        multipliers.append(float(np.mean(noise)))
    grown = multipliers[1] / multipliers[0]
    assert grown == pytest.approx(1.25, abs=0.01)
    tau = 0.4 / (8 * 2**0.5)
    one, more = (
        fl.theory.accumulated_noise_terms(64, 4, 64, s * tau, s * tau, 20, 20, 2.0).total
        for s in (1, grown)
    )
    assert more / one == pytest.approx(2.3, abs=0.06)
